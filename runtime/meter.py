"""What a host process has counted, as text: with a link, what all of them have together.

Held by `host.py`, which hands `ledger.of` to its pools. Siblings answer its question "metrics", tell each other which
functions have series of their own, so that no function's calls are split between its own and the others', and
remember for each other what was shown, so that no counter falls when one of them dies.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from itertools import chain
from operator import add

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from . import exposition, telemetry
from .exposition import PIECE, Submitted
from .link import Link
from .pool import Pool
from .telemetry import Figures, Key, Ledger, Parts, Series

NOW, SHOWN, NAMES, LAST = "metrics", "metrics shown", "metrics names", "metrics at its end"  # topics
PATIENCE = 1.0  # seconds for a sibling to answer
JOINING = 5.0  # seconds for all to tell what was counted before: what comes later is missing for good

_decode_names = msgspec.msgpack.Decoder(list[Key]).decode


class Reading:
    """The latest that is known of what a process has counted: no counter falls, and no gauge is kept."""

    def __init__(self) -> None:
        self.head: Figures | None = None  # what is not of single functions
        self.series: dict[Key, Series] = {}

    def take(self, part: Figures) -> Figures | None:
        """Note a reading of all functions, or of some; what is news of it, or to whoever has read it, in full."""
        part = part.without_gauges()
        news: dict[Key, Series] = {}
        for key, one in part.series.items():
            known = self.series.get(key)
            if known != one:
                self.series[key] = news[key] = one if known is None else known.joined(one, max)
        before, head = self.head, msgspec.structs.replace(part, series={})
        self.head = head if before is None else before.or_later(head)
        is_news = news or self.head != before or self.head.received != head.received
        return msgspec.structs.replace(self.head, series=news) if is_news else None

    def parts(self) -> Iterator[Figures]:
        """All of it, some functions each."""
        if self.head is not None:
            for keys in _some(list(self.series), PIECE):
                yield msgspec.structs.replace(self.head, series={key: self.series[key] for key in keys})


class Meter:
    """The numbers of one host process. They are made, sent and added up for some functions at a time: others go on."""

    def __init__(
        self, most: int, pools: Callable[[], Iterable[Pool]], functions: Callable[[], int], link: Link | None
    ) -> None:
        """`most`: how many functions have series of their own. `functions`: how many there are."""
        self.started_at = time.time()
        self.received: Counter[str] = Counter()  # calls, by what they came by
        self.ledger = Ledger(most, self._tell_names)
        self._pools = pools
        self._functions = functions
        self._link = link
        self._number = link.share.index if link is not None else 0
        self._shown: dict[int, Reading] = defaultdict(Reading)  # of every process, this one's predecessors included
        self._before = Reading()  # what those had counted
        self._joined = anyio.Event()

    async def join(self) -> None:
        """Take over what a predecessor had counted, as far as it was shown; then answer siblings."""
        if self._link is not None:
            self._link.subscribe(NAMES, self._hear_names)
            self._link.subscribe(SHOWN, lambda payload: self._remember(telemetry.decode(payload)))
            self._link.subscribe(LAST, self._inherit)
            self._link.answer_in_parts(SHOWN, self._say_shown)
            self._tell_names()
            for answer in await self._link.gather(SHOWN, JOINING):
                self._remember(telemetry.decode(answer))
                await checkpoint()
            for part in self._shown[self._number].parts():  # one that is still ending tells the rest when it has
                self._before.take(part)
            self._link.answer_in_parts(NOW, self._say_now)
        self._joined.set()

    def leave(self) -> None:
        """Count no more: tell siblings all that was counted, above all the process that is in this one's place."""
        if self._link is not None:
            for part in self._say_now():
                self._link.publish(LAST, part)

    async def text(self, submitted: Submitted | None) -> bytes:
        """All of it for Prometheus. Of a sibling that does not answer in time, what it had counted when last asked."""
        await self._joined.wait()
        answers = await self._link.gather(NOW, PATIENCE) if self._link is not None else []
        workers: Counter[tuple[Key, str]] = Counter()
        functions = 0
        for parts in chain(({self._number: part} for part in self._parts()), map(telemetry.decode, answers)):
            for part in parts.values():
                functions = max(functions, part.functions)
                for key, one in part.series.items():
                    if one.idle or one.busy:
                        workers[key, "idle"] += one.idle
                        workers[key, "busy"] += one.busy
            self._show(parts)
            await checkpoint()  # calls go on meanwhile
        whole = msgspec.structs.replace(await self._sum(workers), functions=functions)
        text = bytearray()
        for piece in exposition.write(whole, submitted):
            text += piece
            await checkpoint()
        return bytes(text)

    async def _sum(self, workers: Mapping[tuple[Key, str], int]) -> Figures:
        """What was shown of all processes together, with these workers."""
        readings = list(self._shown.values())
        series: dict[Key, Series] = {}
        for keys in _some(list({key: None for reading in readings for key in reading.series}), PIECE // len(readings)):
            for key in keys:
                found = (reading.series[key] for reading in readings if key in reading.series)
                total = reduce(lambda one, other: one.joined(other, add), found)
                idle, busy = workers.get((key, "idle"), 0), workers.get((key, "busy"), 0)
                series[key] = msgspec.structs.replace(total, idle=idle, busy=busy) if idle or busy else total
            await checkpoint()
        heads = [reading.head for reading in readings if reading.head is not None]
        return msgspec.structs.replace(telemetry.merge(heads), series=series)

    def _parts(self) -> Iterator[Figures]:
        """What this process has counted so far, and those before it, of some functions each."""
        workers: dict[Key, tuple[int, int]] = {}
        for pool in self._pools():
            if pool.workers:
                key = self.ledger.key(pool.function.space, pool.function.name)
                idle, busy = workers.get(key, (0, 0))
                running = sum(1 for worker in pool.workers if worker.busy)
                workers[key] = idle + len(pool.workers) - running, busy + running
        before = self._before
        head = Figures(self._functions(), self.started_at, dict(self.received), {})
        head = head.plus(before.head) if before.head is not None else head
        for keys in _some(list(dict.fromkeys((*self.ledger.keys, *before.series))), PIECE):
            series = self.ledger.series(workers, keys)
            series |= {key: series[key].joined(before.series[key], add) for key in keys if key in before.series}
            yield msgspec.structs.replace(head, series=series)

    def _show(self, parts: Parts) -> None:
        """These are about to be shown: siblings are to remember what is news of them, too."""
        for who, part in parts.items():
            news = self._shown[who].take(part)
            if news is not None and self._link is not None:
                self._link.publish(SHOWN, telemetry.encode({who: news}))

    def _remember(self, parts: Parts) -> None:
        for who, part in parts.items():
            self._shown[who].take(part)

    def _say_now(self) -> Iterator[bytes]:
        return (telemetry.encode({self._number: part}) for part in self._parts())

    def _say_shown(self) -> Iterator[bytes]:
        shown = ((who, part) for who, reading in list(self._shown.items()) for part in reading.parts())
        return chain((telemetry.encode({who: part}) for who, part in shown), self._say_now())

    def _inherit(self, payload: bytes) -> None:
        """A process has ended; where it was this one's predecessor, go on from what it had."""
        parts = telemetry.decode(payload)
        if self._number in parts and self._joined.is_set():
            self._before.take(parts[self._number])
        self._remember(parts)

    def _tell_names(self) -> None:
        if self._link is not None:
            self._link.publish(NAMES, msgspec.msgpack.encode(self.ledger.names))

    def _hear_names(self, payload: bytes) -> None:
        """A sibling says whose series are their own there: here, too, from now on. It may lack some of ours."""
        theirs = _decode_names(payload)
        if self.ledger.adopt(theirs):
            for pool in self._pools():
                pool.stats = self.ledger.of(pool.function.space, pool.function.name)
        if not set(self.ledger.names) <= set(theirs):
            self._tell_names()


def _some(keys: list[Key], size: int) -> Iterator[list[Key]]:
    """So many at a time; at least once, if only none."""
    for start in range(0, len(keys) or 1, max(size, 1)):
        yield keys[start : start + max(size, 1)]
