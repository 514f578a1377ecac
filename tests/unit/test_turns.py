"""What a pool does about the workers of other hosts, on stage: asks, waits for its turn, and gives up what it owes."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from runtime.calls import Result
from runtime.errors import NoFreeWorker, Overloaded
from runtime.generation import RETIRE_WAIT
from runtime.process import Process
from runtime.turns import SLICE
from tests.unit.simulated import ON_STAGE, MakeStage, SimulatedProcess, SimulatedZygote, Stage, function

pytestmark = ON_STAGE


def zygote(stage: Stage) -> SimulatedZygote:
    return stage.zygotes[-1]


def again(process: Process) -> SimulatedProcess:
    """The same process, as a host sees it that has just been given it."""
    seen = SimulatedProcess()
    seen.on_kill = getattr(process, "on_kill")  # noqa: B009 - it is a SimulatedProcess
    return seen


def hang_up(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def tell(stage: Stage, op: str, **more: Any) -> None:
    """News of the zygote that serves."""
    zygote(stage).on_news({"op": op, **more})


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_calls_of_a_refused_worker_wait_for_an_offer(make: MakeStage, kind: str) -> None:
    """None is lost, none fails for it, and no other worker is asked for until then."""
    stage = make(kind, max_workers=1)
    zygote(stage).full = True
    clients = [stage.call(body=(b"x" * size,)) for size in (1, 100_000)]
    await stage.sleep(0.5)
    assert stage.workers == []
    assert len(stage.pool.waiting) == 2

    zygote(stage).full = False
    tell(stage, "room")
    await stage.settle()
    worker = stage.worker().ready()
    for _ in clients:
        await stage.sleep(0.1)
        worker.answer(worker.take_one())
    results = [await client for client in clients]

    assert all(isinstance(result, Result) for result in results)
    assert zygote(stage).passed == 0
    assert not stage.pool.stats.deaths


async def test_an_offer_that_nobody_needs_is_passed_on(make: MakeStage) -> None:
    """The calls were served meanwhile, or are no more; also one that comes from a zygote of old files."""
    stage = make(timeout=1.0)
    zygote(stage).full = True
    assert isinstance(await stage.call(), NoFreeWorker)

    tell(stage, "room")
    assert zygote(stage).passed == 1
    old = zygote(stage)
    stage.swap()
    client = stage.call()
    await stage.settle()
    old.on_news({"op": "room"})

    assert old.passed == 2
    stage.worker().ready().answer(stage.worker().take())
    assert isinstance(await client, Result)


async def test_a_worker_of_ours_that_becomes_free_takes_what_waits_for_an_offer(make: MakeStage) -> None:
    """The place is then passed on."""
    stage = make(max_workers=2)
    first = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    zygote(stage).full = True
    second = stage.call()
    await stage.sleep(0.5)

    worker.answer()
    await stage.settle()
    worker.answer(worker.take_one())
    await stage.settle()
    tell(stage, "room")

    assert [type(await client) for client in (first, second)] == [Result, Result]
    assert zygote(stage).passed == 1


async def test_what_waits_for_an_offer_does_not_count_as_startable(make: MakeStage) -> None:
    """`max_waiting` calls wait, and no more; those that were given to the refused worker among them."""
    stage = make(max_workers=4, max_waiting=0)
    zygote(stage).full = True
    stage.call()
    await stage.settle()

    with pytest.raises(Overloaded):
        stage.lease()
    stage.pool.retire()
    stage.lease()  # for which it is loaded again
    assert stage.needed == 1


async def test_an_idle_worker_is_given_up_at_once(make: MakeStage) -> None:
    """Where no call of ours waits; and one only."""
    stage = make(min_workers=2, idle_timeout=100.0)
    await stage.settle()
    for worker in stage.workers:
        worker.ready()
    await stage.settle()

    tell(stage, "wanted", busy=False)
    await stage.settle()

    assert sorted(worker.alive for worker in stage.workers) == [False, True]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_idle_worker_goes_over_as_it_is(make: MakeStage, kind: str) -> None:
    """With its sockets, and how far its calls were counted; no process ends, and none is missed."""
    stage = make(kind, max_workers=1)
    zygote(stage).refuses_to_give = False
    client = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    worker.answer(worker.take_one())
    assert isinstance(await client, Result)

    tell(stage, "wanted", busy=False)
    await stage.sleep(10.0)

    [(process, sockets, last_stream)] = zygote(stage).given
    assert (process, last_stream) == (worker.process, 1)
    assert len(sockets) == (3 if kind == "sync" else 1)
    assert worker.alive
    assert not stage.pool.workers
    assert not stage.pool.stats.deaths
    hang_up(sockets)


async def test_a_worker_goes_over_although_our_calls_wait_for_it(make: MakeStage) -> None:
    """When its time is up, with none of them: they wait for our next turn, and are begun once."""
    stage = make(max_workers=1)
    clients = [stage.call() for _ in range(3)]
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    tell(stage, "wanted", busy=True)
    await stage.sleep(2 * SLICE)
    zygote(stage).refuses_to_give, zygote(stage).full = False, True

    worker.answer()
    await stage.settle()

    [(process, sockets, last_stream)] = zygote(stage).given
    assert worker.take() is None
    assert len(stage.pool.waiting) == 2

    tell(stage, "given", process=again(process), sockets=[sock.detach() for sock in sockets], last_stream=last_stream)
    for _ in range(2):
        await stage.settle()
        worker.answer(worker.take_one())
    assert [type(await client) for client in clients] == [Result] * 3
    assert len(set(worker.begun)) == 3
    assert stage.pool.stats.cold_starts == 1
    assert zygote(stage).passed == 0


async def test_a_worker_with_other_calls_goes_over_after_them(make: MakeStage) -> None:
    """It is given no more of ours meanwhile, and one is enough, however often another host asks."""
    stage = make("async", max_workers=1, concurrency=3)
    zygote(stage).refuses_to_give = False
    clients = [stage.call() for _ in range(2)]
    await stage.settle()
    worker = stage.worker().ready()
    streams = [worker.take_one() for _ in clients]
    tell(stage, "wanted", busy=True)
    await stage.sleep(2 * SLICE)
    worker.answer(streams[0])
    await stage.settle()
    zygote(stage).full = True
    tell(stage, "wanted", busy=True)
    clients.append(stage.call())
    await stage.settle()
    assert worker.take() is None
    assert zygote(stage).given == []

    worker.answer(streams[1])
    await stage.settle()

    [(process, sockets, last_stream)] = zygote(stage).given
    assert last_stream == 2
    tell(stage, "given", process=again(process), sockets=[sock.detach() for sock in sockets], last_stream=last_stream)
    await stage.settle()
    worker.answer(worker.take_one())
    assert [type(await client) for client in clients] == [Result] * 3
    assert not stage.pool.stats.deaths


async def test_a_worker_with_a_long_call_goes_on(make: MakeStage) -> None:
    """If it waited for the end of that to go over, it would be of use to nobody; it goes once it is without."""
    stage = make("async", max_workers=1, concurrency=3)
    zygote(stage).refuses_to_give = False
    stream = stage.lease()
    reader = stage.client(stream)
    short = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    streams = [worker.take_one(), worker.take_one()]
    worker.head(streams[0])
    tell(stage, "wanted", busy=True)
    await stage.sleep(2 * SLICE)
    worker.answer(streams[1])
    await stage.settle()
    again_short = stage.call()
    await stage.settle()
    worker.answer(worker.take_one())
    assert [type(await client) for client in (short, again_short)] == [Result] * 2
    assert zygote(stage).given == []

    await stage.sleep(2.0)
    worker.end(streams[0])
    await stage.settle()

    assert await reader == b""
    assert len(zygote(stage).given) == 1
    hang_up(zygote(stage).given[0][1])


async def test_a_minimum_is_kept_after_a_worker_has_gone_over(make: MakeStage) -> None:
    """As after one that has died: by asking again, soon."""
    stage = make(min_workers=1, max_workers=1)
    zygote(stage).refuses_to_give = False
    await stage.settle()
    stage.worker().ready()
    await stage.settle()

    tell(stage, "wanted", busy=False)
    assert not stage.pool.workers
    await stage.sleep(2.0)

    assert len(stage.workers) == 2
    hang_up(zygote(stage).given[0][1])


async def test_more_workers_that_there_may_be_are_asked_for(make: MakeStage) -> None:
    """By the calls that wait for an offer since there were enough."""
    stage = make(max_workers=1)
    zygote(stage).full = True
    client = stage.call()
    await stage.settle()
    assert stage.workers == []

    zygote(stage).full = False
    stage.pool.function = function(max_workers=2)
    stage.pool.reconfigured()
    await stage.settle()

    stage.worker().ready().answer(stage.worker().take_one())
    assert isinstance(await client, Result)


async def test_a_worker_that_cannot_go_over_ends(make: MakeStage) -> None:
    """One that has not said yet that it is there: its place is free then, at least."""
    stage = make(min_workers=1, max_workers=1)
    zygote(stage).refuses_to_give = False
    await stage.settle()

    tell(stage, "wanted", busy=False)
    await stage.settle()

    assert not zygote(stage).given
    assert not stage.worker().alive


async def test_a_worker_for_which_there_are_no_descriptors_ends(
    make: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot go over; its place is free then, at least."""
    stage = make(max_workers=1)
    client = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    worker.answer(worker.take_one())
    assert isinstance(await client, Result)

    def full(*_: Any, **__: Any) -> bool:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(zygote(stage), "give", full)
    tell(stage, "wanted", busy=False)
    await stage.settle()

    assert not worker.alive
    assert stage.pool.workers == set()


async def test_a_worker_that_comes_for_old_files_is_not_taken(make: MakeStage) -> None:
    """It is told to end, and made to when it does not."""
    stage = make()
    old = zygote(stage)
    stage.swap()
    ours, theirs = socket.socketpair()
    process = SimulatedProcess()

    old.on_news({"op": "given", "process": process, "sockets": [ours.detach()], "last_stream": 1})

    assert theirs.recv(1) == b""
    theirs.close()
    await stage.sleep(RETIRE_WAIT + 0.1)
    assert process.killed
    assert len(stage.pool.workers) == 0


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_in_use_is_given_up_when_it_has_no_more_to_do(make: MakeStage, busy: bool) -> None:
    """After the call that it runs."""
    stage = make(max_workers=1)
    client = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    tell(stage, "wanted", busy=busy)
    await stage.sleep(2 * SLICE)
    assert worker.alive

    worker.answer()
    await stage.settle()

    assert isinstance(await client, Result)
    assert not worker.alive


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_that_others_wait_for_is_ours_for_a_moment_more(make: MakeStage, busy: bool) -> None:
    """Then it is given up although our calls wait, if we have more than is fair; they are begun by the next."""
    stage = make(max_workers=1)
    clients = [stage.call() for _ in range(3)]
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    tell(stage, "wanted", busy=busy)
    worker.answer()
    await stage.settle()
    worker.take_one()
    assert worker.alive
    zygote(stage).full = True
    await stage.sleep(SLICE)
    worker.answer()
    await stage.settle()

    assert worker.alive is not busy
    if busy:
        zygote(stage).full = False
        await stage.settle()
        tell(stage, "room")
        await stage.settle()
        worker = stage.worker(1).ready()
    worker.answer(worker.take_one())
    await stage.settle()
    assert [type(await client) for client in clients] == [Result] * 3


async def test_who_asks_again_does_not_wait_longer(make: MakeStage) -> None:
    """The moment more that is ours began when a worker was wanted first."""
    stage = make(max_workers=1)
    clients = [stage.call() for _ in range(2)]
    await stage.settle()
    worker = stage.worker().ready()
    worker.take_one()
    for _ in range(3):
        tell(stage, "wanted", busy=True)
        await stage.sleep(SLICE * 0.4)
    worker.answer()
    await stage.settle()

    assert isinstance(await clients[0], Result)
    assert not worker.alive


async def test_one_worker_is_owed_once(make: MakeStage) -> None:
    """However often it was asked for before it was given."""
    stage = make(max_workers=2)
    clients = [stage.call() for _ in range(2)]
    await stage.sleep(0.5)
    for worker in stage.workers:
        worker.ready().take_one()
    for _ in range(3):
        tell(stage, "wanted", busy=True)
    await stage.sleep(2 * SLICE)
    for worker in stage.workers:
        worker.answer()
    await stage.settle()

    assert [type(await client) for client in clients] == [Result] * 2
    assert [worker.alive for worker in stage.workers] == [False, True]


async def test_a_minimum_that_others_have_is_not_insisted_on(make: MakeStage) -> None:
    """It is asked for again now and then, and takes no call with it."""
    stage = make(min_workers=1, max_workers=1)
    await stage.settle()
    worker = stage.worker().ready()
    await stage.settle()
    zygote(stage).full = True
    tell(stage, "wanted", busy=True)
    await stage.sleep(10.0)
    assert not worker.alive

    zygote(stage).full = False
    await stage.sleep(2.0)

    assert stage.worker(1).ready().alive


async def test_who_was_refused_only_a_minimum_asks_for_a_call(make: MakeStage) -> None:
    """For that no offer would come: nobody waited."""
    stage = make(loaded=False, min_workers=1, max_workers=1)
    generation = stage.generation()
    zygote(stage).full = True
    stage.pool.swap(generation)
    await stage.settle()
    zygote(stage).full = False
    client = stage.call()
    await stage.settle()
    worker = stage.worker().ready()
    worker.answer(worker.take_one())

    assert isinstance(await client, Result)


async def test_a_zygote_that_ends_while_calls_wait_for_an_offer(make: MakeStage) -> None:
    """They need another one."""
    stage = make()
    zygote(stage).full = True
    client = stage.call()
    await stage.settle()
    assert stage.needed == 0
    zygote(stage).die()
    tell(stage, "lost")
    assert stage.needed == 1

    stage.swap()
    stage.worker().ready().answer(stage.worker().take())

    assert isinstance(await client, Result)


async def test_a_refusal_by_an_old_zygote_is_none_by_the_one_that_serves(make: MakeStage) -> None:
    """It comes after the swap: the new one is asked."""
    stage = make(max_workers=1)
    zygote(stage).full = True
    client = stage.call()
    stage.swap()
    await stage.settle()

    stage.worker().ready().answer(stage.worker().take())

    assert isinstance(await client, Result)
    assert not stage.pool._turns._refused
