"""Ids: of calls, ordered by time, and of functions, the same for ever; both fit into a JSON client's numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import calls
from runtime.calls import EPOCH_MS, SEQUENCE_BITS, Call, CallIds, Result, function_id

LIMIT = 2**53
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,63}", fullmatch=True)
MOMENTS = st.floats(EPOCH_MS / 1000 + 1, datetime(2160, 1, 1, tzinfo=UTC).timestamp())


def ids_at(moments: list[float]) -> list[int]:
    """The ids that one host gives at these moments."""
    ids, clock = CallIds(), iter(moments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.time, "time", lambda: next(clock))
        return [ids.next() for _ in moments]


@given(st.lists(MOMENTS | st.floats(0, 2e9), min_size=1, max_size=50))
def test_each_call_id_is_larger_than_the_one_before(moments: list[float]) -> None:
    """Also when the clock jumps back, or is not set; positive, and below 2**53 until the year 2160."""
    given_out = ids_at(moments)

    assert all(earlier < later for earlier, later in pairwise(given_out))
    assert given_out[0] > 0
    assert given_out[-1] < LIMIT


@given(st.lists(MOMENTS, min_size=2, max_size=2, unique_by=lambda moment: int(moment * 1000)))
def test_call_ids_of_two_hosts_are_ordered_by_time(moments: list[float]) -> None:
    """To the millisecond."""
    first, second = ids_at(moments[:1]), ids_at(moments[1:])

    assert (first < second) == (moments[0] < moments[1])


def test_a_call_id_tells_its_millisecond() -> None:
    """Written out, so that it stays so: ids are stored."""
    moment = EPOCH_MS / 1000 + 1.5

    assert ids_at([moment]) == [1500 * 2048]
    assert datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000 == EPOCH_MS


def test_hosts_begin_a_millisecond_at_different_numbers() -> None:
    """So that two of them, on one journal, seldom give out the same id; the order by time stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.time, "time", lambda: EPOCH_MS / 1000 + 1.5)
        assert CallIds(first=7).next() == 1500 * 2048 + 7


def test_many_call_ids_of_one_millisecond_differ() -> None:
    """More than its sequence has room for run ahead of the clock, and stay in order."""
    count = 3 << SEQUENCE_BITS
    given_out = ids_at([EPOCH_MS / 1000 + 5.0] * count)

    assert given_out == list(range(given_out[0], given_out[0] + count))


@given(NAMES, NAMES)
def test_a_function_id_is_positive_and_below_2_53(space: str, name: str) -> None:
    """And the same each time."""
    number = function_id(space, name)

    assert 0 < number < LIMIT
    assert number == function_id(space, name)


def test_function_ids_are_the_same_for_ever() -> None:
    """Clients keep them: these were computed once and written down."""
    assert function_id("demo", "stock") == 7_412_498_219_191_838
    assert function_id("demo", "greeting") == 8_304_722_384_929_107


def test_a_function_id_is_of_the_space_and_the_name() -> None:
    """No pair is mistaken for another: neither has a slash."""
    numbers = [function_id("a", "b"), function_id("b", "a"), function_id("a", "a"), function_id("aa", "b")]

    assert len(set(numbers)) == 4


def test_calls_and_results_cannot_be_changed() -> None:
    """They cross from one layer to the next."""
    call = Call(id=1, label="1", space="demo", name="stock")
    result = Result(200, b"", b"", True, False, 0.0)
    with pytest.raises(AttributeError):
        call.body = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        result.status = 500  # type: ignore[misc]

    assert (call.method, call.path, call.query, call.headers, call.body, call.attempt) == (
        b"POST",
        b"",
        b"",
        b"",
        (),
        1,
    )
