"""One generation of a function, loaded, and its workers as the host sees them.

Made by `pool.py`; starts processes through `spawner.py`, talks to them through `channel.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import Protocol

import anyio

from .calls import Result
from .channel import CallQueue, Channel
from .errors import HostError, LoadFailed, StartFailed, WorkerDied
from .exchange import Exchange
from .process import FULL, LOST, Message, Process, place
from .registry import Function
from .snapshots import Snapshot
from .spawner import Loaded, Spawner, Zygote
from .specification import NOTHING, specification
from .tasks import Tasks

GRACE = 0.5  # seconds that a cancelled async call has to end, and a loop that turns to answer a PING
REASON_WAIT = 1.0  # seconds to wait for how a process ended once its socket has closed
RETIRE_WAIT = 5.0  # seconds that a worker without calls has to run its exit handlers
KILL_WAIT = 5.0  # seconds after which a killed process is given up

log = logging.getLogger("spaces.worker")


class Generation:
    """One content of a function's files, with the zygote that has imported it."""

    def __init__(self, function: Function, snapshot: Snapshot, zygote: Zygote, loaded: Loaded) -> None:
        self.function = function
        self.snapshot = snapshot
        self.zygote = zygote
        self.loaded = loaded
        self.workers: set[Worker] = set()
        self.fresh = loaded.unsafe is not None or function.settings.fork == "never"
        self.is_async = loaded.kind.startswith("async")
        self.capacity = function.settings.concurrency if self.is_async else 1
        self.used = False
        self.retired = False
        if self.fresh:
            zygote.end_import()

    @classmethod
    async def load(
        cls,
        function: Function,
        snapshot: Snapshot,
        spawner: Spawner,
        on_line: Callable[[str], None],
        *,
        environment: Mapping[str, str] = NOTHING,
        debug: bool,
    ) -> Generation:
        """Import the sources in a process of their own; LoadFailed when that does not work."""
        try:
            told = specification(function, snapshot, environment=environment, debug=debug)
            zygote = Zygote(spawner, told, on_line)
            try:
                loaded = await zygote.load(function.settings.load_timeout)
            except BaseException:
                zygote.close(stale=True)
                raise
        except OSError as error:
            raise LoadFailed(f"no process could be started to import it: {error}", retryable=True) from error
        return cls(function, snapshot, zygote, loaded)

    @property
    def alive(self) -> bool:
        """Whether it can start workers."""
        return not self.retired and not self.zygote.closed and (self.fresh or self.zygote.alive)

    def retire(self) -> None:
        """No new workers; those that there are end as they finish, the zygote with the last."""
        self.retired = True
        for worker in tuple(self.workers):
            worker.retire()
        if not self.workers:
            self.zygote.close()

    def kill(self) -> None:
        """End everything of it now."""
        self.retired = True
        for worker in tuple(self.workers):
            worker.process.kill()
        self.zygote.close(stale=not self.used)  # one that was never used was not what it should be
        for worker in tuple(self.workers):  # those with an import of their own
            worker.process.finished(None, "its host ended")


class Home(Protocol):
    """What a worker tells its pool."""

    tasks: Tasks

    def started(self) -> None:
        """One more worker is there."""

    def released(self, worker: Worker, exchange: Exchange, result: Result | None) -> None:
        """A call is over."""

    def gone(self, worker: Worker, unstarted: list[Exchange], error: HostError) -> None:
        """The worker has ended, with calls in it that it had never begun."""

    def removed(self, worker: Worker) -> None:
        """The worker takes no further calls."""

    def turned(self, worker: Worker) -> None:
        """An async worker that was silent takes calls again."""

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        """A call's output."""


class Worker:
    """One process running a function, and the calls in it. It takes calls at once: its socket holds them."""

    def __init__(
        self, generation: Generation, home: Home, loop: asyncio.AbstractEventLoop, process: Process,
        channel: socket.socket, queue: CallQueue | None,
        *, last_stream: int = 0, wanted: bool = False, ahead: bool = False,
    ) -> None:  # fmt: skip
        self.generation, self.capacity = generation, generation.capacity
        self.process = process
        self.wanted = wanted
        self.is_ready = self.has_answered = False
        self.leaving = self.is_gone = False
        self.parting = False  # it goes to another host as soon as it has no calls
        self._unstarted: list[Exchange] = []
        self._home, self._loop = home, loop
        self.channel = Channel(channel, self, loop, queue, last_stream)
        self._is_spare = ahead
        if not ahead:
            self.join()
        process.on_end(self._ended)

    @classmethod
    def forked(
        cls, generation: Generation, home: Home, loop: asyncio.AbstractEventLoop,
        *, most: int, wanted: bool, ahead: bool,
    ) -> Worker:  # fmt: skip
        """A new process; OSError when there are no descriptors for it.

        `most`: how many there may be of the function, on all hosts; `wanted`: by a call that waits; `ahead`: before it
        is wanted, and none of the generation's workers until it joins them.
        """
        (ours, theirs), queue = socket.socketpair(), None if generation.is_async else CallQueue()
        with theirs:
            sockets = (theirs,) if queue is None else (theirs, queue.theirs)
            try:
                process = generation.zygote.fork(sockets, fresh=generation.fresh, most=most, wanted=wanted, ahead=ahead)
            except OSError:
                ours.close()
                if queue is not None:
                    queue.close()
                raise
        return cls(generation, home, loop, process, ours, queue, wanted=wanted, ahead=ahead)

    @classmethod
    def given(cls, generation: Generation, home: Home, loop: asyncio.AbstractEventLoop, message: Message) -> Worker:
        """One that another host had: see `hand_over`."""
        channel, *pair = (socket.socket(fileno=fd) for fd in message["sockets"])
        queue = CallQueue((pair[0], pair[1])) if pair else None
        worker = cls(generation, home, loop, message["process"], channel, queue, last_stream=message["last_stream"])
        worker.is_ready = worker.has_answered = True
        return worker

    def part(self) -> None:
        """It is given no more calls, so that it may go to another host."""
        self.parting = True
        self._home.removed(self)

    def hand_over(self) -> bool:
        """Let another host that waits for one have it, with all it has in memory; False where that cannot be now."""
        sockets = self.channel.sockets
        if sockets is None or self.leaving or self.process.doomed or not self.is_ready:
            return False
        zygote, last, fresh = self.generation.zygote, self.channel.last_stream, self.generation.fresh
        try:
            if not zygote.give(self.process, sockets, last_stream=last, fresh=fresh):
                return False
        except OSError:  # there are no descriptors to send
            return False
        self.is_gone = self.leaving = True
        self._home.removed(self)
        self.generation.workers.discard(self)
        self.channel.close()
        self.process.finished(None, "another host has it")
        return True

    def join(self) -> None:
        """From now on it counts, and is given calls."""
        self._is_spare = False
        self.idle_since = monotonic()
        self.generation.workers.add(self)
        self.generation.used = True
        if self.is_ready:
            self._home.started()

    def discard(self) -> None:
        """End one that has run nothing, without its exit handlers: it has nothing to clean up."""
        self.leaving = True
        self.channel.close()  # nobody is to hear of its end: the host may have ended by then
        self._kill()

    @property
    def refused(self) -> bool:
        """Whether it never began as other hosts have all the workers that there may be."""
        return self.process.failure == FULL

    @property
    def start_failure(self) -> StartFailed:
        """Why what it was given could not be begun."""
        return StartFailed(f"the function's process could not start: {self.process.reason()}")

    def gives_back(self, exchange: Exchange) -> bool:
        """Whether a call that it had not begun when it ended is for another worker to begin."""
        lost = self.process.failure == LOST or not self.generation.alive
        may_be_luckier = (self.is_ready or lost) and not exchange.retried
        unwanted = exchange.over or exchange.overdue or exchange.left
        if unwanted or not (self.has_answered or self.refused or may_be_luckier):
            return False
        exchange.retried = not (self.has_answered or self.refused)  # a process that does no work may do none for ever
        return True

    @property
    def busy(self) -> int:
        """How many calls are in it."""
        return len(self.channel.exchanges)

    @property
    def running_for(self) -> float:
        """For how long, in seconds, the oldest call in it has been running."""
        oldest = next(iter(self.channel.exchanges.values()), None)
        return monotonic() - oldest.started_at if oldest is not None else 0.0

    def start(self, exchange: Exchange) -> bool:
        """Give it a call, to run or, behind others, to keep; False when it has no room for it now."""
        if self.channel.queue is not None and self.channel.exchanges and exchange.is_long:
            return False  # it could not be taken back
        now = monotonic()
        exchange.started_at = now
        return self.channel.start(exchange, time() + exchange.deadline - now)

    def take_back(self) -> list[Exchange]:
        """The calls that it has not begun; they are the caller's again."""
        taken = self.channel.take_back()
        if any(exchange.is_long for exchange in taken):
            self.process.kill()  # their bodies are on the channel already, where nobody expects them now
        return taken

    def retire(self) -> None:
        """End it once it has no calls: by closing its socket, by force if that does not do."""
        if not self.leaving:
            self.leaving = True
            self._home.removed(self)
        if not self.channel.exchanges and not self.channel.closed:
            self.channel.close()
            timer = self._loop.call_later(RETIRE_WAIT, self._kill)
            self.process.on_end(timer.cancel)

    async def stop(self, exchange: Exchange, why: str) -> None:
        """A call's deadline has passed, or it was cancelled: end it, by its process if need be; `why` is logged."""
        if self.generation.is_async and await self._cancelled(exchange):
            return
        stack = await self.process.stack()
        if exchange.stream not in self.channel.exchanges:
            return
        turns = self.generation.is_async and not self.channel.silent  # so the stack is the loop's, not the call's
        where = "awaiting something" if turns else place(stack, self.generation.snapshot.folder)
        log.error(
            "%s %s; it was %s; its process is killed", self.generation.function.label, why, where,
            extra={"call_id": exchange.call.label, "function": self.generation.function.label, "stack": stack},
        )  # fmt: skip
        self.leaving = True
        self._home.removed(self)
        self._kill()

    def _kill(self) -> None:
        """SIGKILL; and if even that does not end it, go on without it."""
        self.process.kill()
        timer = self._loop.call_later(KILL_WAIT, self._give_up)
        self.process.on_end(timer.cancel)

    def _give_up(self) -> None:
        if self.process.pid is None and not self.generation.fresh:
            self.generation.zygote.close(stale=True)  # it does not even fork any more
        self._ended()

    async def _cancelled(self, exchange: Exchange) -> bool:
        """Whether an async call ended when told to; if its loop still turns, the other calls finish first."""
        pongs = self.channel.pongs
        self.channel.cancel(exchange)
        self.channel.ping()
        if await self._left(exchange, GRACE):
            return True
        self.leaving = True
        self._home.removed(self)
        if self.channel.pongs > pongs:
            with anyio.move_on_after(exchange.timeout):
                while any(not other.overdue for other in self.channel.exchanges.values()):
                    await anyio.sleep(0.05)
        return False

    async def _left(self, exchange: Exchange, within: float) -> bool:
        with anyio.move_on_after(within):
            while self.channel.exchanges.get(exchange.stream) is exchange:
                await anyio.sleep(0.01)
            return True
        return False

    # What the channel tells it.

    def ready(self) -> None:
        self.is_ready = True
        if not self._is_spare:
            self._home.started()

    def released(self, exchange: Exchange, result: Result | None) -> None:
        self.has_answered = True
        oldest = next(iter(self.channel.exchanges.values()), None)
        if oldest is not None and not self.generation.is_async:
            oldest.started_at = monotonic()
        self._home.released(self, exchange, result)
        if self.leaving:
            self.retire()

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        self._home.printed(exchange, level, text)

    def turned(self) -> None:
        if not self.leaving:
            self._home.turned(self)

    def broken(self, error: HostError | None) -> None:
        if not self.leaving:
            self.leaving = True
            self._home.removed(self)
        self._unstarted += self.channel.unbegun() if error is None else self.channel.take_back()
        self.channel.close()
        if error is not None:
            self._fail(error)
            self.process.kill()
        elif not self.process.ended.is_set():
            self._home.tasks.start_soon(self._await_reason)

    async def _await_reason(self) -> None:
        with anyio.move_on_after(REASON_WAIT):
            await self.process.ended.wait()
        if not self.process.ended.is_set():
            self.process.failure = "it closed its connection to the host"
            self.process.kill()
        self._ended()

    def _ended(self) -> None:
        """The process is gone, or as good as gone."""
        if self.is_gone:
            return
        self.is_gone = self.leaving = True
        if self._is_spare:
            self.channel.close()
            return
        self._home.removed(self)
        self.channel.drain()
        unstarted = self._unstarted + self.channel.unbegun()
        self.channel.close()
        generation = self.generation
        generation.workers.discard(self)
        error: HostError = WorkerDied(
            f"the function's process ended in the middle of the call: {self.process.reason()}"
        )
        if not self.is_ready:
            error = self.start_failure
            unstarted += [exchange for exchange in self.channel.exchanges.values() if not exchange.over]
            self.channel.exchanges.clear()
        self._fail(error)
        self._home.gone(self, unstarted, error)
        if generation.retired and not generation.workers:
            generation.zygote.close()

    def _fail(self, error: HostError) -> None:
        exchanges = list(self.channel.exchanges.values())
        self.channel.exchanges.clear()
        for exchange in exchanges:
            exchange.failed(error)
            self._home.released(self, exchange, None)
