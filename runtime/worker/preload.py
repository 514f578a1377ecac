"""Imports what a space preloads, in a base zygote that nobody is attached to yet. Called by `base_zygote.py`.

What cannot be imported is left out, and said. What must not be forked afterwards is left out too: by starting
this interpreter anew, without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from os import _exit, closerange, environ, execve, getpid, set_inheritable
from socket import send_fds, socket
from time import sleep

from . import handler, process
from .forking import be_undisturbed, calm_collector, forking_is_unsafe
from .parent import encode

MAIN = sys.argv[0]  # an import may change it


def preload(names: Sequence[str], door: socket) -> None:
    """Import each of them; the door is told which, before, and why not, after."""
    pid, env = getpid(), dict(environ)
    for name in names:
        send_fds(door, [encode({"op": "importing", "name": name})], ())
        why = None
        try:
            with calm_collector():
                import_module(name)
        except BaseException as error:
            why = handler.describe_error(error)["message"]
        finally:
            if getpid() != pid:  # a child that the import forked must not be a second one of us
                _exit(0)
        unsafe = forking_is_unsafe({door.fileno()})
        if why is not None or unsafe is not None:
            said = {"op": "left_out", "name": name, "why": why or unsafe, "unsafe": unsafe is not None}
            send_fds(door, [encode(said)], ())
        if unsafe is not None:
            _start_anew([other for other in names if other != name], door.fileno(), env)
    be_undisturbed()


def _start_anew(names: Sequence[str], door: int, env: dict[str, str]) -> None:
    """Become a new interpreter that preloads only these; what the last import has started ends."""
    while process.kill_children():
        sleep(0.001)
    closerange(3, door)
    closerange(door + 1, process.OPEN_FILES)
    set_inheritable(door, True)
    execve(sys.executable, [sys.executable, "-P", MAIN, str(door), *names], env)
