"""The journal's tables: older files come to the newest version, and every statement finds its index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtime.calls import Status
from runtime.journal import Query, queries, rows, schema, statements
from runtime.journal.sqlite import SQLiteJournal
from tests.contract.journal_stores import F, submission


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.migrate(connection, "here")
        yield connection


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


@pytest.mark.anyio
async def test_an_older_file_is_brought_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is in it, by the steps that it lacks."""
    path = tmp_path / "journal.db"
    journal = SQLiteJournal(path)
    await journal.open()
    await journal.append(submission(1))
    await journal.close()
    old = version(path)
    step = ("ALTER TABLE calls ADD COLUMN colour TEXT", "UPDATE calls SET colour = 'red'")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    await journal.open()
    waiting = await journal.waiting()
    await journal.close()

    assert version(path) == old + 1
    assert waiting == {F: 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT colour FROM calls").fetchall() == [("red",)]


def test_a_migration_is_whole_or_absent(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of its steps fails, the file is as it was."""
    steps = (*schema.MIGRATIONS, ("CREATE TABLE more (x)",), ("CREATE TABLE calls (x)",))
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    before = connection.execute("SELECT * FROM sqlite_master").fetchall()

    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, "here")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps) - 2,)
    assert connection.execute("SELECT * FROM sqlite_master").fetchall() == before


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """How SQLite would go about it."""
    parameters = (1,) * statement.count("?")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]


STATEMENTS = {
    name: text
    for module in (statements, queries)
    for name, text in vars(module).items()
    if name.isupper() and isinstance(text, str) and text.startswith(("SELECT", "UPDATE", "DELETE"))
} | {f"FORGET {index}": text for index, text in enumerate(statements.FORGET)}

# These go through all calls of one state, of which there are never many, in an index of that state alone.
OF_ONE_STATE = {"WAITING", "_COUNTS", "_DELAYED", "NEXT_CALL", "NEXT_DELIVERY"}
SMALL = re.compile("SCAN (names|owners|json_each|CONSTANT ROW|.*SUBQUERY|.subquery)")
PARTIAL = re.compile("INDEX calls_(ready|delayed|running|pending|dead|delivering)")


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_goes_through_all_calls(connection: sqlite3.Connection, name: str) -> None:
    """So what it costs does not grow with the calls that are finished."""
    scans = [step for step in plan(connection, STATEMENTS[name]) if step.startswith("SCAN") and not SMALL.match(step)]
    if name in OF_ONE_STATE:
        scans = [step for step in scans if not PARTIAL.search(step)]

    assert scans == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(space="demo", name="f"),
        Query(statuses=list(Status)),
        Query(dead_letters=True, statuses=[Status.FAILED]),
        Query(trigger="schedule"),
        Query(idempotency_key="k", before=7),
        Query(since=0.0, statuses=[Status.SUCCEEDED]),
        Query(until=1.0, trigger="http"),
    ],
)
async def test_every_listing_has_its_index(tmp_path: Path, query: Query) -> None:
    """The index that a listing is told to use is one that SQLite can use for it."""
    journal = SQLiteJournal(tmp_path / "journal.db")
    await journal.open()
    await journal.append(submission(1))
    await journal.close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        names = rows.Names(connection)
        entries = queries.find(connection, names, query)

    assert [entry.id for entry in entries] in ([], [1])
