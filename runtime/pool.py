"""Warm workers of one function: who gets the next call, when there are more, when there are fewer.

Made by `pools.py`, asked by `host.py` through it; holds the current generation (`generation.py`), which
`loading.py` replaces. A call that comes in is given to a free worker at once, or waits in one queue,
first come, first served.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from time import monotonic

from .ahead import Ahead
from .calls import MAX_HEAD, MAX_METHOD, Call, Result
from .deadlines import Deadlines
from .errors import HeadTooLarge, HostError, LoadFailed, NoFreeWorker, Overloaded, StartFailed
from .exchange import RETRY_AFTER, Exchange
from .generation import Generation, Worker
from .idle import IdleEnds
from .pace import Pace
from .process import Message
from .registry import Function
from .tasks import Tasks
from .telemetry import FunctionStats
from .turns import Turns

RECLAIM_AFTER = 0.02  # seconds after which a call is too long for others to wait behind it
GROW_AFTER = 0.004  # seconds that the first in the queue waits before there is another worker
MOMENT = 0.1  # seconds after which a call is late: its client is watched from then on
RESPITE = 1.0  # seconds until a warm worker that died is replaced, as those that die at once would be for ever

log = logging.getLogger("spaces.pool")
OnOutput = Callable[[Function, "Exchange | None", int, str], None]


class Pool:
    """One function's workers and the calls that wait for them."""

    def __init__(
        self,
        function: Function,
        tasks: Tasks,
        deadlines: Deadlines,
        need_generation: Callable[[Pool], None],
        on_output: OnOutput,
    ) -> None:
        self.function = function
        self.tasks = tasks
        self.stats = FunctionStats()
        self.current: Generation | None = None
        self.error: LoadFailed | None = None
        self.loading = False
        self.waiting: deque[Exchange] = deque()
        self.busy = 0  # calls waiting or running, those of earlier generations too
        self._loop = asyncio.get_running_loop()
        self.last_used = self._loop.time()
        self._deadlines = deadlines
        self._need_generation = need_generation
        self._on_output = on_output
        self._free: list[Worker] = []  # workers with a place, the most recently used last
        self._hot: Worker | None = None  # the sync worker that answered last
        self._pace = Pace()
        self._tick: asyncio.TimerHandle | None = None
        self._respite: asyncio.TimerHandle | None = None
        self._grown_at = self._told_at = 0.0
        self._turns = Turns(self, self._add_worker, self._adopt)
        self._ahead = Ahead(self._loop, partial(self._start, ahead=True))
        self._idle = IdleEnds(self._loop, lambda: self.function.settings, lambda: self.workers)

    # Calls in.

    def lease(self, call: Call) -> Exchange:
        """A place in a worker for this call, now or as soon as there is one; Overloaded when too many wait."""
        settings = self.function.settings
        if len(self.waiting) >= settings.max_waiting and self._is_full():
            self.stats.calls[Overloaded.status] += 1
            message = f"{len(self.waiting)} calls are waiting for `{self.function.label}` already"
            raise Overloaded(message, headers=RETRY_AFTER)
        if call.head_size > MAX_HEAD or len(call.method) > MAX_METHOD:
            raise HeadTooLarge
        exchange = Exchange(call, call.timeout or settings.timeout, self._loop, self._left, self._cancel)
        self._deadlines.add(min(exchange.deadline, exchange.accepted_at + MOMENT), self._expired, exchange)
        self.busy += 1
        worker = self._place(exchange) if not self.waiting else None
        if worker is None or not worker.start(exchange):
            self.waiting.append(exchange)
            self.serve_waiting()
        return exchange

    def _is_full(self) -> bool:
        """Whether there is no free worker, nor one that can still be started for each call that waits."""
        settings = self.function.settings
        startable = 0 if self._turns.crowded else settings.max_workers - len(self.workers)
        return not self._free and len(self.waiting) >= startable + settings.max_waiting

    def _place(self, exchange: Exchange) -> Worker | None:
        """A worker for one more call: behind others where calls take no time, else a free one."""
        hot = self._hot
        if hot is not None and 0 < hot.busy < self._pace.depth and not exchange.is_long:
            self._tick_soon()
            return hot
        while self._free and self._free[-1].channel.silent:
            self._free.pop()  # until its loop turns
        if not self._free:
            return None
        worker = self._free[-1]
        if worker.busy + 1 >= worker.capacity:
            self._free.pop()
        return worker

    def serve_waiting(self) -> None:
        """Give waiting calls to free workers; get more workers, or a generation to fork them from."""
        while self.waiting and self._free:
            worker = self._place(self.waiting[0])
            if worker is None or not worker.start(self.waiting[0]):
                break
            self.waiting.popleft()
        if not self.waiting:
            return
        if self.current is None or not self.current.alive:
            self._need_generation(self)
        elif self._turns.crowded:
            pass  # there will be an offer
        elif not self.current.workers:
            self._add_worker()
            self.serve_waiting()
        elif len(self.current.workers) < self.function.settings.max_workers:
            self._tick_soon()

    def _tick_soon(self) -> None:
        if self._tick is None:
            self._tick = self._loop.call_later(GROW_AFTER, self._grow)

    def _grow(self) -> None:
        """Take back what is stuck behind a long call; a worker for each call that has waited too long."""
        self._tick = None
        for worker in self.workers:
            if worker.busy > 1 and not worker.generation.is_async:
                self._tick_soon()
                if worker.running_for > RECLAIM_AFTER:
                    self._reclaim(worker)
        stuck = all(worker.running_for > GROW_AFTER for worker in self.workers)  # else they get on with it
        late = monotonic() - (GROW_AFTER if stuck else RECLAIM_AFTER)
        if self.current is not None and self.current.alive and self._grown_at <= late and not self._turns.crowded:
            missing = sum(1 for exchange in self.waiting if exchange.accepted_at <= late)
            workers = len(self.current.workers)  # twice as many at most: the next look is soon
            for _ in range(min(missing, workers or 1, self.function.settings.max_workers - workers)):
                self._add_worker()
        self.serve_waiting()

    def _reclaim(self, worker: Worker) -> None:
        """The calls that a worker has not begun wait for another one."""
        taken = worker.take_back()
        self._wait_again(taken)
        self._pace.slow_down()
        if not taken or worker.busy:
            return
        if worker.leaving or taken[0].is_long:
            worker.retire()
        elif worker.parting:
            self._turns.let_go(worker)
        else:
            self._free.append(worker)

    def _wait_again(self, exchanges: list[Exchange]) -> None:
        """Before those that came later."""
        if exchanges:
            self.waiting = deque(sorted((*exchanges, *self.waiting), key=attrgetter("accepted_at")))

    def _add_worker(self) -> bool:
        assert self.current is not None
        try:
            worker = self._ahead.take(self.current) or self._start(self.current)
        except OSError as error:  # the host may open no more files, most likely
            if monotonic() - self._told_at > RESPITE:  # it concerns many calls
                self._told_at = monotonic()
                log.error("no worker of %s can be started: %s", self.function.label, error)
            if not self.current.workers:
                self.refuse_waiting(StartFailed(f"no process could be started: {error}"))
            return False
        if not worker.is_gone:
            self._grown_at = monotonic()
            self._free.append(worker)
            self._idle.watch()
            self._ahead.soon(self.current)
        return not worker.is_gone

    def _adopt(self, generation: Generation, message: Message) -> None:
        """One more worker, that another host had."""
        worker = Worker.given(generation, self, self._loop, message)
        if generation is not self.current:
            worker.retire()
        elif not worker.is_gone:
            self._free.append(worker)
            self._idle.watch()

    def _start(self, generation: Generation, *, ahead: bool = False) -> Worker:
        most, wanted = self.function.settings.max_workers, bool(self.waiting)
        return Worker.forked(generation, self, self._loop, most=most, wanted=wanted, ahead=ahead)

    # Generations.

    def swap(self, generation: Generation) -> None:
        """Serve the next call with this generation; calls under way finish on the one before."""
        before, self.current = self.current, generation
        self._turns.restart(generation)
        warm = len(before.workers) if before is not None and before is not generation else 0
        self._free.clear()
        self._hot = None
        if generation.is_async:  # its workers are given `concurrency` calls, whatever those before were given
            self._pace.slow_down()
        if before is not None:
            before.retire()
            self._ahead.soon(generation)
        settings = self.function.settings
        for _ in range(min(max(settings.min_workers, min(warm, 1)), settings.max_workers)):
            self._add_worker()
        self.serve_waiting()

    def reconfigured(self) -> None:
        """The function's settings are other ones: those that its processes do not hold apply from now on."""
        self._turns.reconsider()
        self._keep_minimum()
        self._idle.restart()
        self.serve_waiting()

    def retire(self) -> None:
        """End the processes as they finish; what they were made from is kept for a next call."""
        self._ahead.drop()
        if self.current is not None:
            self.current.retire()

    def refuse_waiting(self, error: HostError) -> None:
        """There is no generation and will not be one soon: those who wait are told why."""
        while self.waiting:
            self._drop(self.waiting[0], error)

    def close(self) -> None:
        """End every process of this function now."""
        self._idle.stop()
        self._ahead.drop()
        for timer in filter(None, (self._respite, self._tick)):
            timer.cancel()
        if self.current is not None:
            self.current.kill()

    @property
    def workers(self) -> set[Worker]:
        """The workers of the current generation."""
        return self.current.workers if self.current is not None else set()

    @property
    def state(self) -> str:
        """`ready`, `loading`, `failed`, or `cold`."""
        if self.current is not None and self.current.alive:
            return "ready"
        failed = self.current is None and self.error is not None
        return "loading" if self.loading else "failed" if failed else "cold"

    # Calls out.

    def _expired(self, exchange: Exchange) -> None:
        """A call is late, or its time has run out."""
        if exchange.over or exchange.overdue:
            return
        due, now = exchange.ends_at, monotonic()
        if due > now:  # a client that reads nothing may begin to, or leave: look again before its time is up
            self._deadlines.add(min(due, now + exchange.timeout), self._expired, exchange)
            exchange.is_late()
            return
        why, label = f"did not stop at its deadline of {exchange.timeout:g} s", self.function.label
        unbegun = exchange.unbegun(label, loaded=self.state == "ready")
        self._stop(exchange, why, exchange.timed_out(label), unbegun)

    def _cancel(self, exchange: Exchange, error: HostError) -> None:
        """Nobody is to run this call, or to go on running it."""
        if not exchange.over and not exchange.overdue:
            self._stop(exchange, "did not stop when its call was cancelled", error, error)

    def _stop(self, exchange: Exchange, why: str, error: HostError, unbegun: HostError) -> None:
        """End a call: with `error` and its code if it runs, with `unbegun` if it was never begun."""
        worker: Worker | None = getattr(exchange.channel, "owner", None)
        if worker is not None and not exchange.streaming:
            self._reclaim(worker)
        if exchange.channel is None:
            self._drop(exchange, unbegun)
        else:
            exchange.overdue = True
            exchange.failed(error, over=False)
            if worker is not None:
                self.tasks.start_soon(worker.stop, exchange, why)
        self.serve_waiting()

    def _drop(self, exchange: Exchange, error: HostError) -> None:
        """A call that waits is over."""
        if exchange in self.waiting:
            self.waiting.remove(exchange)
        exchange.failed(error)
        self._count(exchange, None)

    def _left(self, exchange: Exchange) -> None:
        """The client has left before the end of its call."""
        worker: Worker | None = getattr(exchange.channel, "owner", None)
        if worker is not None and (exchange.streaming or worker.generation.loaded.kind == "async_generator"):
            worker.channel.cancel(exchange)
            return
        if worker is not None:
            self._reclaim(worker)
        if exchange.channel is None:  # never begun: never run
            self._drop(exchange, NoFreeWorker("the client left while its call waited"))
        self.serve_waiting()

    def _count(self, exchange: Exchange, result: Result | None) -> None:
        self.busy -= 1
        self._deadlines.remove(exchange)
        now = monotonic()
        started = exchange.started_at or now
        in_handler = result.handler_seconds if result is not None else now - started
        self.stats.answered(exchange.status, now - exchange.accepted_at, started - exchange.accepted_at, in_handler)

    # What workers tell it.

    def started(self) -> None:
        self.stats.cold_starts += 1

    def released(self, worker: Worker, exchange: Exchange, result: Result | None) -> None:
        self._count(exchange, result)
        if worker.leaving:
            return
        worker.idle_since = monotonic()
        if worker.parting or (self._turns.owing and self._turns.is_over(worker)):
            self._wait_again(worker.take_back())
            self._turns.let_go(worker)
            return
        if not worker.generation.is_async:
            self._hot = worker
            self._pace.answered(result.handler_seconds if result is not None else None)
        while self.waiting and self._has_room(worker, self.waiting[0]) and worker.start(self.waiting[0]):
            self.waiting.popleft()
        if worker.busy + 1 == worker.capacity:
            self._free.append(worker)
        elif worker.busy > 1:
            self._tick_soon()

    def _has_room(self, worker: Worker, exchange: Exchange) -> bool:
        """Whether a worker may have this call too: free, or about to be and the call is short to hand over."""
        return worker.busy < worker.capacity or (worker.busy < self._pace.depth and not exchange.is_long)

    def removed(self, worker: Worker) -> None:
        if worker is self._hot:
            self._hot = None
        if worker in self._free:
            self._free.remove(worker)
        if worker.is_ready and worker.busy > 1:
            self._reclaim(worker)
            self._loop.call_soon(self.serve_waiting)  # once whoever took it out of service is done with that
        if self.function.settings.min_workers and self._respite is None:
            self._respite = self._loop.call_later(RESPITE, self._keep_minimum)

    def turned(self, worker: Worker) -> None:
        if worker.busy < worker.capacity and not worker.parting and worker not in self._free:
            self._free.append(worker)
        self.serve_waiting()

    def gone(self, worker: Worker, unstarted: list[Exchange], error: HostError) -> None:
        self.removed(worker)
        if worker.refused:
            self._turns.was_refused(worker)
        elif worker.process.code != 0 or unstarted:
            self.stats.died(worker.process.reason())
        again = []
        for exchange in unstarted:
            exchange.channel, exchange.started_at = None, 0.0
            if worker.gives_back(exchange):
                again.append(exchange)
            elif not exchange.over:  # its time ran out, or its client left, since it was taken back
                self._drop(exchange, worker.start_failure)
        self._wait_again(again)
        self.serve_waiting()

    def _keep_minimum(self) -> None:
        """As many workers as there are always to be, after some have died."""
        self._respite = None
        current, least = self.current, self.function.settings.min_workers
        if current is None or current.retired or not least:
            return
        if not current.alive:
            self._need_generation(self)
        for _ in range(least - len(current.workers) if current.alive else 0):
            self._add_worker()

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        self._on_output(self.function, exchange, level, text)
