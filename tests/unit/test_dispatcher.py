"""Submitted calls on their way from a real journal to workers that do what the test says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from runtime import dispatcher as module
from runtime.arrivals import capacity
from runtime.calls import Call, CallIds, Entry, Outcome, Result, Status, Submission, function_id
from runtime.dispatcher import Dispatcher
from runtime.errors import Draining, HostError, JournalError, NotFound, Overloaded, StartFailed, WorkerDied
from runtime.exchange import Exchange
from runtime.journal import Receipt, Told, open_journal
from runtime.registry import Function
from runtime.settings import FunctionSettings, Retry
from runtime.share import WHOLE, Share
from tests.contract.journal_stores import SQLiteStore
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio

IDS = CallIds()  # of all hosts in one test: two could draw the same number in the same millisecond


def function(name: str, **settings: Any) -> Function:
    """A sync one."""
    return Function(
        id=function_id("demo", name), space="demo", name=name, path=Path(f"{name}.py"), line=1, kind="sync",
        takes=("data",), digest="", settings=FunctionSettings(**settings),
    )  # fmt: skip


class Nowhere:
    """The way to a worker that is not there."""

    def write(self, data: bytes) -> None:
        """Nobody reads it."""


class Stage:
    """A dispatcher, its journal, and what its calls are run by: nobody, until the test answers them."""

    def __init__(self, state: Path, share: Share = WHOLE) -> None:
        self.state = state
        self.functions = {name: function(name, max_workers=2) for name in ("a", "b")}
        self.ids = IDS
        self.running: dict[int, Exchange] = {}
        self.begun: list[int] = []
        self.refuse: Callable[[Call], None] = lambda call: None
        self.outcomes = 0
        self.journal = open_journal("sqlite", state)
        self.dispatcher = Dispatcher(
            self.journal,
            invoke=self._invoke,
            lookup=self._lookup,
            settings=self._settings,
            on_outcome=self._count,
            share=share,
        )

    def _count(self) -> None:
        self.outcomes += 1

    def _lookup(self, space: str, name: str) -> Function:
        if name not in self.functions:
            raise NotFound(f"there is no {name}")
        return self.functions[name]

    def _settings(self, space: str, name: str) -> FunctionSettings:
        return self.functions[name].settings if name in self.functions else FunctionSettings()

    def _invoke(self, call: Call) -> Exchange:
        self.refuse(call)
        exchange = Exchange(call, 60.0, asyncio.get_running_loop(), self._over, self._cancelled)
        exchange.channel = Nowhere()
        self.running[call.id] = exchange
        self.begun.append(call.id)
        return exchange

    def _over(self, exchange: Exchange) -> None:
        self.running.pop(exchange.call.id, None)

    def _cancelled(self, exchange: Exchange, error: HostError) -> None:
        self.running.pop(exchange.call.id, None)
        exchange.failed(error)

    def answer(self, id: int, status: int = 200, body: bytes = b"1", headers: bytes = b"") -> None:
        """Its worker answers."""
        result = Result(status, headers, body, complete=True, failed=False, handler_seconds=0.0)
        self.running.pop(id).answered(result)

    async def submit(self, name: str = "a", **wishes: Any) -> int:
        """Have a call accepted."""
        number = self.ids.next()
        call = Call(id=number, label=str(number), space="demo", name=name, body=(b"{}",))
        receipt: Receipt = await self.dispatcher.accept(Submission(call, **wishes), self._lookup("demo", name))
        assert receipt.id == number
        return number

    async def entry(self, id: int) -> Entry:
        found = await self.journal.get(id)
        assert found is not None
        return found

    async def until_status(self, id: int, status: Status) -> Entry:
        """Wait for something on disk."""
        with anyio.fail_after(PATIENCE):
            while (entry := await self.entry(id)).status is not status:
                await self.journal.changed(id, 0.05)
        return entry


@asynccontextmanager
async def playing(state: Path, share: Share = WHOLE, **functions: Function) -> AsyncIterator[Stage]:
    """A dispatcher at work."""
    stage = Stage(state, share)
    stage.functions |= functions
    await stage.journal.open()
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(stage.dispatcher.run)
            yield stage
            stage.dispatcher.pause()
            tasks.cancel_scope.cancel()
    finally:
        await stage.journal.close()


async def test_a_call_is_run_and_its_outcome_recorded(tmp_path: Path) -> None:
    """At once, where nothing is before it."""
    async with playing(tmp_path) as stage:
        id = await stage.submit(callback_url="http://localhost/")
        assert (await stage.entry(id)).status is Status.RUNNING
        await until(lambda: id in stage.running)
        assert stage.running[id].call.attempt == 1
        stage.answer(id, 201, b"made", b"x-mine\0yes")
        entry = await stage.until_status(id, Status.SUCCEEDED)
        outcome = await stage.journal.outcome(id)
    assert (entry.code, entry.attempt, stage.outcomes) == (201, 1, 1)
    assert outcome is not None
    assert (outcome.body, outcome.headers, outcome.invoked) == (b"made", b"x-mine\0yes", True)


async def test_no_more_run_at_once_than_its_workers_take(tmp_path: Path) -> None:
    """The others wait, and start in order; another function's do not wait for them."""
    async with playing(tmp_path) as stage:
        first = [await stage.submit("a") for _ in range(5)]
        await until(lambda: len(stage.running) == 2)
        other = await stage.submit("b")
        await until(lambda: other in stage.running)
        for id in first:
            await until(lambda id=id: id in stage.running)
            assert next(a for a in first if a in stage.running) == id
            stage.answer(id)
        for id in first:
            await stage.until_status(id, Status.SUCCEEDED)
        assert [id for id in stage.begun if id in first] == first


async def test_a_call_that_is_over_makes_room_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not for more: the other places are taken."""
    monkeypatch.setattr(module, "LOOK_EVERY", 1000.0)
    async with playing(tmp_path) as stage:
        beside: list[int] = []
        stage.refuse = lambda call: beside.append(len(stage.running))
        ids = [await stage.submit("a") for _ in range(6)]
        await until(lambda: ids[1] in stage.running)
        for over, following in zip(ids, ids[2:], strict=False):
            stage.answer(over)
            await until(lambda id=following: id in stage.running)

        assert beside == [0, 1, 1, 1, 1, 1]


async def test_higher_priorities_start_first(tmp_path: Path) -> None:
    """Among those that wait."""
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        running = await stage.submit("one")
        low, high, middle = [await stage.submit("one", priority=priority) for priority in (-5, 9, 0)]
        await until(lambda: running in stage.running)
        for id in (running, high, middle, low):
            await until(lambda id=id: id in stage.running)
            stage.answer(id)
        await stage.until_status(low, Status.SUCCEEDED)
        assert stage.begun == [running, high, middle, low]


async def test_places_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function's thousand do not fill the house."""
    monkeypatch.setattr(module, "MAX_RUNNING", 0)
    many = {name: function(name, max_workers=100) for name in ("greedy", "x", "y", "z")}
    async with playing(tmp_path, **many) as stage:
        for name in ["greedy"] * 50 + ["x", "x", "y", "y", "z", "z"]:
            await stage.submit(name)
        monkeypatch.setattr(module, "MAX_RUNNING", 8)
        stage.dispatcher.wake()
        await until(lambda: len(stage.running) == 8)
        names = sorted(exchange.call.name for exchange in stage.running.values())
        assert names == ["greedy", "greedy", "x", "x", "y", "y", "z", "z"]


async def test_too_many_that_wait_are_refused(tmp_path: Path) -> None:
    """`max_queued`, and nothing of it is on disk."""
    async with playing(tmp_path, one=function("one", max_workers=1, max_queued=2)) as stage:
        for _ in range(3):
            await stage.submit("one")
        with pytest.raises(Overloaded, match="max_queued"):
            await stage.submit("one")
        assert (await stage.journal.counts()).queued == 2


async def test_who_is_told_later_is_refused_as_well(tmp_path: Path) -> None:
    """He is told to ask `accept`, which says so, and nothing of it is on disk."""
    async with playing(tmp_path, one=function("one", max_workers=1, max_queued=1)) as stage:

        def take_in() -> asyncio.Future[Receipt] | None:
            told: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
            number = stage.ids.next()
            submission = Submission(Call(id=number, label=str(number), space="demo", name="one", body=(b"{}",)))
            return told if stage.dispatcher.take_in(submission, stage.functions["one"], told) else None

        taken = [take_in() for _ in range(3)]
        receipts = [await told for told in taken if told is not None]

        assert [told is not None for told in taken] == [True, True, False]
        assert [receipt.claimed for receipt in receipts] == [True, False]
        assert (await stage.journal.counts()).queued == 1


async def test_too_many_that_are_to_run_later_are_refused(tmp_path: Path) -> None:
    """They are on the disk as well; but they take no place of those that are due. What is cancelled leaves room."""
    later = time.time() + 1000
    async with playing(tmp_path, one=function("one", max_workers=1, max_queued=2)) as stage:
        first, _ = [await stage.submit("one", run_at=later) for _ in range(2)]
        with pytest.raises(Overloaded, match="max_queued"):
            await stage.submit("one", run_at=later)
        await stage.submit("a", run_at=later)
        for _ in range(3):
            await stage.submit("one")
    async with playing(tmp_path, one=function("one", max_workers=1, max_queued=2)) as stage:
        with pytest.raises(Overloaded):
            await stage.submit("one", run_at=later)  # the next host knows of them too
        await stage.journal.cancel(first)
        with anyio.fail_after(20):
            while not await accepted(stage, run_at=later):  # it is not counted again at once
                await anyio.sleep(0.01)


async def test_what_is_due_already_is_not_to_run_later(tmp_path: Path) -> None:
    """It is not refused since too many are."""
    async with playing(tmp_path, one=function("one", max_workers=1, max_queued=2)) as stage:
        for _ in range(2):
            await stage.submit("one", run_at=time.time() + 1000)
        for at in (time.time(), time.time() - 1000):
            await stage.submit("one", run_at=at)
        with pytest.raises(Overloaded, match="max_queued"):
            await stage.submit("one", run_at=time.time() + 1000)


async def test_a_delayed_call_starts_when_it_is_due(tmp_path: Path) -> None:
    """Not before."""
    async with playing(tmp_path) as stage:
        due = time.time() + 0.3
        id = await stage.submit(run_at=due)
        assert (await stage.entry(id)).status is Status.QUEUED
        await until(lambda: id in stage.running)
        assert time.time() >= due


async def test_retries(tmp_path: Path) -> None:
    """For the codes and as often as the function says; only the last outcome counts."""
    retry = Retry(attempts=3, codes=frozenset({503}), min_wait=0.01, max_wait=0.01)
    async with playing(tmp_path, again=function("again", retry=retry)) as stage:
        id = await stage.submit("again", callback_url="http://localhost/")
        for attempt in (1, 2, 3):
            await until(lambda: id in stage.running)
            assert stage.running[id].call.attempt == attempt
            stage.answer(id, 503)
        entry = await stage.until_status(id, Status.FAILED)
    assert (entry.attempt, entry.code, stage.outcomes) == (3, 503, 1)


async def test_a_call_that_found_no_place_in_the_pool_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the platform is no outcome, and no attempt."""
    monkeypatch.setattr(module.attempt, "BACK_SOON", 0.01)
    async with playing(tmp_path) as stage:
        refusals = iter([Overloaded(), Overloaded()])

        def refuse(_: Call) -> None:
            if error := next(refusals, None):
                raise error

        stage.refuse = refuse
        id = await stage.submit()
        await until(lambda: id in stage.running)
        assert stage.running[id].call.attempt == 1
        stage.answer(id)
        assert (await stage.until_status(id, Status.SUCCEEDED)).attempt == 1


async def test_a_moment_in_which_nothing_can_be_started_costs_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in their order, and one at a time finds out when it is over."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(module.attempt, "BACK_SOON", 0.05)
    async with playing(tmp_path) as stage:
        ids = [await stage.submit() for _ in range(6)]
        other = await stage.submit("b")
        await until(lambda: len(stage.running) == 3)

        def fail(id: int) -> None:
            stage.running[id].channel = None
            stage.running.pop(id).failed(StartFailed())

        for id in ids[:2]:
            fail(id)
        for _ in range(3):
            await until(lambda: ids[0] in stage.running)
            assert set(stage.running) == {ids[0], other}
            fail(ids[0])
        last = await stage.submit()
        await until(lambda: ids[0] in stage.running)
        assert stage.begun == [*ids[:2], other, *[ids[0]] * 4]
        stage.answer(ids[0])
        for id in (*ids[1:], last):
            await until(lambda id=id: id in stage.running)
            assert stage.running[id].call.attempt == 1
            stage.answer(id)
        entries = [await stage.until_status(id, Status.SUCCEEDED) for id in (*ids, last)]
        assert [entry.attempt for entry in entries] == [1] * 7


async def test_calls_of_which_none_can_be_started_for_very_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail, with what stands in their way."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(module.attempt, "BACK_SOON", 0.02)
    monkeypatch.setattr(module.attempt, "STUCK_AFTER", 0.1)
    async with playing(tmp_path) as stage:
        ids = [await stage.submit() for _ in range(4)]
        with anyio.fail_after(PATIENCE):
            while not await stage.journal.outcome(ids[-1]):
                for id in tuple(stage.running):
                    stage.running[id].channel = None
                    stage.running.pop(id).failed(StartFailed("no descriptors"))
                await anyio.sleep(0.005)
        for id in ids:
            entry = await stage.until_status(id, Status.FAILED)
            assert (entry.error_code, entry.attempt) == ("start_failed", 1)


async def test_a_call_that_is_cancelled_before_it_found_a_place_is_over(tmp_path: Path) -> None:
    """It does not wait for another one."""
    async with playing(tmp_path) as stage:

        def refuse(call: Call) -> None:
            stage.dispatcher.cancel(call.id)
            raise Overloaded

        stage.refuse = refuse
        id = await stage.submit()
        await stage.until_status(id, Status.CANCELLED)

        assert stage.begun == []


async def test_a_worker_that_dies_fails_the_call(tmp_path: Path) -> None:
    """It is not run again."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.running.pop(id).failed(WorkerDied("gone"))
        entry = await stage.until_status(id, Status.FAILED)
        outcome = await stage.journal.outcome(id)
    assert (entry.code, entry.error_code, stage.begun) == (502, "worker_died", [id])
    assert outcome is not None
    assert json.loads(outcome.body)["error"]["message"] == "gone"


async def test_cancelling_a_running_call_stops_it(tmp_path: Path) -> None:
    """And it ends as cancelled."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        assert await stage.journal.cancel(id) is Status.RUNNING
        stage.dispatcher.cancel(id)
        await stage.until_status(id, Status.CANCELLED)
        assert id not in stage.running


async def test_cancelling_what_does_not_run_here_is_nothing(tmp_path: Path) -> None:
    """Another host runs it, it is over, or it is being stopped already."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        asked: list[HostError] = []
        stage.running[id]._on_cancel = lambda exchange, error: asked.append(error)
        for each in (id + 1, id, id):
            stage.dispatcher.cancel(each)

        assert len(asked) == 1


async def test_cancelling_in_the_journal_alone_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another host would do it."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        await stage.journal.cancel(id)
        await stage.until_status(id, Status.CANCELLED)


async def test_what_others_ask_for_is_looked_at_when_somebody_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then at once, and until then nobody looks."""
    monkeypatch.setattr(module, "LOOK_EVERY", 1000.0)
    async with playing(tmp_path) as stage:
        await until(lambda: stage.dispatcher._asked.statistics().tasks_waiting == 1)
        looks, to_cancel = 0, stage.journal.to_cancel

        async def counted() -> list[int]:
            nonlocal looks
            looks += 1
            return await to_cancel()

        monkeypatch.setattr(stage.journal, "to_cancel", counted)
        id = await stage.submit()
        await until(lambda: id in stage.running)
        await stage.journal.cancel(id)
        assert looks == 0
        stage.dispatcher.look()
        await stage.until_status(id, Status.CANCELLED)

        assert looks == 1


async def test_a_queued_call_that_is_cancelled_never_starts(tmp_path: Path) -> None:
    """Nor does it hold up the next one."""
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        first, second, third = [await stage.submit("one") for _ in range(3)]
        assert await stage.journal.cancel(second) is Status.CANCELLED
        for id in (first, third):
            await until(lambda id=id: id in stage.running)
            stage.answer(id)
        await stage.until_status(third, Status.SUCCEEDED)
        assert stage.begun == [first, third]


async def test_output_and_progress_are_recorded(tmp_path: Path) -> None:
    """As events of the call."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        follower = stage.running[id].follower
        assert follower is not None
        follower.printed(20, "hello")
        follower.progressed(0.5, "half")
        stage.answer(id)
        await stage.until_status(id, Status.SUCCEEDED)
        events = await stage.journal.events(id)
    assert ("log", {"level": 20, "text": "hello"}) in [(event.kind, event.data) for event in events]
    assert ("progress", {"fraction": 0.5, "message": "half"}) in [(event.kind, event.data) for event in events]


@pytest.mark.parametrize("idempotent", [False, True])
async def test_the_end_of_the_host_interrupts_what_runs(tmp_path: Path, idempotent: bool) -> None:
    """It fails as interrupted, or is queued again where it may run again; what waits goes on waiting."""
    again = function("again", idempotent=idempotent, max_workers=1)
    async with playing(tmp_path, again=again) as stage:
        id, waits = await stage.submit("again"), await stage.submit("again")
        await until(lambda: id in stage.running)
    async with playing(tmp_path, again=again) as stage:
        if idempotent:
            await until(lambda: id in stage.running)
            assert stage.running[id].call.attempt == 2
            stage.answer(id)
            assert (await stage.until_status(id, Status.SUCCEEDED)).attempt == 2
        else:
            assert (await stage.entry(id)).error_code == "interrupted"
        await until(lambda: waits in stage.running)
        assert stage.running[waits].call.attempt == 1


@pytest.mark.parametrize(("idempotent", "most_starts"), [(False, 10), (True, 10), (True, 1)])
async def test_what_a_host_that_has_died_left_running_is_interrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    idempotent: bool,
    most_starts: int,
) -> None:
    """It is run again where it may be, but not for ever; it was noted nowhere but in the journal."""
    for name, value in (("LOOK_EVERY", 0.01), ("TAKE_OVER_EVERY", 0.01), ("MOST_STARTS", most_starts)):
        monkeypatch.setattr(module, name, value)
    async with playing(tmp_path, again=function("again", idempotent=idempotent)) as stage:
        other, id = open_journal("sqlite", tmp_path), stage.ids.next()
        await other.open()
        await other.append(Submission(Call(id=id, label=str(id), space="demo", name="again")), claim=True)
        await SQLiteStore(tmp_path).crash(other)

        if idempotent and most_starts > 1:
            await until(lambda: id in stage.running)
            assert stage.running[id].call.attempt == 2
        else:
            assert (await stage.until_status(id, Status.FAILED)).error_code == "interrupted"
            assert stage.begun == []
        assert f"call {id} of demo/again was interrupted" in caplog.text


async def test_a_call_that_is_cut_as_the_host_drains_is_interrupted(tmp_path: Path) -> None:
    """Not failed as a crash would be."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.dispatcher.pause()
        stage.running.pop(id).failed(Draining())
        assert (await stage.until_status(id, Status.FAILED)).error_code == "interrupted"


async def test_nothing_starts_once_it_is_paused(tmp_path: Path) -> None:
    """What is accepted then waits for the next host."""
    async with playing(tmp_path) as stage:
        stage.dispatcher.pause()
        id = await stage.submit()
        assert (await stage.entry(id)).status is Status.QUEUED
        assert not stage.dispatcher.busy
    async with playing(tmp_path) as stage:
        await until(lambda: id in stage.running)


async def test_a_function_that_was_removed_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a deployment; its calls wait."""
    monkeypatch.setattr(module, "BACK_AGAIN", 0.01)
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        first, second = [await stage.submit("one") for _ in range(2)]
        await until(lambda: first in stage.running)
        removed = stage.functions.pop("one")
        refused: list[int] = []

        def refuse(call: Call) -> None:
            if call.name not in stage.functions:
                refused.append(call.id)
                raise NotFound("it was removed")

        stage.refuse = refuse
        stage.functions["gone"] = removed
        stage.answer(first)
        del stage.functions["gone"]
        stage.functions["one"] = removed
        await until(lambda: second in stage.running)


async def test_a_journal_that_fails_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome is kept until it can be recorded."""
    monkeypatch.setattr(module, "RESPITE", (0.01, 0.01))
    async with playing(tmp_path) as stage:
        failures = 3
        complete = stage.journal.complete

        async def failing(id: int, outcome: Outcome) -> bool:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise JournalError("the disk is full")
            return await complete(id, outcome)

        monkeypatch.setattr(stage.journal, "complete", failing)
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.answer(id)
        await stage.until_status(id, Status.SUCCEEDED)
    assert failures < 0


@pytest.mark.parametrize(("complain_every", "said"), [(1000.0, ["full", "gone"]), (0.0, ["full", "full", "gone"])])
async def test_what_is_wrong_with_the_journal_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    complain_every: float,
    said: list[str],
) -> None:
    """Not at each try, but when it is something else, or has been so for long."""
    monkeypatch.setattr(module, "RESPITE", (0.01, 0.01))
    monkeypatch.setattr(module, "COMPLAIN_EVERY", complain_every)
    async with playing(tmp_path) as stage:
        wrong, complete = ["gone", "full", "full"], stage.journal.complete

        async def failing(id: int, outcome: Outcome) -> bool:
            if wrong:
                raise JournalError(wrong.pop())
            return await complete(id, outcome)

        monkeypatch.setattr(stage.journal, "complete", failing)
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.answer(id)
        await stage.until_status(id, Status.SUCCEEDED)

    assert [record.getMessage() for record in caplog.records if record.name == "spaces.dispatcher"] == said


async def test_a_call_that_the_host_fails_at_is_recorded_as_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was raised: it is not tried for ever, and the next ones are run."""
    async with playing(tmp_path) as stage:

        def refuse(call: Call) -> None:
            raise ZeroDivisionError("a fault of ours")

        stage.refuse = refuse
        id = await stage.submit()
        entry = await stage.until_status(id, Status.FAILED)
        stage.refuse = lambda call: None
        following = await stage.submit()
        await until(lambda: following in stage.running)
        stage.answer(following)
        await stage.until_status(following, Status.SUCCEEDED)

    assert (entry.code, entry.error_code) == (500, "internal_error")
    assert f"call {id} failed in the host" in caplog.text


async def test_a_client_that_leaves_while_its_call_is_written(tmp_path: Path) -> None:
    """The call is run: it may have been accepted by then."""
    async with playing(tmp_path) as stage:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.submit)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await until(lambda: len(stage.running) == 1)
        [id] = stage.running
        stage.answer(id)
        await stage.until_status(id, Status.SUCCEEDED)


async def test_what_comes_into_the_journal_once_nothing_runs_any_more_is_given_back(tmp_path: Path) -> None:
    """It was claimed, but never begun: the next host begins it, and nobody says that it was interrupted."""
    async with playing(tmp_path) as stage:
        late = asyncio.ensure_future(stage.submit())
        await anyio.lowlevel.checkpoint()  # it is about to be written
        stage.dispatcher._runners.over = True
        id = await late
    async with playing(tmp_path) as stage:
        await until(lambda: id in stage.running)
        assert stage.running[id].call.attempt == 1


async def test_a_call_for_much_later_wakes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen in time without: whoever submits many of them need not pay for as many looks."""
    monkeypatch.setattr(module, "LOOK_EVERY", 1000.0)
    async with playing(tmp_path) as stage:
        for _ in range(2):  # the first look may be under way, and be followed by another for what came meanwhile
            before = stage.dispatcher._wake
            stage.dispatcher.wake()
            await until(lambda before=before: stage.dispatcher._wake is not before)
        wake = stage.dispatcher._wake
        await stage.submit(run_at=time.time() + 5000)
        later = wake.is_set() or stage.dispatcher._wake is not wake
        await stage.submit(run_at=time.time() + 0.01)
        assert not later
        assert wake.is_set()


async def test_an_overdue_callback_keeps_nobody_busy(tmp_path: Path) -> None:
    """It is not for the dispatcher, which looks no more often for it than a few times a second."""
    async with playing(tmp_path) as stage:
        id = await stage.submit(callback_url="http://localhost/")
        await until(lambda: id in stage.running)
        stage.answer(id)
        await stage.until_status(id, Status.SUCCEEDED)  # nobody delivers here: it stays due
        looks, end = 0, anyio.current_time() + 0.3
        next_due = stage.journal.next_due

        async def counted() -> float | None:
            nonlocal looks
            looks += 1
            return await next_due()

        stage.journal.next_due = counted  # type: ignore[method-assign]
        while anyio.current_time() < end:
            await anyio.sleep(0.01)
    assert looks < 20


async def test_what_was_claimed_while_it_is_paused_is_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor lost: it has not begun, and goes on waiting, whatever the journal does meanwhile."""
    monkeypatch.setattr(module, "RESPITE", (0.01, 0.01))
    async with playing(tmp_path) as stage:
        claim, release, failures = stage.journal.claim, stage.journal.release, 3

        async def pausing(wanted: Any) -> Any:
            claims = await claim(wanted)
            if claims:
                stage.dispatcher.pause()
            return claims

        async def failing(id: int, at: float) -> bool:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise JournalError("the disk is full")
            return await release(id, at)

        monkeypatch.setattr(stage.journal, "claim", pausing)
        monkeypatch.setattr(stage.journal, "release", failing)
        at = time.time() + 0.2
        ids = [await stage.submit(run_at=at) for _ in range(2)]
        await until(lambda: failures < 0)
    async with playing(tmp_path) as stage:
        await until(lambda: all(id in stage.running for id in ids))
        assert [stage.running[id].call.attempt for id in ids] == [1, 1]


async def test_an_outcome_that_is_being_recorded_as_the_host_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is recorded, and not that the call was interrupted."""
    monkeypatch.setattr(module, "RESPITE", (PATIENCE, PATIENCE))
    async with playing(tmp_path) as stage:
        complete, failures = stage.journal.complete, 0

        async def failing(id: int, outcome: Outcome) -> bool:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise JournalError("the disk is full")
            return await complete(id, outcome)

        monkeypatch.setattr(stage.journal, "complete", failing)
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.answer(id, 201)
        await until(lambda: failures)
    async with playing(tmp_path) as stage:
        assert ((await stage.entry(id)).code, (await stage.entry(id)).error_code) == (201, None)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_call_that_no_worker_has_begun_is_not_interrupted(tmp_path: Path, cut: bool) -> None:
    """It waits for the next host, as those do that were not claimed."""
    async with playing(tmp_path) as stage:
        id = await stage.submit()
        await until(lambda: id in stage.running)
        stage.running[id].channel = None
        stage.dispatcher.pause()
        if cut:
            stage.running.pop(id).failed(Draining())
            await stage.until_status(id, Status.QUEUED)
    async with playing(tmp_path) as stage:
        await until(lambda: id in stage.running)
        assert stage.running[id].call.attempt == 1


async def test_a_function_that_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls fail, however many; before, they wait, however old they are, and cost no writing."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        ids = [await stage.submit("one") for _ in range(4)]
        await until(lambda: ids[0] in stage.running)
        removed = stage.functions.pop("one")
        stage.refuse = lambda call: None if call.name in stage.functions else stage._lookup(call.space, call.name)
        real, ahead = time.time, 0.0
        monkeypatch.setattr(module, "time", lambda: real() + ahead)
        ahead = 10 * module.GONE_AFTER
        stage.answer(ids[0])
        await stage.until_status(ids[0], Status.SUCCEEDED)
        await anyio.sleep(0.1)
        assert [(await stage.entry(id)).status for id in ids[1:]] == [Status.QUEUED] * 3
        stage.functions["one"] = removed
        await until(lambda: ids[1] in stage.running)
        del stage.functions["one"]
        monkeypatch.setattr(module, "GONE_AFTER", 0.05)
        stage.answer(ids[1])
        for id in ids[2:]:
            assert (await stage.until_status(id, Status.FAILED)).code == 404


def test_capacity() -> None:
    """What its workers take at once."""
    sync = function("a", max_workers=3, concurrency=5)
    assert capacity(sync) == 3
    assert capacity(msgspec.structs.replace(sync, kind="async")) == 15


@given(number=integers(0, 1000), workers=integers(1, 100), hosts=integers(1, 20))
def test_capacity_of_several_hosts(number: int, workers: int, hosts: int) -> None:
    """Together what the workers take, so that none of them is claimed before it can be run."""
    one = msgspec.structs.replace(function("a", max_workers=workers), id=number)
    places = [capacity(one, Share(index, hosts)) for index in range(hosts)]
    assert sum(places) == workers
    assert max(places) - min(places) <= 1


async def accepted(stage: Stage, **wishes: Any) -> bool:
    """Whether one more call is taken."""
    try:
        await stage.submit("one", **wishes)
    except Overloaded:
        return False
    return True


async def test_a_queue_that_another_host_has_emptied_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no place himself need not wait for his next look to know that others wait no more."""
    one = msgspec.structs.replace(function("one", max_workers=1, max_queued=1), id=2)
    async with playing(tmp_path, Share(0, 2), one=one) as runs, playing(tmp_path, Share(1, 2), one=one) as queues:
        first = await runs.submit("one")
        waiting = await queues.submit("one")
        with pytest.raises(Overloaded):
            await queues.submit("one")
        monkeypatch.setattr(module, "LOOK_EVERY", 1e6)
        await until(lambda: first in runs.running)
        runs.answer(first)
        await until(lambda: waiting in runs.running)
        queues.dispatcher._backlog = {("demo", "one"): 1}  # as it was when it looked last
        with anyio.fail_after(20):
            while not await accepted(queues):  # what is known of others is some milliseconds old
                await anyio.sleep(0.005)

        assert not queues.begun


async def test_what_was_claimed_as_the_host_began_to_end_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never begun: the next host begins it, and nobody says that it was interrupted."""
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        first, second = [await stage.submit("one") for _ in range(2)]
        await until(lambda: first in stage.running)
        claim, claimed = stage.journal.claim, anyio.Event()

        async def claiming(wanted: Any) -> Any:
            claims = await claim(wanted)
            stage.dispatcher.pause()
            claimed.set()
            return claims

        monkeypatch.setattr(stage.journal, "claim", claiming)
        stage.answer(first)
        await claimed.wait()
    async with playing(tmp_path) as stage:
        entry = await stage.entry(second)
        assert (entry.status, entry.attempt) == (Status.QUEUED, 0)


async def test_a_place_that_a_repeated_call_did_not_need_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came meanwhile, and found it taken, is not left waiting for the next look at the journal."""
    monkeypatch.setattr(module, "LOOK_EVERY", 1000.0)
    async with playing(tmp_path, one=function("one", max_workers=1)) as stage:
        first = await stage.submit("one", idempotency_key="key")
        await until(lambda: first in stage.running)
        stage.answer(first)
        await stage.until_status(first, Status.SUCCEEDED)
        append, appended = stage.journal.append, anyio.Event()

        async def append_and_tell(submission: Submission, told: Told, claim: bool) -> None:
            receipt = await append(submission, claim=claim)
            if receipt.repeated:
                await appended.wait()
            told.set_result(receipt)

        def arriving(submission: Submission, told: Told, *, claim: bool = False) -> None:
            tasks.start_soon(append_and_tell, submission, told, claim)

        monkeypatch.setattr(stage.journal, "arrive", arriving)
        call = Call(id=stage.ids.next(), label="again", space="demo", name="one", body=(b"{}",))
        async with anyio.create_task_group() as tasks:
            repeat = Submission(call, idempotency_key="key")
            tasks.start_soon(stage.dispatcher.accept, repeat, stage.functions["one"])
            await until(lambda: stage.dispatcher._places["demo", "one"])
            second = await stage.submit("one")
            await stage.until_status(second, Status.QUEUED)
            await until(lambda: not stage.dispatcher._wake.is_set())
            appended.set()
        await until(lambda: second in stage.running)
