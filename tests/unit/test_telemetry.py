"""Counters and their Prometheus text: it parses, it adds up, and any label survives."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from runtime.telemetry import BUCKETS, FunctionState, FunctionStats, render

SECONDS = st.floats(0, 200)
LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def state(stats: FunctionStats, space: str = "demo", name: str = "stock", **numbers: int) -> FunctionState:
    counts = {"idle_workers": 0, "busy_workers": 0, "waiting": 0, **numbers}
    return FunctionState(space, name, stats, **counts)


def parsed(*states: FunctionState) -> dict[str, Metric]:
    """The metric families of the text, by name."""
    text = render(states, functions=7, started_at=1234.5).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    """Its samples by these labels."""
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in family.samples}


def test_a_host_without_calls_has_its_own_numbers() -> None:
    """How many functions there are, and since when it runs."""
    families = parsed()

    assert samples(families["spaces_functions"]) == {(): 7}
    assert samples(families["spaces_start_time_seconds"]) == {(): 1234.5}


def test_every_counter_comes_out() -> None:
    """Under its name, with its labels."""
    stats = FunctionStats()
    stats.answered(200, 0.5, 0.1, 0.3)
    stats.answered(200, 0.5, 0.1, 0.3)
    stats.answered(404, 0.02, 0.0, 0.0)
    stats.cold_starts = 3
    stats.reloads.update(ok=2, failed=1)
    stats.deaths["its process was killed by SIGSEGV"] = 4
    families = parsed(state(stats, idle_workers=1, busy_workers=2))

    assert samples(families["spaces_calls"], "space", "function", "status") == {
        ("demo", "stock", "200"): 2,
        ("demo", "stock", "404"): 1,
    }
    assert samples(families["spaces_reloads"], "outcome") == {("ok",): 2, ("failed",): 1}
    assert samples(families["spaces_worker_deaths"], "reason") == {("its process was killed by SIGSEGV",): 4}
    assert samples(families["spaces_cold_starts"], "space", "function") == {("demo", "stock"): 3}
    assert samples(families["spaces_workers"], "state") == {("idle",): 1, ("busy",): 2}
    assert samples(families["spaces_waiting_seconds"], "function")[("stock",)] == pytest.approx(0.2)
    assert samples(families["spaces_overhead_seconds"], "function")[("stock",)] == pytest.approx(0.22)


def test_calls_are_counted_by_what_they_came_by() -> None:
    """A dialect, a schedule, a rerun."""
    text = render([], 0, 1.0, None, {"http": 3, "kernel": 2}).decode()

    assert 'spaces_received_calls_total{via="http"} 3.0' in text
    assert 'spaces_received_calls_total{via="kernel"} 2.0' in text


def test_every_family_says_what_it_is() -> None:
    """Counters as counters, and a line of help each."""
    families = parsed(state(FunctionStats()))
    types = {name: family.type for name, family in families.items()}

    assert types == {
        "spaces_functions": "gauge",
        "spaces_start_time_seconds": "gauge",
        "spaces_received_calls": "counter",
        "spaces_calls": "counter",
        "spaces_reloads": "counter",
        "spaces_worker_deaths": "counter",
        "spaces_cold_starts": "counter",
        "spaces_waiting_seconds": "counter",
        "spaces_overhead_seconds": "counter",
        "spaces_call_duration_seconds": "histogram",
        "spaces_workers": "gauge",
    }
    assert all(family.documentation for family in families.values())


@given(st.lists(SECONDS, max_size=30))
def test_buckets_are_cumulative_and_add_up(durations: list[float]) -> None:
    """Each counts the calls that took at most so long; the last counts all."""
    stats = FunctionStats()
    for seconds in durations:
        stats.answered(200, seconds, 0.0, seconds)
    latency = parsed(state(stats))["spaces_call_duration_seconds"]
    buckets = {sample.labels["le"]: sample.value for sample in latency.samples if sample.name.endswith("_bucket")}
    others = {sample.name.rpartition("_")[2]: sample.value for sample in latency.samples if "le" not in sample.labels}

    assert list(buckets) == [*map(str, BUCKETS), "+Inf"]
    assert [buckets[str(bound)] for bound in BUCKETS] == [sum(each <= bound for each in durations) for bound in BUCKETS]
    assert buckets["+Inf"] == others["count"] == len(durations)
    assert others["sum"] == pytest.approx(sum(durations))


@given(SECONDS, SECONDS, SECONDS)
def test_our_own_time_is_what_is_left_and_never_less_than_nothing(
    seconds: float, waiting: float, inside: float
) -> None:
    """Clocks of two processes may disagree a little."""
    stats = FunctionStats()
    stats.answered(200, seconds, waiting, inside)

    assert stats.own_seconds == pytest.approx(max(0.0, seconds - waiting - inside))
    assert stats.buckets[bisect_left(BUCKETS, seconds)] == 1


@given(LABELS, LABELS, LABELS)
def test_any_label_survives_the_text(space: str, name: str, reason: str) -> None:
    """Quotes, backslashes, line ends."""
    stats = FunctionStats()
    stats.deaths[reason] = 1
    family = parsed(state(stats, space, name))["spaces_worker_deaths"]

    assert samples(family, "space", "function", "reason") == {(space, name, reason): 1}


def test_functions_are_told_apart() -> None:
    """Each has its own numbers in every family."""
    one, two = FunctionStats(), FunctionStats()
    one.answered(200, 1.0, 0.0, 1.0)
    families = parsed(state(one, "a", "x"), state(two, "b", "x"))

    assert samples(families["spaces_waiting_seconds"], "space", "function").keys() == {("a", "x"), ("b", "x")}
    counts = [s for s in families["spaces_call_duration_seconds"].samples if s.name.endswith("_count")]
    assert [(s.labels["space"], s.value) for s in counts] == [("a", 1), ("b", 0)]
