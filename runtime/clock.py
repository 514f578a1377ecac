"""The Date header, made once a second; both engines would make their own at greater cost."""

from __future__ import annotations

from email.utils import formatdate
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
