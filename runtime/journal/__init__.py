"""The durable record of submitted calls: one entry a call, from its acceptance until its retention is over.

Opened by `host.py`, used by `dispatcher.py` and the dialects. `Journal` is the whole of what they know of a
store; `sqlite.py` is one. tests/contract/test_journal.py holds every store to what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..calls import Call, Delivery, Entry, Event, Outcome, Status, Submission
from ..errors import JournalError
from .bell import Bell, News

KEY_LIFE = 24 * 3600.0  # seconds that an Idempotency-Key is remembered


class IdTaken(JournalError):
    """Another call was recorded under this id."""


class Receipt(msgspec.Struct, frozen=True):
    """What `append` did. `repeated`: the key was known, and this is the call that it was first used for.

    `claimed`: the call is running already, in the hands of the one who appended it.
    """

    id: int
    label: str
    repeated: bool = False
    claimed: bool = False


class Claim(msgspec.Struct, frozen=True):
    """A call in the hands of this journal's owner, who runs it; `call.attempt` counts from 1."""

    entry: Entry
    call: Call


class Counts(msgspec.Struct, frozen=True):
    """How many calls are where, of the whole journal. `oldest`: seconds that the first in the queue has waited."""

    queued: int
    running: int
    oldest: float
    callbacks_pending: int
    callbacks_dead: int


class Query(msgspec.Struct, frozen=True):
    """Which calls to list, the newest first. `before`: only ids below this (the cursor); times as in Entry."""

    space: str | None = None
    name: str | None = None
    statuses: Collection[Status] = ()
    trigger: str | None = None
    idempotency_key: str | None = None
    since: float | None = None  # accepted at or after
    until: float | None = None  # accepted before
    dead_letters: bool = False
    before: int | None = None
    limit: int = 50


class Told(Protocol):
    """Who hears, on the event loop, what came of something that was asked for. An asyncio.Future is one."""

    def cancelled(self) -> bool:
        """Whether it does not want to hear of it any more."""

    def set_result(self, result: Any, /) -> None:
        """It is done."""

    def set_exception(self, error: Exception, /) -> None:
        """It is not."""


class Journal(Protocol):
    """One store, opened by one owner (a host). Every method may raise JournalError: nothing was changed then.

    Guarantee: what a method has returned survives the death of this process and of the machine. Each change
    is whole or absent. Methods may be called from many tasks at once, and share their commits.

    A claim is this owner's until it is completed, retried or released. It has an expiry, which the journal
    itself renews while it is open; a claim that has expired, or whose owner is known to be dead, is given out
    by `take_over`, once. Two open owners never hold one call.
    """

    async def open(self) -> None:
        """Make the store ready, its schema included; JournalError says what is wrong with it and what to do."""

    async def close(self) -> None:
        """Write what is pending and let go. The claims that are left are for others to take over."""

    async def append(self, submission: Submission, *, claim: bool = False) -> Receipt:
        """Record a call; with `claim`, as running (unless its `run_at` is yet to come).

        With an idempotency key that was used for this function within KEY_LIFE: the call of then, `repeated`,
        when the request (method, path, query, body) is the same; KeyReused when not. With a schedule: nothing new
        (`repeated`, id 0) where this schedule has fired for this time or a later one. IdTaken unless the id is new.
        """

    def arrive(self, submission: Submission, told: Told, *, claim: bool = False) -> None:
        """`append`, for whoever is to be told of its receipt, and need not be a task."""

    async def claim(self, wanted: Mapping[tuple[str, str], int]) -> list[Claim]:
        """Up to so many due calls of each function (space, name): highest priority first, then oldest id first."""

    async def waiting(self) -> dict[tuple[str, str], int]:
        """How many calls of each function are due and unclaimed (at least: what others append may come late)."""

    async def delayed(self) -> dict[tuple[str, str], int]:
        """How many calls of each function are to run later. It takes the longer the more there are."""

    async def next_due(self) -> float | None:
        """When, in seconds since the epoch, the next delayed call or delivery is due; None for never."""

    async def complete(self, id: int, outcome: Outcome) -> bool:
        """The end of a claimed call: its outcome; its callback, if it has a URL, is pending. False: not ours."""

    async def retry(self, id: int, outcome: Outcome, at: float) -> bool:
        """A claimed call is queued again, to start at `at`; the outcome of this attempt is noted."""

    async def release(self, id: int, at: float) -> bool:
        """A claimed call goes back into the queue as if it had never been started."""

    def give_back(self, id: int) -> None:
        """`release` a claimed call, due as before, without waiting for it."""

    async def cancel(self, id: int, outcome: Outcome | None = None) -> Status | None:
        """Cancel a queued call at once; ask whoever runs a running one to stop it. The status then; None: unknown.

        A cancelled call has no callback. `outcome`: what is kept as the outcome of a call that is cancelled; where a
        running one ends by itself first, its own stands.
        """

    async def cancelled(self, id: int) -> bool:
        """A claimed call was stopped, as asked: its end. False: not ours."""

    async def to_cancel(self) -> list[int]:
        """Calls claimed by this owner whose cancellation was asked for."""

    async def take_over(self) -> list[Claim]:
        """Running calls whose owner is gone; they are claimed by this owner now, `attempt` unchanged."""

    async def claim_deliveries(self, limit: int, of_each: int | None = None) -> list[Delivery]:
        """Pending callbacks that are due, the longest due first; this owner's until one of the next three.

        With `of_each`, this owner never has more than so many of one function.
        """

    async def delivered(self, id: int) -> None:
        """A callback has arrived."""

    async def redeliver(self, id: int, at: float, error: str | None = None) -> bool:
        """Deliver (again) at `at`; also of a dead or delivered callback. False: it has no URL or no outcome.

        With an error it is said by the owner of the delivery. Without one, a delivery that is under way stays as it is.
        """

    async def give_up(self, id: int, error: str) -> None:
        """A callback becomes a dead letter."""

    def note(self, id: int, kind: str, data: Mapping[str, object]) -> None:
        """Record an Event (and an Entry's progress) soon, with other commits; what is lost in a crash is lost."""

    async def get(self, id: int) -> Entry | None:
        """One entry."""

    async def request(self, id: int) -> Call | None:
        """The call as it was submitted."""

    async def outcome(self, id: int) -> Outcome | None:
        """How it ended; of a call that is queued again, how its last attempt did."""

    async def events(self, id: int, after: int = 0, limit: int = 1000) -> list[Event]:
        """What happened to a call, in order, numbers above `after`. State changes are among it."""

    async def find(self, query: Query) -> list[Entry]:
        """Entries, the newest first."""

    async def last_fired(self, schedule_id: int) -> float | None:
        """The latest time that a schedule has fired for."""

    async def fired(self, schedule_id: int, time: float) -> None:
        """Note a time as fired for, without a call: earlier ones are skipped."""

    async def spaces(self) -> list[str]:
        """Every space that has calls, whether or not there still is such a space."""

    async def counts(self) -> Counts:
        """For metrics."""

    async def prune(self, space: str, *, before: float, keep: int) -> int:
        """Forget final calls of a space: finished earlier than `before`, or beyond the newest `keep`.

        In small steps, so that others can write meanwhile; not those whose callback is pending. How many.
        """

    async def changed(self, id: int, timeout: float) -> bool:
        """Wait until something may have happened to a call, or for `timeout` seconds: False.

        At once after what this owner did, or one whose bell was heard; about a second after what others did.
        """

    def wake(self) -> None:
        """Let nobody wait for a change any longer who waits now."""

    def heard(self, payload: bytes) -> None:
        """What the bell of another owner rang: it has committed. What was done there counts as done here, now."""

    def listen(self, tell: Callable[[News], None]) -> None:
        """Have somebody told of what was heard, where it is more than a change of calls."""


def open_journal(url: str, state: Path, bell: Bell | None = None) -> Journal:
    """The store for a URL, not opened yet: `sqlite` is a file in the state folder.

    `bell`: rung when others are to hear of a commit; without one they find out when they look.
    """
    from .sqlite import SQLiteJournal

    assert url == "sqlite"
    return SQLiteJournal(state / "journal.db", bell=bell)


__all__: Sequence[str] = (
    "KEY_LIFE", "Bell", "Claim", "Counts", "IdTaken", "Journal", "News", "Query", "Receipt", "Told", "open_journal",
)  # fmt: skip
