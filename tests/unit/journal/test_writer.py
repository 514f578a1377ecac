"""Group commit: many operations share a commit, and each of them stands or falls by itself."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runtime.calls import Status
from runtime.errors import JournalError, KeyReused
from runtime.journal import IdTaken, Query, writer
from runtime.journal.lane import Operation
from runtime.journal.sqlite import SQLiteJournal
from runtime.journal.writer import REOPEN_SECONDS
from tests.contract.journal_stores import OK, F, SQLiteStore, submission

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path)


@pytest.fixture
async def journal(store: SQLiteStore) -> AsyncIterator[SQLiteJournal]:
    journal = store.journal()
    await journal.open()
    yield journal
    await journal.close()


class Gate:
    """Holds the writer's thread in the middle of a batch, so that more operations come up meanwhile."""

    def __init__(self, journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        check = journal._writer._check

        def held(*, after: bool = False) -> None:
            if after:
                self.reached.set()
                self.opened.wait(30)
            check(after=after)

        monkeypatch.setattr(journal._writer, "_check", held)


async def batch(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch, *operations: Any) -> list[Any]:
    """What becomes of operations that are all in one batch."""
    gate = Gate(journal, monkeypatch)
    first = asyncio.ensure_future(journal.fired(1, 1.0))
    await asyncio.to_thread(gate.reached.wait, 30)
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_operations_share_commits(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that came up while the thread was busy goes into the next commit."""
    before = journal._writer.commits
    await batch(journal, monkeypatch, *(journal.append(submission(id), claim=True) for id in range(1, 301)))
    await asyncio.gather(*(journal.complete(id, OK) for id in range(1, 301)))

    assert journal._writer.commits - before <= 4
    assert len(await journal.find(Query(statuses=[Status.SUCCEEDED], limit=1000))) == 300


async def test_many_awaiters_share_commits_by_themselves(journal: SQLiteJournal) -> None:
    """Without any help, a hundred tasks that append ten calls each need far fewer commits than calls."""
    before = journal._writer.commits

    async def appending(start: int) -> None:
        for id in range(start, start + 10):
            await journal.append(submission(id))

    await asyncio.gather(*(appending(start) for start in range(1, 1001, 10)))

    assert await journal.waiting() == {F: 1000}
    assert journal._writer.commits - before <= 200


async def test_a_refused_operation_fails_alone(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken id, a reused key and what SQLite cannot hold leave the rest of their batch as it is."""
    await journal.append(submission(1, idempotency_key="k"))
    results = await batch(
        journal,
        monkeypatch,
        journal.append(submission(2)),
        journal.append(submission(1)),
        journal.append(submission(3, idempotency_key="k", body=b"another")),
        journal.append(submission(4, label="\ud800")),
        journal.append(submission(7, run_at=float("nan"))),
        journal.append(submission(5, function=("new", "one"), callback_url="\ud800")),
        journal.append(submission(6, function=("new", "two"))),
        journal.complete(1, OK),
    )  # fmt: skip

    assert [type(each) for each in results[1:6]] == [IdTaken, KeyReused, JournalError, JournalError, JournalError]
    assert [results[0].id, results[6].id, results[7]] == [2, 6, False]
    assert [entry.id for entry in await journal.find(Query())] == [6, 2, 1]
    assert await journal.waiting() == {F: 2, ("new", "two"): 1}


async def test_one_is_refused_among_many(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had been inserted together with it is undone, and then done without it."""
    await journal.append(submission(150))
    results = await batch(journal, monkeypatch, *(journal.append(submission(id)) for id in range(1, 201)))

    assert [id for id, each in enumerate(results, 1) if isinstance(each, IdTaken)] == [150]
    assert await journal.waiting() == {F: 200}
    assert len(await journal.find(Query(limit=1000))) == 200


async def test_a_failed_commit_fails_its_batch(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it has happened, everybody is told, and the next batch is as good as ever."""
    await journal.append(submission(1, function=("old", "one")), claim=True)
    await run_in_writer(journal, f"PRAGMA max_page_count = {pages(journal)}")
    results = await batch(
        journal,
        monkeypatch,
        *(journal.append(submission(id, function=("new", "one"), body=bytes(100_000))) for id in range(2, 12)),
        journal.complete(1, OK),
    )
    await run_in_writer(journal, "PRAGMA max_page_count = 1000000")
    failed = await journal.get(1), await journal.get(2)
    await journal.append(submission(2, function=("new", "one")))

    assert {type(each) for each in results} == {JournalError}
    assert "disk is full" in str(results[0])
    assert failed[0] is not None
    assert (failed[0].status, failed[1]) == (Status.RUNNING, None)
    assert await journal.complete(1, OK)
    assert await journal.waiting() == {("new", "one"): 1}
    assert [(entry.space, entry.name) for entry in await journal.find(Query())] == [("new", "one"), ("old", "one")]


def pages(journal: SQLiteJournal) -> int:
    """How long the file is."""
    with closing(sqlite3.connect(journal._writer._path)) as connection:
        count: int = connection.execute("PRAGMA page_count").fetchone()[0]
    return count


async def run_in_writer(journal: SQLiteJournal, statement: str) -> None:
    """SQLite connections are for the thread that made them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(writer._SINGLY, "test", lambda batch, _: batch.execute(statement).fetchall())
        await journal._writing.ask("test")


async def test_an_unforeseen_error_ends_nothing(
    store: SQLiteStore, journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours fails its batch with JournalError, and the thread goes on."""
    monkeypatch.setitem(writer._SINGLY, "fired", lambda *_: 1 / 0)
    with pytest.raises(JournalError, match="ZeroDivisionError"):
        await journal.fired(1, 1.0)
    monkeypatch.undo()
    store.clock.advance(REOPEN_SECONDS)
    await journal.fired(1, 1.0)

    assert await journal.last_fired(1) == 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 127, 200])
async def test_any_number_is_inserted(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The rows of a batch are inserted many at a time, and all of them."""
    results = await batch(journal, monkeypatch, *(journal.append(submission(id)) for id in range(1, count + 1)))

    assert [receipt.id for receipt in results] == list(range(1, count + 1))
    assert await journal.waiting() == {F: count}


async def test_a_cancelled_awaiter_cancels_nothing_of_the_others(
    journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not begun for it is not done; the rest of the batch is."""
    gate = Gate(journal, monkeypatch)
    first = asyncio.ensure_future(journal.fired(1, 1.0))
    await asyncio.to_thread(gate.reached.wait, 30)
    tasks = [asyncio.ensure_future(journal.append(submission(id))) for id in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)

    assert tasks[1].cancelled()
    assert [entry.id for entry in await journal.find(Query())] == [3, 1]


async def test_what_came_just_too_late_is_given_back(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled when the answer is there, but has not been heard, leaves nothing in its hands."""
    await journal.append(submission(1))
    task = asyncio.ensure_future(journal.claim({F: 1}))
    answer = journal._writing._answer
    given: list[Any] = []

    def answer_and_cancel(operation: Operation) -> None:
        answer(operation)
        given.append(operation.result)
        task.cancel()

    monkeypatch.setattr(journal._writing, "_answer", answer_and_cancel)
    await asyncio.wait((task,))
    monkeypatch.undo()
    await journal.fired(1, 1.0)
    (claim,) = await journal.claim({F: 1})

    assert task.cancelled()
    assert given[0][0].entry.id == 1
    assert claim.call.attempt == 1


async def test_notes_are_bounded(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the memory for notes is lost; when they have been written there is room again."""
    monkeypatch.setattr("runtime.journal.sqlite.MAX_NOTED", 1000)
    await journal.append(submission(1), claim=True)
    for _ in range(100):
        journal.note(1, "log", {"text": "x" * 100})
    held = len(journal._notes)
    await journal.fired(1, 1.0)
    journal.note(1, "log", {"text": "again"})
    await journal.fired(1, 2.0)
    events = await journal.events(1)

    assert 5 <= held <= 15
    assert len(events) == 2 + held + 1
    assert journal._noted == 0


async def test_a_file_that_is_mostly_empty_becomes_smaller(
    store: SQLiteStore, journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its calls are forgotten; what little is empty is kept for the next ones."""
    monkeypatch.setattr("runtime.journal.deliveries.SLACK", 20)
    await asyncio.gather(*(journal.append(submission(id, body=bytes(9000)), claim=True) for id in range(1, 301)))
    await asyncio.gather(*(journal.complete(id, OK) for id in range(1, 301)))
    full = pages(journal)
    store.clock.advance(10)
    forgotten = await journal.prune(F[0], before=0, keep=290)
    kept = pages(journal)
    forgotten += await journal.prune(F[0], before=store.clock.now, keep=0)
    await journal.append(submission(400))

    assert forgotten == 300
    assert kept == full > 600
    assert pages(journal) < 150
    assert [entry.id for entry in await journal.find(Query())] == [400]


async def test_an_older_file_stays_as_large(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made before that can only use its empty pages again."""
    monkeypatch.setattr("runtime.journal.deliveries.SLACK", 20)
    store.path.parent.mkdir()
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("PRAGMA journal_mode = WAL")
    journal = store.journal()
    await journal.open()
    await asyncio.gather(*(journal.append(submission(id, body=bytes(9000)), claim=True) for id in range(1, 101)))
    await asyncio.gather(*(journal.complete(id, OK) for id in range(1, 101)))
    full = pages(journal)
    store.clock.advance(10)
    forgotten = await journal.prune(F[0], before=store.clock.now, keep=0)
    after = pages(journal)
    await journal.close()

    assert forgotten == 100
    assert after == full
