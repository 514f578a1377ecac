"""Starts processes: the base zygote, function zygotes in it, workers forked from those.

Called by `pool.py`, works through `process.py`; the other side is `worker/zygote.py`. When the host ends,
however it ends, the control sockets close and every process below ends too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import anyio
import anyio.abc
import msgspec

from .errors import LoadFailed
from .process import Control, Family, Message, Process
from .worker import process as worker_process

WORKER_MAIN = Path(__file__).parent / "worker" / "__main__.py"

#: What a function's process sees of the host's environment; the rest is named in spaces.toml.
PASSED_ON = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP",
    "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
})  # fmt: skip
READ_SIZE = 64 * 1024
LINE_LIMIT = 16 * 1024  # longer lines are cut into several
END_WAIT = 5.0  # seconds that the base zygote has to end everything below it
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


ANSWERS: dict[str, type[Loaded | Failed]] = {"ready": Loaded, "failed": Failed}


def passed_environment(extra: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a function's processes: the ordinary variables of a shell, and `extra`."""
    passed = {k: v for k, v in environ.items() if k in PASSED_ON or k.startswith("LC_")}
    return {**passed, **extra}


class Spawner:
    """The base zygote of one interpreter: started when entered, and again should it die.

    Guarantee: after leaving the scope no process that it started is left.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._tasks = anyio.create_task_group()
        self._control: Control | None = None
        self._base: subprocess.Popen[bytes] | None = None
        self._closing = False

    async def __aenter__(self) -> Spawner:
        worker_process.adopt_orphans()  # what a killed base zygote leaves behind becomes ours to end
        worker_process.raise_open_files()
        await self._tasks.__aenter__()
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        if self._control is not None:
            self._control.close()
        if self._base is not None:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(END_WAIT):
                    await anyio.to_thread.run_sync(self._base.wait, abandon_on_cancel=True)
                await self._end(self._base)
        await self._tasks.__aexit__(None, None, None)

    def fork(self, op: str, fds: Sequence[int]) -> Process:
        """Fork from the base zygote: `load` makes a function zygote, `fresh` a worker with an import of its own."""
        if self._control is None or self._control.closed:
            self._start()
        assert self._control is not None
        return self._family.fork(self._control, op, fds)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        base = self._base = subprocess.Popen(
            [self._python, "-P", str(WORKER_MAIN), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=passed_environment({}),
            start_new_session=True,  # Ctrl-C in a terminal is for the host alone
        )
        theirs.close()
        family = self._family = Family()
        self._control = Control(ours, family.handle, lambda: self._lost(family, base))

    def _lost(self, family: Family, base: subprocess.Popen[bytes]) -> None:
        family.lost()
        if not self._closing:
            self._tasks.start_soon(self._clear_up, base)

    async def _clear_up(self, base: subprocess.Popen[bytes]) -> None:
        """After a base zygote died under us."""
        await self._end(base)
        log.error("the base zygote ended with status %s; the next call starts another", base.returncode)

    async def _end(self, base: subprocess.Popen[bytes]) -> None:
        """Bury a base zygote, and what it left behind."""
        base.kill()
        await anyio.to_thread.run_sync(base.wait)
        while worker_process.kill_children(spare=[self._base.pid] if self._base is not None else []):
            await anyio.sleep(0.01)


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

    `load` before `fork`; after `close` its processes end, those of running calls too.
    """

    def __init__(self, spawner: Spawner, spec: Mapping[str, Any], on_line: Callable[[str], None]) -> None:
        self._spawner = spawner
        self._output = OutputPipe(on_line)
        try:
            self._spec = os.memfd_create("spec")
        except OSError:
            self._output.close()
            raise
        os.write(self._spec, json.dumps(spec).encode())
        self._family = Family()
        self._answered = asyncio.Event()
        self._answer: Loaded | Failed | None = None
        self._process: Process | None = None
        self._control: Control | None = None
        self.closed = False

    async def load(self, timeout: float) -> Loaded:
        """Import the handler; LoadFailed with the reason, the file and the line when that does not work."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = Control(ours, self._on_message, self._on_close)
        with theirs:
            self._process = self._spawner.fork("load", (self._spec, self._output.write_end, theirs.fileno()))
        self._process.on_end(self._answered.set)
        with anyio.move_on_after(timeout):
            await self._answered.wait()
        if not self._answered.is_set():
            stack = await self._process.stack()
            where = stack.partition("\n")[2].partition("\n")[0].strip()
            raise LoadFailed(
                f"the import did not finish within {timeout:g} s" + (f"; it was at {where}" if where else ""),
                details={"traceback": stack},
            )
        if isinstance(self._answer, Loaded):
            return self._answer
        raise await self._failure()

    def fork(self, sockets: Sequence[socket.socket], *, fresh: bool) -> Process:
        """A worker on its sockets: forked from the imported handler, or (`fresh`) with an import of its own."""
        ends = [sock.fileno() for sock in sockets]
        if fresh:
            return self._spawner.fork("fresh", (self._spec, self._output.write_end, *ends))
        assert self._control is not None
        return self._family.fork(self._control, "fork", ends)

    def close(self) -> None:
        """End the zygote and what it forked. Once."""
        if self.closed:
            return
        self.closed = True
        if self._process is not None:
            self._process.kill()
        if self._control is not None:
            self._control.close()
        self._output.close()
        os.close(self._spec)

    def end_import(self) -> None:
        """The imported process is of no more use (its function's workers start fresh): end it alone."""
        if self._control is not None:
            self._control.close()

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._control is not None and not self._control.closed

    async def _failure(self) -> LoadFailed:
        assert self._process is not None
        if isinstance(self._answer, Failed):
            where = {"file": self._answer.file, "line": self._answer.line} if self._answer.file else {}
            return LoadFailed(self._answer.message, details={**where, "traceback": self._answer.traceback})
        with anyio.move_on_after(1):  # it closed its socket without a word
            await self._process.ended.wait()
        return LoadFailed(f"importing it ended the process: {self._process.reason()}")

    def _on_message(self, message: Message, fds: list[int]) -> None:
        kind = ANSWERS.get(message["op"])
        if kind is None:
            self._family.handle(message, fds)
        elif self._answer is None:
            self._answer = msgspec.convert(message, kind)
            self._answered.set()

    def _on_close(self) -> None:
        self._answered.set()
        self._family.lost()
        if self._process is not None:
            self._process.kill()  # it ends by itself, unless its import has seen to that
