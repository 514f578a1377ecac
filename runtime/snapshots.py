"""The sources of one function at one moment: its entry file and the local modules that it imports.

Taken by `loader`, in a thread; read through `sources`. What is taken goes to the function's process, where
`worker/importer.py` serves imports from it, so how names are resolved here must agree with that.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from errno import EFBIG, EMFILE, ENFILE, ENOENT, ENOMEM
from stat import S_ISREG
from typing import NamedTuple

import msgspec

from runtime import entrypoints, sources
from runtime.entrypoints import FILES, MEANT, Entrypoint
from runtime.errors import LoadFailed
from runtime.stillness import QUIET, settle

ATTEMPTS = 30
PATIENCE = 2
LARGEST = 16 * 1024 * 1024  # bytes of a file of Python
MANY = 1000  # modules that a function may be given only because it could import them
_SHORTAGES = EMFILE, ENFILE, ENOMEM  # no fault of the file that is read
_RACY = 2_000_000_000  # ns: a file that young could change again without its stamp showing it

Stamp = tuple[int, int, int, int]


class Known(NamedTuple):
    """Where a function was found before, and as what: it need not be in a file of its name."""

    path: str
    entrypoint: Entrypoint


class Module(msgspec.Struct, frozen=True):
    """One source file. `name` is the full dotted one: functions.<space>.<path below the space's folder>.

    `late`: when it is imported by its short name, an installed package of that name goes first.
    """

    name: str
    path: str
    code: bytes
    package: bool
    late: bool


class Snapshot(msgspec.Struct, frozen=True):
    """The sources of one generation, as they all were on disk at one moment; `modules[0]` is the entry.

    `entrypoint` is the function in it. `folder` is the entry's own. `search` is what goes to the end of
    sys.path: that folder, then the space's.
    `names` are the words in its imports.
    """

    space: str
    name: str
    entry: str
    folder: str
    search: tuple[str, ...]
    modules: tuple[Module, ...]
    digest: str
    files: frozenset[str]
    names: frozenset[str]
    entrypoint: Entrypoint = Entrypoint(sources.Signature(1, "unknown", ()))

    @property
    def known(self) -> Known:
        """Where to look for the function again."""
        return Known(self.entry, self.entrypoint)

    def may_import(self, path: str, folder: str) -> bool:
        """Whether one of its imports may be of this file or folder in `folder`, going by names alone."""
        inside = path.removeprefix(folder).strip(os.sep).split(os.sep)
        return sources.ALL_BELOW in self.names or any(_stem(part) in self.names for part in inside)


def take(space: str, name: str, folder: str, known: Known | None = None) -> Snapshot:
    """The sources of function `name` of the space in `folder`. LoadFailed where there are none to be had.

    Every file was read twice with the same result, so a change that was going on is in it as a whole or not
    at all. Files saved a moment ago are given time to be finished, and an entry that is missing is looked for
    again after QUIET: some editors move a file away before they write the new one.
    """
    for attempt in range(ATTEMPTS):
        try:
            reading = _Reading(space, name, folder, known)
        except LoadFailed:
            if attempt >= PATIENCE:
                raise
            time.sleep(QUIET)
        else:
            if reading.holds():
                return reading.snapshot()
    raise LoadFailed(f"{name} and what it imports kept changing while they were being read")


def digest_now(space: str, name: str, folder: str, known: Known | None = None) -> str | None:
    """The digest that a snapshot would have now, going by one reading; None where there is no function."""
    try:
        return _Reading(space, name, folder, known).digest()
    except LoadFailed:
        return None


def file_digest(path: str) -> str:
    """The SHA-256 of the file's content in hexadecimal; empty where it cannot be read."""
    try:
        return hashlib.sha256(read(path)[0]).hexdigest()
    except OSError:
        return ""


def read(path: str) -> tuple[bytes, Stamp | None]:
    """A file's content, and its stamp from before. OSError, also for what is no ordinary file, or is too large."""
    status = os.stat(path)
    if not S_ISREG(status.st_mode):
        raise FileNotFoundError(ENOENT, "not a file", path)
    if status.st_size > LARGEST:
        raise OSError(EFBIG, f"it has {status.st_size} bytes, and a file of Python may have {LARGEST}", path)
    with open(path, "rb") as file:
        return file.read(), stamp(status)


def stamp(status: os.stat_result) -> Stamp | None:
    """What differs when a file has been changed; None where the file is too young to rely on that."""
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _RACY:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def find_entry(name: str, folder: str, known: Known | None = None) -> Known:
    """The file of function `name`: NAME.py, NAME/handler.py, or where it was found before. LoadFailed.

    A file that cannot be parsed is still what it was known to be: importing it says what is wrong with it.
    """
    plain = os.path.join(folder, f"{name}.py")
    before = known.path if known is not None else plain
    problem, details, shortage = f"{before} was deleted", {}, False
    for path in dict.fromkeys((plain, *(os.path.join(folder, name, leaf) for leaf in FILES), before)):
        try:
            contents = entrypoints.read(read(path)[0])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem, shortage = f"it cannot be read: {error.strerror}", error.errno in _SHORTAGES
        else:
            if known is not None and known.path == path and contents.broken:
                return known
            found = entrypoints.functions(path, folder, contents).get(name)
            if found is not None:
                return Known(path, found)
            if path != before and os.path.basename(path) in FILES[1:]:
                continue  # a module of this usual name
            meant = MEANT[known.entrypoint.convention if known is not None and path == before else "handle"]
            problem = f"it has no {meant} any more; if it is to be no function, delete it or give it another name"
        details = {"file": path, "line": 1}
    raise LoadFailed(problem, details=details, retryable=shortage)


class _Reading:
    """One reading of a function's files, from the entry on."""

    def __init__(self, space: str, name: str, folder: str, known: Known | None) -> None:
        self.space, self.name, self.folder = space, name, folder
        self.entry, self.entrypoint = find_entry(name, folder, known)
        self.own, leaf = os.path.split(self.entry)
        self.modules: dict[str, Module] = {}
        self._states: dict[str, tuple[Stamp | None, str]] = {}
        self._todo: list[Module] = []
        self.names = {"", "__init__", "functions"}  # what may matter without being imported by name
        # A user's own module `functions` must stay importable beside the package that we make up.
        taken = any(_is_module(os.path.join(place, "functions")) for place in (self.own, folder))
        self.home = f"functions_.{space}" if taken else f"functions.{space}"
        self._folders = {self.home: folder}
        self._own_package = self.home
        if self.own != folder:
            self._own_package = f"{self.home}.{os.path.basename(self.own)}"
        if not self._take(f"{self._own_package}.{_stem(leaf)}", self.entry, late=True):
            raise LoadFailed(f"{self.entry} was deleted")
        if self.own != folder:
            self._folders[self._own_package] = self.own
            self._take(self._own_package, os.path.join(self.own, "__init__.py"), late=True, package=True)
        while self._todo:
            module = self._todo.pop()
            for statement in sources.imports(module.code):
                self.names.update(statement.module.split("."), statement.names)
                self._resolve(module, statement)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            space=self.space,
            name=self.name,
            entry=self.entry,
            folder=self.own,
            search=tuple(dict.fromkeys((self.own, self.folder))),
            modules=tuple(self.modules.values()),
            digest=self.digest(),
            files=frozenset(self._states),
            names=frozenset(self.names),
            entrypoint=self.entrypoint,
        )

    def digest(self) -> str:
        """One hash over the names, paths and contents of all modules."""
        hashed = hashlib.sha256()
        for name, module in sorted(self.modules.items()):
            hashed.update(f"{name}\0{module.path}\0{self._states[module.path][1]}\n".encode("utf-8", "replace"))
        return hashed.hexdigest()

    def holds(self) -> bool:
        """Whether every file still is as it was read, once nobody seems to be saving any of them."""
        settle(self._states)
        return all(self._is_unchanged(path, *state) for path, state in self._states.items())

    def _is_unchanged(self, path: str, then: Stamp | None, digest: str) -> bool:
        try:
            if then is not None and stamp(os.stat(path)) == then:
                return True
        except OSError:
            return False
        return file_digest(path) == digest

    def _take(self, name: str, path: str, *, late: bool, package: bool = False) -> bool:
        """Read a file into the snapshot; False where there is none that can be read. LoadFailed where none can be."""
        try:
            code, state = read(path)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise LoadFailed(f"{path} cannot be read now: {error.strerror}", retryable=True) from error
            return False
        module = Module(name, path, code, package, late)
        self.modules[name] = module
        self._states[path] = state, hashlib.sha256(code).hexdigest()
        self._todo.append(module)
        return True

    def _resolve(self, module: Module, statement: sources.Import) -> None:
        """Take what one import statement names, as far as that is local."""
        parts = statement.module.split(".") if statement.module else []
        if not parts and sources.ALL_BELOW in statement.names:
            self._take_all(self._own_package)
            self._take_all(self.home)
            return
        for package, names in self._starts(module, parts, statement.level):
            if self._follow(package, names, statement.names):
                return

    def _starts(self, module: Module, parts: list[str], level: int) -> Iterator[tuple[str, list[str]]]:
        """From which packages to look, and for what, in the order of preference."""
        home = self.home.split(".")
        if level:
            package = module.name.split(".")
            depth = len(package) - level + module.package
            if depth >= len(home):
                yield ".".join(package[:depth]), parts
        elif parts[:2] == home:
            yield self.home, parts[2:]
        elif parts and parts[0] not in sys.stdlib_module_names:
            # A folder without __init__.py counts only where no file has the name, as with sys.path.
            places = dict.fromkeys((self._own_package, self.home))
            real = [place for place in places if _is_module(os.path.join(self._folders[place], parts[0]))]
            yield from ((place, parts) for place in real or places)

    def _follow(self, package: str, parts: list[str], names: tuple[str, ...]) -> bool:
        """Take what lies on the way down from `package`, then `names` of the last; False: nothing is."""
        for depth, part in enumerate(parts):
            step = self._step(package, part)
            if step is None:
                return depth > 0
            package = step
        if "*" in names and package in self.modules:
            names += sources.exported(self.modules[package].code)
        if sources.ALL_BELOW in names:
            self._take_all(package)
        for name in names:
            self._step(package, name)
        return True

    def _take_all(self, package: str) -> None:
        """Take every module below the package, as which of them will be imported cannot be told."""
        try:
            found = sorted(os.listdir(self._folders[package]))
        except (KeyError, OSError):
            return
        for stem in dict.fromkeys(map(_stem, found)):
            if not stem.isidentifier() or stem == "__pycache__" or len(self.modules) >= MANY:
                continue
            if package == self.home and _is_function(os.path.join(self._folders[package], stem)):
                continue
            name = f"{package}.{stem}"
            if name not in self.modules and self._step(package, stem) is not None:
                self._take_all(name)

    def _step(self, package: str, part: str) -> str | None:
        """The full name of the module or package `part` in `package`; it is in the snapshot from now on."""
        folder = self._folders.get(package)
        if folder is None or not part or os.sep in part:
            return None
        name, path = f"{package}.{part}", os.path.join(folder, part)
        if name in self.modules or name in self._folders:
            return name
        late = package == self.home and _is_function(path)
        if self._take(name, os.path.join(path, "__init__.py"), late=late, package=True):
            self._folders[name] = path
        elif not self._take(name, f"{path}.py", late=late):
            if not os.path.isdir(path):
                return None
            self._folders[name] = path
        return name


def _stem(name: str) -> str:
    return name.removesuffix(".py")


def _has_function(path: str, folder: str) -> bool:
    try:
        return bool(entrypoints.functions(path, folder, entrypoints.read(read(path)[0])))
    except OSError:
        return False


def _is_function(path: str) -> bool:
    """Whether the file or folder of this path without its suffix, in the space's folder, is a function's."""
    folder = os.path.dirname(path)
    first, *others = (os.path.join(path, leaf) for leaf in FILES)
    return (
        _has_function(f"{path}.py", folder)
        or os.path.isfile(first)
        or any(_has_function(other, folder) for other in others)
    )


def _is_module(path: str) -> bool:
    return os.path.isfile(f"{path}.py") or os.path.isfile(os.path.join(path, "__init__.py"))
