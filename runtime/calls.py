"""The core vocabulary: a call, its result, and the ids both are known by.

Every dialect turns its own HTTP shape into a `Call`, and a `Result` back; everything between speaks only these.
"""

from __future__ import annotations

import hashlib
import time

import msgspec

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z: call ids count milliseconds from here
SEQUENCE_BITS = 11  # 42 bits of milliseconds and these make 53, the integers JSON clients can hold

Headers = list[tuple[bytes, bytes]]


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request to run a function.

    `path` is what follows the function's address, as it came, percent-encoded, empty or with a leading
    slash; `query` is without its question mark; `headers` is name, value, name, value, … joined by NUL,
    names in lower case; `body` is in the pieces it came in. `label` is the id that the client sees.
    """

    id: int
    label: str
    space: str
    name: str
    method: bytes = b"POST"
    path: bytes = b""
    query: bytes = b""
    headers: bytes = b""
    body: tuple[bytes, ...] = ()
    attempt: int = 1


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a function answered. With `complete` false, `body` is empty and the rest arrives in chunks.

    `failed`: the handler raised, and `body` is the error envelope. `handler_seconds`: time in the handler.
    """

    status: int
    headers: bytes
    body: bytes
    complete: bool
    failed: bool
    handler_seconds: float


class CallIds:
    """Positive integers below 2**53, each larger than the one before, also when the clock jumps back."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """An id that was never given out by this object."""
        now = (int(time.time() * 1000) - EPOCH_MS) << SEQUENCE_BITS
        self._last = max(self._last + 1, now)
        return self._last


def function_id(space: str, name: str) -> int:
    """A function's number: the same on every host and after every restart, positive and below 2**53."""
    digest = hashlib.blake2b(f"{space}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> SEQUENCE_BITS) or 1
