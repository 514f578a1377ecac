"""What `threading` and `logging` do around a fork, left out where a zygote forks that has one thread.

They would renew locks that nobody holds, at the price of a hundred pages of memory for each child. Imported by
`__main__.py` before anything else of ours, so that they register here; used by `parent.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from os import fork as ordinary_fork
from typing import Any

Hook = Callable[[], Any]

_hooks: dict[str, list[Hook]] = {"before": [], "after_in_parent": [], "after_in_child": []}
_alone = False


def fork() -> int:
    """As os.fork, in a process whose only thread is this one. The child's own forks are ordinary ones."""
    global _alone
    _alone = True
    try:
        return ordinary_fork()
    finally:
        _alone = False


def _run(moment: str) -> None:
    if not _alone:
        for hook in _hooks[moment]:
            hook()


def _take(**hooks: Hook) -> None:
    for moment, hook in hooks.items():
        _hooks[moment].append(hook)


def _import() -> None:
    genuine = os.register_at_fork
    os.register_at_fork = _take  # type: ignore[assignment]
    try:  # one that was imported before has registered by itself
        import_module("threading")
        import_module("logging")
    finally:
        os.register_at_fork = genuine
    _hooks["before"].reverse()
    genuine(
        before=lambda: _run("before"),
        after_in_parent=lambda: _run("after_in_parent"),
        after_in_child=lambda: _run("after_in_child"),
    )


_import()
