"""The journal file: how it is opened, whether it is still there, and what a failure of it means.

Called by `writer.py` and `reader.py`, each of which has a connection of its own in its own thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from ..errors import JournalError
from ..whereabouts import make_folder
from . import schema

BUSY_SECONDS = 5.0  # how long another process may hold the lock
HURRIED_SECONDS = 0.5  # once it has held it for so long
FREE_LOOK_SECONDS = 0.01  # between two looks at whether the others have let go of the file
AGAIN_SECONDS = 0.0002  # until the lock is asked for again: the others hold it for about so long
_CHECKPOINT_PAGES = 2000  # the log is copied into the file when it is this long
_CACHE_KIB = 16 * 1024

_ADVICE = {
    sqlite3.SQLITE_FULL: "The disk is full. Make room; it goes on by itself then",
    sqlite3.SQLITE_READONLY: "It cannot be written. Make the file and its folder writable",
    sqlite3.SQLITE_PERM: "Access is denied. Make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "It cannot be opened. Check that the folder exists and may be written",
    sqlite3.SQLITE_BUSY: "Another process keeps it locked. Find that process (`fuser` names it) and end it",
    sqlite3.SQLITE_LOCKED: "Another process keeps it locked. Find that process (`fuser` names it) and end it",
    sqlite3.SQLITE_CORRUPT: "It is damaged. Stop the host, move the file away and restore it from a copy, or "
    "save what is left with `sqlite3 journal.db .recover`",
    sqlite3.SQLITE_NOTADB: "It is not a database. Move it away, or restore it from a copy",
    sqlite3.SQLITE_IOERR: "The disk failed to read or write. Check the disk, its space and its quota",
}

_BESIDE = ("-wal", "-shm")  # the log, and what is shared of it: where its pages are, and the locks

FileId = tuple[int, int]
Identity = tuple[FileId, ...]  # the file's own comes first


def open_for_writing(path: Path, *, hurried: bool = False) -> sqlite3.Connection:
    """A connection to the journal file, which is made, folder and tables included, where it is missing."""
    _await_free(path, HURRIED_SECONDS if hurried else BUSY_SECONDS)
    try:
        if make_folder(path.parent):
            _sync_folder(path.parent)
            _sync_folder(path.parent.parent)
        is_new = not path.exists()
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=512)
    except (OSError, sqlite3.Error) as error:
        raise explain(error, path) from error
    try:
        _keep_private(path)
        _set_up(connection, path)
        if is_new:
            _sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        close(connection)
        raise explain(error, path) from error
    except BaseException:
        close(connection)
        raise
    return connection


def _keep_private(path: Path) -> None:
    """Whoever made the state folder: what was sent and answered is nobody else's to read."""
    for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):  # those that SQLite makes are as the first one is
        with suppress(FileNotFoundError, PermissionError):  # there is none; or its owner decides
            os.chmod(each, 0o600)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that reads beside the one that writes, without either waiting for the other."""
    _await_free(path, 0.0)
    try:
        address = f"{path.absolute().as_uri()}?mode=rw"  # never makes a file: only the writer does
        connection = sqlite3.connect(
            address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=512
        )
    except (OSError, sqlite3.Error) as error:
        raise explain(error, path) from error
    try:
        connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        close(connection)
        raise explain(error, path) from error
    return connection


def _await_free(path: Path, patience: float) -> None:
    """Where the log or the shared memory is missing: nobody uses the journal any more when this returns.

    Whoever still does has those that were deleted. With new ones beside them, two would write at once, and into the
    same pages.
    """
    give_up = time.monotonic() + patience
    while os.path.exists(path) and not all(os.path.exists(f"{path}{each}") for each in _BESIDE):
        if _is_free(path):
            return
        if time.monotonic() > give_up:
            raise JournalError(
                f"The journal {path} is in use, but its -wal or its -shm file was deleted. Whoever uses it must let go "
                "of it first: hosts do so within seconds, other programs have to be ended (`fuser` names them)."
            )
        time.sleep(FREE_LOOK_SECONDS)


def _is_free(path: Path) -> bool:
    """Whether no connection has the file open, in whatever process. Other faults are for whoever opens it next."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # needs no shared memory, but the file for itself
            connection.execute("SELECT count(*) FROM sqlite_schema")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY
    return True


def begin(connection: sqlite3.Connection, *, hurried: bool = False) -> None:
    """Begin to write, once no other process does.

    SQLite's own waiting would be longer and longer up to a tenth of a second, and whoever has waited would find the
    lock taken again by one who has not.
    """
    _patiently(connection, "BEGIN IMMEDIATE", HURRIED_SECONDS if hurried else BUSY_SECONDS)


def _patiently(connection: sqlite3.Connection, statement: str, patience: float) -> sqlite3.Cursor:
    give_up = time.monotonic() + patience
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
        time.sleep(AGAIN_SECONDS)


def save(connection: sqlite3.Connection, path: Path, known: Identity | None) -> None:
    """Copy the log into the file, as far as nobody else needs it: somebody may have deleted the log.

    And empty it: what is left of it would be taken for a part of another file that is put at the path.
    Not where there is another -shm now: who uses that may have written the log anew, and we know nothing of it.
    """
    try:
        if known is not None and file_id(f"{path}-shm") != known[-1]:
            return
    except OSError:
        pass  # there is none; while we have the file open, none is made by us or by our kind
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:
        pass  # then it is still in the log


def close(connection: sqlite3.Connection) -> None:
    """Let go of a connection, whatever state it and its file are in."""
    try:
        connection.close()
    except sqlite3.Error:
        pass  # what was committed is in the log, and the next one to open the file finds it there


def identity(path: Path) -> Identity:
    """Which file, log and shared memory are at the path now. OSError where one is missing."""
    return file_id(path), file_id(f"{path}-wal"), file_id(f"{path}-shm")


def opened(path: Path) -> Identity:
    """The same, of what has just been opened.

    As long as another connection of this process has an older -shm, SQLite gives that one to new connections, too.
    """
    found = identity(path)
    if not _has_open(found[-1]):
        raise JournalError(f"The journal {path}: its -shm file was replaced while in use. It goes on in a moment.")
    return found


def file_id(path: Path | str) -> FileId:
    """Which file is at the path now. OSError where there is none."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _has_open(wanted: FileId) -> bool:
    """Whether this process has a file open, as far as can be told."""
    try:
        handles = os.listdir("/proc/self/fd")
    except OSError:
        return True
    for each in handles:
        with suppress(OSError):  # it was closed meanwhile
            if file_id(f"/proc/self/fd/{each}") == wanted:
                return True
    return False


def explain(error: Exception, path: Path) -> JournalError:
    """What went wrong, where, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, OSError):
        said, advice = error.strerror or str(error), "Check that the folder exists and may be written"
        return JournalError(f"The journal {path}: {said}. {advice}.", details={"cause": said})
    advice = _ADVICE.get(code & 0xFF, "") if code is not None else ""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return JournalError(
        f"The journal {path} cannot be used: {error}. {advice}{'.' if advice else ''}".rstrip(), details={"cause": name}
    )


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    if not connection.execute("PRAGMA page_count").fetchone()[0]:  # of an old one it could not be changed
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # it can be made smaller
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    # SQLite would not wait for another process that does the same with a new file.
    mode = _patiently(connection, "PRAGMA journal_mode = WAL", BUSY_SECONDS).fetchone()[0]
    if mode != "wal":
        raise JournalError(f"The journal {path} must be on a local disk: its file system has no shared memory.")
    schema.migrate(connection, str(path))
    connection.execute("PRAGMA busy_timeout = 0")  # from here on, `begin` does the waiting
    # Writes nothing, but fails where nothing can be written, and makes the log that `identity` looks for.
    begin(connection)
    connection.execute("ROLLBACK")


def _sync_folder(folder: Path) -> None:
    """A file's name survives a power cut only once its folder has been synced too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
