"""What processes write to a pipe, as lines; and what that costs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from runtime import outputs as outputs_module
from runtime.outputs import BURST, LINE_COST, LINE_LIMIT, MUTED, RATE, OutputPipe, OutputReader
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


class Clock:
    """What `monotonic` is for a pipe."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(outputs_module, "monotonic", lambda: self.now)


@pytest.fixture
async def pipe(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Writes to a pipe, and gives what has come out of it."""
    clock = Clock(monkeypatch)
    lines: list[str] = []
    made = OutputPipe(lines.append)

    async def write(data: bytes) -> list[str]:
        before, writer = len(lines), os.dup(made.write_end)
        os.set_blocking(writer, False)
        left = memoryview(data)
        with anyio.fail_after(PATIENCE):
            while left:
                try:
                    left = left[os.write(writer, left) :]
                except BlockingIOError:
                    await anyio.sleep(0)
        os.close(writer)
        await asyncio.sleep(0.01)
        return lines[before:]

    write.clock = clock  # type: ignore[attr-defined]
    write.pipe = made  # type: ignore[attr-defined]
    write.lines = lines  # type: ignore[attr-defined]
    yield write
    try:
        made.close()
    except OSError:
        return
    await asyncio.sleep(0.01)


async def test_lines_come_out_whole(pipe: Any) -> None:
    """However they are written; blank ones are not worth a line in the log."""
    assert await pipe(b"one\ntwo\n\nth") == ["one", "two"]
    assert await pipe(b"ree\nfour") == ["three"]


async def test_bytes_that_are_no_text_are_shown(pipe: Any) -> None:
    """Escaped."""
    assert await pipe(b"\xff\xc3\xa9\0\n") == ["\\xffé\0"]


async def test_long_lines_are_cut(pipe: Any) -> None:
    """They do not wait in memory for their end; nothing of them is lost."""
    text = "x" * (3 * LINE_LIMIT)

    pieces = await pipe(text.encode() + b"\n")

    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= LINE_LIMIT


async def test_the_last_line_needs_no_end(pipe: Any) -> None:
    """It is given out when nobody can write to it any more; then the pipe is closed."""
    files = len(os.listdir("/proc/self/fd"))
    await pipe(b"last")
    pipe.pipe.close()

    await until(lambda: pipe.lines == ["last"])

    assert len(os.listdir("/proc/self/fd")) == files - 2


async def test_too_much_is_dropped(pipe: Any) -> None:
    """Which is said once; the writer is never held up."""
    flood = (b"y" * 99 + b"\n") * (4 * BURST // 100)

    lines = await pipe(flood)

    assert lines[-1] == MUTED
    assert lines.count(MUTED) == 1
    assert abs(len(lines) - BURST // (99 + LINE_COST)) < 3
    assert await pipe(b"more\n") == []


@pytest.mark.parametrize("piece", [b"\n", b"y\n", b"\0" * 100_000, b"\xff" * 99 + b"\n"])
async def test_whatever_the_lines_are_they_have_a_price(pipe: Any, piece: bytes) -> None:
    """Short, blank, endless or binary: the log grows by no more than so much."""
    lines = await pipe(piece * (4 * BURST // len(piece)))

    assert sum(len(line) for line in lines) <= 4 * BURST + len(MUTED)
    assert len(lines) <= BURST // LINE_COST + 2
    assert lines[-1] == MUTED


async def test_after_a_while_there_is_room_again(pipe: Any) -> None:
    """What was dropped is gone, and what comes then is given out from the start of a line."""
    await pipe((b"y" * 99 + b"\n") * (2 * BURST // 100))
    pipe.clock.now += BURST / 4 / RATE
    assert await pipe(b"still too early\n") == []

    pipe.clock.now += BURST / RATE

    assert await pipe(b"again\n") == ["again"]


async def test_a_second_reader_of_the_same_pipe() -> None:
    """As of a worker that has gone over to another host: what it wrote last is read before that host looks no more."""
    ours: list[str] = []
    theirs: list[str] = []
    pipe = OutputPipe(ours.append)
    reader = OutputReader(os.dup(pipe.fileno()), theirs.append)
    os.write(pipe.write_end, b"last words\n")

    reader.close()
    reader.close()

    assert theirs == ["last words"]
    assert reader.fileno() == -1
    os.write(pipe.write_end, b"of another\n")
    with anyio.fail_after(PATIENCE):
        while not ours:
            await anyio.sleep(0)
    assert ours == ["of another"]
    pipe.close()
    with anyio.fail_after(PATIENCE):
        while pipe.fileno() >= 0:
            await anyio.sleep(0)
