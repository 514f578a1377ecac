"""A real base zygote, with this test in the place of the host: loads, forks, reports, and clears up."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.worker import wire
from runtime.worker.output import STACK_SIGNAL

MAIN = Path(__file__).parents[3] / "runtime/worker/__main__.py"
PATIENCE = 20.0
WISH = {"most": 16, "wanted": True, "ahead": False}  # how a host asks for a worker


def hear(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message of a zygote, and the descriptors beside it; an empty one at the end."""
    sock.settimeout(PATIENCE)
    try:
        data, fds, _, _ = socket.recv_fds(sock, 262144, 8)
    except ConnectionResetError:
        data, fds = b"", []
    return (json.loads(data) if data else {}), fds


def alive(pid: int) -> bool:
    """Whether a process is there and not dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Wait for the end of a process."""
    give_up = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < give_up, f"{pid} lives on"
        time.sleep(0.002)
    return True


class Forked:
    """A process below the zygote: a function zygote or a worker."""

    def __init__(self, pid: int, pidfd: int, faults: int, sockets: list[socket.socket]) -> None:
        self.pid = pid
        self.faults = faults
        self.sockets = sockets
        self._pidfd = pidfd

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        os.close(self._pidfd)
        os.close(self.faults)

    def frames(self, count: int) -> list[tuple[int, int, int, bytes]]:
        """So many frames of its channel."""
        reader, found = wire.Reader(), []
        self.sockets[0].settimeout(PATIENCE)
        while len(found) < count:
            data = self.sockets[0].recv(65536)
            assert data, f"the channel closed after {found}"
            found += reader.feed(data)
        return found

    def call(self, path: bytes = b"") -> tuple[int, bytes]:
        """Status and body of a call."""
        frame = wire.call_frame(1, 1, time.time() + 60, 1, b"GET", path, b"", b"", 0, b"")
        self.sockets[-1].send(frame)
        for kind, _, _, payload in self.frames(1):
            assert kind == wire.RESULT, payload
            status, _, _, body = wire.parse_result(payload)
        return status, body


class Base:
    """The base zygote, and what it forked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(MAIN), str(theirs.fileno())], pass_fds=(theirs.fileno(),)
            )
        self.output, self.write_end = os.pipe()
        self._forked: list[Forked] = []
        assert hear(self.door)[0] == {"op": "ready", "pid": self.process.pid}
        self.control = self.attach()
        self._loads = 0

    def attach(self) -> socket.socket:
        """One more host's control socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self.door, [b'{"op": "attach"}'], [theirs.fileno()])
        assert hear(ours)[0] == {"op": "ready", "pid": self.process.pid}
        return ours

    def spec(self, source: str, **settings: Any) -> int:
        """What the host writes of a function whose file is this."""
        path = self.folder / "f.py"
        path.write_text(textwrap.dedent(source))
        spec = {
            "space": "s", "name": "f", "function_id": 1, "convention": "handle", "entry": "functions.s.f",
            "folder": str(self.folder),
            "search": [str(self.folder)],
            "modules": [["functions.s.f", str(path), path.read_bytes().decode("latin-1"), False, False]],
            "env": {"KEY": "value"}, "secrets": {}, "memory": None, "open_files": 256, "fork": "auto",
            "concurrency": 4, "max_body": 1000, "max_response": 1000, "debug": False,
        }  # fmt: skip
        fd = os.memfd_create("spec")
        os.write(fd, json.dumps({**spec, **settings}).encode())
        return fd

    def ask(self, control: socket.socket, op: str, fds: list[int], sockets: list[socket.socket], **how: bool) -> Forked:
        """Have a process forked that gets these descriptors, and one for its stack."""
        faults = os.memfd_create("faults")
        self._loads += 1
        asked = {"op": op, "id": 5, "key": str(self._loads), **WISH, **how}
        socket.send_fds(control, [json.dumps(asked).encode()], [*fds, faults])
        message, received = hear(control)
        assert message["op"] == "forked"
        assert message["id"] == 5
        forked = Forked(message["pid"], received[0], faults, sockets)
        self._forked.append(forked)
        return forked

    def load(self, source: str, **settings: Any) -> Forked:
        """A function zygote; `sockets[0]` is its control socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec = self.spec(source, **settings)
        with theirs:
            forked = self.ask(self.control, "load", [spec, self.write_end, theirs.fileno()], [ours])
        os.close(spec)
        return forked

    def worker(self, zygote: Forked, channels: int = 2, *, expect: bool = True, ahead: bool = False) -> Forked:
        """A worker of a function zygote; `sockets` are its channel and, for sync ones, its queue."""
        types = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)[:channels]
        pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in types]
        forked = self.ask(
            zygote.sockets[0],
            "fork",
            [self.write_end, *(theirs.fileno() for _, theirs in pairs)],
            [ours for ours, _ in pairs],
            ahead=ahead,
        )
        for _, theirs in pairs:
            theirs.close()
        if expect:
            zygote.sockets[0].send(b'{"op": "expect"}')
        return forked

    def printed(self) -> bytes:
        """What is in the pipe by now."""
        if not select.select([self.output], [], [], 0)[0]:
            return b""
        return os.read(self.output, 65536)

    def close(self) -> None:
        self.control.close()
        self.door.close()
        self.process.wait(timeout=PATIENCE)
        for forked in self._forked:
            forked.close()
        os.close(self.output)
        os.close(self.write_end)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    """A base zygote; it and all below it must end when its control socket closes."""
    started = Base(tmp_path)
    yield started
    pids = [forked.pid for forked in started._forked]
    started.close()
    assert started.process.returncode == 0
    assert not any(map(alive, pids))


def fork_message(number: int) -> bytes:
    """A host's wish for a worker."""
    return json.dumps({"op": "fork", "id": number, **WISH}).encode()


PLAIN = "import os\ndef handle(data):\n    return os.getpid()\n"


def ready(zygote: Forked) -> dict[str, Any]:
    """What a function zygote says of its import."""
    return hear(zygote.sockets[0])[0]


def test_a_function_is_loaded_and_forked(base: Base) -> None:
    """It says what it found; each worker says that it is ready, takes calls, and ends when its queue closes."""
    zygote = base.load(PLAIN)
    said = ready(zygote)
    assert (said["op"], said["kind"], said["takes"], said["unsafe"]) == ("ready", "sync", ["data"], None)

    first, second = base.worker(zygote), base.worker(zygote)
    for worker in (first, second):
        [(kind, _, stream, payload)] = worker.frames(1)
        assert (kind, stream) == (wire.READY, 0)
        assert wire.READY_HEAD.unpack(payload) == (wire.VERSION, worker.pid)
        assert worker.call() == (200, str(worker.pid).encode())

    first.sockets[1].close()
    assert hear(zygote.sockets[0])[0] == {"op": "exited", "pid": first.pid, "code": 0}
    assert second.call() == (200, str(second.pid).encode())


def test_an_async_function(base: Base) -> None:
    """Its workers have one socket."""
    zygote = base.load("import os\nasync def handle(data):\n    return os.getpid()\n")
    assert ready(zygote)["kind"] == "async"

    worker = base.worker(zygote, channels=1)
    assert worker.frames(1)[0][0] == wire.READY
    assert worker.call() == (200, str(worker.pid).encode())
    worker.sockets[0].close()

    assert hear(zygote.sockets[0])[0]["code"] == 0


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero", 1),
        ("def handle(:\n", "SyntaxError: invalid syntax", 1),
        ("x = 1\n", "there is no `handle`", None),
        ("def handle(data, other): pass\n", "takes `other`", None),
        ("raise SystemExit('told to')\n", "SystemExit: told to", 1),
        ("class E(Exception):\n    def __str__(self): return 1\nraise E\n", "E: <exception str() failed>", 3),
        ("raise ValueError('\\udc80\\U0001f600' * 30000)\n", "ValueError: \\udc80", 1),
    ],
)
def test_an_import_that_fails_is_reported(base: Base, source: str, message: str, line: int | None) -> None:
    """With the reason, the file and the line; then the process ends."""
    zygote = base.load(source)

    said = ready(zygote)

    assert said["op"] == "failed"
    assert message in said["message"]
    assert said["line"] == line
    assert said["file"] == (str(base.folder / "f.py") if line else None)
    said["traceback"].encode()
    assert hear(base.control)[0] == {"op": "exited", "id": 5, "pid": zygote.pid, "code": 1}


def test_a_child_that_the_import_forks_is_not_a_second_zygote(base: Base) -> None:
    """It ends where the import does, whether that raises or not."""
    zygote = base.load(f"import os\nif os.fork() == 0: raise ValueError\nos.wait()\nos.fork()\n{PLAIN}")

    assert ready(zygote)["op"] == "ready"
    workers = [base.worker(zygote) for _ in range(3)]
    assert [worker.call()[0] for worker in workers if worker.frames(1)] == [200] * 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import threading as t, time\nt.Thread(target=time.sleep, args=(1e6,), name='x').start()\n", "running (x)"),
        ("import socket\nkept = socket.socketpair()\n", "left sockets open"),
        ("import asyncio\nloop = asyncio.new_event_loop()\n", "left sockets open"),
        ("import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\n", None),
        ("import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n", None),
    ],
)  # fmt: skip
def test_whether_forking_is_safe(base: Base, source: str, reason: str | None) -> None:
    """Not with other threads, nor with sockets that workers would share."""
    unsafe = ready(base.load(source + PLAIN))["unsafe"]

    assert unsafe is None if reason is None else reason in unsafe


def test_the_setting_wins(base: Base) -> None:
    """`fork = "always"` does not even look."""
    zygote = base.load("import socket\nkept = socket.socketpair()\n" + PLAIN, fork="always")

    assert ready(zygote)["unsafe"] is None


def test_siblings_draw_other_numbers(base: Base) -> None:
    """Of the generators that libraries keep for everybody; here they are stand-ins for numpy's and PyTorch's."""
    zygote = base.load("""
        import random, sys
        from types import SimpleNamespace

        sys.modules["numpy.random"] = random.Random(1)
        sys.modules["torch"] = SimpleNamespace(default_generator=random.Random(1))

        def handle(data):
            return [sys.modules["numpy.random"].random(), sys.modules["torch"].default_generator.random()]
    """)
    ready(zygote)
    drawn = []
    for _ in range(2):
        worker = base.worker(zygote)
        assert worker.frames(1)[0][0] == wire.READY
        drawn += json.loads(worker.call()[1])
    assert len(set(drawn)) == 4


def test_a_fresh_worker(base: Base) -> None:
    """Forked from the base zygote, with an import of its own."""
    pairs = [socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    spec = base.spec("import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()\n" + PLAIN)
    fds = [spec, base.write_end, *(theirs.fileno() for _, theirs in pairs)]
    worker = base.ask(base.control, "fresh", fds, [ours for ours, _ in pairs])
    os.close(spec)
    for _, theirs in pairs:
        theirs.close()

    assert worker.frames(1)[0][0] == wire.READY
    assert worker.call() == (200, str(worker.pid).encode())


def test_it_says_why_it_cannot_fork(base: Base) -> None:
    """Here, as the import has left no room for the descriptor of a child; nothing is left of the attempt."""
    zygote = base.load(
        "import os, resource\n"
        "room = [os.dup(0) for _ in range(5)]  # two sockets that its workers will use, and what is sent below\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (room[-1] + 1, room[-1] + 1))\n"
        f"for fd in room:\n    os.close(fd)\n{PLAIN}"
    )
    assert ready(zygote)["op"] == "ready"
    fds = [os.memfd_create("any") for _ in range(3)]

    for number in (8, 9):
        socket.send_fds(zygote.sockets[0], [fork_message(number)], fds)
        message, received = hear(zygote.sockets[0])
        assert (message["op"], message["id"], received) == ("fork_failed", number, [])
        assert "Too many open files" in message["message"]

    assert not Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text()
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("op", ["load", "fresh"])
def test_a_message_whose_descriptors_do_not_all_come(base: Base, op: str) -> None:
    """It is refused, by the door too, and the base zygote lives on with as many as it had."""
    before = len(os.listdir(f"/proc/{base.process.pid}/fd"))
    asked = {"op": op, "id": 5, "key": "k", "most": 16, "wanted": True}
    socket.send_fds(base.control, [json.dumps(asked).encode()], [base.write_end] * 9)
    message, _ = hear(base.control)
    socket.send_fds(base.door, [b'{"op": "attach"}'], [base.write_end] * 9)

    assert (message["op"], message["id"]) == ("fork_failed", 5)
    assert ready(base.load(PLAIN))["op"] == "ready"
    give_up = time.monotonic() + PATIENCE
    while len(os.listdir(f"/proc/{base.process.pid}/fd")) > before + 3:  # of the new one: a pidfd, a way, faults
        assert time.monotonic() < give_up  # it lets go of the others once it has forked, which the new one may outrun
        time.sleep(0.002)


def test_how_workers_end_is_reported(base: Base) -> None:
    """Their exit status, or the signal, negative."""
    zygote = base.load("import os\ndef handle(req):\n    os._exit(3)\n")
    ready(zygote)
    exits, killed = base.worker(zygote), base.worker(zygote)
    for worker in (exits, killed):
        worker.frames(1)

    exits.sockets[1].send(wire.call_frame(1, 1, 0.0, 1, b"GET", b"", b"", b"", 0, b""))
    assert hear(zygote.sockets[0])[0] == {"op": "exited", "pid": exits.pid, "code": 3}
    os.kill(killed.pid, signal.SIGKILL)
    assert hear(zygote.sockets[0])[0] == {"op": "exited", "pid": killed.pid, "code": -9}


def children(zygote: Forked) -> list[int]:
    """The processes that a zygote has forked and that live."""
    pids = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()
    return [pid for pid in map(int, pids) if alive(pid)]


def spare(zygote: Forked, workers: int) -> int:
    """Wait for the process that is forked ahead: the newest, beside so many workers."""
    give_up = time.monotonic() + PATIENCE
    while len(children(zygote)) != workers + 1:
        assert time.monotonic() < give_up, children(zygote)
        time.sleep(0.002)
    return children(zygote)[-1]


def test_the_next_worker_is_forked_ahead(base: Base) -> None:
    """Once a worker was wanted, and that has been a moment ago; it is a worker like any other from then on."""
    zygote = base.load(PLAIN)
    ready(zygote)
    assert children(zygote) == []
    first = base.worker(zygote)
    ahead = spare(zygote, 1)

    second, third = base.worker(zygote), base.worker(zygote)

    assert second.pid == ahead
    assert third.pid not in (first.pid, ahead)
    for worker in (first, second, third):
        [(kind, _, _, payload)] = worker.frames(1)
        assert (kind, payload) == (wire.READY, wire.READY_HEAD.pack(wire.VERSION, worker.pid))
        assert worker.call() == (200, str(worker.pid).encode())
    assert spare(zygote, 3) not in (first.pid, second.pid, third.pid)
    os.kill(second.pid, signal.SIGKILL)
    assert hear(zygote.sockets[0])[0] == {"op": "exited", "pid": second.pid, "code": -9}


def test_a_spare_that_ends_is_nobodys_business(base: Base) -> None:
    """It is not reported, and not replaced before a worker is wanted again, which is forked all the same."""
    zygote = base.load(PLAIN)
    ready(zygote)
    first = base.worker(zygote)
    for workers in range(1, 4):
        ahead = spare(zygote, workers)
        os.kill(ahead, signal.SIGKILL)
        assert gone(ahead)
        assert base.worker(zygote).pid != ahead

    os.kill(first.pid, signal.SIGKILL)
    assert hear(zygote.sockets[0])[0] == {"op": "exited", "pid": first.pid, "code": -9}


def test_an_async_worker_that_was_forked_ahead(base: Base) -> None:
    """It has one socket instead of two."""
    zygote = base.load("import os\nasync def handle(data):\n    return os.getpid()\n")
    ready(zygote)
    base.worker(zygote, channels=1)
    ahead = spare(zygote, 1)
    worker = base.worker(zygote, channels=1)
    assert worker.frames(1)[0][0] == wire.READY
    assert worker.pid == ahead
    assert worker.call() == (200, str(ahead).encode())


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_worker_that_its_host_has_started_ahead(base: Base, kind: str) -> None:
    """It is a worker like any other, once it has rehearsed."""
    zygote = base.load(f"import os\n{kind} handle(data):\n    return os.getpid()\n")
    ready(zygote)
    channels = 2 if kind == "def" else 1
    first = base.worker(zygote, channels, expect=False)
    ahead = base.worker(zygote, channels, expect=False, ahead=True)

    for worker in (ahead, first):
        assert worker.frames(1)[0][0] == wire.READY
        assert worker.call() == (200, str(worker.pid).encode())
    assert children(zygote) == [first.pid, ahead.pid]


CHILDREN = """
    import os, subprocess, time

    def handle(data):
        found = []
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                child = subprocess.Popen(["sleep", "100000"])
                os.write(writer, f"{os.getpid()} {child.pid}".encode())
                time.sleep(1e6)
            os._exit(0)
        return os.read(reader, 100).decode()
"""


def test_what_a_worker_leaves_behind_is_ended(base: Base) -> None:
    """Its children and theirs; the children that the import started stay."""
    zygote = base.load("import subprocess\nkept = subprocess.Popen(['sleep', '100000'])\n" + textwrap.dedent(CHILDREN))
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)
    status, body = worker.call()
    assert status == 200
    started = [int(pid) for pid in body.split()]
    assert all(map(alive, started))
    ahead = spare(zygote, 2)

    os.kill(worker.pid, signal.SIGKILL)

    assert all(map(gone, started))
    assert hear(zygote.sockets[0])[0]["code"] == -9
    assert len(children(zygote)) == 2
    assert ahead in children(zygote)


def test_what_a_zygote_leaves_behind_is_ended(base: Base) -> None:
    """Its workers, their children, and what the import started; the base zygote goes on."""
    zygote = base.load("import subprocess\nkept = subprocess.Popen(['sleep', '100000'])\n" + textwrap.dedent(CHILDREN))
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)
    started = [int(pid) for pid in worker.call()[1].split()]
    spare(zygote, 2)
    below = children(zygote)

    os.kill(zygote.pid, signal.SIGKILL)

    assert all(map(gone, [worker.pid, *started, *below]))
    assert hear(base.control)[0] == {"op": "exited", "id": 5, "pid": zygote.pid, "code": -9}
    assert ready(base.load(PLAIN))["op"] == "ready"


@pytest.mark.parametrize("names", [[], ["colorsys"]])
def test_a_base_zygote_that_nobody_waits_for_any_more(names: list[str]) -> None:
    """Its host ended while it began: it goes without a word."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-P", str(MAIN), str(theirs.fileno()), *names]
        ours.close()
        done = subprocess.run(command, pass_fds=(theirs.fileno(),), capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_everything_ends_when_the_control_socket_closes(base: Base) -> None:
    """Of a function zygote: its workers, spinning or not, with what they forked."""
    zygote = base.load("def handle(data):\n    while True: pass\n")
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)
    worker.sockets[1].send(wire.call_frame(1, 1, 0.0, 1, b"GET", b"", b"", b"", 0, b""))

    zygote.sockets[0].close()

    assert gone(worker.pid)
    assert hear(base.control)[0] == {"op": "exited", "id": 5, "pid": zygote.pid, "code": 0}


def test_each_process_leads_a_group(base: Base) -> None:
    """So that a signal that a handler sends to its group reaches no other function."""
    zygote = base.load(PLAIN)
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)

    assert os.getpgid(zygote.pid) == zygote.pid
    assert os.getpgid(worker.pid) == worker.pid


def test_the_environment_of_a_function(base: Base) -> None:
    """Its own variables and nothing else, its folder, the usual limit of open files."""
    zygote = base.load(
        "import os, resource\n"
        "def handle(data):\n"
        "    return [dict(os.environ), os.getcwd(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]\n"
    )
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)

    environ, folder, files = json.loads(worker.call()[1])

    assert environ == {"KEY": "value"}
    assert (folder, files) == (str(base.folder), 256)


def test_output_goes_to_the_pipe_until_there_is_a_channel(base: Base) -> None:
    """What the import prints, and what C code and children print at any time."""
    zygote = base.load(f"import os\nprint('by the import')\nos.system('echo by its child')\n{PLAIN}")
    ready(zygote)

    assert base.printed() == b"by the import\nby its child\n"


def test_standard_descriptors_closed_by_an_import_are_not_used_for_anything(base: Base) -> None:
    """A worker's channel must never be file descriptor 1."""
    zygote = base.load("import os\nos.closerange(0, 3)\n" + "def handle(data):\n    return os.write(1, b'x' * 100)\n")
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)

    assert worker.call() == (200, b"100")
    assert os.readlink(f"/proc/{worker.pid}/fd/1") == "/dev/null"


def test_a_handler_of_sigchld_is_for_the_workers(base: Base) -> None:
    """The zygote itself goes by the default; a worker finds what the import set."""
    zygote = base.load(
        "import signal\nsignal.signal(signal.SIGCHLD, print)\n"
        "def handle(data):\n    return signal.getsignal(signal.SIGCHLD) is print\n"
    )
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)

    assert worker.call() == (200, b"true")
    os.kill(worker.pid, signal.SIGKILL)
    assert hear(zygote.sockets[0])[0]["code"] == -9


def test_timers_of_an_import_do_not_go_off_in_its_zygote(base: Base) -> None:
    """They would end it, or raise in our code."""
    zygote = base.load(f"import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\n{PLAIN}")
    ready(zygote)
    time.sleep(0.1)

    worker = base.worker(zygote)

    assert worker.frames(1)[0][0] == wire.READY


def test_where_a_process_is_can_be_asked(base: Base) -> None:
    """It writes its stack to the descriptor that it was given, whatever it is doing."""
    give_up = time.monotonic() + PATIENCE
    zygote = base.load("def handle(data):\n    while True: pass\n")
    ready(zygote)
    worker = base.worker(zygote)
    worker.frames(1)
    worker.sockets[1].send(wire.call_frame(1, 1, 0.0, 1, b"GET", b"", b"", b"", 0, b""))

    text = b""
    while b"f.py" not in text:
        os.kill(worker.pid, STACK_SIGNAL)
        time.sleep(0.01)
        text = os.pread(worker.faults, 65536, 0)
        assert time.monotonic() < give_up
    assert b'f.py", line 2 in handle' in text
    assert os.fstat(zygote.faults).st_size == 0


def test_descriptors_do_not_pile_up(base: Base) -> None:
    """A zygote keeps one for each process that it has, none for those that it had; and the way to its spare."""
    zygote = base.load(PLAIN)
    ready(zygote)

    def count() -> int:
        return len(os.listdir(f"/proc/{zygote.pid}/fd"))

    before = count()
    for number in range(6):
        if number % 2:
            spare(zygote, 0)
        worker = base.worker(zygote)
        worker.frames(1)
        os.kill(worker.pid, signal.SIGKILL)
        assert hear(zygote.sockets[0])[0]["pid"] == worker.pid

    spare(zygote, 0)
    give_up = time.monotonic() + PATIENCE
    while count() != before + 2:  # just after the fork there is one more, until the zygote has closed the other end
        assert time.monotonic() < give_up, count()
        time.sleep(0.002)


def test_messages_are_short_and_whole() -> None:
    """What is not ASCII is not escaped, what is not Unicode is."""
    from runtime.worker.parent import encode

    message = {"message": "\U0001f600" * 10 + "\udc80"}

    assert len(encode(message)) < 70
    assert json.loads(encode(message)) == message
