"""Operations of the journal on calls that are claimed, run, ended, cancelled or taken over.

Called by `writer.py` within a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..calls import Outcome, Status
from . import Claim, rows, statements
from .batch import Batch
from .lane import Operation
from .schema import DELAYED, READY, RUNNING

_CLAIMS = f"""SELECT {rows.ENTRY}, {rows.REQUEST} FROM calls JOIN requests USING (id)
    WHERE calls.id IN (SELECT value FROM json_each(?))"""


class _Held(NamedTuple):
    """A running call in our hands, and what must be seen to when it leaves them."""

    id: int
    told: int
    cancel: int
    callback: int
    space: int
    name: int


def claim(batch: Batch, wanted: Mapping[tuple[str, str], int]) -> list[Claim]:
    """So many due calls of each function, now running in our hands."""
    found: dict[tuple[str, str], list[int]] = {}
    for function, count in wanted.items():
        pair = tuple(map(batch.names.number, function))
        if count > 0 and None not in pair:
            found[function] = batch.ids(statements.READY, (*pair, count))
    ids = [id for part in found.values() for id in part]
    if not ids:
        return []
    listed = json.dumps(ids)
    batch.execute(statements.START, (batch.owner.id, batch.now, listed))
    for id in batch.ids(statements.ALL_TOLD, (listed,)):
        batch.tell(id, Status.RUNNING)
    for (space, name), part in found.items():
        batch.count(space, name, -len(part))
    batch.touched += ids
    return _claims(batch, ids)


def take_over(batch: Batch, _: object) -> list[Claim]:
    """All that dead owners had in their hands."""
    ids: list[int] = []
    for owner in dead(batch):
        ids += batch.ids(statements.RUNNING_OF, (owner,))
        batch.execute(statements.INHERIT, (batch.owner.id, owner))
        free_deliveries(batch, owner)
        batch.execute(statements.FORGET_OWNER, (owner,))
        batch.buried.append(owner)
    if not ids:
        return []
    batch.cancels_changed = True
    batch.touched += ids
    return _claims(batch, ids)


def dead(batch: Batch) -> list[int]:
    """Owners that have died, or ended with something left in their hands."""
    others = batch.execute(statements.OTHER_OWNERS, (batch.owner.id,)).fetchall()
    return [id for id, boot, expires in others if not batch.owner.is_alive(id, boot, expires, batch.uptime)]


def free_deliveries(batch: Batch, owner: int) -> None:
    """The deliveries that an owner had in its hands are due again."""
    if batch.execute(statements.FREE_DELIVERIES, (owner,)).rowcount:
        batch.times_changed = batch.callbacks_due = True


def complete(batch: Batch, operations: Sequence[Operation]) -> None:
    """`arguments`: id, outcome. Of two ends of one call, the second finds that it is not ours any more."""
    ours = _ours(batch, [operation.arguments[0] for operation in operations])
    ended: dict[int, Outcome] = {}
    for operation in operations:
        id, outcome = operation.arguments
        operation.result = id in ours and id not in ended
        if operation.result:
            ended[id] = outcome
    if not ended:
        return
    batch.write(statements.FINISH, [_end(batch, id, each) for id, each in ended.items()])
    batch.write(statements.PUT_OUTCOMES, [rows.outcome_row(id, each) for id, each in ended.items()])
    for id, outcome in ended.items():
        if ours[id].told:
            batch.tell(id, outcome.status)
    _let_go(batch, list(ended))
    if any(ours[id].callback for id in ended):
        batch.times_changed = batch.callbacks_due = True


def _end(batch: Batch, id: int, outcome: Outcome) -> tuple[Any, ...]:
    """For FINISH."""
    return id, rows.FINAL[outcome.status], outcome.code, outcome.error_code, outcome.seconds, batch.now


def cancelled(batch: Batch, id: int) -> bool:
    """A call in our hands has been stopped, as was asked."""
    held = _ours(batch, [id]).get(id)
    if held is None:
        return False
    _cancel_now(batch, id, held.told)
    _let_go(batch, [id])
    return True


def retry(batch: Batch, arguments: tuple[int, Outcome, float]) -> bool:
    """A call in our hands is queued again, and how it went this time is noted."""
    id, outcome, at = arguments
    held = _ours(batch, [id]).get(id)
    if held is None:
        return False
    if not held.cancel:
        batch.write(statements.PUT_OUTCOMES, [rows.outcome_row(id, outcome)])
    _requeue(batch, held, statements.REQUEUE, at, outcome.code, outcome.error_code, outcome.seconds)
    return True


def release(batch: Batch, arguments: tuple[int, float | None]) -> bool:
    """A call in our hands was never started, as far as anybody will know. `at` None: as it was due before."""
    id, at = arguments
    held = _ours(batch, [id]).get(id)
    if held is None:
        return False
    _requeue(batch, held, statements.UNSTART, at)
    return True


def cancel(batch: Batch, arguments: tuple[int, Outcome | None]) -> Status | None:
    """Cancel a queued call; leave word for the owner of a running one. With an outcome for when it is cancelled."""
    id, outcome = arguments
    row = batch.execute(statements.STATE, (id,)).fetchone()
    if row is None:
        return None
    state, space, name, told = row
    if outcome is not None and state in (DELAYED, READY, RUNNING):
        batch.write(statements.PUT_OUTCOMES, [rows.outcome_row(id, outcome)])
    if state == RUNNING:
        batch.execute(statements.ASK_TO_CANCEL, (id,))
        batch.cancels_changed = batch.cancels_asked = True
    if state not in (DELAYED, READY):
        return rows.STATUSES[state]
    _cancel_now(batch, id, told)
    batch.touched.append(id)
    if state == READY:
        batch.count(batch.names.text(space), batch.names.text(name), -1)
    else:
        batch.times_changed = True
    return Status.CANCELLED


def _claims(batch: Batch, ids: list[int]) -> list[Claim]:
    batch.claimed = True
    found = batch.execute(_CLAIMS, (json.dumps(ids),)).fetchall()
    claims = {row[0]: rows.claim(row, batch.names) for row in found}
    return [claims[id] for id in ids]


def _ours(batch: Batch, ids: Sequence[int]) -> dict[int, _Held]:
    """Those of the calls that are in our hands, by id."""
    found: list[Any] = json.loads(batch.execute(statements.OURS, (json.dumps(ids), batch.owner.id)).fetchone()[0])
    return {row[0]: _Held(*row) for row in found}


def _let_go(batch: Batch, ids: Sequence[int]) -> None:
    batch.touched += ids
    batch.cancels_changed = True


def _requeue(batch: Batch, call: _Held, statement: str, at: float | None, *outcome: object) -> None:
    """Queued again; but one whose cancellation was asked for is cancelled, or else it would start once more."""
    if call.cancel:
        _cancel_now(batch, call.id, call.told)
        _let_go(batch, [call.id])
        return
    state = READY if at is None or at <= batch.now else DELAYED
    batch.tell_all(call.id)
    batch.execute(statement, (state, at, *outcome, call.id))
    batch.tell(call.id, Status.QUEUED)
    _let_go(batch, [call.id])
    if state == READY:
        batch.count(batch.names.text(call.space), batch.names.text(call.name), 1)
    else:
        batch.times_changed = True


def _cancel_now(batch: Batch, id: int, told: int) -> None:
    batch.execute(statements.CANCEL, (batch.now, id))
    if told:
        batch.tell(id, Status.CANCELLED)
