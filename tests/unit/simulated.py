"""A pool on stage: real Pool, Generation, Worker, Channel and sockets; simulated processes, and a clock that jumps.

Nothing here waits: when everything waits for a timer, the loop's clock goes on to it at once. So deadlines
and idle times are exact, and a test is over as soon as it has nothing more to do.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtime import channel as channel_module
from runtime import exchange as exchange_module
from runtime import generation as generation_module
from runtime import idle as idle_module
from runtime import pool as pool_module
from runtime import turns as turns_module
from runtime.calls import Call, CallIds, Result
from runtime.config import FunctionSettings
from runtime.deadlines import Deadlines
from runtime.errors import HostError
from runtime.exchange import Exchange
from runtime.generation import Generation
from runtime.pool import Pool
from runtime.process import FULL, Process
from runtime.registry import Function
from runtime.snapshots import Snapshot
from runtime.spawner import Loaded
from runtime.worker import wire

STUCK = 10.0  # seconds of real time in which something must happen when no timer is set


class JumpingSelector(selectors.DefaultSelector):
    """Never waits for time to pass: says that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            events = super().select(STUCK)
            assert events, "everything waits, and for no timer"
            return events
        self.now += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to its next timer."""

    def __init__(self) -> None:
        self.clock = JumpingSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


#: The marks of a module of tests whose clock jumps.
ON_STAGE = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": JumpingLoop})], ids=["staged"]),
]


def loop_time() -> float:
    """What `monotonic` is while a test is on stage."""
    return asyncio.get_running_loop().time()


def jump_clocks(patch: pytest.MonkeyPatch) -> None:
    """Let the modules that look at the clock look at the loop's."""
    for module in (channel_module, exchange_module, generation_module, idle_module, pool_module, turns_module):
        patch.setattr(module, "monotonic", loop_time)


class SimulatedProcess(Process):
    """Ends when it is told to, unless it is `immortal`."""

    def __init__(self) -> None:
        super().__init__()
        self.immortal = False
        self.killed = False
        self.on_kill: Callable[[], None] = lambda: None

    def kill(self) -> None:
        self.killed = True
        if not self.immortal:
            asyncio.get_running_loop().call_soon(self.on_kill)


class SimulatedWorker:
    """The other end of a worker's sockets, which does what the test says."""

    def __init__(self, process: SimulatedProcess, sockets: Any) -> None:
        self.process = process
        self.channel, *queue = [each.dup() for each in sockets]
        self.queue: socket.socket | None = queue[0] if queue else None
        self.channel.setblocking(False)
        self.running: dict[int, wire.CallFrame] = {}  # by stream
        self.streaming: set[int] = set()  # of those that run, the ones that have sent a head
        self.begun: list[int] = []  # call ids, in order
        self.heard: list[tuple[int, int, bytes]] = []  # frames from the host but CALLs: kind, stream, payload
        self.alive = True
        self.turns = True  # its loop: it answers PINGs
        self._arrived: deque[tuple[int, wire.CallFrame]] = deque()
        self._told_to_end = False
        self._reader = wire.Reader()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.channel, self._readable)
        process.on_kill = lambda: self.die(-9)

    def ready(self) -> SimulatedWorker:
        return self.send(wire.frame(wire.READY, 0, wire.READY_HEAD.pack(wire.VERSION, 1)))

    def take(self) -> int | None:
        """Begin the next call, if there is one; its stream."""
        self._readable()
        if self.queue is not None:
            try:
                packet = self.queue.recv(256 * 1024, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if not packet:
                return None
            stream = wire.PREFIX.unpack_from(packet)[4]
            call = wire.parse_call(packet[wire.PREFIX_SIZE :])
        elif self._arrived:
            stream, call = self._arrived.popleft()
        else:
            return None
        self.running[stream] = call
        self.begun.append(call.call_id)
        return stream

    def take_one(self) -> int:
        """Begin the next call, which must be there."""
        stream = self.take()
        assert stream is not None, "no call has come"
        return stream

    def answer(self, stream: int | None = None, body: bytes = b"ok", status: int = 200, micros: int = 0) -> None:
        """The whole answer to a call: the only one that runs, unless it is named."""
        self._finish(stream, lambda of: wire.result_frame(of, status, micros, b"", body))

    def head(self, stream: int) -> SimulatedWorker:
        """The head of a stream."""
        self.streaming.add(stream)
        return self.send(wire.result_frame(stream, 200, 0, b"", flags=0))

    def chunk(self, stream: int, data: bytes) -> SimulatedWorker:
        return self.send(wire.frame(wire.CHUNK, stream, data))

    def end(self, stream: int | None = None) -> None:
        """The end of a stream."""
        self._finish(stream, lambda of: wire.frame(wire.END, of))

    def refuse(self, stream: int | None = None) -> None:
        """An ERROR: the call's data were unfit, or the handler raised within its stream."""
        unfit = b'{"status": 422, "code": "invalid_data", "message": "unfit", "details": {}}'
        raised = b'{"error": {"status": 500, "message": "boom"}}'
        said = raised if stream in self.streaming else unfit
        self._finish(stream, lambda of: wire.frame(wire.ERROR, of, said))

    def send(self, data: bytes) -> SimulatedWorker:
        """Any bytes; lost when the host has closed."""
        try:
            self.channel.send(data)
        except OSError:
            pass
        return self

    def die(self, code: int | None, *, reason: str | None = None) -> None:
        """The process ends: its sockets close, then the host is told."""
        self.hang_up()
        self.process.finished(code, reason)

    def hang_up(self) -> None:
        """Close the sockets, which is the end of what it can do."""
        self.alive = False
        if self.channel.fileno() < 0:
            return
        self._loop.remove_reader(self.channel)
        self.channel.close()
        if self.queue is not None:
            self.queue.close()

    def _finish(self, stream: int | None, last: Callable[[int], bytes]) -> None:
        if stream is None:
            (stream,) = self.running
        del self.running[stream]
        self.streaming.discard(stream)
        self.send(last(stream))
        self._end_if_told()

    def _end_if_told(self) -> None:
        if self._told_to_end and not self.running:
            self._loop.call_soon(self.die, 0)

    def _readable(self) -> None:
        try:
            data = self.channel.recv(1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._told_to_end = True
            self._loop.remove_reader(self.channel)
            self._end_if_told()
            return
        for kind, _, stream, payload in self._reader.feed(data):
            if kind == wire.CALL:
                self._arrived.append((stream, wire.parse_call(payload)))
            else:
                self.heard.append((kind, stream, payload))
            if kind == wire.PING and self.turns:
                self.send(wire.frame(wire.PONG, 0))


class SimulatedZygote:
    """Forks simulated workers."""

    def __init__(self, *, shared: bool) -> None:
        self.workers: list[SimulatedWorker] = []
        self.shared = shared  # by several hosts: so the pool starts nothing ahead
        self.spares: list[SimulatedWorker] = []  # what it did start ahead
        self.given: list[tuple[Process, list[socket.socket], int]] = []  # with sockets, and the last stream
        self.refuses_to_give = True
        self.expecting = 0  # how often it was told to have one itself
        self.alive = True
        self.closed = False
        self.exhausted = False  # the host can open no more files
        self.on_news: Callable[[dict[str, Any]], None] = lambda message: None
        self.passed = 0  # offers
        self.full = False  # other hosts have all the workers

    def fork(self, sockets: Any, *, fresh: bool, most: int, wanted: bool, ahead: bool = False) -> Process:
        if self.exhausted:
            raise OSError(24, "Too many open files")
        process = SimulatedProcess()
        if self.alive and self.full:
            asyncio.get_running_loop().call_soon(process.finished, None, FULL)
        elif self.alive:
            (self.spares if ahead else self.workers).append(SimulatedWorker(process, sockets))
        else:
            process.finished(None, "its zygote ended")
        return process

    def give(self, process: Process, sockets: Any, *, last_stream: int, fresh: bool) -> bool:
        """To another host, which is the test's to play."""
        if self.refuses_to_give:
            return False
        self.given.append((process, [sock.dup() for sock in sockets], last_stream))
        return True

    def expect(self) -> None:
        self.expecting += 1

    def pass_on(self, *, fresh: bool) -> None:
        self.passed += 1

    def close(self, *, stale: bool = False) -> None:
        self.closed = True
        self.die()

    def die(self) -> None:
        """As a zygote does: with all that it forked."""
        self.alive = False
        for worker in (*self.workers, *self.spares):
            worker.die(None, reason="its zygote ended")

    def end_import(self) -> None:
        self.alive = False


class Tasks:
    """The one thing that a pool wants of a task group."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(function(*args)))

    def raise_failures(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def function(**settings: Any) -> Function:
    """A function called demo/stock."""
    return Function(
        id=1,
        space="demo",
        name="stock",
        path=Path("/demo/stock.py"),
        line=1,
        kind="sync",
        takes=("data",),
        digest="",
        settings=FunctionSettings(**settings),
    )


class Stage:
    """One function's pool, and everything around it."""

    def __init__(self, kind: str = "sync", *, alone: bool = False, **settings: Any) -> None:
        """`alone`: no other host forks from its zygotes."""
        self.kind = kind
        self.alone = alone
        self.function = function(**settings)
        self.loop = asyncio.get_running_loop()
        self.tasks = Tasks()
        self.printed: list[tuple[Exchange | None, int, str]] = []
        self.needed = 0  # how often a generation was asked for
        self.zygotes: list[SimulatedZygote] = []
        self.ids = CallIds()
        self.pool = Pool(
            self.function,
            self.tasks,  # type: ignore[arg-type]
            Deadlines(self.loop),
            self._need,
            lambda _, *said: self.printed.append(said),
        )

    def _need(self, pool: Pool) -> None:
        assert pool is self.pool
        self.needed += 1

    def generation(self, kind: str | None = None) -> Generation:
        """A newly loaded one."""
        zygote = SimulatedZygote(shared=not self.alone)
        self.zygotes.append(zygote)
        loaded = Loaded(kind=kind or self.kind, takes=("data",), extras={}, import_seconds=0.0, unsafe=None)
        snapshot = Snapshot("demo", "stock", "/demo/stock.py", "/demo", ("/demo",), (), "d", frozenset(), frozenset())
        return Generation(self.pool.function, snapshot, zygote, loaded)  # type: ignore[arg-type]

    def swap(self, kind: str | None = None) -> Generation:
        """Let the pool serve with a new generation."""
        generation = self.generation(kind)
        self.pool.swap(generation)
        return generation

    @property
    def workers(self) -> list[SimulatedWorker]:
        """Every worker process there ever was, in the order of their forks; without those started ahead."""
        return [worker for zygote in self.zygotes for worker in zygote.workers]

    @property
    def processes(self) -> list[SimulatedWorker]:
        """The workers, and those started ahead."""
        return [*self.workers, *(spare for zygote in self.zygotes for spare in zygote.spares)]

    def worker(self, number: int = 0) -> SimulatedWorker:
        return self.workers[number]

    def lease(self, **fields: Any) -> Exchange:
        """A new call's exchange; no two are accepted at the same moment."""
        self.loop.clock.now += 1e-6
        number = self.ids.next()
        return self.pool.lease(Call(id=number, label=str(number), space="demo", name="stock", **fields))

    def call(self, **fields: Any) -> asyncio.Task[Any]:
        """A call with a client that waits for its end."""
        return self.client(self.lease(**fields))

    def client(self, exchange: Exchange) -> asyncio.Task[Any]:
        """Somebody who waits for what becomes of the exchange: a Result, a stream's bytes, or a HostError."""
        return self.loop.create_task(outcome(exchange))

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        for _ in range(8):
            await asyncio.sleep(0)
        self.tasks.raise_failures()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)
        await self.settle()

    async def close(self) -> None:
        """End what is left."""
        self.pool.close()
        for worker in self.processes:
            worker.process.immortal = False
            worker.die(-9)
        await self.settle()
        await self.tasks.cancel()


MakeStage = Callable[..., Stage]


async def outcome(exchange: Exchange) -> Result | bytes | HostError:
    """What a client sees of a call."""
    try:
        with exchange:
            result = await exchange.result()
            if result.complete:
                return result
            return b"".join([chunk async for chunk in exchange.chunks()])
    except HostError as error:
        return error
