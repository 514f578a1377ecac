"""Runs what the journal holds: claims due calls, runs them, records how they ended.

Made by `host.py`, which gives it the ways to run and to stop a call; `attempt.py` runs one, `deliveries.py`
takes outcomes to their callbacks.

Fairness: within a function calls start by priority, then in order of acceptance. Between functions free
places go round, one each, to those with the fewest running calls first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from heapq import nsmallest
from time import monotonic, time
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

from . import attempt
from .arrivals import Arrival, Later, capacity
from .calls import Call, Outcome, Submission
from .errors import Cancelled, HostError, JournalError, NotFound, Overloaded
from .exchange import Exchange
from .journal import Claim, Journal, Receipt, Told
from .registry import Function
from .runs import Run, Runners
from .settings import FunctionSettings
from .share import WHOLE, Share

MAX_RUNNING = 4096  # submitted calls at once: so many that functions do not stand in each other's way
LOOK_EVERY = 1.0  # seconds: what other hosts append to the journal, or ask to be cancelled, is seen by then
OVERDUE_EVERY = 0.1  # seconds between looks while something is due that we cannot have: a callback, mostly
TAKE_OVER_EVERY = 5.0  # seconds
RECOUNT_EVERY = 0.005  # seconds at least between looks whether a queue is still full that was
MOST_STARTS = 10  # of a call that is interrupted again and again
BACK_AGAIN = 5.0  # seconds after which a call is tried again whose function is not there now
GONE_AFTER = 600.0  # seconds that calls wait for a function that was removed
LAST_WORDS = 2.0  # seconds for what is to be recorded while the host ends
COMPLAIN_EVERY = 60.0  # seconds
RESPITE = (0.1, 5.0)  # seconds to wait after the journal has failed: at first, and at most

Key = tuple[str, str]
Ending = Callable[[], Awaitable[None]]
T = TypeVar("T")

log = logging.getLogger("spaces.dispatcher")


class Dispatcher:
    """From the journal to the workers and back.

    Guarantee: a call that `accept` has returned is run, once unless its function's settings allow more, and its
    outcome recorded, by this host or the next one on this journal.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        invoke: Callable[[Call], Exchange],
        lookup: Callable[[str, str], Function],
        settings: Callable[[str, str], FunctionSettings],
        on_outcome: Callable[[], None],
        word: attempt.Word = lambda error: error,
        share: Share = WHOLE,
    ) -> None:
        self._journal = journal
        self._invoke, self._lookup, self._settings = invoke, lookup, settings
        self._on_outcome, self._word = on_outcome, word
        self._part = share
        self._running: dict[int, Run] = {}
        self._places: Counter[Key] = Counter()  # taken, by function
        self._backlog: dict[Key, int] = {}  # calls that wait, as far as we know
        self._later = Later(journal.delayed, share)
        self._appending: Counter[Key] = Counter()  # calls that are about to wait
        self._missing: dict[Key, float] = {}  # functions that calls wait for and that are not there, since when
        self._standstills = attempt.Standstills()
        self._unrecorded, self._recounted_at = 0, float("-inf")
        self._runners = Runners(self._run)
        self._complaint, self._complained_at = "", 0.0
        self._paused = False
        self._wake = anyio.Event()
        self._asked = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether a call runs, or has run and is not recorded yet."""
        return bool(self._running) or self._unrecorded > 0

    def pause(self) -> None:
        """Start no further calls: the host is about to end."""
        self._paused = True
        self.wake()

    def wake(self) -> None:
        """There may be something to start."""
        self._wake.set()

    def look(self) -> None:
        """Somebody may have asked for a call to be cancelled that runs here."""
        self._asked.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """For ever: start what is due, look after what runs. `accept` may be called once it has started."""
        async with anyio.create_task_group() as tasks:
            self._runners.begin(tasks)
            tasks.start_soon(self._look_after)
            task_status.started()
            while True:
                self._wake = anyio.Event()
                began = time()
                due = await self._surely(self._turn)
                patience = LOOK_EVERY if due is None else OVERDUE_EVERY if due <= began else due - time()
                with anyio.move_on_after(max(0.0, min(LOOK_EVERY, patience))):
                    await self._wake.wait()

    async def accept(self, submission: Submission, function: Function) -> Receipt:
        """Record a call; start it at once where nothing stands in its way. Overloaded when too many wait."""
        if not self._has_room(submission, function) and await self._is_full(submission, function):
            message = f"{function.settings.max_queued} calls of `{function.label}` wait already (`max_queued`)"
            raise Overloaded(message, headers={"Retry-After": "10"})
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._let_in(submission, function, receipt)
        return await receipt

    def take_in(self, submission: Submission, function: Function, told: Told) -> bool:
        """As `accept`, for one who is told of it later. False: he has to ask `accept`, as there may be too many."""
        if not self._has_room(submission, function):
            return False
        self._let_in(submission, function, told)
        return True

    def _let_in(self, submission: Submission, function: Function, told: Told) -> None:
        key = _key(function)
        at_once = submission.run_at is None and not self._paused and self._has_place(key, function)
        arrival = Arrival(self, submission, function, told, at_once=at_once)
        self._journal.arrive(submission, arrival, claim=at_once)
        (self._places if at_once else self._appending)[key] += 1
        if _is_later(submission):
            self._later.add(key)

    def arrived(self, arrival: Arrival, receipt: Receipt | None) -> None:
        """It is in the journal, or has failed to get there."""
        submission, key = arrival.submission, _key(arrival.function)
        if receipt is not None and receipt.claimed:
            if self._runners.over:
                self._journal.give_back(receipt.id)
                return
            called_back, settings = submission.callback_url is not None, arrival.function.settings
            self._start(Run(self._journal, submission.call, 1, settings, callback=called_back))
            return
        (self._places if arrival.at_once else self._appending)[key] -= 1
        if receipt is not None and not receipt.repeated:
            if submission.run_at is not None and submission.run_at > time() + LOOK_EVERY:
                return  # it is seen in time, as all others are looked for by then
            self._backlog[key] = self._backlog.get(key, 0) + 1
        self.wake()  # also where it has failed: its place may have been what another call waited for

    def _has_room(self, submission: Submission, function: Function) -> bool:
        """Whether there surely are not too many."""
        key, most = _key(function), function.settings.max_queued
        return self._waiting(key) < most and (not _is_later(submission) or self._later.has_room(key, most))

    async def _is_full(self, submission: Submission, function: Function) -> bool:
        """Whether so many wait still: of several hosts, another may have started some. Not each refusal asks."""
        if self._part.of > 1 and monotonic() - self._recounted_at >= RECOUNT_EVERY:
            self._recounted_at = monotonic()
            self._backlog = await self._journal.waiting()
        key, most = _key(function), function.settings.max_queued
        if self._waiting(key) >= most or not _is_later(submission):
            return self._waiting(key) >= most
        return await self._later.is_full(key, most)

    def cancel(self, id: int) -> None:
        """Stop a call, if it runs here."""
        run = self._running.get(id)
        if run is None or run.cancelled:
            return
        run.cancelled = True
        if run.exchange is not None:
            run.exchange.cancel(Cancelled())

    # Starting.

    async def _turn(self) -> float | None:
        """Start what is due and has a place; when to look again, where that is known."""
        self._backlog = await self._journal.waiting()
        wanted = self._share()
        if wanted and not self._paused:
            for claim in await self._journal.claim(wanted):
                self._begin(claim)
        return await self._journal.next_due()

    def _begin(self, claim: Claim) -> None:
        """Run what was claimed; without waiting for anything before, or it might be forgotten."""
        run = self._run_of(claim)
        run.hopeless = run.key in self._missing
        if (left := self._backlog.pop(run.key, 1) - 1) > 0:
            self._backlog[run.key] = left
        self._places[run.key] += 1
        self._start(run)

    def _share(self) -> dict[Key, int]:
        """How many calls of which function to start now."""
        self._look_for_functions()
        room = self._part.part(MAX_RUNNING) - len(self._running)
        places = {key: min(count, self._free_places(key)) for key, count in self._backlog.items() if count > 0}
        hungry = [key for key, free in places.items() if free > 0]
        if room <= 0 or not hungry:
            return {}
        turn = nsmallest(room, hungry, key=self._places.__getitem__)
        wanted: Counter[Key] = Counter()
        while turn and room > 0:
            for key in turn[:room]:
                wanted[key] += 1
            room -= len(turn)
            turn = [key for key in turn if wanted[key] < places[key]]
        return wanted

    def _has_place(self, key: Key, function: Function) -> bool:
        if len(self._running) >= self._part.part(MAX_RUNNING) or self._waiting(key):
            return False
        return self._places[key] < self._standstills.places(key, capacity(function, self._part))

    def _waiting(self, key: Key) -> int:
        return self._backlog.get(key, 0) + self._appending[key]

    def _look_for_functions(self) -> None:
        """Note which are missing; a file may be about to be replaced."""
        now, missing = monotonic(), {}
        for key in self._backlog:
            try:
                self._lookup(*key)
            except NotFound:
                missing[key] = self._missing.get(key, now)
        self._missing = missing
        self._standstills.look(self._running.values(), self._backlog)

    def _free_places(self, key: Key) -> int:
        since = self._missing.get(key)
        if since is None:
            return self._standstills.places(key, capacity(self._lookup(*key), self._part)) - self._places[key]
        return 1 - self._places[key] if monotonic() - since >= GONE_AFTER else 0  # to fail one after the other

    def _start(self, run: Run) -> None:
        """Run a claimed call, whose place is taken."""
        self._running[run.call.id] = run
        self._runners.start(run)

    # Running.

    async def _run(self, run: Run) -> None:
        self._unrecorded += 1
        ending: Ending | None = None
        try:
            ending = await self._attempt(run)
            await ending()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WORDS, shield=True):  # once more, where it was being recorded
                await (ending or self._cut(run))()
            raise
        finally:
            self._unrecorded -= 1

    async def _attempt(self, run: Run) -> Ending:
        """Run a call; what is to be recorded of it."""
        try:
            if self._paused:
                return partial(self._postpone, run, 0)
            exchange = self._invoke(attempt.fit(run.call, run.starts, run.settings))
            run.exchange = exchange
            if run.cancelled:
                exchange.cancel(Cancelled())
            outcome = await attempt.run(exchange, run.call, run.settings, run, self._word, self._standstills)
        except attempt.Cut:
            return self._cut(run)
        except attempt.Postponed as later:
            return partial(self._postpone, run, later.seconds)
        except HostError as error:  # it was not even given to the function
            wait = self._wait_for_better(run, error)
            if wait is not None:
                return partial(self._postpone, run, wait)
            return partial(self._record, run, attempt.failure(self._word(error)))
        except Exception as error:
            log.exception("call %s failed in the host", run.call.id)
            return partial(self._record, run, attempt.failure(HostError(str(error))))
        finally:
            self._forget(run)
        return partial(self._record, run, outcome)

    def _cut(self, run: Run) -> Ending:
        """The host is ending: what waits for a worker goes on waiting, for the next host."""
        return partial(self._interrupted, run) if run.begun else partial(self._postpone, run, 0)

    def _wait_for_better(self, run: Run, error: HostError) -> float | None:
        """Seconds until a call that could not be started is tried again; None for never."""
        if isinstance(error, NotFound):
            return None if run.hopeless else BACK_AGAIN
        return attempt.BACK_SOON if error.retryable else None

    def _forget(self, run: Run) -> None:
        """Its place is free, before its outcome is on disk."""
        del self._running[run.call.id]
        self._places[run.key] -= 1
        if not self._places[run.key]:
            del self._places[run.key]
        if self._backlog:
            self.wake()

    async def _record(self, run: Run, outcome: Outcome) -> None:
        id = run.call.id
        if run.cancelled and outcome.error_code == Cancelled.code:
            await self._surely(lambda: self._journal.cancelled(id))
            return
        again = attempt.next_attempt(run.settings.retry, outcome, run.starts, time())
        if again is None:
            await self._complete(run, outcome)
            return
        await self._surely(lambda: self._journal.retry(id, outcome, again))
        self.wake()

    async def _complete(self, run: Run, outcome: Outcome) -> None:
        await self._surely(lambda: self._journal.complete(run.call.id, outcome))
        if run.callback:
            self._on_outcome()

    async def _postpone(self, run: Run, seconds: float) -> None:
        if run.cancelled:
            await self._surely(lambda: self._journal.cancelled(run.call.id))
        else:
            await self._surely(lambda: self._journal.release(run.call.id, time() + seconds))
        self.wake()

    async def _interrupted(self, run: Run) -> None:
        """The call was running when the host ended: run it again, where its function allows that."""
        id, outcome = run.call.id, attempt.interrupted()
        if run.settings.idempotent and run.starts < MOST_STARTS:
            await self._surely(lambda: self._journal.retry(id, outcome, time()))
        else:
            await self._complete(run, outcome)

    async def _surely(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until the journal takes it: a full disk is no reason to forget what has happened."""
        wait, most = RESPITE
        while True:
            try:
                return await work()
            except JournalError as error:
                self._complain(error.message)
                await anyio.sleep(wait)
                wait = min(most, wait * 2)

    def _complain(self, message: str) -> None:
        """Log what is wrong with the journal, and not again as long as it is the same."""
        now = time()
        if self._complaint != message or not 0 <= now - self._complained_at < COMPLAIN_EVERY:
            log.error("%s", message)
            self._complaint, self._complained_at = message, now

    # Looking after.

    async def _look_after(self) -> None:
        """For ever: stop what others asked to be cancelled; end what hosts that are gone left running."""
        took_over = float("-inf")
        while True:
            self._asked = anyio.Event()
            try:
                for id in await self._journal.to_cancel():
                    self.cancel(id)
                if monotonic() - took_over >= TAKE_OVER_EVERY:
                    took_over = monotonic()
                    await self._take_over()
            except JournalError:  # what is started says so
                pass
            with anyio.move_on_after(LOOK_EVERY):
                await self._asked.wait()

    async def _take_over(self) -> None:
        for claim in await self._journal.take_over():
            log.warning("call %d of %s/%s was interrupted", claim.entry.id, claim.call.space, claim.call.name)
            await self._interrupted(self._run_of(claim))
        self.wake()

    def _run_of(self, claim: Claim) -> Run:
        call, called_back = claim.call, claim.entry.callback_url is not None
        settings = self._settings(call.space, call.name)
        return Run(self._journal, call, claim.entry.attempt, settings, callback=called_back)


def _is_later(submission: Submission) -> bool:
    return submission.run_at is not None and submission.run_at > time()


def _key(function: Function) -> Key:
    return function.space, function.name
