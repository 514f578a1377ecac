"""Records: what is changed is on disk as a whole or not at all, for this host and for others on the same file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from runtime import records as records_module
from runtime.errors import RecordsError
from runtime.records import Records

pytestmark = pytest.mark.anyio

FIRST = ("CREATE TABLE things (name TEXT PRIMARY KEY)",)
SECOND = ("ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 1",)


def add(name: str) -> Callable[[sqlite3.Connection], None]:
    return lambda connection: connection.execute("INSERT INTO things (name) VALUES (?)", (name,)) and None


def names(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM things ORDER BY name")]


async def test_what_is_recorded_is_there_for_the_next(tmp_path: Path) -> None:
    """The file is made when it is first needed, and nobody else on the machine reads it."""
    path = tmp_path / "state" / "things.db"
    records = Records(path, [FIRST])
    before = records.exist
    await records.change(add("a"))
    await records.close()
    other = Records(path, [FIRST])

    assert (before, other.exist) == (False, True)
    assert await other.read(names) == ["a"]
    assert path.stat().st_mode & 0o077 == 0
    await other.close()


async def test_a_file_that_another_host_is_making_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite refuses at once what both do: it is tried again, and not for ever."""
    path = tmp_path / "things.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    records = Records(path, [FIRST])
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(records_module, "sleep", lambda _: other.rollback())
    await records.change(add("a"))
    found = await records.read(names)
    await records.close()
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(records_module, "BUSY_SECONDS", 0)
    with pytest.raises(RecordsError):
        await records.change(add("b"))
    other.close()

    assert found == ["a"]


async def test_a_change_that_raises_changes_nothing(tmp_path: Path) -> None:
    """Not even what it had done until then."""
    records = Records(tmp_path / "things.db", [FIRST])
    await records.change(add("a"))

    def half(connection: sqlite3.Connection) -> None:
        add("b")(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await records.change(half)
    with pytest.raises(sqlite3.IntegrityError):
        await records.change(add("a"))
    assert await records.read(names) == ["a"]
    await records.close()


async def test_an_older_file_gets_the_newer_tables(tmp_path: Path) -> None:
    """With what is in it; a newer one than we know is left alone."""
    path = tmp_path / "things.db"
    old = Records(path, [FIRST])
    await old.change(add("a"))
    await old.close()
    new = Records(path, [FIRST, SECOND])
    sizes = await new.read(lambda connection: connection.execute("SELECT size FROM things").fetchall())
    await new.close()

    assert sizes == [(1,)]
    with pytest.raises(RecordsError, match="newer version"):
        await Records(path, [FIRST]).read(names)


async def test_two_hosts_share_a_file(tmp_path: Path) -> None:
    """Whatever either has written, both find."""
    one, two = (Records(tmp_path / "things.db", [FIRST]) for _ in range(2))
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon((one, two)[number % 2].change, add(f"{number:02}"))

    assert await one.read(names) == await two.read(names) == [f"{number:02}" for number in range(20)]
    await one.close()
    await two.close()


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """And left as it is."""
    path = tmp_path / "things.db"
    path.write_bytes(b"hello, I am a text" * 100)

    with pytest.raises(RecordsError) as raised:
        await Records(path, [FIRST]).read(names)
    assert raised.value.details == {"cause": "SQLITE_NOTADB"}
    assert path.read_bytes().startswith(b"hello")


@pytest.mark.parametrize("content", [b"hello, I am a text" * 100, b"newer"], ids=["no database", "newer"])
async def test_a_file_that_cannot_be_used_is_not_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """However often it is tried."""
    path = tmp_path / "things.db"
    if content == b"newer":
        newer = Records(path, [FIRST, SECOND])
        await newer.read(names)
        await newer.close()
    else:
        path.write_bytes(content)
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: made.append(connect(*args, **how)) or made[-1])

    with pytest.raises(RecordsError):
        await Records(path, [FIRST]).read(names)

    [connection] = made
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


async def test_a_file_that_was_deleted_is_made_anew(tmp_path: Path) -> None:
    """Its records are gone, and that is what whoever deleted it wanted."""
    records = Records(tmp_path / "things.db", [FIRST])
    await records.change(add("a"))
    for path in tmp_path.iterdir():
        path.unlink()

    assert await records.read(names) == []
    await records.close()
