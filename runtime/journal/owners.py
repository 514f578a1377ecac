"""Who is alive: each open journal has a number, and a file that the kernel keeps locked while its process lives.

Used by `writer.py` and `sqlite.py`. So the death of an owner shows at once, and a clock that jumps kills nobody. And
whose turn it is to write, where several write at once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from .files import AGAIN_SECONDS
from .holders import holder_of

EXPIRY = 60.0  # seconds that a claim lasts without being renewed, where the lock cannot be asked
RENEWAL = EXPIRY / 3
TURN_SECONDS = 0.5  # that one waits for its turn
LOOK_EVERY = 1.0  # seconds between two looks at who has it, by one who goes on without
HELD_FOR_LONG = 5.0  # seconds
COMPLAIN_EVERY = 60.0  # seconds

log = logging.getLogger("runtime.journal")


def boot_id() -> str:
    """Names this run of the machine: what was claimed in another one is nobody's now."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def boot_clock() -> float:
    """Seconds that the machine has run, asleep or not: no change of the time of day moves it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Owner:
    """One open journal. Its claims are safe from `begin` until `end`, or until the process dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = secrets.randbits(52) + 1
        self.boot = boot_id()
        self._lock: int | None = None

    def begin(self) -> None:
        """Take the lock. OSError where the folder cannot be written."""
        self.folder.mkdir(exist_ok=True)
        path = self.path(self.id)
        if self._lock is not None and not path.exists():  # the folder was deleted under us
            self.end(forget=False)
        while self._lock is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_ino == os.stat(path).st_ino:  # if not, it was tidied away in between
                    self._lock = handle
            except (BlockingIOError, FileNotFoundError):
                pass  # somebody is just asking: again
            except OSError:  # a file system without locks: the expiry has to do
                self._lock = handle
            if self._lock != handle:
                os.close(handle)

    def end(self, *, forget: bool) -> None:
        """Let go of the lock. `forget`: of its file too, as everybody can read elsewhere that we ended."""
        if self._lock is None:
            return
        if forget:
            self.path(self.id).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def replace(self) -> None:
        """Be another one from now on; to others, the one before has died."""
        self.end(forget=False)
        self.id = secrets.randbits(52) + 1

    def path(self, owner: int) -> Path:
        """The lock file of an owner."""
        return self.folder / f"{owner}.lock"

    def is_alive(self, owner: int, boot: str, expires: float, now: float) -> bool:
        """Whether another owner still lives, as its lock says; where that is missing, as its expiry says."""
        if owner == self.id:
            return True
        if boot != self.boot or not expires:
            return False
        locked = self._is_locked(owner)
        return now < expires if locked is None else locked

    def tidy(self, known: set[int]) -> None:
        """Remove the lock files of the dead that have nothing in the journal any more."""
        for path in self.folder.glob("*.lock"):
            owner = int(path.stem) if path.stem.isdecimal() else self.id
            if owner != self.id and owner not in known:
                self._is_locked(owner, remove=True)

    def _is_locked(self, owner: int, *, remove: bool = False) -> bool | None:
        """None: there is no lock to ask. `remove` one that is not held."""
        try:
            handle = os.open(self.path(owner), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if remove:  # while we hold it: one who is just beginning makes a new file then
                self.path(owner).unlink(missing_ok=True)
        except BlockingIOError:
            return True
        except OSError:
            return None
        else:
            return False
        finally:
            os.close(handle)


class Turn:
    """Owners that write much take turns by it, each within `with`; who has waited for long goes on without.

    It is for speed; SQLite's lock, which they take besides, is what keeps them apart. So one that is stopped while it
    has its turn costs the others that wait once, and a line in the log.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "turn"
        self._handle: int | None = None
        self._patience = TURN_SECONDS
        self._looked_at = self._complained_at = float("-inf")
        self._holder, self._held_since = "", 0.0

    def __enter__(self) -> None:
        try:
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(self._handle, self._patience)
            self._patience, self._holder = TURN_SECONDS, ""
        except BlockingIOError:
            self._patience = 0.0  # until it has been given back
            self._look()
        except OSError:  # no folder yet, or a file system without locks
            pass

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _look(self) -> None:
        """See who has it; who has had it at every look for long is complained of."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at, holder = now, holder_of(self._path)
        if holder != self._holder:
            self._holder, self._held_since = holder, now
        elif now - self._held_since >= HELD_FOR_LONG and now - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = now
            log.warning("the turn to write to the journal (%s) is not given back by %s", self._path, holder)

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _lock(handle: int, patience: float) -> None:
    """Take this lock; BlockingIOError where somebody holds it for too long."""
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
        else:
            return
        time.sleep(AGAIN_SECONDS)
