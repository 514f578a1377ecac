"""The Prometheus text: it parses, it adds up, and any label survives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from runtime.exposition import PIECE, Submitted, write
from runtime.telemetry import BUCKETS, Figures, FunctionStats, Ledger, Series

LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def text(
    series: dict[tuple[str, str], Series], received: dict[str, int] | None = None, submitted: Submitted | None = None
) -> str:
    return b"".join(write(Figures(7, 1234.5, received or {}, series), submitted)).decode()


def parsed(series: dict[tuple[str, str], Series], submitted: Submitted | None = None) -> dict[str, Metric]:
    """The metric families of the text, by name."""
    return {family.name: family for family in text_string_to_metric_families(text(series, None, submitted))}


def of_stock(stats: FunctionStats, idle: int = 0, busy: int = 0) -> dict[tuple[str, str], Series]:
    return {("demo", "stock"): Series.of(stats, idle, busy)}


def samples(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    """Its samples by these labels."""
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in family.samples}


def test_a_host_without_calls_has_its_own_numbers() -> None:
    """How many functions there are, and since when it runs."""
    families = parsed({})

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
    families = parsed(of_stock(stats, idle=1, busy=2))

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
    found = text({}, {"http": 3, "kernel": 2})

    assert 'spaces_received_calls_total{via="http"} 3.0' in found
    assert 'spaces_received_calls_total{via="kernel"} 2.0' in found


def test_every_family_says_what_it_is() -> None:
    """Counters as counters, and a line of help each; those of the journal where there is one."""
    journal = SimpleNamespace(queued=1, running=2, oldest=3.5, callbacks_pending=4, callbacks_dead=5)
    families = parsed(of_stock(FunctionStats()), journal)
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
        "spaces_submitted_calls": "gauge",
        "spaces_queue_age_seconds": "gauge",
        "spaces_callbacks": "gauge",
    }
    assert all(family.documentation for family in families.values())
    assert samples(families["spaces_submitted_calls"], "state") == {("queued",): 1, ("running",): 2}
    assert samples(families["spaces_queue_age_seconds"]) == {(): 3.5}
    assert samples(families["spaces_callbacks"], "state") == {("pending",): 4, ("dead",): 5}


@given(st.lists(st.floats(0, 200), max_size=30))
def test_buckets_are_cumulative_and_add_up(durations: list[float]) -> None:
    """Each counts the calls that took at most so long; the last counts all."""
    stats = FunctionStats()
    for seconds in durations:
        stats.answered(200, seconds, 0.0, seconds)
    latency = parsed(of_stock(stats))["spaces_call_duration_seconds"]
    buckets = {sample.labels["le"]: sample.value for sample in latency.samples if sample.name.endswith("_bucket")}
    others = {sample.name.rpartition("_")[2]: sample.value for sample in latency.samples if "le" not in sample.labels}

    assert list(buckets) == [*map(str, BUCKETS), "+Inf"]
    assert [buckets[str(bound)] for bound in BUCKETS] == [sum(each <= bound for each in durations) for bound in BUCKETS]
    assert buckets["+Inf"] == others["count"] == len(durations)
    assert others["sum"] == pytest.approx(sum(durations), abs=1e-9)  # it is sent in whole nanoseconds


@given(LABELS, LABELS, LABELS)
@example("a\\nb", '"\\"', "\\\n")
def test_any_label_survives_the_text(space: str, name: str, reason: str) -> None:
    """Quotes, backslashes, line ends."""
    stats = FunctionStats()
    stats.died(reason)
    family = parsed({(space, name): Series.of(stats)})["spaces_worker_deaths"]

    assert samples(family, "space", "function", "reason") == {(space, name, reason): 1}


def test_functions_are_told_apart() -> None:
    """Each has its own numbers in every family, and no family is begun twice, however many pieces it comes in."""
    ledger = Ledger(10 * PIECE)
    for number in range(3 * PIECE + 1):
        for _ in range(number):
            ledger.of("demo", str(number)).answered(200, 1.0, 0.0, 1.0)
        ledger.of("demo", str(number))
    found = text(ledger.series({}))
    families = {family.name: family for family in text_string_to_metric_families(found)}
    counts = [s for s in families["spaces_call_duration_seconds"].samples if s.name.endswith("_count")]

    assert found.count("# TYPE") == len(families)
    assert {s.labels["function"]: s.value for s in counts} == {str(number): number for number in range(3 * PIECE + 1)}


def test_the_text_of_ten_thousand_functions_is_bounded() -> None:
    """Whatever handlers answer: 24 samples a series, and more only for statuses and reasons."""
    ledger = Ledger(200)
    for number in range(10_000):
        ledger.of(f"space-{number // 1000}", f"function-{number}").answered(200 + number % 700, 1.0, 0.0, 1.0)
    lines = text(ledger.series({})).splitlines()

    assert len(lines) < 210 * 24 + 10 * 40 + 50
