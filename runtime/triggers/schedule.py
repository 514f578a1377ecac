"""Submits a call at each due time of each schedule: those that functions have in spaces.toml, and created ones.

Run by the host's owner; asks `schedules` for due times, and the journal, by what it is handed, which were fired.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

import anyio
import msgspec
from anyio.abc import TaskGroup

from ..calls import Call, Submission
from ..errors import HostError, JournalError
from ..journal import Receipt
from ..registry import Function
from ..schedules import Schedule, latest, next_after
from ..timetable import CreatedSchedule

LATE = 60.0  # seconds in which a due time is late; after them it has been missed
GLANCE = LATE / 2  # seconds between looks at the clock, which may have been set, or the machine asleep
JUMP = 1.0  # seconds by which the clock must be off to have been set
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between attempts to submit

log = logging.getLogger("spaces.schedule")


class Job(msgspec.Struct, frozen=True):
    """A schedule and the function that it calls."""

    space: str
    name: str
    schedule: Schedule
    is_created: bool = False  # by a client, as opposed to those of spaces.toml

    def __str__(self) -> str:
        return f"{self.space}/{self.name} ({self.schedule.cron}, {self.schedule.timezone})"


async def _nothing() -> None:
    """Done in no time."""


class Schedules:
    """The schedules of all functions, and those that were created, whose function may be missing: they wait for it.

    Guarantee: for one due time at most one call is submitted that the journal takes. A due time that comes
    while this runs is submitted, unless the journal cannot be used until the next one comes.

    What came while nothing ran, or while the clock stood wrong, was missed: of all missed due times the latest
    is submitted where the schedule has `catch_up`, else none. A schedule that was never seen before has
    missed nothing.
    """

    def __init__(
        self,
        *,
        functions: Callable[[], Iterable[Function]],
        last_fired: Callable[[int], Awaitable[float | None]],
        fired: Callable[[int, float], Awaitable[None]],
        next_id: Callable[[], int],
        created: Callable[[], Iterable[CreatedSchedule]] = tuple,
        refresh: Callable[[], Awaitable[None]] = _nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`last_fired` and `fired` are the journal's; `refresh` looks whether there are other `created` ones, and says
        so by `changed`. Waits are those of the event loop, so tests can let them jump."""
        self._functions = functions
        self._created = created
        self._refresh = refresh
        self._last_fired = last_fired
        self._fired = fired
        self._next_id = next_id
        self._clock = clock
        self._jobs: dict[int, tuple[Job, anyio.CancelScope]] = {}
        self._changed = anyio.Event()
        self._jumped = anyio.Event()
        self._looking = anyio.Lock()
        self._looked = -math.inf  # when `created` were last looked for

    def changed(self) -> None:
        """The functions, their settings or the created schedules may be others now."""
        self._changed.set()

    async def run(self, submit: Callable[[Submission], Awaitable[Receipt]]) -> None:
        """Submit calls as they fall due, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                self._follow(tasks, submit)
                ahead = self._ahead()
                while not self._changed.is_set():
                    await self._refresh()
                    with anyio.move_on_after(GLANCE):
                        await self._changed.wait()
                    ahead = self._look_at_clock(ahead)

    def _follow(self, tasks: TaskGroup, submit: Callable[[Submission], Awaitable[Receipt]]) -> None:
        """A task for each schedule that there is, and none for others."""
        wanted = {
            schedule.id: Job(function.space, function.name, schedule)
            for function in self._functions()
            for schedule in function.settings.schedule
        }
        wanted |= {each.id: Job(each.space, each.name, each.schedule, True) for each in self._created()}
        for id, (job, scope) in list(self._jobs.items()):
            if wanted.get(id) != job:
                scope.cancel()
                del self._jobs[id]
        for id in wanted.keys() - self._jobs.keys():
            scope = anyio.CancelScope()
            self._jobs[id] = wanted[id], scope
            tasks.start_soon(self._keep, wanted[id], scope, submit)

    async def _keep(
        self, job: Job, scope: anyio.CancelScope, submit: Callable[[Submission], Awaitable[Receipt]]
    ) -> None:
        """Fire one schedule at all its due times."""
        with scope:
            after = await self._begin(job)
            while True:
                now = self._clock()
                due = latest(job.schedule, after, now)
                if due is not None:
                    await self._take(job, due, submit)
                    after = due
                    continue
                upcoming = next_after(job.schedule, max(after, now))
                if upcoming is None:
                    log.warning("%s is never due again", job)
                    return
                await self._wait_until(upcoming)

    async def _begin(self, job: Job) -> float:
        """Up to when the due times of a schedule are done with."""
        seen, wait = self._clock(), FIRST_WAIT
        while True:
            try:
                last = await self._last_fired(job.schedule.id)
                if last is None:
                    await self._fired(job.schedule.id, seen)
            except JournalError as error:
                log.warning("%s waits for the journal: %s", job, error.message)
                await self._wait_until(self._clock() + wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            if last is not None and last > seen + LATE:
                log.warning("%s has fired for %s, which is yet to come: it goes on after that", job, _shown(last))
            return seen if last is None else last

    async def _take(self, job: Job, due: float, submit: Callable[[Submission], Awaitable[Receipt]]) -> None:
        """One due time that has come: submit a call, or skip it where it was missed."""
        if await self._is_deleted(job, due):
            return
        schedule, late = job.schedule, self._clock() - due
        if late <= LATE or schedule.catch_up:
            await self._submit(job, due, submit)
            return
        log.warning("%s was missed at %s (`catch_up` is false)", job, _shown(due))
        try:
            await self._fired(schedule.id, due)
        except JournalError as error:
            log.warning("%s: that it was missed is not on record: %s", job, error.message)

    async def _is_deleted(self, job: Job, due: float) -> bool:
        """Whether another host has deleted this. One look is enough for all that are due at the same time."""
        if not job.is_created:
            return False
        async with self._looking:
            if self._looked < due:
                now = self._clock()
                await self._refresh()
                self._looked = now
        return all(each.id != job.schedule.id for each in self._created())

    async def _submit(self, job: Job, due: float, submit: Callable[[Submission], Awaitable[Receipt]]) -> None:
        """Until it is taken, refused for good, or the next due time has come."""
        following, wait = next_after(job.schedule, due) or math.inf, FIRST_WAIT
        while True:
            try:
                receipt = await submit(self._submission(job, due))
            except HostError as error:
                log.warning("%s was refused at %s: %s", job, _shown(due), error.message)
                if not error.retryable:
                    return
            else:
                if not receipt.repeated:
                    log.info("%s: call %s", job, receipt.label)
                return
            await self._wait_until(min(self._clock() + wait, following))
            wait = min(2 * wait, LONGEST_WAIT)
            if self._clock() >= following:
                log.error("%s was not called at %s: the next time has come", job, _shown(due))
                return

    def _submission(self, job: Job, due: float) -> Submission:
        id, schedule = self._next_id(), job.schedule
        label = str(id)
        headers = [b"x-call-id", label.encode()]
        if schedule.data is not None:
            headers += [b"content-type", b"application/json"]
        call = Call(
            id=id,
            label=label,
            space=job.space,
            name=job.name,
            headers=b"\0".join(headers),
            body=(schedule.data,) if schedule.data is not None else (),
            schedule_id=schedule.id,
            scheduled_time=due,
        )
        return Submission(call, trigger="schedule", callback_url=schedule.callback)

    async def _wait_until(self, moment: float) -> None:
        """Until then, or until the clock was set."""
        with anyio.move_on_after(moment - self._clock()):
            await self._jumped.wait()

    def _ahead(self) -> float:
        """How far the clock is ahead of the event loop's, which is never set."""
        return self._clock() - anyio.current_time()

    def _look_at_clock(self, before: float) -> float:
        """Wake all that wait, where the clock was set since it was this far ahead; how far it is now."""
        ahead = self._ahead()
        if abs(ahead - before) > JUMP:
            log.info("the clock has jumped by %+.0f s", ahead - before)
            self._jumped.set()
            self._jumped = anyio.Event()
        return ahead


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(" ", "seconds")
