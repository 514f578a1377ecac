"""Deadlines: every call is looked at once for each time it was added, after it is due and no later than a tick."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deadlines import TICK, Deadlines
from tests.unit.simulated import JumpingLoop

FAR = 100.0


class Named:
    """Stands for a call."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self.due: Any = None


class Clocked:
    """Deadlines on a loop whose clock jumps, and when what was looked at."""

    def __init__(self) -> None:
        self.loop = JumpingLoop()
        self.start = self.loop.time()
        self.deadlines = Deadlines(self.loop)
        self.seen: list[tuple[Any, float]] = []

    def look(self, exchange: Any) -> None:
        self.seen.append((exchange.name, self.loop.time() - self.start))

    def add(self, after: float, name: Any, look: Callable[[Any], None] | None = None) -> Any:
        call: Any = name if isinstance(name, Named) else Named(name)
        self.deadlines.add(self.start + after, look or self.look, call)
        return call

    def run(self, seconds: float = FAR) -> list[tuple[Any, float]]:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        return self.seen

    def close(self) -> None:
        self.loop.close()


@given(st.lists(st.floats(0, 50), max_size=30))
def test_everything_is_looked_at_once_and_in_time(due: list[float]) -> None:
    """Not before it is due, and at most a tick after."""
    clocked = Clocked()
    for number, after in enumerate(due):
        clocked.add(after, number)
    seen = clocked.run()
    clocked.close()

    assert sorted(number for number, _ in seen) == list(range(len(due)))
    for number, at in seen:
        assert due[number] <= at <= due[number] + TICK + 1e-6


def test_a_time_that_is_past_is_due_at_once() -> None:
    """It is still looked at."""
    clocked = Clocked()
    clocked.add(-5.0, "late")
    seen = clocked.run(TICK)
    clocked.close()

    assert [name for name, _ in seen] == ["late"]


def test_those_that_are_due_together_share_a_timer() -> None:
    """A thousand calls a moment apart cost the loop one timer."""
    clocked = Clocked()
    for number in range(1000):
        clocked.add(10.0 + number * TICK / 2000, number)
    timers = len(clocked.loop._scheduled)  # type: ignore[attr-defined]
    clocked.close()

    assert timers <= 2


def test_who_is_looked_at_may_be_added_again() -> None:
    """For later, or for the tick that has just been reached."""
    clocked = Clocked()

    def again(call: Any) -> None:
        clocked.look(call)
        if len(clocked.seen) < 3:
            clocked.add(clocked.loop.time() - clocked.start, call, again)

    clocked.add(1.0, "call", again)
    seen = clocked.run()
    clocked.close()

    assert [name for name, _ in seen] == ["call"] * 3


def test_nothing_is_kept_of_what_was_looked_at() -> None:
    """The lists of ticks that have passed are gone."""
    clocked = Clocked()
    clocked.add(1.0, "call")
    clocked.run()
    clocked.close()

    assert clocked.deadlines._ticks == {}


def test_who_is_removed_is_let_go_of_and_not_looked_at() -> None:
    """Also when it was never added, or was looked at already."""
    clocked = Clocked()
    gone = clocked.add(1.0, "gone")
    clocked.add(1.0, "stays")
    clocked.deadlines.remove(gone)
    kept = [call for tick in clocked.deadlines._ticks.values() for call in tick]
    never: Any = Named("never")
    clocked.deadlines.remove(never)
    seen = clocked.run()
    clocked.deadlines.remove(gone)
    clocked.close()

    assert [name for name, _ in seen] == ["stays"]
    assert gone not in kept


def test_who_is_still_to_be_looked_at_is_known() -> None:
    """Whatever the time; not who was removed, nor who was looked at."""
    clocked = Clocked()
    calls = [clocked.add(after, after) for after in (1.0, 2.0, 2.0, FAR)]
    clocked.deadlines.remove(calls[1])
    clocked.run(1.5)
    waiting = clocked.deadlines.waiting()
    clocked.close()

    assert waiting == calls[2:]


def test_one_that_fails_does_not_cost_the_others_their_look(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    clocked = Clocked()

    def fail(call: Any) -> None:
        raise ZeroDivisionError

    clocked.add(1.0, "bad", fail)
    clocked.add(1.0, "good")
    seen = clocked.run()
    clocked.close()

    assert [name for name, _ in seen] == ["good"]
    assert "ZeroDivisionError" in caplog.text
