"""Figures as text: what GET /metrics answers, in the format that Prometheus reads (version 0.0.4).

Used by `meter.py`. Written here, not by the official client library: that takes ten times as long, and would hold up
every call meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import msgspec

from runtime.telemetry import BUCKETS, SECOND, Figures, Series

PIECE = 64  # functions whose samples are written in one go

_BOUNDS = (*map(str, BUCKETS), "+Inf")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Own = tuple[str, str]  # the two labels of a function, as they are written


class Submitted(Protocol):
    """What is shown of the journal: `journal.Counts`."""

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


class Family(msgspec.Struct, frozen=True):
    """Some samples of one name. Of a counter, this is without its `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str

    @property
    def sample(self) -> str:
        """The name of its samples."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def head(self) -> str:
        """What stands before the samples."""
        return f"# HELP {self.sample} {self.help}\n# TYPE {self.sample} {self.kind}\n"

    def simple(self, value: float, **labels: str) -> str:
        """A sample that is of no function."""
        shown = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
        return f"{self.sample}{{{shown}}} {float(value)}\n" if shown else f"{self.sample} {float(value)}\n"


FUNCTIONS = Family("spaces_functions", "gauge", "Functions on disk.")
STARTED = Family("spaces_start_time_seconds", "gauge", "When the host started.")
RECEIVED = Family("spaces_received_calls", "counter", "Calls taken, by what they came by.")
CALLS = Family("spaces_calls", "counter", "Calls answered.")
RELOADS = Family("spaces_reloads", "counter", "Changed files loaded.")
DEATHS = Family("spaces_worker_deaths", "counter", "Workers that did not end as told.")
COLD = Family("spaces_cold_starts", "counter", "Workers started.")
WAITING = Family("spaces_waiting_seconds", "counter", "Time that calls waited for a worker.")
OVERHEAD = Family("spaces_overhead_seconds", "counter", "Time of calls spent neither waiting nor in the handler.")
LATENCY = Family("spaces_call_duration_seconds", "histogram", "From a call's acceptance to its answer.")
WORKERS = Family("spaces_workers", "gauge", "Worker processes by state.")
SUBMITTED = Family("spaces_submitted_calls", "gauge", "Submitted calls that are not over.")
AGE = Family("spaces_queue_age_seconds", "gauge", "How long the first in the queue waits.")
CALLBACKS = Family("spaces_callbacks", "gauge", "Callbacks that have not arrived.")


def write(figures: Figures, submitted: Submitted | None = None) -> Iterator[bytes]:
    """The text, in pieces, so that others get their turn between them."""
    yield _of_the_host(figures).encode()
    rows: list[tuple[Own, Series]] = []
    for key in sorted(figures.series):
        rows.append((_own(*key), figures.series[key]))
        if not len(rows) % PIECE:
            yield b""
    for family, samples in _BY_FUNCTION:
        yield family.head().encode()
        for start in range(0, len(rows), PIECE):
            yield "".join(line for row in rows[start : start + PIECE] for line in samples(family.sample, *row)).encode()
    if submitted is not None:
        yield _of_the_journal(submitted).encode()


def _own(space: str, function: str) -> Own:
    return f'{{function="{function.translate(_ESCAPES)}"', f'space="{space.translate(_ESCAPES)}"'


def _of_the_host(figures: Figures) -> str:
    lines = [FUNCTIONS.head(), FUNCTIONS.simple(figures.functions), STARTED.head(), STARTED.simple(figures.started_at)]
    received = (RECEIVED.simple(count, via=via) for via, count in figures.received.items())
    return "".join((*lines, RECEIVED.head(), *received))


def _of_the_journal(submitted: Submitted) -> str:
    calls = SUBMITTED.simple(submitted.queued, state="queued"), SUBMITTED.simple(submitted.running, state="running")
    pending = CALLBACKS.simple(submitted.callbacks_pending, state="pending")
    dead = CALLBACKS.simple(submitted.callbacks_dead, state="dead")
    age = AGE.head(), AGE.simple(submitted.oldest)
    return "".join((SUBMITTED.head(), *calls, *age, CALLBACKS.head(), pending, dead))


def _calls(name: str, own: Own, series: Series) -> Iterator[str]:
    function, space = own
    for status, count in series.calls.items():
        yield f'{name}{function},{space},status="{status}"}} {count}.0\n'


def _reloads(name: str, own: Own, series: Series) -> Iterator[str]:
    function, space = own
    for outcome, count in series.reloads.items():
        yield f'{name}{function},outcome="{outcome}",{space}}} {count}.0\n'


def _deaths(name: str, own: Own, series: Series) -> Iterator[str]:
    function, space = own
    for reason, count in series.deaths.items():
        yield f'{name}{function},reason="{reason.translate(_ESCAPES)}",{space}}} {count}.0\n'


def _cold(name: str, own: Own, series: Series) -> Iterator[str]:
    yield f"{name}{','.join(own)}}} {series.cold_starts}.0\n"


def _waiting(name: str, own: Own, series: Series) -> Iterator[str]:
    yield f"{name}{','.join(own)}}} {series.waiting / SECOND}\n"


def _overhead(name: str, own: Own, series: Series) -> Iterator[str]:
    yield f"{name}{','.join(own)}}} {series.own / SECOND}\n"


def _latency(name: str, own: Own, series: Series) -> Iterator[str]:
    function, space = own
    total = 0
    for bound, count in zip(_BOUNDS, series.buckets, strict=True):
        total += count
        yield f'{name}_bucket{function},le="{bound}",{space}}} {total}.0\n'
    yield f"{name}_count{function},{space}}} {total}.0\n"
    yield f"{name}_sum{function},{space}}} {series.duration / SECOND}\n"


def _workers(name: str, own: Own, series: Series) -> Iterator[str]:
    function, space = own
    yield f'{name}{function},{space},state="idle"}} {series.idle}.0\n'
    yield f'{name}{function},{space},state="busy"}} {series.busy}.0\n'


_BY_FUNCTION: tuple[tuple[Family, Callable[[str, Own, Series], Iterable[str]]], ...] = (
    (CALLS, _calls),
    (RELOADS, _reloads),
    (DEATHS, _deaths),
    (COLD, _cold),
    (WAITING, _waiting),
    (OVERHEAD, _overhead),
    (LATENCY, _latency),
    (WORKERS, _workers),
)
