"""Times as requests say them and as answers show them. Seconds since the epoch in between.

Used by `submit.py` for when a call is to run, by `calls.py` for which calls are wanted, and by `entries.py`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ...errors import BadRequest
from ...toml_reader import duration

LATEST = 253_402_300_799.0  # the last second of the year 9999
NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
UNESCAPED_PLUS = re.compile(r" (?=[0-9]{2}:[0-9]{2}$)")  # of an offset in a query, where it means a space


def read_seconds(text: str, what: str) -> float:
    """A duration: seconds, or `90s`, `5m`, `1.5h`. BadRequest says `what` is wrong."""
    try:
        return duration(float(text) if NUMBER.fullmatch(text) else text, zero=True)
    except ValueError as error:
        raise BadRequest(f"{what}: {error}") from None


def read_moment(text: str, what: str) -> float:
    """A point in time: seconds since the epoch, or RFC 3339 with its offset. BadRequest says `what` is wrong."""
    if NUMBER.fullmatch(text):
        return min(float(text), LATEST)
    try:
        moment = datetime.fromisoformat(UNESCAPED_PLUS.sub("+", text).upper())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadRequest(f"{what} must be a time such as 2027-01-31T09:00:00Z, or seconds since 1970")
    return min(max(moment.timestamp(), 0.0), LATEST)


def shown(moment: float | None) -> str | None:
    """A time in UTC, to the millisecond, as RFC 3339 writes it."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
