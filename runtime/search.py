"""Looks through the folder of one space: which functions are in it, and what is there that is none.

Used by `loader`, in a thread. Files that have not changed are not read again.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from runtime import entrypoints, snapshots, sources
from runtime.entrypoints import FILES, Convention, Entrypoint, Entrypoints
from runtime.snapshots import Known, Stamp
from runtime.watcher import is_ignored

NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
GUESSED = 20  # names, of those that no file has, for which the nearest right one is looked for


class Found(msgspec.Struct, frozen=True):
    """One function on disk, as far as its entry file tells; `digest` is that file's alone.

    `convention`, `target` and `app` are those of its Entrypoint.
    """

    space: str
    name: str
    path: Path
    line: int
    kind: sources.Kind
    takes: tuple[str, ...]
    digest: str
    convention: Convention = "handle"
    target: str = ""
    app: str = ""

    @property
    def known(self) -> Known:
        """Where to look for it again."""
        signature = sources.Signature(self.line, self.kind, self.takes)
        return Known(str(self.path), Entrypoint(signature, self.convention, self.target, self.app))


class Hint(msgspec.Struct, frozen=True):
    """A file or folder that is no function. `important`: it seems to be meant as one."""

    path: Path
    message: str
    important: bool = True


class _File(msgspec.Struct, frozen=True):
    """What was read of one file; good for as long as its stamp stays, and not at all where that is None."""

    stamp: Stamp | None
    digest: str
    contents: Entrypoints
    mentions: frozenset[str]


class _Claim(NamedTuple):
    """A file that defines a function of some name."""

    path: str
    file: _File
    entry: Entrypoint


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
        self._claims: dict[str, list[_Claim]] = {}
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
            if is_folder(entry):
                folders.append(entry)
            elif entry.name.endswith(".py"):
                self._file(entry.name[:-3], entry.path)
        for entry in folders:  # after the files, which go first where both have the name
            self._folder(entry.name, entry.path)
        for name, claims in self._claims.items():
            self._settle(name, claims)
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
        if not file.contents.found:
            self._helpers[stem] = path
            self._hint_unserved(path, file)
        elif stem == "__init__":
            self._hint(path, "an `__init__.py` is never a function; give its `handle` a file of its own")
        else:
            self._claim(path, file)

    def _folder(self, name: str, path: str) -> None:
        inner = os.path.join(path, FILES[0])
        file = self._read(inner)
        if os.path.islink(inner):
            self._result.links.append(inner)
        if file is not None and file.contents.found:
            self._claim(inner, file)
            return
        for leaf in FILES[1:]:
            other = os.path.join(path, leaf)
            usual = self._read(other)
            if usual is not None and entrypoints.functions(other, self._result.folder, usual.contents):
                self._claim(other, usual)
                return
        if file is None:
            self._hint_missing(path)
        else:
            self._hint(inner, "it has no `handle`, so the folder is no function")
            self._hint_unserved(inner, file)

    def _claim(self, path: str, file: _File) -> None:
        """This file has functions; one that cannot be parsed has those that it had."""
        self._hint_unserved(path, file)
        found = entrypoints.functions(path, self._result.folder, file.contents)
        if file.contents.broken:
            before = {one.name: one.known.entrypoint for one in self._known.functions.values() if str(one.path) == path}
            found = before or found
        for name, entry in found.items():
            if self._has_name(name, path, entry):
                self._claims.setdefault(name, []).append(_Claim(path, file, entry))
        for entry in file.contents.found:
            if entry.app and entry.app != found.get(entry.target, entry).app:
                self._hint(path, f"`{entry.target}` of the app `{entry.app}` is ignored: another app here has it, too")

    def _settle(self, name: str, claims: list[_Claim]) -> None:
        """Which file is the function of this name: the one called so, else the first."""
        here = [claim for claim in claims if _stem(claim.path, self._result.folder) == name]
        path, file, entry = (here or claims)[0]
        line, kind, takes = entry.signature.line, entry.signature.kind, entry.signature.takes
        self._result.functions[name] = Found(
            self._space, name, Path(path), line, kind, takes, file.digest, entry.convention, entry.target, entry.app
        )
        folder = self._result.folder
        for other in claims:
            if other.path == path:
                continue
            beside = " beside the folder" if os.path.dirname(path) == folder != os.path.dirname(other.path) else ""
            what = f"its `{name}`" if _stem(other.path, folder) != name else "it"
            winner = os.path.relpath(path, folder) + beside
            self._hint(other.path, f"{what} is ignored, because {winner} is that function")

    def _keep(self, found: Found) -> None:
        """It is a function still if its file is there, with no function in it or unreadable for the moment."""
        path = str(found.path)
        if not os.path.isfile(path):
            return
        file = self._result.files.get(path)
        if file is not None and file.contents.found and not file.contents.broken:
            return  # it has others now
        digest = file.digest if file is not None else ""
        self._result.functions[found.name] = msgspec.structs.replace(found, digest=digest)
        self._result.hints = [hint for hint in self._result.hints if hint.path != found.path]
        self._helpers.pop(found.path.stem, None)

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

    def _has_name(self, name: str, path: str, entry: Entrypoint) -> bool:
        if NAME.fullmatch(name):
            return True
        plain = os.path.dirname(path) == self._result.folder
        if name == entry.target and entry.convention in ("kernel", "functions_framework"):
            self._result.hints.append(misnamed(path, name, "", what="function"))
        elif plain:
            self._result.hints.append(misnamed(path, name, ".py"))
        else:
            self._result.hints.append(misnamed(os.path.dirname(path), name, ""))
        return False

    def _hint(self, path: str, message: str, *, important: bool = True) -> None:
        self._result.hints.append(Hint(Path(path), message, important))

    def _hint_unserved(self, path: str, file: _File) -> None:
        for line, why in file.contents.unserved:
            self._hint(path, f"line {line}: {why}")

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
            if file is not None and file.contents.found:
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
    return _File(stamp, digest, entrypoints.read(code), sources.mentioned(code))


def _stem(path: str, folder: str) -> str:
    """The name that a file, or the folder that it is in, would give to a function."""
    place, leaf = os.path.split(path)
    return os.path.basename(place) if place != folder else leaf.removesuffix(".py")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; not where a link leads in a circle, or where nobody may look."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def unreadable(path: str, error: OSError) -> Hint:
    """What is there cannot be read."""
    return Hint(Path(path), f"it cannot be read: {error.strerror}")


def misnamed(path: str, name: str, suffix: str, what: str = "") -> Hint:
    """What is there cannot be addressed; with a name that could. Without a suffix it is a folder, or `what`."""
    better = re.sub("[^A-Za-z0-9_-]+", "_", name).strip("_")[:63] or "name"
    what = what or ("function" if suffix else "folder")
    shown = f" `{name}`" if what == "function" and not suffix else ""
    return Hint(
        Path(path),
        f"the {what}{shown} cannot be served by this name: names are 1 to 63 letters A to Z, digits, `_` and `-`;"
        f" call it `{better}{suffix}`, for instance",
    )


def misplaced(entry: os.DirEntry[str]) -> Iterator[Hint]:
    """A file beside the spaces' folders."""
    if not entry.name.endswith(".py") or entry.name == "__init__.py":
        return
    try:
        is_function = bool(_read(entry.path).contents.found)
    except OSError:
        return
    message = (
        f"it is not served: a function belongs into the folder of a space, such as demo/{entry.name}"
        if is_function
        else "it is in no space, so that no function can import it"
    )
    yield Hint(Path(entry.path), message, is_function)


def fileless(file: Path, space: str, named: Collection[str], found: Collection[str]) -> Iterator[Hint]:
    """Functions that are `named` in spaces.toml, and not among those `found`; nothing where none was found at all."""
    lost = [name for name in named if name not in found] if found else []
    for count, name in enumerate(lost):
        near = difflib.get_close_matches(name, found, 1) if count < GUESSED else []
        better = f"; did you mean `{near[0]}`?" if near else ""
        yield Hint(file, f"[spaces.{space}.functions.{name}] is for a function that no file has{better}")
