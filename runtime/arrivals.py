"""Submitted calls on their way into the journal, and how many there may be.

Made by `dispatcher.py`, which keeps a place for each meanwhile. The journal tells an arrival what came of it, and that
tells whoever has submitted the call: neither needs a task for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from .calls import Submission
from .journal import Receipt, Told
from .registry import Function
from .share import WHOLE, Share

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
        try:
            self._house.arrived(self, receipt)
        finally:
            if not self._told.cancelled():
                self._told.set_result(receipt)

    def set_exception(self, error: Exception) -> None:
        try:
            self._house.arrived(self, None)
        finally:
            if not self._told.cancelled():
                self._told.set_exception(error)


class Later:
    """How many calls of each function are to run later. They are counted where there may be too many, and not before:
    who accepts them for one function is taken to be as busy as each of his siblings.

    Guarantee: one count is under way at most, for all who ask meanwhile.
    """

    def __init__(self, count: Callable[[], Awaitable[dict[Key, int]]], share: Share) -> None:
        self._count, self._of = count, share.of
        self._counted: dict[Key, int] | None = None
        self._since: Counter[Key] = Counter()  # how many more there may be by now
        self._counting: asyncio.Task[None] | None = None

    def add(self, key: Key) -> None:
        """One more."""
        self._since[key] += 1

    def has_room(self, key: Key, most: int) -> bool:
        """Whether there surely are fewer than `most`."""
        return self._counted is not None and self._counted.get(key, 0) + self._since[key] * self._of < most

    async def is_full(self, key: Key, most: int) -> bool:
        """Whether there are `most`, as far as is known of what others accept just now."""
        if self._counting is None:
            self._counting = asyncio.create_task(self._recount())
        await asyncio.shield(self._counting)  # it is the others', too
        counted = self._counted or {}
        return counted.get(key, 0) + self._since[key] >= most

    async def _recount(self) -> None:
        try:
            before = self._since.copy()
            counted = await self._count()
            if counted is not self._counted:  # the journal may say what it has counted lately
                self._counted, self._since = counted, self._since - before
        finally:
            self._counting = None


def capacity(function: Function, share: Share = WHOLE) -> int:
    """How many submitted calls of a function run at once: as many as its workers take, or a share of them.

    A share may be none. Which of several hosts have the odd ones differs from function to function.
    """
    settings = function.settings
    places = settings.max_workers * (settings.concurrency if function.kind.startswith("async") else 1)
    turned = Share((share.index + function.id) % share.of, share.of)
    return turned.part(places)
