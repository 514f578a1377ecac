"""Times in HTTP headers: Date, made once a second as both engines would make it at greater cost, and Retry-After.

Used by `app.py` and the dialects, and by what tries again: `attempt.py`, `callbacks.py`.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from time import time

_second = 0
_header = (b"date", b"")


def date_header() -> tuple[bytes, bytes]:
    """The header field of now (RFC 9110 section 6.6.1)."""
    global _second, _header
    now = int(time())
    if now != _second:
        _header = (b"date", formatdate(now, usegmt=True).encode())
        _second = now
    return _header


def retry_after(text: str, now: float) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110 section 10.2.3); None where it asks for nothing."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None
