"""What a host process has counted, as text: with a link, what all of them have together.

Held by `host.py`, which hands `ledger.of` to its pools. Siblings answer its question "metrics", tell each other which
functions have series of their own, so that no function's calls are split between its own and the others', and
remember for each other what was shown, so that no counter falls when one of them dies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from . import exposition, telemetry
from .exposition import Submitted
from .link import Link
from .pool import Pool
from .telemetry import Figures, Key, Ledger, Parts

NOW, SHOWN, NAMES, LAST = "metrics", "metrics shown", "metrics names", "metrics at its end"  # topics
PATIENCE = 1.0  # seconds for a sibling to answer

_decode_names = msgspec.msgpack.Decoder(list[Key]).decode


class Meter:
    """The numbers of one host process."""

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
        self._shown: Parts = {}  # what was shown of every process, this one's predecessors included
        self._before: Figures | None = None  # what those had counted
        self._joined = anyio.Event()

    async def join(self) -> None:
        """Take over what a predecessor had counted, as far as it was shown; then answer siblings."""
        if self._link is not None:
            self._link.subscribe(NAMES, self._hear_names)
            self._link.subscribe(SHOWN, lambda payload: self._remember(telemetry.decode(payload)))
            self._link.subscribe(LAST, self._inherit)
            self._link.answer(SHOWN, lambda: telemetry.encode(self._shown | self._now()))
            self._tell_names()
            for answer in await self._link.gather(SHOWN, PATIENCE):
                self._remember(telemetry.decode(answer))
            self._before = self._shown.get(self._number)  # one that is still ending tells the rest when it has
            self._link.answer(NOW, lambda: telemetry.encode(self._now()))
        self._joined.set()

    def leave(self) -> None:
        """Count no more: tell siblings all that was counted, above all the process that is in this one's place."""
        if self._link is not None:
            self._link.publish(LAST, telemetry.encode(self._now()))

    def figures(self) -> Figures:
        """What this process has counted so far, and those before it."""
        workers: dict[Key, tuple[int, int]] = {}
        for pool in self._pools():
            if pool.workers:
                key = self.ledger.key(pool.function.space, pool.function.name)
                idle, busy = workers.get(key, (0, 0))
                running = sum(1 for worker in pool.workers if worker.busy)
                workers[key] = idle + len(pool.workers) - running, busy + running
        own = Figures(self._functions(), self.started_at, dict(self.received), self.ledger.series(workers))
        return own.plus(self._before) if self._before is not None else own

    async def text(self, submitted: Submitted | None) -> bytes:
        """All of it for Prometheus. Of a sibling that does not answer in time, what it had counted when last asked."""
        await self._joined.wait()
        answers = await self._link.gather(NOW, PATIENCE) if self._link is not None else []
        parts = self._shown | self._later(self._now())
        for answer in answers:
            parts |= self._later(telemetry.decode(answer))
        if self._link is not None:
            self._remember(parts)
            self._link.publish(SHOWN, telemetry.encode(self._shown))
        text = bytearray()
        for piece in exposition.write(telemetry.merge(parts.values()), submitted):
            text += piece
            await checkpoint()  # calls go on meanwhile
        return bytes(text)

    def _now(self) -> Parts:
        return {self._number: self.figures()}

    def _later(self, parts: Parts) -> Parts:
        """These readings, where none are older than what was shown."""
        shown = self._shown
        return {who: shown[who].or_later(part) if who in shown else part for who, part in parts.items()}

    def _remember(self, parts: Parts) -> None:
        self._shown |= {who: part.without_gauges() for who, part in self._later(parts).items()}

    def _inherit(self, payload: bytes) -> None:
        """A process has ended; where it was this one's predecessor, go on from what it had."""
        parts = telemetry.decode(payload)
        last = parts.get(self._number)
        if last is not None and self._joined.is_set():
            before = last.without_gauges()
            self._before = self._before.or_later(before) if self._before is not None else before
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
