"""Finds the functions on disk, takes their sources, and tells when they change.

Called by `host`, everything but `watch` in a thread. What is in a space is found by `search`, what one function
consists of by `snapshots`, what changed by `watcher`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import anyio.to_thread
import msgspec

from runtime import config, links, snapshots
from runtime.config import Config
from runtime.search import NAME, Findings, Found, Hint, Search, fileless, is_folder, misnamed, misplaced, unreadable
from runtime.snapshots import Snapshot
from runtime.stillness import await_git, settle
from runtime.watcher import Watcher, is_ignored

LOOKS = 10  # times that a function must be looked for in vain to count as deleted
LOOK = 0.01  # seconds between them: more on a busy machine, where a save takes its time, too


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
        self._spaces: dict[str, Findings] = {}
        self._hints: list[Hint] = []
        self._links = links.LinkBook()
        self._scanning = threading.Lock()
        self._watcher: Watcher | None = None

    def configure(self, config: Config) -> None:
        """Go by this configuration from now on; `watch` follows."""
        self._config = config
        self._file_state = _state(config.file)
        self._aim()

    def scan(self, spaces: Collection[str] | None = None) -> Catalog:
        """All functions there are; only in `spaces`, and in new ones, are files looked at again.

        Blocking. Unchanged files are not read again. A function whose file is missing now is looked for a few
        times more: many a way of saving removes a file for a moment. One whose file has lost its `handle`
        stays a function, which cannot be loaded, until the file goes.
        """
        with self._scanning:
            before = self._spaces
            self._look(spaces)
            for _ in range(LOOKS):
                lost = self._lost(before)
                if not lost:
                    break
                time.sleep(LOOK)
                await_git([self._config.space_path(space) for space, _ in lost], _sleep)
                self._look({space for space, _ in lost})
            if self._lost(before) or before.keys() != self._spaces.keys():
                self._links.keep({"", *self._spaces, *self._functions()})
            self._links.note("", links.above(str(self._config.file)) | links.above(str(self._config.functions_dir)))
            self._aim()
            return self._catalog()

    def snapshot(self, space: str, name: str) -> Snapshot:
        """The sources of a function as they are now. Blocking. LoadFailed where there are none to be had."""
        folder = self._config.space_path(space)
        await_git([folder], _sleep)
        findings = self._spaces.get(space)
        found = findings.functions.get(name) if findings is not None else None
        snapshot = snapshots.take(space, name, str(folder), found.known if found is not None else None)
        self._follow(snapshot, ())
        return snapshot

    def changed(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool:
        """Whether a new snapshot would differ, or one of `extras` (path → SHA-256 of the content). Blocking.

        Asked in the middle of a git operation, it answers at the end of that.
        """
        folder = self._config.space_path(snapshot.space)
        await_git([folder], _sleep)
        if extras:
            self._follow(snapshot, extras)
        now = snapshots.digest_now(snapshot.space, snapshot.name, str(folder), snapshot.known)
        return now != snapshot.digest or any(snapshots.file_digest(path) != digest for path, digest in extras.items())

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
        self._aim()
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
                elif folder.parent == config.functions_dir and NAME.fullmatch(folder.name):
                    touched.add(folder.name)
        return touched

    def _follow(self, snapshot: Snapshot, extras: Iterable[str]) -> None:
        """Watch where the links to a function's files lead; `extras` are those found only as it was imported."""
        folder = str(self._config.space_path(snapshot.space))
        self._links.note((snapshot.space, snapshot.name), links.met((*snapshot.files, *extras), folder))
        self._aim()

    def _aim(self) -> None:
        if self._watcher is not None:
            self._watcher.aim(self._trees(), self._links.all())

    def _everything(self) -> frozenset[Path]:
        config = self._config
        same = _state(config.file) == self._file_state
        return frozenset([config.functions_dir] if same else [config.functions_dir, config.file])

    def _trees(self) -> list[Path]:
        """The folders to watch: not those of spaces that are in the functions folder."""
        inside = self._config.functions_dir
        others = set(self._config.homes.values())
        return [inside, *sorted(path for path in others if not path.is_relative_to(inside))]

    def _functions(self) -> set[tuple[str, str]]:
        return {(space, name) for space, found in self._spaces.items() for name in found.functions}

    def _lost(self, before: dict[str, Findings]) -> set[tuple[str, str]]:
        """The functions that are no more. Spaces that were not looked at again have lost none."""
        now = {space: self._spaces.get(space, Findings("")) for space, found in before.items()}
        others = ((space, found) for space, found in before.items() if now[space] is not found)
        return {
            (space, name) for space, found in others for name in found.functions.keys() - now[space].functions.keys()
        }

    def _look(self, spaces: Collection[str] | None) -> None:
        """Search the folders of these spaces, and of all that are new, again."""
        before, after = self._spaces, dict[str, Findings]()
        self._hints = []
        for name, folder in self._homes().items():
            known = before.get(name)
            if known is None or known.folder != folder or spaces is None or name in spaces:
                known = Search(name, folder, known if known and known.folder == folder else Findings(folder)).run()
            after[name] = known
            self._links.note(name, links.met(known.links, folder))
        self._spaces = after

    def _homes(self) -> dict[str, str]:
        """The folder of every space: those that spaces.toml names, then the others in the functions folder."""
        homes = {name: str(path) for name, path in self._config.homes.items()}
        try:
            entries = sorted(os.scandir(self._config.functions_dir), key=lambda entry: entry.name)
        except FileNotFoundError:
            return homes
        except OSError as error:
            self._hints.append(unreadable(str(self._config.functions_dir), error))
            return homes
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if not is_folder(entry):
                self._hints += misplaced(entry)
            elif not NAME.fullmatch(entry.name):
                self._hints.append(misnamed(entry.path, entry.name, ""))
            elif homes.setdefault(entry.name, entry.path) != entry.path:
                message = f"it is not served: spaces.toml gives the space `{entry.name}` another folder"
                self._hints.append(Hint(Path(entry.path), message))
        return homes

    def _catalog(self) -> Catalog:
        spaces = sorted(self._spaces.items())
        return Catalog(
            functions={(space, name): one for space, found in spaces for name, one in found.functions.items()},
            spaces=tuple(name for name, _ in spaces),
            hints=(*self._hints, *(hint for _, each in spaces for hint in each.hints), *self._fileless()),
        )

    def _fileless(self) -> Iterator[Hint]:
        for space, settings in self._config.spaces.items():
            if findings := self._spaces.get(space):
                yield from fileless(self._config.file, space, settings.functions, findings.functions)


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
