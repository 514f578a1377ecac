"""What host processes that serve the same do for each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from runtime.link import Link, Relay
from runtime.share import Share
from runtime.siblings import Siblings
from runtime.status import FunctionStatus
from runtime.tasks import Tasks

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
READY = FunctionStatus("d", "who", 7, "d/who.py", 1, "sync", ("data",), "ready", "abc", 1, 0, 0, None)


class Process:
    """As much of a host as is told: it notes what it has to do."""

    def __init__(self, link: Link) -> None:
        self.siblings = Siblings(link)
        self.done: list[Any] = []
        self.lessons = SimpleNamespace(outdate=lambda number: self.done.append(("read", number)), tell=None)
        self.captures = SimpleNamespace(flush=self.flush, tell=None)
        self.failing = False

    async def flush(self) -> None:
        self.done.append("noted")

    async def take_up(self, path: Path) -> None:
        await anyio.sleep(0.01)
        if self.failing:
            raise OSError("a disk that is gone")
        self.done.append(path)

    def heard(self, payload: bytes) -> None:
        self.done.append(payload)

    def states(self, ids: Collection[int]) -> list[FunctionStatus]:
        return [READY] if READY.id in ids else []

    def listen(self, tasks: Tasks) -> None:
        self.siblings.listen(tasks, self.take_up, self.states, self, self)  # type: ignore[arg-type]


@asynccontextmanager
async def processes(count: int) -> AsyncIterator[list[Process]]:
    relay = Relay(lambda *_: None)
    async with AsyncExitStack() as scopes, anyio.create_task_group() as tasks:
        found = []
        for number in range(count):
            ours, theirs = socket.socketpair()
            door, their_door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            scopes.enter_context(door)
            await relay.join(number, ours)
            link = await scopes.enter_async_context(Link(Share(number, count), theirs, their_door))
            found.append(Process(link))
            found[-1].listen(Tasks(tasks))
        yield found
        relay.close()
        tasks.cancel_scope.cancel()


async def test_a_written_file_is_taken_up_everywhere() -> None:
    """When whoever has written it goes on, the others have done so, however the file is called."""
    path = Path("/state/trained/f\udcff/handler.py")
    async with processes(3) as (one, *others):
        await one.siblings.have_written(path)

        assert [other.done for other in others] == [[path], [path]]
        assert one.done == []


async def test_one_that_fails_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for no longer than it takes to fail, and says what is wrong."""
    monkeypatch.setattr("runtime.siblings.PATIENCE", 1e6)
    async with processes(2) as (one, other):
        other.failing = True
        with anyio.fail_after(PATIENCE):
            await one.siblings.have_written(Path("/file"))
        while "a disk that is gone" not in caplog.text:
            await anyio.sleep(0.001)


async def test_what_is_taught_is_read_anew_everywhere() -> None:
    """And what waits to be noted is noted, wherever it waits."""
    async with processes(2) as (one, other):
        await one.lessons.tell(7)
        await one.captures.tell()

        assert other.done == [("read", 7), "noted"]


async def test_states_are_those_of_all_others() -> None:
    """By the function's number; of functions that nobody has called there are none."""
    async with processes(3) as (one, *_):
        found = await one.siblings.states([7, 8])

    assert dict(found) == {7: [READY, READY]}


async def test_a_commit_is_heard() -> None:
    """By all but who rang."""
    async with processes(2) as (one, other):
        one.siblings.ring(b"news")
        with anyio.fail_after(PATIENCE):
            while not other.done:
                await anyio.sleep(0.001)

        assert (one.done, other.done) == ([], [b"news"])


async def test_others_may_be_asked_anything() -> None:
    """Each answers."""
    async with processes(3) as (one, two, three):
        two.siblings.answer("name", lambda payload: payload + b"2")
        three.siblings.answer("name", lambda payload: payload + b"3")

        assert sorted(await one.siblings.ask("name", b"n")) == [b"n2", b"n3"]
