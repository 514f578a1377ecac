"""What a process asks of the kernel about itself and its children: used by `zygote.py` and the loops.

Linux's prctl(2) and /proc where they exist; elsewhere each call does nothing, and orphans are only
caught by their closed sockets.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from os import (
    O_RDWR,
    WNOHANG,
    _exit,
    close,
    devnull,
    getpid,
    getppid,
    kill,
    listdir,
    readlink,
    set_inheritable,
    setsid,
    waitpid,
)
from os import open as open_fd
from signal import SIGKILL
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

#: The limit of open files that this process was started with.
OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

EXIT_MEMORY = 86  # a worker ended itself: its memory limit was reached
EXIT_ORPHANED = 87  # the parent was gone before the child could tie itself to it

_prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)  # None: not Linux


def adopt_orphans() -> None:
    """Descendants whose parent ends become our children, so that we can end them."""
    if _prctl is not None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent`, which forked it, ends."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if getppid() != parent:
        _exit(EXIT_ORPHANED)


def lead_group() -> None:
    """Be a process group and session of its own: a signal to the group reaches nobody else's processes."""
    with suppress(OSError):
        setsid()


def children() -> list[int]:
    """The pids of this process's children, zombies included, the oldest first."""
    try:
        return [int(pid) for pid in _read(f"/proc/self/task/{getpid()}/children").split()]
    except OSError:  # a kernel without that list
        return [pid for pid in _processes() if _stat(pid)[1:2] == [str(getpid())]]


def kill_children(spare: Iterable[int] = ()) -> list[int]:
    """SIGKILL every child but `spare`, reap those that are dead; what was there, to be called until it is nothing.

    The children of a child become ours when it dies, so one call is not enough.
    """
    kept = set(spare)
    doomed = [pid for pid in children() if pid not in kept]
    for pid in doomed:
        with suppress(ProcessLookupError, ChildProcessError):
            kill(pid, SIGKILL)
            waitpid(pid, WNOHANG)
    return doomed


def bury(most: int) -> None:
    """Reap the longest dead of our children when more than `most` are dead.

    A process that adopts orphans collects them dead. Those that a handler forked itself and may still wait for
    cannot be told from them, so the last ones stay.
    """
    dead = [pid for pid in children() if _stat(pid)[:1] == ["Z"]]
    for pid in dead[: max(0, len(dead) - most)]:
        with suppress(ChildProcessError):
            waitpid(pid, WNOHANG)


def _read(path: str) -> str:
    with FileIO(path) as file:
        return file.read().decode("utf-8", "replace")


def _processes() -> list[int]:
    try:
        return sorted(int(name) for name in listdir("/proc") if name.isdigit())
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process; empty when it is gone."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return []


def threads() -> int:
    """How many OS threads this process has; 0 where that cannot be found out."""
    try:
        return len(listdir("/proc/self/task"))
    except OSError:
        return 0


def open_sockets(ours: Iterable[int]) -> int:
    """How many sockets are open in this process besides `ours`."""
    count = 0
    known = set(ours)
    try:
        fds = [int(name) for name in listdir("/proc/self/fd")]
    except OSError:
        return 0
    for fd in fds:
        with suppress(OSError):
            count += fd not in known and readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


def raise_open_files() -> None:
    """As many open files as we may have: for the host, to which each worker is a few."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def set_limits(memory: int | None, open_files: int) -> None:
    """No core dumps; the usual number of open files; at most `memory` bytes of private data.

    And the first to go when the machine runs out of memory.
    """
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with suppress(OSError):  # woken for a call, it does not take the processor from the host in the middle of something
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError), FileIO("/proc/self/oom_score_adj", "w") as score:
        score.write(b"900")


def fill_standard_fds() -> None:
    """Where a handler closed one of descriptors 0 to 2, /dev/null takes its place: nothing of ours ever does."""
    while (fd := open_fd(devnull, O_RDWR)) <= 2:
        set_inheritable(fd, True)
    close(fd)


def redirect_output(output: int) -> None:
    """Standard input becomes empty; standard output and error go to `output`."""
    with FileIO(devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if output > 2:
        os.close(output)
