"""Who has locked a file."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runtime.journal import holders


def test_who_has_locked_a_file(tmp_path: Path) -> None:
    """By its number and its command; of one that nobody has locked, nothing is known."""
    path = tmp_path / "turn"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked = holders.holder_of(path)
        fcntl.flock(file, fcntl.LOCK_UN)

        assert locked.startswith(f"process {os.getpid()} (")
        assert "hangs" in locked
        assert holders.holder_of(path) == "another process"


def test_who_writes_to_a_journal(tmp_path: Path) -> None:
    """Not who reads it."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE some (x)")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM some").fetchall()
        reading = holders.writer_of(path)
        connection.execute("INSERT INTO some VALUES (1)")

        assert reading == "another process"
        assert holders.writer_of(path).startswith(f"process {os.getpid()} (")


def test_where_the_kernel_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is some process, then."""
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError))

    assert holders.holder_of(tmp_path / "missing") == "another process"
    assert holders._described("77") == "process 77"
