"""Tasks that run one call after another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from runtime import runs
from runtime.calls import Call
from runtime.journal import open_journal
from runtime.runs import Run, Runners
from runtime.settings import FunctionSettings

pytestmark = pytest.mark.anyio


def run(id: int) -> Run:
    return Run(open_journal("sqlite", Path()), Call(id, str(id), "demo", "stock"), 1, FunctionSettings())


class Work:
    """What is done for each run, as soon as the test lets it."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None] | None] = []
        self.begun: list[int] = []
        self.let = asyncio.Event()

    async def __call__(self, run: Run) -> None:
        self.begun.append(run.call.id)
        self.tasks.append(asyncio.current_task())
        await self.let.wait()


async def settled() -> None:
    """All that can be done without waiting for anything has been."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_run_at_once() -> None:
    """However many there are."""
    work = Work()
    runners = Runners(work)
    async with anyio.create_task_group() as tasks:
        runners.begin(tasks)
        for id in range(100):
            runners.start(run(id))
        await settled()
        tasks.cancel_scope.cancel()

    assert sorted(work.begun) == list(range(100))
    assert len(set(work.tasks)) == 100


async def test_a_task_that_is_done_takes_the_next() -> None:
    """None is started as long as there is one; so many are kept, and no more."""
    work = Work()
    work.let.set()
    runners = Runners(work)
    async with anyio.create_task_group() as tasks:
        runners.begin(tasks)
        for id in range(5):
            runners.start(run(id))
            await settled()
        for id in range(5, 5 + 2 * runs.RESTING):
            runners.start(run(id))
        await settled()
        kept = len(runners._resting)
        tasks.cancel_scope.cancel()

    assert len(set(work.tasks[:5])) == 1
    assert kept == runs.RESTING


async def test_whoever_starts_one_need_not_be_a_task() -> None:
    """As a callback of the event loop, which anyio does not know."""
    work = Work()
    runners = Runners(work)
    async with anyio.create_task_group() as tasks:
        runners.begin(tasks)
        asyncio.get_running_loop().call_soon(runners.start, run(1))
        await settled()
        tasks.cancel_scope.cancel()

    assert work.begun == [1]
    assert runners.over


async def test_what_was_started_is_begun_whatever_ends_then() -> None:
    """A call that is claimed must not be forgotten."""
    work = Work()
    work.let.set()
    runners = Runners(work)
    async with anyio.create_task_group() as tasks:
        runners.begin(tasks)
        runners.start(run(1))
        await settled()
        runners.start(run(2))
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:  # those that rested are gone
        runners.begin(tasks)
        runners.start(run(3))
        await settled()
        tasks.cancel_scope.cancel()

    assert work.begun == [1, 2, 3]
