"""Warm workers of one function: who gets the next call, when there are more, when there are fewer.

Made by `pools.py`, asked by `host.py` through it; holds the current generation (`generation.py`), which
`loading.py` replaces. A call that comes in is given to a free worker at once, or waits in one queue,
first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio.abc

from .calls import Call, Result
from .errors import (
    FunctionTimeout,
    HostError,
    LoadFailed,
    NoFreeWorker,
    Overloaded,
    StartFailed,
    StillLoading,
)
from .exchange import Exchange
from .generation import Generation, Worker
from .registry import Function
from .telemetry import FunctionStats

GROW_AFTER = 0.004  # seconds that the first in the queue waits before there is another worker
MOMENT = 0.1  # seconds after which a call is late: its client is watched from then on
STALLED = 60.0  # seconds that a client may leave a stream unread
RETRY_AFTER = {"Retry-After": "1"}

OnOutput = Callable[[Function, "Exchange | None", int, str], None]


class Pool:
    """One function's workers and the calls that wait for them."""

    def __init__(
        self,
        function: Function,
        tasks: anyio.abc.TaskGroup,
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
        self.last_used = 0.0
        self.busy = 0  # calls waiting or running, those of earlier generations too
        self._loop = asyncio.get_running_loop()
        self._need_generation = need_generation
        self._on_output = on_output
        self._free: list[Worker] = []  # workers with a place, the most recently used last
        self._grow_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    # Calls in.

    def lease(self, call: Call) -> Exchange:
        """A place in a worker for this call, now or as soon as there is one; Overloaded when too many wait."""
        settings = self.function.settings
        if not self._free and len(self.waiting) >= settings.max_waiting:
            self.stats.calls[Overloaded.status] += 1
            raise Overloaded(
                f"{len(self.waiting)} calls are waiting for `{self.function.label}` already",
                headers=RETRY_AFTER,
            )
        exchange = Exchange(call, settings.timeout, self._loop, self._left)
        first = min(exchange.deadline, exchange.accepted_at + MOMENT)
        exchange.timer = self._loop.call_at(first, self._expired, exchange)
        self.busy += 1
        if self._free:
            self._free_worker().start(exchange)
        else:
            self.waiting.append(exchange)
            self._serve_waiting()
        return exchange

    def _free_worker(self) -> Worker:
        worker = self._free[-1]
        if worker.busy + 1 >= worker.capacity:
            self._free.pop()
        return worker

    def _serve_waiting(self) -> None:
        """Give waiting calls to free workers; get more workers, or a generation to fork them from."""
        while self.waiting and self._free:
            self._free_worker().start(self.waiting.popleft())
        if not self.waiting:
            return
        if self.current is None or not self.current.alive:
            self._need_generation(self)
        elif not self.current.workers:
            self._add_worker()
            self._serve_waiting()
        elif self._grow_timer is None and len(self.current.workers) < self.function.settings.max_workers:
            due = self.waiting[0].accepted_at + GROW_AFTER
            self._grow_timer = self._loop.call_at(due, self._grow)

    def _grow(self) -> None:
        """A worker for each call that has waited too long."""
        self._grow_timer = None
        late = self._loop.time() - GROW_AFTER
        missing = sum(1 for exchange in self.waiting if exchange.accepted_at <= late)
        if self.current is not None and self.current.alive:
            room = self.function.settings.max_workers - len(self.current.workers)
            for _ in range(min(missing, room)):
                self._add_worker()
        self._serve_waiting()

    def _add_worker(self) -> None:
        assert self.current is not None
        worker = Worker(self.current, self, self._loop)
        if not worker.is_gone:
            self.stats.cold_starts += 1
            self._free.append(worker)
            self._watch_idle()

    # Generations.

    def swap(self, generation: Generation) -> None:
        """Serve the next call with this generation; calls under way finish on the one before."""
        before, self.current = self.current, generation
        warm = len(before.workers) if before is not None and before is not generation else 0
        self._free.clear()
        if before is not None:
            before.retire()
            for worker in tuple(before.workers):
                worker.retire()
        settings = self.function.settings
        for _ in range(min(max(settings.min_workers, min(warm, 1)), settings.max_workers)):
            self._add_worker()
        self._serve_waiting()

    def loaded(self) -> None:
        """A load has ended, well or not."""
        if self.waiting:
            self._serve_waiting()

    def sleep(self) -> None:
        """Nobody has called for long: end the processes, keep what they were made from."""
        if self.current is not None:
            for worker in tuple(self.current.workers):
                worker.retire()
            self.current.retire()

    def refuse_waiting(self, error: HostError) -> None:
        """There is no generation and will not be one soon: those who wait are told why."""
        while self.waiting:
            exchange = self.waiting.popleft()
            exchange.failed(error)
            self._count(exchange, None)

    def close(self) -> None:
        """End every process of this function now."""
        for timer in (self._grow_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        if self.current is not None:
            self.current.kill()

    def retire(self) -> None:
        """The function is no more: end its workers as they finish."""
        if self.current is not None:
            self.current.retire()
            for worker in tuple(self.current.workers):
                worker.retire()

    @property
    def workers(self) -> set[Worker]:
        """The workers of the current generation."""
        return self.current.workers if self.current is not None else set()

    @property
    def state(self) -> str:
        """`ready`, `loading`, `failed`, or `cold`."""
        if self.current is not None:
            return "ready"
        return "loading" if self.loading else "failed" if self.error is not None else "cold"

    # Idle ends.

    def _watch_idle(self) -> None:
        if self._idle_timer is None:
            wait = self.function.settings.idle_timeout
            self._idle_timer = self._loop.call_later(wait, self._end_idle)

    def _end_idle(self) -> None:
        self._idle_timer = None
        settings, now = self.function.settings, self._loop.time()
        idle = [w for w in self._free if not w.busy and now - w.idle_since >= settings.idle_timeout]
        alive = len(self.current.workers) if self.current else 0
        for worker in idle[: max(0, alive - settings.min_workers)]:
            worker.retire()
        if self.current is not None and len(self.current.workers) > settings.min_workers:
            oldest = min((w.idle_since for w in self._free if not w.busy), default=now)
            due = max(oldest + settings.idle_timeout, now + settings.idle_timeout / 10)
            self._idle_timer = self._loop.call_at(due, self._end_idle)

    # Calls out.

    def _expired(self, exchange: Exchange) -> None:
        """A call's timer has run out."""
        if exchange.over or exchange.overdue:
            return
        due = exchange.deadline
        if exchange.streaming:
            due = exchange.progress_at + (STALLED if exchange.unread else exchange.timeout)
        if due > self._loop.time():
            exchange.timer = self._loop.call_at(due, self._expired, exchange)
            exchange.is_late()
            return
        if exchange.channel is None:
            self._expired_waiting(exchange)
            return
        what = "sent nothing more" if exchange.streaming else "did not answer"
        exchange.overdue = True
        exchange.failed(FunctionTimeout(f"`{self.function.label}` {what} within {exchange.timeout:g} s"), over=False)
        worker = self._worker_of(exchange)
        if worker is not None:
            self.tasks.start_soon(worker.stop, exchange)

    def _expired_waiting(self, exchange: Exchange) -> None:
        self.waiting.remove(exchange)
        if self.current is None:
            error: HostError = StillLoading(
                f"`{self.function.label}` was still being imported after {exchange.timeout:g} s",
                headers=RETRY_AFTER,
            )
        else:
            error = NoFreeWorker(
                f"no worker of `{self.function.label}` became free within {exchange.timeout:g} s",
                headers=RETRY_AFTER,
            )
        exchange.failed(error)
        self._count(exchange, None)

    def _worker_of(self, exchange: Exchange) -> Worker | None:
        owner: Any = getattr(exchange.channel, "owner", None)
        return owner if isinstance(owner, Worker) else None

    def _left(self, exchange: Exchange) -> None:
        """The client has left before the end of its call."""
        if exchange.channel is None:
            if exchange in self.waiting:  # never begun: never run
                self.waiting.remove(exchange)
                exchange.failed(NoFreeWorker("the client left while its call waited"))
                self._count(exchange, None)
        elif exchange.streaming:
            worker = self._worker_of(exchange)
            if worker is not None:
                worker.channel.cancel(exchange)

    def _count(self, exchange: Exchange, result: Result | None) -> None:
        self.busy -= 1
        if exchange.timer is not None:
            exchange.timer.cancel()
        now = self._loop.time()
        started = exchange.started_at or now
        in_handler = result.handler_seconds if result is not None else now - started
        self.stats.answered(exchange.status, now - exchange.accepted_at, started - exchange.accepted_at, in_handler)

    # What workers tell it.

    def released(self, worker: Worker, exchange: Exchange, result: Result | None) -> None:
        self._count(exchange, result)
        if worker.leaving:
            return
        worker.idle_since = self._loop.time()
        if self.waiting:
            worker.start(self.waiting.popleft())
        elif worker.busy + 1 == worker.capacity:
            self._free.append(worker)

    def removed(self, worker: Worker) -> None:
        if worker in self._free:
            self._free.remove(worker)

    def gone(self, worker: Worker, unstarted: list[Exchange], error: HostError) -> None:
        self.removed(worker)
        if worker.process.code != 0 or unstarted:
            self.stats.deaths[worker.process.reason()] += 1
        for exchange in unstarted:
            if exchange.call.attempt == 1 and not worker.generation.alive and not exchange.retried:
                exchange.retried = True  # its zygote ended under it, through no fault of its own
                exchange.channel = None
                self.waiting.appendleft(exchange)
            else:
                exchange.failed(error if isinstance(error, StartFailed) else StartFailed())
                self._count(exchange, None)
        self._serve_waiting()

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        self._on_output(self.function, exchange, level, text)
