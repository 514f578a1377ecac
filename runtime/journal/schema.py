"""The tables of a journal file, their versions, and the way from an older one to the newest.

Called by `files.py` whenever a journal is opened for writing.

A step of `MIGRATIONS`, once released, is never changed: a new version is a new step at the end.
"""

from __future__ import annotations

import sqlite3

from ..errors import JournalError

APPLICATION_ID = 0x53504A31  # "SPJ1": what `file` and others can tell a journal by

# What `calls.state` holds. A delayed call becomes ready when its time has come; clients see both as queued.
DELAYED, READY, RUNNING, SUCCEEDED, FAILED, CANCELLED = range(6)
# What `calls.callback` holds.
NO_CALLBACK, WAITING, PENDING, DELIVERED, DEAD = range(5)

# `calls` is the hot table: what is looked at and changed again and again, and nothing long. What a caller sent and
# what a function answered are in tables of their own, which are written once and read by id. Most indexes are
# partial, so that what they cost depends on the calls in that state, and not on how many are finished.
# `calls.told`: whether all state events are rows of `events`; if not, they follow from the times in `calls`.
_FIRST = (
    "CREATE TABLE names (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
    """CREATE TABLE calls (
        id INTEGER PRIMARY KEY,
        space INTEGER NOT NULL,
        name INTEGER NOT NULL,
        state INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        owner INTEGER,
        cancel INTEGER NOT NULL DEFAULT 0,
        told INTEGER NOT NULL DEFAULT 0,
        accepted_at REAL NOT NULL,
        run_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        code INTEGER,
        error_code TEXT,
        seconds REAL,
        callback INTEGER NOT NULL,
        callback_at REAL,
        callback_attempts INTEGER NOT NULL DEFAULT 0,
        callback_owner INTEGER,
        label TEXT,
        trigger TEXT NOT NULL,
        idempotency_key TEXT,
        schedule_id INTEGER NOT NULL,
        scheduled_time REAL NOT NULL,
        callback_url TEXT,
        callback_error TEXT,
        progress REAL,
        progress_message TEXT NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX calls_list ON calls (space, name, id)",
    "CREATE INDEX calls_accepted ON calls (space, name, accepted_at)",
    "CREATE INDEX calls_ready ON calls (space, name, priority DESC, id) WHERE state = 1",
    "CREATE INDEX calls_delayed ON calls (run_at, id) WHERE state = 0",
    "CREATE INDEX calls_running ON calls (owner, cancel, id) WHERE state = 2",
    "CREATE INDEX calls_failed ON calls (space, name, id) WHERE state = 4",
    "CREATE INDEX calls_cancelled ON calls (space, name, id) WHERE state = 5",
    "CREATE INDEX calls_finished ON calls (space, finished_at, id) WHERE finished_at IS NOT NULL",
    "CREATE INDEX calls_pending ON calls (callback_at, id) WHERE callback = 2 AND callback_owner IS NULL",
    "CREATE INDEX calls_delivering ON calls (callback_owner) WHERE callback_owner IS NOT NULL",
    "CREATE INDEX calls_dead ON calls (space, name, id) WHERE callback = 4",
    "CREATE INDEX calls_key ON calls (space, name, idempotency_key, id) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX calls_triggered ON calls (space, name, trigger, id) WHERE trigger <> 'http'",
    """CREATE TABLE requests (
        id INTEGER PRIMARY KEY, method BLOB, path BLOB, query BLOB, headers BLOB, body BLOB, timeout REAL
    )""",
    """CREATE TABLE outcomes (
        id INTEGER PRIMARY KEY, code INTEGER NOT NULL, headers BLOB, body BLOB, invoked INTEGER NOT NULL,
        seconds REAL NOT NULL, error_code TEXT
    )""",
    """CREATE TABLE events (
        id INTEGER NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (id, number)
    ) WITHOUT ROWID""",
    """CREATE TABLE keys (
        space INTEGER NOT NULL, name INTEGER NOT NULL, key TEXT NOT NULL, at REAL NOT NULL,
        id INTEGER NOT NULL, label TEXT NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (space, name, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX keys_age ON keys (at)",
    "CREATE TABLE schedules (id INTEGER PRIMARY KEY, fired REAL NOT NULL)",
    "CREATE TABLE owners (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, expires REAL NOT NULL)",
)

# What is due of one function, so that no backlog of another one has to be gone through.
_SECOND = (
    """CREATE INDEX calls_pending_of ON calls (space, name, callback_at, id)
        WHERE callback = 2 AND callback_owner IS NULL""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest version, in one transaction. JournalError where it is not ours, or newer."""
    connection.execute("BEGIN")  # one look: another process may be at it just now
    try:
        if _version(connection, path) == len(MIGRATIONS):
            return
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[_version(connection, path) :]:  # again: another host may have been faster
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: str) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID and (application or version or _has_tables(connection)):
        raise JournalError(
            f"{path} is a database, but not a journal of this program. Move it away, or set another `state` folder."
        )
    if version > len(MIGRATIONS):
        raise JournalError(
            f"{path} was written by a newer version of this program (journal version {version}; this one knows "
            f"{len(MIGRATIONS)}). Update this program, or set another `state` folder."
        )
    return version


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
