"""Whether somebody is changing files right now, and waiting until they have done.

Asked by `snapshots`, `loader` and `watcher`, in threads: everything here may block. Knows files and git's
lock, nothing of functions.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

QUIET = 0.01  # seconds for which a file must have been left alone: it may be written again at once
STALLED = 2.0  # seconds after which one who has a file open for writing, but writes nothing, is not waited for
LONGEST = 10.0  # seconds for which a file that is written on and on is waited for
LOCK_WAIT = 5.0  # seconds for which git's lock is waited for where nothing tells whether git is still there
CLOSED_LOCK = 0.5  # and where it is known not to have the lock open, as while it waits for a commit message
LONG_LOCK = 60.0  # seconds for which it is waited for at all
LOOK = 0.01  # seconds between two looks at the lock


def settle(paths: Collection[str]) -> None:
    """Wait until nobody is in the middle of saving any of these files, as far as can be told."""
    give_up = time.monotonic() + LONGEST
    while (wait := max(map(unrest, paths), default=0.0)) and time.monotonic() < give_up:
        time.sleep(wait)


def unrest(path: str) -> float:
    """Seconds after which to look at the file again; 0 where nobody seems to be saving it."""
    try:
        age = time.time() - os.stat(path).st_ctime
    except OSError:
        return 0.0
    if 0 <= age < QUIET:
        return QUIET - age
    return QUIET if 0 <= age < STALLED and is_open_for_writing(path) else 0.0


def is_open_for_writing(path: str) -> bool | None:
    """Whether any process has the file open for writing; None where the system does not tell.

    Linux grants a lease for reading only on a file that nobody can write to. We give it back at once; who
    opens the file for writing in between has to wait for that, and notices nothing else.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # of a break of the lease; nobody minds this signal
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, AttributeError) as error:
        return True if getattr(error, "errno", None) == errno.EAGAIN else None
    finally:
        os.close(file)
    return False


def await_git(folders: Iterable[Path], is_over: Callable[[float], bool]) -> None:
    """Wait until no git operation is changing what is in these folders; a lock left behind is not waited for.

    `is_over(seconds)` waits for so long at most; true: never mind.
    """
    give_up = time.monotonic() + LONG_LOCK
    for lock in {git_lock(folder) for folder in folders} - {None}:
        while lock is not None and _is_held(lock) and time.monotonic() < give_up:
            if is_over(LOOK):
                return


def _is_held(lock: str) -> bool:
    """Whether git is at work under this lock: it has the file open, then closes it and moves it away at once."""
    try:
        age = time.time() - os.stat(lock).st_mtime
    except OSError:
        return False
    writing = is_open_for_writing(lock)
    return writing or age < (LOCK_WAIT if writing is None else CLOSED_LOCK)


def git_lock(folder: Path) -> str | None:
    """The file that git has while it changes the working tree that `folder` is in."""
    folder = Path(os.path.realpath(folder))
    for place in (folder, *folder.parents):
        git = place / ".git"
        if git.is_dir():
            return str(git / "index.lock")
        if git.is_file():  # a worktree or a submodule
            try:
                return str(place / git.read_text().removeprefix("gitdir:").strip() / "index.lock")
            except (OSError, UnicodeDecodeError):
                return None
    return None
