"""Pool under any history of calls, answers, deaths, deadlines and reloads: what always holds, and how it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.calls import Result
from runtime.errors import HostError, LoadFailed, Overloaded
from runtime.exchange import STALLED, Exchange
from runtime.generation import REASON_WAIT, Worker
from runtime.pace import MAX_DEPTH
from runtime.worker import wire
from tests.unit.simulated import JumpingLoop, SimulatedWorker, Stage, jump_clocks, outcome

KINDS = ["sync", "sync", "generator", "async", "async_generator"]
WHICH = st.integers(0, 3)
TIMEOUT, IDLE = 1.0, 3.0
LONG = (bytes(wire.INLINE + 1),)


class PoolHistory(RuleBasedStateMachine):
    """A pool, its clients and its workers, each of which does what it likes when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        jump_clocks(self.patch)
        self.loop = JumpingLoop()
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.failures: list[Any] = []
        self.exchanges: list[Exchange] = []
        self.clients: dict[int, asyncio.Task[Any]] = {}  # by call id
        self.refused = 0
        self.sound = False  # whether all steps until now went well

    def act(self, function: Callable[..., object], *args: Any, **keywords: Any) -> None:
        """Do it where the loop runs, and let everything happen that follows at once."""

        async def acting() -> None:
            function(*args, **keywords)
            await self.stage.settle()

        self.sound = False
        self.loop.run_until_complete(acting())
        self.sound = True

    @initialize(
        kind=st.sampled_from(KINDS),
        max_workers=st.integers(1, 3),
        min_workers=st.integers(0, 1),
        max_waiting=st.integers(1, 12),
        loaded=st.booleans(),
        fast=st.booleans(),
        alone=st.booleans(),
    )
    def begin(self, kind: str, loaded: bool, fast: bool, alone: bool, **limits: int) -> None:
        async def make() -> Stage:
            return Stage(kind, alone=alone, timeout=TIMEOUT, idle_timeout=IDLE, concurrency=2, **limits)

        self.stage = self.loop.run_until_complete(make())
        self.pool = self.stage.pool
        if fast and kind == "sync":  # as after a hundred calls that took no time
            self.pool._pace.seconds, self.pool._pace.depth = 1e-9, MAX_DEPTH
        if loaded:
            self.swap()

    # Clients.

    @rule(long=st.lists(st.sampled_from([False, False, False, True]), min_size=1, max_size=6))
    def call(self, long: list[bool]) -> None:
        """Some calls at once, with short and long bodies."""
        self.act(lambda: [self._call(LONG if each else (), outcome) for each in long])

    @rule()
    def call_and_never_read(self) -> None:
        self.act(self._call, (), never_read)

    def _call(self, body: tuple[bytes, ...], client: Callable[[Exchange], Coroutine[Any, Any, Any]]) -> None:
        try:
            exchange = self.stage.lease(body=body)
        except Overloaded:
            self.refused += 1
            assert len(self.pool.waiting) >= self.pool.function.settings.max_waiting
            return
        self.exchanges.append(exchange)
        self.clients[exchange.call.id] = self.loop.create_task(client(exchange))

    @precondition(lambda self: any(not client.done() for client in self.clients.values()))
    @rule(which=st.integers(0, 10))
    def leave(self, which: int) -> None:
        here = [client for client in self.clients.values() if not client.done()]
        self.act(here[which % len(here)].cancel)

    # Workers.

    def pick(self, which: int, *, running: bool) -> tuple[SimulatedWorker | None, int]:
        """A worker that lives, and a call in it."""
        workers = [worker for worker in self.stage.processes if worker.alive and (worker.running or not running)]
        if not workers:
            return None, 0
        worker = workers[which % len(workers)]
        streams = list(worker.running)
        return worker, streams[which % len(streams)] if streams else 0

    @rule(which=WHICH)
    def take(self, which: int) -> None:
        worker, _ = self.pick(which, running=False)
        if worker is not None and (worker.queue is None or not worker.running):
            self.act(worker.ready().take)

    @rule(which=WHICH)
    def be_ready(self, which: int) -> None:
        worker, _ = self.pick(which, running=False)
        if worker is not None:
            self.act(worker.ready)

    @rule(which=WHICH, micros=st.sampled_from([0, 0, 100, 2_000_000]), take_next=st.booleans())
    def answer(self, which: int, micros: int, take_next: bool) -> None:
        worker, stream = self.pick(which, running=True)
        if worker is not None and stream not in worker.streaming:
            self.act(worker.answer, stream, body=b"%d" % worker.running[stream].call_id, micros=micros)
            if take_next and worker.alive and not worker.running:
                self.act(worker.take)

    @rule(which=WHICH)
    def stream(self, which: int) -> None:
        worker, stream = self.pick(which, running=True)
        if worker is not None:
            if stream not in worker.streaming:
                self.act(worker.head, stream)
            self.act(worker.chunk, stream, b"%d;" % worker.running[stream].call_id)

    @rule(which=WHICH)
    def end_stream(self, which: int) -> None:
        worker, stream = self.pick(which, running=True)
        if worker is not None and (stream in worker.streaming or (wire.CANCEL, stream, b"") in worker.heard):
            self.act(worker.end, stream)

    @rule(which=WHICH)
    def refuse(self, which: int) -> None:
        worker, stream = self.pick(which, running=True)
        if worker is not None:
            self.act(worker.refuse, stream)

    @rule(which=WHICH, code=st.sampled_from([0, 1, -11]), hang_up_first=st.booleans())
    def crash(self, which: int, code: int, hang_up_first: bool) -> None:
        worker, _ = self.pick(which, running=False)
        if worker is not None:
            if hang_up_first:
                self.act(worker.hang_up)
            self.act(worker.die, code)

    @rule(which=WHICH)
    def hang_up(self, which: int) -> None:
        """And go on living, whatever comes."""
        worker, _ = self.pick(which, running=False)
        if worker is not None:
            worker.process.immortal = True
            self.act(worker.hang_up)

    @rule(which=WHICH)
    def break_the_rules(self, which: int) -> None:
        worker, _ = self.pick(which, running=False)
        if worker is not None:
            self.act(worker.send, b"\xff" * 12)

    # The host.

    @rule(kind=st.sampled_from([None, None, *KINDS]))
    def swap(self, kind: str | None = None) -> None:
        self.act(self.stage.swap, kind)

    @precondition(lambda self: self.stage.zygotes)
    @rule()
    def zygote_dies(self) -> None:
        self.act(self.stage.zygotes[-1].die)

    @precondition(lambda self: self.pool.current is None)
    @rule()
    def load_fails(self) -> None:
        self.act(self.pool.refuse_waiting, LoadFailed())

    @precondition(lambda self: not self.pool.busy)
    @rule()
    def sleep(self) -> None:
        self.act(self.pool.retire)

    @rule(seconds=st.sampled_from([0.005, 0.005, 0.02, 0.15, TIMEOUT / 2, TIMEOUT, IDLE]))
    def time_passes(self, seconds: float) -> None:
        self.sound = False
        self.loop.run_until_complete(self.stage.sleep(seconds))
        self.sound = True

    # What always holds.

    @invariant()
    def everything_is_in_order(self) -> None:
        self.sound = False
        assert self.failures == []
        self.each_call_ends_once()
        self.each_call_is_in_one_place()
        self.no_call_is_begun_twice()
        self.who_waits_is_in_order()
        self.nobody_waits_for_nothing()
        self.workers_are_within_their_limits()
        self.clients_get_what_is_theirs()
        self.sound = True

    @property
    def all_workers(self) -> list[Worker]:
        """Those of earlier generations, too, as far as they have calls."""
        owners = {
            id(exchange.channel.owner): exchange.channel.owner  # type: ignore[union-attr]
            for exchange in self.exchanges
            if exchange.channel is not None and not exchange.over
        }
        return [*{**owners, **{id(worker): worker for worker in self.pool.workers}}.values()]

    def each_call_ends_once(self) -> None:
        """Counted as busy until then, and with one status after."""
        over = [exchange for exchange in self.exchanges if exchange.over]
        assert self.pool.busy == len(self.exchanges) - len(over)
        assert sum(self.pool.stats.calls.values()) == len(over) + self.refused
        assert sum(self.pool.stats.buckets) == len(over)

    def each_call_is_in_one_place(self) -> None:
        """It waits, or is in one worker; or its worker is dying and has not begun it."""
        places = Counter(id(exchange) for exchange in self.pool.waiting)
        for worker in self.all_workers:
            places.update(id(exchange) for exchange in worker.channel.exchanges.values())
            places.update(id(exchange) for exchange in worker._unstarted)
        for exchange in self.exchanges:
            assert places[id(exchange)] <= 1
            if exchange.over:
                assert exchange not in self.pool.waiting

    def no_call_is_begun_twice(self) -> None:
        begun = Counter(number for worker in self.stage.processes for number in worker.begun)
        assert not begun or max(begun.values()) == 1

    def who_waits_is_in_order(self) -> None:
        numbers = [exchange.call.id for exchange in self.pool.waiting]
        assert numbers == sorted(numbers)

    def nobody_waits_for_nothing(self) -> None:
        """Who waits has a reason, and something will end it."""
        pool = self.pool
        if pool.waiting and pool.current is not None and pool.current.alive:
            assert not pool._free
            assert pool.current.workers
            assert pool._tick is not None or len(pool.current.workers) == pool.function.settings.max_workers
        elif pool.waiting:
            assert self.stage.needed

    def workers_are_within_their_limits(self) -> None:
        pool = self.pool
        assert len(pool.workers) <= pool.function.settings.max_workers
        assert len(set(pool._free)) == len(pool._free)
        for worker in pool.workers:
            has_place = not worker.leaving and worker.busy < worker.capacity
            assert (worker in pool._free) == has_place
            assert worker.busy <= max(worker.capacity, MAX_DEPTH if worker.channel.queue is not None else 0)
            if worker.busy > worker.capacity:
                assert pool._tick is not None, "its calls would be stuck in it"
        for worker in pool._free:
            assert worker in pool.workers

    def clients_get_what_is_theirs(self) -> None:
        for exchange in self.exchanges:
            client = self.clients[exchange.call.id]
            if not client.done() or client.cancelled():
                continue
            match client.result():
                case Result() as result:
                    assert result.body == (b"%d" % exchange.call.id if result.complete else b"")
                    assert exchange.status == 200
                case bytes() as body:
                    assert body.strip(b"%d;" % exchange.call.id) == b""
                    assert exchange.status == 200
                case HostError() as error:
                    assert exchange.status in (error.status, 200)

    def teardown(self) -> None:
        try:
            if self.sound:
                self.loop.run_until_complete(self._finish())
        finally:
            if hasattr(self, "stage"):
                self.act(lambda: [client.cancel() for client in self.clients.values()])
                self.loop.run_until_complete(self.stage.close())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.patch.undo()
        assert self.failures == []

    async def _finish(self) -> None:
        """When workers do as they should, everybody who still waits is answered."""
        if self.pool.current is None or not self.pool.current.alive:
            self.stage.swap()
        for _ in range(200):
            await self.stage.sleep(0.01)
            if not self.pool.busy:
                break
            for worker in self.stage.processes:
                if worker.alive:
                    self._serve(worker.ready())
            if self.pool.current is not None and not self.pool.current.alive:
                self.stage.swap()
        await self.stage.sleep(REASON_WAIT + TIMEOUT)
        for exchange in self.exchanges:
            client = self.clients[exchange.call.id]
            assert client.done() or exchange.streaming, "nobody hangs, but who does not read"
            client.cancel()
        await self.stage.settle()
        self.each_call_ends_once()
        self.no_call_is_begun_twice()
        self.clients_get_what_is_theirs()
        assert self.pool.busy == 0
        await self.stage.sleep(STALLED + 10 * IDLE)
        alive, spare = sum(process.alive for process in self.stage.processes), self.pool._ahead._spare
        assert alive == len(self.pool.workers) + (spare is not None and not spare.is_gone)
        assert len(self.pool.workers) <= self.pool.function.settings.min_workers
        assert all(zygote.closed for zygote in self.stage.zygotes[:-1])

    def _serve(self, worker: SimulatedWorker) -> None:
        while worker.running or (worker.alive and worker.take() is not None):
            stream = next(iter(worker.running))
            if stream in worker.streaming:
                worker.end(stream)
            else:
                worker.answer(stream, body=b"%d" % worker.running[stream].call_id)


async def never_read(exchange: Exchange) -> Result | HostError:
    """A client that waits for the result, and takes nothing of a stream."""
    try:
        with exchange:
            result = await exchange.result()
            while not exchange.over:
                await asyncio.sleep(1.0)
            return result
    except HostError as error:
        return error


PoolHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestPoolHistory = PoolHistory.TestCase
