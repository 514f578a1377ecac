"""The next worker of a function, started before a call wants it: a cold start takes it instead of waiting for a fork.

Used by `pool.py`. Where several hosts fork from one zygote, the zygote has such a process for all of them instead
(`worker/zygote.py`), as it counts who has how many workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from .generation import Generation, Worker

QUIET = 0.02  # seconds without a start after which nobody is likely to be kept waiting by a fork


class Ahead:
    """One pool's spare worker: it has rehearsed, has run nothing, and counts for nothing until it is taken.

    One that ends by itself is not replaced before a worker is wanted again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Callable[[Generation], Worker]) -> None:
        self._loop = loop
        self._start = start
        self._spare: Worker | None = None
        self._timer: asyncio.TimerHandle | None = None

    def take(self, generation: Generation) -> Worker | None:
        """The spare as one more worker of this generation; None where there is none."""
        spare = self._spare
        if spare is None or spare.leaving or spare.generation is not generation:
            return None
        self._spare = None
        spare.join()
        return spare

    def soon(self, generation: Generation) -> None:
        """A worker was wanted: have a spare of this generation once no more of them are."""
        if self._spare is not None and self._spare.generation is not generation:
            self.drop()
        self._hold()
        if generation.fresh:
            return
        if generation.zygote.shared:
            generation.zygote.expect()
        else:
            self._timer = self._loop.call_later(QUIET, self._prepare, generation)

    def drop(self) -> None:
        """End the spare, and have none."""
        self._hold()
        if self._spare is not None:
            self._spare.discard()
        self._spare = None

    def _hold(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _prepare(self, generation: Generation) -> None:
        self._timer = None
        if generation.alive and (self._spare is None or self._spare.leaving):
            with suppress(OSError):  # whoever needs a worker will be told why there is none
                self._spare = self._start(generation)
