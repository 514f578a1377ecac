"""Base zygotes that several hosts share: real processes, and two spawners in the place of two hosts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import bases as bases_module
from runtime import config as configuration
from runtime import host as host_module
from runtime.bases import Bases
from runtime.calls import Call
from runtime.errors import HostError, LoadFailed
from runtime.process import FULL, Process
from runtime.share import Share
from runtime.spawner import Spawner, Zygote
from runtime.worker import wire
from tests.unit.test_spawner import PATIENCE, alive, spec, until

pytestmark = pytest.mark.anyio

COUNTED = """
    import os
    with open("imports", "a") as file:
        print(os.getpid(), file=file)

    def handle(data):
        print("from", os.getpid())
        os.system("echo below $PPID")
        return os.getpid()
"""

SPINNING = """
    import os
    def handle(function_call_info):
        while function_call_info.path == "/spin":
            pass
        return os.getpid()
"""


class Worker:
    """A process forked for a host, and the host's ends of its sockets."""

    def __init__(self, process: Process, channel: socket.socket, queue: socket.socket) -> None:
        self.process, self.channel, self.queue = process, channel, queue

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    async def call(self) -> bytes:
        """The body of an answer."""
        self.queue.send(wire.call_frame(1, 1, time.time() + 60, 1, b"GET", b"", b"", b"", 0, b""))
        reader = wire.Reader()
        with anyio.fail_after(PATIENCE):
            while True:
                await anyio.wait_readable(self.channel)
                for kind, _, _, payload in reader.feed(self.channel.recv(65536)):
                    if kind == wire.RESULT:
                        return bytes(wire.parse_result(payload)[3])

    async def ended(self) -> str:
        """How it ended."""
        with anyio.fail_after(PATIENCE):
            await self.process.ended.wait()
        return self.process.reason()

    def finish(self) -> None:
        """Let it end."""
        self.channel.close()
        self.queue.close()


class Host:
    """What one host process does: a spawner of its own, and zygotes it has loaded."""

    def __init__(self, bases: Bases, folder: Path) -> None:
        self.folder = folder
        self.spawner = Spawner(bases.attach)
        self.lines: list[str] = []
        self.news: list[str] = []
        self.given: list[dict[str, Any]] = []  # workers that another host had
        self.zygotes: list[Zygote] = []
        self._sockets: list[socket.socket] = []

    def zygote(self, source: str = COUNTED, **settings: Any) -> Zygote:
        """One that has loaded nothing."""
        zygote = Zygote(self.spawner, spec(self.folder, source, **settings), self.lines.append)
        zygote.on_news = self.hear
        self.zygotes.append(zygote)
        return zygote

    def hear(self, message: dict[str, Any]) -> None:
        self.news.append(message["op"])
        if message["op"] == "given":
            self.given.append(message)

    async def load(self, source: str = COUNTED, **settings: Any) -> Zygote:
        """A function, imported."""
        zygote = self.zygote(source, **settings)
        await zygote.load(PATIENCE)
        return zygote

    def ask(self, zygote: Zygote, *, most: int = 16, wanted: bool = True, fresh: bool = False) -> Worker:
        """A worker that is asked for."""
        channel, theirs = socket.socketpair()
        queue, their_queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [channel, queue]
        with theirs, their_queue:
            process = zygote.fork((theirs, their_queue), fresh=fresh, most=most, wanted=wanted)
        return Worker(process, channel, queue)

    async def worker(self, zygote: Zygote, **how: Any) -> Worker:
        """A worker that is there."""
        worker = self.ask(zygote, **how)
        await until(lambda: worker.process.pid is not None or worker.process.ended.is_set())
        assert not worker.process.ended.is_set(), worker.process.reason()
        return worker

    async def die(self) -> None:
        """As a host does that is killed: every socket closes, and nobody says goodbye."""
        for line in self.spawner.lines:
            line.control._loop.remove_reader(line.control._sock)
            line.control._sock.close()
        for zygote in self.zygotes:
            if zygote._control is not None and not zygote._control.closed:
                zygote._control._loop.remove_reader(zygote._control._sock)
                zygote._control._sock.close()
        for sock in self._sockets:
            sock.close()

    async def close(self) -> None:
        for zygote in self.zygotes:
            zygote.close()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
async def bases(anyio_backend: str) -> AsyncIterator[Bases]:
    """No process is left of them after the test."""
    async with Bases() as entered:
        yield entered
        pids = entered.pids
    assert not any(map(alive, pids))
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture
async def hosts(bases: Bases, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Makes hosts, all of the same functions."""
    made: list[Host] = []

    async def host() -> Host:
        made.append(Host(bases, tmp_path))
        await made[-1].spawner.__aenter__()
        return made[-1]

    yield host
    for each in made:
        if each.spawner.line(()).control._sock.fileno() >= 0:
            await each.close()
            await each.spawner.__aexit__()


def imports(folder: Path) -> list[int]:
    """The pids of the processes that have imported the function."""
    return [int(line) for line in (folder / "imports").read_text().split()]


async def test_hosts_share_what_they_load(hosts: Any, tmp_path: Path) -> None:
    """One import; each host has workers of its own, whose output comes to it."""
    one, two = await hosts(), await hosts()
    first = await one.worker(await one.load())
    second = await two.worker(await two.load())

    assert len(imports(tmp_path)) == 1
    for host, worker in ((one, first), (two, second)):
        assert await worker.call() == str(worker.pid).encode()
        await until(lambda host=host: host.lines)
        assert host.lines == [f"below {worker.pid}"]
    first.finish()
    assert await first.ended() == "its process exited with status 0"
    assert alive(second.pid)


async def test_two_that_load_at_the_same_moment(hosts: Any, tmp_path: Path) -> None:
    """Neither imports for itself, and both hear how it went."""
    one, two = await hosts(), await hosts()
    async with anyio.create_task_group() as tasks:
        for host in (one, two):
            tasks.start_soon(host.load)

    assert len(imports(tmp_path)) == 1
    assert [host.zygotes[0].alive for host in (one, two)] == [True, True]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("killed", [False, True])
async def test_a_zygote_lives_as_long_as_a_host_holds_it(
    hosts: Any, tmp_path: Path, order: tuple[int, int], killed: bool
) -> None:
    """Whoever loaded it; with each host its own workers end, and with the last the zygote."""
    both = [await hosts(), await hosts()]
    zygotes = [await host.load() for host in both]
    workers = [await host.worker(zygote) for host, zygote in zip(both, zygotes, strict=True)]
    (pid,) = imports(tmp_path)

    for leaving, staying in (order, order[::-1]):
        if killed:
            await both[leaving].die()
        else:
            zygotes[leaving].close()
        await until(lambda leaving=leaving: not alive(workers[leaving].pid))
        if leaving == order[0]:
            assert await workers[staying].call() == str(workers[staying].pid).encode()
            await both[staying].worker(zygotes[staying])
            assert alive(pid)

    await until(lambda: not alive(pid))


async def test_a_stuck_import_ends_with_the_last_who_waits(hosts: Any, tmp_path: Path) -> None:
    """The time that one host gives it is not the other's; and nobody is given what did not end in time."""
    one, two, late = await hosts(), await hosts(), await hosts()
    source = 'import os\nwith open("imports", "a") as file: print(os.getpid(), file=file)\nwhile True: pass\n'
    async with anyio.create_task_group() as tasks:
        waiting = two.zygote(source)
        tasks.start_soon(waiting.load, 10 * PATIENCE)
        await until(lambda: (tmp_path / "imports").exists() and imports(tmp_path))
        impatient = one.zygote(source)
        with pytest.raises(LoadFailed, match=r"did not finish within 0\.5 s; it was at .*line 3"):
            await impatient.load(0.5)
        impatient.close(stale=True)
        tasks.start_soon(late.zygote(source).load, 10 * PATIENCE)
        await until(lambda: len(imports(tmp_path)) == 2)
        first, second = imports(tmp_path)
        assert alive(first)
        tasks.cancel_scope.cancel()

    waiting.close()
    await until(lambda: not alive(first))
    assert alive(second)
    await late.die()
    await until(lambda: not alive(second))


async def test_a_failure_is_told_to_all(hosts: Any, tmp_path: Path) -> None:
    """Who waits for the import when it fails; who comes later has it tried again."""
    one, two = await hosts(), await hosts()
    source = 'import os\nopen("imports", "a").write("1\\n")\nwhile not os.path.exists("go"): pass\n1 / 0\n'
    failures: list[LoadFailed] = []

    async def load(host: Host) -> None:
        with pytest.raises(LoadFailed, match="division") as failure:
            await host.zygote(source).load(PATIENCE)
        failures.append(failure.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load, one)
        await until((tmp_path / "imports").exists)
        tasks.start_soon(load, two)
        await until(lambda: two.zygotes and two.zygotes[0]._process and two.zygotes[0]._process.pid)
        (tmp_path / "go").touch()

    assert [failure.details["line"] for failure in failures] == [4, 4]
    assert imports(tmp_path) == [1]
    await load(two)
    assert imports(tmp_path) == [1, 1]


async def test_what_is_stale_is_not_given_out_again(hosts: Any, tmp_path: Path) -> None:
    """A host has found that files have changed which were imported from disk: it gets another import of the same."""
    one, two = await hosts(), await hosts()
    old = await one.worker(await one.load())
    again = await two.load()
    again.close(stale=True)
    new = await two.worker(await two.load())

    assert len(set(imports(tmp_path))) == 2
    assert await old.call() == str(old.pid).encode()
    assert await new.call() == str(new.pid).encode()


async def test_one_host_may_load_the_same_twice(hosts: Any, tmp_path: Path) -> None:
    """As when it reloads what has not changed: letting go of one leaves the other."""
    host = await hosts()
    first, second = await host.load(), await host.load()
    assert len(imports(tmp_path)) == 1

    first.close()
    worker = await host.worker(second)

    assert await worker.call() == str(worker.pid).encode()


async def test_the_output_of_a_host_does_not_end_with_another(hosts: Any, tmp_path: Path) -> None:
    """The zygote prints into a pipe that nobody reads any more, and goes on."""
    one, two = await hosts(), await hosts()
    source = COUNTED + "\n    os.register_at_fork(before=lambda: print('x' * 70_000, flush=True))\n"
    zygotes = await one.load(source, fork="always"), await two.load(source, fork="always")
    zygotes[0].close()
    await until(lambda: one.zygotes[0].closed)

    for _ in range(3):
        worker = await two.worker(zygotes[1])
        assert await worker.call() == str(worker.pid).encode()


# The limit of workers.


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_limit_holds_for_all_hosts(hosts: Any, fresh: bool) -> None:
    """Beyond it a worker is refused; who has the most is asked for one, and what is free is offered."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two)]
    first = await one.worker(zygotes[0], most=1, fresh=fresh)

    refused = two.ask(zygotes[1], most=1, fresh=fresh)
    assert await refused.ended() == FULL
    await until(lambda: one.news == ["wanted"])
    assert two.news == []
    first.finish()
    await until(lambda: two.news == ["room"])
    assert await one.ask(zygotes[0], most=1, wanted=False, fresh=fresh).ended() == FULL  # it is kept for the other

    second = await two.worker(zygotes[1], most=1, fresh=fresh)
    assert await second.call() == str(second.pid).encode()


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_place_that_is_passed_on(hosts: Any, fresh: bool) -> None:
    """It is the next one's; and so is that of a host that ends with it."""
    one, two, three = await hosts(), await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two, three)]
    first = await one.worker(zygotes[0], most=1, fresh=fresh)
    for host, zygote in ((two, zygotes[1]), (three, zygotes[2])):
        assert await host.ask(zygote, most=1, fresh=fresh).ended() == FULL
    await one.die()
    await until(lambda: not alive(first.pid))
    await until(lambda: "room" in two.news)
    assert three.news == []

    if fresh:
        await two.die()
    else:
        zygotes[1].pass_on(fresh=fresh)
    await until(lambda: "room" in three.news)

    await three.worker(zygotes[2], most=1, fresh=fresh)


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_worker_that_was_given_away_is_the_other_hosts(hosts: Any, fresh: bool) -> None:
    """It outlives the one that gave it, counts for the one that has it, and ends with that one."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two)]
    first = await one.worker(zygotes[0], most=1, fresh=fresh)
    assert await two.ask(zygotes[1], most=1, fresh=fresh).ended() == FULL

    assert zygotes[0].give(first.process, [first.channel, first.queue], last_stream=7, fresh=fresh)
    assert not zygotes[0].give(first.process, [first.channel, first.queue], last_stream=7, fresh=fresh)
    await until(lambda: two.given)
    await one.die()

    [message] = two.given
    channel, queue = [socket.socket(fileno=fd) for fd in message["sockets"]]
    taken = Worker(message["process"], channel, queue)
    two._sockets += [channel, queue]
    assert await taken.call() == str(first.pid).encode()
    assert message["last_stream"] == 7
    assert "room" not in two.news
    await two.die()
    await until(lambda: not alive(first.pid))


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_host_that_dies_takes_its_own_workers_along(hosts: Any, fresh: bool) -> None:
    """Whatever they do, and no others; not what stands by now where its own stood that had ended before."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load(SPINNING) for host in (one, two)]
    *ended, spins = [await one.worker(zygotes[0], fresh=fresh) for _ in range(7)]
    for worker in ended:
        worker.finish()
        await worker.ended()
    other = await two.worker(zygotes[1], fresh=fresh)
    spins.queue.send(wire.call_frame(1, 1, time.time() + 60, 1, b"GET", b"/spin", b"", b"", 0, b""))
    await one.die()

    await until(lambda: not alive(spins.pid))
    assert await other.call() == str(other.pid).encode()


async def test_a_worker_that_nobody_waits_for_comes_back(hosts: Any) -> None:
    """As it went."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two)]
    first = await one.worker(zygotes[0], most=1)

    assert zygotes[0].give(first.process, [first.channel, first.queue], last_stream=0, fresh=False)
    await until(lambda: one.given)

    channel, queue = [socket.socket(fileno=fd) for fd in one.given[0]["sockets"]]
    one._sockets += [channel, queue]
    assert await Worker(one.given[0]["process"], channel, queue).call() == str(first.pid).encode()
    assert two.given == []
    assert await two.ask(zygotes[1], most=1).ended() == FULL


async def test_descriptors_of_what_is_not_taken_do_not_pile_up(hosts: Any, tmp_path: Path) -> None:
    """Neither of workers that are refused, nor of one that is given away and comes back."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two)]
    first = await one.worker(zygotes[0], most=1)
    [pid] = imports(tmp_path)
    process, sockets, before = first.process, [first.channel, first.queue], 0
    for number in range(4):
        if number == 1:  # all that it has once is there, and perhaps those of the last worker still
            before = len(os.listdir(f"/proc/{pid}/fd"))
        assert await two.ask(zygotes[1], most=1, wanted=False).ended() == FULL
        assert zygotes[0].give(process, sockets, last_stream=0, fresh=False)
        await until(lambda number=number: len(one.given) == number + 1)
        process, sockets = one.given[-1]["process"], [socket.socket(fileno=fd) for fd in one.given[-1]["sockets"]]
        one._sockets += sockets

    await until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)


async def test_a_worker_that_nobody_waits_for_takes_none_away(hosts: Any) -> None:
    """It is refused, and that is all."""
    one, two = await hosts(), await hosts()
    zygotes = [await host.load() for host in (one, two)]
    first = await one.worker(zygotes[0], most=1)

    assert await two.ask(zygotes[1], most=1, wanted=False).ended() == FULL
    first.finish()
    await first.ended()
    await one.worker(zygotes[0], most=1)

    assert (one.news, two.news) == ([], [])


# A base zygote that ends.


async def test_a_killed_base_zygote_is_replaced_for_all(
    bases: Bases, hosts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything below it ends; each host is attached to the next one when it loads again."""
    one, two = await hosts(), await hosts()
    workers = [await host.worker(await host.load()) for host in (one, two)]
    (before,) = bases.pids

    os.kill(before, signal.SIGKILL)
    for worker in workers:
        assert await worker.ended() == "its zygote ended"
    again = [await host.worker(await host.load()) for host in (one, two)]

    assert [await worker.call() for worker in again] == [str(worker.pid).encode() for worker in again]
    assert bases.pids != [before]
    assert len(imports(tmp_path)) == 2
    await until(lambda: "base zygote ended with status -9" in caplog.text)


async def test_children_of_somebody_else_are_spared(tmp_path: Path) -> None:
    """When what a base zygote has left behind is ended."""
    others = [subprocess.Popen(["sleep", "100000"])]
    orphan = "import subprocess\nprint(subprocess.Popen(['sleep', '100000']).pid, flush=True)\ndef handle(): pass\n"
    try:
        async with Bases(others=lambda: [other.pid for other in others]) as bases:
            host = Host(bases, tmp_path)
            async with host.spawner:
                await host.load(orphan)
                await until(lambda: host.lines)
                os.kill(bases.pids[0], signal.SIGKILL)
                await until(lambda: not alive(int(host.lines[0])))
                await host.close()
        assert others[0].poll() is None
    finally:
        for other in others:
            other.kill()
            other.wait()


async def test_hosts_outlive_the_door(hosts: Any, bases: Bases) -> None:
    """Whoever attached them may end: a base zygote serves until its last host has gone."""
    host = await hosts()
    zygote = await host.load()
    (pid,) = bases.pids
    bases._closing = True
    bases._bases[()].door.close()

    worker = await host.worker(zygote)
    assert await worker.call() == str(worker.pid).encode()
    await host.die()

    await until(lambda: not alive(pid))


# Preloads.

USES = "import os, sys\ndef handle(data):\n    return [name for name in {names!r} if name in sys.modules]\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a module importable by the functions' interpreter, which is not in a function's folder."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return lambda name, source: (folder / f"{name}.py").write_text(textwrap.dedent(source)) and None


async def preloaded(host: Host, *names: str) -> bytes:
    """Which of the modules a function finds imported that does not import them."""
    zygote = await host.load(USES.format(names=names), preload=list(names))
    return await (await host.worker(zygote)).call()


async def test_preloaded_modules_are_imported_once(hosts: Any, installed: Any, bases: Bases, tmp_path: Path) -> None:
    """In a base zygote of their own, for every function and every host; others find nothing of it."""
    installed("heavy", f"print('x', file=open({str(tmp_path / 'imports')!r}, 'a'))")
    one, two = await hosts(), await hosts()

    assert await preloaded(one, "heavy", "colorsys") == b'["heavy","colorsys"]'
    assert await preloaded(two, "heavy", "colorsys") == b'["heavy","colorsys"]'

    assert (tmp_path / "imports").read_text() == "x\n"
    assert len(bases.pids) == 2
    plain = await one.load(USES.format(names=["heavy"]))
    assert await (await one.worker(plain)).call() == b"[]"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import missing", "No module named 'missing'"),
        ("import os\nos._exit(3)", "its import ended the process"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "its import ended the process"),
        ("import os\nif os.fork() == 0: raise ValueError\nraise SystemExit('enough')", "SystemExit: enough"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), name='beat').start()",
            "left threads running (beat)",
        ),
        ("import socket\nkept = socket.socketpair()", "left sockets open"),
    ],
)
async def test_a_preload_that_cannot_be(
    hosts: Any, installed: Any, caplog: pytest.LogCaptureFixture, source: str, said: str
) -> None:
    """It is said once, and functions go on without it, with the others."""
    installed("bad", source)
    host = await hosts()

    with caplog.at_level(logging.ERROR):
        assert b'"colorsys"' in await preloaded(host, "bad", "colorsys")
        assert b'"colorsys"' in await preloaded(host, "bad", "colorsys")

    about = [record.message for record in caplog.records if "functions do without bad" in record.message]
    assert len(about) == 1
    assert about[0].startswith("preload = [bad, colorsys]: ")
    assert said in about[0]


async def test_each_preload_that_cannot_be_is_told_once(
    hosts: Any, installed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the interpreter had to start anew for another."""
    installed("bad", "1 / 0")
    installed("worse", "import socket\nkept = socket.socketpair()")

    assert await preloaded(await hosts(), "bad", "worse", "colorsys") == b'["colorsys"]'
    assert [record.message.partition(":")[2][1:27] for record in caplog.records if "preload" in record.message] == [
        "functions do without bad: ",
        "functions do without worse",
    ]


async def test_a_preload_that_never_ends(
    hosts: Any, installed: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up, and the load that waits for it goes on without."""
    monkeypatch.setattr(bases_module, "PRELOAD_WAIT", 0.5)
    installed("endless", "while True: pass")

    assert await preloaded(await hosts(), "endless", "colorsys") == b'["colorsys"]'
    assert "endless: its import did not end within 0.5 s" in caplog.text


async def test_what_nobody_preloads_any_more_goes(hosts: Any, bases: Bases, caplog: pytest.LogCaptureFixture) -> None:
    """Once no host has a process of it, and no function that asks for it; it comes again when it is asked for."""
    one, two = await hosts(), await hosts()
    for host in (one, two):
        await preloaded(host, "colorsys")
    (_, pid) = bases.pids
    for host in (one, two):
        host.spawner.tidy([])
        host.zygotes[0].close()
        host.spawner.tidy([("colorsys",)])
    assert await preloaded(one, "colorsys") == b'["colorsys"]'
    assert bases.pids[1] == pid

    one.zygotes[1].close()
    one.spawner.tidy([])
    assert await preloaded(two, "colorsys") == b'["colorsys"]'
    assert alive(pid)
    two.zygotes[1].close()
    two.spawner.tidy([])
    await until(lambda: not alive(pid))

    assert await preloaded(one, "colorsys") == b'["colorsys"]'
    assert "base zygote" not in caplog.text


async def test_a_module_of_the_function_wins_over_a_preloaded_one(hosts: Any, installed: Any, tmp_path: Path) -> None:
    """As it does where nothing is preloaded."""
    installed("shape", "whose = 'installed'")
    host = await hosts()
    own = ["functions.s.shape", str(tmp_path / "shape.py"), "whose = 'own'\n", False, False]
    source = "import shape\ndef handle(data):\n    return shape.whose\n"
    told = spec(tmp_path, source, preload=["shape"])
    told["modules"].append(own)
    zygote = Zygote(host.spawner, told, host.lines.append)
    host.zygotes.append(zygote)
    await zygote.load(PATIENCE)

    assert await (await host.worker(zygote)).call() == b"own"


# Whole hosts.

EXCLUSIVE = """
    import os, time

    {kind}def handle(data):
        name = f"{{os.path.dirname(__file__)}}/running.{{os.getpid()}}"
        open(name, "x").close()
        try:
            running = [each for each in os.listdir(os.path.dirname(__file__)) if each.startswith("running.")]
            time.sleep(0.002)
            return len(running)
        finally:
            os.unlink(name)
"""


@pytest.fixture
async def pair(bases: Bases, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Enters two hosts that serve the same folder."""
    async with AsyncExitStack() as stack:

        async def enter(source: str, settings: str) -> list[host_module.Host]:
            (tmp_path / "functions" / "demo").mkdir(parents=True)
            (tmp_path / "functions" / "demo" / "f.py").write_text(textwrap.dedent(source))
            (tmp_path / "spaces.toml").write_text(f"[defaults]\n{settings}\n")
            config = configuration.load(tmp_path, environ={})
            made = [host_module.Host(config, watch=False) for _ in range(2)]
            for index, host in enumerate(made):
                host.share, host._spawner = Share(index, 2), Spawner(bases.attach)
                await stack.enter_async_context(host)
            return made

        yield enter


async def answers(host: host_module.Host, count: int, **fields: Any) -> list[bytes]:
    """What a client gets that makes so many calls, one after the other."""
    bodies = []
    for _ in range(count):
        number = host.ids.next()
        with host.invoke(Call(id=number, label=str(number), space="demo", name="f", **fields)) as exchange:
            bodies.append((await exchange.result()).body)
    return bodies


@pytest.mark.parametrize(
    ("kind", "fork", "most"), [("", "auto", 1), ("async ", "auto", 1), ("", "never", 1), ("", "auto", 3)]
)
async def test_hosts_take_turns(pair: Any, kind: str, fork: str, most: int) -> None:
    """There are never more processes that run a function than it may have, and every call is answered."""
    settings = f'max_workers = {most}\nconcurrency = 1\ntimeout = "{PATIENCE:g}s"\nfork = "{fork}"'
    hosts = await pair(EXCLUSIVE.format(kind=kind), settings)
    found: list[bytes] = []

    async def client(host: host_module.Host) -> None:
        found.extend(await answers(host, 20))

    with anyio.fail_after(2 * PATIENCE):
        async with anyio.create_task_group() as tasks:
            for host in hosts * 4:
                tasks.start_soon(client, host)

    assert len(found) == 160
    assert {int(each) for each in found} <= set(range(1, most + 1))


@pytest.mark.parametrize(("kind", "fork"), [("", "auto"), ("async ", "auto"), ("", "never")])
async def test_a_worker_goes_from_host_to_host_as_it_is(pair: Any, kind: str, fork: str) -> None:
    """With what its handler has in memory, and whatever it is printing meanwhile."""
    source = f"""
        import threading
        calls = 0

        {kind}def handle(data):
            global calls
            calls += 1
            threading.Thread(target=print, args=("later",)).start()
            return calls
    """
    hosts = await pair(source, f'max_workers = 1\ntimeout = "{PATIENCE:g}s"\nfork = "{fork}"')
    found = [(await answers(hosts[number % 2], 1 + number % 3))[-1] for number in range(20)]

    assert found == [b"%d" % sum(1 + each % 3 for each in range(number + 1)) for number in range(20)]
    assert sum(pool.stats.cold_starts for host in hosts for pool in host._pools) == 1
    assert [pool.stats.deaths for host in hosts for pool in host._pools] == [{}, {}]


@pytest.mark.parametrize("killed", [False, True])
async def test_who_waits_has_the_place_of_a_host_that_ends(pair: Any, killed: bool) -> None:
    """Its worker, with the call in it, ends with it; or goes over as it is, once it has no call."""
    source = "import os, time\ndef handle(data):\n    time.sleep(data or 0)\n    return os.getpid()\n"
    one, two = await pair(source, f'max_workers = 1\ntimeout = "{PATIENCE:g}s"\nmin_workers = 1')
    (first,) = await answers(one, 1)
    assert await answers(two, 1) == [first]

    (pid,) = await answers(one, 1)
    two_answers: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        if killed:
            tasks.start_soon(answers_or_none, one, b"1000")
            await until(lambda: any(pool.busy for pool in one._pools))
        tasks.start_soon(lambda: collect(two, two_answers))
        if killed:
            await until(lambda: any(pool.waiting for pool in two._pools))
            for line in one._spawner.lines:
                line.control._sock.shutdown(socket.SHUT_RDWR)
            for pool in one._pools:
                pool.current.zygote._control._sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: two_answers)
        tasks.cancel_scope.cancel()

    assert (two_answers == [pid]) is not killed


async def answers_or_none(host: host_module.Host, body: bytes) -> None:
    """A call of which nothing is expected."""
    with contextlib.suppress(HostError):
        await answers(host, 1, body=(body,), headers=b"content-type\0application/json")


async def collect(host: host_module.Host, into: list[bytes]) -> None:
    into.extend(await answers(host, 1))
