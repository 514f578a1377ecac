"""The Date header: right at any second, made once a second."""

from __future__ import annotations

import time
from email.utils import formatdate, parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import clock


def header_at(moment: float) -> tuple[bytes, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", lambda: moment)
        return clock.date_header()


def test_the_form_is_that_of_http() -> None:
    """The example of RFC 9110 section 5.6.7."""
    assert header_at(784111777) == (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT")


@given(st.lists(st.floats(0, 4_000_000_000), min_size=1, max_size=5))
def test_it_is_the_date_of_now_wherever_the_clock_jumps(moments: list[float]) -> None:
    """Forward or back, whatever was asked before."""
    for moment in moments:
        _, value = header_at(moment)

        assert parsedate_to_datetime(value.decode()).timestamp() == int(moment)


def test_within_a_second_it_is_the_same_object() -> None:
    """Nothing is formatted again."""
    assert header_at(1000.0) is header_at(1000.9)
    assert header_at(1000.9) is not header_at(1001.0)


def test_it_goes_by_the_real_clock() -> None:
    """UTC, not the local time."""
    before = int(time.time())
    told = parsedate_to_datetime(clock.date_header()[1].decode()).timestamp()

    assert before <= told <= time.time()


def test_retry_after_is_seconds_or_a_date() -> None:
    """What is neither does not count; a date without a zone is in UTC, one that is over is now."""
    date = formatdate(1_000_000_030, usegmt=True)
    assert clock.retry_after(" 30 ", 0.0) == 30
    assert clock.retry_after(date, 1_000_000_000) == 30
    assert clock.retry_after(date.replace("GMT", "-0000"), 1_000_000_000) == 30
    assert clock.retry_after(date, 1_000_000_100) == 0
    for nonsense in ("", "soon", "-1", "9" * 400, "\u0663"):
        assert clock.retry_after(nonsense, 0.0) is None


@given(st.text(max_size=60))
def test_any_retry_after_is_read_or_ignored(text: str) -> None:
    """It comes from anybody."""
    found = clock.retry_after(text, 1e9)
    assert found is None or found >= 0
