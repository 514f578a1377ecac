"""Control sockets, processes and families, against real sockets and real processes."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.process import FULL, Control, Family, Process
from runtime.worker.process import EXIT_MEMORY
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


class Line:
    """A control socket: the host's end, and the zygote's in the hands of the test."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.messages: list[dict[str, Any]] = []
        self.files: list[bytes] = []
        self.closed = 0
        self.control = Control(ours, self._heard, self._closed)

    def _heard(self, message: dict[str, Any], fds: list[int]) -> None:
        self.messages.append(message)
        if message.get("take"):
            fd = fds.pop(0)
            self.files.append(os.read(fd, 100))
            os.close(fd)
        if "raise" in message:
            message["not there"]

    def _closed(self) -> None:
        self.closed += 1


@pytest.fixture
async def line(anyio_backend: str) -> AsyncIterator[Line]:
    made = Line()
    yield made
    made.control.close()
    made.theirs.close()


def pipe_with(data: bytes) -> int:
    """A descriptor to read this from."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


async def received(line: Line) -> tuple[bytes, list[int]]:
    """The next message that the host has sent, and its descriptors."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(line.theirs, 4000, 2)
            except BlockingIOError:
                await anyio.sleep(0)
            else:
                return data, fds


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_messages_go_both_ways_in_order(line: Line) -> None:
    """With their descriptors, which the sender may close at once."""
    fd = pipe_with(b"from the host")
    line.control.send({"n": 1}, [fd])
    os.close(fd)
    line.control.send({"n": 2})
    data, fds, _, _ = socket.recv_fds(line.theirs, 1000, 2)
    assert (data, os.read(fds[0], 100)) == (b'{"n": 1}', b"from the host")
    assert line.theirs.recv(1000) == b'{"n": 2}'
    os.close(fds[0])

    fd = pipe_with(b"from the zygote")
    socket.send_fds(line.theirs, [b'{"take": true}'], [fd])
    os.close(fd)
    line.theirs.send(b'{"n": 3}')
    await until(lambda: len(line.messages) == 2)
    assert line.files == [b"from the zygote"]


async def test_descriptors_that_nobody_takes_are_closed(line: Line) -> None:
    """A zygote cannot fill the host's table with them."""
    before = open_files()
    for _ in range(5):
        fds = [pipe_with(b""), pipe_with(b"")]
        socket.send_fds(line.theirs, [b"{}"], fds)
        for fd in fds:
            os.close(fd)

    await until(lambda: len(line.messages) == 5)

    assert open_files() == before


async def test_messages_wait_for_room(line: Line) -> None:
    """A zygote that does not read holds up nobody; nothing is lost or reordered, and no descriptor left open."""
    before = open_files()
    fd = pipe_with(b"")
    for n in range(500):
        line.control.send({"n": n, "padding": "x" * 2000}, [fd])
    os.close(fd)

    numbers = []
    while len(numbers) < 500:
        data, fds = await received(line)
        os.close(fds[0])
        numbers.append(int(data.split(b",")[0].split()[1]))

    assert numbers == list(range(500))
    assert open_files() == before


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS])
async def test_what_the_kernel_has_no_room_for_is_sent_again(
    line: Line, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing is lost, and nothing overtakes it."""
    refused, send = [], socket.send_fds

    def no_room(sock: socket.socket, data: Any, fds: Any) -> int:
        if len(refused) < 2:
            refused.append(data)
            raise OSError(number, os.strerror(number))
        return send(sock, data, fds)

    monkeypatch.setattr(socket, "send_fds", no_room)
    fd = pipe_with(b"inside")
    line.control.send({"op": "first"}, [fd])
    line.control.send({"op": "second"})
    os.close(fd)

    first, [inside] = await received(line)
    second, nothing = await received(line)

    assert (first, os.read(inside, 100)) == (b'{"op": "first"}', b"inside")
    assert (second, nothing) == (b'{"op": "second"}', [])
    assert len(refused) == 2
    assert not line.control.closed
    os.close(inside)


async def test_what_a_zygote_said_last_is_heard_although_it_is_gone(line: Line) -> None:
    """Also where that is found out by talking to it."""
    line.theirs.send(b'{"n": 1}')
    line.theirs.send(b'{"n": 2}')
    line.theirs.close()

    line.control.send({"op": "anything"})

    assert line.messages == [{"n": 1}, {"n": 2}]
    assert line.control.closed
    assert line.closed == 1


async def test_the_end_of_a_zygote_is_told_once(line: Line) -> None:
    """Whoever finds out first: the reader, a sender, or who closes it."""
    line.theirs.close()
    line.control.send({"n": 1})
    await until(lambda: line.closed)
    line.control.close()
    line.control.send({"n": 2})

    assert line.closed == 1
    assert line.control.closed


async def test_what_is_unsent_is_let_go_of(line: Line) -> None:
    """With its descriptors."""
    fd = pipe_with(b"")
    before = open_files()
    for _ in range(500):
        line.control.send({"padding": "x" * 2000}, [fd])
    line.theirs.close()
    line.control.close()
    os.close(fd)

    assert open_files() == before - 3  # both ends, and our own copy


@pytest.mark.parametrize(
    "garbage", [b"{", b"\xff", b"1", b"null", b'"op"', b"[" * 100_000, b'{"raise": 1}', b'{"take": true}']
)
async def test_garbage_ends_the_control_socket(line: Line, garbage: bytes) -> None:
    """The import runs where it comes from: it may be anything, and must not be the host's problem."""
    line.theirs.send(garbage)

    await until(lambda: line.closed)

    assert line.control.closed


STUCK = """import sys
from runtime.worker import output
output.dump_stack_on_signal(int(sys.argv[1]))
def stuck():
    print("ready", flush=True)
    while True: pass
stuck()
"""


@pytest.fixture
def started() -> Iterator[Any]:
    """Makes a Process of a real one that runs a script."""
    running: list[subprocess.Popen[str]] = []

    def start(script: str, process: Process) -> int:
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(process.faults)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, pass_fds=[process.faults],
        )  # fmt: skip
        running.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        process.started(child.pid, os.pidfd_open(child.pid))
        return child.pid

    yield start
    for child in running:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def test_a_process_says_where_it_is_stuck(started: Any) -> None:
    """The whole stack, and the newest one when it is asked again."""
    process = Process()
    started(STUCK, process)

    first = await process.stack()
    second = await process.stack()

    for stack in (first, second):
        assert re.search(r'File "<string>", line [56] in stuck\n  File "<string>", line 7 in <module>\n$', stack)
        assert stack.count("most recent call first") == 1
    process.kill()
    process.finished(-9)
    assert await process.stack() == ""


async def test_a_process_that_cannot_say_where_it_is(started: Any) -> None:
    """Is not waited for any longer than a moment."""
    process = Process()
    started(
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "print('ready', flush=True)\ntime.sleep(1000)",
        process,
    )

    assert await process.stack() == ""
    process.finished(None)


async def test_a_stack_that_comes_in_pieces() -> None:
    """Is waited for as long as it grows."""
    process = Process()

    async def write() -> None:
        for piece in (b"Stack (most recent call first):\n", b'  File "a", line 1', b" in f\n"):
            os.write(process.faults, piece)
            await asyncio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        assert (await process.stack()).endswith("line 1 in f\n")
    process.finished(None)


async def test_a_kill_before_the_start_is_a_kill_at_the_start(started: Any) -> None:
    """The pid is known only a moment after the process was asked for."""
    process = Process()
    process.kill()
    pid = started("import time\nprint('ready', flush=True)\ntime.sleep(1000)", process)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    process.kill()  # there is nothing left to kill, which is no error
    process.finished(-9)


async def test_ends_are_told() -> None:
    """Once each; at once to who comes late; the descriptors are closed."""
    before = open_files()
    process = Process()
    ends: list[str] = []
    process.on_end(lambda: ends.append("first"))
    process.started(os.getpid(), os.pidfd_open(os.getpid()))

    process.finished(3)
    process.finished(4)
    process.on_end(lambda: ends.append("late"))

    assert ends == ["first", "late"]
    assert process.code == 3
    assert open_files() == before


@pytest.mark.parametrize(
    ("code", "failure", "reason"),
    [
        (0, None, "its process exited with status 0"),
        (3, None, "its process exited with status 3"),
        (EXIT_MEMORY, None, "its memory limit was reached"),
        (-signal.SIGSEGV, None, "its process was killed by SIGSEGV"),
        (-50, None, "its process was killed by 50"),
        (None, None, "its process ended"),
        (None, "its zygote ended", "its zygote ended"),
    ],
)
async def test_reasons(code: int | None, failure: str | None, reason: str) -> None:
    """How a process ended, in words."""
    process = Process()
    process.finished(code, failure)

    assert process.reason() == reason


async def test_a_family(line: Line) -> None:
    """Processes are known by request until they have a pid, then by pid."""
    family = Family()
    first, second, third, fourth = (family.fork(line.control, "fork", []) for _ in range(4))
    asked = [socket.recv_fds(line.theirs, 1000, 2) for _ in range(4)]
    assert asked[0][0] == b'{"op": "fork", "id": 1}'
    assert [len(fds) for _, fds, _, _ in asked] == [1, 1, 1, 1]
    for _, fds, _, _ in asked:
        os.close(fds[0])

    for number, pid in ((2, 200), (1, 100)):
        family.handle({"op": "forked", "id": number, "pid": pid}, [os.dup(0)])
    family.handle({"op": "fork_failed", "id": 3, "message": "no memory"}, [])
    family.handle({"op": "exited", "pid": 200, "code": 4}, [])
    assert (first.pid, second.pid, second.code, third.reason()) == (
        100,
        200,
        4,
        "no process could be forked: no memory",
    )

    family.lost()
    assert first.reason() == fourth.reason() == "its zygote ended"


async def test_function_zygotes_are_known_by_their_request(line: Line) -> None:
    """They may be shared: loaded twice, one pid is two; each ends for itself, and says where it is in one place."""
    family = Family()
    first, second, third = (family.fork(line.control, "load", [], key="k") for _ in range(3))
    asked = [socket.recv_fds(line.theirs, 1000, 2) for _ in range(3)]
    assert asked[0][0] == b'{"op": "load", "id": 1, "key": "k"}'
    for _, fds, _, _ in asked:
        os.close(fds[0])
    faults = os.memfd_create("of the one that loaded it")

    family.handle({"op": "forked", "id": 1, "pid": 100}, [os.dup(0)])
    family.handle({"op": "forked", "id": 2, "pid": 100}, [os.dup(0), faults])
    family.release(first)
    family.release(third)
    late = [os.dup(0)]
    family.handle({"op": "forked", "id": 3, "pid": 100}, late)
    assert second.faults == faults
    assert not second.ended.is_set()
    family.handle({"op": "exited", "id": 1, "pid": 100, "code": 0}, [])
    family.handle({"op": "exited", "id": 2, "pid": 100, "code": 3}, [])

    assert (first.code, second.code) == (None, 3)
    assert not family.has_any
    os.close(late.pop())  # nobody has taken it


async def test_a_process_that_other_hosts_have_the_place_of(line: Line) -> None:
    """It has ended before it began."""
    family = Family()
    process = family.fork(line.control, "fork", [], most=1, wanted=True)

    family.handle({"op": "full", "id": 1}, [])

    assert process.reason() == FULL


async def test_a_process_that_goes_to_another_host(line: Line) -> None:
    """Of its end we hear nothing, nor mind a message about it; the other one does, and has its stack."""
    ours, others = Family(), Family()
    process = ours.fork(line.control, "fork", [])
    assert not ours.has(process)
    ours.handle({"op": "forked", "id": 1, "pid": 100}, [os.dup(0)])
    assert ours.has(process)

    ours.part(process)
    taken = others.adopt(100, os.dup(0), os.dup(0))
    for family in (ours, others):
        family.handle({"op": "exited", "pid": 100, "code": 7}, [])

    assert not ours.has_any
    assert not process.ended.is_set()
    assert (taken.pid, taken.code) == (100, 7)
    process.finished(None)


async def test_a_process_that_comes_without_its_descriptor(line: Line) -> None:
    """The host had no room for it: that process counts as ended, and no other is harmed when it really ends."""
    family = Family()
    lost, kept = family.fork(line.control, "fork", []), family.fork(line.control, "fork", [])

    family.handle({"op": "forked", "id": 1, "pid": 100}, [])
    family.handle({"op": "forked", "id": 2, "pid": 200}, [os.dup(0)])
    family.handle({"op": "exited", "pid": 100, "code": 0}, [])

    assert lost.reason() == "the host may open no more files"
    assert not kept.ended.is_set()
    family.lost()


async def test_a_process_that_cannot_even_be_asked_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """OSError, and nothing is left of the attempt."""
    family = Family()
    before = open_files()

    def full(fd: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", full)
        with pytest.raises(OSError, match="Too many"):
            family.fork(line.control, "fork", [])

    assert open_files() == before
    family.lost()


async def test_a_family_whose_zygote_is_gone(line: Line) -> None:
    """A process asked for then has ended before it began."""
    family = Family()
    line.control.close()

    process = family.fork(line.control, "fork", [])

    assert process.ended.is_set()
    assert process.reason() == "its zygote ended"
