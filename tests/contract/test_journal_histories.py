"""Any history of appends, claims, ends, crashes and callbacks, by two owners at once: every store does as the model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.calls import CallbackState, Status
from runtime.errors import KeyReused
from runtime.journal import Journal, Query
from tests.contract.journal_model import Model
from tests.contract.journal_stores import BAD, FUNCTIONS, OK, STORES, submission

OWNERS = st.integers(0, 1)
WHICH = st.integers(0, 30)
FUNCTION = st.sampled_from(FUNCTIONS)
LATER = st.sampled_from([-5.0, 0.0, 0.0, 3.0, 10.0])
OUTCOME = st.sampled_from([OK, BAD])
URL = "http://127.0.0.1:9/hook"


class History(RuleBasedStateMachine):
    """Two hosts on one journal, and everything that may happen to them."""

    store_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.store = STORES[self.store_name](Path(self.folder.name))
        self.clock = self.store.clock
        self.model = Model()
        self.journals: list[Journal | None] = [None, None]
        self.last_id = 0
        for index in (0, 1):
            self.open(index)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

    def open(self, index: int) -> None:
        journal = self.store.journal()
        self.run(journal.open())
        self.journals[index] = journal

    def teardown(self) -> None:
        for journal in self.journals:
            if journal is not None:
                self.run(journal.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    def use(self, index: int) -> Journal:
        """The journal of one of the hosts, started again if it is down."""
        if self.journals[index] is None:
            self.open(index)
        journal = self.journals[index]
        assert journal is not None
        return journal

    def pick(self, which: int) -> int:
        """A call, most of the time one that exists."""
        known = list(self.model.records)
        return known[which % len(known)] if known else 1

    def pick_held(self, which: int, status: Status = Status.RUNNING) -> int:
        known = [id for id, record in self.model.records.items() if record.status is status]
        return known[which % len(known)] if known else self.pick(which)

    # Accept.

    @rule(
        index=OWNERS, function=FUNCTION, claim=st.booleans(), later=st.none() | LATER, priority=st.integers(-1, 1),
        key=st.sampled_from([None, None, "a", "b"]), schedule=st.sampled_from([None, None, None, 10.0, 20.0]),
        url=st.sampled_from([None, URL, URL]), body=st.sampled_from([b"one", b"two"]), label=st.booleans(),
    )  # fmt: skip
    def append(self, index: int, function: tuple[str, str], claim: bool, later: float | None, **given: Any) -> None:
        journal = self.use(index)
        self.last_id += 1
        wanted: dict[str, Any] = {"priority": given["priority"], "idempotency_key": given["key"]}
        if later is not None:
            wanted["run_at"] = self.clock.now + later
        if given["schedule"] is not None:
            wanted |= {"trigger": "schedule", "schedule_id": 1, "scheduled_time": given["schedule"]}
        if given["label"]:
            wanted["label"] = f"label-{self.last_id}"
        submitted = submission(self.last_id, function, body=given["body"], callback_url=given["url"], **wanted)
        try:
            expected = self.model.append(journal, submitted, claim, self.clock.now)
        except KeyReused:
            with pytest.raises(KeyReused):
                self.run(journal.append(submitted, claim=claim))
        else:
            assert self.run(journal.append(submitted, claim=claim)) == expected

    @rule(index=OWNERS, functions=st.lists(FUNCTION, min_size=2, max_size=12), claim=st.booleans())
    def append_many(self, index: int, functions: list[tuple[str, str]], claim: bool) -> None:
        """At once, so that they share commits."""
        journal = self.use(index)
        submitted = [
            submission(self.last_id + number, each, callback_url=URL) for number, each in enumerate(functions, 1)
        ]
        self.last_id += len(functions)

        async def appending() -> list[Any]:
            return await asyncio.gather(*(journal.append(each, claim=claim) for each in submitted))

        expected = [self.model.append(journal, each, claim, self.clock.now) for each in submitted]
        assert self.run(appending()) == expected

    # Run.

    @rule(index=OWNERS, wanted=st.dictionaries(FUNCTION, st.integers(0, 4), min_size=1))
    def claim(self, index: int, wanted: dict[tuple[str, str], int]) -> None:
        journal = self.use(index)
        claims = self.run(journal.claim(wanted))
        expected = self.model.claim(journal, wanted, self.clock.now)

        assert [claim.entry.id for claim in claims] == expected
        self.check_claims(claims)

    def check_claims(self, claims: list[Any]) -> None:
        for claim in claims:
            record = self.model.records[claim.entry.id]
            assert claim.entry == record.entry()
            assert (claim.call.id, claim.call.attempt) == (record.submission.call.id, record.attempt)
            assert claim.call.body == record.submission.call.body

    @rule(index=OWNERS, which=WHICH, outcome=OUTCOME)
    def complete(self, index: int, which: int, outcome: Any) -> None:
        journal, id = self.use(index), self.pick_held(which)
        expected = self.model.complete(journal, id, outcome, self.clock.now)

        assert self.run(journal.complete(id, outcome)) == expected

    @rule(index=OWNERS, outcome=OUTCOME)
    def complete_all(self, index: int, outcome: Any) -> None:
        """Every running call, those of the other owner too, at once."""
        journal = self.use(index)
        ids = [id for id, record in self.model.records.items() if record.status is Status.RUNNING]

        async def completing() -> list[bool]:
            return await asyncio.gather(*(journal.complete(id, outcome) for id in ids))

        expected = [self.model.complete(journal, id, outcome, self.clock.now) for id in ids]
        assert self.run(completing()) == expected

    @rule(index=OWNERS, which=WHICH, outcome=OUTCOME, later=LATER)
    def retry(self, index: int, which: int, outcome: Any, later: float) -> None:
        journal, id, at = self.use(index), self.pick_held(which), self.clock.now + later
        expected = self.model.requeue(journal, id, outcome, at, self.clock.now)

        assert self.run(journal.retry(id, outcome, at)) == expected

    @rule(index=OWNERS, which=WHICH, later=LATER)
    def release(self, index: int, which: int, later: float) -> None:
        journal, id, at = self.use(index), self.pick_held(which), self.clock.now + later
        expected = self.model.requeue(journal, id, None, at, self.clock.now)

        assert self.run(journal.release(id, at)) == expected

    @rule(index=OWNERS, which=WHICH)
    def cancel(self, index: int, which: int) -> None:
        journal, id = self.use(index), self.pick_held(which) if which % 2 else self.pick(which)
        expected = self.model.cancel(id, self.clock.now)

        assert self.run(journal.cancel(id)) == expected

    @rule(index=OWNERS, which=WHICH)
    def cancelled(self, index: int, which: int) -> None:
        journal, id = self.use(index), self.pick_held(which)
        expected = self.model.cancelled(journal, id, self.clock.now)

        assert self.run(journal.cancelled(id)) == expected

    @rule(index=OWNERS)
    def take_over(self, index: int) -> None:
        journal = self.use(index)
        claims = self.run(journal.take_over())

        assert sorted(claim.entry.id for claim in claims) == self.model.take_over(journal)
        self.check_claims(claims)

    # Deliver.

    @rule(index=OWNERS, limit=st.integers(1, 3))
    def claim_deliveries(self, index: int, limit: int) -> None:
        journal = self.use(index)
        deliveries = self.run(journal.claim_deliveries(limit))

        assert [each.entry.id for each in deliveries] == self.model.claim_deliveries(journal, limit, self.clock.now)
        for each in deliveries:
            record = self.model.records[each.entry.id]
            assert (each.entry, each.outcome, each.attempt) == (
                record.entry(),
                record.outcome,
                record.callback_attempts,
            )

    @rule(index=OWNERS, which=WHICH, error=st.none() | st.just("gone"))
    def settle(self, index: int, which: int, error: str | None) -> None:
        """It has arrived, or was given up."""
        journal = self.use(index)
        held = [id for id, record in self.model.records.items() if record.deliverer is not None]
        id = held[which % len(held)] if held else self.pick(which)
        state = CallbackState.DELIVERED if error is None else CallbackState.DEAD
        self.model.settle(journal, id, state, error)
        self.run(journal.delivered(id) if error is None else journal.give_up(id, error))

    @rule(index=OWNERS, which=WHICH, later=LATER, error=st.none() | st.just("503"))
    def redeliver(self, index: int, which: int, later: float, error: str | None) -> None:
        journal, id, at = self.use(index), self.pick(which), self.clock.now + later
        expected = self.model.redeliver(id, at, error)

        assert self.run(journal.redeliver(id, at, error)) == expected

    # Everything else.

    @rule(index=OWNERS, which=WHICH)
    def note(self, index: int, which: int) -> None:
        """A log line, and something that is committed after it."""
        journal, id = self.use(index), self.pick(which)

        async def noting() -> None:
            journal.note(id, "log", {"text": "x"})
            await journal.fired(99, 0.0)

        if id in self.model.records:
            self.model.records[id].events.append("log")
        self.run(noting())

    @rule(index=OWNERS, space=st.sampled_from(["demo", "other"]), age=st.sampled_from([0.0, 5.0, 1e6]), keep=WHICH)
    def prune(self, index: int, space: str, age: float, keep: int) -> None:
        journal, before = self.use(index), self.clock.now - age
        expected = self.model.prune(space, before, keep, self.clock.now)

        assert self.run(journal.prune(space, before=before, keep=keep)) == expected

    @rule(seconds=st.sampled_from([1.0, 5.0, 100.0, 90_000.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-100_000.0, -7.0, 7.0, 100_000.0]))
    def set_the_clock(self, seconds: float) -> None:
        """The time of day jumps, as when somebody sets it."""
        self.clock.now += seconds

    @precondition(lambda self: any(self.journals))
    @rule(index=OWNERS, crash=st.booleans())
    def end(self, index: int, crash: bool) -> None:
        journal, self.journals[index] = self.journals[index], None
        if journal is not None:
            self.run(self.store.crash(journal) if crash else journal.close())
            self.model.dead.add(journal)

    @invariant()
    def every_owner_sees_what_the_model_says(self) -> None:
        self.clock.uptime += 1  # what others did may come late, but not later than that
        for journal in self.journals:
            if journal is not None:
                self.model.promote(self.clock.now)
                self.run(self.check(journal))

    async def check(self, journal: Journal) -> None:
        assert await journal.waiting() == self.model.waiting()
        assert await journal.next_due() == self.model.next_due()
        assert sorted(await journal.to_cancel()) == self.model.to_cancel(journal)
        assert await journal.counts() == self.model.counts(self.clock.now)
        assert await journal.last_fired(1) == self.model.fired.get(1)
        records = sorted(self.model.records.items(), reverse=True)
        entries = await journal.find(Query(limit=1000))
        assert entries == [record.entry() for _, record in records]
        failed = await journal.find(Query(space="demo", statuses=[Status.FAILED, Status.QUEUED], limit=3))
        expected = [
            id for id, record in records if record.function[0] == "demo" and record.status in ("failed", "queued")
        ]
        assert [entry.id for entry in failed] == expected[:3]
        for id, record in records[:5]:
            events = await journal.events(id)
            kinds = [event.data["status"] if event.kind == "state" else event.kind for event in events]
            assert kinds == record.events
            assert [event.number for event in events] == sorted({event.number for event in events})
            assert await journal.outcome(id) == record.outcome


@pytest.mark.timeout(600)  # for when it fails: a long history takes minutes to be made short
@pytest.mark.parametrize("store_name", STORES)
def test_histories(store_name: str) -> None:
    """Whatever happens in whatever order, what a store says is what the model says."""
    machine = type("StoreHistory", (History,), {"store_name": store_name})
    case = machine.TestCase
    case.settings = settings(max_examples=70, stateful_step_count=50, deadline=None)
    case("runTest").runTest()
