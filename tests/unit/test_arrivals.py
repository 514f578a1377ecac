"""How many calls are to run later: counted for all who ask at once, and not more often than it is worth."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from runtime.arrivals import Arrival, Key, Later
from runtime.errors import JournalError
from runtime.journal import Receipt
from runtime.share import WHOLE

pytestmark = pytest.mark.anyio

KEY = ("demo", "one")


class Counting:
    """Says how many there are when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = anyio.Event()
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> dict[Key, int]:
        self.asked += 1
        count = self.count
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {KEY: count}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("leaves", [False, True])
async def test_an_arrival_is_told_with_or_without_whoever_submitted_it(leaves: bool) -> None:
    """To the house, and to him as long as he is there; in its place in the journal it stays anyway."""
    heard: list[Receipt | None] = []

    class House:
        def arrived(self, arrival: Arrival, receipt: Receipt | None) -> None:
            heard.append(receipt)

    receipt, error = Receipt(7, "7"), JournalError("The disk is full.")
    told: list[asyncio.Future[Receipt]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    good, bad = [Arrival(House(), None, None, each, at_once=False) for each in told]  # type: ignore[arg-type]
    for each in told:
        if leaves:
            each.cancel()
    good.set_result(receipt)
    bad.set_exception(error)

    assert heard == [receipt, None]
    assert not good.cancelled()
    assert leaves or (told[0].result(), told[1].exception()) == (receipt, error)


async def test_one_count_is_for_all_who_ask_meanwhile() -> None:
    """What is accepted while it is under way is added to it, once."""
    counting = Counting()
    later = Later(counting, WHOLE)
    later.add(KEY)  # before it began: is among those that are counted
    counting.count = 1
    asking = [asyncio.ensure_future(later.is_full(KEY, 3)) for _ in range(50)]
    await anyio.wait_all_tasks_blocked()
    later.add(KEY)
    counting.go.set()

    assert await asyncio.gather(*asking) == [False] * 50
    assert counting.asked == 1
    assert later.has_room(KEY, 3)
    assert not later.has_room(KEY, 2)


async def test_who_leaves_does_not_end_the_others_count() -> None:
    """Whoever asked first may be cancelled."""
    counting = Counting()
    later = Later(counting, WHOLE)
    first, second = (asyncio.ensure_future(later.is_full(KEY, 3)) for _ in range(2))
    await anyio.wait_all_tasks_blocked()
    first.cancel()
    await anyio.wait_all_tasks_blocked()
    counting.go.set()

    assert not await second
    assert first.cancelled()
    assert counting.asked == 1


async def test_a_count_that_fails_is_made_again() -> None:
    """All who waited for it hear of it."""
    counting = Counting()
    later = Later(counting, WHOLE)
    asking = [asyncio.ensure_future(later.is_full(KEY, 1)) for _ in range(3)]
    await anyio.wait_all_tasks_blocked()
    counting.error = error = JournalError("the disk is gone")
    counting.go.set()
    failed = await asyncio.gather(*asking, return_exceptions=True)
    counting.error = None

    assert failed == [error] * 3
    assert not await later.is_full(KEY, 1)


async def test_what_was_known_before_is_not_taken_off_twice() -> None:
    """Who counts may say again what he has counted before: what was added since is still to be added."""
    known: dict[Key, int] = {KEY: 1}

    async def count() -> dict[Key, int]:
        return known

    later = Later(count, WHOLE)
    assert not await later.is_full(KEY, 3)
    for _ in range(2):
        later.add(KEY)
        full = [await later.is_full(KEY, 3) for _ in range(3)]

    assert full == [True] * 3
