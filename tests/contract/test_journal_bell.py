"""Several owners on one store, each of which rings a bell that the others hear: nobody has to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from runtime.calls import Status
from runtime.journal import Journal, News, lookout
from tests.contract.journal_stores import OK, STORES, F, SQLiteStore, soon, submission

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


class Peer:
    """A journal whose bell the others hear, and what it heard of theirs."""

    def __init__(self, store: SQLiteStore) -> None:
        self.journal: Journal = store.journal(bell=self)
        self.journal.listen(self._learn)
        self.others: list[Peer] = []
        self.rung: list[bytes] = []
        self.deaf = False
        self._news: list[News] = []
        self._told = asyncio.Event()

    def ring(self, payload: bytes) -> None:
        self.rung.append(payload)
        for other in self.others:
            if not other.deaf:
                other.journal.heard(payload)

    def _learn(self, news: News) -> None:
        self._news.append(news)
        self._told.set()

    async def until(self, condition: Callable[[News], bool]) -> None:
        """Wait until it was told of something."""

        async def told() -> None:
            while not any(map(condition, self._news)):
                self._told.clear()
                await self._told.wait()

        await soon(told())


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SQLiteStore:
    return STORES[request.param](tmp_path)


@asynccontextmanager
async def peers(store: SQLiteStore, count: int = 2) -> AsyncIterator[list[Peer]]:
    """That many, all open."""
    everyone = [Peer(store) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for each in everyone:
            each.others = [other for other in everyone if other is not each]
            await each.journal.open()
            stack.push_async_callback(each.journal.close)
        yield everyone


async def test_changed_hears_of_what_another_owner_did(store: SQLiteStore) -> None:
    """Long before its timeout, and it is on disk then."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1), claim=True)
        entry = await two.journal.get(1)
        waiting = asyncio.create_task(two.journal.changed(1, 1000))
        await asyncio.sleep(0)
        await one.journal.complete(1, OK)
        await soon(waiting)
        after = await two.journal.get(1)

    assert entry is not None
    assert after is not None
    assert (entry.status, after.status) == (Status.RUNNING, Status.SUCCEEDED)


async def test_nothing_is_missed_between_reading_and_waiting(store: SQLiteStore) -> None:
    """What was rung after a task's last reading ends its wait at once."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1), claim=True)
        await two.journal.get(1)
        await asyncio.create_task(one.journal.complete(1, OK))
        await soon(two.journal.changed(1, 1000))

        assert two.journal is not one.journal


async def test_progress_is_heard(store: SQLiteStore) -> None:
    """What a call says of itself, too."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1), claim=True)
        await two.journal.get(1)
        waiting = asyncio.create_task(two.journal.changed(1, 1000))
        await asyncio.sleep(0)
        one.journal.note(1, "progress", {"fraction": 0.5, "message": "half"})
        await soon(waiting)
        entry = await two.journal.get(1)

    assert entry is not None
    assert entry.progress == 0.5


async def test_a_call_that_waits_is_heard_of(store: SQLiteStore) -> None:
    """By every other owner, and each that is told can claim it."""
    async with peers(store, 3) as [one, two, three]:
        assert await two.journal.waiting() == {}
        await one.journal.append(submission(1))
        await two.until(lambda news: news.calls)
        await three.until(lambda news: news.calls)
        seen = await two.journal.waiting()
        claims = await two.journal.claim({F: 5}), await three.journal.claim({F: 5})

    assert seen == {F: 1}
    assert [[claim.entry.id for claim in each] for each in claims] == [[1], []]


async def test_a_retry_is_heard_of(store: SQLiteStore) -> None:
    """What is queued again may be run by another owner."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1), claim=True)
        await one.journal.retry(1, OK, 0)
        await two.until(lambda news: news.calls)

        assert await two.journal.waiting() == {F: 1}


async def test_what_one_starts_at_once_bothers_nobody(store: SQLiteStore) -> None:
    """A call that is claimed as it is appended is no news: nobody can wait for it yet."""
    async with peers(store) as [one, _]:
        for id in range(1, 20):
            await one.journal.append(submission(id), claim=True)

        assert one.rung == []


async def test_a_cancel_is_heard_of(store: SQLiteStore) -> None:
    """By the owner that runs the call."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1), claim=True)
        assert await one.journal.to_cancel() == []
        assert await two.journal.cancel(1) is Status.RUNNING
        await one.until(lambda news: news.cancels)

        assert await one.journal.to_cancel() == [1]


async def test_a_callback_that_is_due_is_heard_of(store: SQLiteStore) -> None:
    """Whoever has room may deliver it."""
    async with peers(store) as [one, two]:
        await one.journal.append(submission(1, callback_url=URL), claim=True)
        await one.journal.complete(1, OK)
        await two.until(lambda news: news.callbacks)

        assert [delivery.entry.id for delivery in await two.journal.claim_deliveries(5)] == [1]


async def test_of_very_many_all_are_meant(store: SQLiteStore) -> None:
    """What is rung stays short, and whoever waits for one of them is woken all the same."""
    async with peers(store) as [one, two]:
        ids = range(1, 601)
        await asyncio.gather(*(one.journal.append(submission(id), claim=True) for id in ids))
        await two.journal.get(600)
        waiting = [asyncio.create_task(two.journal.changed(id, 1000)) for id in (1, 300, 600)]
        await asyncio.sleep(0)
        await asyncio.gather(*(one.journal.complete(id, OK) for id in ids))
        await soon(asyncio.gather(*waiting))

        assert max(map(len, one.rung)) < 4096


async def test_a_ring_that_cannot_be_read_may_mean_anything(store: SQLiteStore) -> None:
    """So everybody who waits is woken."""
    async with peers(store) as [one, _]:
        await one.journal.append(submission(1), claim=True)
        waiting = asyncio.create_task(one.journal.changed(1, 1000))
        await asyncio.sleep(0)
        one.journal.heard(b"\xc1 what?")
        await soon(waiting)

        await one.until(lambda news: news.calls and news.cancels and news.callbacks)


async def test_a_bell_that_nobody_hears_loses_nothing(store: SQLiteStore) -> None:
    """It is a hint: what was not heard is found by looking."""
    async with peers(store) as [one, two]:
        two.deaf = True
        await one.journal.append(submission(1))
        store.clock.advance(1)
        seen = await two.journal.waiting()

        assert seen == {F: 1}


async def test_a_closed_journal_hears_nothing(store: SQLiteStore) -> None:
    """Nor does it mind."""
    async with peers(store) as [one, two]:
        await two.journal.close()
        await one.journal.append(submission(1))
        await asyncio.create_task(one.journal.complete(1, OK))

        assert one.rung != []
        assert two._news == []


async def test_changed_finds_what_was_not_heard(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By looking: also a second change, and of several calls those that changed."""
    monkeypatch.setattr(lookout, "EVERY", 0.01)
    async with peers(store) as [one, two]:
        two.deaf = True
        for id in (1, 2):
            await one.journal.append(submission(id), claim=True)

        async def until(id: int, count: int) -> None:
            while len(await two.journal.events(id)) < count:
                await two.journal.changed(id, 1000)

        first = asyncio.create_task(until(1, 3)), asyncio.create_task(until(2, 5))
        one.journal.note(1, "log", {"text": "one"})
        await soon(first[0])
        for text in ("a", "b", "c"):
            one.journal.note(2, "log", {"text": text})
            await asyncio.sleep(0.02)
        await soon(first[1])

        assert [event.data.get("text") for event in await two.journal.events(2)][2:] == ["a", "b", "c"]


async def test_nothing_is_read_for_who_waits_for_nothing_new(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking is asking for one number; and it ends with the waiting."""
    monkeypatch.setattr(lookout, "EVERY", 0.001)
    asked: list[tuple[object, object]] = []
    many = asyncio.Event()
    async with peers(store, 1) as [one]:
        await one.journal.append(submission(1), claim=True)
        watching = one.journal._lookout  # type: ignore[attr-defined]
        ask = watching._ask

        async def counted(kind: str, question: object) -> object:
            version, marks = await ask(kind, question)
            asked.append((version, marks))
            if len(asked) == 10:
                many.set()
            return version, marks

        watching._ask = counted
        await one.journal.get(1)
        waiting = [asyncio.create_task(one.journal.changed(1, 1000))]
        await soon(waiting[0])  # it is not known what was read
        await one.journal.get(1)
        waiting.append(asyncio.create_task(one.journal.changed(1, 1000)))
        await soon(many.wait())
        still = not waiting[1].done()
        one.journal.wake()
        woken = await soon(waiting[1])

    assert [marks for _, marks in asked[1:]] == [{}] * (len(asked) - 1)
    assert (still, woken) == (True, True)
