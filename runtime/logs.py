"""How the host's log is written: readable on a console in dev, one JSON object a line in production.

Set up by `cli.py` and `server.py`. A thread of its own writes, so that a slow terminal or a full pipe
never holds up a call; lines that do not fit its queue are dropped and counted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import TextIO

import msgspec

LAST_WORDS = 5.0  # seconds that whoever reads the log has at the end to take what is left
QUEUE = 10_000  # lines that wait to be written
FIELDS = ("function", "call_id", "method", "path", "status", "seconds", "stack")
COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
QUIET = {
    "asyncio": logging.WARNING,
    "httpcore2": logging.WARNING,  # what a receiver of callbacks answers may hold a secret
    "httpx2": logging.WARNING,
    "hypercorn.error": logging.WARNING,
    "quic": logging.WARNING,
    "uvicorn.error": logging.CRITICAL,  # what it says of answers that were cut, `app.py` has said; the rest is noise
    "watchfiles.main": logging.WARNING,
}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields that the record has."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {field: getattr(record, field) for field in FIELDS if getattr(record, field, None) is not None}
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:  # a file's name, for one, need not be text
            sound = {key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
                     for key, value in line.items()}  # fmt: skip
            return msgspec.json.encode(sound, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """A line to read: time, message, and below it a traceback where there is one. Coloured where told."""

    def __init__(self, colour: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = self._paint("2", self.formatTime(record, self.datefmt))
        text = record.getMessage()
        if record.name == "spaces.output":
            prefix = self._paint("36", f"{getattr(record, 'function', '')} |")
            return "\n".join(f"{clock} {prefix} {line}" for line in text.splitlines() or [""])
        status = getattr(record, "status", None)
        if status is not None:
            text = self._paint("32" if status < 400 else "33" if status < 500 else "31", text)
        elif record.levelno in COLOURS:
            text = self._paint(COLOURS[record.levelno], text)
        stack = getattr(record, "stack", None) or (self.formatException(record.exc_info) if record.exc_info else None)
        return f"{clock} {text}" + (f"\n{str(stack).rstrip()}" if stack else "")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


class DroppingHandler(QueueHandler):
    """Queues records for the writing thread; counts those that do not fit."""

    def __init__(self, queue: Queue[logging.LogRecord]) -> None:
        super().__init__(queue)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # the writer is in this process: nothing needs to be made picklable

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except Full:
            self.dropped += 1


class SharingHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream to which other processes write too: a line at a time, whoever's it is.

    A pipe takes a long line in pieces, and what another process writes meanwhile would come between them.
    """

    def __init__(self, stream: TextIO, lock: int) -> None:
        super().__init__(stream)
        self._lock = os.open(f"/proc/self/fd/{lock}", os.O_RDWR | os.O_CLOEXEC)  # a lock is an opening's

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, when it is our turn."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            super().emit(record)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)
        super().close()


class PatientListener(QueueListener):
    """Writes what the queue holds; at its end it waits for room to say so, and then for the writing, not for ever."""

    def enqueue_sentinel(self) -> None:
        with suppress(Full):
            self.queue.put(self._sentinel, timeout=LAST_WORDS)  # type: ignore[attr-defined]

    def stop(self) -> None:
        thread = self._thread
        if thread is not None:
            self.enqueue_sentinel()
            thread.join(LAST_WORDS)
            self._thread = None


def is_coloured(stream: TextIO) -> bool:
    """Whether what is written there may have colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def logging_to(
    stream: TextIO = sys.stderr,
    *,
    console: bool,
    level: str = "INFO",
    output: str | None = None,
    lock: int | None = None,
) -> Iterator[None]:
    """Log to `stream` while in this scope; what is queued at its end is still written.

    `level` is for the host's own lines, `output` (the same, unless given) for those of handlers. `lock`: an open file
    that all processes have which log to this stream.
    """
    writer = logging.StreamHandler(stream) if lock is None else SharingHandler(stream, lock)
    formatter = ConsoleFormatter(is_coloured(stream)) if console else JsonFormatter()
    if not console:
        formatter.converter = time.gmtime
    writer.setFormatter(formatter)
    queue: Queue[logging.LogRecord] = Queue(QUEUE)
    handler = DroppingHandler(queue)
    listener = PatientListener(queue, writer)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("spaces.output").setLevel(output or level)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(least)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        listener.stop()
        if handler.dropped:
            writer.handle(_dropped(handler.dropped))
        writer.close()


def _dropped(count: int) -> logging.LogRecord:
    message = f"{count} log lines were dropped: they came faster than they could be written"
    return logging.LogRecord("spaces.logs", logging.WARNING, __file__, 0, message, None, None)
