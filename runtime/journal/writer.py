"""The one writer of a journal: each batch of operations in one transaction, with one commit.

`sqlite.py` makes it and runs `work` in a lane of its own. What a batch did is on the disk when `work` returns.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import JournalError
from . import Claim, Receipt, accepts, claims, deliveries, files, holders, rows, statements
from .batch import REFUSED, Batch, Note, refusal
from .lane import Operation
from .owners import EXPIRY, RENEWAL, Owner, Turn

REOPEN_SECONDS = 1.0  # between two attempts to open a journal that failed
COMPLAIN_EVERY = 60.0  # seconds

log = logging.getLogger("runtime.journal")

# In the order in which they are done. All of a batch are concurrent, so any order is right; claims come last, to find
# what is new.
_TOGETHER: dict[str, Callable[[Batch, Sequence[Operation]], None]] = {
    "append": accepts.append,
    "complete": claims.complete,
}
_SINGLY: dict[str, Callable[[Batch, Any], Any]] = {
    "append_checked": accepts.append_checked,
    "fired": accepts.fired,
    "cancelled": claims.cancelled,
    "retry": claims.retry,
    "release": claims.release,
    "cancel": claims.cancel,
    "delivered": deliveries.delivered,
    "give_up": deliveries.give_up,
    "redeliver": deliveries.redeliver,
    "unclaim_deliveries": deliveries.unclaim_deliveries,
    "forget": deliveries.forget,
    "forget_keys": deliveries.forget_keys,
    "shrink": deliveries.shrink,
    "take_over": claims.take_over,
    "claim_deliveries": deliveries.claim_deliveries,
    "claim": claims.claim,
}
_LOOKING = {"open", "look"}  # what is known is made good, and delayed calls are made ready; nothing else is asked
_PROMOTING = {"claim", *_LOOKING}
_GIVING_BACK = {"release", "unclaim_deliveries"}
# Failures after which the connection is as good as before.
_PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Times(msgspec.Struct, frozen=True):
    """When the next of these are due; None: never."""

    call: float | None
    delivery: float | None


class Report(msgspec.Struct):
    """What a batch changed, for the event loop. None: nothing in this respect."""

    touched: Sequence[int] = ()
    waiting_change: Mapping[tuple[str, str], int] = {}
    waiting: dict[tuple[str, str], int] | None = None  # counted anew
    times: Times | None = None
    soonest: float | None = None  # another call is due then
    to_cancel: list[int] | None = None
    stale: bool = False  # another owner has written: only a look can tell what is waiting
    cancels_asked: bool = False  # of calls that run, perhaps in another owner's hands
    callbacks_due: bool = False
    look_seconds: float = 0.0  # how long it took to count anew
    noted: int = 0  # bytes of notes that are done with
    failed: bool = False
    let_go: bool = False  # the file was closed; whoever else in this process has it open is to look whether it is there
    inherited: Sequence[Claim] = ()  # taken over, but whoever had asked for it was told that it had failed


class Writer:
    """All of its methods but the first are for the lane's thread."""

    def __init__(
        self,
        path: Path,
        owner: Owner,
        notes: deque[Note],
        clock: Callable[[], float],
        uptime: Callable[[], float],
        turn: Turn | None = None,
    ) -> None:
        """`turn`: waited for before each batch."""
        self._path, self._owner, self._notes = path, owner, notes
        self._turn = turn
        self._clock, self._uptime = clock, uptime
        self.commits = 0
        self._connection: sqlite3.Connection | None = None
        self._identity: files.Identity | None = None
        self._names: rows.Names
        self._version: int | None = None  # of the data, as others wrote it
        self._recount = True  # what is known may be wrong
        self._renewed = 0.0
        self._failure: JournalError | None = None
        self._retry_at = 0.0
        self._owed: list[Operation] = []  # what gives back what nobody heard to be in our hands
        self._inherited: list[Claim] = []
        self._locked_out = False  # another process keeps the lock
        self._complained_at = float("-inf")

    def work(self, operations: list[Operation]) -> Report | None:
        """Do a batch: every operation has its result or its error then."""
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        if not operations and not notes and not self._owed:
            return None
        size = _size(notes)
        try:
            with self._turn or nullcontext():
                report = self._commit(operations, notes)
        except (sqlite3.Error, OSError) as error:
            failure, code = files.explain(error, self._path), getattr(error, "sqlite_errorcode", None)
            let_go = self._undo(failure, passing=code in _PASSING)
            if code is not None and code & 0xFF == sqlite3.SQLITE_BUSY:
                self._complain()
        except JournalError as error:
            failure = error
            let_go = self._undo(failure)
        except Exception as error:
            log.exception("the journal failed")
            failure = JournalError(f"The journal failed: {error!r}.")
            notes, self._owed = [], []  # it may have been the fault of one of them
            let_go = self._undo(failure)
        else:
            report.noted = size
            return report
        self._notes.extendleft(reversed(notes))  # for the next batch
        for operation in operations:
            if operation.future is None and operation.kind in _GIVING_BACK:  # nobody would ask for it again
                self._owed.append(operation)
            operation.result, operation.error = None, _copy(failure)
        inherited, self._inherited = self._inherited, []
        return Report(failed=True, noted=size - _size(notes), let_go=let_go, inherited=inherited)

    def close(self) -> None:
        """Write the last notes, and let go of the file and of the lock."""
        self.work([])
        ended = self._connection is not None and self._leave()
        self.abandon(forget=ended)

    def abandon(self, *, forget: bool = False) -> None:
        """Let go without a word, as if the process had died."""
        if self._connection is not None:
            files.close(self._connection)
            self._connection = None
        if self._turn is not None:
            self._turn.close()
        self._owner.end(forget=forget)

    def _commit(self, operations: list[Operation], notes: list[Note]) -> Report:
        connection = self._open(at_once=any(operation.kind == "open" for operation in operations))
        files.begin(connection, hurried=self._locked_out)
        self._locked_out = False
        self._check()
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
        self._recount = self._recount or version != self._version  # another owner has written
        self._version = version
        batch = Batch(connection, self._owner, self._names, self._clock(), self._uptime())
        kinds = self._apply(batch, [*operations, *self._owed], notes)
        recounted = self._recount and not kinds.isdisjoint(_LOOKING)
        report = self._report(batch, recounted)
        connection.execute("COMMIT")
        self._owed = []
        try:
            self._check(after=True)
        except JournalError:  # the file may come back, and it has all of this
            notes.clear()
            self._owe(operations)
            raise
        self.commits += 1
        self._recount = report.stale
        for owner in batch.buried:
            self._owner.path(owner).unlink(missing_ok=True)
        return report

    def _apply(self, batch: Batch, operations: list[Operation], notes: list[Note]) -> set[str]:
        if notes:
            batch.note(notes)
        kinds: dict[str, list[Operation]] = {}
        for operation in operations:
            if operation.future is None or not operation.future.cancelled():
                kinds.setdefault(operation.kind, []).append(operation)
        for kind in _TOGETHER:
            if kind in kinds:
                _do_together(batch, kinds[kind])
        if not kinds.keys().isdisjoint(_PROMOTING):
            batch.promote()
        for kind in _SINGLY:
            if kind in kinds:
                _do_singly(batch, kinds[kind])
        if (batch.claimed or "renew" in kinds) and batch.uptime - self._renewed > RENEWAL / 2:
            self._renew(batch)
        return set(kinds)

    def _renew(self, batch: Batch) -> None:
        """What we hold is ours for another while; one that holds nothing writes nothing."""
        if batch.execute(statements.HOLDS, (self._owner.id, self._owner.id)).fetchone()[0]:
            batch.execute(statements.PUT_OWNER, (self._owner.id, self._owner.boot, batch.uptime + EXPIRY))
            self._renewed = batch.uptime

    def _report(self, batch: Batch, recounted: bool) -> Report:
        report = Report(touched=batch.touched, waiting_change=batch.waiting, stale=self._recount and not recounted)
        report.cancels_asked, report.callbacks_due = batch.cancels_asked, batch.callbacks_due
        report.soonest = batch.soonest
        if recounted:
            began = self._uptime()
            found = batch.execute(statements.WAITING).fetchall()
            text = self._names.text
            report.waiting = {(text(space), text(name)): count for space, name, count in found}
            report.look_seconds = self._uptime() - began
        if recounted or batch.times_changed:
            times = (batch.execute(each).fetchone() for each in (statements.NEXT_CALL, statements.NEXT_DELIVERY))
            report.times = Times(*(row and row[0] for row in times))
        if recounted or batch.cancels_changed:
            report.to_cancel = [row[0] for row in batch.execute(statements.TO_CANCEL, (self._owner.id,))]
        return report

    def _check(self, *, after: bool = False) -> None:
        """What goes into a file that is not at its path any more is lost, and one whose -shm is not has no locks.

        `after` a commit: whether the file has gone just then. What has become of the others, the next batch finds.
        """
        assert self._identity is not None
        try:
            if after:
                if files.file_id(self._path) == self._identity[0]:
                    return
            elif files.identity(self._path) == self._identity:
                return
        except OSError:
            pass
        raise JournalError(
            f"The journal {self._path}, its -wal or its -shm file was deleted or replaced while in use. Stop the host "
            "before you move them; put the first two back if they are needed. It goes on with what is there a second "
            "later."
        )

    def _owe(self, operations: list[Operation]) -> None:
        """What these have put into our hands is given back once the file is open again: nobody will hear of it."""
        for operation in operations:
            if operation.kind == "take_over":
                self._inherited += operation.result or []
            self._owed += giving_back(operation)

    def _open(self, *, at_once: bool) -> sqlite3.Connection:
        """The connection, opened again after a failure, but not too often."""
        if self._connection is not None:
            return self._connection
        if self._failure is not None and self._uptime() < self._retry_at and not at_once:
            # Not a copy: one who asks again and again must not put the next attempt off.
            raise self._failure.with_traceback(None)
        connection = files.open_for_writing(self._path, hurried=self._failure is not None)
        try:
            self._begin(connection)
        except BaseException:
            files.close(connection)
            raise
        self._connection, self._failure = connection, None
        return connection

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Be known as an owner, and find out what there is."""
        known_as, self._identity = self._identity, files.opened(self._path)
        if known_as is not None and known_as[0] != self._identity[0]:
            self._owner.replace()  # should that file come back, what we had in our hands there is for whoever finds it
        self._owner.begin()
        files.begin(connection)
        self._check()
        row = (self._owner.id, self._owner.boot, self._uptime() + EXPIRY)
        connection.execute(statements.PUT_OWNER, row)
        known = {row[0] for row in connection.execute(statements.OTHER_OWNERS, (self._owner.id,))}
        connection.execute("COMMIT")
        self._owner.tidy(known)
        self._names = rows.Names(connection)
        self._names.load()
        self._renewed, self._recount = self._uptime(), True

    def _undo(self, failure: JournalError, *, passing: bool = False) -> bool:
        """Nothing of the batch has happened. Whether the connection was closed, as it may be of no use."""
        self._renewed = 0.0
        if self._connection is not None:
            try:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._names.load()  # those that were new are not there any more
            except sqlite3.Error:
                passing = False
        if passing:
            return False
        let_go = self._connection is not None
        if self._connection is not None:
            files.save(self._connection, self._path, self._identity)
            files.close(self._connection)
            self._connection = None
        if failure is not self._failure:
            self._failure, self._retry_at = failure, self._uptime() + REOPEN_SECONDS
        return let_go

    def _complain(self) -> None:
        """Say who keeps us from writing: nobody else will. The next batches do not wait as long as this one has."""
        self._locked_out = True
        if self._uptime() - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = self._uptime()
            log.error("the journal %s is kept locked by %s", self._path, holders.writer_of(self._path))

    def _leave(self) -> bool:
        """Say that we end, and what we hold is for others; whether it could be written."""
        assert self._connection is not None
        try:
            files.begin(self._connection)
            self._check()
            holds = self._connection.execute(statements.HOLDS, (self._owner.id, self._owner.id)).fetchone()[0]
            self._connection.execute(statements.END_OWNER if holds else statements.FORGET_OWNER, (self._owner.id,))
            self._connection.execute("COMMIT")
            written = True
        except (sqlite3.Error, JournalError):
            written = False
        with suppress(sqlite3.Error):
            self._connection.rollback()
        files.save(self._connection, self._path, self._identity)
        return written


def giving_back(operation: Operation) -> list[Operation]:
    """What is to be done where nobody heard of what an operation has put into our hands."""
    result = operation.result
    if operation.kind == "claim":
        return [Operation("release", (claim.entry.id, None), None) for claim in result or ()]
    if operation.kind == "claim_deliveries" and result:
        return [Operation("unclaim_deliveries", [delivery.entry.id for delivery in result], None)]
    if isinstance(result, Receipt) and result.claimed:
        return [Operation("release", (result.id, None), None)]
    return []


def _do_together(batch: Batch, operations: Sequence[Operation]) -> None:
    """All at once; where that is refused, one by one, so that only those fail that are at fault."""
    try:
        with batch.undone_if_refused():
            _TOGETHER[operations[0].kind](batch, operations)
    except REFUSED as error:
        if len(operations) == 1:
            operations[0].error = refusal(error)
            return
        for operation in operations:
            _do_together(batch, [operation])


def _do_singly(batch: Batch, operations: Sequence[Operation]) -> None:
    for operation in operations:
        try:
            with batch.undone_if_refused():
                operation.result = _SINGLY[operation.kind](batch, operation.arguments)
        except REFUSED as error:
            operation.error = refusal(error)


def _size(notes: Sequence[Note]) -> int:
    return sum(len(note.data) for note in notes)


def _copy(error: JournalError) -> JournalError:
    """For each who is told: an exception that is raised in many places would collect all of their tracebacks."""
    return JournalError(error.message, details=error.details)
