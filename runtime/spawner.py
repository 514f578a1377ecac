"""Starts processes: function zygotes in the base zygotes (`bases.py`), workers forked from those.

Called by `generation.py`, works through `process.py`; the other side is `worker/base_zygote.py` and
`worker/zygote.py`. When the host ends, however it ends, its control sockets close and what was forked for it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal

import anyio
import msgspec

from .bases import Bases
from .errors import LoadFailed
from .outputs import OutputPipe, OutputReader
from .process import Control, Family, Message, Process, kill_by
from .worker import process as worker_process

ATTEMPTS = 3  # to load by a base zygote that does not die meanwhile
REASON_WAIT = 1.0  # seconds to wait for how an import's process ended once its socket has closed

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
        self.zygotes: dict[Zygote, None] = {}  # with workers forked from the base zygote; the newest last
        self.control = Control(sock, self._heard, self._lost)

    def _heard(self, message: Message, fds: list[int]) -> None:
        if message["op"] not in NEWS:
            self.family.handle(message, fds)
            return
        told = [zygote for zygote in self.zygotes if zygote.key == message["key"]]
        if message["op"] == "given" and told:
            told[-1].take(self.family, message, fds)
        elif message["op"] == "given":  # whoever wanted it is no more
            kill_by(fds)
        elif not told and message["op"] == "room":
            self.control.send({"op": "pass", "key": message["key"]})
        for zygote in told if message["op"] != "given" else ():
            zygote.on_news(message)

    def _lost(self) -> None:
        self.family.lost()
        for zygote in tuple(self.zygotes):
            zygote.on_news(LOST)


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


class Zygote:
    """One generation of one function, imported once: forks its workers.

    `load` before `fork`; after `close` its workers end, those of running calls too. The process itself may be
    shared with other hosts, and ends with the last that has loaded it.
    """

    def __init__(self, spawner: Spawner, spec: Mapping[str, Any], on_line: Callable[[str], None]) -> None:
        self._spawner = spawner
        self._preload = tuple(spec.get("preload", ()))
        self._output = OutputPipe(on_line)
        self._on_line = on_line
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
        """Import the handler; LoadFailed with the reason, the file and the line when that does not work.

        It is `retryable` where the import was not what failed: nothing could be forked, or it was killed or stopped.
        """
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
            state = f"it was at {where}" if where else "its process does not respond"
            raise LoadFailed(
                f"the import did not finish within {timeout:g} s; {state}",
                details={"traceback": stack},
                retryable=not stack,  # what runs can say where: it was stopped, or not even forked
            )
        if isinstance(self._answer, Loaded):
            return self._answer
        if isinstance(self._answer, Failed):
            found = {"file": self._answer.file, "line": self._answer.line} if self._answer.file else {}
            raise LoadFailed(self._answer.message, details={**found, "traceback": self._answer.traceback})
        killed = self._process.failure is not None or self._process.code == -signal.SIGKILL
        raise LoadFailed(f"importing it ended the process: {self._process.reason()}", retryable=killed)

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
            line.zygotes[self] = None
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
                output = process.output or self._output
                control.send(told, [*(sock.fileno() for sock in sockets), output.fileno(), process.faults])
                family.part(process)
                return True
        return False

    def take(self, family: Family, message: Message, fds: list[int]) -> None:
        """Tell of a worker that was another host's, with its `process` and `sockets`; of a place, if they got lost."""
        if not fds:  # we may open no more files: it ends
            self.on_news({**message, "op": "room"})
            return
        pidfd, *sockets, output, faults = fds
        fds.clear()
        process = family.adopt(message["pid"], pidfd, faults)
        process.output = OutputReader(output, self._on_line)
        process.on_end(process.output.close)
        self.on_news({**message, "process": process, "sockets": sockets})

    def close(self, *, stale: bool = False) -> None:
        """Let go of the process and end what it forked for us. Once. `stale`: nobody is to be given it any more."""
        if self.closed:
            return
        self.closed = True
        if stale:
            self._tell_base("stale")
        self.end_import()
        for line in self._spawner.lines:
            line.zygotes.pop(self, None)
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
            if message["op"] == "given":
                self.take(self._family, message, fds)
            else:
                self.on_news(message)
        elif kind is None:
            self._family.handle(message, fds)

    def _on_close(self) -> None:
        self._answered.set()
        self._family.lost()
        if not self.closed:
            self._tell_base("stale")  # it ends by itself, unless its import has seen to that
            self.on_news(LOST)
