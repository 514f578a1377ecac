"""Sees what other owners of a journal do to the calls that somebody here waits for: one look for all who wait.

Made by `sqlite.py`; asks the reader, and tells `watch.py`, which wakes them. Nothing is looked at while nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from ..errors import JournalError
from .watch import Watch

EVERY = 1.0  # seconds

Question = tuple[object, Collection[int]]  # see `queries.marks`


class Lookout:
    """Whoever waits for a call hears within EVERY seconds of what was done to it, and now and then of nothing."""

    def __init__(self, watch: Watch, ask: Callable[[str, Question], Awaitable[Any]]) -> None:
        self._watch, self._ask = watch, ask
        self._version: object = None  # of all that is in the journal
        self._marks: dict[int, object] = {}  # how far each call was when the version was last another one
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Somebody waits, or is about to."""
        if self._timer is None and self._looking is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY, self._begin)

    def close(self) -> None:
        """Look no more."""
        for each in (self._timer, self._looking):
            if each is not None:
                each.cancel()

    def _begin(self) -> None:
        self._timer = None
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            await self._compare(self._watch.awaited)
        except JournalError:  # whoever waits asks, and hears what is wrong
            self._version, self._marks = None, {}
            self._watch.touch_all()
        finally:
            self._looking = None
        if self._watch.awaited:
            self.wake()

    async def _compare(self, ids: Collection[int]) -> None:
        version, marks = await self._ask("marks", (self._version, ids))
        if version == self._version:
            new = [id for id in ids if id not in self._marks]
            self._marks.update(dict.fromkeys(new))
            self._watch.touch(new)
            return
        before, self._version, self._marks = self._marks, version, marks
        # Of one who came since the last look, it is not known what he has read: he reads again.
        self._watch.touch([id for id in ids if id not in before or before[id] != marks[id]])
