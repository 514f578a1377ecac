"""What is counted: plain numbers while calls run, Prometheus text when asked.

Counters are kept by `pool.py`; `app.py` renders them for GET /metrics through the official client library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LABELS = ("space", "function")
NOTHING: Mapping[str, int] = MappingProxyType({})


class FunctionStats:
    """One function's numbers since the host started."""

    __slots__ = (
        "buckets", "calls", "cold_starts", "deaths", "own_seconds", "reloads", "seconds", "waiting_seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()  # by status
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self.own_seconds = 0.0
        self.cold_starts = 0
        self.reloads: Counter[str] = Counter()  # by outcome
        self.deaths: Counter[str] = Counter()  # of workers, by reason

    def answered(self, status: int, seconds: float, waiting: float, in_handler: float) -> None:
        """A call is over: `seconds` in all, of them `waiting` for a worker and `in_handler` in user code."""
        self.calls[status] += 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds
        self.waiting_seconds += waiting
        self.own_seconds += max(0.0, seconds - waiting - in_handler)


class FunctionState(msgspec.Struct, frozen=True):
    """What /metrics shows of a function now."""

    space: str
    name: str
    stats: FunctionStats
    idle_workers: int
    busy_workers: int
    waiting: int


class Submitted(Protocol):
    """What /metrics shows of the journal: `journal.Counts`."""

    @property
    def queued(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def oldest(self) -> float: ...
    @property
    def callbacks_pending(self) -> int: ...
    @property
    def callbacks_dead(self) -> int: ...


class HostCollector(Collector):
    """Turns the numbers into metric families when somebody asks."""

    def __init__(
        self,
        states: Iterable[FunctionState],
        functions: int,
        started_at: float,
        submitted: Submitted | None,
        received: Mapping[str, int],
    ) -> None:
        self._states = list(states)
        self._received = dict(received)
        self._submitted = submitted
        self._functions = functions
        self._started_at = started_at

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("spaces_functions", "Functions on disk.", self._functions)
        yield GaugeMetricFamily("spaces_start_time_seconds", "When the host started.", self._started_at)
        received = CounterMetricFamily("spaces_received_calls", "Calls taken, by what they came by.", labels=("via",))
        for via, count in self._received.items():
            received.add_metric((via,), count)
        yield received
        yield from self._counters()
        yield self._latency()
        yield self._workers()
        if self._submitted is not None:
            yield from self._journal(self._submitted)

    def _journal(self, submitted: Submitted) -> Iterator[Metric]:
        calls = GaugeMetricFamily("spaces_submitted_calls", "Submitted calls that are not over.", labels=("state",))
        calls.add_metric(("queued",), submitted.queued)
        calls.add_metric(("running",), submitted.running)
        yield calls
        yield GaugeMetricFamily("spaces_queue_age_seconds", "How long the first in the queue waits.", submitted.oldest)
        callbacks = GaugeMetricFamily("spaces_callbacks", "Callbacks that have not arrived.", labels=("state",))
        callbacks.add_metric(("pending",), submitted.callbacks_pending)
        callbacks.add_metric(("dead",), submitted.callbacks_dead)
        yield callbacks

    def _counters(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("spaces_calls", "Calls answered.", labels=(*LABELS, "status"))
        reloads = CounterMetricFamily("spaces_reloads", "Changed files loaded.", labels=(*LABELS, "outcome"))
        deaths = CounterMetricFamily(
            "spaces_worker_deaths", "Workers that did not end as told.", labels=(*LABELS, "reason")
        )
        cold = CounterMetricFamily("spaces_cold_starts", "Workers started.", labels=LABELS)
        waiting = CounterMetricFamily("spaces_waiting_seconds", "Time that calls waited for a worker.", labels=LABELS)
        own = CounterMetricFamily(
            "spaces_overhead_seconds",
            "Time of calls spent neither waiting nor in the handler.",
            labels=LABELS,
        )
        for state in self._states:
            name, stats = (state.space, state.name), state.stats
            for status, count in stats.calls.items():
                calls.add_metric((*name, str(status)), count)
            for outcome, count in stats.reloads.items():
                reloads.add_metric((*name, outcome), count)
            for reason, count in stats.deaths.items():
                deaths.add_metric((*name, reason), count)
            cold.add_metric(name, stats.cold_starts)
            waiting.add_metric(name, stats.waiting_seconds)
            own.add_metric(name, stats.own_seconds)
        yield from (calls, reloads, deaths, cold, waiting, own)

    def _latency(self) -> Metric:
        latency = HistogramMetricFamily(
            "spaces_call_duration_seconds", "From a call's acceptance to its answer.", labels=LABELS
        )
        for state in self._states:
            total, cumulative = 0, []
            for bound, count in zip((*BUCKETS, "+Inf"), state.stats.buckets, strict=True):
                total += count
                cumulative.append((str(bound), total))
            latency.add_metric((state.space, state.name), cumulative, state.stats.seconds)
        return latency

    def _workers(self) -> Metric:
        workers = GaugeMetricFamily("spaces_workers", "Worker processes by state.", labels=(*LABELS, "state"))
        for state in self._states:
            name = (state.space, state.name)
            workers.add_metric((*name, "idle"), state.idle_workers)
            workers.add_metric((*name, "busy"), state.busy_workers)
        return workers


def render(
    states: Iterable[FunctionState],
    functions: int,
    started_at: float,
    submitted: Submitted | None = None,
    received: Mapping[str, int] = NOTHING,
) -> bytes:
    """The Prometheus text format of everything counted."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(HostCollector(states, functions, started_at, submitted, received))
    return generate_latest(registry)
