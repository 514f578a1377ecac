"""Processes as the host sees them: a zygote's control socket, a forked process, a zygote's family.

Used by `spawner.py`; the other end of a control socket is `worker/zygote.py`. Every process is known by
a pidfd, so that what is killed is what was meant.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio

from .outputs import OutputReader
from .worker import process as worker_process
from .worker.output import STACK_SIGNAL

# Of what the kernel needs to pass descriptors on: there may be too many of them on their way just now (unix(7)).
SHORTAGES = {errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
AGAIN = 0.02  # seconds until a message is sent again that it had no room for
STACK_WAIT = 0.25  # seconds that a stuck process is given to write down where it is
FRAMES = re.compile(rb"\n.*\n\Z", re.DOTALL)  # the first line is a heading; a last one without its end is not whole
STACK_SIZE = 64 * 1024
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')  # of a stack
LOST = "its zygote ended"
FULL = "other hosts have all the workers that the function may have"

Message = dict[str, Any]

log = logging.getLogger("spaces.process")


class Control:
    """The host's end of a zygote's control socket: one JSON object a message, descriptors beside it."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._again: asyncio.TimerHandle | None = None
        self.closed = False

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send in order, at once where the socket takes it; the descriptors are duplicated by then."""
        if self.closed:
            return
        self._unsent.append((json.dumps(message).encode(), _duplicates(fds)))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Close our end, which ends the zygote and everything below it."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._again is not None:
            self._again.cancel()
        self._sock.close()
        for _, fds in self._unsent:
            _close_all(fds)
        self._unsent.clear()
        self._on_close()

    def _flush(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                socket.send_fds(self._sock, [data], fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError as error:
                if error.errno not in SHORTAGES:
                    self._hear_out()
                    return
                self._loop.remove_writer(self._sock)
                self._again = self._loop.call_later(AGAIN, self._flush)
                return
            self._unsent.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock)

    def _hear_out(self) -> None:
        """The other end is gone: close, after what it still said."""
        while not self.closed and self._readable():
            pass
        self.close()

    def _readable(self) -> bool:
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 262144, 8)
        except BlockingIOError:
            return False
        except OSError:
            data, fds, flags = b"", [], 0
        if flags & socket.MSG_CTRUNC:  # some are as good as none
            _close_all(fds)
            fds = []
        try:
            if data:
                message: Message = json.loads(data)
                self._on_message(dict(message), fds)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            # The handler's import runs where the other end is: what comes from there may be anything.
            log.error("a zygote broke the rules of its control socket: %r", error)
            data = b""
        _close_all(fds)  # those that nobody took
        if not data:
            self.close()
        return bool(data)


def kill_by(fds: Sequence[int]) -> None:
    """SIGKILL to the process whose pidfd is the first of these, if there are any."""
    for pidfd in fds[:1]:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    """All of them, or OSError and none."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 - those made so far must be known
    except OSError:
        _close_all(made)
        raise
    return tuple(made)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class Process:
    """One forked process. Its pid is known a moment after the fork was asked for."""

    def __init__(self, faults: int | None = None) -> None:
        """`faults`: where it says where it is, if there is such a file already."""
        self.pid: int | None = None
        self.code: int | None = None  # exit status, negative for a signal; None: unknown
        self.ended = asyncio.Event()
        self.number = 0  # of the request that it was asked for with
        self.shared = False  # by other hosts, perhaps: not ours to kill
        self.failure: str | None = None  # why it could not be forked
        self.faults = os.memfd_create("faults") if faults is None else faults
        self.output: OutputReader | None = None  # what it prints, if that is not where our processes do
        self._pidfd: int | None = None
        self.doomed = False  # it was killed, or will be once it is there
        self._callbacks: list[Callable[[], None]] = []

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once it is gone; at once when it is gone already."""
        if self.ended.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    def started(self, pid: int, pidfd: int, faults: int | None = None) -> None:
        """It is there; `faults`: where it says where it is, if that is not where it was asked to."""
        self.pid, self._pidfd = pid, pidfd
        if faults is not None:
            os.close(self.faults)
            self.faults = faults
        if self.doomed:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, now or as soon as there is something to kill."""
        self.doomed = True
        self._signal(signal.SIGKILL)

    def finished(self, code: int | None, failure: str | None = None) -> None:
        """It is gone: called once, by whoever learns it first."""
        if self.ended.is_set():
            return
        self.code, self.failure = code, failure
        self.ended.set()
        os.close(self.faults)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        for callback in self._callbacks:
            callback()
        self._callbacks.clear()

    async def stack(self) -> str:
        """Where it is stuck, innermost frame first, as faulthandler writes it; empty when it cannot say."""
        before = 0 if self.ended.is_set() else os.fstat(self.faults).st_size
        text = b""
        self._signal(STACK_SIGNAL)
        with anyio.move_on_after(STACK_WAIT):
            while not self.ended.is_set():
                written = os.pread(self.faults, STACK_SIZE, before)
                if written == text and FRAMES.search(written):  # it comes in pieces
                    break
                text = written
                await anyio.sleep(0.002)
        return text.decode("utf-8", "replace")

    def reason(self) -> str:
        """How it ended, in words."""
        if self.failure is not None:
            return self.failure
        if self.code is None:
            return "its process ended"
        if self.code == worker_process.EXIT_MEMORY:
            return "its memory limit was reached"
        if self.code < 0:
            name = signal.Signals(-self.code).name if -self.code in set(signal.Signals) else str(-self.code)
            return f"its process was killed by {name}"
        return f"its process exited with status {self.code}"

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass


class Family:
    """The processes that one zygote has forked for us, by request until they have a pid, then by pid.

    A function zygote stays known by its request: it may be shared, and loaded several times.
    """

    def __init__(self) -> None:
        self._asked: dict[int, Process] = {}
        self._alive: dict[int, Process] = {}
        self._held: dict[int, Process] = {}
        self._last = 0

    def fork(self, control: Control, op: str, fds: Sequence[int], **more: Any) -> Process:
        """Ask the zygote for a process; the descriptors, and one for its stack dumps, become its own.

        OSError when the host has no descriptors left for it.
        """
        process = Process()
        if control.closed:
            process.finished(None, LOST)
            return process
        self._last += 1
        process.number, process.shared = self._last, op == "load"
        self._asked[self._last] = process
        try:
            control.send({"op": op, "id": self._last, **more}, (*fds, process.faults))
        except OSError as error:
            self._asked.pop(self._last).finished(None, str(error))
            raise
        return process

    def adopt(self, pid: int, pidfd: int, faults: int) -> Process:
        """A process that another host had before."""
        process = self._alive[pid] = Process(faults)
        process.started(pid, pidfd)
        return process

    def part(self, process: Process) -> None:
        """Another host has it: whatever becomes of it, we hear no more of it."""
        if process.pid is not None:
            self._alive.pop(process.pid, None)

    def has(self, process: Process) -> bool:
        """Whether it is one of those that live."""
        return process.pid is not None and self._alive.get(process.pid) is process

    @property
    def has_any(self) -> bool:
        """Whether there is a process, or is to be."""
        return bool(self._asked or self._alive or self._held)

    def release(self, process: Process) -> None:
        """Whatever becomes of this function zygote, we hear no more of it."""
        self._held.pop(process.number, None)
        process.finished(None, "it was let go")

    def handle(self, message: Message, fds: list[int]) -> None:
        """A zygote's `forked`, `fork_failed`, `full` or `exited`."""
        match message["op"]:
            case "forked":
                self._forked(self._asked.pop(message["id"]), int(message["pid"]), fds)
            case "fork_failed":
                failure = f"no process could be forked: {message['message']}"
                self._asked.pop(message["id"]).finished(None, failure)
            case "full":
                self._asked.pop(message["id"]).finished(None, FULL)
            case "exited":
                known, key = (self._held, message["id"]) if "id" in message else (self._alive, message["pid"])
                if ended := known.pop(key, None):
                    ended.finished(int(message["code"]))
            case _:  # the base zygote's "ready"
                pass

    def _forked(self, process: Process, pid: int, fds: list[int]) -> None:
        if process.ended.is_set():  # released meanwhile
            return
        if not fds:  # it ends by itself once its sockets close
            process.finished(None, "the host may open no more files")
            return
        pidfd, *faults = fds
        fds.clear()
        if process.shared:
            self._held[process.number] = process
        else:
            self._alive[pid] = process
        process.started(pid, pidfd, *faults)

    def lost(self) -> None:
        """The zygote is gone, and with it every process it forked."""
        for process in (*self._asked.values(), *self._alive.values(), *self._held.values()):
            process.finished(None, LOST)
        self._asked.clear()
        self._alive.clear()
        self._held.clear()


def place(stack: str, folder: str) -> str:
    """Where a process was, in words, from what faulthandler wrote: the innermost frame of the user's files."""
    frames = list(FRAME.finditer(stack))
    theirs = [frame for frame in frames if frame["file"].startswith(folder)]
    if not frames:
        return "in a place that it could not name"
    frame = (theirs or frames)[0]
    return f"at {frame['file']}:{frame['line']} in {frame['name']}"
