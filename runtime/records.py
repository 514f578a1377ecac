"""Durable records other than calls: what clients have created through a dialect, in an SQLite file of its own.

Opened by whoever keeps such records (`lessons.py`, `timetable.py`), each in its own file with its own tables. The calls
are in `journal/`, which is built for other numbers.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

import anyio
import anyio.to_thread

from .errors import RecordsError
from .whereabouts import make_folder

BUSY_SECONDS = 5.0  # how long another process may hold the lock
BUSY_STEP = 0.01

T = TypeVar("T")
Migrations = Sequence[Sequence[str]]

log = logging.getLogger("spaces.records")


class Records:
    """One file of records, made when it is first written to; several hosts may share it.

    Guarantee: what `change` has returned is on disk, as a whole; what it raises in has changed nothing. Work is done
    in a thread, one piece after the other.
    """

    def __init__(self, path: Path, migrations: Migrations) -> None:
        """`migrations`: the statements of each step from an empty file to the newest tables."""
        self._path = path
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None
        self._turn = anyio.Lock()

    @property
    def exist(self) -> bool:
        """Whether anything was ever recorded: the file is there."""
        return self._path.exists()

    async def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this in one transaction, and have it on disk. RecordsError, and whatever `work` raises."""
        async with self._turn:
            return await anyio.to_thread.run_sync(self._do, work, "BEGIN IMMEDIATE")

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Look things up, all as they are at one moment. RecordsError, and whatever `work` raises."""
        async with self._turn:
            return await anyio.to_thread.run_sync(self._do, work, "BEGIN")

    async def close(self) -> None:
        """Let go of the file."""
        with anyio.CancelScope(shield=True):
            async with self._turn:
                await anyio.to_thread.run_sync(self._close)

    def _do(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            connection = self._open()
            connection.execute(begin)
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise  # the caller's to understand
        except (sqlite3.Error, OSError) as error:
            self._close()
            log.error("%s cannot be used: %s", self._path, error)
            raise RecordsError(details={"cause": getattr(error, "sqlite_errorname", None) or str(error)}) from error
        return result

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._path.exists():
            return self._connection
        self._close()
        make_folder(self._path.parent)
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        os.chmod(self._path, 0o600)
        _keep_a_log(connection)
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = FAST")
        self._migrate(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(self._migrations):
            connection.execute("ROLLBACK")
            raise RecordsError(f"{self._path.name} was written by a newer version of this program; update this one")
        for step in self._migrations[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
        connection.execute("COMMIT")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side. While another host does the same, SQLite refuses at once: it does not wait."""
    give_up = monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > give_up:
                raise
            sleep(BUSY_STEP)
        else:
            return
