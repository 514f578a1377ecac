"""Looks through the folder of one space: which functions are in it, and what is there that is none.

Used by `loader`, in a thread. Files that have not changed are not read again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runtime import snapshots, sources
from runtime.snapshots import Stamp
from runtime.watcher import is_ignored

NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


class Found(msgspec.Struct, frozen=True):
    """One function on disk, as far as its entry file tells; `digest` is that file's alone."""

    space: str
    name: str
    path: Path
    line: int
    kind: sources.Kind
    takes: tuple[str, ...]
    digest: str


class Hint(msgspec.Struct, frozen=True):
    """A file or folder that is no function. `important`: it seems to be meant as one."""

    path: Path
    message: str
    important: bool = True


class _File(msgspec.Struct, frozen=True):
    """What was read of one file; good for as long as its stamp stays, and not at all where that is None."""

    stamp: Stamp | None
    digest: str
    signature: sources.Signature | None
    mentions: frozenset[str]


class Findings(msgspec.Struct):
    """What was found in one space's folder. `links` are those among what was looked at."""

    folder: str
    files: dict[str, _File] = {}
    functions: dict[str, Found] = {}
    links: list[str] = []
    hints: list[Hint] = []


class Search:
    """One look through a space's folder, with what is `known` from the look before."""

    def __init__(self, space: str, folder: str, known: Findings) -> None:
        self._space = space
        self._known = known
        self._helpers: dict[str, str] = {}
        self._result = Findings(folder)

    def run(self) -> Findings:
        """What is in the folder now."""
        try:
            entries = sorted(os.scandir(self._result.folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            self._hint(self._result.folder, f"spaces.toml has a space `{self._space}`, but no such folder exists")
            return self._result
        except OSError as error:
            self._result.hints.append(unreadable(self._result.folder, error))
            return self._result
        folders: list[os.DirEntry[str]] = []
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if entry.is_symlink():
                self._result.links.append(entry.path)
            if entry.is_dir():
                folders.append(entry)
            elif entry.name.endswith(".py"):
                self._file(entry.name[:-3], entry.path)
        for entry in folders:  # after the files, which go first where both have the name
            self._folder(entry.name, entry.path)
        for name in self._known.functions.keys() - self._result.functions.keys():
            self._keep(self._known.functions[name])
        self._hint_helpers()
        if not self._result.functions:
            self._hint(self._result.folder, "there is no function in it: no file here has a `handle`")
        return self._result

    def _file(self, stem: str, path: str) -> None:
        file = self._read(path)
        if file is None:
            return
        if file.signature is None:
            self._helpers[stem] = path
        elif stem == "__init__":
            self._hint(path, "an `__init__.py` is never a function; give its `handle` a file of its own")
        elif self._has_name(stem, path, ".py"):
            self._found(stem, path, file)

    def _folder(self, name: str, path: str) -> None:
        inner = os.path.join(path, "handler.py")
        file = self._read(inner)
        if os.path.islink(inner):
            self._result.links.append(inner)
        if file is None:
            self._hint_missing(path)
        elif file.signature is None:
            self._hint(inner, "it has no `handle`, so the folder is no function")
        elif name in self._result.functions:
            self._hint(inner, f"it is ignored, because {name}.py beside the folder is that function")
        elif self._has_name(name, path, ""):
            self._found(name, inner, file)

    def _found(self, name: str, path: str, file: _File) -> None:
        assert file.signature is not None
        line, kind, takes = file.signature.line, file.signature.kind, file.signature.takes
        self._result.functions[name] = Found(self._space, name, Path(path), line, kind, takes, file.digest)

    def _keep(self, found: Found) -> None:
        """It is a function still if its file is there, with no `handle` in it or unreadable for the moment."""
        path = str(found.path)
        if os.path.isfile(path):
            file = self._result.files.get(path)
            digest = file.digest if file is not None else ""
            self._result.functions[found.name] = msgspec.structs.replace(found, digest=digest)
            self._result.hints = [hint for hint in self._result.hints if hint.path != found.path]
            self._helpers.pop(found.name, None)

    def _read(self, path: str) -> _File | None:
        """What the file says; None where there is no such file, or it cannot be read, which is hinted at."""
        try:
            status = os.stat(path)
            file = self._known.files.get(path)
            if file is None or file.stamp is None or file.stamp != snapshots.stamp(status):
                file = _read(path)
        except FileNotFoundError:
            if os.path.islink(path):
                self._hint(path, "it is a link to a file that does not exist")
            return None
        except OSError as error:
            self._result.hints.append(unreadable(path, error))
            return None
        self._result.files[path] = file
        return file

    def _has_name(self, name: str, path: str, suffix: str) -> bool:
        if NAME.fullmatch(name):
            return True
        self._result.hints.append(misnamed(path, name, suffix))
        return False

    def _hint(self, path: str, message: str, *, important: bool = True) -> None:
        self._result.hints.append(Hint(Path(path), message, important))

    def _hint_missing(self, path: str) -> None:
        """A folder without handler.py holds modules or data, unless one of its files has a `handle`."""
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            self._result.hints.append(unreadable(path, error))
            return
        if "__init__.py" in names:
            return
        for name in names:
            inner = os.path.join(path, name)
            file = self._read(inner) if name.endswith(".py") and not is_ignored(name) else None
            if file is not None and file.signature is not None:
                self._hint(inner, "it is no function: in a folder of its own, a function is in `handler.py`")

    def _hint_helpers(self) -> None:
        mentioned = frozenset[str]().union(*(file.mentions for file in self._result.files.values()))
        for stem, path in self._helpers.items():
            if stem not in mentioned and stem != "__init__":
                message = "it has no `handle`: it is a helper module, not a function"
                self._hint(path, message, important=False)


def _read(path: str) -> _File:
    code, stamp = snapshots.read(path)
    digest = hashlib.sha256(code).hexdigest()
    return _File(stamp, digest, sources.signature(code), sources.mentioned(code))


def unreadable(path: str, error: OSError) -> Hint:
    """What is there cannot be read."""
    return Hint(Path(path), f"it cannot be read: {error.strerror}")


def misnamed(path: str, name: str, suffix: str) -> Hint:
    """What is there cannot be addressed; with a name that could."""
    better = re.sub("[^A-Za-z0-9_-]+", "_", name).strip("_")[:63] or "name"
    what = "function" if suffix else "folder"
    return Hint(
        Path(path),
        f"the {what} cannot be served by this name: names are 1 to 63 letters A to Z, digits, `_` and `-`;"
        f" call it `{better}{suffix}`, for instance",
    )


def misplaced(entry: os.DirEntry[str]) -> Iterator[Hint]:
    """A file beside the spaces' folders."""
    if not entry.name.endswith(".py") or entry.name == "__init__.py":
        return
    try:
        is_function = _read(entry.path).signature is not None
    except OSError:
        return
    message = (
        f"it is not served: a function belongs into the folder of a space, such as demo/{entry.name}"
        if is_function
        else "it is in no space, so that no function can import it"
    )
    yield Hint(Path(entry.path), message, is_function)
