"""Schedules on virtual time: what is submitted, what was missed, and what happens when the clock is set."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from runtime.calls import CallIds, Submission
from runtime.config import FunctionSettings, Schedule
from runtime.errors import HostError, JournalError, NotFound, Overloaded
from runtime.journal import Receipt
from runtime.registry import Function
from runtime.timetable import CreatedSchedule
from runtime.triggers.schedule import GLANCE, LATE, Schedules
from tests.unit.simulated import ON_STAGE

pytestmark = ON_STAGE

MINUTE = 60.0
HOUR = 60 * MINUTE
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
HOURLY = Schedule(id=1, cron="0 * * * *")
CATCHING_UP = Schedule(id=1, cron="0 * * * *", catch_up=True)
EVERY_MINUTE = Schedule(id=2, cron="* * * * *")


def function(*schedules: Schedule, name: str = "report") -> Function:
    return Function(
        id=1,
        space="demo",
        name=name,
        path=Path(f"/demo/{name}.py"),
        line=1,
        kind="sync",
        takes=(),
        digest="",
        settings=FunctionSettings(schedule=schedules),
    )


class World:
    """A clock that can be set, the journal's part in schedules, and any number of hosts on it."""

    def __init__(self) -> None:
        self.fired: dict[int, float] = {}
        self.taken: list[Submission] = []
        self.asked = 0  # how often a submission came
        self.failures: Iterator[HostError] = iter(())  # what the journal's methods and `submit` raise next
        self.submit_failures: Iterator[HostError] = iter(())  # what only `submit` raises next
        self.functions: list[Function] = []
        self.created: list[CreatedSchedule] = []  # as this host knows them
        self.elsewhere: list[CreatedSchedule] = []  # as another host has left them on disk
        self.looks = 0  # at what is on disk
        self.ahead = 0.0  # of the loop's clock
        self.set_clock(NOON)
        self._ids = CallIds()

    def set_clock(self, moment: float) -> None:
        self.ahead = moment - anyio.current_time()

    def clock(self) -> float:
        return anyio.current_time() + self.ahead

    async def sleep_until(self, moment: float) -> None:
        await anyio.sleep(moment - self.clock())

    def fail(self, *errors: HostError) -> None:
        self.failures = iter(errors)

    def fail_submits(self, *errors: HostError) -> None:
        self.submit_failures = iter(errors)

    def times(self) -> list[str]:
        """The due times that were submitted, of today by hour and minute."""
        return [datetime.fromtimestamp(each.call.scheduled_time, UTC).strftime("%H:%M") for each in self.taken]

    async def submit(self, submission: Submission) -> Receipt:
        self.asked += 1
        self._fail_if_told()
        if error := next(self.submit_failures, None):
            raise error
        call = submission.call
        if call.scheduled_time <= self.fired.get(call.schedule_id, 0):
            return Receipt(id=0, label="", repeated=True)
        self.fired[call.schedule_id] = call.scheduled_time
        self.taken.append(submission)
        return Receipt(id=call.id, label=call.label)

    @asynccontextmanager
    async def host(self, *functions: Function) -> AsyncIterator[Schedules]:
        """One that runs the schedules of these, and those that were created."""
        self.functions = list(functions)
        schedules = Schedules(
            functions=lambda: self.functions,
            last_fired=self._last_fired,
            fired=self._note_fired,
            next_id=self._ids.next,
            created=lambda: self.created,
            refresh=self._look,
            clock=self.clock,
        )
        self.running = schedules
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(schedules.run, self.submit)
            yield schedules
            tasks.cancel_scope.cancel()

    async def _look(self) -> None:
        self.looks += 1
        if self.elsewhere != self.created:
            self.created = self.elsewhere
            self.running.changed()

    async def _last_fired(self, id: int) -> float | None:
        self._fail_if_told()
        return self.fired.get(id)

    async def _note_fired(self, id: int, time: float) -> None:
        self._fail_if_told()
        self.fired[id] = max(time, self.fired.get(id, 0))

    def _fail_if_told(self) -> None:
        if error := next(self.failures, None):
            raise error


@pytest.fixture
async def world() -> World:
    return World()


def always(make: Callable[[], HostError]) -> Iterator[HostError]:
    while True:
        yield make()


# What is submitted


async def test_a_call_at_each_due_time(world: World) -> None:
    """From the next one after the first start on, each with an id of its own."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 3.5 * HOUR)

    assert world.times() == ["13:00", "14:00", "15:00"]
    assert len({each.call.id for each in world.taken}) == 3


async def test_the_call(world: World) -> None:
    """A POST of the schedule's data, which says what made it and for when."""
    schedule = Schedule(id=7, cron="0 13 * * *", data=b'{"a":1}', callback="http://h/cb")
    async with world.host(function(schedule)):
        await world.sleep_until(NOON + 2 * HOUR)
    (submission,) = world.taken
    call = submission.call

    assert (submission.trigger, submission.callback_url, submission.run_at) == ("schedule", "http://h/cb", None)
    assert (call.space, call.name, call.method, call.path, call.query) == ("demo", "report", b"POST", b"", b"")
    assert (call.schedule_id, call.scheduled_time) == (7, NOON + HOUR)
    assert call.body == (b'{"a":1}',)
    assert call.label == str(call.id)
    assert call.headers == b"x-call-id\0%d\0content-type\0application/json" % call.id


async def test_the_call_without_data(world: World) -> None:
    """It has no body, and no header that speaks of one."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 1.5 * HOUR)
    (submission,) = world.taken

    assert submission.call.body == ()
    assert submission.call.headers == b"x-call-id\0%d" % submission.call.id
    assert submission.callback_url is None


async def test_all_schedules_of_all_functions(world: World) -> None:
    """A function may have several, and none waits for another."""
    every_half = Schedule(id=3, cron="30 * * * *")
    async with world.host(function(HOURLY, every_half), function(EVERY_MINUTE, name="other"), function(name="none")):
        await world.sleep_until(NOON + HOUR + 1)

    assert world.times().count("13:00") == 2
    assert world.times().count("12:30") == 2
    assert len(world.taken) == 62


@pytest.mark.parametrize("jump", [0.0, 30 * 24 * HOUR])
async def test_it_sleeps_from_one_due_time_to_the_next(world: World, jump: float) -> None:
    """Between them it only looks at the clock, however many schedules there are, and whether it was set or not."""
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return World.clock(world)

    world.clock = clock  # type: ignore[method-assign]
    many = [Schedule(id=number, cron="0 0 1 1 *") for number in range(1, 101)]
    async with world.host(function(*many)):
        await anyio.sleep(1)
        world.ahead += jump
        await anyio.sleep(GLANCE + 1)
        looks = 0
        await anyio.sleep(HOUR)

    assert looks <= HOUR / GLANCE + 1


# Missed


@pytest.mark.parametrize(("schedule", "expected"), [(HOURLY, ["16:00"]), (CATCHING_UP, ["15:00", "16:00"])])
async def test_due_times_missed_while_nothing_ran(world: World, schedule: Schedule, expected: list[str]) -> None:
    """The latest of them is caught up with where the schedule says so, and none otherwise."""
    world.fired = {1: NOON}
    world.set_clock(NOON + 3.5 * HOUR)
    async with world.host(function(schedule)):
        await world.sleep_until(NOON + 4.5 * HOUR)

    assert world.times() == expected


async def test_what_was_skipped_stays_skipped(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is on record, and in the log: turning `catch_up` on later does not bring it back."""
    world.fired = {1: NOON}
    world.set_clock(NOON + 3.5 * HOUR)
    async with world.host(function(HOURLY)) as schedules:
        await anyio.sleep(1)
        world.functions = [function(CATCHING_UP)]
        schedules.changed()
        await anyio.sleep(1)

    assert world.fired == {1: NOON + 3 * HOUR}
    assert world.taken == []
    assert "demo/report (0 * * * *, UTC) was missed at 2026-11-22 15:00:00+00:00" in caplog.text


@pytest.mark.parametrize("schedule", [HOURLY, CATCHING_UP])
@pytest.mark.parametrize("late", [1.0, LATE])
async def test_what_is_a_little_late_is_not_missed(world: World, schedule: Schedule, late: float) -> None:
    """A restart over a due time does not lose it."""
    world.fired = {1: NOON}
    world.set_clock(NOON + HOUR + late)
    async with world.host(function(schedule)):
        await anyio.sleep(0.1)

    assert world.times() == ["13:00"]


@pytest.mark.parametrize("schedule", [HOURLY, CATCHING_UP])
async def test_a_new_schedule_has_missed_nothing(world: World, schedule: Schedule) -> None:
    """It begins with the next due time, and is known from then on."""
    async with world.host(function(schedule)):
        await anyio.sleep(1)
    known = dict(world.fired)

    assert world.taken == []
    assert known == {1: NOON}


async def test_a_new_schedule_can_miss_its_first_time(world: World) -> None:
    """A host that ends before it and starts after it catches up with it."""
    async with world.host(function(CATCHING_UP)):
        await anyio.sleep(1)
    world.set_clock(NOON + 1.5 * HOUR)
    async with world.host(function(CATCHING_UP)):
        await anyio.sleep(1)

    assert world.times() == ["13:00"]


# Once


async def test_two_hosts_fire_once(world: World) -> None:
    """Of two that share a journal only one is let."""
    async with world.host(function(HOURLY)), world.host(function(HOURLY)):
        await world.sleep_until(NOON + 3.5 * HOUR)

    assert world.times() == ["13:00", "14:00", "15:00"]
    assert world.asked == 6


async def test_a_restart_fires_nothing_again(world: World) -> None:
    """Not even right after the due time."""
    for _ in range(3):
        async with world.host(function(CATCHING_UP)):
            await world.sleep_until(max(world.clock(), NOON + HOUR) + 1)

    assert world.times() == ["13:00"]


async def test_a_clock_set_back_fires_nothing_again(world: World) -> None:
    """What was submitted is not submitted again when its time comes again; then it goes on."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 2.5 * HOUR)
        world.set_clock(NOON + 0.5 * HOUR)
        await world.sleep_until(NOON + 3.5 * HOUR)

    assert world.times() == ["13:00", "14:00", "15:00"]
    assert world.asked == 3


@pytest.mark.parametrize(
    ("schedule", "expected"), [(HOURLY, ["13:00", "19:00"]), (CATCHING_UP, ["13:00", "18:00", "19:00"])]
)
async def test_a_clock_set_forward_has_missed_times(world: World, schedule: Schedule, expected: list[str]) -> None:
    """As if nothing had run meanwhile. It is noticed soon, and the next due time is not late."""
    async with world.host(function(schedule)):
        await world.sleep_until(NOON + 1.5 * HOUR)
        world.set_clock(NOON + 6.5 * HOUR)
        await anyio.sleep(GLANCE + 1)
        caught_up = world.times()
        await world.sleep_until(NOON + 7 * HOUR + 1)

    assert caught_up == [time for time in expected if time != "19:00"]
    assert world.times() == expected


async def test_a_due_time_soon_after_a_jump_is_not_missed(world: World) -> None:
    """The clock is looked at often enough."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 1.5 * HOUR + 7)
        world.set_clock(NOON + 4 * HOUR - 1)
        await anyio.sleep(LATE)

    assert world.times() == ["13:00", "16:00"]


async def test_a_schedule_fired_in_the_future_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that once stood wrong is told of, since the schedule is silent until then."""
    world.fired = {1: NOON + 24 * HOUR}
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 25.5 * HOUR)

    assert world.times() == ["13:00"]
    assert "has fired for 2026-11-23 12:00:00+00:00, which is yet to come" in caplog.text


# Changes


async def test_a_new_schedule_is_seen_at_once(world: World) -> None:
    """Also by a host that had none."""
    async with world.host() as schedules:
        await anyio.sleep(HOUR / 2)
        world.functions = [function(EVERY_MINUTE)]
        schedules.changed()
        await world.sleep_until(NOON + HOUR / 2 + 1.5 * MINUTE)

    assert world.times() == ["12:31"]


async def test_a_removed_schedule_is_silent_at_once(world: World) -> None:
    """The others go on."""
    async with world.host(function(HOURLY, EVERY_MINUTE)) as schedules:
        await world.sleep_until(NOON + 1.5 * MINUTE)
        world.functions = [function(HOURLY)]
        schedules.changed()
        await world.sleep_until(NOON + 1.5 * HOUR)

    assert world.times() == ["12:01", "13:00"]


async def test_changed_data_are_submitted_from_then_on(world: World) -> None:
    """It is still the same schedule: nothing fires again, and nothing is lost."""
    async with world.host(function(HOURLY)) as schedules:
        await world.sleep_until(NOON + HOUR)
        world.functions = [function(Schedule(id=1, cron="0 * * * *", data=b"2"))]
        schedules.changed()
        await world.sleep_until(NOON + 2.5 * HOUR)

    assert world.times() == ["13:00", "14:00"]
    assert [each.call.body for each in world.taken] == [(), (b"2",)]


async def test_changes_elsewhere_disturb_nothing(world: World) -> None:
    """A reload of code is no change of a schedule."""
    async with world.host(function(HOURLY)) as schedules:
        while world.clock() < NOON + 2.5 * HOUR:
            schedules.changed()
            await anyio.sleep(MINUTE)

    assert world.times() == ["13:00", "14:00"]


# Refused


async def test_a_journal_that_cannot_be_used_is_tried_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The call is made when it can be used again, and knows for when it was due."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + HOUR - 1)
        world.fail(*[JournalError("the disk is full")] * 10)
        await world.sleep_until(NOON + 1.5 * HOUR)

    assert world.times() == ["13:00"]
    assert world.asked == 11
    assert "the disk is full" in caplog.text


async def test_it_is_tried_until_the_next_due_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A due time that has become an old one is given up, and that is an error in the log."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + HOUR - 1)
        world.failures = always(JournalError)
        await world.sleep_until(NOON + 2 * HOUR - 1)
        world.fail()
        before = world.times()
        await world.sleep_until(NOON + 2 * HOUR + 1)

    assert before == []
    assert world.times() == ["14:00"]


async def test_what_was_given_up_is_an_error_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to guess why a call is missing."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + HOUR - 1)
        world.failures = always(JournalError)
        await world.sleep_until(NOON + 2 * HOUR + 1)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    assert errors == [
        "demo/report (0 * * * *, UTC) was not called at 2026-11-22 13:00:00+00:00: the next time has come"
    ]


async def test_a_full_queue_is_tried_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever may be otherwise in a moment is."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + HOUR - 1)
        world.fail(Overloaded())
        await world.sleep_until(NOON + 1.5 * HOUR)

    assert world.times() == ["13:00"]
    assert "Too many calls are waiting" in caplog.text


async def test_what_is_refused_for_good_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is not tried again, and the next due time comes as usual."""
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + HOUR - 1)
        world.fail(NotFound("there is no function `report`"))
        await world.sleep_until(NOON + 2.5 * HOUR)

    assert world.times() == ["14:00"]
    assert world.asked == 2
    assert "there is no function `report`" in caplog.text


async def test_a_schedule_waits_for_the_journal(world: World) -> None:
    """A host that starts without one does its schedules as soon as it has it, by the same rules."""
    world.fired = {1: NOON - 3 * HOUR}
    world.fail(*[JournalError()] * 5)
    async with world.host(function(CATCHING_UP)):
        await world.sleep_until(NOON + 1.5 * HOUR)

    assert world.times() == ["12:00", "13:00"]


async def test_a_new_schedule_without_a_journal_begins_when_it_was_seen(world: World) -> None:
    """What comes due until the journal can be used is missed, or caught up with."""
    async with world.host(function(CATCHING_UP)):
        world.failures = always(JournalError)
        await world.sleep_until(NOON + 1.5 * HOUR)
        world.fail()
        await anyio.sleep(MINUTE)

    assert world.times() == ["13:00"]


async def test_a_skip_that_is_not_on_record_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is a skip all the same."""
    world.fired = {1: NOON - 3 * HOUR}
    world.set_clock(NOON + 0.5 * HOUR)
    async with world.host(function(HOURLY)):
        world.failures = iter([None, JournalError("read-only")])  # type: ignore[list-item]
        await world.sleep_until(NOON + 1.5 * HOUR)

    assert world.times() == ["13:00"]
    assert "read-only" in caplog.text


async def test_a_schedule_that_is_over_is_left(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is never due again ends by itself, and the others go on."""
    from runtime.triggers import schedule as module

    real = module.next_after
    monkeypatch.setattr(module, "next_after", lambda each, moment: None if each.id == 1 else real(each, moment))
    async with world.host(function(HOURLY, EVERY_MINUTE)):
        await world.sleep_until(NOON + 1.5 * MINUTE)

    assert world.times() == ["12:01"]
    assert "demo/report (0 * * * *, UTC) is never due again" in caplog.text


# Created schedules


def created(cron: str = "0 * * * *", *, id: int = 11, name: str = "report") -> CreatedSchedule:
    """As a client has created it."""
    return CreatedSchedule(
        id=id, function_id=1, space="demo", name=name, title="hourly", description=None, cron=cron, data=b'{"n":1}',
        session_id=2, created_at=NOON, key=None,
    )  # fmt: skip


async def test_a_created_schedule_fires(world: World) -> None:
    """Beside those of spaces.toml, with its data, and its number as the call's schedule."""
    world.elsewhere = [created("30 * * * *")]
    async with world.host(function(HOURLY)):
        await world.sleep_until(NOON + 2.25 * HOUR)
    calls = [each.call for each in world.taken]

    assert world.times() == ["12:30", "13:00", "13:30", "14:00"]
    assert [call.schedule_id for call in calls] == [11, 1, 11, 1]
    assert calls[0].body == (b'{"n":1}',)


async def test_it_is_followed_from_when_it_is_created(world: World) -> None:
    """Also where there was nothing to do before; and not any longer than until it is deleted."""
    async with world.host() as schedules:
        await anyio.sleep(HOUR)
        world.created = world.elsewhere = [created("*/10 * * * *")]
        schedules.changed()
        await anyio.sleep(25 * MINUTE)
        world.created = world.elsewhere = []
        schedules.changed()
        await anyio.sleep(HOUR)

    assert world.times() == ["13:10", "13:20"]


async def test_what_another_host_has_created_is_noticed(world: World) -> None:
    """Within a glance, and so is what it has deleted."""
    async with world.host(function()):
        await anyio.sleep(GLANCE / 2)
        world.elsewhere = [created("* * * * *")]
        await world.sleep_until(NOON + 2.25 * MINUTE)
        world.elsewhere = []
        await anyio.sleep(HOUR)

    assert world.times() == ["12:01", "12:02"]


async def test_what_another_host_has_deleted_is_over_at_once(world: World) -> None:
    """Also between two glances; and all that are due then look only once."""
    everything = [created("0 * * * *", id=id) for id in range(11, 31)]
    world.elsewhere = everything
    async with world.host():
        await world.sleep_until(NOON + 2 * HOUR - 1)
        world.elsewhere = everything[1:]
        before = world.looks
        await world.sleep_until(NOON + 2 * HOUR + 1)
        assert world.looks - before < len(everything) / 2
        await world.sleep_until(NOON + 3 * HOUR + 1)
    fired = [each.call.schedule_id for each in world.taken]

    assert [fired.count(each.id) for each in everything] == [1] + [3] * 19


async def test_a_schedule_whose_function_is_gone_waits_for_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It says so at each due time, and calls the function once it is back."""
    world.elsewhere = [created()]
    world.fail_submits(NotFound("there is no function `report`"), NotFound("there is no function `report`"))
    async with world.host():
        await world.sleep_until(NOON + 3.5 * HOUR)

    assert world.times() == ["15:00"]
    assert caplog.text.count("there is no function") == 2
