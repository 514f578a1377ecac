"""Operations of the journal that record new calls.

Called by `writer.py` within a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calls import Submission
from ..errors import KeyReused
from . import KEY_LIFE, Receipt, rows, statements
from .batch import Batch
from .lane import Operation
from .schema import DELAYED, NO_CALLBACK, READY, RUNNING, WAITING


def is_plain(submission: Submission) -> bool:
    """Whether there is nothing to look up before it is recorded."""
    return submission.idempotency_key is None and not _is_scheduled(submission)


def append(batch: Batch, operations: Sequence[Operation]) -> None:
    """Record plain calls. `arguments`: submission, claim."""
    calls: list[Any] = []
    requests: list[Any] = []
    for operation in operations:
        calls += _row(batch, *operation.arguments)
        requests += rows.request_row(operation.arguments[0].call)
    batch.write_flat(statements.INSERT_CALLS, calls, len(operations))
    batch.write_flat(statements.INSERT_REQUESTS, requests, len(operations))
    for operation, state in zip(operations, calls[3 :: len(calls) // len(operations)], strict=True):
        operation.result = _receipt(batch, operation.arguments[0], state)


def append_checked(batch: Batch, arguments: tuple[Submission, bool]) -> Receipt:
    """Record a call, unless its key or its schedule says that it has been."""
    submission, call, key = arguments[0], arguments[0].call, arguments[0].idempotency_key
    scheduled = _is_scheduled(submission)
    if scheduled and not _is_new(batch, call.schedule_id, call.scheduled_time):
        return Receipt(0, "", repeated=True)
    digest = b"" if key is None else rows.digest(submission)
    if key is not None and (known := _known(batch, submission, key, digest)):
        return known
    row = _row(batch, *arguments)
    batch.write(statements.INSERT_CALLS, [row])
    batch.write(statements.INSERT_REQUESTS, [rows.request_row(call)])
    if scheduled:
        batch.execute(statements.PUT_FIRED, (call.schedule_id, call.scheduled_time))
    if key is not None:
        batch.execute(statements.PUT_KEY, (row[1], row[2], key, batch.now, call.id, call.label, digest))
    return _receipt(batch, submission, row[3])


def fired(batch: Batch, arguments: tuple[int, float]) -> None:
    """A time of a schedule is over, whether or not there was a call for it."""
    if _is_new(batch, *arguments):
        batch.execute(statements.PUT_FIRED, arguments)


def _is_scheduled(submission: Submission) -> bool:
    """A rerun may carry the schedule of its first run, but nothing has fired for it."""
    return submission.call.schedule_id != 0 and submission.trigger != "rerun"


def _is_new(batch: Batch, schedule_id: int, time: float) -> bool:
    row = batch.execute(statements.FIRED, (schedule_id,)).fetchone()
    return row is None or row[0] < time


def _known(batch: Batch, submission: Submission, key: str, digest: bytes) -> Receipt | None:
    call = submission.call
    parameters = batch.names.make(call.space), batch.names.make(call.name), key
    row = batch.execute(statements.KEY, parameters).fetchone()
    if row is None or row[2] + KEY_LIFE <= batch.now:
        return None
    if row[3] != digest:
        raise KeyReused
    return Receipt(row[0], row[1], repeated=True)


def _row(batch: Batch, submission: Submission, claim: bool) -> tuple[Any, ...]:
    """For INSERT_CALLS."""
    call, now, names = submission.call, batch.now, batch.names
    run_at = now if submission.run_at is None else submission.run_at
    state = DELAYED if run_at > now else RUNNING if claim else READY
    running = state == RUNNING
    return (
        call.id, names.make(call.space), names.make(call.name), state, submission.priority,
        1 if running else 0, batch.owner.id if running else None, now, run_at, now if running else None,
        NO_CALLBACK if submission.callback_url is None else WAITING,
        None if call.label == str(call.id) else call.label, submission.trigger, submission.idempotency_key,
        call.schedule_id, call.scheduled_time, submission.callback_url,
    )  # fmt: skip


def _receipt(batch: Batch, submission: Submission, state: int) -> Receipt:
    call = submission.call
    if state == READY:
        batch.count(call.space, call.name, 1)
    elif state == RUNNING:
        batch.claimed = True
    elif submission.run_at is not None:
        batch.soonest = submission.run_at if batch.soonest is None else min(batch.soonest, submission.run_at)
    return Receipt(call.id, call.label, claimed=state == RUNNING)
