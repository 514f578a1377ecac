"""Pace: how many calls a worker is given ahead follows how long they take, and stays within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.pace import AHEAD, MAX_DEPTH, Pace


def pace_after(*durations: float) -> Pace:
    pace = Pace()
    for seconds in durations:
        pace.answered(seconds)
    return pace


def test_one_call_at_a_time_until_something_is_known() -> None:
    """Of a function that nobody has called yet, and after one call was too long."""
    assert Pace().depth == 1
    pace = pace_after(*[0.0] * 200)
    assert pace.depth == MAX_DEPTH
    pace.slow_down()

    assert (pace.depth, pace.seconds) == (1, AHEAD)


@pytest.mark.parametrize(
    ("seconds", "depth"), [(0.0, MAX_DEPTH), (AHEAD / 10.5, 10), (AHEAD / 2.5, 2), (AHEAD, 1), (1.0, 1)]
)
def test_a_worker_is_given_so_much_that_it_is_busy_for_a_moment(seconds: float, depth: int) -> None:
    """AHEAD seconds of work, and MAX_DEPTH calls at most."""
    assert pace_after(*[seconds] * 400).depth == depth


def test_one_slow_call_among_many_fast_ones_ends_the_hurry() -> None:
    """And it takes more than one fast call to come back to it."""
    pace = pace_after(*[1e-6] * 200, 1.0)
    assert pace.depth == 1
    pace.answered(1e-6)

    assert pace.depth == 1


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_the_depth_is_always_within_its_bounds(durations: list[float]) -> None:
    """Whatever the calls take."""
    pace = pace_after(*durations)

    assert 1 <= pace.depth <= MAX_DEPTH
    assert 0 <= pace.seconds <= max([AHEAD, *durations])
