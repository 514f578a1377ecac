"""The worker that a pool has started before a call wants it, on stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime.ahead import QUIET
from tests.unit.simulated import ON_STAGE, MakeStage, SimulatedWorker, Stage

pytestmark = ON_STAGE

IDLE = 5.0


async def begin(make: MakeStage, kind: str = "sync", **settings: object) -> Stage:
    """A pool alone with its zygote, which has one worker that has answered a call, and the spare."""
    stage = make(kind, alone=True, idle_timeout=IDLE, **settings)
    await answered(stage, lambda: stage.workers[-1])
    await stage.sleep(QUIET * 2)
    return stage


async def answered(stage: Stage, worker: Callable[[], SimulatedWorker]) -> None:
    """A call that this worker answers."""
    client = stage.call()
    await stage.settle()
    worker().ready().take_one()
    worker().answer()
    assert (await client).status == 200


def spares(stage: Stage, generation: int = 0) -> list[SimulatedWorker]:
    return stage.zygotes[generation].spares


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_cold_start_takes_the_spare(make: MakeStage, kind: str) -> None:
    """Nothing is forked for it; the next spare comes once that is over."""
    stage = await begin(make, kind)
    [spare] = spares(stage)
    await stage.sleep(IDLE * 2)
    assert not stage.pool.workers
    assert spare.alive

    await answered(stage, lambda: spare)

    assert len(stage.workers) == 1
    assert len(stage.pool.workers) == 1
    assert stage.pool.stats.cold_starts == 2
    assert len(spares(stage)) == 1
    await stage.sleep(QUIET * 2)
    assert len(spares(stage)) == 2


async def test_a_spare_is_no_worker(make: MakeStage) -> None:
    """It is in no count, keeps no place from others, and outlives those that are idle."""
    stage = await begin(make, max_workers=1)
    assert len(stage.pool.workers) == 1

    first, second = stage.call(), stage.call()
    await stage.sleep(0.5)
    assert len(stage.pool.waiting) == 1  # one worker there may be, and it is busy
    worker = stage.workers[0]
    for client in (first, second):
        worker.take_one()
        worker.answer()
        await client

    assert spares(stage)[0].take() is None


async def test_one_that_ends_by_itself_is_nobodys_business(make: MakeStage) -> None:
    """It is not counted, not replaced before a worker is wanted, and the next cold start does without."""
    stage = await begin(make)
    spares(stage)[0].die(-9)
    await stage.sleep(IDLE * 2)
    assert not stage.pool.stats.deaths
    assert len(spares(stage)) == 1

    await answered(stage, lambda: stage.workers[-1])

    assert len(stage.workers) == 2
    await stage.sleep(QUIET * 2)
    assert len(spares(stage)) == 2


async def test_one_that_is_about_to_end_is_not_taken(make: MakeStage) -> None:
    """Its socket has closed; that it is gone, nobody has heard yet."""
    stage = await begin(make)
    await stage.sleep(IDLE * 2)
    spares(stage)[0].hang_up()
    await stage.settle()

    await answered(stage, lambda: stage.workers[-1])
    assert len(stage.workers) == 2


async def test_a_call_that_its_process_dies_in_is_lost_as_any_other(make: MakeStage) -> None:
    """And counted: from the moment it was taken it is a worker."""
    stage = await begin(make)
    await stage.sleep(IDLE * 2)
    client = stage.call()
    await stage.settle()
    spares(stage)[0].ready().take_one()
    spares(stage)[0].die(-11)

    error = await client

    assert error.code == "worker_died"
    assert sum(stage.pool.stats.deaths.values()) == 1


async def test_a_spare_ends_with_its_generation(make: MakeStage) -> None:
    """At once when another one is swapped in, and with the processes of a function that nobody uses."""
    stage = await begin(make)
    [spare] = spares(stage)

    stage.swap()
    assert spare.channel.recv(1) == b""  # at once: of its end nobody hears, who may have ended by then
    await stage.settle()
    assert spare.process.killed
    assert not spare.alive

    await answered(stage, lambda: stage.workers[-1])
    stage.pool.retire()
    await stage.sleep(QUIET * 2)
    assert not any(each.alive for each in spares(stage, 1))
    assert not stage.pool.stats.deaths


async def test_the_first_call_after_a_reload_takes_a_spare_too(make: MakeStage) -> None:
    """The workers of the generation before had idled out, so nothing of the new one runs."""
    stage = await begin(make)
    await stage.sleep(IDLE * 2)
    stage.swap()
    await stage.sleep(QUIET * 2)
    assert not stage.pool.workers
    [spare] = spares(stage, 1)

    await answered(stage, lambda: spare)


async def test_there_is_none_where_there_are_no_descriptors(make: MakeStage) -> None:
    """Which is for those to say who need a worker."""
    stage = await begin(make)
    await stage.sleep(IDLE * 2)
    client = stage.call()
    await stage.settle()
    stage.zygotes[0].exhausted = True
    await stage.sleep(QUIET * 2)

    spares(stage)[0].ready().take_one()
    spares(stage)[0].answer()

    assert (await client).status == 200
    assert len(spares(stage)) == 1


async def test_a_zygote_with_other_hosts_keeps_its_own(make: MakeStage) -> None:
    """As it counts who may have how many workers."""
    stage = make()
    await answered(stage, lambda: stage.workers[-1])
    await stage.sleep(QUIET * 2)
    assert not spares(stage)
    assert stage.zygotes[0].expecting == 1

    stage.swap()
    assert stage.zygotes[1].expecting == 2  # there was a worker, so there is one again; and a reload is no first load
