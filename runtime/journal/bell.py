"""What the processes on one journal tell each other of their commits, so that nobody has to look for them.

Used by `sqlite.py`, on the event loop only. It may be lost: whoever must know looks by himself besides, but seldom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

RING_SECONDS = 0.003  # at least so long between two rings
MOST_IDS = 256  # in one; of more, all are meant
LOOKING = 20  # at most one part in so many of the time is spent on looking at what others have done


class Bell(Protocol):
    """What other processes on this journal hear; their own journals are to be given it by `heard`."""

    def ring(self, payload: bytes) -> None:
        """Have them all hear it soon, or not at all; never waits."""


class News(msgspec.Struct, frozen=True, array_like=True):
    """What was done. `ids`: of the calls it was done to; None: of any."""

    ids: tuple[int, ...] | None = ()
    calls: bool = False  # some wait for a place
    cancels: bool = False  # one that runs is to be stopped
    callbacks: bool = False  # some are due

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self != NOTHING

    def and_(self, other: News) -> News:
        """Both."""
        ids = None if self.ids is None or other.ids is None else (*self.ids, *other.ids)
        return News(
            None if ids is None or len(ids) > MOST_IDS else ids,
            self.calls or other.calls, self.cancels or other.cancels, self.callbacks or other.callbacks,
        )  # fmt: skip


NOTHING = News()
ANYTHING = News(None, calls=True, cancels=True, callbacks=True)

_read = msgspec.msgpack.Decoder(News).decode


def encode(news: News) -> bytes:
    """As it is rung."""
    return msgspec.msgpack.encode(news)


def decode(payload: bytes) -> News:
    """As it was rung; what cannot be read may have meant anything."""
    try:
        return _read(payload)
    except msgspec.MsgspecError:
        return ANYTHING


def of_calls(ids: Sequence[int], *, calls: bool = False, cancels: bool = False, callbacks: bool = False) -> News:
    """News of these calls."""
    return News(tuple(ids) if len(ids) <= MOST_IDS else None, calls, cancels, callbacks)


class Teller:
    """Hands news on: the first at once, what comes soon after it together, `gap` seconds after the last time."""

    def __init__(self, tell: Callable[[News], None], gap: Callable[[], float] = lambda: RING_SECONDS) -> None:
        self._tell, self._gap = tell, gap
        self._news = NOTHING
        self._last = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def add(self, news: News) -> None:
        """Have it told."""
        if not news:
            return
        self._news = self._news.and_(news)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            left = self._last + self._gap() - loop.time()
            if left <= 0:
                self._now()
            else:
                self._timer = loop.call_later(left, self._now)

    def close(self) -> None:
        """Tell what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._now()

    def _now(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        news, self._news = self._news, NOTHING
        self._tell(news)
