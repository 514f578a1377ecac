"""What is read of the journal: one function for each question, each a few SELECTs.

Called by `reader.py`, all within one moment of the journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from time import monotonic
from typing import Any

from ..calls import Call, Entry, Event, Outcome, Status
from . import Counts, Query, rows
from .deliveries import Position
from .rows import Names
from .schema import CANCELLED, DELAYED, FAILED, READY, RUNNING, SUCCEEDED

_GET = f"SELECT {rows.ENTRY} FROM calls WHERE id = ?"
_REQUEST = f"SELECT {rows.ENTRY}, {rows.REQUEST} FROM calls JOIN requests USING (id) WHERE calls.id = ?"
_OUTCOME = f"SELECT {rows.OUTCOME} FROM outcomes WHERE id = ?"
_TIMES = """SELECT state, told, accepted_at, started_at, finished_at, (SELECT max(number) FROM events
    WHERE events.id = calls.id) FROM calls WHERE id = ?"""
_EVENTS = "SELECT number, at, kind, data FROM events WHERE id = ? AND number > ? ORDER BY number LIMIT ?"
_FIRED = "SELECT fired FROM schedules WHERE id = ?"

_COUNTS = """SELECT
    (SELECT count(*) FROM calls WHERE state = 0), (SELECT count(*) FROM calls WHERE state = 1),
    (SELECT count(*) FROM calls WHERE state = 2),
    (SELECT count(*) FROM calls WHERE callback = 2 AND callback_owner IS NULL) +
    (SELECT count(*) FROM calls WHERE callback_owner IS NOT NULL),
    (SELECT count(*) FROM calls WHERE callback = 4),
    (SELECT min(max(run_at, accepted_at)) FROM calls WHERE state = 1)"""

# By that index alone: to group them in the order of another one would mean to go through all calls.
_DELAYED = "SELECT space, name, count(*) FROM calls INDEXED BY calls_delayed WHERE state = 0 GROUP BY space, name"

_FIRST_BEYOND = """SELECT finished_at, id FROM calls WHERE space = ? AND finished_at IS NOT NULL
    ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET ?"""

# The functions that have calls, one after the other: a step in an index each, however many calls they have.
_NEXT_SPACE = "SELECT space FROM calls WHERE space > ? ORDER BY space LIMIT 1"
_NEXT_NAME = "SELECT name FROM calls WHERE space = ? AND name > ? ORDER BY name LIMIT 1"

# Which index holds the calls in a state, and how it is asked for.
_STATES = {
    DELAYED: ("calls_delayed", "state = 0"), READY: ("calls_ready", "state = 1"),
    RUNNING: ("calls_running", "state = 2"), SUCCEEDED: ("calls_list", "state = 3"),
    FAILED: ("calls_failed", "state = 4"), CANCELLED: ("calls_cancelled", "state = 5"),
}  # fmt: skip
_ALL = ("calls_list", "1 = 1")
_FEW = 500  # calls that may rather be sorted than looked for


def get(connection: sqlite3.Connection, names: Names, id: int) -> Entry | None:
    """The entry of a call."""
    row = connection.execute(_GET, (id,)).fetchone()
    return row and rows.entry(row, names)


def request(connection: sqlite3.Connection, names: Names, id: int) -> Call | None:
    """A call as it was submitted."""
    row = connection.execute(_REQUEST, (id,)).fetchone()
    return row and rows.claim(row, names).call


def outcome(connection: sqlite3.Connection, names: Names, id: int) -> Outcome | None:
    """How a call ended, or its last attempt."""
    row = connection.execute(_OUTCOME, (id,)).fetchone()
    return row and rows.outcome(row)


def events(connection: sqlite3.Connection, names: Names, arguments: tuple[int, int, int]) -> list[Event]:
    """What happened to a call, after one event."""
    id, after, limit = arguments
    times = connection.execute(_TIMES, (id,)).fetchone()
    if times is None:
        return []
    found = [rows.event(*row) for row in connection.execute(_EVENTS, arguments)]
    state, told, *rest = times
    if not told:
        implied = [each for each in rows.implied(state, *rest) if each[0] > after]
        found += (Event(number, at, "state", {"status": str(status)}) for number, at, status in implied)
    return sorted(found, key=attrgetter("number"))[:limit]


def marks(
    connection: sqlite3.Connection, names: Names, arguments: tuple[object, Collection[int]]
) -> tuple[object, dict[int, object]]:
    """The version of all that is here; if it is another one than before, also how far each of these calls is.

    Another connection counts its versions anew, so that what was loaded for it is part of one.
    """
    before, ids = arguments
    version = names, connection.execute("PRAGMA data_version").fetchone()[0]
    if version == before:
        return version, {}
    return version, {id: connection.execute(_TIMES, (id,)).fetchone() for id in ids}


def last_fired(connection: sqlite3.Connection, names: Names, schedule_id: int) -> float | None:
    """The latest time that a schedule has fired for."""
    row = connection.execute(_FIRED, (schedule_id,)).fetchone()
    return None if row is None else float(row[0])


def spaces(connection: sqlite3.Connection, names: Names, _: None) -> list[str]:
    """Those that have calls."""
    return [names.text(space) for space in _steps(connection, _NEXT_SPACE)]


def counts(connection: sqlite3.Connection, names: Names, now: float) -> Counts:
    """How many calls are where."""
    delayed, ready, running, pending, dead, oldest = connection.execute(_COUNTS).fetchone()
    waited = 0.0 if oldest is None else max(0.0, now - oldest)
    return Counts(delayed + ready, running, waited, pending, dead)


def delayed(connection: sqlite3.Connection, names: Names, _: None) -> tuple[dict[tuple[str, str], int], float]:
    """How many calls of each function are to run later, and the seconds that it took to count them."""
    began = monotonic()
    found = connection.execute(_DELAYED).fetchall()
    counted = {(names.text(space), names.text(name)): count for space, name, count in found}
    return counted, monotonic() - began


def first_beyond(
    connection: sqlite3.Connection, names: Names, arguments: tuple[str, int]
) -> tuple[int | None, Position | None]:
    """The number of a space, and the newest of its finished calls that is not among the newest so many."""
    space, keep = names.number(arguments[0]), arguments[1]
    row = connection.execute(_FIRST_BEYOND, (space, keep)).fetchone()
    return space, row and Position(*row)


def find(connection: sqlite3.Connection, names: Names, query: Query) -> list[Entry]:
    """Entries, the newest first."""
    found: dict[int, Any] = {}
    for function in _functions(connection, names, query):
        for index, condition in _sources(connection, function, query):
            for row in _list(connection, function, query, index, condition):
                found[row[0]] = row
    return [rows.entry(found[id], names) for id in nlargest(query.limit, found)]


def _functions(connection: sqlite3.Connection, names: Names, query: Query) -> Iterator[tuple[int, int]]:
    space = None if query.space is None else names.number(query.space)
    name = None if query.name is None else names.number(query.name)
    if (query.space is not None and space is None) or (query.name is not None and name is None):
        return
    for each in [space] if space is not None else _steps(connection, _NEXT_SPACE):
        for other in [name] if name is not None else _steps(connection, _NEXT_NAME, each):
            yield each, other


def _steps(connection: sqlite3.Connection, statement: str, *parameters: int) -> Iterator[int]:
    """All that a statement finds, which finds the first that is above another one."""
    last = 0
    while row := connection.execute(statement, (*parameters, last)).fetchone():
        last = row[0]
        yield last


def _sources(connection: sqlite3.Connection, function: tuple[int, int], query: Query) -> list[tuple[str, str]]:
    """Which indexes to go through, with a condition for each: those that have the fewest calls to pass over."""
    states = _states(query)
    chosen = f"state IN ({', '.join(map(str, states))})" if states else "1 = 1"
    if query.idempotency_key is not None:
        return [("calls_key", chosen)]
    if query.dead_letters:
        return [("calls_dead", f"callback = 4 AND {chosen}")]
    if (query.since is not None or query.until is not None) and _is_short(connection, function, query):
        return [("calls_accepted", chosen)]
    if states:
        return [_STATES[state] for state in states]
    if query.trigger not in (None, "http"):
        return [("calls_triggered", "trigger <> 'http'")]
    return [_ALL]


def _states(query: Query) -> list[int]:
    wanted = {Status(status) for status in query.statuses}
    return [state for state, status in rows.STATUSES.items() if status in wanted]


def _is_short(connection: sqlite3.Connection, function: tuple[int, int], query: Query) -> bool:
    """Whether few calls were accepted in the time that is asked for."""
    since, until = _window(query)
    statement = "SELECT 1 FROM calls WHERE space = ? AND name = ? AND accepted_at >= ? AND accepted_at < ? LIMIT ?"
    found = connection.execute(statement, (*function, since, until, _FEW))
    return sum(1 for _ in islice(found, _FEW)) < _FEW


def _window(query: Query) -> tuple[float, float]:
    infinite = float("inf")
    return -infinite if query.since is None else query.since, infinite if query.until is None else query.until


def _list(
    connection: sqlite3.Connection, function: tuple[int, int], query: Query, index: str, condition: str
) -> list[Any]:
    conditions, parameters = ["space = ?", "name = ?", condition], [*function]
    optional = {
        "idempotency_key = ?": query.idempotency_key, "trigger = ?": query.trigger, "id < ?": query.before,
        "accepted_at >= ?": query.since, "accepted_at < ?": query.until,
    }  # fmt: skip
    for text, value in optional.items():
        if value is not None:
            conditions.append(text)
            parameters.append(value)  # type: ignore[arg-type]
    statement = f"""SELECT {rows.ENTRY} FROM calls INDEXED BY {index} WHERE {" AND ".join(conditions)}
        ORDER BY id DESC LIMIT ?"""
    return connection.execute(statement, (*parameters, query.limit)).fetchall()
