"""A generation and its workers, on stage: what is done about processes that will not end, or not even begin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime import generation as generation_module
from runtime.errors import FunctionTimeout, LoadFailed, StartFailed, WorkerDied
from runtime.generation import GRACE, KILL_WAIT, RETIRE_WAIT, Generation
from runtime.process import LOST, STACK_WAIT, place
from runtime.snapshots import Snapshot
from runtime.spawner import Loaded
from runtime.worker import wire
from tests.unit.simulated import ON_STAGE, MakeStage, SimulatedWorker, SimulatedZygote, Stage, function

pytestmark = ON_STAGE

STOPPED = STACK_WAIT + 0.1
SNAPSHOT = Snapshot("demo", "stock", "/demo/stock.py", "/demo", ("/demo",), (), "d", frozenset(), frozenset())


async def begin(stage: Stage) -> tuple[asyncio.Task[Any], SimulatedWorker, int]:
    """A call that runs in the newest worker: its client, the worker, its stream."""
    client = stage.call()
    await stage.settle()
    worker = stage.workers[-1].ready()
    return client, worker, worker.take_one()


async def test_two_calls_that_will_not_be_cancelled_do_not_wait_for_each_other(make: MakeStage) -> None:
    """A loop that turns is left to other calls to finish in; to those only that still may."""
    stage = make("async", timeout=2.0)
    first, worker, _ = await begin(stage)
    second, again, _ = await begin(stage)
    assert again is worker

    assert isinstance(await first, FunctionTimeout)
    assert isinstance(await second, FunctionTimeout)
    await stage.settle()
    worker.send(wire.frame(wire.PONG, 0))
    await stage.sleep(GRACE + STOPPED)

    assert worker.process.killed
    assert stage.pool.busy == 0


async def test_a_call_that_will_not_be_cancelled_is_not_kept_alive_by_a_stream(make: MakeStage) -> None:
    """A stream may go on for ever; it is cut after as long as a call may take."""
    stage = make("async", timeout=2.0)
    late, worker, _ = await begin(stage)
    streaming, _, stream = await begin(stage)
    worker.head(stream)
    await stage.sleep(1.5)
    worker.chunk(stream, b"x")
    assert isinstance(await late, FunctionTimeout)
    await stage.settle()
    worker.send(wire.frame(wire.PONG, 0))
    for _ in range(6):
        assert not worker.process.killed
        await stage.sleep(0.5)
        worker.chunk(stream, b"x")
    assert isinstance(await streaming, WorkerDied)

    assert worker.process.killed


async def test_an_async_call_alone_in_its_worker_is_cancelled(make: MakeStage) -> None:
    """`concurrency` 1 changes how many, not how."""
    stage = make("async", timeout=2.0, concurrency=1)
    late, worker, stream = await begin(stage)
    assert isinstance(await late, FunctionTimeout)
    await stage.settle()
    assert (wire.CANCEL, stream, b"") in worker.heard

    worker.end(stream)
    await stage.sleep(GRACE + STOPPED)

    assert worker.alive
    assert not worker.process.killed


async def test_a_killed_process_that_does_not_end_is_given_up(make: MakeStage) -> None:
    """Its place is free for another, and its end, when it comes, is no news."""
    stage = make(timeout=2.0, max_workers=1)
    late, worker, _ = await begin(stage)
    worker.process.immortal = True
    worker.process.pid = 4711
    assert isinstance(await late, FunctionTimeout)
    await stage.sleep(STOPPED)
    assert worker.process.killed

    await stage.sleep(KILL_WAIT)
    assert not stage.zygotes[0].closed
    client, other, stream = await begin(stage)
    assert other is not worker
    other.answer(stream)
    assert (await client).status == 200

    worker.die(-9)
    await stage.settle()
    assert stage.pool.busy == 0


async def test_a_retired_process_that_does_not_end_is_given_up(make: MakeStage) -> None:
    """First its sockets close, then it is killed, then it is forgotten."""
    stage = make(idle_timeout=1.0)
    client, worker, stream = await begin(stage)
    worker.answer(stream)
    await client
    worker.process.immortal = True
    worker.process.pid = 4711
    worker._told_to_end = False
    worker._end_if_told = lambda: None  # type: ignore[method-assign]

    await stage.sleep(1.5 + RETIRE_WAIT)
    assert worker.process.killed
    assert len(stage.pool.workers) == 1
    await stage.sleep(KILL_WAIT)

    assert stage.pool.workers == set()


async def test_a_zygote_that_forks_no_more_is_ended(make: MakeStage) -> None:
    """What was asked for never came: another zygote is loaded for the next call."""
    stage = make("async", timeout=2.0)
    late = stage.call()
    await stage.settle()
    stage.worker().process.immortal = True
    assert isinstance(await late, FunctionTimeout)

    await stage.sleep(GRACE + STOPPED + KILL_WAIT)

    assert stage.zygotes[0].closed
    assert stage.pool.busy == 0
    stage.call()
    await stage.settle()
    assert stage.needed == 1


async def test_a_worker_that_ends_before_it_has_done_anything(make: MakeStage) -> None:
    """The call that was meant for it is tried once more, and not for ever."""
    stage = make()
    client = stage.call()
    for number in range(2):
        await stage.settle()
        assert len(stage.workers) == number + 1
        stage.workers[number].ready()
        await stage.settle()
        stage.workers[number].die(1)
    error = await client

    assert isinstance(error, StartFailed)
    assert "exited with status 1" in error.message
    assert len(stage.workers) == 2
    assert stage.pool.busy == 0


async def test_a_worker_with_an_import_of_its_own_that_ends_with_its_zygote(make: MakeStage) -> None:
    """What it was given is for another to begin, once."""
    stage = make()
    assert stage.pool.current is not None
    stage.pool.current.fresh = True
    client = stage.call()
    await stage.settle()
    stage.worker().die(None, reason=LOST)
    await stage.settle()

    stage.worker(1).ready().answer(stage.worker(1).take())

    assert (await client).status == 200


@pytest.mark.parametrize(
    ("fork", "unsafe", "fresh"), [("auto", None, False), ("auto", "2 threads run", True), ("never", None, True)]
)
async def test_what_must_not_be_forked_is_imported_by_each_worker(
    make: MakeStage, fork: str, unsafe: str | None, fresh: bool
) -> None:
    """Its zygote has nothing left to do, and may end; but when it is closed there are no more workers."""
    stage = make(fork=fork)
    loaded = Loaded(kind="sync", takes=("data",), extras={}, import_seconds=0.0, unsafe=unsafe)
    zygote = SimulatedZygote(shared=True)
    generation = Generation(stage.function, SNAPSHOT, zygote, loaded)  # type: ignore[arg-type]

    assert generation.fresh == fresh
    assert zygote.alive != fresh
    assert generation.alive
    zygote.closed = True
    assert not generation.alive


async def test_what_is_ended_at_once_leaves_nobody_waiting(make: MakeStage) -> None:
    """Every process is killed, and not waited for: a worker with an import of its own may outlive its zygote."""
    stage = make("async", max_workers=2)
    client, worker, _ = await begin(stage)
    worker.process.immortal = True
    stage.zygotes[0].close = lambda *, stale=False: None  # type: ignore[method-assign]
    stage.pool.close()

    error = await client
    assert isinstance(error, WorkerDied)
    assert "its host ended" in error.message
    assert worker.process.killed


async def test_what_was_never_used_is_not_given_to_others(make: MakeStage) -> None:
    """It was ended before anybody called it, as it was not what it should be."""
    stage = make()
    await begin(stage)
    used, unused = stage.pool.current, stage.generation()
    assert used is not None
    told: list[bool] = []
    for zygote in stage.zygotes:
        zygote.close = lambda *, stale=False: told.append(stale)  # type: ignore[method-assign]
    unused.kill()
    assert told == [True]
    used.kill()
    assert set(told[1:]) == {False}


@pytest.mark.parametrize("error", [LoadFailed("no"), asyncio.CancelledError()])
async def test_a_zygote_that_has_not_loaded_is_given_to_nobody(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Neither where its import failed, nor where nobody waits for it any more."""
    told: list[bool] = []

    class Failing(SimulatedZygote):
        def __init__(self, *_: Any) -> None:
            super().__init__(shared=True)

        async def load(self, timeout: float) -> Loaded:
            raise error

        def close(self, *, stale: bool = False) -> None:
            told.append(stale)

    monkeypatch.setattr(generation_module, "Zygote", Failing)
    with pytest.raises(type(error)):
        await Generation.load(function(), SNAPSHOT, None, print, debug=False)  # type: ignore[arg-type]

    assert told == [True]


async def test_a_host_with_no_room_for_another_worker(make: MakeStage) -> None:
    """Those who wait for the first are told; what there is goes on; later there may be room again."""
    stage = make(max_workers=2)
    fork = stage.zygotes[0].fork

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    stage.zygotes[0].fork = full  # type: ignore[method-assign]
    error = await stage.call()
    assert isinstance(error, StartFailed)
    assert "Too many open files" in error.message
    assert stage.pool.busy == 0

    stage.zygotes[0].fork = fork  # type: ignore[method-assign]
    client, worker, stream = await begin(stage)
    stage.zygotes[0].fork = full  # type: ignore[method-assign]
    second = stage.call()
    await stage.sleep(0.1)
    worker.answer(stream)
    assert (await client).status == 200
    worker.answer(worker.take_one())
    assert (await second).status == 200


async def test_a_load_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoadFailed, like any other reason why nothing can be loaded."""

    def full(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(generation_module, "Zygote", full)

    with pytest.raises(LoadFailed, match="Too many open files"):
        await Generation.load(function(), SNAPSHOT, None, print, debug=False)  # type: ignore[arg-type]


async def test_a_long_body_is_one_that_does_not_fit_into_its_call(make: MakeStage) -> None:
    """In however many pieces it came."""
    stage = make()
    half = bytes(wire.INLINE // 2)

    assert not stage.lease(body=(half, half)).is_long
    assert stage.lease(body=(half, half, b"x")).is_long


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("", "in a place that it could not name"),
        ("Stack (most recent call first):\n", "in a place that it could not name"),
        ('  File "/demo/stock.py", line 3 in handle\n', "at /demo/stock.py:3 in handle"),
        (
            """  File "/lib/json/__init__.py", line 346 in loads
  File "/demo/a b.py", line 9 in <module>
  File "/demo/stock.py", line 3 in handle
""",
            "at /demo/a b.py:9 in <module>",
        ),
        ('  File "/lib/asyncio/base.py", line 1 in run\n', "at /lib/asyncio/base.py:1 in run"),
    ],
)
async def test_the_place_of_a_stack(stack: str, words: str) -> None:
    """The innermost frame that is in the user's files, if there is one."""
    assert place(stack, str(Path("/demo"))) == words
