"""A long history for `durable`: the one finished call in a journal, many times over, each a little older."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

APART = 0.01  # seconds between two calls
FINAL = (3, 4, 5)  # succeeded, failed, cancelled: runtime/journal/schema.py


def fill(journal: Path, count: int) -> None:
    """Add `count` finished calls to a journal that nobody has open."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        wait_for_end(connection)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for table in ("calls", "requests", "outcomes"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(older(column) for column in columns)
            connection.execute(
                f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
                f" INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM numbers, {table} LIMIT ?",
                (count, count),
            )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def older(column: str) -> str:
    """The value of a column in the n-th copy."""
    if column == "id":
        return "id - n"
    return f"{column} - n * {APART}" if column.endswith("_at") and column != "callback_at" else column


def wait_for_end(connection: sqlite3.Connection) -> None:
    """Until the one call that was submitted is recorded as finished."""
    deadline = time.monotonic() + 30
    while not connection.execute(f"SELECT 1 FROM calls WHERE state IN {FINAL}").fetchone():
        if time.monotonic() > deadline:
            raise OSError("the first call of the history did not end")
        time.sleep(0.05)
