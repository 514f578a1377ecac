"""The journal in an SQLite file: for one machine, on which several hosts may share it.

Opened by `open_journal`. One lane of operations writes and one reads; what is known of the queue is kept here, on the
event loop, so that asking for it costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..calls import Call, Delivery, Entry, Event, Outcome, Status, Submission
from . import Claim, Counts, Query, Receipt, Told
from .accepts import is_plain
from .batch import Note
from .bell import LOOKING, Bell, News, Teller, decode, encode, of_calls
from .deliveries import Position, Sweep
from .lane import Lane, Operation
from .lookout import Lookout
from .owners import RENEWAL, Owner, Turn, boot_clock
from .reader import Reader
from .watch import Watch
from .writer import REOPEN_SECONDS, Report, Times, Writer, giving_back

NOTE_SECONDS = 0.05  # how long a note may wait for other commits
MAX_NOTED = 16 * 1024 * 1024  # bytes of notes that are kept until they are written; more are lost
LOOK_SECONDS = 0.05  # for how long what is known of others' calls is good enough
COUNT_EVERY, COUNT_WITHIN = 0.05, 2.0  # seconds between two counts of delayed calls: at least, and at most
COUNTING = 20  # and in between, one part in so many of the time is spent on them
_STEP = 200  # calls forgotten in one commit, and pages given back


class SQLiteJournal:
    """A `Journal`. It belongs to the event loop that opened it."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        uptime: Callable[[], float] = boot_clock,
        bell: Bell | None = None,
    ) -> None:
        self._clock, self._uptime = clock, uptime
        self._notes: deque[Note] = deque()
        self._noted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        folder = path.parent / "owners"
        turn = None if bell is None else Turn(folder)  # one that is alone need not wait for it
        self._writer = Writer(path, Owner(folder), self._notes, clock, uptime, turn)
        self._reader = Reader(path)
        self._writing = Lane("journal writer", self._writer.work, self._learn, self._give_back)
        self._reading = Lane("journal reader", self._reader.work)
        self._watch = Watch()
        self._lookout = Lookout(self._watch, self._reading.ask)
        self._waiting: dict[tuple[str, str], int] = {}
        self._times = Times(None, None)
        self._to_cancel: list[int] = []
        self._stale = True
        self._looked_at = float("-inf")
        self._look_gap = 0.0  # seconds: so long after a look the next one costs too much
        self._delayed: dict[tuple[str, str], int] = {}  # when they were counted last
        self._count_again_at = float("-inf")
        self._ringer = None if bell is None else Teller(lambda news: bell.ring(encode(news)))
        self._ear = Teller(self._pass_on, lambda: self._look_gap)
        self._on_news: Callable[[News], None] = _nobody
        self._inherited: list[Claim] = []  # taken over for somebody who left meanwhile
        self._is_open = False

    async def open(self) -> None:
        """Make the store ready; after a JournalError, later calls try again."""
        if not self._is_open:
            self._is_open = True
            self._writing.start()
            self._reading.start()
            self._renewal = asyncio.get_running_loop().call_later(RENEWAL, self._renew)
        await self._writing.ask("open")

    async def close(self) -> None:
        """Write what is pending and let go."""
        if not self._is_open:
            return
        self._is_open = False
        for timer in (self._timer, self._renewal):
            if timer is not None:
                timer.cancel()
        self._lookout.close()
        await self._reading.stop(self._reader.close)
        await self._writing.stop(self._writer.close)
        for teller in (self._ringer, self._ear):
            if teller is not None:
                teller.close()
        self._watch.wake_all()

    # Accept.

    async def append(self, submission: Submission, *, claim: bool = False) -> Receipt:
        """Record a call."""
        receipt: Receipt = await self._writing.ask(_appending(submission), (submission, claim))
        return receipt

    def arrive(self, submission: Submission, told: Told, *, claim: bool = False) -> None:
        """Record a call, and have this one told."""
        self._writing.begin(_appending(submission), (submission, claim), told)

    async def last_fired(self, schedule_id: int) -> float | None:
        """The latest time that a schedule has fired for."""
        found: float | None = await self._read("last_fired", schedule_id)
        return found

    async def fired(self, schedule_id: int, time: float) -> None:
        """Note a time as fired for, without a call."""
        await self._writing.ask("fired", (schedule_id, time))

    # Run.

    async def claim(self, wanted: Mapping[tuple[str, str], int]) -> list[Claim]:
        """Due calls, in this owner's hands."""
        claims: list[Claim] = await self._writing.ask("claim", dict(wanted))
        return claims

    async def waiting(self) -> dict[tuple[str, str], int]:
        """How many calls of each function are due and unclaimed."""
        await self._look()
        return {function: count for function, count in self._waiting.items() if count > 0}

    async def delayed(self) -> dict[tuple[str, str], int]:
        """How many calls of each function are to run later. The same object where they were counted just before."""
        if self._uptime() >= self._count_again_at:
            self._delayed, seconds = await self._read("delayed", None)
            gap = min(COUNT_WITHIN, max(COUNT_EVERY, seconds * COUNTING))
            self._count_again_at = self._uptime() + gap
        return self._delayed

    async def next_due(self) -> float | None:
        """When the next delayed call or delivery is due."""
        await self._look()
        times = [time for time in (self._times.call, self._times.delivery) if time is not None]
        return min(times, default=None)

    async def complete(self, id: int, outcome: Outcome) -> bool:
        """The end of a claimed call."""
        return bool(await self._writing.ask("complete", (id, outcome)))

    async def retry(self, id: int, outcome: Outcome, at: float) -> bool:
        """A claimed call is queued again; one whose cancellation was asked for is cancelled."""
        return bool(await self._writing.ask("retry", (id, outcome, at)))

    async def release(self, id: int, at: float) -> bool:
        """A claimed call goes back into the queue; one whose cancellation was asked for is cancelled."""
        return bool(await self._writing.ask("release", (id, at)))

    def give_back(self, id: int) -> None:
        """A claimed call goes back into the queue, soon."""
        self._writing.send(Operation("release", (id, None), None))

    async def cancel(self, id: int, outcome: Outcome | None = None) -> Status | None:
        """Cancel a queued call, or have a running one stopped."""
        status: Status | None = await self._writing.ask("cancel", (id, outcome))
        return status

    async def cancelled(self, id: int) -> bool:
        """A claimed call was stopped, as asked."""
        return bool(await self._writing.ask("cancelled", id))

    async def to_cancel(self) -> list[int]:
        """Calls claimed by this owner whose cancellation was asked for."""
        await self._look()
        return list(self._to_cancel)

    async def take_over(self) -> list[Claim]:
        """Running calls whose owner is gone."""
        claims: list[Claim] = await self._writing.ask("take_over")
        inherited, self._inherited = self._inherited, []
        return inherited + claims

    # Deliver.

    async def claim_deliveries(self, limit: int, of_each: int | None = None) -> list[Delivery]:
        """Pending callbacks that are due, so many of each function at most."""
        deliveries: list[Delivery] = await self._writing.ask("claim_deliveries", (limit, of_each))
        return deliveries

    async def delivered(self, id: int) -> None:
        """A callback has arrived."""
        await self._writing.ask("delivered", id)

    async def redeliver(self, id: int, at: float, error: str | None = None) -> bool:
        """Deliver (again) at `at`, or as it is under way. A dead or delivered one has as many attempts as at first."""
        return bool(await self._writing.ask("redeliver", (id, at, error)))

    async def give_up(self, id: int, error: str) -> None:
        """A callback becomes a dead letter."""
        await self._writing.ask("give_up", (id, error))

    # Look up.

    async def get(self, id: int) -> Entry | None:
        """One entry."""
        found: Entry | None = await self._read("get", id)
        return found

    async def request(self, id: int) -> Call | None:
        """The call as it was submitted."""
        found: Call | None = await self._read("request", id)
        return None if found is None else msgspec.structs.replace(found, attempt=1)

    async def outcome(self, id: int) -> Outcome | None:
        """How it ended, or how its last attempt did."""
        found: Outcome | None = await self._read("outcome", id)
        return found

    async def events(self, id: int, after: int = 0, limit: int = 1000) -> list[Event]:
        """What happened to a call."""
        found: list[Event] = await self._read("events", (id, after, limit))
        return found

    async def find(self, query: Query) -> list[Entry]:
        """Entries, the newest first."""
        found: list[Entry] = await self._read("find", query)
        return found

    async def spaces(self) -> list[str]:
        """Every space that has calls."""
        found: list[str] = await self._read("spaces", None)
        return found

    async def counts(self) -> Counts:
        """For metrics."""
        found: Counts = await self._read("counts", self._clock())
        return found

    async def changed(self, id: int, timeout: float) -> bool:
        """Wait until something may have happened to a call. What came after this task's last reading counts."""
        if not self._is_open:
            return True
        self._lookout.wake()
        return await self._watch.changed(id, timeout)

    def wake(self) -> None:
        """Nobody is to wait any longer, nor who is just about to."""
        self._watch.touch_all()

    # What others do.

    def heard(self, payload: bytes) -> None:
        """Another owner has committed something."""
        if not self._is_open:
            return
        news = decode(payload)
        if news.ids is None:
            self._watch.touch_all()
        elif news.ids:
            self._watch.touch(news.ids)
        self._ear.add(msgspec.structs.replace(news, ids=()))

    def listen(self, tell: Callable[[News], None]) -> None:
        """Who is told that others left something to do."""
        self._on_news = tell

    def _pass_on(self, news: News) -> None:
        self._looked_at = float("-inf")  # whoever is told of it asks what it is
        self._on_news(news)

    # Note and forget.

    def note(self, id: int, kind: str, data: Mapping[str, object]) -> None:
        """Record an Event soon. Beyond MAX_NOTED bytes that wait to be written, it is lost."""
        try:
            encoded = msgspec.json.encode(data)
        except UnicodeEncodeError:  # half a character, as a program may print it
            data = {name: _whole(value) for name, value in data.items()}
            encoded = msgspec.json.encode(data)
        if not self._is_open or self._noted > MAX_NOTED:
            return
        fraction, message = data.get("fraction"), data.get("message")
        note = Note(
            id, self._clock(), kind, encoded,
            float(fraction) if isinstance(fraction, int | float) else None, message if isinstance(message, str) else "",
        )  # fmt: skip
        self._noted += len(encoded)
        self._notes.append(note)
        self._flush_in(NOTE_SECONDS)

    async def prune(self, space: str, *, before: float, keep: int) -> int:
        """Forget final calls of a space, and idempotency keys of any that are too old."""
        while await self._writing.ask("forget_keys", _STEP):
            pass
        number, beyond = await self._read("first_beyond", (space, keep))
        if number is None:
            return 0
        aged = Position(before, 0)
        until = aged if beyond is None else max(aged, beyond)
        forgotten = 0
        position: Position | None = Position(float("-inf"), 0)
        while position is not None:
            count, position = await self._writing.ask("forget", Sweep(number, position, until, _STEP))
            forgotten += count
        while forgotten and await self._writing.ask("shrink", _STEP):
            pass
        return forgotten

    # What the lanes report.

    def _learn(self, report: Report) -> None:
        self._noted -= report.noted
        if report.failed:
            self._inherited += report.inherited
            if report.let_go and self._is_open:
                self._reading.send(Operation("look", None, None))
            self._flush_in(REOPEN_SECONDS)  # notes, and what is to be given back
            return
        self._stale = report.stale
        if report.waiting is not None:
            self._waiting, self._look_gap = report.waiting, report.look_seconds * LOOKING
        else:
            for function, change in report.waiting_change.items():
                self._waiting[function] = self._waiting.get(function, 0) + change
        if report.times is not None:
            self._times = report.times
        elif report.soonest is not None:
            call = self._times.call
            soonest = report.soonest if call is None else min(call, report.soonest)
            self._times = Times(soonest, self._times.delivery)
        if report.to_cancel is not None:
            self._to_cancel = report.to_cancel
        if report.touched:
            self._watch.touch(report.touched)
        if self._ringer is not None:
            waits = any(change > 0 for change in report.waiting_change.values())
            cancels, callbacks = report.cancels_asked, report.callbacks_due
            self._ringer.add(of_calls(report.touched, calls=waits, cancels=cancels, callbacks=callbacks))

    def _give_back(self, operation: Operation) -> None:
        """Nobody heard what they had asked for: what was put into their hands must not stay there."""
        if operation.kind == "take_over":
            self._inherited += operation.result or []
        for each in giving_back(operation):
            self._writing.send(each)

    async def _read(self, question: str, arguments: Any) -> Any:
        self._watch.reading()
        return await self._reading.ask(question, arguments)

    async def _look(self) -> None:
        """See to it that what is known here is true: of this owner's calls at once, of others' nearly."""
        now = self._clock()
        due = self._times.call is not None and self._times.call <= now
        patience = self._look_gap if self._stale else max(LOOK_SECONDS, self._look_gap)
        if due or not 0 <= self._uptime() - self._looked_at < patience:
            await self._writing.ask("look")
            self._looked_at = self._uptime()

    def _flush_in(self, seconds: float) -> None:
        if self._timer is None and self._is_open:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._writing.wake()

    def _renew(self) -> None:
        self._writing.send(Operation("renew", None, None))
        self._renewal = asyncio.get_running_loop().call_later(RENEWAL, self._renew)


def _appending(submission: Submission) -> str:
    return "append" if is_plain(submission) else "append_checked"


def _nobody(_: News) -> None:
    """Where nobody listens."""


def _whole(value: object) -> object:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
