"""The base zygotes of one interpreter: a Python for each distinct `preload`, started when it is first needed.

Entered by `spawner.py` where one process is the host, by `supervisor.py` where several are, to which they are
common. Works through `process.py`; the other side is `worker/base_zygote.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import anyio
import anyio.abc

from .process import Control, Message
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
END_WAIT = 5.0  # seconds that the base zygotes have to end everything below them
PRELOAD_WAIT = 60.0  # seconds that one preloaded module may take to import

log = logging.getLogger("spaces.spawner")


def passed_environment(extra: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a function's processes: the ordinary variables of a shell, and `extra`."""
    passed = {k: v for k, v in environ.items() if k in PASSED_ON or k.startswith("LC_")}
    return {**passed, **extra}


class Base:
    """One base zygote, with the names that it imports before anything else; what it says of them is logged."""

    def __init__(
        self, python: str, preload: tuple[str, ...], left_out: dict[str, bool], on_lost: Callable[[Base], None]
    ) -> None:
        self._preload = preload
        self._left_out = left_out  # by those before it, too; True: it has ended one, or must not be forked
        self._on_lost = on_lost
        self._importing: str | None = None
        self._limit: asyncio.TimerHandle | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        names = [name for name in preload if not left_out.get(name)]
        with theirs:
            self.process = subprocess.Popen(
                [python, "-P", str(WORKER_MAIN), str(theirs.fileno()), *names],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=passed_environment({}),
                start_new_session=True,  # Ctrl-C in a terminal is for the host alone
            )
        self.door = Control(ours, self._heard, self._lost)

    def _heard(self, message: Message, _: list[int]) -> None:
        if self._limit is not None:
            self._limit.cancel()
        match message["op"]:
            case "importing":
                self._importing = str(message["name"])
                self._limit = asyncio.get_running_loop().call_later(PRELOAD_WAIT, self._too_long)
            case "left_out":
                self._leave_out(str(message["name"]), str(message["why"]), forever=bool(message["unsafe"]))
            case _:  # "ready"
                self._importing = None

    def _too_long(self) -> None:
        self._leave_out(str(self._importing), f"its import did not end within {PRELOAD_WAIT:g} s")
        self._importing = None
        self.process.kill()

    def _lost(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        if self._importing is not None:
            self._leave_out(self._importing, "its import ended the process")
        self._on_lost(self)

    def _leave_out(self, name: str, why: str, *, forever: bool = True) -> None:
        if name not in self._left_out:
            log.error("preload = [%s]: functions do without %s: %s", ", ".join(self._preload), name, why)
        self._left_out[name] = forever or self._left_out.get(name, False)


class Bases:
    """The base zygotes: within `async with` there is one for each preload list that was asked for.

    Guarantee: after leaving the scope no process that they started is left. `others` tells the pids of those
    children of this process that are somebody else's: every other child is taken for one that a base left behind.
    """

    def __init__(self, python: str = sys.executable, *, others: Callable[[], Iterable[int]] = tuple) -> None:
        self._python = python
        self._others = others
        self._tasks = anyio.create_task_group()
        self._bases: dict[tuple[str, ...], Base] = {}
        self._left_out: dict[tuple[str, ...], dict[str, bool]] = {}
        self._dead: list[Base] = []  # and not yet buried
        self._closing = False

    async def __aenter__(self) -> Self:
        worker_process.adopt_orphans()  # what a killed base zygote leaves behind becomes ours to end
        worker_process.raise_open_files()
        await self._tasks.__aenter__()
        self._base(())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        bases = list(self._bases.values())
        with anyio.CancelScope(shield=True):
            for base in bases:
                base.door.close()
            with anyio.move_on_after(END_WAIT):
                for base in bases:
                    await anyio.to_thread.run_sync(base.process.wait, abandon_on_cancel=True)
            for base in bases:
                await self._end(base)
        await self._tasks.__aexit__(None, None, None)

    def attach(self, sock: socket.socket, preload: tuple[str, ...]) -> None:
        """Give a base zygote one more host: the other end of `sock`, of which it gets a duplicate.

        OSError when there are no descriptors or processes left for that.
        """
        self._base(preload).door.send({"op": "attach"}, (sock.fileno(),))
        if preload not in self._bases:  # it had died, which nobody knew
            self._base(preload).door.send({"op": "attach"}, (sock.fileno(),))

    @property
    def pids(self) -> list[int]:
        """Of the base zygotes that live."""
        return [base.process.pid for base in self._bases.values()]

    def _base(self, preload: tuple[str, ...]) -> Base:
        if preload not in self._bases:
            left_out = self._left_out.setdefault(preload, {})
            self._bases[preload] = Base(self._python, preload, left_out, lambda base: self._lost(preload, base))
        return self._bases[preload]

    def _lost(self, preload: tuple[str, ...], base: Base) -> None:
        if self._closing:
            return
        if self._bases.get(preload) is base:
            del self._bases[preload]
        self._dead.append(base)
        self._tasks.start_soon(self._clear_up, base)

    async def _clear_up(self, base: Base) -> None:
        """After a base zygote died under us."""
        await self._end(base)
        self._dead.remove(base)
        if base.process.returncode:  # one whose modules nobody preloads any more ends by itself
            log.error("the base zygote ended with status %s; the next call starts another", base.process.returncode)

    async def _end(self, base: Base) -> None:
        """Bury a base zygote, and what it left behind."""
        base.process.kill()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(base.process.wait)
            while worker_process.kill_children(spare=self._spared()):
                await anyio.sleep(0.01)

    def _spared(self) -> list[int]:
        """The children of this process that are no orphans."""
        known = (*self._bases.values(), *self._dead)
        return [*self._others(), *(base.process.pid for base in known if base.process.returncode is None)]
