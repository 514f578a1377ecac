"""Invocations on their way into the record of samples: noted a little after the answer, many at a time.

Filled by the Nyckel dialect, drained by one task that `training.py` starts. Nobody who calls a function waits for it.
A list of samples shows them within PAUSE; who asks for one by its id finds it at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from .errors import HostError
from .lessons import Captured, Lessons

MOST_WAITING = 1000  # invocations
MOST_WAITING_BYTES = 64 * 1024 * 1024
OVERHEAD = 100  # bytes of a label besides its name
BATCH = 100
PAUSE = 5.0  # seconds from the first that waits until all that wait are noted, unless somebody asks for one
KEPT = 10_000  # captured samples of one function, the newest
KEPT_BYTES = 256 * 1024 * 1024
COMPLAIN_EVERY = 60.0  # seconds

log = logging.getLogger("spaces.nyckel")


class Captures:
    """A bounded queue before the record.

    Guarantee: `put` returns at once. What does not fit, or cannot be recorded, is dropped, counted and logged.
    """

    def __init__(self, lessons: Lessons) -> None:
        self.dropped = 0
        self.tell: Callable[[], Awaitable[None]] = _nobody  # to note what waits, wherever it does
        self._lessons = lessons
        self._waiting: list[Captured] = []
        self._bytes = 0
        self._news = anyio.Event()
        self._full = anyio.Event()
        self._turn = anyio.Lock()
        self._complained_at = -COMPLAIN_EVERY

    def put(self, captured: Captured) -> bool:
        """Have an invocation noted, soon; whether it will be."""
        size = _size(captured)
        if len(self._waiting) >= MOST_WAITING or self._bytes + size > MOST_WAITING_BYTES:
            self._drop(1, "too many are waiting")
            return False
        self._waiting.append(captured)
        self._bytes += size
        self._news.set()
        if len(self._waiting) >= BATCH:
            self._full.set()
        return True

    async def run(self) -> None:
        """For ever: note what waits."""
        while True:
            await self._news.wait()
            with anyio.move_on_after(PAUSE):
                await self._full.wait()
            self._news, self._full = anyio.Event(), anyio.Event()
            await self.flush()

    async def flush_everywhere(self) -> None:
        """Note everything that waits now, in every process of this host."""
        await self.flush()
        await self.tell()

    async def flush(self) -> None:
        """Note everything that waits now. After a failure the rest waits on: the next try would take as long."""
        async with self._turn:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                self._bytes -= sum(map(_size, batch))
                try:
                    with anyio.CancelScope(shield=True):  # at the end of the host, too, it is this or nothing
                        await self._lessons.capture(batch, KEPT, KEPT_BYTES)
                except HostError as error:
                    self._drop(len(batch), error.message)
                    if self._waiting:
                        self._news.set()
                    return

    async def close(self) -> None:
        """The last flush: what cannot be noted now is not noted."""
        await self.flush()
        if self._waiting:
            self._drop(len(self._waiting), "the host has ended")
            self._waiting.clear()

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        if time.monotonic() - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = time.monotonic()
            log.warning("invocations were not kept as samples (%s); %d so far", reason, self.dropped)


async def _nobody() -> None:
    """There is no other process."""


def _size(captured: Captured) -> int:
    """About how much memory it takes."""
    draft, labels = captured.draft, (*captured.names, *(name for name, _ in captured.prediction))
    texts = (draft.data, draft.metadata or "", draft.external_id or "") if draft is not None else ()
    return sum(map(len, texts)) + sum(OVERHEAD + len(name) for name in labels)
