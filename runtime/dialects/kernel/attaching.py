"""Sync invocations whose clients have left without an answer, so that the same request finds them when it comes again.

Used by `invocations.py`. Kernel's client sends a POST up to three times when it gets no answer in time, and nothing
in it says which one it repeats: so this is a guess, which `kernel_attach = false` in [server] switches off.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from time import monotonic

WINDOW = 300.0  # seconds in which a client comes again, if it does
MOST = 10_000  # that many are remembered


class Abandoned:
    """Which call was left by whom. In memory only: after a restart, what comes again is run again."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._left: OrderedDict[int, tuple[bytes, float]] = OrderedDict()  # by call, the first that was left first

    def digest(self, *parts: str) -> bytes:
        """The same for the same request of the same client; it tells nobody what they were."""
        hashed = hashlib.blake2b(key=self._salt, digest_size=16)
        for part in parts:
            data = part.encode()
            hashed.update(b"%d:" % len(data) + data)
        return hashed.digest()

    def add(self, id: int, digest: bytes) -> None:
        """The client of this call has left."""
        self._left[id] = (digest, monotonic())
        while len(self._left) > MOST:
            self._left.popitem(last=False)

    def take(self, digest: bytes) -> int | None:
        """The call that a client with this request has left; it is nobody else's from now on."""
        while self._left and monotonic() - next(iter(self._left.values()))[1] > WINDOW:
            self._left.popitem(last=False)
        found = next((id for id, (other, _) in self._left.items() if other == digest), None)
        if found is not None:
            del self._left[found]
        return found
