"""The files of trained functions: handlers, folders of models, exports. All of it blocks, and may raise OSError.

Called by `training.py`, in threads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..whereabouts import make_folder


def write(state: Path, file: Path, text: str) -> bool:
    """Put the text there, whole or not at all; whether the file said anything else before."""
    with suppress(OSError):
        if file.read_text(encoding="ascii") == text:
            return False
    make(state, file.parent)
    draft = file.with_name(f".handler.py.{os.getpid()}")  # a name that nobody takes for code
    with draft.open("w", encoding="ascii") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return True


def make(state: Path, folder: Path) -> None:
    """Make a folder in the state folder."""
    make_folder(state)
    for each in reversed([folder, *folder.parents]):
        if state in each.parents:
            each.mkdir(mode=0o700, exist_ok=True)  # whoever made the state folder: nobody else's to read


def claim(folder: Path) -> int | None:
    """A descriptor that nobody else gets for this folder until it is closed, or its process ends; None: one has it."""
    handle = os.open(folder / ".claim", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a file system without locks: a training too many does no harm
        pass
    return handle


def remove(folder: Path) -> None:
    """The folder goes, and what is in it, as far as that can be done."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty(folder: Path) -> None:
    """The folder goes, unless there is anything in it."""
    with suppress(OSError):
        folder.rmdir()


def unlink(file: Path) -> None:
    """The file goes, if there is one."""
    file.unlink(missing_ok=True)


def exports(models: Path) -> list[Path]:
    """What trainings of all functions are made from, or were."""
    return sorted(models.glob("*/export-*.jsonl"))
