"""One transaction of the journal: what its operations share, and what they mean to those who look on.

Made by `writer.py`; the operations themselves are in `accepts.py`, `claims.py` and `deliveries.py`. They make few trips
into SQLite: each trip lets go of the interpreter, and while the event loop is busy it takes long to get it back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import msgspec

from ..calls import Status
from ..errors import HostError, JournalError
from . import IdTaken, files, rows, statements
from .owners import Owner
from .schema import RUNNING

_AT_ONCE = 64  # rows in one statement
_PROMOTED = 1000  # delayed calls made ready in one batch, so that nothing else waits long

# One operation is unfit, and the others are not: a constraint, or a value that SQLite cannot hold.
REFUSED = (
    HostError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, TypeError, ValueError,
)  # fmt: skip


class Note(msgspec.Struct, frozen=True):
    """An event that somebody else than the journal tells of. `data` is JSON."""

    id: int
    at: float
    kind: str
    data: bytes
    fraction: float | None = None
    message: str = ""


class Batch:
    """A transaction under way, at one moment of time."""

    def __init__(
        self, connection: sqlite3.Connection, owner: Owner, names: rows.Names, now: float, uptime: float
    ) -> None:
        self.connection, self.execute = connection, connection.execute
        self.owner, self.names, self.now, self.uptime = owner, names, now, uptime
        self.touched: list[int] = []  # calls to which something happened
        self.waiting: dict[tuple[str, str], int] = {}  # how many more are ready, or fewer
        self.times_changed = False  # of the next delayed call or delivery
        self.soonest: float | None = None  # when the first of those is due that were delayed just now
        self.cancels_changed = False
        self.cancels_asked = False  # of calls that run, perhaps elsewhere
        self.callbacks_due = False
        self.claimed = False
        self._begun = False  # something is done already
        self.buried: list[int] = []  # owners that are dead and have nothing any more

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """What is done within is done as a whole, or undone. The first to be done needs no savepoint for that."""
        if not self._begun:
            self._begun = True
            try:
                yield
            except REFUSED:
                self.execute("ROLLBACK")
                files.begin(self.connection)
                self.names.load()
                raise
            return
        self.execute("SAVEPOINT operation")
        try:
            yield
        except REFUSED:
            self.execute("ROLLBACK TO operation")
            self.execute("RELEASE operation")
            self.names.load()  # those that were new are not there any more
            raise
        self.execute("RELEASE operation")

    def count(self, space: str, name: str, change: int) -> None:
        """So many more calls of a function are ready."""
        self.waiting[space, name] = self.waiting.get((space, name), 0) + change

    def ids(self, statement: str, parameters: tuple[Any, ...]) -> list[int]:
        """What a statement finds that makes one JSON array of it: one trip, however long it is."""
        found: list[int] = json.loads(self.execute(statement, parameters).fetchone()[0])
        return found

    def write(self, statement: str, columns: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, many at a time: a few dozen statements are prepared, once, and each batch needs one or two."""
        self.write_flat(statement, list(chain.from_iterable(columns)), len(columns))

    def write_flat(self, statement: str, values: list[Any], count: int) -> None:
        """The same of so many rows whose values are in one list."""
        width = len(values) // max(1, count)
        for start in range(0, count, _AT_ONCE):
            part = values[start * width : (start + _AT_ONCE) * width] if count > _AT_ONCE else values
            self.execute(statements.rows(statement, width, len(part) // width), part)

    def promote(self) -> None:
        """Delayed calls whose time has come are ready from now on."""
        self._begun = True
        found = self.execute(statements.PROMOTE, (self.now, _PROMOTED)).fetchall()
        for space, name, id in found:
            self.count(self.names.text(space), self.names.text(name), 1)
            self.touched.append(id)
        if found:
            self.times_changed = True

    # Events.

    def tell(self, id: int, status: Status) -> None:
        """A state event of a call whose state events are all rows."""
        _, _, _, _, _, last = self.execute(statements.TOLD, (id,)).fetchone()
        data = msgspec.json.encode({"status": status})
        self.execute(statements.INSERT_EVENT, (id, (last or 0) + 1, self.now, "state", data))

    def tell_all(self, id: int) -> None:
        """Make rows of the state events that were implied until now: this call goes another way than most."""
        state, told, accepted_at, started_at, finished_at, last = self.execute(statements.TOLD, (id,)).fetchone()
        if told:
            return
        for number, at, status in rows.implied(state, accepted_at, started_at, finished_at, last):
            data = msgspec.json.encode({"status": status})
            self.execute(statements.INSERT_EVENT, (id, number, at, "state", data))
        self.execute(statements.SET_TOLD, (id,))

    def note(self, notes: Sequence[Note]) -> None:
        """Record what was told of calls; what was told of unknown ones is dropped."""
        self._begun = True
        by_id: dict[int, list[Note]] = {}
        for each in notes:
            by_id.setdefault(each.id, []).append(each)
        events: list[tuple[Any, ...]] = []
        for id, told in by_id.items():
            row = self.execute(statements.TOLD, (id,)).fetchone()
            if row is None:
                continue
            if row[0] != RUNNING and not row[1]:
                self.tell_all(id)
                row = self.execute(statements.TOLD, (id,)).fetchone()
            first = max(row[5] or 0, 0 if row[1] else 2) + 1
            events += ((id, number, each.at, each.kind, each.data) for number, each in enumerate(told, first))
            self.touched.append(id)
        self.write(statements.INSERT_EVENTS, events)
        progress = {each.id: (each.fraction, each.message, each.id) for each in notes if each.kind == "progress"}
        if progress:
            self.connection.executemany(statements.SET_PROGRESS, progress.values())


def refusal(error: Exception) -> HostError:
    """Why one operation failed, for whoever asked for it."""
    if isinstance(error, HostError):
        return error
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
        return IdTaken(details={"cause": str(error)})
    return JournalError(f"This cannot be recorded: {error}.", details={"cause": type(error).__name__})
