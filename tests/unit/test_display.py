"""Calls as text: aligned, timed from now, and harmless to a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from runtime import display

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def call(**fields: Any) -> dict[str, Any]:
    """A call as the host shows it."""
    return {
        "id": 7, "label": "7", "space": "demo", "function": "work", "status": "queued", "trigger": "http",
        "priority": 0, "idempotency_key": None, "schedule_id": None, "scheduled_time": None,
        "accepted_at": "2027-01-15T07:59:48.000Z", "run_at": "2027-01-15T07:59:48.000Z", "started_at": None,
        "finished_at": None, "attempt": 0, "progress": None, "result": None, "callback": None, **fields,
    }  # fmt: skip


def ended(status: int = 200, error: str | None = None) -> dict[str, Any]:
    """What an ended call has besides."""
    return {
        "status": "failed" if error else "succeeded", "attempt": 1, "started_at": "2027-01-15T07:59:48.000Z",
        "finished_at": "2027-01-15T07:59:50.000Z",
        "result": {"status": status, "error": error, "seconds": 2.0},
    }  # fmt: skip


def test_a_table_is_aligned() -> None:
    """Each column as wide as its widest cell; nothing behind the last one."""
    running = {
        "status": "running",
        "started_at": "2027-01-15T07:58:00.000Z",
        "progress": {"fraction": 0.4, "message": ""},
    }
    waiting = {"callback": {"state": "waiting"}}
    calls = [call(id=187649984473770, **running, **waiting), call(**ended(504, "timeout")), call(**ended())]
    lines = display.table(calls, colours=False, now=NOW)

    assert lines == [
        "ID               FUNCTION   STATUS       ACCEPTED  TOOK  RESULT       CALLBACK",
        "187649984473770  demo/work  running 40%  12s ago   2m    -            waiting",
        "7                demo/work  failed       12s ago   2.0s  504 timeout  -",
        "7                demo/work  succeeded    12s ago   2.0s  200          -",
    ]


def test_colours_do_not_change_the_alignment() -> None:
    """They take no room."""
    plain = display.table([call(**ended())], colours=False, now=NOW)
    coloured = display.table([call(**ended())], colours=True, now=NOW)

    assert "\x1b[32msucceeded\x1b[0m" in coloured[1]
    assert [line.replace("\x1b[0m", "").replace("\x1b[2m", "").replace("\x1b[32m", "") for line in coloured] == plain


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("2027-01-15T08:00:00.400Z", "0s ago"),
        ("2027-01-15T07:59:59.900Z", "0s ago"),
        ("2027-01-15T07:59:00.000Z", "1m ago"),
        ("2027-01-15T05:00:00.000Z", "3h ago"),
        ("2026-12-15T05:00:00.000Z", "31d ago"),
        ("2027-01-15T08:05:00.000Z", "in 5m"),
        (None, "-"),
    ],
)
def test_times_are_told_from_now(moment: str | None, words: str) -> None:
    """In the largest unit that fits."""
    assert display.relative(moment, NOW) == words


def test_details_leave_out_what_is_not_there() -> None:
    """And tell everything else."""
    few = display.details(call(), colours=False, now=NOW)
    callback = {
        "state": "pending",
        "url": "http://a.example/",
        "attempts": 2,
        "next_at": "2027-01-15T08:01:00.000Z",
        "error": "refused",
    }
    fields = {**ended(), "label": "order-7", "idempotency_key": "k", "priority": 5, "attempt": 3, "callback": callback}
    fields["result"] = {**fields["result"], "content_type": "text/plain", "length": 5}
    many = display.details(call(**fields), colours=False, now=NOW)

    assert [line.split()[0] for line in few] == ["call", "function", "status", "trigger", "accepted", "to"]
    assert "call             7 (order-7)" in many
    assert "result           200, text/plain, 5 bytes" in many
    assert "callback         pending, http://a.example/, 2 attempts, next in 1m, refused" in many
    assert "attempts         3" in many


def test_a_callback_that_is_due_says_so() -> None:
    """It may wait for its turn."""
    callback = {
        "state": "pending",
        "url": "http://a.example/",
        "attempts": 0,
        "next_at": NOW.isoformat(),
        "error": None,
    }
    lines = display.details(call(**ended(), callback=callback), colours=False, now=NOW)

    assert lines[-1].endswith("pending, http://a.example/, due now")


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"fraction": 0.0, "message": ""}, "[........................]   0%"),
        ({"fraction": 0.5, "message": "half\nway"}, "[############............]  50% half way"),
        ({"fraction": 1.0, "message": None}, "[########################] 100%"),
        ({"fraction": 7, "message": ""}, "[########################] 100%"),
    ],
)
def test_progress_is_a_bar(state: dict[str, Any], line: str) -> None:
    """On one line, whatever the handler says."""
    assert display.progress(state) == line


def test_a_log_line_cannot_move_the_cursor() -> None:
    """Its control characters are shown, not sent."""
    line = display.log_line(
        {"at": "2027-01-15T08:00:00.000Z", "level": "warning", "text": "a\x1b[2Jb\r"}, colours=False
    )

    assert line[8:] == "  WARNING a?[2Jb?"


def test_a_log_line_says_where_it_is_from() -> None:
    """Where lines of several calls come together."""
    line = display.log_line(
        {"at": "2027-01-15T08:00:00.000Z", "level": "info", "text": "x"}, colours=False, origin="demo/work 7"
    )

    assert line[8:] == "  demo/work 7  x"
