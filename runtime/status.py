"""What is shown of a function: how it is doing, and why it cannot be loaded.

Asked by `host.py`, which adds nothing to it. Paths are shown relative to ROOT.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from .errors import LoadFailed
from .pool import Pool
from .registry import Function

STATES = ("ready", "loading", "failed", "cold")


class FunctionStatus(msgspec.Struct, frozen=True):
    """What GET /spaces/{space}/functions/{name} shows.

    `state`: `cold` (not loaded; the first call loads it), `loading`, `ready`, or `failed` (its files
    cannot be loaded, and there is no earlier generation that serves).
    """

    space: str
    name: str
    id: int
    file: str
    line: int
    kind: str
    takes: tuple[str, ...]
    state: str
    generation: str | None
    workers: int
    busy: int
    waiting: int
    load_error: dict[str, Any] | None


def status_of(function: Function, pool: Pool | None, root: Path) -> FunctionStatus:
    """A function as it is now; without a pool it was never called."""
    current = pool.current if pool is not None else None
    return FunctionStatus(
        space=function.space,
        name=function.name,
        id=function.id,
        file=relative(function.path, root),
        line=function.line,
        kind=current.loaded.kind if current else function.kind,
        takes=current.loaded.takes if current else function.takes,
        state=pool.state if pool is not None else "cold",
        generation=current.snapshot.digest[:12] if current else None,
        workers=len(current.workers) if current else 0,
        busy=sum(worker.busy for worker in current.workers) if current else 0,
        waiting=len(pool.waiting) if pool is not None else 0,
        load_error=describe(pool.error, root) if pool is not None and pool.error else None,
    )


def merged(ours: FunctionStatus, theirs: Iterable[FunctionStatus]) -> FunctionStatus:
    """How a function does in several host processes: all its workers and calls, and the state of the furthest."""
    everywhere = [ours, *theirs]
    best = min(everywhere, key=lambda each: STATES.index(each.state))
    return msgspec.structs.replace(
        best,
        workers=sum(each.workers for each in everywhere),
        busy=sum(each.busy for each in everywhere),
        waiting=sum(each.waiting for each in everywhere),
        load_error=next((each.load_error for each in everywhere if each.load_error), None),
    )


def describe(error: LoadFailed, root: Path) -> dict[str, Any]:
    """A load error as it is shown."""
    shown: dict[str, Any] = {"message": error.message.replace(f"{root}/", ""), **error.details}
    if "file" in shown:
        shown["file"] = relative(Path(shown["file"]), root)
    return shown


def relative(path: Path, root: Path) -> str:
    """The path below ROOT, or as it is."""
    return str(path).removeprefix(os.path.join(root, ""))  # as text: it is asked of every function in a list
