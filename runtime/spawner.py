"""Starts processes: function zygotes in the base zygotes (`bases.py`), workers forked from those.

Called by `generation.py`, works through `process.py`; the other side is `worker/base_zygote.py` and
`worker/zygote.py`. When the host ends, however it ends, its control sockets close and what was forked for it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from time import monotonic
from typing import Any, Literal

import anyio
import msgspec

from .bases import Bases
from .errors import LoadFailed
from .process import Control, Family, Message, Process
from .worker import process as worker_process

READ_SIZE = 64 * 1024
LINE_LIMIT = 16 * 1024  # longer lines are cut into several
ATTEMPTS = 3  # to load by a base zygote that does not die meanwhile
REASON_WAIT = 1.0  # seconds to wait for how an import's process ended once its socket has closed
LINE_COST = 256  # bytes that a line counts as more than it has
BURST = 1024 * 1024  # bytes at once
RATE = 64 * 1024  # bytes a second, for ever
MUTED = "(output dropped from here on: too much was written to file descriptors 1 and 2)"

log = logging.getLogger("spaces.spawner")


class Loaded(msgspec.Struct, frozen=True):
    """What a function zygote said of the handler it imported."""

    kind: Literal["sync", "async", "generator", "async_generator"]
    takes: tuple[str, ...]
    extras: Mapping[str, str]
    import_seconds: float
    unsafe: str | None


class Failed(msgspec.Struct, frozen=True):
    """Why a function zygote could not import its handler."""

    message: str
    file: str | None
    line: int | None
    traceback: str


Attach = Callable[[socket.socket, tuple[str, ...]], None]
NEWS = ("room", "wanted", "given")  # a place for one more worker; another host waits for one; here is one of another's
LOST: Message = {"op": "lost"}  # the zygote is gone, and whatever was wanted of it
ANSWERS: dict[str, type[Loaded | Failed]] = {"ready": Loaded, "failed": Failed}


class Line:
    """A host's way to one base zygote, and what that has forked for it."""

    def __init__(self, sock: socket.socket) -> None:
        self.family = Family()
        self.zygotes: set[Zygote] = set()  # with workers forked from the base zygote
        self.control = Control(sock, self._heard, self._lost)

    def _heard(self, message: Message, fds: list[int]) -> None:
        if message["op"] not in NEWS:
            self.family.handle(message, fds)
            return
        told = [zygote for zygote in self.zygotes if zygote.key == message["key"]]
        if message["op"] == "given":
            message, told = given(self.family, message, fds), told[-1:]  # it is one worker
        for zygote in told:
            zygote.on_news(message)
        if told:
            return
        if message["op"] == "room":  # whoever wanted it is no more
            self.control.send({"op": "pass", "key": message["key"]})
        for fd in message.get("sockets", ()):  # which ends it
            os.close(fd)

    def _lost(self) -> None:
        self.family.lost()
        for zygote in tuple(self.zygotes):
            zygote.on_news(LOST)


def given(family: Family, message: Message, fds: list[int]) -> Message:
    """The news of a worker that was another host's, with `process` and `sockets`; where they got lost, of a place."""
    if len(fds) < 3:  # we may open no more files: it ends
        return {**message, "op": "room"}
    pidfd, *sockets, faults = fds
    fds.clear()
    return {**message, "process": family.adopt(message["pid"], pidfd, faults), "sockets": sockets}


class Spawner:
    """One host's part of the base zygotes: attached to each when it is first needed, and to another should it die.

    `attach` gives a base zygote the end of a socket pair that is to be its; without one, the base zygotes are the
    spawner's own. Guarantee: after leaving the scope no process that was started for it is left.
    """

    def __init__(self, attach: Attach | None = None) -> None:
        self._bases = Bases() if attach is None else None
        self._attach = attach or self._own_bases.attach
        self._lines: dict[tuple[str, ...], Line] = {}

    @property
    def _own_bases(self) -> Bases:
        assert self._bases is not None
        return self._bases

    async def __aenter__(self) -> Spawner:
        worker_process.raise_open_files()
        if self._bases is not None:
            await self._bases.__aenter__()
        self.line(())
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.control.close()
        if self._bases is not None:
            await self._bases.__aexit__()

    @property
    def shared(self) -> bool:
        """Whether other hosts fork from the same zygotes."""
        return self._bases is None

    @property
    def lines(self) -> Iterable[Line]:
        """Those there are."""
        return self._lines.values()

    def tidy(self, used: Iterable[tuple[str, ...]]) -> None:
        """Let go of the base zygotes that preload what no function asks for now, and no process needs."""
        idle = [preload for preload, line in self._lines.items() if preload and not line.family.has_any]
        kept = set(used) if idle else set()
        for preload in idle:
            if preload not in kept:
                self._lines.pop(preload).control.close()

    def line(self, preload: tuple[str, ...]) -> Line:
        """The way to the base zygote with these modules; OSError when there can be none."""
        line = self._lines.get(preload)
        if line is None or line.control.closed:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self._attach(theirs, preload)
                except OSError:
                    ours.close()
                    raise
            line = self._lines[preload] = Line(ours)
        return line


class OutputPipe:
    """What a function's processes write to file descriptors 1 and 2, line by line.

    It is always read, so that nobody waits for it; what comes faster than the log should grow is dropped.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._on_line = on_line
        self._partial = b""
        self._allowance: float = BURST
        self._refilled_at = monotonic()
        self._muted = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_end, self._readable)

    def close(self) -> None:
        """Let go of our copy of the write end; the rest ends when every process has let go of theirs."""
        os.close(self.write_end)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_end, READ_SIZE)
        except BlockingIOError:
            return
        self._refill()
        if not self._muted:
            *lines, self._partial = (self._partial + data).split(b"\n")
            if not data or len(self._partial) > LINE_LIMIT:
                lines, self._partial = [*lines, self._partial], b""
            for line in lines:
                self._give_out(line)
        if not data:
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


class Zygote:
    """One generation of one function, imported once: forks its workers.

    `load` before `fork`; after `close` its workers end, those of running calls too. The process itself may be
    shared with other hosts, and ends with the last that has loaded it.
    """

    def __init__(self, spawner: Spawner, spec: Mapping[str, Any], on_line: Callable[[str], None]) -> None:
        self._spawner = spawner
        self._preload = tuple(spec.get("preload", ()))
        self._output = OutputPipe(on_line)
        try:
            self._spec = os.memfd_create("spec")
        except OSError:
            self._output.close()
            raise
        told = json.dumps(spec, sort_keys=True).encode()
        os.write(self._spec, told)
        self.key = sha256(told).hexdigest()  # hosts that load the same share it
        self.on_news: Callable[[Message], None] = lambda message: None  # a host's `Pool` sets it
        self._family = Family()
        self._answered = asyncio.Event()
        self._answer: Loaded | Failed | None = None
        self._line: Line | None = None
        self._process: Process | None = None
        self._control: Control | None = None
        self.closed = False

    async def load(self, timeout: float) -> Loaded:
        """Import the handler; LoadFailed with the reason, the file and the line when that does not work."""
        with anyio.move_on_after(timeout) as waiting:
            for _ in range(len(self._preload) + ATTEMPTS):
                self._ask()
                await self._answered.wait()
                if self._answer is None:
                    await self._end_of_import()
                if self._answer is not None or self._line is None or not self._line.control.closed:
                    break
        assert self._process is not None
        if waiting.cancelled_caught and self._answer is None:
            stack = await self._process.stack()
            where = stack.partition("\n")[2].partition("\n")[0].strip()
            raise LoadFailed(
                f"the import did not finish within {timeout:g} s" + (f"; it was at {where}" if where else ""),
                details={"traceback": stack},
            )
        if isinstance(self._answer, Loaded):
            return self._answer
        if isinstance(self._answer, Failed):
            found = {"file": self._answer.file, "line": self._answer.line} if self._answer.file else {}
            raise LoadFailed(self._answer.message, details={**found, "traceback": self._answer.traceback})
        raise LoadFailed(f"importing it ended the process: {self._process.reason()}")

    def fork(
        self, sockets: Sequence[socket.socket], *, fresh: bool, most: int, wanted: bool, ahead: bool = False
    ) -> Process:
        """A worker on its sockets: forked from the imported handler, or (`fresh`) with an import of its own.

        It ends before it began, as FULL, where the hosts together have `most` already; if it is `wanted`, there
        is news of the first place that is free. One that is started `ahead` rehearses first.
        """
        ends = [sock.fileno() for sock in sockets]
        if fresh:
            line = self._spawner.line(self._preload)
            line.zygotes.add(self)
            fds = self._spec, self._output.write_end, *ends
            return line.family.fork(line.control, "fresh", fds, key=self.key, most=most, wanted=wanted)
        assert self._control is not None
        fds = self._output.write_end, *ends
        return self._family.fork(self._control, "fork", fds, most=most, wanted=wanted, ahead=ahead)

    def expect(self) -> None:
        """Where it is shared: more workers may be wanted, so it is to fork one ahead, for whichever host asks."""
        if self._control is not None:
            self._control.send({"op": "expect"})

    def pass_on(self, *, fresh: bool) -> None:
        """The place that was offered is somebody else's."""
        for control, _ in self._ways(fresh=fresh):
            control.send({"op": "pass", "key": self.key})

    def give(self, process: Process, sockets: Sequence[socket.socket], *, last_stream: int, fresh: bool) -> bool:
        """Have another host that waits for a worker given this one, as it is. OSError when there are no descriptors."""
        for control, family in self._ways(fresh=fresh):
            if family.has(process):
                told = {"op": "give", "key": self.key, "pid": process.pid, "last_stream": last_stream}
                control.send(told, [*(sock.fileno() for sock in sockets), process.faults])
                family.part(process)
                return True
        return False

    def close(self, *, stale: bool = False) -> None:
        """Let go of the process and end what it forked for us. Once. `stale`: nobody is to be given it any more."""
        if self.closed:
            return
        self.closed = True
        if stale:
            self._tell_base("stale")
        self.end_import()
        for line in self._spawner.lines:
            line.zygotes.discard(self)
        self._output.close()
        os.close(self._spec)

    def end_import(self) -> None:
        """The imported process is of no more use (its function's workers start fresh): let go of it alone."""
        self._tell_base("release")
        if self._control is not None:
            self._control.close()
        if self._line is not None and self._process is not None:
            self._line.family.release(self._process)

    @property
    def shared(self) -> bool:
        """Whether other hosts fork from it too."""
        return self._spawner.shared

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._control is not None and not self._control.closed

    def _ways(self, *, fresh: bool) -> list[tuple[Control, Family]]:
        """To those that fork its workers, and what they have forked."""
        if fresh:
            return [(line.control, line.family) for line in self._spawner.lines if self in line.zygotes]
        return [(self._control, self._family)] if self._control is not None else []

    def _ask(self) -> None:
        if self._control is not None:
            self._control.close()  # before: what comes of an earlier attempt is no answer to this one
        self._answered.clear()
        self._line = self._spawner.line(self._preload)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = Control(ours, self._on_message, self._on_close)
        with theirs:
            fds = self._spec, self._output.write_end, theirs.fileno()
            self._process = self._line.family.fork(self._line.control, "load", fds, key=self.key)
        self._process.on_end(self._answered.set)

    def _tell_base(self, op: str) -> None:
        if self._line is not None and self._process is not None:
            self._line.control.send({"op": op, "id": self._process.number})

    async def _end_of_import(self) -> None:
        """It closed its socket without a word: it is about to end, if it can."""
        assert self._process is not None
        with anyio.move_on_after(REASON_WAIT):
            await self._process.ended.wait()

    def _on_message(self, message: Message, fds: list[int]) -> None:
        kind = ANSWERS.get(message["op"])
        if kind is not None and self._answer is None:
            self._answer = msgspec.convert(message, kind)
            self._answered.set()
        elif message["op"] in NEWS:
            self.on_news(given(self._family, message, fds) if message["op"] == "given" else message)
        elif kind is None:
            self._family.handle(message, fds)

    def _on_close(self) -> None:
        self._answered.set()
        self._family.lost()
        if not self.closed:
            self._tell_base("stale")  # it ends by itself, unless its import has seen to that
            self.on_news(LOST)
