"""The one reader of a journal: it answers beside the writer, from what has been committed, and delays it never.

`sqlite.py` makes it and runs `work` in a lane of its own.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import JournalError
from . import files, queries, rows
from .lane import Operation

log = logging.getLogger("runtime.journal")

_QUESTIONS: dict[str, Callable[[sqlite3.Connection, rows.Names, Any], Any]] = {
    "get": queries.get,
    "request": queries.request,
    "outcome": queries.outcome,
    "events": queries.events,
    "marks": queries.marks,
    "find": queries.find,
    "last_fired": queries.last_fired,
    "spaces": queries.spaces,
    "counts": queries.counts,
    "delayed": queries.delayed,
    "first_beyond": queries.first_beyond,
    "look": lambda *_: None,  # whether the file is still the one at the path
}


class Reader:
    """Its methods are for the lane's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity: files.Identity | None = None
        self._names: rows.Names

    def work(self, operations: list[Operation]) -> None:
        """Answer a batch of questions."""
        for operation in operations:
            if operation.future is None or not operation.future.cancelled():
                self._answer(operation)

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            files.close(self._connection)
            self._connection = None

    def _answer(self, operation: Operation) -> None:
        try:
            connection = self._open()
            connection.execute("BEGIN")  # all of an answer is of one moment
            try:
                operation.result = _QUESTIONS[operation.kind](connection, self._names, operation.arguments)
            finally:
                connection.execute("COMMIT")
        except JournalError as error:
            operation.error = error
        except (sqlite3.Error, OSError) as error:
            operation.error = files.explain(error, self._path)
            self.close()
        except Exception as error:
            log.exception("the journal could not be read")
            operation.error = JournalError(f"The journal {self._path} could not be read: {error!r}.")

    def _open(self) -> sqlite3.Connection:
        """The connection, anew where another file is at the path now."""
        if self._connection is not None:
            if files.identity(self._path) == self._identity:
                return self._connection
            self.close()
        connection = files.open_for_reading(self._path)
        try:
            names = rows.Names(connection)
            names.load()
            identity = files.opened(self._path)
        except BaseException:
            files.close(connection)
            raise
        self._connection, self._names, self._identity = connection, names, identity
        return connection
