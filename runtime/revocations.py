"""Tokens that were given back before their time, remembered in the state folder until they expire.

Used by `authority.py`. A file for each hour in which tokens expire: it is only added to, and goes as a whole when that
hour is over, so that several hosts on one folder need no lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .whereabouts import make_folder

HOUR = 3600
FOLDER = "revoked"


class Revocations:
    """Which tokens are revoked: each by its `jti`, looked for in the file of its `exp`.

    Guarantee: when `add` has returned, `has` is true for that token in every host on the folder, also after a restart.
    """

    def __init__(self, state: Callable[[], Path]) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._files: dict[int, _Hour] = {}

    def add(self, claims: dict[str, Any]) -> None:
        """Remember this token. Blocks; OSError, and then this process alone knows of it."""
        number, folder = claims["exp"] // HOUR, self._state() / FOLDER
        with self._lock:
            hour = self._hour(number)
            hour.told.add(claims["jti"])
            hour.catch_up()
            if claims["jti"] in hour.ids:
                return
        make_folder(self._state())
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # The line break before it ends what a host may have left of a line when it was killed.
            os.write(handle, f"\n{claims['jti']}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self._forget(folder)

    def has(self, claims: dict[str, Any]) -> bool:
        """Whether this token is revoked. It reads what other hosts have added; OSError where it cannot."""
        with self._lock:
            hour = self._hour(claims["exp"] // HOUR)
            if claims["jti"] in hour.told:
                return True
            hour.catch_up()
            return claims["jti"] in hour.ids

    def _hour(self, number: int) -> _Hour:
        if number not in self._files:
            self._files[number] = _Hour(self._state() / FOLDER / str(number))
        return self._files[number]

    def _forget(self, folder: Path) -> None:
        """Drop the hours in which every token has expired."""
        past = int(time.time()) // HOUR - 1
        with self._lock:
            for number in [number for number in self._files if number < past]:
                del self._files[number]
        for name in os.listdir(folder):
            if name.isdigit() and int(name) < past:
                with suppress(OSError):  # another host was quicker
                    os.unlink(folder / name)


class _Hour:
    """One file, as far as it was read: `ids`. `told`: what this process was told, written or not."""

    def __init__(self, file: Path) -> None:
        self.ids: set[str] = set()
        self.told: set[str] = set()
        self._file = file
        self._read = 0

    def catch_up(self) -> None:
        """Read what was added since."""
        try:
            if os.stat(self._file).st_size <= self._read:
                return
            with open(self._file, "rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text.rfind(b"\n") + 1  # a line that is just being written is read the next time
        self._read += whole
        self.ids.update(text[:whole].decode("ascii", "replace").split())
