"""Submitted calls on their way into the journal, and how many there may be.

Made by `dispatcher.py`, which keeps a place for each meanwhile. The journal tells an arrival what came of it, and that
tells whoever has submitted the call: neither needs a task for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Protocol

from .calls import Submission
from .journal import Receipt, Told
from .registry import Function
from .share import WHOLE, Share

COUNT_EVERY = 0.05  # seconds at least between two counts
COUNTING = 20  # and at most one part in so many of the time is spent on them

Key = tuple[str, str]


class House(Protocol):
    """Where calls arrive."""

    def arrived(self, arrival: Arrival, receipt: Receipt | None) -> None:
        """It is in the journal; without a receipt, it has failed to get there."""


class Arrival:
    """One call, `at_once` where it was promised a place. See `journal.Told`."""

    __slots__ = ("_house", "_told", "at_once", "function", "submission")

    def __init__(self, house: House, submission: Submission, function: Function, told: Told, *, at_once: bool) -> None:
        self._house, self._told = house, told
        self.submission, self.function, self.at_once = submission, function, at_once

    def cancelled(self) -> bool:
        """It is recorded, and run, also when whoever has submitted it has left: it may have been accepted by then."""
        return False

    def set_result(self, receipt: Receipt) -> None:
        self._house.arrived(self, receipt)
        if not self._told.cancelled():
            self._told.set_result(receipt)

    def set_exception(self, error: Exception) -> None:
        self._house.arrived(self, None)
        if not self._told.cancelled():
            self._told.set_exception(error)


class Later:
    """How many calls of each function are to run later. They are counted where there may be too many, and not before:
    who accepts them for one function is taken to be as busy as each of his siblings.
    """

    def __init__(self, count: Callable[[], Awaitable[dict[Key, int]]], share: Share) -> None:
        self._count, self._of = count, share.of
        self._counted: dict[Key, int] | None = None
        self._since: Counter[Key] = Counter()  # how many more there may be by now
        self._next = 0.0

    def add(self, key: Key) -> None:
        """One more."""
        self._since[key] += 1

    def has_room(self, key: Key, most: int) -> bool:
        """Whether there surely are fewer than `most`."""
        return self._counted is not None and self._counted.get(key, 0) + self._since[key] * self._of < most

    async def is_full(self, key: Key, most: int) -> bool:
        """Whether there are `most`, as far as is known of what others accept just now."""
        began = monotonic()
        if self._counted is None or began >= self._next:
            before = self._since.copy()
            counted = await self._count()
            self._counted, self._since = counted, self._since - before
            self._next = monotonic() + max(COUNT_EVERY, (monotonic() - began) * COUNTING)
        return self._counted.get(key, 0) + self._since[key] >= most


def capacity(function: Function, share: Share = WHOLE) -> int:
    """How many submitted calls of a function run at once: as many as its workers take, or a share of them.

    A share may be none. Which of several hosts have the odd ones differs from function to function.
    """
    settings = function.settings
    places = settings.max_workers * (settings.concurrency if function.kind.startswith("async") else 1)
    turned = Share((share.index + function.id) % share.of, share.of)
    return turned.part(places)
