"""Finds the functions on disk, takes their sources, and tells when they change.

Called by `host`, everything but `watch` in a thread. Which files are a function is decided here; what their
text says by `sources`, what one function consists of by `snapshots`, what changed by `watcher`.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import anyio.to_thread
import msgspec

from runtime import config, snapshots, sources
from runtime.config import Config
from runtime.snapshots import Snapshot, Stamp
from runtime.stillness import await_git, settle
from runtime.watcher import Watcher, is_ignored

LOOKS = 10  # times that a function must be looked for in vain to count as deleted
LOOK = 0.01  # seconds between them: more on a busy machine, where a save takes its time, too
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


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


class Catalog(msgspec.Struct, frozen=True):
    """All that was found. A space is in `spaces` with no function in it, too."""

    functions: dict[tuple[str, str], Found]
    spaces: tuple[str, ...]
    hints: tuple[Hint, ...]


class Loader:
    """The functions of one ROOT. Its methods may run in several threads at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._file_state = _state(config.file)
        self._spaces: dict[str, _Space] = {}
        self._hints: list[Hint] = []
        self._scanning = threading.Lock()
        self._watcher: Watcher | None = None

    def configure(self, config: Config) -> None:
        """Go by this configuration from now on; `watch` follows."""
        self._config = config
        self._file_state = _state(config.file)
        if self._watcher is not None:
            self._watcher.aim(self._trees())

    def scan(self, spaces: Collection[str] | None = None) -> Catalog:
        """All functions there are; only in `spaces`, and in new ones, are files looked at again.

        Blocking. Unchanged files are not read again. A function whose file is missing now is looked for a few
        times more: many a way of saving removes a file for a moment. One whose file has lost its `handle`
        stays a function, which cannot be loaded, until the file goes.
        """
        with self._scanning:
            lost = self._functions()
            self._look(spaces)
            lost -= self._functions()
            for _ in range(LOOKS):
                if not lost:
                    break
                time.sleep(LOOK)
                self._look({space for space, _ in lost})
                lost -= self._functions()
            return self._catalog()

    def snapshot(self, space: str, name: str) -> Snapshot:
        """The sources of a function as they are now. Blocking. LoadFailed where there are none to be had."""
        folder = self._config.space_path(space)
        await_git([folder], _sleep)
        return snapshots.take(space, name, str(folder))

    def changed(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool:
        """Whether a new snapshot would differ, or one of `extras` (path → SHA-256 of the content). Blocking.

        Asked in the middle of a git operation, it answers at the end of that.
        """
        folder = self._config.space_path(snapshot.space)
        await_git([folder], _sleep)
        return snapshots.digest_now(snapshot.space, snapshot.name, str(folder)) != snapshot.digest or any(
            snapshots.file_digest(path) != digest for path, digest in extras.items()
        )

    def reconfigured(self) -> Config:
        """What spaces.toml says now, for `configure`. Blocking. ConfigError."""
        settle([str(self._config.file)])
        return config.reload(self._config)

    async def watch(self) -> AsyncGenerator[frozenset[Path], None]:
        """Paths that changed together in the spaces' folders, or spaces.toml: for `affected`.

        The functions folder itself says that everything in the spaces may have changed. It is the first that
        is given, once watching has begun, so who scans after it misses nothing. A git operation is seen as a whole.
        """
        self._watcher = Watcher(self._config.file, self._trees())
        async with aclosing(self._watcher.batches()) as batches:
            async for paths in batches:
                yield paths if paths is not None else await anyio.to_thread.run_sync(self._everything)

    def affected(self, paths: Iterable[Path]) -> set[str] | None:
        """The spaces that these paths belong to, new ones too; None: the configuration, or all of them.

        An empty set still deserves a scan: there may be new hints.
        """
        config, touched = self._config, set[str]()
        named = {space.path: name for name, space in config.spaces.items()}
        above = {folder for path in (config.functions_dir, *named) for folder in path.parents}
        for path in paths:
            if path in (config.file, config.functions_dir) or path in above:
                return None
            for folder in (path, *path.parents):
                if folder in named:
                    touched.add(named[folder])
                elif folder.parent == config.functions_dir and _NAME.fullmatch(folder.name):
                    touched.add(folder.name)
        return touched

    def _everything(self) -> frozenset[Path]:
        config = self._config
        same = _state(config.file) == self._file_state
        return frozenset([config.functions_dir] if same else [config.functions_dir, config.file])

    def _trees(self) -> list[Path]:
        """The folders to watch: not those of spaces that are in the functions folder."""
        inside = self._config.functions_dir
        others = {space.path for space in self._config.spaces.values()}
        return [inside, *sorted(path for path in others if not path.is_relative_to(inside))]

    def _functions(self) -> set[tuple[str, str]]:
        return {(space, name) for space, found in self._spaces.items() for name in found.functions}

    def _look(self, spaces: Collection[str] | None) -> None:
        """Search the folders of these spaces, and of all that are new, again."""
        before = self._spaces
        self._hints = []
        self._spaces = {}
        for name, folder in self._homes().items():
            known = before.get(name)
            if known is None or known.folder != folder or spaces is None or name in spaces:
                known = _Search(name, folder, known if known and known.folder == folder else _Space(folder)).run()
            self._spaces[name] = known

    def _homes(self) -> dict[str, str]:
        """The folder of every space: those that spaces.toml names, then the others in the functions folder."""
        homes = {name: str(space.path) for name, space in self._config.spaces.items()}
        try:
            entries = sorted(os.scandir(self._config.functions_dir), key=lambda entry: entry.name)
        except FileNotFoundError:
            return homes
        except OSError as error:
            self._hints.append(_unreadable(str(self._config.functions_dir), error))
            return homes
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if not entry.is_dir():
                self._hints += _misplaced(entry)
            elif not _NAME.fullmatch(entry.name):
                self._hints.append(_misnamed(entry.path, entry.name, ""))
            elif homes.setdefault(entry.name, entry.path) != entry.path:
                message = f"it is not served: spaces.toml gives the space `{entry.name}` another folder"
                self._hints.append(Hint(Path(entry.path), message))
        return homes

    def _catalog(self) -> Catalog:
        spaces = sorted(self._spaces.items())
        return Catalog(
            functions={(space, name): one for space, found in spaces for name, one in found.functions.items()},
            spaces=tuple(name for name, _ in spaces),
            hints=(*self._hints, *(hint for _, each in spaces for hint in each.hints)),
        )


class _File(msgspec.Struct, frozen=True):
    """What was read of one file; good for as long as its stamp stays, and not at all where that is None."""

    stamp: Stamp | None
    digest: str
    signature: sources.Signature | None
    mentions: frozenset[str]


class _Space(msgspec.Struct):
    """What was found in one space's folder."""

    folder: str
    files: dict[str, _File] = {}
    functions: dict[str, Found] = {}
    hints: list[Hint] = []


class _Search:
    """One look through a space's folder."""

    def __init__(self, space: str, folder: str, known: _Space) -> None:
        self._space = space
        self._known = known
        self._helpers: dict[str, str] = {}
        self._result = _Space(folder)

    def run(self) -> _Space:
        try:
            entries = sorted(os.scandir(self._result.folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            self._hint(self._result.folder, f"spaces.toml has a space `{self._space}`, but no such folder exists")
            return self._result
        except OSError as error:
            self._result.hints.append(_unreadable(self._result.folder, error))
            return self._result
        folders: list[os.DirEntry[str]] = []
        for entry in entries:
            if is_ignored(entry.name):
                continue
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
            self._result.hints.append(_unreadable(path, error))
            return None
        self._result.files[path] = file
        return file

    def _has_name(self, name: str, path: str, suffix: str) -> bool:
        if _NAME.fullmatch(name):
            return True
        self._result.hints.append(_misnamed(path, name, suffix))
        return False

    def _hint(self, path: str, message: str, *, important: bool = True) -> None:
        self._result.hints.append(Hint(Path(path), message, important))

    def _hint_missing(self, path: str) -> None:
        """A folder without handler.py holds modules or data, unless one of its files has a `handle`."""
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            self._result.hints.append(_unreadable(path, error))
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


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _state(path: Path) -> tuple[int, ...]:
    """What differs when the file was changed, as far as that can be seen without reading it."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: str) -> _File:
    code, stamp = snapshots.read(path)
    digest = hashlib.sha256(code).hexdigest()
    return _File(stamp, digest, sources.signature(code), sources.mentioned(code))


def _unreadable(path: str, error: OSError) -> Hint:
    return Hint(Path(path), f"it cannot be read: {error.strerror}")


def _misnamed(path: str, name: str, suffix: str) -> Hint:
    better = re.sub("[^A-Za-z0-9_-]+", "_", name).strip("_")[:63] or "name"
    what = "function" if suffix else "folder"
    return Hint(
        Path(path),
        f"the {what} cannot be served by this name: names are 1 to 63 letters A to Z, digits, `_` and `-`;"
        f" call it `{better}{suffix}`, for instance",
    )


def _misplaced(entry: os.DirEntry[str]) -> Iterator[Hint]:
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
