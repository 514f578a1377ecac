"""Starting processes: a real base zygote, real function zygotes, real workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import bases as bases_module
from runtime import spawner as spawner_module
from runtime.bases import passed_environment
from runtime.errors import LoadFailed
from runtime.process import Family, Process
from runtime.spawner import Spawner, Zygote
from runtime.worker import wire
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


def alive(pid: int) -> bool:
    """Whether a process is there and not dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_only_the_variables_of_a_shell_are_passed_on() -> None:
    """And those that are configured, which win."""
    environ = {"PATH": "/bin", "LC_TIME": "C", "SECRET": "x", "PYTHONSTARTUP": "x", "HOME": "/root", "LD_PRELOAD": "x"}

    passed = passed_environment({"HOME": "/other", "OWN": "1"}, environ)

    assert passed == {"PATH": "/bin", "LC_TIME": "C", "HOME": "/other", "OWN": "1"}


def spec(folder: Path, source: str, **settings: Any) -> dict[str, Any]:
    """What a zygote is told of a function whose file is this."""
    path = folder / "f.py"
    code = textwrap.dedent(source)
    path.write_text(code)
    return {
        "space": "s", "name": "f", "function_id": 1, "entry": "functions.s.f", "folder": str(folder),
        "search": [str(folder)], "modules": [["functions.s.f", str(path), code, False, False]],
        "env": {}, "secrets": {}, "memory": None, "open_files": 256, "fork": "auto",
        "concurrency": 4, "max_body": 1000, "max_response": 1000, "debug": False, "convention": "handle", **settings,
    }  # fmt: skip


PLAIN = "import os\ndef handle(data):\n    return os.getpid()\n"


@pytest.fixture
async def spawner(anyio_backend: str) -> AsyncIterator[Spawner]:
    async with Spawner() as entered:
        yield entered


def base_of(spawner: Spawner) -> subprocess.Popen[bytes]:
    """Its own base zygote, the one without a preload."""
    assert spawner._bases is not None
    return spawner._bases._bases[()].process


class Made:
    """A zygote, and workers of it whose other ends are here."""

    def __init__(self, spawner: Spawner, folder: Path, source: str = PLAIN) -> None:
        self.lines: list[str] = []
        self.zygote = Zygote(spawner, spec(folder, source), self.lines.append)
        self._open: list[socket.socket] = []

    async def worker(self, *, fresh: bool = False) -> tuple[Process, socket.socket, socket.socket]:
        """A worker that has said that it is ready, its channel and its queue."""
        channel, theirs = socket.socketpair()
        queue, their_queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        self._open += [channel, queue]
        with theirs, their_queue:
            process = self.zygote.fork((theirs, their_queue), fresh=fresh, most=16, wanted=True)
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(channel)
        assert channel.recv(100)[4] == wire.READY
        await until(lambda: process.pid is not None)  # which is told by another socket
        return process, channel, queue

    def close(self) -> None:
        self.zygote.close()
        for each in self._open:
            each.close()


@pytest.fixture
async def make(spawner: Spawner, tmp_path: Path) -> AsyncIterator[Callable[..., Made]]:
    """Makes zygotes in this test's folder."""
    made: list[Made] = []

    def factory(*arguments: Any) -> Made:
        made.append(Made(spawner, tmp_path, *arguments))
        return made[-1]

    yield factory
    for each in made:
        each.close()


async def test_a_function_is_loaded_and_forked(make: Callable[..., Made]) -> None:
    """Its workers are processes of their own, killed one by one."""
    made = make()
    loaded = await made.zygote.load(PATIENCE)
    assert (loaded.kind, loaded.takes, loaded.unsafe) == ("sync", ("data",), None)

    first, _, _ = await made.worker()
    second, _, _ = await made.worker()
    first.kill()
    with anyio.fail_after(PATIENCE):
        await first.ended.wait()

    assert first.reason() == "its process was killed by SIGKILL"
    assert not second.ended.is_set()
    assert second.pid is not None
    assert alive(second.pid)


async def test_a_fresh_worker(make: Callable[..., Made]) -> None:
    """It needs no function zygote, only what that was made from."""
    made = make()
    await made.zygote.load(PATIENCE)
    made.zygote.end_import()
    assert not made.zygote.alive

    process, _, queue = await made.worker(fresh=True)
    queue.close()
    with anyio.fail_after(PATIENCE):
        await process.ended.wait()

    assert process.code == 0


@pytest.mark.parametrize(
    ("source", "message", "details"),
    [
        ("x = 1\nraise ValueError('not today')", "ValueError: not today", {"line": 2}),
        ("import os\nos._exit(3)", "importing it ended the process: its process exited with status 3", {}),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "its process was killed by SIGSEGV", {}),
        ("import os\nos.closerange(3, 256)\n" + PLAIN, "importing it ended the process", {}),
    ],
)
async def test_a_load_that_fails(make: Callable[..., Made], source: str, message: str, details: dict[str, Any]) -> None:
    """LoadFailed, with the reason and where."""
    with pytest.raises(LoadFailed) as failure:
        await make(source).zygote.load(PATIENCE)

    assert message in failure.value.message
    assert details.items() <= failure.value.details.items()
    assert not failure.value.retryable or "closerange" in source  # its zygote may be killed for that


async def test_an_import_that_is_killed(make: Callable[..., Made]) -> None:
    """As by a kernel that has no memory left: the file may be good."""
    made = make("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1e6)\n")
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            await until(lambda: made.lines)
            os.kill(int(made.lines[0]), signal.SIGKILL)

        tasks.start_soon(kill)
        with pytest.raises(LoadFailed, match="killed by SIGKILL") as failure:
            await made.zygote.load(PATIENCE)

    assert failure.value.retryable


@pytest.mark.parametrize("which", ["the import", "the base zygote"])
async def test_an_import_that_is_stopped(make: Callable[..., Made], spawner: Spawner, which: str) -> None:
    """It is late, and not to blame for it."""
    made = make("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1e6)\n")
    stopped: list[int] = []
    try:
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                await until(lambda: made.lines)
                stopped.append(int(made.lines[0]))
                os.kill(stopped[0], signal.SIGSTOP)

            if which == "the import":
                tasks.start_soon(stop)
            else:
                await until(lambda: base_of(spawner).poll() is None)
                stopped.append(base_of(spawner).pid)
                os.kill(stopped[0], signal.SIGSTOP)
            with pytest.raises(LoadFailed, match="did not finish within 1 s; its process does not respond") as failure:
                await made.zygote.load(1.0)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    assert failure.value.retryable


async def test_an_import_that_cannot_be_forked(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """There are too many processes, or no memory for one more."""
    made = make()
    real = Family.fork

    def fork(family: Family, *arguments: Any, **more: Any) -> Process:
        process = real(family, *arguments, **more)
        family.handle({"op": "fork_failed", "id": process.number, "message": "no memory"}, [])
        return process

    monkeypatch.setattr(Family, "fork", fork)
    with pytest.raises(LoadFailed, match="no process could be forked: no memory") as failure:
        await made.zygote.load(PATIENCE)

    assert failure.value.retryable


async def test_a_zygote_for_which_there_are_no_descriptors(
    spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt gives back what it took: it would be the last one otherwise, for every function."""

    def full(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", full)
        for _ in range(5):
            with pytest.raises(OSError, match="Too many open files"):
                Zygote(spawner, spec(tmp_path, PLAIN), print)
    with monkeypatch.context() as patched:
        patched.setattr(spawner, "_attach", full)
        for number in range(5):
            with pytest.raises(OSError, match="Too many open files"):
                spawner.line((f"module{number}",))

    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_a_load_that_never_ends(make: Callable[..., Made], tmp_path: Path) -> None:
    """LoadFailed after the given time, with the line where it hangs; its process is ended with its children."""
    made = make("import os, time\nchild = os.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(1e6)\n")

    with pytest.raises(LoadFailed, match=r"did not finish within 1 s; it was at .*f\.py.*line 4") as failure:
        await made.zygote.load(1.0)
    assert not failure.value.retryable
    await until(lambda: len(made.lines) == 2)
    made.zygote.close()

    await until(lambda: not any(alive(int(line)) for line in made.lines))


IMPERSONATOR = """
    import json, os, socket

    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
            found.send({message!r})
        except OSError:
            pass
    while True: pass
"""


@pytest.mark.parametrize(
    "message",
    [
        b"garbage", b"[1]", b'{"op": "forked", "id": 77}', b'{"op": "exited"}',
        b'{"op": "fork_failed"}', b'{"op": "ready"}', b'{"op": "ready", "kind": 1}', b'{"op": "failed"}', b"{}",
    ],
)  # fmt: skip
async def test_an_import_that_speaks_in_place_of_its_zygote(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    """It fails to load; whatever it says is no more than that."""
    monkeypatch.setattr(spawner_module, "REASON_WAIT", 0.05)  # it does not end by itself
    made = make(IMPERSONATOR.format(message=message))

    with pytest.raises(LoadFailed):
        await made.zygote.load(5)


async def test_a_zygote_that_is_closed(make: Callable[..., Made]) -> None:
    """Its processes end, and what is asked of it then has failed already."""
    made = make()
    await made.zygote.load(PATIENCE)
    process, _, _ = await made.worker()

    made.zygote.close()
    made.zygote.close()

    assert process.reason() == "its zygote ended"
    assert process.pid is not None
    await until(lambda: not alive(process.pid or 0))
    assert made.zygote.fork((), fresh=False, most=16, wanted=True).ended.is_set()


async def test_a_killed_base_zygote(
    spawner: Spawner, make: Callable[..., Made], caplog: pytest.LogCaptureFixture
) -> None:
    """Everything below it ends; the next load starts another, which is spared."""
    made = make(
        "import subprocess\nkept = subprocess.Popen(['sleep', '100000'])\nprint(kept.pid, flush=True)\n" + PLAIN
    )
    await made.zygote.load(PATIENCE)
    process, _, _ = await made.worker()
    await until(lambda: made.lines)
    first = base_of(spawner).pid

    os.kill(first, signal.SIGKILL)
    with anyio.fail_after(PATIENCE):
        await process.ended.wait()
    again = make()
    await again.zygote.load(PATIENCE)

    assert base_of(spawner).pid != first
    await until(lambda: not alive(process.pid or 0) and not alive(int(made.lines[0])))
    await until(lambda: "base zygote ended with status -9" in caplog.text)
    await again.worker()


async def test_a_base_zygote_that_is_killed_during_a_load(
    spawner: Spawner, make: Callable[..., Made], tmp_path: Path
) -> None:
    """The load goes on with the next one."""
    made = make(
        "import os, time\n"
        "if not os.path.exists('begun'):\n"
        "    open('begun', 'w').close()\n"
        f"    time.sleep(1e6)\n{PLAIN}"
    )
    first = base_of(spawner).pid
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.zygote.load, PATIENCE)
        await until((tmp_path / "begun").exists)
        os.kill(first, signal.SIGKILL)

    assert made.zygote.alive
    await made.worker()


async def test_nothing_is_left_after_it(tmp_path: Path) -> None:
    """No process, and no descriptor."""
    files = len(os.listdir("/proc/self/fd"))
    async with Spawner() as spawner:
        base = base_of(spawner).pid
        made = Made(spawner, tmp_path, "import os\nif os.fork() == 0:\n    while True: pass\n" + PLAIN)
        await made.zygote.load(PATIENCE)
        process, _, _ = await made.worker()
        pid = process.pid
    made.close()
    await asyncio.sleep(0.01)

    assert not alive(base)
    assert not alive(pid or 0)
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert len(os.listdir("/proc/self/fd")) <= files


async def test_a_base_zygote_that_will_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is killed, and what is below it, too."""
    monkeypatch.setattr(bases_module, "END_WAIT", 0.1)
    async with Spawner() as spawner:
        made = Made(spawner, tmp_path)
        await made.zygote.load(PATIENCE)
        process, _, _ = await made.worker()
        base = base_of(spawner)
        os.kill(base.pid, signal.SIGSTOP)
    made.close()

    assert base.returncode == -9
    assert not alive(process.pid or 0)


def test_the_log_is_ours() -> None:
    """Records of this module are the host's own."""
    assert spawner_module.log is logging.getLogger("spaces.spawner")
