"""A lane: what comes up together is done together, by a thread that is woken once for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime.errors import JournalError
from runtime.journal.lane import Lane, Operation

pytestmark = pytest.mark.anyio


class Thread:
    """What the lane's thread does: it notes what it is given, and waits while the test holds it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.began = threading.Event()
        self.let = threading.Event()
        self.let.set()

    def work(self, operations: list[Operation]) -> None:
        self.batches.append([operation.kind for operation in operations])
        self.began.set()
        self.let.wait(20)
        for operation in operations:
            operation.result = operation.kind.upper()


@asynccontextmanager
async def working(thread: Thread, **told: Any) -> AsyncIterator[Lane]:
    lane = Lane("a lane", thread.work, **told)
    lane.start()
    yield lane
    await lane.stop(lambda: None)


async def test_what_is_asked_in_one_turn_of_the_loop_is_one_batch() -> None:
    """Nobody waits for company that is not there, either."""
    thread = Thread()
    async with working(thread) as lane:
        alone = await lane.ask("alone")
        together = await asyncio.gather(*(lane.ask(kind) for kind in "abc"))

    assert alone == "ALONE"
    assert together == ["A", "B", "C"]
    assert thread.batches == [["alone"], ["a", "b", "c"]]


async def test_what_comes_while_it_works_waits_for_those_who_are_answered() -> None:
    """What they ask next goes into the same batch: few batches are cheaper than many."""
    thread = Thread()
    thread.let.clear()

    async def asking_twice() -> None:
        await lane.ask("first")
        await lane.ask("second")

    async with working(thread) as lane:
        twice = asyncio.create_task(asking_twice())
        await asyncio.to_thread(thread.began.wait, 20)
        meanwhile = asyncio.create_task(lane.ask("meanwhile"))
        await asyncio.sleep(0)
        thread.let.set()
        await asyncio.gather(twice, meanwhile)

    assert thread.batches == [["first"], ["meanwhile", "second"]]


async def test_all_that_was_asked_for_is_done_before_the_end() -> None:
    """And nothing after it."""
    thread = Thread()
    async with working(thread) as lane:
        asked = [asyncio.create_task(lane.ask(kind)) for kind in "abc"]
        await asyncio.sleep(0)

    assert await asyncio.gather(*asked) == ["A", "B", "C"]
    with pytest.raises(JournalError, match="closed"):
        await lane.ask("d")


async def test_what_nobody_heard_of_is_given_back() -> None:
    """One who is cancelled while the thread works does not hear what came of it."""
    thread, lost = Thread(), []
    thread.let.clear()
    async with working(thread, lost=lambda operation: lost.append(operation.result)) as lane:
        asked = asyncio.create_task(lane.ask("a"))
        await asyncio.to_thread(thread.began.wait, 20)
        asked.cancel()
        await asyncio.wait([asked])
        thread.let.set()

    assert lost == ["A"]


async def test_what_is_asked_on_hearing_of_the_last_is_done_too() -> None:
    """Whoever is told of something while the lane ends may have something to put right."""
    thread = Thread()
    thread.let.clear()

    class Told(asyncio.Future[Any]):
        def set_result(self, result: Any) -> None:
            lane.send(Operation("put right", None, None))

    async with working(thread) as lane:
        lane.begin("a", None, Told())
        await asyncio.to_thread(thread.began.wait, 20)
        asyncio.get_running_loop().call_later(0.05, thread.let.set)

    assert [kind for batch in thread.batches for kind in batch] == ["a", "put right"]


async def test_one_who_is_told_and_fails_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others of the batch are answered, and the lane ends as ever."""

    class Failing:
        def cancelled(self) -> bool:
            return False

        def set_result(self, result: Any) -> None:
            raise ZeroDivisionError

        set_exception = set_result

    async with working(Thread()) as lane:
        lane.begin("a", None, Failing())
        assert await lane.ask("b") == "B"

    assert "what came of a `a` in the journal could not be told" in caplog.text
