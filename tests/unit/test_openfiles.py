"""What is said when no more files can be opened, and how often."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from typing import Any

import anyio
import pytest

from runtime import openfiles as module
from runtime.openfiles import OpenFiles, open_files, without_refusals
from tests.unit.waiting import until


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([100, 900], 0),
        ([1000, 998, 1000, 950, 1000], 1),
        ([1000, 800, 1000], 2),
        ([950, 996], 1),
        ([995], 0),
    ],
)
def test_it_is_said_once(counts: list[int], said: int, caplog: pytest.LogCaptureFixture) -> None:
    """And again only when there was room in between; it names the limit, and what to do."""
    files = OpenFiles()
    for count in counts:
        files.look(count, 1000)

    assert [record.levelno for record in caplog.records] == [logging.ERROR] * said
    assert all("1000 files" in record.getMessage() and "ulimit -n" in record.getMessage() for record in caplog.records)


def test_without_a_limit_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """However many there are."""
    OpenFiles().look(10**9, resource.RLIM_INFINITY)

    assert not caplog.records


def test_where_none_can_be_opened_all_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count them takes one more."""
    assert 0 < open_files(10**9) < 10**9

    def no_room(path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "listdir", no_room)
    assert open_files(1000) == 1000


@pytest.mark.anyio
async def test_it_is_watched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And asyncio no longer tells of each connection that is refused."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(module, "open_files", lambda limit: limit)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(OpenFiles().watch)
        await until(lambda: "1000 files" in caplog.text)
        loop.call_exception_handler({"message": "socket.accept() out of system resource"})
        tasks.cancel_scope.cancel()
    loop.set_exception_handler(before)

    assert len(caplog.records) == 1


def test_other_mishaps_are_told() -> None:
    """As asyncio does."""
    told: list[Any] = []

    class Loop(asyncio.SelectorEventLoop):
        def default_exception_handler(self, context: Any) -> None:
            told.append(context)

    loop = Loop()
    without_refusals(loop, {"message": "socket.accept() out of system resource"})
    without_refusals(loop, other := {"message": "another"})
    loop.close()

    assert told == [other]
