"""Operations of the journal on callbacks, and on what is old enough to be forgotten.

Called by `writer.py` within a transaction.
"""

from __future__ import annotations

import json

import msgspec

from ..calls import Delivery
from . import KEY_LIFE, rows, statements
from .batch import Batch
from .claims import dead, free_deliveries
from .schema import PENDING

SLACK = 1000  # empty pages that are kept, whatever they are of the file

_DELIVERIES = f"""SELECT {rows.ENTRY}, {rows.OUTCOME} FROM calls JOIN outcomes USING (id)
    WHERE calls.id IN (SELECT value FROM json_each(?))"""


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the order in which calls have finished."""

    finished_at: float
    id: int


class Sweep(msgspec.Struct, frozen=True):
    """Forget up to `limit` calls of a space that finished after one position, and not after the other."""

    space: int
    after: Position
    until: Position
    limit: int


def claim_deliveries(batch: Batch, arguments: tuple[int, int | None]) -> list[Delivery]:
    """Pending callbacks that are due, now in our hands; those that a dead owner had are among them."""
    limit, of_each = arguments
    for owner in dead(batch):
        free_deliveries(batch, owner)
    ids = batch.ids(statements.DUE_DELIVERIES, (batch.now, limit)) if of_each is None else _due(batch, limit, of_each)
    if not ids:
        return []
    listed = json.dumps(ids)
    batch.execute(statements.START_DELIVERIES, (batch.owner.id, listed))
    batch.times_changed = batch.claimed = True
    found = batch.execute(_DELIVERIES, (listed,)).fetchall()
    deliveries = {row[0]: rows.delivery(row, batch.names) for row in found}
    return [deliveries[id] for id in ids]


def _due(batch: Batch, limit: int, of_each: int) -> list[int]:
    """The longest due, but of no function more than we may have. It looks at no backlog, however long one is."""
    function = batch.execute(statements.PENDING_FUNCTION, (0, 0)).fetchone()
    if limit <= 0 or function is None:
        return []
    found = batch.execute(statements.DELIVERING, (batch.owner.id,)).fetchall()
    held = {(space, name): count for space, name, count in found}
    due: list[tuple[float, int]] = []
    while function is not None:
        room = min(limit, of_each - held.get(function, 0))
        if room > 0:
            due += batch.execute(statements.DUE_OF, (*function, batch.now, room)).fetchall()
        function = batch.execute(statements.PENDING_FUNCTION, function).fetchone()
    return [id for _, id in sorted(due)[:limit]]


def unclaim_deliveries(batch: Batch, ids: list[int]) -> None:
    """Nobody heard that these had been claimed."""
    batch.execute(statements.UNSTART_DELIVERIES, (json.dumps(ids), batch.owner.id))
    batch.times_changed = batch.callbacks_due = True


def delivered(batch: Batch, id: int) -> None:
    """A callback in our hands has arrived."""
    if batch.execute(statements.DELIVERED, (id, batch.owner.id)).rowcount:
        batch.touched.append(id)


def give_up(batch: Batch, arguments: tuple[int, str]) -> None:
    """A callback in our hands becomes a dead letter."""
    id, error = arguments
    if batch.execute(statements.GIVE_UP, (error, id, batch.owner.id)).rowcount:
        batch.touched.append(id)


def redeliver(batch: Batch, arguments: tuple[int, float, str | None]) -> bool:
    """A callback is due at a time, whatever has become of it before.

    Without an error it was asked for by somebody else than the delivery's owner: one that is under way will do.
    """
    id, at, error = arguments
    if error is None and batch.execute(statements.DELIVERING_NOW, (id,)).fetchone() is not None:
        return True
    found = batch.execute(statements.REDELIVER, (at, error, id)).rowcount > 0
    if found:
        batch.touched.append(id)
        batch.times_changed = True
        batch.callbacks_due = batch.callbacks_due or at <= batch.now
    return found


def forget(batch: Batch, sweep: Sweep) -> tuple[int, Position | None]:
    """How many calls were forgotten, and where the sweep goes on; None: it is over."""
    parameters = (sweep.space, sweep.after.finished_at, sweep.after.id, sweep.until.finished_at, sweep.until.id)
    found = batch.execute(statements.OLDEST, (*parameters, sweep.limit)).fetchall()
    ids = [id for id, _, callback in found if callback != PENDING]
    listed = json.dumps(ids)
    for statement in statements.FORGET:
        batch.execute(statement, (listed,))
    if len(found) < sweep.limit:
        return len(ids), None
    return len(ids), Position(found[-1][1], found[-1][0])


def forget_keys(batch: Batch, limit: int) -> bool:
    """Forget idempotency keys whose time is over; whether there may be more."""
    return batch.execute(statements.FORGET_KEYS, (batch.now - KEY_LIFE, limit)).rowcount == limit


def shrink(batch: Batch, pages: int) -> bool:
    """Give up to so many pages back to the disk, where most of the file is empty; whether there may be more to give.

    What is empty is used again, so a file that is as large as its calls need stays as it is.
    """
    free, total = _pages(batch)
    if free < SLACK or free * 2 < total:
        return False
    batch.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return _pages(batch)[0] < free  # an older file keeps them


def _pages(batch: Batch) -> tuple[int, int]:
    """How many are empty, and how many there are."""
    free, total = (batch.execute(f"PRAGMA {each}").fetchone()[0] for each in ("freelist_count", "page_count"))
    return free, total
