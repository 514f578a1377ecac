"""Ends the workers of one function that had nothing to do for its `idle_timeout`. Used by `pool.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic

from .config import FunctionSettings
from .generation import Worker


class IdleEnds:
    """One timer for a pool's workers: it runs while there are more of them than `min_workers`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Callable[[], FunctionSettings],
        workers: Callable[[], Collection[Worker]],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._workers = workers
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """There is one more worker."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._settings().idle_timeout, self._look)

    def restart(self) -> None:
        """The settings are other ones."""
        self.stop()
        if self._workers():
            self.watch()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        settings, now = self._settings(), monotonic()
        idle = sorted((w for w in self._workers() if not w.busy and not w.leaving), key=lambda w: w.idle_since)
        spare = max(0, len(self._workers()) - settings.min_workers)
        for worker in [w for w in idle if now - w.idle_since >= settings.idle_timeout][:spare]:
            worker.retire()
        if len(self._workers()) > settings.min_workers:
            since = min((w.idle_since for w in idle if not w.leaving), default=now)
            due = max(since + settings.idle_timeout, now + settings.idle_timeout / 10)
            self._timer = self._loop.call_at(due, self._look)
