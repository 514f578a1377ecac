"""Tells which files changed below some folders, and whether one file beside them did.

Used by `loader`; does it with watchfiles, in threads of its own. Knows Python files, nothing of functions.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from stat import S_ISDIR

import anyio
import anyio.to_thread
import watchfiles

from .links import Links, seen_through
from .stillness import await_git

STEP = 5  # ms: a batch is over when nothing else changed for so long
QUIET = 30.0  # seconds without a change after which we look less often
REST = 0.045  # seconds between two looks then
DEBOUNCE = 50  # ms: the longest that a batch goes on
POLL = 0.5  # seconds between two looks, where the system does not tell of changes
MANY = 1000  # changes in a batch, from which on to look at everything is simpler and misses nothing
PAUSE = 0.1  # seconds before watching begins again after it broke

log = logging.getLogger("spaces.loader")


class _Note(enum.Enum):
    STOP = enum.auto()
    AGAIN = enum.auto()  # a tree has come or gone: watch anew
    ALL = enum.auto()  # too much to tell


def is_ignored(name: str) -> bool:
    """Whether no file or folder of this name is ever a user's own code: caches, editors' files, dotfiles."""
    return (
        name.startswith((".", "#", "flycheck_"))
        or name.endswith(("~", ".pyc", "___jb_tmp___", "___jb_old___"))
        or name in ("__pycache__", "node_modules", "site-packages", "4913")
    )


class Watcher:
    """Watches `trees`, folders with all that is in them, and the single `file`; none of them need exist yet.

    What cannot be code is not told of: names that `is_ignored`, and files that are not `.py` or `.so`.
    """

    def __init__(self, file: Path, trees: Collection[Path]) -> None:
        self._file = str(file)
        self._trees = tuple(map(str, trees))
        self._links: Links = {}
        self._queue: SimpleQueue[frozenset[str] | _Note] = SimpleQueue()
        self._threads: list[_Thread] = []
        self._closed = threading.Event()
        self._warned = False
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts the changes at INFO

    def aim(self, trees: Collection[Path], links: Links | None = None) -> None:
        """Watch these trees instead, and what these links in them lead to. From any thread."""
        wanted = tuple(map(str, trees)), links or {}
        if wanted != (self._trees, self._links):
            self._trees, self._links = wanted
            self._queue.put(_Note.AGAIN)

    async def batches(self) -> AsyncGenerator[frozenset[Path] | None, None]:
        """Paths that changed together; None: anything may have, so look at everything.

        The first is None, once watching has begun: nothing that changes after it is missed. Ends promptly
        when cancelled or closed. Iterate once.
        """
        limiter = anyio.CapacityLimiter(1)
        try:
            while True:
                # When this is cancelled the thread is left behind, and `_close` ends its waiting.
                found = await anyio.to_thread.run_sync(self._next, abandon_on_cancel=True, limiter=limiter)
                if found is None or found:
                    yield found
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)

    def _next(self) -> frozenset[Path] | None:
        if not self._threads:
            self._begin()
            return None
        items = [self._queue.get()]
        await_git(map(Path, {os.path.dirname(self._file), *self._trees}), self._closed.wait)
        items += self._waiting()
        if _Note.AGAIN in items and not self._closed.is_set():
            self._begin()
            return None
        if _Note.ALL in items:
            return None
        return frozenset(Path(path) for item in items if isinstance(item, frozenset) for path in item)

    def _waiting(self) -> Iterator[frozenset[str] | _Note]:
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def _begin(self) -> None:
        """Watch what is there now. Of folders that are not, and of the file, the folder above is watched."""
        for thread in self._threads:
            thread.stop()
        before = self._roots()
        above = {os.path.dirname(path) for path in (self._file, *self._trees)}
        above |= {os.path.dirname(place) for link, way in self._links.items() for place in (link, *way)}
        there = [tree for tree in self._trees if os.path.isdir(tree)]
        above = {folder for folder in above if not any(_is_below(folder, tree) for tree in there)}
        self._threads = [_Thread(self, {_existing(folder) for folder in above}, recursive=False)]
        if there:
            self._threads.append(_Thread(self, there, recursive=True))
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.began.wait()
        if self._roots() != before:  # one came or went when it was not watched for any more, or not yet
            self._queue.put(_Note.AGAIN)

    def _roots(self) -> list[tuple[int, int] | None]:
        """Which folders the trees are at present, and what links lead to."""
        return [_identity(path) for path in (*self._trees, *self._links)]

    def _close(self) -> None:
        self._closed.set()
        self._queue.put(_Note.STOP)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # What its threads ask it.

    def is_over(self) -> bool:
        return self._closed.is_set()

    def wait(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def changed(self, changes: Collection[watchfiles.main.FileChange]) -> None:
        """Some paths in the folders of one thread have changed."""
        seen = {other for _, path in changes for other in (path, *seen_through(self._links, path))}
        paths = frozenset(filter(self._concerns, seen))
        if any(change is not watchfiles.Change.modified and self._uproots(path) for change, path in changes):
            self._queue.put(_Note.AGAIN)
        elif len(changes) > MANY:
            self._queue.put(_Note.ALL)
        elif paths:
            self._queue.put(paths)

    def refused(self, error: Exception) -> None:
        """The system does not tell of changes. Said once."""
        if self._warned:
            return
        self._warned = True
        log.warning(
            "the system does not tell of changes (%s): looking every %g s instead, so that a save takes longer"
            " to be served; if a limit of inotify is the reason, raise it with `sysctl fs.inotify.max_user_%s=…`",
            error, POLL, "instances" if "os error 24" in str(error) else "watches",
        )  # fmt: skip

    def broken(self) -> None:
        """One thread has ended although it should not have."""
        if not self._closed.wait(PAUSE):
            self._queue.put(_Note.AGAIN)

    def _uproots(self, path: str) -> bool:
        """Whether the path is a tree, or above one."""
        return any(f"{tree}{os.sep}".startswith(f"{path}{os.sep}") for tree in self._trees)

    def _concerns(self, path: str) -> bool:
        if path == self._file:
            return True
        folder, name = os.path.split(path)
        below = [path[len(tree) + 1 :] for tree in self._trees if path.startswith(f"{tree}{os.sep}")]
        if name == "..data":  # what Kubernetes swaps when a mounted ConfigMap changes
            return bool(below) or folder == os.path.dirname(self._file)
        if all(any(map(is_ignored, rest.split(os.sep))) for rest in below):
            return False
        suffix = os.path.splitext(name)[1]
        return suffix in (".py", ".so") or (not suffix and not os.path.isfile(path))


class _Thread(threading.Thread):
    """One watch: through watchfiles, which asks for the system's events every few ms, or by looking for itself."""

    def __init__(self, watcher: Watcher, folders: Collection[str], *, recursive: bool) -> None:
        super().__init__(name="spaces watcher", daemon=True)
        self.began = threading.Event()
        self._watcher = watcher
        self._folders = folders
        self._recursive = recursive
        self._stopping = False
        self._changed_at = time.monotonic()
        self._rested = False

    def stop(self) -> None:
        self._stopping = True

    def is_set(self) -> bool:
        """Whether to stop. watchfiles asks once a step, and first when the watch has been set up.

        It looks for changes after each answer, so one that takes its time makes a quiet watch wake seldom. Only every
        other one does: what was changed meanwhile is a batch after two looks.
        """
        self.began.set()
        self._rested = not self._rested and time.monotonic() > self._changed_at + QUIET
        if self._rested:
            time.sleep(REST)
        return self._stopping or self._watcher.is_over()

    def run(self) -> None:
        try:
            if _must_poll():
                self._poll()
            else:
                self._follow()
        except FileNotFoundError as error:
            self._broken(error)
        except (OSError, RuntimeError) as error:
            if self.began.is_set():
                self._broken(error)
            else:
                self._watcher.refused(error)
                self._poll()
        finally:
            self.began.set()

    def _follow(self) -> None:
        for changes in watchfiles.watch(
            *self._folders,
            watch_filter=None,
            debounce=DEBOUNCE,
            step=STEP if self._recursive else 4 * STEP,  # code is saved more often than spaces.toml
            stop_event=self,
            rust_timeout=0,  # with a timeout it could lose what comes in at that very moment
            raise_interrupt=False,
            force_polling=False,  # its polling misses a change within the second of the one before
            recursive=self._recursive,
        ):
            self._changed_at = time.monotonic()
            self._watcher.changed(changes)

    def _poll(self) -> None:
        before = dict(self._look())
        while not self.is_set():
            started = time.monotonic()
            now = dict(self._look())
            if changes := _differences(before, now):
                self._watcher.changed(changes)
            before = now
            self._watcher.wait(max(POLL, 10 * (time.monotonic() - started)))

    def _look(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What is in the folders, with what changes when it does."""
        todo, seen = [*self._folders], set[int]()
        while todo:
            for entry in _entries(todo.pop()):
                try:
                    status = entry.stat()
                except OSError:
                    continue
                if not S_ISDIR(status.st_mode):
                    yield entry.path, (status.st_ino, status.st_ctime_ns, status.st_mtime_ns)
                    continue
                yield entry.path, (status.st_ino,)
                if self._recursive and status.st_ino not in seen:  # links may lead in circles
                    seen.add(status.st_ino)
                    todo.append(entry.path)

    def _broken(self, error: Exception) -> None:
        if not self._stopping:
            log.warning("watching for changes was interrupted (%s); it begins again", error)
            self._watcher.broken()


Looked = dict[str, tuple[int, ...]]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if not is_ignored(entry.name)]
    except OSError:
        return []


def _differences(before: Looked, now: Looked) -> set[watchfiles.main.FileChange]:
    kinds = {
        watchfiles.Change.added: now.keys() - before.keys(),
        watchfiles.Change.deleted: before.keys() - now.keys(),
        watchfiles.Change.modified: {path for path in now.keys() & before.keys() if now[path] != before[path]},
    }
    return {(kind, path) for kind, paths in kinds.items() for path in paths}


def _must_poll() -> bool:
    """Whether events are known not to come here: so it was said, as for network folders, or it is Windows below."""
    wish = os.environ.get("WATCHFILES_FORCE_POLLING", "").lower()
    return wish not in ("", "false", "disable", "disabled") or (
        not wish and "microsoft-standard" in os.uname().release.lower()
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _existing(folder: str) -> str:
    """The folder, or the nearest above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
