"""Counters: they add up, in whichever series and process they are kept, and there are never too many series."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.telemetry import (
    BUCKETS,
    OTHER,
    REASONS,
    STATUSES,
    Figures,
    FunctionStats,
    Ledger,
    Series,
    decode,
    encode,
    merge,
)

SECONDS = st.floats(0, 200)
WORDS = st.text("abc", min_size=1, max_size=2)
COUNTS = st.integers(0, 2**40)
COUNTED = st.dictionaries(WORDS, COUNTS, max_size=3)
SERIES = st.builds(
    Series,
    calls=COUNTED,
    buckets=st.lists(COUNTS, max_size=3).map(lambda some: (*some, *range(len(BUCKETS) + 1 - len(some)))),
    duration=COUNTS,
    waiting=COUNTS,
    own=COUNTS,
    cold_starts=COUNTS,
    reloads=COUNTED,
    deaths=COUNTED,
    idle=COUNTS,
    busy=COUNTS,
)
FIGURES = st.builds(
    Figures,
    functions=COUNTS,
    started_at=st.floats(0, 1e12),
    received=COUNTED,
    series=st.dictionaries(st.tuples(WORDS, WORDS), SERIES, max_size=3),
)


def calls(ledger: Ledger) -> dict[tuple[str, str], int]:
    """How many calls each series has."""
    return {key: sum(series.calls.values()) for key, series in ledger.series({}).items()}


def answered(ledger: Ledger, space: str, name: str) -> None:
    ledger.of(space, name).answered(200, 0.5, 0.1, 0.3)


@given(SECONDS, SECONDS, SECONDS)
def test_our_own_time_is_what_is_left_and_never_less_than_nothing(
    seconds: float, waiting: float, inside: float
) -> None:
    """Clocks of two processes may disagree a little."""
    stats = FunctionStats()
    stats.answered(200, seconds, waiting, inside)

    assert stats.own_seconds == pytest.approx(max(0.0, seconds - waiting - inside))
    assert stats.buckets[bisect_left(BUCKETS, seconds)] == 1


def test_statuses_beyond_the_first_few_are_shown_by_class() -> None:
    """A handler may answer with any of 900: what an alert looks for, such as 5.., still counts right."""
    stats = FunctionStats()
    for status in range(100, 1000):
        stats.answered(status, 0.0, 0.0, 0.0)
        stats.answered(status, 0.0, 0.0, 0.0)
    shown = Series.of(stats).calls

    assert len(shown) <= STATUSES + 9
    assert (shown["100"], shown["5xx"], sum(shown.values())) == (2, 200, 1800)


def test_a_status_keeps_its_series() -> None:
    """What has come first stays as it is, whatever comes later."""
    stats = FunctionStats()
    for status in [200, *range(400, 500), 200, 499]:
        stats.answered(status, 0.0, 0.0, 0.0)
    shown = Series.of(stats).calls

    assert shown["200"] == 2
    assert shown["4xx"] == 100 - (STATUSES - 1) + 1


def test_reasons_beyond_the_first_few_are_one() -> None:
    """They are texts, and may have figures in them."""
    stats = FunctionStats()
    for number in range(1000):
        stats.died(f"it did not stop within {number} s")
    stats.died("it did not stop within 0 s")

    assert len(stats.deaths) == REASONS + 1
    assert (stats.deaths["it did not stop within 0 s"], stats.deaths["other"]) == (2, 1000 - REASONS)


def test_ten_thousand_functions_have_a_bounded_number_of_series() -> None:
    """The first ones have their own; the others of a space are one, and all calls are counted."""
    ledger = Ledger(200)
    for number in range(10_000):
        answered(ledger, f"space-{number % 10}", f"function-{number}")
        answered(ledger, f"space-{number % 10}", f"function-{number}")
    found = calls(ledger)

    assert len(found) == 200 + 10
    assert found["space-3", "function-3"] == 2
    assert found["space-3", OTHER] == 2 * (1000 - 20)
    assert sum(found.values()) == 20_000


def test_ten_thousand_spaces_have_a_bounded_number_of_series() -> None:
    """Those beyond are one, too."""
    ledger = Ledger(200)
    for number in range(10_000):
        answered(ledger, f"space-{number}", "stock")
    found = calls(ledger)

    assert len(found) == 200 + 200 + 1
    assert found[OTHER, OTHER] == 10_000 - 400
    assert sum(found.values()) == 10_000


def test_a_series_is_for_good() -> None:
    """A function that has its own keeps it, and who has none never gets one."""
    ledger = Ledger(1)
    for name in ("one", "two", "one", "two"):
        answered(ledger, "demo", name)

    assert calls(ledger) == {("demo", "one"): 2, ("demo", OTHER): 2}
    assert ledger.of("demo", "one") is ledger.of("demo", "one")


def test_no_series_of_their_own() -> None:
    """`metrics_functions = 0`: one for a whole host."""
    ledger = Ledger(0)
    answered(ledger, "demo", "one")
    answered(ledger, "shop", "two")

    assert calls(ledger) == {(OTHER, OTHER): 2}


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_a_function_may_be_called_as_the_others_are(most: int) -> None:
    """There are no two series of one name, and no call is lost."""
    ledger = Ledger(most)
    for name in ("one", OTHER, "two", "three", OTHER):
        answered(ledger, "demo", name)

    assert sum(calls(ledger).values()) == 5


def test_workers_are_shown_where_calls_are() -> None:
    """The key of a function is that of its series; to ask for it gives it none."""
    ledger = Ledger(1)
    answered(ledger, "demo", "one")
    answered(ledger, "demo", "two")

    assert ledger.key("demo", "one") == ("demo", "one")
    assert ledger.key("demo", "two") == ("demo", OTHER)
    assert ledger.key("shop", "three") == (OTHER, OTHER)
    found = ledger.series({("demo", "one"): (1, 2), ("demo", OTHER): (3, 4)})
    assert {key: (one.idle, one.busy) for key, one in found.items()} == {
        ("demo", "one"): (1, 2),
        ("demo", OTHER): (3, 4),
    }


def test_a_choice_is_told_once() -> None:
    """And what another process has chosen holds here, though it may be one too many."""
    told = []
    ledger = Ledger(1, lambda: told.append(ledger.names))
    answered(ledger, "demo", "one")
    answered(ledger, "demo", "one")
    answered(ledger, "demo", "two")

    assert told == [[("demo", "one")]]
    assert ledger.adopt([("demo", "one"), ("demo", "two")])
    assert not ledger.adopt([("demo", "two")])
    answered(ledger, "demo", "two")
    assert calls(ledger) == {("demo", "one"): 2, ("demo", "two"): 1, ("demo", OTHER): 1}


@given(FIGURES)
def test_figures_arrive_as_they_were_sent(figures: Figures) -> None:
    """Whatever is in them."""
    assert decode(encode({3: figures})) == {3: figures}


@given(FIGURES, FIGURES, FIGURES)
def test_merging_is_a_sum(one: Figures, two: Figures, three: Figures) -> None:
    """In any order, by parts or at once, and of one it is that one."""
    assert merge([one]) == one
    assert merge([one, two]) == merge([two, one])
    assert merge([merge([one, two]), three]) == merge([one, merge([two, three])]) == merge([one, two, three])


@given(FIGURES, FIGURES)
def test_of_two_readings_of_one_process_each_counter_is_the_later(one: Figures, two: Figures) -> None:
    """Whichever comes first; and a reading that is known already changes nothing."""
    both = one.or_later(two)

    assert both == two.or_later(one)
    assert both.or_later(one) == both.or_later(two) == both
    assert one.or_later(one.plus(two)) == one.plus(two)


@given(FIGURES)
def test_what_is_remembered_has_no_gauges(figures: Figures) -> None:
    """A process that is gone has no workers; its counters are as they were."""
    kept = figures.without_gauges()

    assert all(series.idle == series.busy == 0 for series in kept.series.values())
    assert kept.or_later(figures) == figures


@given(FIGURES, FIGURES)
def test_nothing_is_lost_in_merging(one: Figures, two: Figures) -> None:
    """Every call is in it once; machine-wide numbers are not added up."""
    both = merge([one, two])

    def total(figures: Figures) -> int:
        return sum(sum(series.calls.values()) + sum(series.buckets) for series in figures.series.values())

    assert total(both) == total(one) + total(two)
    assert both.functions == max(one.functions, two.functions)
    assert both.started_at == min(one.started_at, two.started_at)
