"""Captures: bounded, in the background, and nobody's trouble when they fail."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from runtime import captures
from runtime.calls import function_id
from runtime.captures import Captures
from runtime.config import FunctionSettings
from runtime.errors import RecordsError
from runtime.lessons import Captured, Draft
from runtime.registry import Function

pytestmark = pytest.mark.anyio

WORK = Function(
    id=function_id("demo", "work"), space="demo", name="work", path=Path("/f.py"), line=1, kind="sync", takes=(),
    digest="", settings=FunctionSettings(),
)  # fmt: skip


class Recorder:
    """As much of Lessons as is asked for."""

    def __init__(self) -> None:
        self.batches: list[list[Captured]] = []
        self.failure: Exception | None = None
        self.news = anyio.Event()

    async def capture(self, batch: Sequence[Captured], most: int, most_bytes: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.batches.append(list(batch))
        self.news.set()


def one(size: int = 1) -> Captured:
    return Captured(WORK, Draft("sample_1", "x" * size))


async def test_what_is_put_is_recorded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "PAUSE", 0.0)
    recorder = Recorder()
    found = Captures(recorder)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        assert found.put(one())
        with anyio.fail_after(20):
            await recorder.news.wait()
        tasks.cancel_scope.cancel()
    assert recorder.batches == [[one()]]


async def test_a_batch_that_is_full_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "PAUSE", 1000.0)
    recorder = Recorder()
    found = Captures(recorder)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        for _ in range(captures.BATCH):
            found.put(one())
        with anyio.fail_after(20):
            await recorder.news.wait()
        tasks.cancel_scope.cancel()
    assert list(map(len, recorder.batches)) == [captures.BATCH]


async def test_what_waits_is_recorded_at_the_end() -> None:
    recorder = Recorder()
    found = Captures(recorder)  # type: ignore[arg-type]
    for _ in range(captures.BATCH + 1):
        found.put(one())
    await found.flush()

    assert list(map(len, recorder.batches)) == [captures.BATCH, 1]


async def test_what_does_not_fit_is_dropped_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    found = Captures(Recorder())  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "spaces.nyckel"):
        assert found.put(one(captures.MOST_WAITING_BYTES))
        assert not found.put(one())
        assert not found.put(one())
    await found.flush()

    assert found.dropped == 2
    assert len(caplog.records) == 1
    assert found.put(one())


async def test_the_number_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "MOST_WAITING", 2)
    found = Captures(Recorder())  # type: ignore[arg-type]
    assert [found.put(one()) for _ in range(3)] == [True, True, False]


async def test_a_record_that_cannot_be_written_is_no_reason_to_end(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.failure = RecordsError("the disk is full")
    found = Captures(recorder)  # type: ignore[arg-type]
    found.put(one())
    await found.flush()
    recorder.failure = None
    found.put(one())
    await found.flush()

    assert found.dropped == 1
    assert "the disk is full" in caplog.text
    assert len(recorder.batches) == 1


async def test_all_that_it_takes_counts() -> None:
    """A function may answer with thousands of labels of any length."""
    found = Captures(Recorder())  # type: ignore[arg-type]
    names = tuple(f"{number:0500}" for number in range(10_000))
    large = Captured(WORK, None, names=names)
    count = 0
    while found.put(large):
        count += 1
    assert 0 < count <= captures.MOST_WAITING_BYTES // (500 * 10_000)


async def test_after_a_failure_the_rest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try may take as long as a lock is waited for: who flushes waits for one, and so does the end of the host."""
    monkeypatch.setattr(captures, "PAUSE", 0.0)
    recorder = Recorder()
    recorder.failure = RecordsError("locked")
    found = Captures(recorder)  # type: ignore[arg-type]
    for _ in range(3 * captures.BATCH):
        found.put(one())
    await found.flush()
    assert found.dropped == captures.BATCH

    recorder.failure = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        with anyio.fail_after(20):
            await recorder.news.wait()
        tasks.cancel_scope.cancel()
    assert list(map(len, recorder.batches)) == [captures.BATCH, captures.BATCH]

    recorder.failure = RecordsError("locked")
    for _ in range(3 * captures.BATCH):
        found.put(one())
    await found.close()
    assert found.dropped == 4 * captures.BATCH
