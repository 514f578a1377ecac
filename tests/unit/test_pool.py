"""Pool on stage: simulated processes, a clock that jumps. Who is given which call, and what becomes of all of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from runtime.calls import MAX_HEAD
from runtime.channel import ASK_EVERY, SILENCE
from runtime.deadlines import TICK as LOOK
from runtime.errors import (
    Cancelled,
    FunctionRefused,
    FunctionTimeout,
    HeadTooLarge,
    LoadFailed,
    NoFreeWorker,
    Overloaded,
    ProtocolViolation,
    StartFailed,
    StillLoading,
    WorkerDied,
)
from runtime.exchange import STALLED
from runtime.generation import GRACE, REASON_WAIT, RETIRE_WAIT
from runtime.pace import MAX_DEPTH
from runtime.pool import GROW_AFTER, MOMENT, RECLAIM_AFTER, RESPITE
from runtime.process import STACK_WAIT
from runtime.worker import wire
from tests.unit.simulated import ON_STAGE, MakeStage, SimulatedWorker, Stage

pytestmark = ON_STAGE

LONG = (bytes(wire.INLINE + 1),)
TICK = GROW_AFTER * 1.1
STUCK = RECLAIM_AFTER + 3 * TICK  # seconds after which what is behind a long call has another worker
STOPPED = STACK_WAIT + 0.05  # seconds in which a process that must be killed is
FAST = 120  # so many answers that took no time make a worker fast


async def begin(stage: Stage, **fields: Any) -> tuple[asyncio.Task[Any], SimulatedWorker, int]:
    """A call that runs in a worker of its own: its client, the worker, its stream."""
    client = stage.call(**fields)
    await stage.sleep(TICK)
    worker = next(worker for worker in stage.workers if (worker.alive and worker.ready() and (stream := worker.take())))
    return client, worker, stream


async def make_fast(stage: Stage) -> SimulatedWorker:
    """The stage's first worker, once it has answered so many calls that it is given some ahead."""
    for _ in range(FAST):
        client = stage.call()
        await stage.settle()
        stage.worker().ready().take_one()
        stage.worker().answer()
        assert (await client).status == 200
    return stage.worker()


async def serve_all(stage: Stage) -> None:
    """Let every worker answer all that it gets, until nothing waits or runs."""
    while stage.pool.busy:
        for worker in stage.workers:
            if worker.alive:
                worker.ready()
                while worker.running or worker.take():
                    worker.answer()
        await stage.sleep(TICK)


# Calls in, workers more.


async def test_a_call_with_no_generation_asks_for_one_and_waits(make: MakeStage) -> None:
    """It is served by the one that comes."""
    stage = make(loaded=False)
    client = stage.call()
    await stage.settle()
    assert (stage.needed, stage.pool.state, stage.pool.busy) == (1, "cold", 1)
    assert stage.pool.workers == set()

    stage.swap()
    stage.worker().ready().take_one()
    stage.worker().answer()
    assert (await client).body == b"ok"
    assert (stage.pool.state, stage.pool.busy) == ("ready", 0)


async def test_a_first_call_is_given_to_a_first_worker_at_once(make: MakeStage) -> None:
    """Its socket holds the call until the process has started."""
    stage = make()
    assert stage.workers == []
    exchange = stage.lease()

    assert exchange.channel is not None
    assert len(stage.workers) == 1
    assert stage.worker().take() == exchange.stream


async def test_calls_that_wait_too_long_get_a_worker_each(make: MakeStage) -> None:
    """Not before, and up to `max_workers` in all."""
    stage = make(max_workers=3)
    exchanges = [stage.lease() for _ in range(5)]
    await stage.sleep(GROW_AFTER * 0.9)
    assert len(stage.workers) == 1

    await stage.sleep(GROW_AFTER * 0.2)
    assert len(stage.workers) == 2
    await stage.sleep(GROW_AFTER)
    assert len(stage.workers) == 3
    await stage.sleep(1.0)
    assert len(stage.workers) == 3
    assert list(stage.pool.waiting) == exchanges[3:]
    assert stage.pool.stats.cold_starts == 0
    for worker in stage.workers:
        worker.ready()
    await stage.settle()
    assert stage.pool.stats.cold_starts == 3


async def test_a_call_that_waits_for_less_gets_no_worker_of_its_own(make: MakeStage) -> None:
    """A worker that is free again in time takes it."""
    stage = make()
    first, second = stage.call(), stage.call()
    await stage.settle()
    stage.worker().ready().take_one()
    stage.worker().answer()
    await first
    stage.worker().take_one()
    stage.worker().answer()
    await second
    await stage.sleep(1.0)

    assert len(stage.workers) == 1


async def test_a_crowd_gets_workers_by_and_by(make: MakeStage) -> None:
    """Twice as many at a time: those that are free again soon may be enough."""
    stage = make(max_workers=16)
    for _ in range(20):
        stage.call()
    seen = set()
    for _ in range(100):
        await stage.sleep(GROW_AFTER / 4)
        seen.add(len(stage.workers))

    assert seen == {1, 2, 4, 8, 16}


async def test_when_no_process_can_be_started_those_that_are_there_serve_on(
    make: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    """The host may have too many files open; with no worker at all, calls are told. The log says it now and then."""
    stage = make()
    stage.zygotes[0].exhausted = True
    error = await stage.call()
    assert isinstance(error, StartFailed)
    assert "Too many open files" in error.message
    stage.zygotes[0].exhausted = False
    one, worker, _ = await begin(stage)
    stage.zygotes[0].exhausted = True
    caplog.clear()
    two = stage.call()
    await stage.sleep(5.0)
    assert not two.done()
    assert 1 <= caplog.text.count("no worker of demo/stock can be started") <= 5
    await serve_all(stage)

    assert [(await client).status for client in (one, two)] == [200, 200]
    assert len(worker.begun) == 2
    assert stage.pool.busy == 0


async def test_workers_still_starting_are_enough_for_those_who_wait(make: MakeStage) -> None:
    """A fork takes longer than GROW_AFTER on a loaded machine: those that wait meanwhile have theirs coming."""
    stage = make()
    for _ in range(3):
        stage.call()
    await stage.sleep(GROW_AFTER * 20)

    assert len(stage.workers) == 3


async def test_who_came_first_is_served_first(make: MakeStage) -> None:
    """Whichever worker becomes free."""
    stage = make(max_workers=2)
    exchanges = [stage.lease() for _ in range(8)]
    for exchange in exchanges:
        stage.client(exchange)
    await stage.sleep(TICK)
    order = []
    for turn in range(8):
        for worker in stage.workers:
            worker.ready().take()
        worker = stage.worker(turn % 2)
        order.append(worker.begun[-1])
        worker.answer(micros=10_000_000)
        await stage.settle()

    begun = sorted((worker.begun for worker in stage.workers), key=len)
    assert all(calls == sorted(calls) for calls in begun)
    assert order == [exchange.call.id for exchange in exchanges]


async def test_of_free_workers_the_one_used_last_is_used_again(make: MakeStage) -> None:
    """So that the others may become idle."""
    stage = make()
    (one, first, _), (two, second, _) = await begin(stage), await begin(stage)
    for client, worker in ((two, second), (one, first)):
        worker.answer(micros=10_000_000)
        await client
    for _ in range(3):
        await begin(stage)
        first.answer(micros=10_000_000)
        await stage.settle()

    assert [len(worker.begun) for worker in stage.workers] == [4, 1]


async def test_a_sync_worker_has_one_call_while_calls_take_their_time(make: MakeStage) -> None:
    """What it has not begun could not be run elsewhere so soon."""
    stage = make(max_workers=1)
    exchanges = [stage.lease() for _ in range(3)]
    for exchange in exchanges:
        stage.client(exchange)
    worker = stage.worker().ready()
    for done in range(3):
        worker.take_one()
        assert worker.take() is None
        assert len(stage.pool.waiting) == 2 - done
        worker.answer(micros=1_000)
        await stage.settle()


async def test_a_fast_sync_worker_is_given_calls_ahead(make: MakeStage) -> None:
    """Up to MAX_DEPTH, with no other worker for them."""
    stage = make()
    worker = await make_fast(stage)
    exchanges = [stage.lease() for _ in range(MAX_DEPTH + 2)]

    assert len(stage.workers) == 1
    assert [exchange.channel is not None for exchange in exchanges] == [True] * MAX_DEPTH + [False] * 2
    worker.take_one()
    worker.answer()
    await stage.settle()
    assert [exchange.channel is not None for exchange in exchanges] == [True] * (MAX_DEPTH + 1) + [False]
    for exchange in exchanges:
        stage.client(exchange)
    await serve_all(stage)
    assert worker.begun[FAST:] == [exchange.call.id for exchange in exchanges]


async def test_how_many_calls_ahead_follows_how_long_they_take(make: MakeStage) -> None:
    """As soon as calls take longer, a worker is given one at a time."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    client = stage.call()
    await stage.settle()
    worker.take_one()
    worker.answer(micros=10_000)
    await client
    first, second = stage.lease(), stage.lease()

    assert first.channel is not None
    assert second.channel is None


async def test_calls_stuck_behind_a_slow_one_are_taken_back(make: MakeStage) -> None:
    """And run elsewhere, each once, in the order in which they came."""
    stage = make(max_workers=2)
    worker = await make_fast(stage)
    exchanges = [stage.lease() for _ in range(5)]
    clients = [stage.client(exchange) for exchange in exchanges]
    worker.take_one()
    await stage.sleep(STUCK)

    assert worker.take() is None
    assert len(stage.workers) == 2
    other = stage.worker(1).ready()
    for client in clients[1:]:
        other.take_one()
        other.answer()
        assert (await client).status == 200
    assert other.begun == [exchange.call.id for exchange in exchanges[1:]]
    worker.answer()
    assert (await clients[0]).status == 200
    assert stage.pool.busy == 0


async def test_calls_stuck_in_any_worker_are_taken_back(make: MakeStage) -> None:
    """Not only in the one that answered last."""
    stage = make(max_workers=3)
    worker = await make_fast(stage)
    slow = [stage.lease() for _ in range(3)]
    worker.take_one()
    stage.pool._hot = None
    await stage.sleep(STUCK)

    assert worker.take() is None
    assert all(exchange.channel is not None for exchange in slow), "they have workers of their own"
    assert len(stage.workers) == 3


async def test_calls_that_a_worker_has_not_begun_at_all_are_taken_back_and_it_stays_in_service(
    make: MakeStage,
) -> None:
    """The machine may have held it up: it is given the next calls again."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    clients = [stage.call() for _ in range(3)]
    await stage.sleep(STUCK)

    await serve_all(stage)
    assert [(await client).status for client in clients] == [200] * 3
    assert len(stage.workers) == 1
    assert len(worker.begun) == FAST + 3


async def test_a_long_body_is_never_behind_other_calls(make: MakeStage) -> None:
    """It could not be taken back without ending the process, and the call before it with that."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    clients = [stage.call(), stage.call(body=LONG), stage.call()]
    await stage.settle()
    worker.take_one()
    assert worker.take() is None
    await stage.sleep(STUCK)
    assert not worker.process.killed

    await serve_all(stage)
    assert [(await client).status for client in clients] == [200] * 3
    assert worker.begun[FAST:] == sorted(worker.begun[FAST:]), "nobody overtook it"


async def test_a_long_body_gets_a_free_worker_when_the_fast_one_is_busy(make: MakeStage) -> None:
    """At once."""
    stage = make(max_workers=2)
    (one, first, _), (two, second, _) = await begin(stage), await begin(stage)
    first.answer()
    second.answer()
    await asyncio.gather(one, two)
    for _ in range(FAST):
        client = stage.call()
        await stage.settle()
        second.take_one()
        second.answer()
        await client
    stage.call()
    stage.call(body=LONG)
    await stage.settle()

    assert second.take()
    assert first.take()


async def test_calls_filled_in_before_a_long_one_are_taken_back_too(make: MakeStage) -> None:
    """Those that a free worker was given until the long one had no room in it."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    held, *others = [stage.lease(body=body) for body in (LONG, (), (), LONG)]
    for exchange in (held, *others):
        stage.client(exchange)
    worker.take_one()
    await stage.sleep(STUCK)
    assert [exchange.channel for exchange in others] == [None] * 3
    worker.answer()
    await stage.settle()
    worker.take_one()
    await stage.sleep(STUCK)

    assert worker.take() is None
    await serve_all(stage)
    assert worker.begun[FAST:] == [exchange.call.id for exchange in (held, *others)]


async def test_an_async_worker_has_as_many_calls_as_concurrency_says(make: MakeStage) -> None:
    """The next ones get another worker."""
    stage = make("async", concurrency=3, max_workers=2)
    exchanges = [stage.lease() for _ in range(7)]
    await stage.sleep(TICK)

    assert len(stage.workers) == 2
    assert [exchange.channel is not None for exchange in exchanges] == [True] * 6 + [False]
    first = stage.worker().ready()
    streams = [first.take_one() for _ in range(3)]
    assert first.take() is None
    first.answer(streams[1])
    await stage.settle()
    assert first.take()


async def test_too_many_waiting_calls_are_refused(make: MakeStage) -> None:
    """With 429 and when to come again; they are counted, and the others are not disturbed."""
    stage = make(max_workers=1, max_waiting=2)
    clients = [stage.call() for _ in range(3)]
    with pytest.raises(Overloaded) as caught:
        stage.lease()
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    assert stage.pool.stats.calls == {429: 1}
    assert stage.pool.busy == 3

    await stage.settle()
    stage.worker().ready().take_one()
    stage.worker().answer(micros=10_000_000)
    await clients[0]
    clients.append(stage.call())
    await serve_all(stage)
    assert [(await client).status for client in clients] == [200] * 4


async def test_calls_that_workers_can_still_be_started_for_are_not_refused(make: MakeStage) -> None:
    """`max_waiting` is how many may wait beyond those."""
    stage = make(max_workers=3, max_waiting=1)
    clients = [stage.call() for _ in range(4)]
    with pytest.raises(Overloaded):
        stage.lease()

    await serve_all(stage)
    assert [(await client).status for client in clients] == [200] * 4


async def test_as_many_may_wait_where_there_are_more_workers_than_there_may_be(make: MakeStage) -> None:
    """Since `max_workers` was lowered: nobody is refused for those that are too many."""
    stage = make(max_workers=3, max_waiting=1)
    for _ in range(3):
        await begin(stage)
    settings = structs.replace(stage.function.settings, max_workers=1)
    stage.pool.function = structs.replace(stage.function, settings=settings)
    stage.pool.reconfigured()
    waits = stage.lease()

    assert list(stage.pool.waiting) == [waits]
    with pytest.raises(Overloaded):
        stage.lease()


async def test_a_head_that_is_too_long_is_refused(make: MakeStage) -> None:
    """It would not fit into the packet that calls travel in."""
    stage = make()
    stage.lease(path=bytes(MAX_HEAD // 2), headers=bytes(MAX_HEAD // 2), body=(bytes(wire.INLINE),))
    for fields in ({"path": bytes(MAX_HEAD + 1)}, {"query": bytes(MAX_HEAD), "headers": b"x"}, {"method": b"X" * 256}):
        with pytest.raises(HeadTooLarge):
            stage.lease(**fields)

    assert stage.pool.busy == 1


# Deadlines.


async def test_a_call_that_does_not_answer_is_a_timeout_and_loses_its_process(make: MakeStage) -> None:
    """The client is told at the deadline; the next call gets another process."""
    stage = make(timeout=2.0, max_workers=1)
    client, worker, _ = await begin(stage)
    started = stage.loop.time()

    error = await client
    assert isinstance(error, FunctionTimeout)
    assert stage.loop.time() - started <= 2.05
    await stage.sleep(STOPPED)
    assert worker.process.killed
    assert not worker.alive
    assert stage.pool.busy == 0
    assert stage.pool.stats.calls == {504: 1}
    client, other, _ = await begin(stage)
    assert other is not worker
    other.answer()
    assert (await client).status == 200


async def test_a_call_may_have_a_deadline_of_its_own(make: MakeStage) -> None:
    """Instead of the function's, be it sooner or later."""
    for seconds in (2.0, 30.0):
        stage = make(timeout=10.0)
        client, worker, _ = await begin(stage, timeout=seconds)
        await stage.sleep(seconds - 2 * TICK)
        assert not client.done()
        await stage.sleep(3 * TICK + LOOK)

        error = await client
        assert isinstance(error, FunctionTimeout)
        assert f"within {seconds:g} s" in error.message
        await stage.sleep(STOPPED)
        assert worker.process.killed


async def test_a_call_that_takes_longer_than_a_moment_is_late(make: MakeStage) -> None:
    """So its client is watched from then on; it has all its time still."""
    stage = make(timeout=2.0)
    exchange = stage.lease()
    started = stage.loop.time()

    assert await exchange.soon() is None
    assert MOMENT <= stage.loop.time() - started <= MOMENT + 2 * LOOK
    assert isinstance(await stage.client(exchange), NoFreeWorker)
    assert 2.0 <= stage.loop.time() - started <= 2.0 + 2 * LOOK


async def test_a_sync_call_is_ended_at_its_deadline_without_its_client_too(make: MakeStage) -> None:
    """Nobody would ever hear of it, and it would hold its worker for ever."""
    stage = make(timeout=2.0)
    client, worker, _ = await begin(stage)
    client.cancel()
    await stage.sleep(1.9)
    assert not worker.process.killed
    await stage.sleep(0.1 + STOPPED)

    assert worker.process.killed
    assert stage.pool.busy == 0
    assert stage.pool.stats.calls == {504: 1}


async def test_an_answer_that_comes_just_after_the_deadline_spares_the_process(make: MakeStage) -> None:
    """The client has its 504, and the worker is as good as any."""
    stage = make(timeout=2.0)
    client, worker, _ = await begin(stage)
    assert isinstance(await client, FunctionTimeout)
    worker.answer()
    await stage.sleep(1.0)

    assert not worker.process.killed
    assert stage.pool.busy == 0
    assert stage.pool.stats.calls == {504: 1}
    client, again, _ = await begin(stage)
    assert again is worker
    again.answer()
    assert (await client).status == 200


async def test_calls_behind_one_that_does_not_answer_go_elsewhere(make: MakeStage) -> None:
    """Its process is killed with the one call alone."""
    stage = make(timeout=2.0, max_workers=1)
    worker = await make_fast(stage)
    stuck = stage.call()
    await stage.settle()
    worker.take_one()
    await stage.sleep(1.0)
    clients = [stage.call() for _ in range(3)]

    assert isinstance(await stuck, FunctionTimeout)
    await stage.sleep(STOPPED)
    await serve_all(stage)
    assert [(await client).status for client in clients] == [200] * 3


async def test_a_waiting_call_is_told_at_its_deadline_that_no_worker_became_free(make: MakeStage) -> None:
    """With when to come again; it is never run."""
    stage = make(timeout=2.0, max_workers=1)
    client, worker, stream = await begin(stage)
    worker.head(stream)
    await stage.sleep(1.0)
    waiting = stage.call()
    await stage.sleep(0.9)
    worker.chunk(stream, b"x")
    await stage.sleep(1.0)
    assert not waiting.done()
    await stage.sleep(0.2)

    error = await waiting
    assert isinstance(error, NoFreeWorker)
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})
    worker.end(stream)
    assert await client == b"x"
    await stage.settle()
    assert worker.take() is None
    assert stage.pool.busy == 0


async def test_a_call_whose_function_is_still_loading_at_its_deadline_is_told_so(make: MakeStage) -> None:
    """The load may take longer than a call may."""
    stage = make(loaded=False, timeout=2.0)
    error = await stage.call()
    assert isinstance(error, StillLoading)
    assert error.headers == {"Retry-After": "1"}

    stage.swap()
    await stage.sleep(1.0)
    assert stage.pool.busy == 0
    assert stage.workers == []


@pytest.mark.parametrize("ready", [False, True])
async def test_a_worker_that_did_not_begin_a_call_in_time_serves_the_next(make: MakeStage, ready: bool) -> None:
    """The call is taken back from it at its deadline, and its place is free."""
    stage = make(timeout=2.0, max_workers=1)
    late = stage.call()
    await stage.settle()
    if ready:
        stage.worker().ready()
    assert isinstance(await late, NoFreeWorker)
    assert stage.worker().take() is None

    client = stage.call()
    await stage.sleep(TICK)
    stage.worker().ready().take_one()
    stage.worker().answer()
    assert (await client).status == 200
    assert len(stage.workers) == 1


async def test_a_worker_held_up_with_a_long_body_is_replaced(make: MakeStage) -> None:
    """The body is in its socket already: it cannot be used for another call."""
    stage = make(timeout=2.0, max_workers=1)
    assert isinstance(await stage.call(body=LONG), NoFreeWorker)

    client, worker, _ = await begin(stage)
    assert worker is stage.worker(1)
    worker.answer()
    assert (await client).status == 200
    assert not stage.worker(0).alive


async def test_a_stream_may_last_as_long_as_it_goes_on(make: MakeStage) -> None:
    """`timeout` is for the time between two chunks."""
    stage = make(timeout=2.0)
    client, worker, stream = await begin(stage)
    worker.head(stream)
    for _ in range(10):
        await stage.sleep(1.5)
        worker.chunk(stream, b"x")
    worker.end(stream)

    assert await client == b"x" * 10
    assert not worker.process.killed


async def test_a_stream_that_stops_is_cut(make: MakeStage) -> None:
    """When no chunk came for `timeout`, its process is ended like that of any late call."""
    stage = make(timeout=2.0)
    client, worker, stream = await begin(stage)
    worker.head(stream).chunk(stream, b"x")
    await stage.sleep(1.9)
    worker.chunk(stream, b"y")
    await stage.sleep(1.9)
    assert not client.done()

    error = await client
    assert isinstance(error, FunctionTimeout)
    assert "sent nothing more" in error.message
    await stage.sleep(STOPPED)
    assert worker.process.killed
    assert stage.pool.busy == 0
    assert stage.pool.stats.calls == {200: 1}, "it had begun with this"


async def test_a_client_that_does_not_read_holds_a_worker_for_so_long(make: MakeStage) -> None:
    """A stream that waits for its client is not the function's fault: STALLED is longer than `timeout`."""
    stage = make(timeout=2.0)
    exchange = stage.lease()
    await stage.settle()
    worker = stage.worker().ready()
    stream = worker.take_one()
    worker.head(stream).chunk(stream, b"x")
    with exchange:
        await stage.sleep(STALLED - 1)
        assert not worker.process.killed
        await stage.sleep(2)
        assert worker.process.killed
    await stage.sleep(1)

    assert stage.pool.busy == 0


async def test_a_client_that_did_not_read_and_then_left_holds_a_worker_no_longer(make: MakeStage) -> None:
    """From then on the function has `timeout` to stop, however long the client might have taken to read."""
    stage = make(timeout=2.0)
    exchange = stage.lease()
    await stage.settle()
    worker = stage.worker().ready()
    stream = worker.take_one()
    worker.head(stream).chunk(stream, b"x")
    with exchange:
        await stage.sleep(2 * MOMENT)  # it was looked at, and waits for its client
    await stage.sleep(2 * exchange.timeout + STOPPED)

    assert worker.process.killed
    assert stage.pool.busy == 0


async def test_an_async_call_is_cancelled_at_its_deadline(make: MakeStage) -> None:
    """A worker where it ends goes on serving, and no other call in it is disturbed."""
    stage = make("async", timeout=2.0)
    late, worker, first = await begin(stage)
    await stage.sleep(1.0)
    other, _, second = await begin(stage)
    assert isinstance(await late, FunctionTimeout)
    await stage.settle()
    assert (wire.CANCEL, first, b"") in worker.heard
    worker.end(first)
    await stage.sleep(0.5)
    worker.answer(second)

    assert (await other).status == 200
    assert not worker.process.killed
    client, again, third = await begin(stage)
    assert again is worker
    again.answer(third)
    assert (await client).status == 200


async def test_an_async_call_that_cannot_be_cancelled_ends_its_process_after_the_others(make: MakeStage) -> None:
    """As long as the loop answers a PING, they have the time to finish; new calls go elsewhere."""
    stage = make("async", timeout=2.0)
    late, worker, _ = await begin(stage)
    await stage.sleep(1.5)
    other, _, second = await begin(stage)
    assert isinstance(await late, FunctionTimeout)
    await stage.settle()
    assert wire.PING in [kind for kind, _, _ in worker.heard]
    worker.send(wire.frame(wire.PONG, 0))
    await stage.sleep(GRACE + 0.1)
    assert not worker.process.killed
    fresh, successor, third = await begin(stage)
    assert successor is not worker
    worker.answer(second)
    assert (await other).status == 200
    await stage.sleep(0.5)

    assert worker.process.killed
    successor.answer(third)
    assert (await fresh).status == 200
    assert stage.pool.busy == 0


async def test_an_async_worker_whose_loop_is_blocked_is_ended_with_what_it_has_begun(make: MakeStage) -> None:
    """What it never heard of is begun by another one, and so is what comes once it is known to be silent."""
    stage = make("async", timeout=2.0)
    late, worker, _ = await begin(stage)
    await stage.sleep(1.0)
    begun, _, _ = await begin(stage)
    worker.turns = False
    await stage.sleep(2 * ASK_EVERY)
    unheard = stage.call()
    await stage.sleep(2 * SILENCE)
    later = stage.call()
    await stage.sleep(TICK)
    successor = stage.workers[-1].ready()
    assert successor is not worker
    successor.answer(successor.take_one())
    assert (await later).status == 200
    assert isinstance(await late, FunctionTimeout)
    await stage.sleep(GRACE + STOPPED)

    assert worker.process.killed
    assert isinstance(await begun, WorkerDied)
    successor.answer(successor.take_one())
    assert (await unheard).status == 200
    assert stage.pool.stats.calls == {504: 1, 502: 1, 200: 2}
    assert stage.pool.busy == 0


async def test_an_async_worker_whose_loop_turns_again_takes_calls_again(make: MakeStage) -> None:
    """Those that wait, too, as many as it has places for."""
    stage = make("async", max_workers=1, concurrency=3)
    clients = [stage.call()]
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    worker.turns = False
    await stage.sleep(2 * ASK_EVERY)
    clients.append(stage.call())
    await stage.sleep(2 * SILENCE)
    clients += [stage.call(), stage.call()]
    await stage.settle()
    assert len(stage.pool.waiting) == 2
    worker.send(wire.frame(wire.PONG, 0))
    await stage.settle()
    assert len(stage.pool.waiting) == 1

    worker.turns = True
    while stage.pool.busy:
        for stream in [*worker.running]:
            worker.answer(stream)
        await stage.settle()
        worker.take()
    assert [(await client).status for client in clients] == [200] * 4
    assert worker.begun == sorted(worker.begun)
    assert not worker.process.killed


async def test_a_silent_worker_is_not_free(make: MakeStage) -> None:
    """Once as many calls wait as may, others are refused."""
    stage = make("async", max_workers=1, max_waiting=1, concurrency=10)
    clients = [stage.call()]
    await stage.settle()
    stage.worker().ready().turns = False
    await stage.sleep(2 * ASK_EVERY)
    clients.append(stage.call())
    await stage.sleep(2 * SILENCE)
    clients.append(stage.call())
    await stage.settle()

    with pytest.raises(Overloaded):
        stage.lease()
    assert len(stage.pool.waiting) == 1


# Clients that leave.


async def test_a_call_whose_client_left_while_it_waited_is_never_run(make: MakeStage) -> None:
    """Its place in the queue is gone at once."""
    stage = make(max_workers=1)
    client, worker, _ = await begin(stage)
    with stage.lease():
        assert len(stage.pool.waiting) == 1
    assert (len(stage.pool.waiting), stage.pool.busy) == (0, 1)
    worker.answer()
    await client
    await stage.settle()

    assert worker.take() is None


async def test_a_call_is_cancelled_once(make: MakeStage) -> None:
    """However often it is asked for, and not when it is over: each is counted once."""
    stage = make(max_workers=1)
    client, worker, _ = await begin(stage)
    waits = stage.lease()
    for _ in range(2):
        stage.pool._cancel(waits, Cancelled())
        assert (stage.pool.busy, list(stage.pool.waiting)) == (1, [])

    worker.answer()
    assert (await client).status == 200
    assert isinstance(await stage.client(waits), Cancelled)
    assert stage.pool.busy == 0
    assert sum(stage.pool.stats.calls.values()) == 2


async def test_a_call_whose_client_left_before_it_was_begun_is_never_run(make: MakeStage) -> None:
    """Also when a worker had it already; and those around it are."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    before, after = stage.lease(), stage.lease()
    with stage.lease() as left:
        pass
    clients = [stage.client(before), stage.client(after)]
    await serve_all(stage)

    assert left.call.id not in worker.begun
    assert [(await client).status for client in clients] == [200, 200]
    assert len(stage.workers) == 1


async def test_the_only_call_of_a_worker_can_be_left(make: MakeStage) -> None:
    """Before the worker has begun it: its place is free again."""
    stage = make(max_workers=1)
    with stage.lease():
        pass
    assert stage.pool.busy == 0

    client, worker, _ = await begin(stage)
    assert worker is stage.worker()
    assert len(worker.begun) == 1
    worker.answer()
    assert (await client).status == 200


async def test_a_sync_call_that_runs_is_run_to_its_end_without_its_client(make: MakeStage) -> None:
    """It is counted with its status, and those behind it do not wait for it."""
    stage = make(max_workers=2)
    worker = await make_fast(stage)
    left, behind = stage.lease(), stage.lease()
    client = stage.client(behind)
    worker.take_one()
    with left:
        pass
    await stage.sleep(TICK)
    assert worker.take() is None, "at once, not when it is found to be stuck"
    stage.worker(1).ready().take_one()
    stage.worker(1).answer()
    assert (await client).status == 200
    assert stage.pool.busy == 1
    worker.answer(status=201)
    await stage.settle()

    assert stage.pool.busy == 0
    assert stage.pool.stats.calls[201] == 1


@pytest.mark.parametrize("kind", ["generator", "async_generator"])
async def test_a_stream_is_cancelled_when_its_client_leaves(make: MakeStage, kind: str) -> None:
    """The worker is told, ends it, and serves on."""
    stage = make(kind)
    exchange = stage.lease()
    await stage.settle()
    worker = stage.worker().ready()
    stream = worker.take_one()
    worker.head(stream).chunk(stream, b"x")
    await stage.settle()
    with exchange:
        pass
    await stage.settle()
    assert worker.heard == [(wire.CANCEL, stream, b"")]
    worker.end(stream)
    await stage.settle()

    assert stage.pool.busy == 0
    assert stage.pool.stats.calls == {200: 1}
    assert not worker.process.killed


async def test_an_async_generator_is_cancelled_before_its_first_item_too(make: MakeStage) -> None:
    """Its END with no RESULT is an end like any other."""
    stage = make("async_generator")
    with stage.lease():
        await stage.settle()
        stream = stage.worker().ready().take_one()
    await stage.settle()
    assert stage.worker().heard == [(wire.CANCEL, stream, b"")]
    stage.worker().end(stream)
    await stage.settle()

    assert stage.pool.busy == 0
    assert not stage.worker().process.killed


async def test_a_stream_that_goes_on_after_its_client_left_is_ended(make: MakeStage) -> None:
    """By its process, `timeout` later, although nobody reads what it sent."""
    stage = make(timeout=2.0)
    exchange = stage.lease()
    await stage.settle()
    worker = stage.worker().ready()
    stream = worker.take_one()
    worker.head(stream).chunk(stream, b"x")
    await stage.settle()
    with exchange:
        pass
    for _ in range(5):
        worker.chunk(stream, b"x")
        await stage.sleep(0.6)

    assert worker.process.killed
    assert stage.pool.busy == 0


# Workers less.


async def test_idle_workers_end_down_to_min_workers(make: MakeStage) -> None:
    """Those that were used last stay; busy ones are not idle; the zygote stays."""
    stage = make(idle_timeout=10.0, min_workers=1, max_workers=4, timeout=1000.0)
    await stage.sleep(TICK)
    running = [await begin(stage) for _ in range(4)]
    for client, worker, _ in running[:3]:
        worker.answer()
        await client
        await stage.sleep(0.1)
    await stage.sleep(9.0)
    assert [worker.alive for worker in stage.workers] == [True] * 4
    await stage.sleep(5.0)
    busy = running[3][1]
    assert [worker.alive for _, worker, _ in running] == [False, False, False, True]

    busy.answer()
    await running[3][0]
    await stage.sleep(100.0)
    assert busy.alive
    assert not stage.zygotes[0].closed
    assert sum(stage.pool.stats.deaths.values()) == 0


async def test_a_worker_used_now_and_then_stays(make: MakeStage) -> None:
    """Only `idle_timeout` without a call ends it; and when it has ended, the next call forks one."""
    stage = make(idle_timeout=10.0, timeout=1.0)
    for _ in range(5):
        client, worker, _ = await begin(stage)
        worker.answer()
        await client
        await stage.sleep(9.0)
    assert [worker.alive for worker in stage.workers] == [True]
    await stage.sleep(2.5)
    assert [worker.alive for worker in stage.workers] == [False]

    client, worker, _ = await begin(stage)
    worker.answer()
    assert (await client).status == 200
    await stage.sleep(15.0)
    assert [worker.alive for worker in stage.workers] == [False, False]


async def test_min_workers_are_there_before_the_first_call_and_again_after_a_death(make: MakeStage) -> None:
    """A moment later, lest those that die at once do it for ever; a call does not wait for that."""
    stage = make(min_workers=2, idle_timeout=1.0)
    for worker in stage.workers:
        worker.ready()
    await stage.sleep(60.0)
    assert [worker.alive for worker in stage.workers] == [True, True]

    for worker in stage.workers:
        worker.die(1)
    await stage.sleep(RESPITE / 2)
    assert len(stage.workers) == 2
    client, worker, _ = await begin(stage)
    worker.answer()
    assert (await client).status == 200
    assert len(stage.workers) == 3
    await stage.sleep(RESPITE)
    assert [worker.alive for worker in stage.workers] == [False, False, True, True]


async def test_new_settings_for_idle_workers_apply_at_once(make: MakeStage) -> None:
    """When they are to end sooner, and when fewer of them are to be kept."""
    for before, after in (({"idle_timeout": 1000.0}, {"idle_timeout": 1.0}), ({"min_workers": 2}, {"min_workers": 0})):
        stage = make(**{"idle_timeout": 1.0, "max_workers": 2, **before})
        (one, first, _), (two, second, _) = await begin(stage), await begin(stage)
        first.answer()
        second.answer()
        await asyncio.gather(one, two)
        await stage.sleep(5.0)
        assert [worker.alive for worker in stage.workers] == [True, True]

        settings = structs.replace(stage.function.settings, **after)
        stage.pool.function = structs.replace(stage.function, settings=settings)
        stage.pool.reconfigured()
        await stage.sleep(2.0)
        assert [worker.alive for worker in stage.workers] == [False, False]


async def test_new_settings_for_min_workers_start_them(make: MakeStage) -> None:
    """Without a call."""
    stage = make()
    settings = structs.replace(stage.function.settings, min_workers=2)
    stage.pool.function = structs.replace(stage.function, settings=settings)
    stage.pool.reconfigured()

    assert len(stage.workers) == 2


async def test_a_retired_worker_that_does_not_go_is_killed(make: MakeStage) -> None:
    """It has RETIRE_WAIT for its exit handlers."""
    stage = make(idle_timeout=1.0)
    client, worker, _ = await begin(stage)
    worker.answer()
    await client
    worker._end_if_told = lambda: None  # type: ignore[method-assign]
    await stage.sleep(2.0)
    assert stage.pool._free == []
    assert not worker.process.killed

    await stage.sleep(RETIRE_WAIT)
    assert worker.process.killed
    assert stage.pool.workers == set()


async def test_sleep_ends_all_processes_and_the_next_call_asks_for_them_again(make: MakeStage) -> None:
    """What was loaded is still known."""
    stage = make(min_workers=2)
    stage.pool.retire()
    await stage.settle()
    assert [worker.alive for worker in stage.workers] == [False, False]
    assert stage.zygotes[0].closed
    assert (stage.needed, stage.pool.state) == (0, "cold")

    client = stage.call()
    assert stage.needed == 1
    stage.swap()
    await serve_all(stage)
    assert (await client).status == 200


async def test_what_sleeps_is_not_loaded_for_its_minimum(make: MakeStage) -> None:
    """`min_workers` are kept while it is awake: nobody asks for a generation that no call wants."""
    stage = make(min_workers=2)
    stage.pool.retire()
    await stage.sleep(RESPITE * 3)

    assert stage.needed == 0
    assert stage.pool.state == "cold"


async def test_close_ends_everything_now(make: MakeStage) -> None:
    """The calls that run, too."""
    stage = make()
    client, worker, _ = await begin(stage)
    stage.pool.close()

    assert isinstance(await client, WorkerDied)
    assert not worker.alive
    assert stage.zygotes[0].closed
    await stage.sleep(100.0)
    assert len(stage.workers) == 1


async def test_what_is_retired_takes_no_more_calls(make: MakeStage) -> None:
    """Although a worker of it still runs one, and its zygote is there."""
    stage = make(max_workers=2)
    client, worker, stream = await begin(stage)
    stage.pool.retire()
    next_one = stage.call()
    await stage.sleep(STUCK)
    assert (stage.pool.state, stage.zygotes[0].closed, len(stage.workers)) == ("cold", False, 1)
    assert stage.needed

    worker.answer(stream)
    assert (await client).status == 200
    stage.swap()
    await serve_all(stage)
    assert (await next_one).status == 200


async def test_a_removed_function_finishes_what_runs(make: MakeStage) -> None:
    """Its idle workers end, its busy ones after their calls, its zygote with the last of them."""
    stage = make(min_workers=2)
    client, worker, _ = await begin(stage)
    stage.pool.retire()
    await stage.settle()
    assert sorted(worker.alive for worker in stage.workers) == [False, True]
    assert not stage.zygotes[0].closed
    worker.answer()

    assert (await client).status == 200
    await stage.settle()
    assert not worker.alive
    assert stage.zygotes[0].closed


# Generations.


async def test_calls_under_way_finish_on_the_generation_that_began_them(make: MakeStage) -> None:
    """And the next ones are served by the new one at once, by a worker that is there already."""
    stage = make()
    old, before, _ = await begin(stage)
    stage.swap()
    assert len(stage.zygotes[1].workers) == 1, "where there was one before, there is one before the first call"
    new = stage.call()
    await stage.settle()
    after = stage.zygotes[1].workers[0].ready()
    after.take_one()
    after.answer(body=b"new")
    assert (await new).body == b"new"
    assert not stage.zygotes[0].closed
    before.answer(body=b"old")
    assert (await old).body == b"old"
    await stage.settle()

    assert not before.alive
    assert stage.zygotes[0].closed
    assert not stage.zygotes[1].closed
    assert sum(stage.pool.stats.deaths.values()) == 0


async def test_a_generation_that_served_nobody_makes_room_at_once(make: MakeStage) -> None:
    """Its zygote ends, and the new one forks nothing before it is called."""
    stage = make()
    stage.swap()

    assert stage.zygotes[0].closed
    assert stage.workers == []


async def test_calls_that_wait_or_are_not_begun_are_served_by_the_new_generation(make: MakeStage) -> None:
    """In the order in which they came, each once."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    exchanges = [stage.lease() for _ in range(MAX_DEPTH + 3)]
    clients = [stage.client(exchange) for exchange in exchanges]
    worker.take_one()
    stage.swap()
    await stage.settle()
    assert worker.take() is None
    worker.answer()
    await serve_all(stage)

    assert [(await client).status for client in clients] == [200] * len(clients)
    assert worker.begun[FAST:] == [exchanges[0].call.id]
    assert stage.zygotes[1].workers[0].begun == [exchange.call.id for exchange in exchanges[1:]]


async def test_a_worker_of_the_old_generation_that_loses_its_only_call_ends(make: MakeStage) -> None:
    """Its client left before it had begun it: nothing keeps the process, nor its zygote."""
    stage = make()
    exchange = stage.lease()
    stage.swap()
    with exchange:
        pass
    await stage.settle()

    assert stage.pool.busy == 0
    assert not stage.worker().alive
    assert stage.zygotes[0].closed


async def test_an_async_generation_has_its_own_measure_of_how_much_a_worker_takes(make: MakeStage) -> None:
    """However fast the sync one before it was."""
    stage = make(max_workers=1, concurrency=2)
    await make_fast(stage)
    stage.swap("async")
    for _ in range(5):
        stage.call()
    worker = stage.workers[-1].ready()
    worker.answer(worker.take_one())
    await stage.settle()

    assert len([1 for _ in range(5) if worker.take()]) == 2


async def test_min_workers_of_the_new_generation_are_there_with_it(make: MakeStage) -> None:
    """But no more than `max_workers`."""
    stage = make(loaded=False, min_workers=3, max_workers=4)
    stage.swap()
    stage.swap()

    assert [len(zygote.workers) for zygote in stage.zygotes] == [3, 3]


async def test_those_who_wait_for_a_generation_that_will_not_come_are_told_why(make: MakeStage) -> None:
    """All of them, and each is counted."""
    stage = make(loaded=False)
    clients = [stage.call() for _ in range(3)]
    await stage.settle()
    stage.pool.refuse_waiting(LoadFailed("no such module"))

    assert [(await client).message for client in clients] == ["no such module"] * 3
    assert stage.pool.stats.calls == {503: 3}
    assert stage.pool.busy == 0


async def test_a_load_that_ended_without_success_is_asked_for_again(make: MakeStage) -> None:
    """By the calls that still wait."""
    stage = make(loaded=False)
    stage.pool.serve_waiting()
    assert stage.needed == 0
    stage.lease()
    stage.pool.serve_waiting()

    assert stage.needed == 2


async def test_the_state_is_said_in_a_word(make: MakeStage) -> None:
    """As GET /spaces/{space}/functions/{name} shows it."""
    stage = make(loaded=False)
    seen = [stage.pool.state]
    stage.pool.loading = True
    seen.append(stage.pool.state)
    stage.pool.loading, stage.pool.error = False, LoadFailed()
    seen.append(stage.pool.state)
    stage.swap()
    seen.append(stage.pool.state)

    assert seen == ["cold", "loading", "failed", "ready"]


# Workers that end.


async def test_a_death_costs_the_call_that_was_running_and_no_other(make: MakeStage) -> None:
    """Those that it had not begun are run elsewhere, in order, before those that came later."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    exchanges = [stage.lease() for _ in range(MAX_DEPTH + 3)]
    clients = [stage.client(exchange) for exchange in exchanges]
    worker.take_one()
    worker.die(-11)
    await stage.settle()
    await serve_all(stage)

    error, *results = [await client for client in clients]
    assert isinstance(error, WorkerDied)
    assert "SIGSEGV" in error.message
    assert [result.status for result in results] == [200] * len(results)
    assert stage.worker(1).begun == [exchange.call.id for exchange in exchanges[1:]]
    assert stage.pool.stats.deaths == {"its process was killed by SIGSEGV": 1}
    assert (stage.pool.stats.calls[502], stage.pool.busy) == (1, 0)


async def test_what_a_worker_answered_before_it_died_counts(make: MakeStage) -> None:
    """However soon after it died, and whichever the host learns of first."""
    stage = make()
    client, worker, stream = await begin(stage)
    worker.send(wire.result_frame(stream, 200, 0, b"", b"last words"))
    worker.process.finished(1)
    await stage.settle()

    assert (await client).body == b"last words"
    assert stage.pool.busy == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_worker_that_cannot_start_refuses_its_calls(make: MakeStage, kind: str) -> None:
    """With the reason: another one would not start either."""
    stage = make(kind)
    client = stage.call()
    await stage.settle()
    stage.worker().die(3)

    error = await client
    assert isinstance(error, StartFailed)
    assert "exited with status 3" in error.message
    assert stage.pool.busy == 0
    assert len(stage.workers) == 1
    assert stage.pool.stats.deaths == {"its process exited with status 3": 1}


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_call_whose_worker_could_not_start_as_its_zygote_died_is_tried_once_more(
    make: MakeStage, kind: str
) -> None:
    """With a new generation of the same files; if that dies too, the call is told."""
    stage = make(kind)
    client = stage.call()
    await stage.settle()
    stage.zygotes[0].die()
    await stage.settle()
    assert (stage.needed, client.done()) == (1, False)
    stage.swap()
    await stage.settle()
    stage.zygotes[1].die()
    await stage.settle()

    assert isinstance(await client, StartFailed)
    assert stage.pool.busy == 0


async def test_a_retried_call_is_served(make: MakeStage) -> None:
    """In its turn: before those that came later."""
    stage = make(max_workers=1)
    exchanges = [stage.lease() for _ in range(3)]
    clients = [stage.client(exchange) for exchange in exchanges]
    stage.zygotes[0].die()
    await stage.settle()
    stage.swap()
    await serve_all(stage)

    assert [(await client).status for client in clients] == [200] * 3
    assert stage.workers[-1].begun == [exchange.call.id for exchange in exchanges]


async def test_a_worker_that_breaks_the_wire_is_ended(make: MakeStage) -> None:
    """Its running call is told 502; what it had not begun is run elsewhere; other workers are not touched."""
    stage = make(max_workers=2)
    other, spared, _ = await begin(stage)
    client, worker, _ = await begin(stage)
    worker.send(b"\xff" * 40)

    assert isinstance(await client, ProtocolViolation)
    assert worker.process.killed
    spared.answer()
    assert (await other).status == 200
    assert (stage.pool.stats.calls, stage.pool.busy) == ({502: 1, 200: 1}, 0)


async def test_a_worker_that_hangs_up_is_ended(make: MakeStage) -> None:
    """It has a moment to say how it ended; then its calls are told, and it is killed."""
    stage = make()
    client, worker, _ = await begin(stage)
    worker.hang_up()
    await stage.sleep(REASON_WAIT * 0.9)
    assert not client.done()

    assert isinstance(await client, WorkerDied)
    assert worker.process.killed
    assert stage.pool.busy == 0


@pytest.mark.parametrize("end", ["deadline", "client"])
async def test_a_call_that_ends_while_its_worker_is_dying_is_never_run(make: MakeStage, end: str) -> None:
    """Between the end of the worker's socket and the news of its exit, it belongs to nobody."""
    stage = make(timeout=0.5)
    (client, worker, _) = await begin(stage)
    worker.answer(micros=10_000_000)
    await client
    exchange = stage.lease()
    waiting = stage.client(exchange)
    await stage.settle()
    worker.process.immortal = True
    worker.hang_up()
    await stage.settle()
    if end == "client":
        waiting.cancel()
        await stage.settle()
    else:
        assert isinstance(await waiting, NoFreeWorker)
    await stage.sleep(2 * REASON_WAIT)

    assert stage.pool.busy == 0
    assert [worker.begun for worker in stage.workers[1:]] in ([], [[]])
    assert sum(stage.pool.stats.calls.values()) == 2


async def test_a_refusal_reaches_the_client_and_the_worker_serves_on(make: MakeStage) -> None:
    """The data was at fault, not the process."""
    stage = make()
    client, worker, _ = await begin(stage)
    worker.refuse()
    error = await client
    assert isinstance(error, FunctionRefused)
    assert error.status == 422
    client, again, _ = await begin(stage)

    assert again is worker
    worker.answer()
    assert (await client).status == 200
    assert stage.pool.stats.calls == {422: 1, 200: 1}


async def test_output_is_passed_on(make: MakeStage) -> None:
    """With its call, its level and its text."""
    stage = make()
    exchange = stage.lease()
    stage.worker().ready().send(wire.frame(wire.LOG, exchange.stream, b"\x1ehello"))
    await stage.settle()

    assert stage.printed == [(exchange, 30, "hello")]


async def test_time_is_told_apart(make: MakeStage) -> None:
    """Waiting for a worker, in the handler, and our own; also for a call that was taken back on its way."""
    stage = make(max_workers=1)
    worker = await make_fast(stage)
    before = stage.pool.stats
    waiting, own, seconds = before.waiting_seconds, before.own_seconds, before.seconds
    slow, behind = stage.call(), stage.call()
    await stage.settle()
    worker.take_one()
    await stage.sleep(3.0)
    worker.answer(micros=2_000_000)
    await slow
    worker.take_one()
    await stage.sleep(1.0)
    worker.answer(micros=1_000_000)
    await behind

    stats = stage.pool.stats
    assert stats.waiting_seconds - waiting == pytest.approx(3.0, abs=0.01)
    assert stats.own_seconds - own == pytest.approx(1.0, abs=0.01)
    assert stats.seconds - seconds == pytest.approx(7.0, abs=0.01)
    assert sum(stats.buckets) == sum(stats.calls.values()) == FAST + 2


async def test_a_call_taken_back_and_never_begun_only_waited(make: MakeStage) -> None:
    """None of its time was in a handler."""
    stage = make(timeout=2.0, max_workers=1)
    assert isinstance(await stage.call(), NoFreeWorker)

    assert stage.pool.stats.waiting_seconds == pytest.approx(2.0, abs=0.05)
    assert stage.pool.stats.own_seconds == 0.0
