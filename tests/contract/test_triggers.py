"""What every trigger keeps to, as its protocol says: one submission a cause, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import triggers
from runtime.calls import CallIds, Submission
from runtime.config import FunctionSettings, Schedule
from runtime.errors import HostError, JournalError, NotFound
from runtime.journal import Receipt
from runtime.registry import Function, Registry
from runtime.timetable import Timetable
from tests.unit.simulated import ON_STAGE, loop_time

pytestmark = ON_STAGE

SETTINGS = {triggers.schedules: FunctionSettings(schedule=(Schedule(id=1, cron="* * * * *"),))}
NAMES = {triggers.schedules: "schedule"}
CAUSE = 60.0  # seconds in which every trigger here has one more cause for a call


class Edge:
    """A host as triggers know it, with one function that each of them calls again and again."""

    def __init__(self, settings: FunctionSettings) -> None:
        self.ids = CallIds()
        self.journal = self
        self.on_change: list[Callable[[], None]] = []
        self.timetable = Timetable(Path("/nowhere"))
        self.registry = Registry(spaces=("demo",), functions={("demo", "f"): function(settings)})
        self.submissions: list[Submission] = []
        self.refusals: list[HostError] = []
        self._fired: dict[int, float] = {}

    async def submit(self, submission: Submission) -> Receipt:
        await anyio.sleep(0.01)
        if self.refusals:
            raise self.refusals.pop(0)
        self.submissions.append(submission)
        return Receipt(submission.call.id, submission.call.label)

    async def last_fired(self, id: int) -> float | None:
        return self._fired.get(id)

    async def fired(self, id: int, time: float) -> None:
        self._fired[id] = time


def function(settings: FunctionSettings) -> Function:
    return Function(1, "demo", "f", Path("/demo/f.py"), 1, "sync", (), "", settings)


@pytest.fixture(params=triggers.TRIGGERS, ids=lambda make: make.__name__)
async def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A scope in which the trigger runs, on the loop's clock, which jumps."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Edge]:
        edge = Edge(SETTINGS[request.param])
        trigger = request.param(edge)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trigger.run, edge.submit)
            yield edge
            tasks.cancel_scope.cancel()

    monkeypatch.setattr(triggers, "Schedules", partial(triggers.Schedules, clock=loop_time))
    return run


async def test_each_cause_is_one_call(running: Callable[[], Any]) -> None:
    """Each with an id of its own, its label the id, in a function that there is."""
    async with running() as edge:
        await anyio.sleep(5.5 * CAUSE)
    calls = [submission.call for submission in edge.submissions]

    assert 5 <= len(calls) <= 6
    assert len({call.id for call in calls}) == len(calls)
    assert {call.label for call in calls} == {str(call.id) for call in calls}
    assert {(call.space, call.name) for call in calls} == {("demo", "f")}
    assert all(b"x-call-id\0%d" % call.id in call.headers for call in calls)


async def test_its_calls_can_be_told_apart(running: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    """By the trigger's name, which calls are listed by."""
    async with running() as edge:
        await anyio.sleep(1.5 * CAUSE)
    make = request.node.callspec.params["running"]

    assert {submission.trigger for submission in edge.submissions} == {NAMES[make]}


@pytest.mark.parametrize("refusal", [JournalError, NotFound])
async def test_a_refusal_ends_nothing(
    running: Callable[[], Any], refusal: type[HostError], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and later causes lead to calls as if nothing had been."""
    async with running() as edge:
        edge.refusals = [refusal("not now")]
        await anyio.sleep(5.5 * CAUSE)

    assert 4 <= len(edge.submissions) <= 6
    assert "not now" in caplog.text


async def test_what_may_be_taken_later_is_tried_again(running: Callable[[], Any]) -> None:
    """A journal that cannot be used for a moment costs no call."""
    async with running() as edge:
        edge.refusals = [JournalError(), JournalError(), JournalError()]
        await anyio.sleep(1.75 * CAUSE)

    assert len(edge.submissions) >= 1


async def test_a_change_disturbs_nothing(running: Callable[[], Any]) -> None:
    """A host that has read its files again and found the same goes on the same."""
    async with running() as edge:
        for _ in range(55):
            for notify in edge.on_change:
                notify()
            await anyio.sleep(CAUSE / 10)

    assert 5 <= len(edge.submissions) <= 6


async def test_a_function_that_is_gone_is_not_called(running: Callable[[], Any]) -> None:
    """From when the host has said so."""
    async with running() as edge:
        await anyio.sleep(1.5 * CAUSE)
        edge.registry = Registry()
        for notify in edge.on_change:
            notify()
        await anyio.sleep(1)
        before = len(edge.submissions)
        await anyio.sleep(3 * CAUSE)

    assert before >= 1
    assert len(edge.submissions) == before


async def test_it_ends_when_it_is_cancelled(running: Callable[[], Any]) -> None:
    """And submits nothing after that."""
    async with running() as edge:
        await anyio.sleep(1.5 * CAUSE)
    before = len(edge.submissions)
    await anyio.sleep(3 * CAUSE)

    assert len(edge.submissions) == before
