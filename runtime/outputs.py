"""What a function's processes write to file descriptors 1 and 2, line by line: one pipe for each host's generation.

Used by `spawner.py`. A worker that goes over to another host goes on writing to the pipe that it began with, so that
host reads it, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic

READ_SIZE = 64 * 1024
LAST_READS = 16  # others may be writing to the same pipe all the time
LINE_LIMIT = 16 * 1024  # longer lines are cut into several
LINE_COST = 256  # bytes that a line counts as more than it has
BURST = 1024 * 1024  # bytes at once
RATE = 64 * 1024  # bytes a second, for ever
MUTED = "(output dropped from here on: too much was written to file descriptors 1 and 2)"


class OutputReader:
    """One end to read from. It is always read, so that nobody waits for it.

    What comes faster than the log should grow is dropped.
    """

    def __init__(self, read_end: int, on_line: Callable[[str], None]) -> None:
        self._read_end = read_end
        os.set_blocking(read_end, False)
        self._on_line = on_line
        self._partial = b""
        self._allowance: float = BURST
        self._refilled_at = monotonic()
        self._muted = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(read_end, self._readable)

    def fileno(self) -> int:
        """The end; -1 when nobody writes there any more."""
        return -1 if self._closed else self._read_end

    def close(self) -> None:
        """Take in what has been written by now, if that is not too much, and look no more."""
        for _ in range(LAST_READS):
            if self._closed or not self._readable():
                break
        self._finish()

    def _readable(self) -> bool:
        try:
            data = os.read(self._read_end, READ_SIZE)
        except BlockingIOError:
            return False
        self._refill()
        if not self._muted:
            *lines, self._partial = (self._partial + data).split(b"\n")
            if not data or len(self._partial) > LINE_LIMIT:
                lines, self._partial = [*lines, self._partial], b""
            for line in lines:
                self._give_out(line)
        if not data:
            self._finish()
        return bool(data)

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)

    def _refill(self) -> None:
        now = monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._refilled_at) * RATE)
        self._refilled_at = now
        self._muted = self._muted and self._allowance < BURST / 2

    def _give_out(self, line: bytes) -> None:
        if self._muted:
            return
        self._allowance -= len(line) + LINE_COST
        for start in range(0, len(line), LINE_LIMIT):
            self._on_line(line[start : start + LINE_LIMIT].decode("utf-8", "backslashreplace"))
        if self._allowance < 0:
            self._muted, self._partial = True, b""
            self._on_line(MUTED)


class OutputPipe(OutputReader):
    """A pipe, with both ends: the one to write to is for processes. It is read until none of them has that any more."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        read_end, self.write_end = os.pipe()
        super().__init__(read_end, on_line)

    def close(self) -> None:
        """Let go of our copy of the write end; the rest ends when every process has let go of theirs."""
        os.close(self.write_end)
