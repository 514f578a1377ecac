"""Outcomes on their way from a real journal to receivers that do what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time

import anyio
import pytest

from runtime import deliveries as module
from runtime.callbacks import Again, Dead, Delivered
from runtime.calls import Call, CallbackState, CallIds, Delivery, Entry, Outcome, Submission
from runtime.deliveries import Deliveries
from runtime.errors import JournalError
from runtime.journal import open_journal

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
OUTCOME = Outcome(200, b"", b"1", invoked=True, seconds=0.1)


class Stage:
    """Deliveries at work; each waits until the test says how it ends."""

    def __init__(self, state: Path) -> None:
        self.ids = CallIds()
        self.journal = open_journal("sqlite", state)
        self.deliveries = Deliveries(self.journal, self._deliver)
        self.under_way: dict[int, Delivery] = {}
        self.attempts: list[tuple[int, int]] = []
        self._ends: dict[int, Delivered | Again | Dead | Exception] = {}
        self._ended = anyio.Event()

    async def _deliver(self, delivery: Delivery) -> Delivered | Again | Dead:
        id = delivery.entry.id
        self.under_way[id] = delivery
        self.attempts.append((id, delivery.attempt))
        try:
            while id not in self._ends:
                await self._ended.wait()
            end = self._ends.pop(id)
            if isinstance(end, Exception):
                raise end
            return end
        finally:
            self.under_way.pop(id, None)

    def end(self, id: int, end: Delivered | Again | Dead | Exception) -> None:
        """One that is under way ends so."""
        self._ends[id] = end
        self._ended.set()
        self._ended = anyio.Event()

    async def call(self, name: str = "a") -> int:
        """A call that has ended, with a callback."""
        id = self.ids.next()
        call = Call(id=id, label=str(id), space="demo", name=name)
        await self.journal.append(Submission(call, callback_url="http://localhost/"), claim=True)
        assert await self.journal.complete(id, OUTCOME)
        self.deliveries.wake()
        return id

    async def until_under_way(self, *ids: int) -> None:
        """Wait for the beginning of deliveries."""
        with anyio.fail_after(PATIENCE):
            while not self.under_way.keys() >= set(ids):
                await anyio.sleep(0.002)

    async def until(self, id: int, state: CallbackState) -> Entry:
        """Wait for what the journal says of a callback."""
        with anyio.fail_after(PATIENCE):
            while (entry := await self.journal.get(id)) is None or entry.callback is not state:
                await self.journal.changed(id, 0.05)
        return entry


@asynccontextmanager
async def playing(state: Path) -> AsyncIterator[Stage]:
    """Deliveries at work."""
    stage = Stage(state)
    await stage.journal.open()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.deliveries.run)
            yield stage
            tasks.cancel_scope.cancel()
    finally:
        await stage.journal.close()


async def test_an_outcome_is_delivered(tmp_path: Path) -> None:
    """As it was recorded, once."""
    async with playing(tmp_path) as stage:
        id = await stage.call()
        await stage.until_under_way(id)
        assert stage.deliveries.busy
        assert stage.under_way[id].outcome == OUTCOME
        stage.end(id, Delivered())
        await stage.until(id, CallbackState.DELIVERED)
        assert stage.attempts == [(id, 1)]


async def test_it_is_tried_again_when_its_time_comes(tmp_path: Path) -> None:
    """And given up when that is said."""
    async with playing(tmp_path) as stage:
        id = await stage.call()
        await stage.until_under_way(id)
        stage.end(id, Again(time() + 0.05, "not now"))
        with anyio.fail_after(PATIENCE):
            while (id, 2) not in stage.attempts:
                await anyio.sleep(0.002)
        stage.end(id, Dead("never"))
        entry = await stage.until(id, CallbackState.DEAD)
        assert entry.callback_error == "never"


async def test_one_under_way_as_the_host_ends_is_the_next_ones(tmp_path: Path) -> None:
    """Its receiver may see it twice."""
    async with playing(tmp_path) as stage:
        id = await stage.call()
        await stage.until_under_way(id)
    async with playing(tmp_path) as stage:
        await stage.until_under_way(id)
        stage.end(id, Delivered())
        await stage.until(id, CallbackState.DELIVERED)


async def test_a_journal_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it has arrived is noted later, also if the host ends meanwhile."""
    async with playing(tmp_path) as stage:
        delivered, failures = stage.journal.delivered, 0

        async def failing(id: int) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise JournalError("the disk is full")
            await delivered(id)

        monkeypatch.setattr(stage.journal, "delivered", failing)
        monkeypatch.setattr(module, "RESPITE", PATIENCE)
        id = await stage.call()
        await stage.until_under_way(id)
        stage.end(id, Delivered())
        with anyio.fail_after(PATIENCE):
            while not failures:
                await anyio.sleep(0.002)
    async with playing(tmp_path) as stage:
        entry = await stage.journal.get(id)
        assert entry is not None
        assert entry.callback is CallbackState.DELIVERED


async def test_what_fails_in_the_host_is_given_up_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail for ever."""
    monkeypatch.setattr(module, "AFTER_FAILURE", 0.0)
    async with playing(tmp_path) as stage:
        id = await stage.call()
        for attempt in range(1, module.MOST_FAILURES + 1):
            with anyio.fail_after(PATIENCE):
                while (id, attempt) not in stage.attempts:
                    await anyio.sleep(0.002)
            stage.end(id, ValueError("broken"))
        entry = await stage.until(id, CallbackState.DEAD)
        assert entry.callback_error is not None
        assert "broken" in entry.callback_error


async def test_a_receiver_that_hangs_does_not_take_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function has a share of them, whatever waits."""
    monkeypatch.setattr(module, "AT_ONCE", 8)
    monkeypatch.setattr(module, "OF_EACH", 2)
    async with playing(tmp_path) as stage:
        hanging = [await stage.call("hangs") for _ in range(20)]
        await stage.until_under_way(*hanging[:2])
        other = await stage.call("other")
        await stage.until_under_way(other)
        assert set(stage.under_way) == {*hanging[:2], other}
        stage.end(hanging[0], Again(time() + 3600, "it hung"))
        await stage.until_under_way(hanging[2])


async def test_one_under_way_is_not_begun_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for it to be delivered again meanwhile is served by it."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    async with playing(tmp_path) as stage:
        id = await stage.call()
        await stage.until_under_way(id)
        assert await stage.journal.redeliver(id, time())
        stage.deliveries.wake()
        await anyio.wait_all_tasks_blocked()
        other = await stage.call("other")
        await stage.until_under_way(other)
        assert [attempt for attempt in stage.attempts if attempt[0] == id] == [(id, 1)]
        stage.end(id, Delivered())
        await stage.until(id, CallbackState.DELIVERED)
        assert not stage.under_way.keys() & {id}
