"""What `runtime/journal/__init__.py` says of a journal, sentence by sentence, for every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from runtime.calls import CallbackState, Event, Outcome, Status
from runtime.errors import JournalError, KeyReused
from runtime.journal import KEY_LIFE, Claim, IdTaken, Journal, Query, Receipt
from tests.contract.journal_stores import BAD, OK, STORES, F, G, H, SQLiteStore, soon, submission

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook?secret=1"


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SQLiteStore:
    return STORES[request.param](tmp_path)


@pytest.fixture
async def journal(store: SQLiteStore) -> AsyncIterator[Journal]:
    async with opened(store) as journal:
        yield journal


@asynccontextmanager
async def opened(store: SQLiteStore) -> AsyncIterator[Journal]:
    journal = store.journal()
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def ended(journal: Journal, id: int, outcome: Outcome = OK, **wanted: object) -> None:
    """A call that was submitted and has run."""
    await journal.append(submission(id, **wanted), claim=True)
    assert await journal.complete(id, outcome)


def ids(claims: list[Claim]) -> list[int]:
    return [claim.entry.id for claim in claims]


async def found(journal: Journal, **wanted: object) -> list[int]:
    return [entry.id for entry in await journal.find(Query(**wanted))]


def kinds(events: list[Event]) -> list[str]:
    return [event.data["status"] if event.kind == "state" else event.kind for event in events]


# Open and close.


async def test_what_was_recorded_is_there_after_reopening(store: SQLiteStore) -> None:
    """What a method has returned outlives the journal that returned it."""
    async with opened(store) as journal:
        await journal.append(submission(1, callback_url=URL))
        entry = await journal.get(1)
    async with opened(store) as journal:
        again = await journal.get(1)

    assert entry is not None
    assert again == entry


async def test_a_closed_journal_says_so(store: SQLiteStore) -> None:
    """After `close` every method fails with JournalError; closing twice does nothing."""
    async with opened(store) as journal:
        pass
    await journal.close()

    with pytest.raises(JournalError, match="closed"):
        await journal.append(submission(1))
    with pytest.raises(JournalError, match="closed"):
        await journal.get(1)


async def test_close_writes_what_is_pending(store: SQLiteStore) -> None:
    """Operations and notes that are under way when the journal is closed are done."""
    async with opened(store) as journal:
        await journal.append(submission(1), claim=True)
        journal.note(1, "log", {"level": "info", "text": "last words"})
        appending = asyncio.create_task(journal.append(submission(2)))
        await asyncio.sleep(0)
    await appending
    async with opened(store) as journal:
        events = await journal.events(1)

        assert kinds(events) == ["queued", "running", "log"]
        assert await journal.get(2) is not None


async def test_claims_that_are_left_at_close_are_for_others(store: SQLiteStore) -> None:
    """A closed journal is a dead owner, at once."""
    async with opened(store) as journal:
        await journal.append(submission(1), claim=True)
    async with opened(store) as other:
        assert ids(await other.take_over()) == [1]


# Append.


async def test_an_appended_call_is_queued(journal: Journal, store: SQLiteStore) -> None:
    """The entry says what was submitted, and that it waits."""
    receipt = await journal.append(submission(7, label="mine", priority=3, callback_url=URL, trigger="rerun"))
    entry = await journal.get(7)

    assert receipt == Receipt(7, "mine")
    assert entry is not None
    assert (entry.id, entry.label, entry.space, entry.name) == (7, "mine", *F)
    assert (entry.status, entry.attempt, entry.priority, entry.trigger) == (Status.QUEUED, 0, 3, "rerun")
    assert (entry.accepted_at, entry.run_at, entry.started_at) == (store.clock.now, store.clock.now, None)
    assert (entry.callback, entry.callback_url) == (CallbackState.WAITING, URL)


@pytest.mark.parametrize("body", [b"", b"small", bytes(range(256)) * 8192])
async def test_the_request_comes_back_as_it_was(journal: Journal, body: bytes) -> None:
    """`request` gives the call as it was submitted, large or empty, to the byte."""
    submitted = submission(1, body=body, timeout=1.5, schedule_id=9, scheduled_time=17.0)
    await journal.append(submitted)
    call = await journal.request(1)

    assert call is not None
    assert b"".join(call.body) == body
    assert (call.method, call.path, call.query, call.headers) == (b"POST", b"/a%20b", b"q=1&q=2", b"a\0b\0c\0d")
    assert (call.timeout, call.schedule_id, call.scheduled_time, call.attempt) == (1.5, 9, 17.0, 1)


async def test_append_with_claim_is_running(journal: Journal, store: SQLiteStore) -> None:
    """With `claim` the call is running in the hands of the one who appended it, and nobody else gets it."""
    receipt = await journal.append(submission(1), claim=True)
    entry = await journal.get(1)

    assert receipt.claimed
    assert entry is not None
    assert (entry.status, entry.attempt, entry.started_at) == (Status.RUNNING, 1, store.clock.now)
    assert await journal.claim({F: 10}) == []
    assert await journal.complete(1, OK)


async def test_append_with_claim_of_a_later_call_is_queued(journal: Journal, store: SQLiteStore) -> None:
    """A call whose `run_at` is yet to come is not claimed."""
    receipt = await journal.append(submission(1, run_at=store.clock.now + 5), claim=True)

    assert not receipt.claimed
    assert await journal.waiting() == {}


async def test_a_known_key_gives_the_first_call(journal: Journal) -> None:
    """The same key and request is the same call, and nothing is recorded."""
    await journal.append(submission(1, idempotency_key="k", label="first"))
    again = await journal.append(submission(2, idempotency_key="k"), claim=True)

    assert again == Receipt(1, "first", repeated=True)
    assert await journal.get(2) is None
    assert await journal.waiting() == {F: 1}


async def test_a_key_with_another_request_is_refused(journal: Journal) -> None:
    """KeyReused, and nothing is recorded."""
    await journal.append(submission(1, idempotency_key="k"))

    another = submission(2, idempotency_key="k", body=b"another")
    elsewhere = [
        replace(another, call=replace(submission(2).call, **{part: b"/x"})) for part in ("method", "path", "query")
    ]

    for each in (another, *elsewhere):
        with pytest.raises(KeyReused):
            await journal.append(each)
    assert await journal.get(2) is None


async def test_keys_are_of_a_function(journal: Journal) -> None:
    """The same key of another function is another key."""
    receipts = [await journal.append(submission(id, each, idempotency_key="k")) for id, each in enumerate([F, G, H], 1)]

    assert not any(receipt.repeated for receipt in receipts)


async def test_a_key_is_remembered_for_its_life(journal: Journal, store: SQLiteStore) -> None:
    """Also when its call has been forgotten; and not for longer."""
    await ended(journal, 1, idempotency_key="k")
    store.clock.advance(KEY_LIFE - 1)
    forgotten = await journal.prune("demo", before=store.clock.now, keep=0)
    early = await journal.append(submission(2, idempotency_key="k"))
    store.clock.advance(1)
    late = await journal.append(submission(3, idempotency_key="k"))

    assert forgotten == 1
    assert early == Receipt(1, "1", repeated=True)
    assert late == Receipt(3, "3")


async def test_a_schedule_fires_once_for_a_time(journal: Journal) -> None:
    """For the same time, or an earlier one, nothing is recorded; other schedules are not concerned."""
    first = await journal.append(submission(1, trigger="schedule", schedule_id=5, scheduled_time=60.0))
    same = await journal.append(submission(2, trigger="schedule", schedule_id=5, scheduled_time=60.0))
    earlier = await journal.append(submission(3, trigger="schedule", schedule_id=5, scheduled_time=30.0))
    later = await journal.append(submission(4, trigger="schedule", schedule_id=5, scheduled_time=90.0))
    other = await journal.append(submission(5, trigger="schedule", schedule_id=6, scheduled_time=60.0))

    assert [first, same, earlier] == [Receipt(1, "1"), Receipt(0, "", repeated=True), Receipt(0, "", repeated=True)]
    assert [later, other] == [Receipt(4, "4"), Receipt(5, "5")]
    assert await journal.last_fired(5) == 90.0
    assert await journal.last_fired(7) is None


async def test_a_rerun_of_a_scheduled_call_is_recorded(journal: Journal) -> None:
    """It carries the schedule of its first run, but nothing fires for it."""
    await journal.append(submission(1, trigger="schedule", schedule_id=5, scheduled_time=60.0))
    rerun = await journal.append(submission(2, trigger="rerun", schedule_id=5, scheduled_time=60.0))

    assert rerun == Receipt(2, "2")


async def test_a_time_noted_as_fired_is_skipped(journal: Journal) -> None:
    """`fired` counts as a call would, and never goes back."""
    await journal.fired(5, 60.0)
    await journal.fired(5, 30.0)
    skipped = await journal.append(submission(1, trigger="schedule", schedule_id=5, scheduled_time=60.0))

    assert skipped.repeated
    assert await journal.last_fired(5) == 60.0


async def test_an_id_is_used_once(journal: Journal) -> None:
    """A second call under it is refused, whatever else was appended at the same time, and changes nothing."""
    await journal.append(submission(1))
    results = await asyncio.gather(*(journal.append(submission(id, G)) for id in (2, 1, 3, 3)), return_exceptions=True)

    assert [isinstance(each, IdTaken) for each in results] == [False, True, False, True]
    assert await journal.waiting() == {F: 1, G: 2}


# Claim.


async def test_claims_come_by_priority_then_age(journal: Journal) -> None:
    """Highest priority first, then the oldest id; as many as wanted, of each function on its own."""
    for id, priority in ((1, 0), (2, 5), (3, -5), (4, 5), (5, 0)):
        await journal.append(submission(id, priority=priority))
    await journal.append(submission(6, G))
    claims = await journal.claim({F: 3, G: 9, H: 9})

    assert sorted(ids(claims)) == [1, 2, 4, 6]
    assert [id for id in ids(claims) if id != 6] == [2, 4, 1]
    assert ids(await journal.claim({F: 9})) == [5, 3]


async def test_a_claim_has_the_call_and_its_entry(journal: Journal) -> None:
    """With everything that was submitted; `attempt` counts from 1."""
    await journal.append(submission(1, label="mine", timeout=2.0, callback_url=URL))
    (claim,) = await journal.claim({F: 1})

    assert claim.entry == await journal.get(1)
    assert claim.call == await journal.request(1)
    assert (claim.entry.status, claim.call.attempt) == (Status.RUNNING, 1)


async def test_two_owners_never_hold_one_call(store: SQLiteStore) -> None:
    """Whoever claims first has it, and the other one can do nothing to it."""
    async with opened(store) as one, opened(store) as two:
        await asyncio.gather(*(one.append(submission(id)) for id in range(1, 41)))
        claims = await asyncio.gather(*(each.claim({F: 5}) for each in (one, two) * 5))
        mine = [id for claim in claims[::2] for id in ids(claim)]
        theirs = [id for claim in claims[1::2] for id in ids(claim)]

        assert sorted(mine + theirs) == list(range(1, 41))
        assert not await two.complete(mine[0], OK)
        assert not await two.retry(mine[0], BAD, 0)
        assert not await two.release(mine[0], 0)
        assert not await two.cancelled(mine[0])
        assert await two.take_over() == []
        assert await one.complete(mine[0], OK)


async def test_a_delayed_call_waits_for_its_time(journal: Journal, store: SQLiteStore) -> None:
    """It is neither waiting nor claimed before, and both when its time has come."""
    at = store.clock.now + 10
    await journal.append(submission(1, run_at=at))
    before = await journal.waiting(), await journal.claim({F: 1}), await journal.next_due()
    store.clock.advance(10)

    assert before == ({}, [], at)
    assert await journal.waiting() == {F: 1}
    assert await journal.next_due() is None
    assert ids(await journal.claim({F: 1})) == [1]


async def test_waiting_sees_what_others_append(store: SQLiteStore) -> None:
    """It may come late, but it comes."""
    async with opened(store) as one, opened(store) as two:
        await one.waiting()
        await two.append(submission(1))
        store.clock.advance(1)

        assert await one.waiting() == {F: 1}
        await two.claim({F: 1})
        store.clock.advance(1)
        assert await one.waiting() == {}


async def test_next_due_is_the_earliest_of_calls_and_deliveries(journal: Journal, store: SQLiteStore) -> None:
    """None when there is nothing to come."""
    now = store.clock.now
    nothing = await journal.next_due()
    await ended(journal, 1, callback_url=URL)
    await journal.redeliver(1, now + 20)
    delivery = await journal.next_due()
    await journal.append(submission(2, run_at=now + 10))
    call = await journal.next_due()
    await journal.cancel(2)

    assert (nothing, delivery, call, await journal.next_due()) == (None, now + 20, now + 10, now + 20)


# The end of a claim.


async def test_complete_records_the_outcome(journal: Journal, store: SQLiteStore) -> None:
    """The entry has its numbers, `outcome` all of it."""
    await journal.append(submission(1), claim=True)
    store.clock.advance(2)
    done = await journal.complete(1, OK)
    entry = await journal.get(1)

    assert done
    assert entry is not None
    assert (entry.status, entry.code, entry.error_code, entry.seconds) == (Status.SUCCEEDED, 200, None, 0.25)
    assert entry.finished_at == store.clock.now
    assert await journal.outcome(1) == OK
    assert await journal.outcome(2) is None


async def test_a_call_ends_once(journal: Journal) -> None:
    """Of all who would end it, at once or later, one is told True."""
    await journal.append(submission(1), claim=True)
    results = await asyncio.gather(journal.complete(1, OK), journal.complete(1, BAD), journal.complete(2, OK))
    later = await journal.complete(1, BAD), await journal.retry(1, BAD, 0), await journal.release(1, 0)

    assert sorted(results) == [False, False, True]
    assert later == (False, False, False)


async def test_a_failure_is_failed(journal: Journal) -> None:
    """What the host made, or a status from 400, is a failure."""
    await ended(journal, 1, BAD)
    entry = await journal.get(1)

    assert entry is not None
    assert (entry.status, entry.code, entry.error_code) == (Status.FAILED, 503, "interrupted")


async def test_a_retried_call_runs_again(journal: Journal, store: SQLiteStore) -> None:
    """At its time, as the next attempt; the last outcome is known meanwhile."""
    await journal.append(submission(1, callback_url=URL), claim=True)
    retried = await journal.retry(1, BAD, store.clock.now + 5)
    entry = await journal.get(1)
    early = await journal.claim({F: 1})
    store.clock.advance(5)
    (claim,) = await journal.claim({F: 1})

    assert retried
    assert entry is not None
    assert (entry.status, entry.run_at, entry.code, entry.callback) == (
        Status.QUEUED,
        claim.entry.run_at,
        503,
        "waiting",
    )
    assert early == []
    assert claim.call.attempt == 2
    assert await journal.outcome(1) == BAD
    assert await journal.complete(1, OK)
    assert await journal.outcome(1) == OK


async def test_a_released_call_was_never_started(journal: Journal, store: SQLiteStore) -> None:
    """It keeps its place, and its next attempt is the first."""
    await journal.append(submission(1))
    await journal.append(submission(2))
    await journal.claim({F: 1})
    released = await journal.release(1, store.clock.now)
    entry = await journal.get(1)
    (claim,) = await journal.claim({F: 1})

    assert released
    assert entry is not None
    assert (entry.status, entry.attempt, entry.started_at) == (Status.QUEUED, 0, None)
    assert (claim.entry.id, claim.call.attempt) == (1, 1)


# Cancel.


async def test_a_queued_call_is_cancelled_at_once(journal: Journal, store: SQLiteStore) -> None:
    """Ready or delayed; it is never claimed, and has no callback."""
    await journal.append(submission(1, callback_url=URL))
    await journal.append(submission(2, run_at=store.clock.now + 5))
    statuses = await journal.cancel(1), await journal.cancel(2)
    store.clock.advance(5)
    entry = await journal.get(1)

    assert statuses == (Status.CANCELLED, Status.CANCELLED)
    assert entry is not None
    assert (entry.status, entry.callback, entry.finished_at) == ("cancelled", "none", store.clock.now - 5)
    assert await journal.waiting() == {}
    assert await journal.claim({F: 9}) == []
    assert await journal.claim_deliveries(9) == []


async def test_a_running_call_is_asked_to_stop(store: SQLiteStore) -> None:
    """Whoever runs it hears of it, also from another owner, until it has ended."""
    async with opened(store) as one, opened(store) as two:
        await one.append(submission(1), claim=True)
        await one.append(submission(2), claim=True)
        statuses = await one.cancel(1), await two.cancel(2)
        store.clock.advance(1)
        asked = await one.to_cancel(), await two.to_cancel()
        stopped = await one.cancelled(1), await one.complete(2, OK)

        assert statuses == (Status.RUNNING, Status.RUNNING)
        assert (sorted(asked[0]), asked[1]) == ([1, 2], [])
        assert stopped == (True, True)
        assert await one.to_cancel() == []
        assert [entry.status for entry in await one.find(Query())] == [Status.SUCCEEDED, Status.CANCELLED]


STOPPED = Outcome(500, b"content-type\0application/json", b'"stop"', invoked=False, seconds=0.0, error_code="cancelled")


async def test_who_cancels_a_call_says_what_came_of_it(store: SQLiteStore) -> None:
    """Of a queued call and of a running one; but what a call has come to by itself stands."""
    async with opened(store) as journal:
        await journal.append(submission(1))
        await journal.append(submission(2), claim=True)
        await journal.append(submission(3), claim=True)
        await ended(journal, 4)
        for id in (1, 2, 3, 4):
            await journal.cancel(id, STOPPED)
        await journal.cancelled(2)
        await journal.complete(3, OK)

        assert [await journal.outcome(id) for id in (1, 2, 3, 4)] == [STOPPED, STOPPED, OK, OK]
        assert await found(journal, statuses=[Status.CANCELLED]) == [2, 1]


async def test_cancel_tells_the_status(journal: Journal) -> None:
    """Of a final call its status, of an unknown one None; nothing is changed."""
    await ended(journal, 1)

    assert await journal.cancel(1) is Status.SUCCEEDED
    assert await journal.cancel(2) is None
    assert not await journal.cancelled(1)


async def test_a_call_to_be_cancelled_does_not_start_again(journal: Journal, store: SQLiteStore) -> None:
    """When it is retried or released after its cancellation was asked for, that is its end."""
    for id in (1, 2):
        await journal.append(submission(id), claim=True)
        await journal.cancel(id)
    done = await journal.retry(1, BAD, store.clock.now), await journal.release(2, store.clock.now)

    assert done == (True, True)
    assert await found(journal, statuses=[Status.CANCELLED]) == [2, 1]
    assert await journal.waiting() == {}


# Take over.


async def test_the_calls_of_the_dead_are_taken_over_once(store: SQLiteStore) -> None:
    """By whoever asks first, with `attempt` unchanged; the living keep theirs."""
    dead = store.journal()
    await dead.open()
    async with opened(store) as one, opened(store) as two:
        await one.append(submission(1), claim=True)
        for id in (2, 3):
            await dead.append(submission(id), claim=True)
        before = await one.take_over()
        await store.crash(dead)
        claims = await asyncio.gather(one.take_over(), two.take_over(), one.take_over())

        assert before == []
        assert sorted(id for each in claims for id in ids(each)) == [2, 3]
        assert {claim.call.attempt for each in claims for claim in each} == {1}
        heir = one if claims[0] or claims[2] else two
        assert await heir.complete(2, OK)
        assert await one.complete(1, OK)


async def test_no_jump_of_the_clock_takes_a_claim_away(store: SQLiteStore) -> None:
    """A living owner keeps its claims for ever, whatever the time of day, and however long it is not heard of."""
    async with opened(store) as one, opened(store) as two:
        await one.append(submission(1), claim=True)
        taken = []
        for jump in (1e7, -2e7, 1e9):
            store.clock.now += jump
            taken += await two.take_over()
        store.clock.advance(1e6)
        taken += await two.take_over()

        assert taken == []
        assert await one.complete(1, OK)


# Deliver.


async def test_an_outcome_is_delivered(journal: Journal, store: SQLiteStore) -> None:
    """A finished call's callback is pending, claimed once, and done when it has arrived."""
    await ended(journal, 1, callback_url=URL)
    await ended(journal, 2)
    (delivery,) = await journal.claim_deliveries(9)
    again = await journal.claim_deliveries(9)
    pending = await journal.get(1)
    await journal.delivered(1)
    entry = await journal.get(1)

    assert (delivery.entry, delivery.outcome, delivery.attempt) == (pending, OK, 1)
    assert again == []
    assert pending is not None
    assert (pending.callback, pending.callback_attempts) == (CallbackState.PENDING, 1)
    assert entry is not None
    assert (entry.callback, entry.callback_at) == (CallbackState.DELIVERED, None)


async def test_deliveries_come_longest_due_first(journal: Journal, store: SQLiteStore) -> None:
    """As many as asked for, and none before its time."""
    for id, at in ((1, 3), (2, 1), (3, 2), (4, 99)):
        await ended(journal, id, callback_url=URL)
        await journal.redeliver(id, store.clock.now + at)
    store.clock.advance(10)
    first, rest = await journal.claim_deliveries(2), await journal.claim_deliveries(9)

    assert [each.entry.id for each in first] == [2, 3]
    assert [each.entry.id for each in rest] == [1]


async def test_a_function_has_its_share_of_deliveries(journal: Journal, store: SQLiteStore) -> None:
    """So many are in an owner's hands, whatever is due before those of others."""
    for id in (1, 2, 3, 4):
        await ended(journal, id, callback_url=URL, function=F)
    store.clock.advance(1)
    for id in (5, 6):
        await ended(journal, id, callback_url=URL, function=G)
    store.clock.advance(1)
    claimed = [[each.entry.id for each in await journal.claim_deliveries(9, 2)] for _ in range(2)]
    await journal.delivered(2)
    claimed += [[each.entry.id for each in await journal.claim_deliveries(limit, 2)] for limit in (0, 9)]
    unbounded = await journal.claim_deliveries(9)

    assert claimed == [[1, 2, 5, 6], [], [], [3]]
    assert [each.entry.id for each in unbounded] == [4]


async def test_a_delivery_is_tried_again_and_given_up(journal: Journal, store: SQLiteStore) -> None:
    """Attempts are counted, the last error is known; a dead letter can be found and delivered again."""
    await ended(journal, 1, callback_url=URL)
    await journal.claim_deliveries(1)
    again = await journal.redeliver(1, store.clock.now + 1, "503")
    waiting = await journal.get(1)
    store.clock.advance(1)
    (delivery,) = await journal.claim_deliveries(1)
    await journal.give_up(1, "410")
    dead = await journal.get(1)
    letters = await found(journal, dead_letters=True)
    revived = await journal.redeliver(1, store.clock.now)
    (last,) = await journal.claim_deliveries(1)

    assert (again, revived) == (True, True)
    assert waiting is not None
    assert (waiting.callback, waiting.callback_at, waiting.callback_error) == ("pending", store.clock.now, "503")
    assert (delivery.attempt, last.attempt) == (2, 1)
    assert dead is not None
    assert (dead.callback, dead.callback_error, dead.callback_attempts) == ("dead", "410", 2)
    assert letters == [1]
    assert await found(journal, dead_letters=True) == []


async def test_a_delivery_under_way_is_the_one_that_is_asked_for(store: SQLiteStore) -> None:
    """Whoever has it goes on, nobody makes a second one beside it, and no attempt is used up."""
    one, two = store.journal(), store.journal()
    await one.open()
    await two.open()
    await ended(one, 1, callback_url=URL)
    await one.claim_deliveries(1)
    asked = [await journal.redeliver(1, store.clock.now) for journal in (one, two, one)]
    others = [await journal.claim_deliveries(9) for journal in (one, two)]
    await one.redeliver(1, store.clock.now + 1, "503")
    sooner = await two.redeliver(1, store.clock.now)
    (delivery,) = await two.claim_deliveries(9)
    await two.delivered(1)
    entry = await one.get(1)
    await one.close()
    await two.close()

    assert (asked, others, sooner) == ([True] * 3, [[], []], True)
    assert delivery.attempt == 2
    assert entry is not None
    assert (entry.callback, entry.callback_attempts) == (CallbackState.DELIVERED, 2)


async def test_only_an_outcome_with_a_url_is_delivered(journal: Journal, store: SQLiteStore) -> None:
    """`redeliver` is False for what has no URL, has not ended, was cancelled, or is unknown."""
    await ended(journal, 1)
    await journal.append(submission(2, callback_url=URL))
    await journal.append(submission(3, callback_url=URL))
    await journal.cancel(3)
    await journal.append(submission(4, callback_url=URL), claim=True)
    await journal.retry(4, BAD, store.clock.now)

    assert [await journal.redeliver(id, 0) for id in (1, 2, 3, 4, 5)] == [False] * 5


async def test_the_deliveries_of_the_dead_are_due_again(store: SQLiteStore) -> None:
    """The outcome reaches its receiver at least once, whoever dies on the way."""
    dead = store.journal()
    await dead.open()
    await ended(dead, 1, callback_url=URL)
    await dead.claim_deliveries(1)
    async with opened(store) as journal:
        before = await journal.claim_deliveries(1)
        await store.crash(dead)
        (delivery,) = await journal.claim_deliveries(1)

        assert before == []
        assert (delivery.entry.id, delivery.attempt) == (1, 2)


async def test_a_delivery_is_of_one_owner(store: SQLiteStore) -> None:
    """What another one says of it changes nothing."""
    async with opened(store) as one, opened(store) as two:
        await ended(one, 1, callback_url=URL)
        await one.claim_deliveries(1)
        await two.delivered(1)
        await two.give_up(1, "410")
        entry = await two.get(1)
        await one.delivered(1)
        await one.give_up(1, "410")
        settled = await two.get(1)

        assert entry is not None
        assert (entry.callback, entry.callback_error) == (CallbackState.PENDING, None)
        assert settled is not None
        assert settled.callback is CallbackState.DELIVERED


# Events.


async def test_events_tell_what_happened(journal: Journal, store: SQLiteStore) -> None:
    """States, logs and progress, in order, with numbers that grow, and resumed after any of them."""
    await journal.append(submission(1))
    store.clock.advance(1)
    await journal.claim({F: 1})
    journal.note(1, "log", {"level": "info", "text": "grüezi"})
    journal.note(1, "progress", {"fraction": 0.5, "message": "half"})
    running = await noted(journal, 1, 4)
    await journal.complete(1, OK)
    events = await journal.events(1)

    assert kinds(events) == ["queued", "running", "log", "progress", "succeeded"]
    assert [event.number for event in events] == sorted({event.number for event in events})
    assert events[:4] == running
    assert events[2].data == {"level": "info", "text": "grüezi"}
    assert [event.at for event in events] == [store.clock.now - 1, *[store.clock.now] * 4]
    for index, event in enumerate(events):
        assert await journal.events(1, after=event.number) == events[index + 1 :]
    assert await journal.events(1, after=1, limit=2) == events[1:3]
    assert await journal.events(2) == []


async def noted(journal: Journal, id: int, count: int) -> list[Event]:
    """The events of a call, once there are so many."""
    while len(events := await journal.events(id)) < count:
        await soon(journal.changed(id, 30))
    return events


async def test_events_of_a_call_that_starts_several_times(journal: Journal, store: SQLiteStore) -> None:
    """Numbers stay what they were, and grow on."""
    await journal.append(submission(1))
    await journal.claim({F: 1})
    journal.note(1, "log", {"text": "first"})
    before = await noted(journal, 1, 3)
    await journal.retry(1, BAD, store.clock.now)
    await journal.claim({F: 1})
    await journal.release(1, store.clock.now)
    await journal.claim({F: 1})
    journal.note(1, "log", {"text": "second"})
    await journal.complete(1, OK)
    journal.note(1, "log", {"text": "late"})
    events = await noted(journal, 1, 10)

    states = ["queued", "running", "log", "queued", "running", "queued", "running", "log", "succeeded", "log"]
    assert kinds(events) == states
    assert events[:3] == before
    assert [event.number for event in events] == sorted({event.number for event in events})


async def test_a_note_of_an_unknown_call_is_dropped(journal: Journal) -> None:
    """And those beside it are not."""
    await journal.append(submission(1), claim=True)
    journal.note(2, "log", {"text": "?"})
    journal.note(1, "log", {"text": "!"})

    assert kinds(await noted(journal, 1, 3)) == ["queued", "running", "log"]
    assert await journal.events(2) == []


async def test_any_text_can_be_noted(journal: Journal) -> None:
    """Half a character too, as a program may print it: it is replaced."""
    await journal.append(submission(1), claim=True)
    journal.note(1, "log", {"text": "a\ud800\0b", "level": "info"})
    journal.note(1, "progress", {"fraction": 1, "message": "\udfff"})
    events = await noted(journal, 1, 4)
    entry = await journal.get(1)

    assert events[2].data == {"text": "a?\0b", "level": "info"}
    assert entry is not None
    assert (entry.progress, entry.progress_message) == (1.0, "?")


async def test_progress_is_in_the_entry(journal: Journal, store: SQLiteStore) -> None:
    """The latest; a new attempt begins without any."""
    await journal.append(submission(1), claim=True)
    journal.note(1, "progress", {"fraction": 0.25, "message": "a"})
    journal.note(1, "progress", {"fraction": 0.5, "message": "b"})
    await noted(journal, 1, 4)
    entry = await journal.get(1)
    await journal.retry(1, BAD, store.clock.now)
    (claim,) = await journal.claim({F: 1})

    assert entry is not None
    assert (entry.progress, entry.progress_message) == (0.5, "b")
    assert (claim.entry.progress, claim.entry.progress_message) == (None, "")


async def test_changed_wakes_who_waits(journal: Journal) -> None:
    """After the change, for that call only, and at the latest after the timeout."""
    await journal.append(submission(1), claim=True)
    await journal.append(submission(2), claim=True)
    waiting = [asyncio.create_task(journal.changed(id, 30)) for id in (1, 1, 2)]
    await asyncio.sleep(0)
    await journal.complete(1, OK)
    await soon(asyncio.gather(*waiting[:2]))
    others = waiting[2].done()
    await journal.changed(2, 0)
    await journal.complete(2, OK)
    await soon(waiting[2])

    assert not others


async def test_nothing_is_missed_between_reading_and_waiting(journal: Journal) -> None:
    """What happened after a task's last reading ends its wait at once."""
    await journal.append(submission(1), claim=True)
    entry = await journal.get(1)
    await asyncio.create_task(journal.complete(1, OK))
    await soon(journal.changed(1, 1000))

    assert entry is not None
    assert entry.status is Status.RUNNING


# Look up.


async def test_find_filters(journal: Journal, store: SQLiteStore) -> None:
    """Each field of a query on its own, the newest first."""
    start = store.clock.now
    await ended(journal, 1, OK)
    await ended(journal, 2, BAD)
    store.clock.advance(10)
    await journal.append(submission(3, idempotency_key="k"))
    await journal.append(submission(4, G, trigger="schedule", schedule_id=1, scheduled_time=1.0))
    await journal.append(submission(5, run_at=start + 99))
    await journal.append(submission(6, H), claim=True)
    await journal.append(submission(7))
    await journal.cancel(7)

    assert await found(journal) == [7, 6, 5, 4, 3, 2, 1]
    assert await found(journal, space="demo") == [7, 5, 4, 3, 2, 1]
    assert await found(journal, space="demo", name="f") == [7, 5, 3, 2, 1]
    assert await found(journal, name="f") == [7, 6, 5, 3, 2, 1]
    assert await found(journal, space="nosuch") == []
    assert await found(journal, space="demo", name="nosuch") == []
    assert await found(journal, statuses=[Status.QUEUED]) == [5, 4, 3]
    assert await found(journal, statuses=[Status.RUNNING, Status.FAILED]) == [6, 2]
    assert await found(journal, statuses=list(Status)) == [7, 6, 5, 4, 3, 2, 1]
    assert await found(journal, trigger="schedule") == [4]
    assert await found(journal, trigger="http") == [7, 6, 5, 3, 2, 1]
    assert await found(journal, idempotency_key="k") == [3]
    assert await found(journal, since=start + 10) == [7, 6, 5, 4, 3]
    assert await found(journal, until=start + 10) == [2, 1]
    assert await found(journal, since=start + 10, statuses=[Status.CANCELLED]) == [7]
    assert await found(journal, dead_letters=True) == []


async def test_find_pages(journal: Journal) -> None:
    """`limit` and `before` go through all, without gaps or doubles."""
    await asyncio.gather(*(journal.append(submission(id, (F, G, H)[id % 3])) for id in range(1, 31)))
    pages: list[list[int]] = []
    while page := await found(journal, limit=7, before=pages[-1][-1] if pages else None):
        pages.append(page)

    assert [id for page in pages for id in page] == list(range(30, 0, -1))
    assert max(map(len, pages)) == 7


async def test_find_in_a_long_history(journal: Journal, store: SQLiteStore) -> None:
    """A span of time with more calls than can be sorted at once is answered the same."""
    await asyncio.gather(*(journal.append(submission(id)) for id in range(1, 2101)))
    store.clock.advance(1)
    await journal.append(submission(3000))

    assert await found(journal, space="demo", name="f", until=store.clock.now, limit=2) == [2100, 2099]
    assert await found(journal, space="demo", name="f", since=store.clock.now) == [3000]


async def test_counts(journal: Journal, store: SQLiteStore) -> None:
    """Of the whole journal; delayed calls count as queued, but have not waited."""
    empty = await journal.counts()
    await journal.append(submission(1))
    await journal.append(submission(2, run_at=store.clock.now + 100))
    await journal.append(submission(3, H), claim=True)
    for id in (4, 5, 6):
        await ended(journal, id, callback_url=URL)
    await journal.claim_deliveries(2)
    await journal.give_up(4, "410")
    store.clock.advance(7)
    counts = await journal.counts()

    assert (empty.queued, empty.running, empty.oldest, empty.callbacks_pending, empty.callbacks_dead) == (0, 0, 0, 0, 0)
    assert (counts.queued, counts.running, counts.oldest) == (2, 1, 7.0)
    assert (counts.callbacks_pending, counts.callbacks_dead) == (2, 1)


# Forget.


async def test_spaces_are_those_with_calls(journal: Journal) -> None:
    """Of any state, until they are forgotten."""
    assert await journal.spaces() == []
    await ended(journal, 1, function=H)
    await journal.append(submission(2))
    assert sorted(await journal.spaces()) == sorted({H[0], F[0]})


async def test_prune_forgets_the_old(journal: Journal, store: SQLiteStore) -> None:
    """Final calls of that space that ended before a time, with all that was kept of them."""
    await ended(journal, 1, body=b"x" * 100_000)
    await journal.append(submission(2), claim=True)
    await journal.append(submission(3))
    await ended(journal, 4, function=H)
    journal.note(1, "log", {"text": "?"})
    store.clock.advance(10)
    await ended(journal, 5)
    count = await journal.prune("demo", before=store.clock.now, keep=100)

    assert count == 1
    assert await found(journal) == [5, 4, 3, 2]
    assert (await journal.request(1), await journal.outcome(1), await journal.events(1)) == (None, None, [])
    assert await journal.prune("nosuch", before=store.clock.now, keep=0) == 0


async def test_prune_keeps_the_newest(journal: Journal, store: SQLiteStore) -> None:
    """So many of the space's final calls, in the order in which they ended."""
    for id in (3, 1, 2, 5, 4):
        await ended(journal, id, function=G if id == 1 else F)
        store.clock.advance(1)
    count = await journal.prune("demo", before=0, keep=2)

    assert count == 3
    assert await found(journal) == [5, 4]


async def test_prune_waits_for_callbacks(journal: Journal, store: SQLiteStore) -> None:
    """A call whose callback is pending is not forgotten, delivered and dead ones are."""
    for id in (1, 2, 3):
        await ended(journal, id, callback_url=URL)
    await journal.claim_deliveries(2)
    await journal.delivered(1)
    await journal.give_up(2, "410")
    store.clock.advance(1)

    assert await journal.prune("demo", before=store.clock.now, keep=0) == 2
    assert await found(journal) == [3]


async def test_prune_goes_in_steps(journal: Journal, store: SQLiteStore) -> None:
    """Many are forgotten as well, with some in between that stay."""
    url: Callable[[int], str | None] = lambda id: URL if id % 100 == 0 else None  # noqa: E731
    await asyncio.gather(*(ended(journal, id, callback_url=url(id)) for id in range(1, 1001)))
    store.clock.advance(1)

    assert await journal.prune("demo", before=store.clock.now, keep=0) == 990
    assert await found(journal) == list(range(1000, 0, -100))


# Cancelled awaiters.


@pytest.mark.parametrize("turns", range(6))
async def test_what_nobody_heard_of_is_in_nobodys_hands(store: SQLiteStore, turns: int) -> None:
    """When a task is cancelled in the middle of a claim, the calls are there for the next one."""
    async with opened(store) as journal:
        await journal.append(submission(1))
        await ended(journal, 2, callback_url=URL)
        tasks = [
            asyncio.create_task(journal.claim({F: 1})),
            asyncio.create_task(journal.append(submission(3, G), claim=True)),
            asyncio.create_task(journal.claim_deliveries(1)),
        ]
        for _ in range(turns):
            await asyncio.sleep(0.0002)  # any moment will do: before, while, or after it is done
        for task in tasks:
            task.cancel()
        claimed, appended, delivered = await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(2):  # what is to be given back is given back by then
            await journal.fired(1, 1.0)

        if isinstance(claimed, asyncio.CancelledError):
            (claim,) = await journal.claim({F: 1})
            assert claim.call.attempt == 1
        if isinstance(appended, asyncio.CancelledError) and await journal.get(3) is not None:
            assert ids(await journal.claim({G: 1})) == [3]
        if isinstance(delivered, asyncio.CancelledError):
            (delivery,) = await journal.claim_deliveries(1)
            assert delivery.attempt == 1
