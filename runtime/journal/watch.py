"""Who waits for something to happen to a call, woken after the commit.

Used by `sqlite.py` and `lookout.py`, on the event loop only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextvars import ContextVar

_REMEMBERED = 4096  # calls that something happened to of late


class Watch:
    """One who has read a call, and then waits, misses nothing that came between.

    For that, it is remembered when each task has last read something, and when something last happened to each call. A
    task that one starts for the waiting alone, as `asyncio.wait_for` may, inherits what is remembered.
    """

    def __init__(self) -> None:
        self._now = 0  # counts what happened
        self._read_at: ContextVar[int | None] = ContextVar("read at", default=None)
        self._touched: OrderedDict[int, int] = OrderedDict()
        self._forgotten = 0  # what happened up to here is not in `_touched` any more
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}

    @property
    def awaited(self) -> Sequence[int]:
        """The calls that somebody waits for."""
        return tuple(self._waiting)

    def reading(self) -> None:
        """The current task begins to read."""
        self._read_at.set(self._now)

    def touch(self, ids: Iterable[int]) -> None:
        """Something happened to these calls."""
        self._now += 1
        touched, now = self._touched, self._now
        for id in ids:
            touched[id] = now
            touched.move_to_end(id)
            if id in self._waiting:
                _wake(self._waiting.pop(id))
        while len(touched) > _REMEMBERED:
            self._forgotten = touched.popitem(last=False)[1]

    def touch_all(self) -> None:
        """Something happened to some call, whichever."""
        self._now += 1
        self._forgotten = self._now
        self.wake_all()

    async def changed(self, id: int, timeout: float) -> bool:
        """Wait until something happens to a call, after the current task has read it. False: not in that time."""
        read_at = self._read_at.get()
        self._read_at.set(self._now)  # one return for what was missed, even if it is not read then
        if read_at is not None and max(self._touched.get(id, 0), self._forgotten) > read_at:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, set()).add(future)
        try:
            await asyncio.wait((future,), timeout=timeout)
            return future.done()
        finally:
            self._leave(id, future)

    def wake_all(self) -> None:
        """Nobody is to wait any longer."""
        while self._waiting:
            _wake(self._waiting.popitem()[1])

    def _leave(self, id: int, future: asyncio.Future[None]) -> None:
        future.cancel()
        waiting = self._waiting.get(id)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[id]


def _wake(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
