"""What is counted: plain numbers while calls run, and one struct of them all that can be sent and added up.

Counters are kept by `pool.py` in what the `Ledger` gives it; `meter.py` takes a `Figures` of them when somebody asks,
and `exposition.py` words that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import reduce
from itertools import islice
from operator import add
from typing import Self

import msgspec

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OTHER = "_other"  # the function, and the space, of whatever has no series of its own
STATUSES = 30  # of one function that are shown as they are; the rest are summed up as 2xx, 4xx, …
REASONS = 10  # why workers of one function have died, that are told apart
SECOND = 1_000_000_000  # ns

Key = tuple[str, str]  # space and function, as they are shown
Join = Callable[[int, int], int]


class FunctionStats:
    """One function's numbers since the host started, or those of all that have none of their own."""

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

    def died(self, reason: str) -> None:
        """A worker has not ended as told. Of reasons beyond the first few, whatever they say, it is one: `other`."""
        known = reason in self.deaths or len(self.deaths) < REASONS
        self.deaths[reason if known else "other"] += 1


class Series(msgspec.Struct, frozen=True, array_like=True):
    """All that is shown under one Key. Times are whole nanoseconds, so that sums do not depend on their order."""

    calls: dict[str, int] = {}
    buckets: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    duration: int = 0
    waiting: int = 0
    own: int = 0
    cold_starts: int = 0
    reloads: dict[str, int] = {}
    deaths: dict[str, int] = {}
    idle: int = 0
    busy: int = 0

    @classmethod
    def of(cls, stats: FunctionStats, idle: int = 0, busy: int = 0) -> Self:
        """These numbers as they are now."""
        calls = {str(status): count for status, count in islice(stats.calls.items(), STATUSES)}
        for status, count in islice(stats.calls.items(), STATUSES, None):
            some = f"{status // 100}xx"
            calls[some] = calls.get(some, 0) + count
        return cls(
            calls=calls,
            buckets=tuple(stats.buckets),
            duration=round(stats.seconds * SECOND),
            waiting=round(stats.waiting_seconds * SECOND),
            own=round(stats.own_seconds * SECOND),
            cold_starts=stats.cold_starts,
            reloads=dict(stats.reloads),
            deaths=dict(stats.deaths),
            idle=idle,
            busy=busy,
        )

    def joined(self, other: Series, join: Join) -> Series:
        """Each number joined with the other's."""
        return Series(
            calls=_joined(self.calls, other.calls, join),
            buckets=tuple(map(join, self.buckets, other.buckets)),
            duration=join(self.duration, other.duration),
            waiting=join(self.waiting, other.waiting),
            own=join(self.own, other.own),
            cold_starts=join(self.cold_starts, other.cold_starts),
            reloads=_joined(self.reloads, other.reloads, join),
            deaths=_joined(self.deaths, other.deaths, join),
            idle=join(self.idle, other.idle),
            busy=join(self.busy, other.busy),
        )


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """All that one host process has counted, or several of them together. The journal's numbers are not in it.

    `functions` and `started_at` are the same for all processes, or nearly: merged, the most and the earliest.
    """

    functions: int
    started_at: float
    received: dict[str, int]
    series: dict[Key, Series]

    def plus(self, other: Figures) -> Figures:
        """The figures of both together."""
        return self._joined(other, add)

    def or_later(self, other: Figures) -> Figures:
        """The newer of two readings of one process; of every counter, which never falls, the higher."""
        return self._joined(other, max)

    def without_gauges(self) -> Figures:
        """What stays true when the process is gone."""
        series = {key: msgspec.structs.replace(one, idle=0, busy=0) for key, one in self.series.items()}
        return msgspec.structs.replace(self, functions=0, series=series)

    def _joined(self, other: Figures, join: Join) -> Figures:
        series = {**self.series, **other.series}
        for key in self.series.keys() & other.series.keys():
            series[key] = self.series[key].joined(other.series[key], join)
        return Figures(
            functions=max(self.functions, other.functions),
            started_at=min(self.started_at, other.started_at),
            received=_joined(self.received, other.received, join),
            series=series,
        )


Parts = dict[int, Figures]  # by the number of the process

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Parts).decode


def merge(parts: Collection[Figures]) -> Figures:
    """The figures of several processes as if they were one; in any order, and merged by parts before or not."""
    return reduce(Figures.plus, parts)


class Ledger:
    """Which functions have a series of their own: the first that are called, up to `most`, for good.

    All others of a space are counted together as the function OTHER; in spaces beyond `most`, as OTHER of OTHER.
    Guarantee: every call is counted in one series, and no series ever falls or goes.
    """

    def __init__(self, most: int, chosen: Callable[[], None] = lambda: None) -> None:
        """`chosen` is called when one more function has got a series of its own."""
        self._most = most
        self._chosen = chosen
        self._own: dict[Key, FunctionStats] = {}
        self._others: dict[Key, FunctionStats] = {}

    def of(self, space: str, name: str) -> FunctionStats:
        """Where this function's calls are counted."""
        found = self._own.get((space, name))
        if found is not None:
            return found
        if len(self._own) < self._most:
            self._own[space, name] = found = FunctionStats()
            self._chosen()
            return found
        key = (space, OTHER) if (space, OTHER) in self._others or len(self._others) < self._most else (OTHER, OTHER)
        return self._others.setdefault(key, FunctionStats())

    def key(self, space: str, name: str) -> Key:
        """Under which labels it is shown."""
        return next((key for key in ((space, name), (space, OTHER)) if key in self), (OTHER, OTHER))

    def __contains__(self, key: Key) -> bool:
        return key in self._own or key in self._others

    @property
    def names(self) -> list[Key]:
        """Whose series are their own."""
        return list(self._own)

    def adopt(self, names: Iterable[Key]) -> bool:
        """Give series to these too, beyond `most` if need be: another process has; whether that is news."""
        news = [key for key in names if key not in self._own]
        for key in news:
            self._own[key] = FunctionStats()
        return bool(news)

    @property
    def keys(self) -> list[Key]:
        """Under which there are numbers."""
        return list(self._own | self._others)

    def series(self, workers: Mapping[Key, tuple[int, int]], keys: Iterable[Key] | None = None) -> dict[Key, Series]:
        """The numbers under these keys, or all, as they are now; `workers` are the idle and the busy ones."""
        return {key: self._one(key, *workers.get(key, (0, 0))) for key in (self.keys if keys is None else keys)}

    def _one(self, key: Key, idle: int, busy: int) -> Series:
        own, others = self._own.get(key), self._others.get(key)
        if own is None or others is None:
            return Series.of(own or others or FunctionStats(), idle, busy)
        return Series.of(own, idle, busy).joined(Series.of(others), add)  # a function is really called OTHER


def _joined(one: Mapping[str, int], two: Mapping[str, int], join: Join) -> dict[str, int]:
    return {key: join(one.get(key, 0), two.get(key, 0)) for key in (*one, *two)}
