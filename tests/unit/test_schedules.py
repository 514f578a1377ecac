"""Schedules as they are read, and the times at which they are due, in time zones too."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.schedules import Schedule, latest, next_after, read
from runtime.toml_reader import Document

AT = ("spaces", "demo", "functions", "report", "schedule")
HOUR = 3600.0
DAY = 24 * HOUR


def reading(raw: Any, at: tuple[str, ...] = AT, **environ: str) -> tuple[Schedule, ...]:
    """What `read` makes of a value; ConfigError."""
    document = Document(Path("/nowhere/spaces.toml"), environ=environ, homes={})
    try:
        schedules = read(document, at, raw)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    document.refuse_problems()
    return schedules


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def dues(schedule: Schedule, start: str, count: int) -> list[str]:
    """The next due times, in UTC."""
    found: list[float] = []
    for _ in range(count):
        due = next_after(schedule, found[-1] if found else moment(start))
        assert due is not None
        found.append(due)
    return [datetime.fromtimestamp(due, UTC).strftime("%m-%d %H:%M") for due in found]


# Reading


def test_a_string_is_a_schedule() -> None:
    """In UTC, without data, callback and catching up."""
    (schedule,) = reading("*/5 * * * *")

    assert schedule == Schedule(id=schedule.id, cron="*/5 * * * *")


def test_a_table_says_more() -> None:
    """Data become JSON, and a callback URL may stand in the environment."""
    table = {
        "cron": "0  9 * *  mon-fri",
        "timezone": "Europe/Berlin",
        "data": {"a": [1, 2.5, True], "at": datetime(2026, 1, 2, 3), "ä": "ö"},
        "callback": "env:HOOK",
        "catch_up": True,
    }
    (schedule,) = reading(table, HOOK="https://h/x?key=1#f")

    assert schedule == Schedule(
        id=schedule.id,
        cron="0 9 * * MON-FRI",
        timezone="Europe/Berlin",
        data='{"a":[1,2.5,true],"at":"2026-01-02T03:00:00","ä":"ö"}'.encode(),
        callback="https://h/x?key=1",
        catch_up=True,
    )


@pytest.mark.parametrize("data", [{}, [], "", 0, False, "text"])
def test_any_value_can_be_data(data: Any) -> None:
    """Also what counts as false."""
    (schedule,) = reading({"cron": "@daily", "data": data})

    assert schedule.data is not None


def test_a_list_has_several() -> None:
    """Strings and tables, mixed."""
    first, second = reading(["@hourly", {"cron": "@daily"}])

    assert (first.cron, second.cron) == ("0 * * * *", "0 0 * * *")


@pytest.mark.parametrize(
    ("name", "cron"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@Yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_named_schedules(name: str, cron: str) -> None:
    """The names that cron has for the usual ones."""
    assert reading(name) == reading(cron)


def test_an_id_is_the_same_for_ever() -> None:
    """Journals hold it: it must not change with the version of this code."""
    (schedule,) = reading("*/5 * * * *")

    assert schedule.id == 4071396285066762
    assert 0 < schedule.id < 2**53


def test_an_id_stands_for_function_and_due_times() -> None:
    """Whatever else of a schedule changes, it is the same schedule; at other times it is another."""
    table = {"cron": "0 9 * * *", "timezone": "Europe/Berlin"}
    (schedule,) = reading(table)
    same = [{**table, "data": 1}, {**table, "catch_up": True}, {**table, "cron": " 0 9  * * * "}, [table]]
    other = [{**table, "cron": "0 8 * * *"}, {**table, "timezone": "Europe/Paris"}]

    assert {reading(raw)[0].id for raw in same} == {schedule.id}
    assert schedule.id not in {reading(raw)[0].id for raw in other}
    assert schedule.id != reading(table, ("spaces", "demo", "functions", "other", "schedule"))[0].id
    assert schedule.id != reading(table, ("spaces", "other", "functions", "report", "schedule"))[0].id


def test_two_calls_at_the_same_times() -> None:
    """With different data these are two schedules."""
    first, second = reading([{"cron": "@daily", "data": 1}, {"cron": "@daily", "data": 2}])

    assert first.id != second.id
    assert first.id == reading("@daily")[0].id


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (5, "must be a cron expression such as"),
        ([True], "must be a cron expression such as"),
        ([["@daily"]], "must be a cron expression such as"),
        ({}, "a schedule needs `cron`"),
        ({"timezone": "UTC"}, "a schedule needs `cron`"),
        ("", "'' is no cron expression; use five fields, minute hour day month weekday, or @hourly"),
        ("* * * *", "'* * * *' is no cron expression; use five fields"),
        ("0 * * * * *", "'0 * * * * *' is no cron expression; use five fields"),
        ("@reboot", "'@reboot' is no cron expression; use five fields"),
        ("60 * * * *", "'60 * * * *' is no cron expression: bad minute"),
        ("* 24 * * *", "'* 24 * * *' is no cron expression: bad hour"),
        ("* * 0 * *", "'* * 0 * *' is no cron expression: bad day-of-month"),
        ("* * * JANUARY *", "'* * * JANUARY *' is no cron expression: bad month"),
        ("* * * * 8", "'* * * * 8' is no cron expression: bad day-of-week"),
        ("*/0 * * * *", "'*/0 * * * *' is no cron expression: bad minute"),
        ("9-5 * * * *", "'9-5 * * * *' is no cron expression: bad minute"),
        ("0 0 30 2 *", "'0 0 30 2 *' is no cron expression: bad day-of-month"),
        ("* * */20 * 1L", "'* * */20 * 1L' is never due"),
        (",".join(["0"] * 200) + " * * * *", "is no cron expression; use five fields"),
        ({"cron": 5}, "`cron` in [spaces.demo.functions.report.schedule]: must be a string"),
        ({"crn": "@daily", "cron": "@daily"}, "unknown key `crn` in [spaces.demo.functions.report.schedule]; did you"),
        (
            {"cron": "@daily", "timezone": "Europe/Berln"},
            "'Europe/Berln' is no time zone; did you mean 'Europe/Berlin'?",
        ),
        ({"cron": "@daily", "timezone": "../UTC"}, "is no time zone; "),
        ({"cron": "@daily", "timezone": "Europe"}, "'Europe' is no time zone; "),
        ({"cron": "@daily", "timezone": ""}, "'' is no time zone; use a name such as"),
        ({"cron": "@daily", "timezone": "a\0b"}, "is no time zone; "),
        ({"cron": "@daily", "timezone": "+02:00"}, "is no time zone; "),
        ({"cron": "@daily", "data": float("nan")}, "`data` in"),
        ({"cron": "@daily", "callback": "ftp://h"}, "`callback` in"),
        ({"cron": "@daily", "callback": "env:NO"}, "the environment variable 'NO' is not set"),
        ({"cron": "@daily", "catch_up": "yes"}, "`catch_up` in"),
        (["@daily", "@daily"], "'0 0 * * *' is there twice"),
        (["@daily", {"cron": "0 0 * * *"}], "'0 0 * * *' is there twice"),
    ],
)
def test_what_is_no_schedule(raw: Any, problem: str) -> None:
    """One problem, that says what would be right."""
    with pytest.raises(ConfigError) as caught:
        reading(raw)

    assert problem in caught.value.message
    assert len(caught.value.details.get("problems", [0])) == 1


def test_a_machine_without_time_zones_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """UTC works there; for any other the message says what to install."""
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    with pytest.raises(ConfigError, match="install the system's package tzdata"):
        reading({"cron": "@daily", "timezone": "No/Where"})

    assert reading({"cron": "@daily", "timezone": "UTC"})


@given(st.text("0123456789*/,-#LWMONTUEJAN @", max_size=30) | st.text())
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    """No text fails in another way, and what is taken is due some time."""
    try:
        (schedule,) = reading(text)
    except ConfigError:
        return
    due = next_after(schedule, 0.0)

    assert due is not None
    assert due > 0


def test_no_schedule_shows_what_may_be_secret() -> None:
    """Neither the callback URL nor the data."""
    (schedule,) = reading({"cron": "@daily", "callback": "https://h/hunter2", "data": "hunter2"})

    assert "hunter2" not in f"{schedule!r} {schedule} {schedule.__rich_repr__()}"
    assert "cron='0 0 * * *'" in repr(schedule)


# Due times


def test_due_times_in_utc() -> None:
    """Later than the given time, not at it."""
    (schedule,) = reading("*/20 10 * * *")

    assert dues(schedule, "2026-11-22T10:00", 3) == ["11-22 10:20", "11-22 10:40", "11-23 10:00"]
    assert next_after(schedule, moment("2026-11-22T10:20") - 0.001) == moment("2026-11-22T10:20")
    assert next_after(schedule, moment("2026-11-22T10:20") + 0.001) == moment("2026-11-22T10:40")


def test_due_times_in_a_zone() -> None:
    """By the zone's own clock: nine in Berlin is eight in UTC in winter."""
    (schedule,) = reading({"cron": "0 9 * * mon", "timezone": "Europe/Berlin"})

    assert dues(schedule, "2026-03-20T00:00", 3) == ["03-23 08:00", "03-30 07:00", "04-06 07:00"]


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),  # there is no half past two: when the gap ends
        ("0,30 2 * * *", ["03-28 01:00", "03-28 01:30", "03-29 01:00", "03-30 00:00"]),  # once for both
        ("0 3 * * *", ["03-28 02:00", "03-29 01:00", "03-30 01:00"]),
    ],
)
def test_where_the_clocks_skip_an_hour(cron: str, expected: list[str]) -> None:
    """A time that the day does not have is due when the gap is over (Berlin, 29 March 2026, two to three)."""
    (schedule,) = reading({"cron": cron, "timezone": "Europe/Berlin"})

    assert dues(schedule, "2026-03-27T12:00", len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),  # the first of the two
        ("59 2 * * *", ["10-24 00:59", "10-25 00:59", "10-26 01:59"]),
        ("30 * 25 * *", ["10-24 22:30", "10-24 23:30", "10-25 00:30", "10-25 01:30", "10-25 02:30"]),  # real hours
    ],
)
def test_where_the_clocks_repeat_an_hour(cron: str, expected: list[str]) -> None:
    """A time that the day has twice is due once; what is due every hour is due in both (25 October 2026)."""
    (schedule,) = reading({"cron": cron, "timezone": "Europe/Berlin"})

    assert dues(schedule, "2026-10-23T12:00", len(expected)) == expected


@pytest.mark.parametrize("start", ["00:10", "00:29", "00:31", "01:00", "01:10", "01:29", "01:31", "01:59"])
def test_the_repeated_hour_is_the_same_from_within(start: str) -> None:
    """A host that starts in the middle of it does not find again what was due in the first of the two."""
    (schedule,) = reading({"cron": "30 2 * * *", "timezone": "Europe/Berlin"})
    first = "10-25 00:30" if start < "00:30" else "10-26 01:30"

    assert dues(schedule, f"2026-10-25T{start}", 1) == [first]


CRONS = ["* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 2-3 * * *", "0 0 1 * *", "15 */5 * * sun", "0 12 29 2 *"]


@given(
    st.sampled_from(CRONS),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Santiago"]),
    st.integers(int(moment("2026-01-01")), int(moment("2028-01-01"))),
    st.floats(0, 40 * HOUR),
)
def test_the_latest_is_the_last_of_all(cron: str, timezone: str, after: int, span: float) -> None:
    """`latest` finds what going from one due time to the next finds."""
    (schedule,) = reading({"cron": cron, "timezone": timezone})
    until = after + span
    last, due = None, next_after(schedule, after)
    while due is not None and due <= until:
        last, due = due, next_after(schedule, due)

    assert latest(schedule, after, until) == last


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("* * * * *", "2026-11-22T02:49"),
        ("0 0 1 * *", "2026-11-01"),
        ("0 0 29 2 *", "2024-02-29"),
        ("0 0 1 1 *", "2026-01-01"),
    ],
)
def test_the_latest_of_years(cron: str, due: str) -> None:
    """A host that was away for twenty years finds it as well."""
    (schedule,) = reading(cron)
    until = moment("2026-11-22T02:49:17")

    assert latest(schedule, moment("2006-01-01"), until) == moment(due)
    assert latest(schedule, moment(due), until) is None
    assert latest(schedule, until, until - DAY) is None


def test_a_schedule_can_be_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library finds no more due times, there is none, neither next nor latest."""
    monkeypatch.setattr("runtime.schedules.CronSim", lambda *_: itertools.chain())
    schedule = Schedule(id=1, cron="* * * * *")

    assert next_after(schedule, 0.0) is None
    assert latest(schedule, 0.0, DAY) is None
