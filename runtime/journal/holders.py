"""Who keeps the journal locked, as the kernel tells it: for the log, so that somebody can do something about it.

Asked by `writer.py` and `owners.py`. It only reads /proc: to open a locked file again and close it would unlock it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_LOCK = re.compile(
    r"^\d+: (?:POSIX|FLOCK) +ADVISORY +WRITE +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$", re.M
)
_WRITING = 120  # the byte of the -shm file that whoever writes has locked (SQLite's WALINDEX_LOCK_OFFSET)


def writer_of(path: Path) -> str:
    """The process that writes to this journal."""
    return _named(Path(f"{path}-shm"), _WRITING)


def holder_of(path: Path) -> str:
    """The process that has locked this file."""
    return _named(path, 0)


def _named(path: Path, byte: int) -> str:
    try:
        found, locks = os.stat(path), Path("/proc/locks").read_text()
    except OSError:
        return "another process"
    place = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    for pid, major, minor, inode, first, last in _LOCK.findall(locks):
        is_there = (int(major, 16), int(minor, 16), int(inode)) == place
        if is_there and int(first) <= byte and (last == "EOF" or byte <= int(last)):
            return _described(pid)
    return "another process"


def _described(pid: str) -> str:
    """A process, and what to do about it."""
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return f"process {pid}"
    name = f"process {pid} ({' '.join(words)[:80]})"
    if state in "Tt":
        return f"{name}, which is stopped: `kill -CONT {pid}` lets it go on, `kill -KILL {pid}` ends it"
    return f"{name}: if it hangs, `kill -KILL {pid}` ends it"
