"""Whether a process may be forked, and what is done to it before and after.

Used by `zygote.py` around a handler's import, and by `preload.py` around each module's.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import _exit, fork, waitpid
from signal import (
    ITIMER_PROF,
    ITIMER_REAL,
    ITIMER_VIRTUAL,
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGPIPE,
    setitimer,
    signal,
)
from threading import enumerate as all_threads
from threading import main_thread
from time import sleep
from typing import Any

from . import process

THREAD_END_MS = 50
CALM = 50_000  # new objects after which the collector looks for garbage among them


@contextmanager
def calm_collector() -> Iterator[None]:
    """Around imports, whose objects stay: to look for garbage among them 700 at a time takes a tenth of their time.

    Where the import itself sets how often that is done, it stays so.
    """
    often, *rest = gc.get_threshold()
    gc.set_threshold(max(often, CALM) if often else 0, *rest)
    calm = gc.get_threshold()
    try:
        yield
    finally:
        if gc.get_threshold() == calm:
            gc.set_threshold(often, *rest)


def forking_is_unsafe(ours: Iterable[int]) -> str | None:
    """Why this process must not be forked to make workers, or None. `ours`: sockets that may be open.

    Threads that survive in the parent across a fork are missing in the child, with their locks held
    (OpenBLAS and others end theirs before a fork: so one is tried). Open sockets would be shared.
    """
    if process.threads() > 1:
        pid = fork()
        if pid == 0:
            _exit(0)
        waitpid(pid, 0)
    names = [thread.name for thread in all_threads() if thread is not main_thread()]
    for _ in range(0 if names else THREAD_END_MS):  # a thread that was joined is still there for a moment
        if process.threads() <= 1:
            break
        sleep(0.001)
    if process.threads() > 1:
        return f"importing it left threads running ({', '.join(names) or 'not Python threads'})"
    if process.open_sockets(ours):
        return "importing it left sockets open, which forked workers would share"
    return None


def be_undisturbed() -> dict[int, Any]:
    """Undo what an import may have set up that would hinder a zygote; the signal handlers that workers have instead."""
    for timer in (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF):
        setitimer(timer, 0)  # a forked worker has none of them anyway
    process.fill_standard_fds()
    ours = {SIGCHLD: SIG_DFL, SIGPIPE: SIG_IGN}
    return {number: theirs for number, mine in ours.items() if (theirs := signal(number, mine)) not in (mine, None)}


def settle(handlers: dict[int, Any]) -> None:
    """What a worker does before it has any sockets. (The `random` module sees to itself.)"""
    for number, handler in handlers.items():
        signal(number, handler)
    process.adopt_orphans()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # so that siblings draw other numbers
    torch_generator = getattr(sys.modules.get("torch"), "default_generator", None)
    if torch_generator is not None:
        torch_generator.seed()
