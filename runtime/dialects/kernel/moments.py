"""Times as Kernel's clients say them and are told them. Seconds since the epoch in between.

Used by the other modules here.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from ...errors import BadRequest

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,9})?)(ns|us|µs|μs|ms|s|m|h)")
DURATION = re.compile(f"(?:{PART.pattern})+")
UNESCAPED_PLUS = re.compile(r" (?=[0-9]{2}:[0-9]{2}$)")  # of an offset in a query, where it means a space


def read_since(text: str | None) -> float | None:
    """A point in time: as RFC 3339 writes it, or how long ago as Go writes it (`5m`, `1h30m`). BadRequest."""
    if not text:
        return None
    if DURATION.fullmatch(text):
        return max(0.0, time.time() - sum(float(number) * UNITS[unit] for number, unit in PART.findall(text)))
    try:
        moment = datetime.fromisoformat(UNESCAPED_PLUS.sub("+", text).upper())
        if moment.tzinfo is not None:
            return max(0.0, moment.timestamp())
    except (ValueError, OverflowError):
        pass
    raise BadRequest("since must be a time such as 2027-01-31T09:00:00Z, or how long ago, such as 5m or 1h30m")


def shown(moment: float) -> str:
    """A time in UTC, to the millisecond, as RFC 3339 writes it."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
