"""What a handler prints and logs: lines with the call they belong to, bounded, never on the channel's bytes.

Installed by `zygote.py` before the handler is imported; the loops attach their channel to it. Until
then, and in children that a handler forks, text goes to file descriptors 1 and 2: a pipe to the host.
"""

from __future__ import annotations

import codecs
import faulthandler
import io
import logging
import signal
import sys
from collections.abc import Callable
from contextvars import ContextVar
from os import register_at_fork, write
from signal import pthread_sigmask
from time import monotonic
from typing import Any

STACK_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2) + 5
LIMIT = 1024 * 1024  # characters a call may print; the rest is dropped, and said so
LEAST = 100  # characters that a line counts as, however short: it costs the host as much
LINE_LIMIT = 16 * 1024  # longer lines are cut into several
BATCH = 32 * 1024  # characters in one LOG frame, at most
TRUNCATED = f"(output truncated: a call may print {LIMIT // 1024} KiB, a line counting as {LEAST} bytes or more)"

REPORT_EVERY = 0.05  # seconds between two reports of a call's progress, unless it is complete

Send = Callable[[int, int, bytes], None]
Report = Callable[[int, float, str], None]

#: The stream of the call that this code runs in; unset in threads that a handler started.
stream_of_call: ContextVar[int] = ContextVar("stream_of_call")


class Sink:
    """Where a process's text goes: by default to a file descriptor, in a worker to the channel."""

    def __init__(self) -> None:
        self.send: Send | None = None
        self.report: Report | None = None  # of progress
        self.reported: dict[int, float] = {}  # stream → when it did last
        self.running = 0  # the call to name where the context does not say: the only one there is
        self.printed: dict[int, int] = {}  # stream → characters so far

    def stream(self) -> int:
        return stream_of_call.get(self.running)

    def is_full(self) -> bool:
        """Whether this call has printed all that it may."""
        return self.printed.get(self.stream(), 0) > LIMIT

    def emit(self, stream: int, level: int, text: str) -> None:
        """Send whole lines as the output of a call; drops what exceeds its limit."""
        send = self.send
        if send is None:
            _write_raw(2 if level > logging.INFO else 1, text)
            return
        printed = self.printed.get(stream, 0)
        if printed > LIMIT:
            return
        self.printed[stream] = printed + max(len(text), LEAST)
        if self.printed[stream] > LIMIT:
            text = f"{text[: LIMIT - printed]}\n{TRUNCATED}"
            self.printed[stream] = LIMIT + 1
        for start in range(0, len(text), BATCH):
            send(stream, level, text[start : start + BATCH].encode("utf-8", "backslashreplace"))


sink = Sink()


class Output(io.TextIOBase):
    """A text stream that gives whole lines to the sink; `sys.stdout` and `sys.stderr` of a handler."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int, level: int) -> None:
        self._fd = fd
        self._level = level
        self._partial: dict[int, str] = {}
        self.name = "<stdout>" if fd == 1 else "<stderr>"
        self.buffer = Buffer(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def reconfigure(self, **_: object) -> None:
        """Nothing: whole lines are given out at once, whatever the buffering."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        stream = sink.stream()
        whole = self._partial.pop(stream, "") + text
        lines, newline, rest = whole.rpartition("\n")
        if newline:
            sink.emit(stream, self._level, lines)
        if len(rest) > LINE_LIMIT:
            sink.emit(stream, self._level, rest)
        elif rest:
            self._partial[stream] = rest
        return len(text)

    def finish(self, stream: int) -> None:
        """Give out a last line that has no newline: the call is over."""
        rest = self._partial.pop(stream, "")
        if rest:
            sink.emit(stream, self._level, rest)


class Buffer(io.RawIOBase):
    """`sys.stdout.buffer`: bytes for the same stream, valid UTF-8 or not."""

    def __init__(self, text: Output) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            if not sink.is_full():  # it would only be decoded to be dropped
                self._text.write(self._decoder.decode(view.cast("B")))
            return view.nbytes

    def close(self) -> None:
        """Nothing: a handler that wraps this in a TextIOWrapper, which closes it, is not to lose its output."""


stdout = Output(1, logging.INFO)
stderr = Output(2, logging.WARNING)


class LogHandler(logging.Handler):
    """The root logger's handler where the function configured none: records become lines with a level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sink.emit(sink.stream(), record.levelno, self.format(record))
        except Exception:
            self.handleError(record)


root = logging.getLogger()
log_handler = LogHandler()
log_handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))


def install() -> None:
    """Take over sys.stdout and sys.stderr."""
    sys.stdout = sys.__stdout__ = stdout  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = stderr  # type: ignore[misc, assignment]


def install_logging() -> None:
    """After the import: collect log records of level INFO and up, unless the function set logging up itself."""
    if root.handlers:
        return
    root.addHandler(log_handler)
    if root.level == logging.WARNING:
        root.setLevel(logging.INFO)


def attach(send: Send, report: Report, close_channel: Callable[[], Any]) -> None:
    """From now on text goes out by `send`; in children that the handler forks, to the pipe again."""
    for stream in (stdout, stderr):
        stream.finish(0)
    sink.send, sink.report = send, report

    def detach() -> None:
        sink.send = sink.report = None
        close_channel()

    register_at_fork(after_in_child=detach)


def report(stream: int, fraction: float, message: str) -> None:
    """Tell the host how far a call is; not what would come too often."""
    now = monotonic()
    if sink.report is None or (now - sink.reported.get(stream, 0.0) < REPORT_EVERY and fraction < 1):
        return
    sink.reported[stream] = now
    sink.report(stream, fraction, message)


def finish(stream: int) -> None:
    """A call is over: give out its last partial lines and forget how much it printed."""
    if stdout._partial:
        stdout.finish(stream)
    if stderr._partial:
        stderr.finish(stream)
    if sink.printed:
        sink.printed.pop(stream, None)
        sink.printed.pop(0, None)
    if sink.reported:
        sink.reported.pop(stream, None)
    if sink.running == stream:
        sink.running = 0


def dump_stack_on_signal(fd: int) -> None:
    """Where this process is stuck is written to `fd` whenever `STACK_SIGNAL` arrives, also from within C code."""
    pthread_sigmask(signal.SIG_UNBLOCK, {STACK_SIGNAL})
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=False, chain=False)


def _write_raw(fd: int, text: str) -> None:
    try:
        write(fd, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OSError:  # a handler closed it: nobody can read this
        pass
