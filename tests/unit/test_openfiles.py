"""What is said when no more files can be opened, and how often."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any

import pytest

from runtime.openfiles import OpenFiles, without_refusals


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([100, 900], 0),
        ([1000, 998, 1000, 950, 1000], 1),
        ([1000, 800, 1000], 2),
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
