"""Schedules that clients have created: kept on disk beside those of spaces.toml, until they are deleted.

Made by `host.py`; a dialect adds and removes them, `triggers/schedule` fires them. Stands on `records.py`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from .errors import BadRequest, RecordsError
from .records import Records
from .schedules import Schedule, read_cron

MOST = 1000
MOST_OF_ONE = 100  # schedules of one function

_MIGRATIONS = (
    (
        """CREATE TABLE schedules (
            id INTEGER PRIMARY KEY, function_id INTEGER NOT NULL, space TEXT NOT NULL, name TEXT NOT NULL,
            title TEXT NOT NULL, description TEXT, cron TEXT NOT NULL, data BLOB NOT NULL, session_id INTEGER NOT NULL,
            created_at REAL NOT NULL, key TEXT UNIQUE
        )""",
    ),
)
_COLUMNS = "id, function_id, space, name, title, description, cron, data, session_id, created_at, key"
_ALL = f"SELECT {_COLUMNS} FROM schedules ORDER BY id"
_BY_KEY = f"SELECT {_COLUMNS} FROM schedules WHERE key = ?"
_COUNTS = "SELECT count(*), coalesce(sum(function_id = ?), 0) FROM schedules"
_INSERT = f"INSERT INTO schedules ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM schedules WHERE id = ?"

_expression = lru_cache(MOST)(read_cron)  # the trigger asks for all of them whenever one has changed

log = logging.getLogger("spaces.schedule")


class CreatedSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule: of the function `space/name`, called `title`.

    `cron` is as its creator wrote it, for due times in UTC; `data` is the JSON text that each call gets, and may hold
    secrets. `session_id` is what it was created with. `key`: the same for the same request to create it, sent again.
    """

    id: int
    function_id: int
    space: str
    name: str
    title: str
    description: str | None
    cron: str
    data: bytes
    session_id: int
    created_at: float
    key: str | None

    @property
    def schedule(self) -> Schedule:
        """Its due times, and what each call gets."""
        return Schedule(id=self.id, cron=_expression(self.cron), data=self.data)

    def repeats(self, other: CreatedSchedule) -> bool:
        """Whether a request to create this one asked for the same as that for the other."""
        own = {field: getattr(other, field) for field in ("id", "session_id", "created_at")}
        return msgspec.structs.replace(self, **own) == other

    def __repr__(self) -> str:
        return f"CreatedSchedule({self.id}, {self.space}/{self.name}, {self.title!r}, {self.cron!r})"


class Timetable:
    """All created schedules of a state folder, which several hosts may share.

    Guarantee: what `add` has returned is on disk, and fires from then on; what `remove` has returned for is gone.
    """

    def __init__(self, state: Path) -> None:
        self._records = Records(state / "schedules.db", _MIGRATIONS)
        self._known: Sequence[CreatedSchedule] = ()
        self._complaint = ""
        self.on_change: list[Callable[[], None]] = []  # called when there are others

    @property
    def known(self) -> Sequence[CreatedSchedule]:
        """Those that there were when anybody last looked or changed them."""
        return self._known

    async def refresh(self) -> None:
        """Look for what other hosts on this folder have changed. A file that cannot be read changes nothing."""
        try:
            await self.all()
        except RecordsError as error:
            if error.message != self._complaint:
                log.error("created schedules cannot be read: %s", error.message)
            self._complaint = error.message
        else:
            self._complaint = ""

    async def all(self) -> Sequence[CreatedSchedule]:
        """Every one, the oldest first; RecordsError."""
        if self._records.exist:
            self._learn(await self._records.read(_read))
        else:
            self._learn(())
        return self._known

    async def add(self, wanted: CreatedSchedule) -> CreatedSchedule:
        """Keep a schedule; the earlier one, where this is the same request again (its `key` is known).

        BadRequest: too many, or the key was used for another one. RecordsError.
        """
        kept, everything = await self._records.change(lambda connection: _add(connection, wanted))
        self._learn(everything)
        return kept

    async def remove(self, ids: Collection[int]) -> None:
        """Delete these, as far as there are such; RecordsError."""
        if not self._records.exist:
            return

        def work(connection: sqlite3.Connection) -> Sequence[CreatedSchedule]:
            connection.executemany(_DELETE, [(id,) for id in ids])
            return _read(connection)

        self._learn(await self._records.change(work))

    async def close(self) -> None:
        """Let go of the file."""
        await self._records.close()

    def _learn(self, found: Sequence[CreatedSchedule]) -> None:
        if found != self._known:
            self._known = found
            for notify in self.on_change:
                notify()


def _read(connection: sqlite3.Connection) -> Sequence[CreatedSchedule]:
    return tuple(map(_from_row, connection.execute(_ALL)))


def _add(connection: sqlite3.Connection, wanted: CreatedSchedule) -> tuple[CreatedSchedule, Sequence[CreatedSchedule]]:
    known = connection.execute(_BY_KEY, (wanted.key,)).fetchone()  # nothing equals NULL
    if known is not None:
        earlier = _from_row(known)
        if not wanted.repeats(earlier):
            raise BadRequest("this nonce was used to create another schedule")
        return earlier, _read(connection)
    total, of_one = connection.execute(_COUNTS, (wanted.function_id,)).fetchone()
    if total >= MOST:
        raise BadRequest(f"there are {total} schedules already, and there can be no more: delete some")
    if of_one >= MOST_OF_ONE:
        raise BadRequest(f"this function has {of_one} schedules already, and can have no more: delete some")
    connection.execute(_INSERT, msgspec.structs.astuple(wanted))
    return wanted, _read(connection)


def _from_row(row: Sequence[Any]) -> CreatedSchedule:
    return CreatedSchedule(**dict(zip(CreatedSchedule.__struct_fields__, row, strict=True)))
