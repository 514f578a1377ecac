"""From the structs of `calls.py` to rows of the journal, and back.

Used by `changes.py` and `reader.py`, each with a `Names` of its own.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from ..calls import Call, CallbackState, Delivery, Entry, Event, Outcome, Status, Submission
from . import Claim, statements
from .schema import CANCELLED, DELAYED, FAILED, READY, RUNNING, SUCCEEDED

STATUSES = {
    DELAYED: Status.QUEUED, READY: Status.QUEUED, RUNNING: Status.RUNNING,
    SUCCEEDED: Status.SUCCEEDED, FAILED: Status.FAILED, CANCELLED: Status.CANCELLED,
}  # fmt: skip
FINAL = {Status.SUCCEEDED: SUCCEEDED, Status.FAILED: FAILED, Status.CANCELLED: CANCELLED}
_CALLBACKS = tuple(CallbackState)  # in the order of the numbers in schema.py

# One row of each is made into one struct below, so the order matters.
ENTRY = """calls.id, label, space, name, state, trigger, priority, idempotency_key, schedule_id, scheduled_time,
    attempt, accepted_at, run_at, started_at, finished_at, calls.code, calls.error_code, calls.seconds, progress,
    progress_message, callback, callback_url, callback_attempts, callback_at, callback_error"""
REQUEST = "requests.method, requests.path, requests.query, requests.headers, requests.body, requests.timeout"
OUTCOME = "outcomes.code, outcomes.headers, outcomes.body, invoked, outcomes.seconds, outcomes.error_code"
_ENTRY_COLUMNS = 25
_COPIED = 4096  # bytes: what is longer costs more to copy than to ask

# sqlite3 asks the same of each None that no adapter is registered for, which is half of what writing a row costs.
sqlite3.register_adapter(type(None), lambda nothing: nothing)

Row = Sequence[Any]


class Names:
    """Spaces and functions stand in the journal as numbers, which are short to store and to compare."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._texts: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def load(self) -> None:
        """Read them again: another connection has added some, or ours have been rolled back."""
        self._texts = dict(self._connection.execute(statements.NAMES).fetchall())
        self._numbers = {text: number for number, text in self._texts.items()}

    def number(self, text: str) -> int | None:
        """The number of a name; None where no call ever had it."""
        if text not in self._numbers:
            self.load()
        return self._numbers.get(text)

    def make(self, text: str) -> int:
        """The number of a name, new if need be."""
        number = self._numbers.get(text) or self.number(text)
        if number is None:
            number = self._connection.execute(statements.ADD_NAME, (text,)).lastrowid
            assert number is not None
            self._texts[number], self._numbers[text] = text, number
        return number

    def text(self, number: int) -> str:
        """The name that a number stands for."""
        if number not in self._texts:
            self.load()
        return self._texts[number]

    def all(self) -> dict[int, str]:
        """Every name by its number."""
        self.load()
        return self._texts


def request_row(call: Call) -> tuple[Any, ...]:
    """For `requests`; what is empty takes no room."""
    body = call.body[0] if len(call.body) == 1 else b"".join(call.body)
    return (
        call.id, bytearray(call.method), _blob(call.path), _blob(call.query), _blob(call.headers), _blob(body),
        call.timeout,
    )  # fmt: skip


def outcome_row(id: int, outcome: Outcome) -> tuple[Any, ...]:
    """For `outcomes`."""
    return (
        id, outcome.code, _blob(outcome.headers), _blob(outcome.body), int(outcome.invoked), outcome.seconds,
        outcome.error_code,
    )  # fmt: skip


def _blob(value: bytes) -> bytes | bytearray | None:
    """As sqlite3 takes it in the least time: of each `bytes` it asks whether it adapts itself, of `bytearray` not."""
    if not value:
        return None
    return bytearray(value) if len(value) <= _COPIED else value


def digest(submission: Submission) -> bytes:
    """The same for the same request, which is method, path, query and body."""
    call = submission.call
    hashed = hashlib.blake2b(digest_size=16)
    for part in (call.method, call.path, call.query):
        hashed.update(b"%d:" % len(part) + part)
    for piece in call.body:
        hashed.update(piece)
    return hashed.digest()


def entry(row: Row, names: Names) -> Entry:
    """Of a row of ENTRY."""
    (
        id, label, space, name, state, trigger, priority, key, schedule_id, scheduled_time, attempt,
        accepted_at, run_at, started_at, finished_at, code, error_code, seconds, progress,
        message, callback, url, callback_attempts, callback_at, callback_error,
    ) = row  # fmt: skip
    return Entry(
        id, label or str(id), names.text(space), names.text(name), STATUSES[state], trigger, priority, key,
        schedule_id, scheduled_time, attempt, accepted_at, run_at, started_at, finished_at, code, error_code, seconds,
        progress, message, _CALLBACKS[callback], url, callback_attempts, callback_at, callback_error,
    )  # fmt: skip


def call(entry: Entry, row: Row, attempt: int) -> Call:
    """Of a row of REQUEST, and the entry beside it."""
    method, path, query, headers, body, timeout = row
    return Call(
        entry.id, entry.label, entry.space, entry.name, method, path or b"", query or b"", headers or b"",
        (body,) if body else (), attempt, timeout, entry.schedule_id, entry.scheduled_time,
    )  # fmt: skip


def outcome(row: Row) -> Outcome:
    """Of a row of OUTCOME."""
    code, headers, body, invoked, seconds, error_code = row
    return Outcome(code, headers or b"", body or b"", bool(invoked), seconds, error_code)


def claim(row: Row, names: Names) -> Claim:
    """Of a row of ENTRY and REQUEST."""
    made = entry(row[:_ENTRY_COLUMNS], names)
    return Claim(made, call(made, row[_ENTRY_COLUMNS:], made.attempt))


def delivery(row: Row, names: Names) -> Delivery:
    """Of a row of ENTRY and OUTCOME."""
    made = entry(row[:_ENTRY_COLUMNS], names)
    return Delivery(made, outcome(row[_ENTRY_COLUMNS:]), made.callback_attempts)


def event(number: int, at: float, kind: str, data: bytes) -> Event:
    """Of a row of `events`."""
    return Event(number, at, kind, msgspec.json.decode(data))


def implied(state: int, accepted_at: float, started_at: float | None, finished_at: float | None, last: int | None) \
        -> list[tuple[int, float, Status]]:  # fmt: skip
    """The state events of a call that was started once at most: number, time, status.

    They are not stored, which saves most of what most calls would write. `last`: the highest number that is.
    """
    events = [(1, accepted_at, Status.QUEUED)]
    if started_at is not None:
        events.append((2, started_at, Status.RUNNING))
    if finished_at is not None:
        events.append((max(last or 0, events[-1][0]) + 1, finished_at, STATUSES[state]))
    return events
