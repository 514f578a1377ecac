"""The supervisor where something fails: no member and no descriptor is left behind, and it goes on where it can."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.config import Config, FunctionSettings, ServerSettings
from runtime.link import Link
from runtime.share import Share
from runtime.supervisor import GRACE, HANGS, Member, Supervisor

pytestmark = pytest.mark.anyio


@pytest.fixture
async def supervisor(anyio_backend: str, tmp_path: Path) -> Supervisor:
    config = Config(tmp_path, tmp_path / "spaces.toml", tmp_path, ServerSettings(), FunctionSettings(), {})
    return Supervisor(config, (), exposed=False, log_lock=0, announce=lambda count: None)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A member's, so to speak."""
    with subprocess.Popen(["sleep", "100000"]) as started:
        yield started
        started.kill()


async def test_a_member_that_could_not_be_watched_is_ended(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSError, as where it could not be started; no descriptor is left of it."""

    def full(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervisor, "_spawn", lambda *_: process)
    monkeypatch.setattr(os, "pidfd_open", full)
    files = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError, match="Too many"):
        await supervisor._start(0)

    assert process.returncode == -9
    assert len(os.listdir("/proc/self/fd")) == files


async def test_members_do_not_outlive_a_supervisor_that_fails(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are ended before the base zygotes are."""
    supervisor._members[1] = Member(1, 0, process, os.memfd_create("faults"))
    ended: list[int | None] = []

    async def fail() -> None:
        raise OSError

    monkeypatch.setattr(supervisor, "_serve", fail)
    leave = type(supervisor._bases).__aexit__

    async def leaving(bases: object, *error: object) -> None:
        ended.append(process.returncode)
        await leave(supervisor._bases, *error)

    monkeypatch.setattr(type(supervisor._bases), "__aexit__", leaving)
    with pytest.raises(ExceptionGroup):
        await supervisor.run()

    assert ended == [-9]


@pytest.mark.parametrize("data", [b"garbage", b"[1]", b"\xff"])
async def test_a_wish_that_is_not_understood_is_dropped(
    supervisor: Supervisor, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And logged."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        supervisor._hand_on(theirs, data)

    assert "not understood" in caplog.text


async def test_a_second_signal_is_passed_on(
    supervisor: Supervisor,
    process: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Members end without what they run, and have GRACE for that; the first one leaves them all the time they need."""
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(supervisor._relay, "say", lambda number, word: said.append((number, word)))
    supervisor._members[1] = Member(1, 0, process, -1)
    before = signal.getsignal(signal.SIGTERM)
    with anyio.fail_after(FOREVER):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor._await_signals)
            await until(lambda: signal.getsignal(signal.SIGTERM) is not before)
            os.kill(os.getpid(), signal.SIGTERM)
            await supervisor._ending.wait()
            assert (said, supervisor._patience.deadline) == ([], math.inf)
            os.kill(os.getpid(), signal.SIGTERM)

    assert said == [(1, "now")]
    assert supervisor._patience.deadline <= anyio.current_time() + GRACE
    assert "SIGTERM again: ending now" in caplog.text


async def test_members_that_do_not_end_are_killed(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After as long as their calls may take; until then they are left alone."""
    begun_as(monkeypatch, "sleep", "1000")
    monkeypatch.setattr("runtime.supervisor.GRACE", 0.0)
    supervisor._drain_timeout = 0.0
    async with anyio.create_task_group() as supervisor._tasks:
        member = await supervisor._start(0)
        member.ready.set()
        with anyio.fail_after(FOREVER):
            await supervisor._end_members()
        supervisor._relay.close()
        supervisor._tasks.cancel_scope.cancel()

    assert member.reason() == "was ended by SIGKILL"
    assert f"host process {member.process.pid} does not end: it is killed" in caplog.text


# Members that hang.

FOREVER = 20.0
SPINS = """
import sys
from runtime.member import tell_faults

def spin():
    while True:
        pass

tell_faults(int(sys.argv[1]))
open(f"/proc/self/fd/{sys.argv[1]}", "a").write("it begins")
spin()
"""


@pytest.fixture
async def asking(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """One that asks often, and begins a member in a place only when told."""
    monkeypatch.setattr("runtime.supervisor.BEAT", 0.01)
    monkeypatch.setattr("runtime.supervisor.BEGINS", 1_000_000)
    async with anyio.create_task_group() as supervisor._tasks:
        supervisor._tasks.start_soon(supervisor._ask_after_members)
        yield supervisor
        supervisor._kill_members()
        supervisor._relay.close()
        supervisor._tasks.cancel_scope.cancel()


def begun_as(monkeypatch: pytest.MonkeyPatch, *command: str, handed: list[int] | None = None) -> None:
    """Have this command be the member; `handed` gets its sockets, for whoever speaks for it."""

    def spawn(_: Supervisor, index: int, line: int, doors: int, faults: int) -> subprocess.Popen[bytes]:
        if handed is not None:
            handed.extend(map(os.dup, (line, doors)))
        return subprocess.Popen([*command, str(faults)], pass_fds=[faults])

    monkeypatch.setattr(Supervisor, "_spawn", spawn)


async def until(condition: Callable[[], Any]) -> None:
    """Let the others run until it holds."""
    with anyio.fail_after(FOREVER):
        while not condition():
            await anyio.sleep(0.001)


async def test_a_member_that_hangs_is_killed(
    asking: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where it was."""
    begun_as(monkeypatch, sys.executable, "-c", SPINS)
    member = await asking._start(0)
    await until(lambda: os.fstat(member.faults).st_size)
    member.missed = 0
    with anyio.fail_after(FOREVER):
        await member.ended.wait()

    assert member.reason() == "was ended by SIGKILL"
    [record] = [record for record in caplog.records if "hangs" in record.getMessage()]
    assert "in spin" in record.stack  # type: ignore[attr-defined]


async def test_a_member_that_is_stopped_is_killed(
    asking: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says that it was."""
    begun_as(monkeypatch, "sleep", "1000", "1000")
    member = await asking._start(0)
    member.process.send_signal(signal.SIGSTOP)
    await anyio.to_thread.run_sync(os.waitid, os.P_PID, member.process.pid, os.WSTOPPED)
    member.missed = 0
    with anyio.fail_after(FOREVER):
        await member.ended.wait()

    assert "hangs, since it is stopped: it is killed" in caplog.text


async def test_a_member_that_answers_at_last_is_not_killed(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Where it was is in the log."""
    monkeypatch.setattr("runtime.supervisor.DUMP_WAIT", 0.01)
    monkeypatch.setattr("runtime.supervisor.STACK_SIGNAL", signal.SIGCONT)
    member = supervisor._members[1] = Member(1, 0, process, os.memfd_create("faults"))
    os.write(member.faults, b"in slow")
    member.missed = HANGS
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor._put_down, member)
        await anyio.lowlevel.checkpoint()
        supervisor._told(1, "here", b"")
    os.close(member.faults)

    assert process.poll() is None
    [record] = caplog.records
    assert "answers again" in record.getMessage()
    assert record.stack == "in slow"  # type: ignore[attr-defined]


async def test_a_member_that_ends_while_it_is_put_down_is_left_alone(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Even in the last moment."""
    monkeypatch.setattr("runtime.supervisor.DUMP_WAIT", 0.0)
    monkeypatch.setattr("runtime.supervisor.STACK_SIGNAL", signal.SIGCONT)
    member = supervisor._members[1] = Member(1, 0, process, -1)
    member.ended.set()
    await supervisor._put_down(member)

    assert not caplog.records


async def test_of_a_file_that_is_closed_nothing_is_read(process: subprocess.Popen[bytes]) -> None:
    """It is no error."""
    assert Member(1, 0, process, -1).fault() is None


async def test_a_member_that_answers_is_left_alone(asking: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it runs."""
    handed: list[int] = []
    begun_as(monkeypatch, "sleep", "1000", handed=handed)
    member = await asking._start(0)
    line, doors = (socket.socket(fileno=handle) for handle in handed)
    async with Link(Share(0, 1), line, doors):
        await until(lambda: member.missed >= 0)  # it has answered once
        answered = 0
        for _ in range(50):
            await until(lambda: member.missed == 1)
            await until(lambda: member.missed == 0)
            answered += 1

        assert not member.ended.is_set()
    assert answered == 50


async def test_a_member_that_begins_has_more_time(asking: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it answers for the first time."""
    begun_as(monkeypatch, "sleep", "1000")
    slow = await asking._start(0)
    monkeypatch.setattr("runtime.supervisor.BEGINS", 20)
    slower = await asking._start(1)
    with anyio.fail_after(FOREVER):
        await slower.ended.wait()

    assert not slow.ended.is_set()
    assert slower.missed >= HANGS


async def test_nobody_waits_for_ever_for_a_member_that_begins(
    asking: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place takes no connections after a while, unless another serves there."""
    begun_as(monkeypatch, "sleep", "1000")
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as other:
        asking._socks = (sock, other)
        for index in (0, 1):
            await asking._start(index)
        served = await asking._start(1)
        served.ready.set()
        monkeypatch.setattr("runtime.supervisor.LATE", 0.0)

        await until(lambda: not listens(sock))
        assert listens(other)
        asking._ending.set()  # before the sockets close


async def test_who_is_ready_takes_connections(supervisor: Supervisor, process: subprocess.Popen[bytes]) -> None:
    """Also where its place was given up just before that was heard; and not any more where all end."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        supervisor._socks, supervisor._unannounced = (sock,), set()
        supervisor._members[1] = Member(1, 0, process, -1)
        supervisor._withdraw(0)
        assert not listens(sock)
        supervisor._told(1, "ready", b"3")
        assert listens(sock)
        socket.create_connection(sock.getsockname()).close()
        sock.shutdown(socket.SHUT_RD)
        supervisor._ending.set()
        supervisor._told(1, "ready", b"3")

        assert not listens(sock)


async def test_a_member_that_never_gets_ready_is_replaced(
    asking: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it answers; the log says so, once. One that is ready, or is among the first, is left alone."""
    begun_as(monkeypatch, "sleep", "1000")
    asking._unannounced = {2}
    late, ready, first = [await asking._start(index) for index in range(3)]
    ready.ready.set()
    monkeypatch.setattr("runtime.supervisor.NEVER", 0.0)
    with anyio.fail_after(FOREVER):
        await late.ended.wait()
    await anyio.sleep(0.05)

    assert late.leaving.is_set()
    assert not ready.ended.is_set()
    assert not first.ended.is_set()
    assert [record.getMessage() for record in caplog.records].count(
        f"host process {late.process.pid} is not ready after 0 seconds: it is killed"
    ) == 1


def listens(sock: socket.socket) -> bool:
    """Whether it takes connections."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


async def test_where_a_member_has_crashed_is_known(asking: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it could write down."""
    crashes = SPINS.replace("while True:\n        pass", "import os; os.abort()")
    begun_as(monkeypatch, sys.executable, "-c", crashes)
    member = await asking._start(0)
    with anyio.fail_after(FOREVER):
        await member.ended.wait()

    assert member.reason() == "was ended by SIGABRT"
    assert member.crash is not None
    assert "in spin" in member.crash
