"""What handlers start ends with them: children, daemons, threads, timers; and nothing outlives the host."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance.conftest import Running, Site, alive, descendants, eventually
from tests.acceptance.notes import gone, noted, parent_of, path_of, take_notes

HANDLER = """
    import asyncio, ctypes, multiprocessing, os, signal, subprocess, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from note import note

    def child(name):
        pid = os.fork()
        if pid == 0:
            note(name)
            time.sleep(1e6)
            os._exit(0)

    def daemon(name):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if os.fork() == 0:
                os.closerange(0, 256)
                note(name)
                while True:
                    time.sleep(1e6)
            os._exit(0)
        os.wait()

    def chain(name, depth):
        # Each of them ignores what it may, and has a child of its own.
        [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]
        note(f"{name}{depth}")
        if depth:
            pid = os.fork()
            if pid == 0:
                chain(name, depth - 1)
            time.sleep(1e6)
        time.sleep(1e6)

    def bomb(name, depth):
        for _ in range(4):
            if depth and os.fork() == 0:
                bomb(name, depth - 1)
        if depth:
            note(f"{name}-{os.getpid()}")
        time.sleep(1e6)

    def wait_for(*names):
        while not all(os.path.exists(os.environ["NOTES"] + "/" + name) for name in names):
            time.sleep(0.005)

    def start(name):
        if name == "fork":
            child(name)
        elif name == "daemon":
            daemon(name)
        elif name == "popen":
            subprocess.Popen(["sh", "-c", f"echo $$ > $NOTES/.{name}; mv $NOTES/.{name} $NOTES/{name}; sleep 100000"])
        elif name == "session":
            subprocess.Popen(["sh", "-c", f"echo $$ > $NOTES/.{name}; mv $NOTES/.{name} $NOTES/{name}; sleep 100000"],
                             start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        elif name == "background":
            os.system(f"sh -c 'echo $$ > $NOTES/.{name}; mv $NOTES/.{name} $NOTES/{name}; sleep 100000' &")
        elif name == "multiprocessing":
            multiprocessing.get_context("fork").Process(target=child, args=(name,)).start()
        elif name == "chain":
            if os.fork() == 0:
                chain("chain", 5)
            wait_for(*(f"chain{i}" for i in range(6)))
            note(name, int(open(os.environ["NOTES"] + "/chain0").read()))
        elif name == "bomb":
            if os.fork() == 0:
                bomb("bombed", 3)
            wait_for()
            note(name)
        elif name == "exec":
            if os.fork() == 0:
                note(name)
                os.execvp("sleep", ["sleep", "100000"])
        elif name == "libc":
            if ctypes.PyDLL(None).fork() == 0:
                note(name)
                time.sleep(1e6)
        wait_for(name)

    KINDS = ["fork", "daemon", "popen", "session", "background", "multiprocessing", "chain", "exec", "libc"]

    {keyword} handle(function_call_info):
        path = function_call_info.path.strip("/")
        if path.startswith("hang-"):
            start(path.removeprefix("hang-"))
            time.sleep(1e6)
        if path:
            start(path)
        return os.getpid()
"""
KINDS = ["fork", "daemon", "popen", "session", "background", "multiprocessing", "chain", "bomb", "exec", "libc"]


def serve(site: Site, settings: str = "") -> Running:
    """A host with the handler above, sync and async."""
    take_notes(site, "d", settings)
    site.write("d/sync.py", HANDLER.replace("{keyword}", "def"))
    site.write("d/async.py", HANDLER.replace("{keyword}", "async def"))
    site.write("d/bystander.py", "import os\ndef handle(data):\n    return os.getpid()\n")
    return site.start()


@pytest.mark.parametrize("name", ["d/sync", "d/async"])
def test_children_end_with_an_idle_worker(site: Site, name: str) -> None:
    """They live on after their call; once the worker is retired they are ended, however they were started."""
    host = serve(site, 'idle_timeout = "300ms"')
    for kind in KINDS:
        assert host.call(name, f"/{kind}").status_code == 200
    worker = host.call(name).json()
    children = {noted(host, kind) for kind in KINDS} - {worker}
    assert all(alive(pid) for pid in children)
    zygote = parent_of(worker)

    gone(worker)

    for pid in children:
        gone(pid)
    eventually(lambda: len(descendants(zygote)) == 1, f"the end of all but the spare below {zygote}")


@pytest.mark.parametrize("name", ["d/sync", "d/async"])
def test_children_end_with_a_killed_worker(site: Site, name: str) -> None:
    """At a deadline, too."""
    host = serve(site, 'timeout = "2s"')
    for kind in KINDS[:-1]:
        assert host.call(name, f"/{kind}").status_code == 200
    worker = host.call(name).json()
    zygote = parent_of(worker)
    bystander = host.call("d/bystander").json()

    assert host.call(name, "/hang-libc").status_code == 504

    for kind in KINDS:
        if noted(host, kind) != worker:
            gone(noted(host, kind))
    eventually(lambda: len(descendants(zygote)) == 1, f"the end of all but the spare below {zygote}")
    assert host.call("d/bystander").json() == bystander


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_host(site: Site, number: signal.Signals) -> None:
    """Killed, or told to end, while workers spin, sleep, and have children of all kinds."""
    host = serve(site, 'timeout = "60s"')
    toml = site.root / "spaces.toml"
    site.write("spaces.toml", toml.read_text() + '\n[server]\ndrain_timeout = "100ms"\n')
    host.stop()
    host = site.start()
    site.write("d/spin.py", "from note import note\ndef handle(data):\n    note('spin')\n    while True: pass\n")
    site.write("d/importing.py", "from note import note\nnote('importing')\nwhile True: pass\ndef handle(data): pass\n")
    eventually(lambda: host.client.get("/spaces/d/functions/importing").status_code == 200, "the new files")
    for name in ("d/sync", "d/async"):
        for kind in KINDS:
            assert host.call(name, f"/{kind}").status_code == 200
            noted(host, kind)
            path_of(host, kind).unlink()

    def call_and_be_cut_off(function: str, path: str) -> None:
        try:
            host.call(function, path)
        except Exception:
            pass

    stuck = [("d/sync", "/hang-fork"), ("d/async", "/hang-chain"), ("d/spin", ""), ("d/importing", "")]
    threads = [threading.Thread(target=call_and_be_cut_off, args=arguments) for arguments in stuck]
    for thread in threads:
        thread.start()
    for note in ("fork", "chain", "spin", "importing"):
        noted(host, note)
    everything = host.descendants()
    assert len(everything) > 30

    host.process.send_signal(number)
    host.process.wait()

    eventually(lambda: not any(map(alive, everything)), "the end of everything")
    for thread in threads:
        thread.join()
    if number == signal.SIGTERM:
        assert host.process.returncode == 0


def test_what_runs_is_finished_when_the_host_is_told_to_end(site: Site) -> None:
    """SIGTERM: calls under way are answered, exit handlers run, the exit status is 0."""
    take_notes(site, "d", "")
    site.write(
        "d/slow.py",
        """
        import atexit, os, time
        from note import note
        atexit.register(note, "at_exit")

        def handle(data):
            note("slow")
            while not os.path.exists(os.environ["NOTES"] + "/go"):
                time.sleep(0.01)
            return "finished"
        """,
    )
    host = site.start()
    answers: list[str] = []
    caller = threading.Thread(target=lambda: answers.append(host.call("d/slow").text))
    caller.start()
    worker = noted(host, "slow")

    host.process.send_signal(signal.SIGTERM)
    host.logged("finishing what runs")
    path_of(host, "go").touch()

    assert host.process.wait() == 0
    caller.join()
    assert answers == ["finished"]
    gone(worker)


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host for handlers that do odd things with processes and threads."""
    take_notes(shared_site, "d", 'timeout = "5s"\nmax_workers = 1')
    for name, text in ODD.items():
        shared_site.write(f"d/{name}.py", text)
    return shared_site.start()


ODD = {
    "twins": """
        import os

        def handle(function_call_info):
            parent = os.getpid()
            os.fork()
            if os.getpid() != parent:
                with open(os.environ["NOTES"] + "/twins", "a") as file:
                    file.write(f"{os.getpid()} ")
            return os.getpid()
    """,
    "async_twins": """
        import asyncio, os

        async def handle(function_call_info):
            if function_call_info.path == "/other":
                await asyncio.sleep(0.2)
                return os.getpid()
            parent = os.getpid()
            os.fork()
            if os.getpid() != parent:
                with open(os.environ["NOTES"] + "/async_twins", "a") as file:
                    file.write(f"{os.getpid()} ")
            return os.getpid()
    """,
    "stream_twins": """
        import os

        def handle(data):
            yield "one "
            os.fork()
            yield "two "
            yield "three"
    """,
    "threads": """
        import os, threading, time
        from concurrent.futures import ThreadPoolExecutor

        executor = ThreadPoolExecutor(2)

        def handle(function_call_info):
            for daemon in (True, False):
                threading.Thread(target=time.sleep, args=(1e6,), daemon=daemon).start()
            executor.submit(time.sleep, 1e6)
            return os.getpid()
    """,
    "fresh_threads": """
        import os, threading, time
        from concurrent.futures import ThreadPoolExecutor

        executor = ThreadPoolExecutor(2)
        executor.submit(int).result()

        def handle(function_call_info):
            return executor.submit(os.getpid).result()
    """,
    "fresh_socket": """
        import os, socket

        ours, theirs = socket.socketpair()

        def handle(function_call_info):
            ours.send(b"x")
            return [os.getpid(), theirs.recv(10).decode()]
    """,
    "fresh_fails": """
        import os, threading, time

        threading.Thread(target=time.sleep, args=(1e6,)).start()
        if os.path.exists(os.environ["NOTES"] + "/fail"):
            raise ValueError("not again")

        def handle(function_call_info):
            return os.getpid()
    """,
    "zombies": """
        import os

        def handle(function_call_info):
            os.system("true &")
            os.system("true &")
            return os.getpid()
    """,
    "alarm": """
        import os, signal, time

        signal.signal(signal.SIGALRM, lambda *_: print("rang"))

        def handle(function_call_info):
            if function_call_info.path == "/set":
                signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            return os.getpid()
    """,
    "alarm_raises": """
        import os, signal, time

        def handle(function_call_info):
            if function_call_info.path == "/set":
                def ring(*_): raise TimeoutError("rang")
                signal.signal(signal.SIGALRM, ring)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
            return os.getpid()
    """,
    "alarm_kills": """
        import os, signal

        def handle(function_call_info):
            if function_call_info.path == "/set":
                signal.setitimer(signal.ITIMER_REAL, 0.05)
            return os.getpid()
    """,
    "child_handler": """
        import os, signal

        ended = []
        signal.signal(signal.SIGCHLD, lambda *_: ended.append(os.wait()[0]))

        def handle(function_call_info):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            while pid not in ended:
                pass
            return "reaped"
    """,
    "random": """
        import os, random, time, uuid
        from note import note

        def handle(function_call_info):
            note("random" + function_call_info.path.strip("/"))
            while len([n for n in os.listdir(os.environ["NOTES"]) if n.startswith("random")]) < 2:
                time.sleep(0.01)
            return [random.random(), random.getrandbits(64), str(uuid.uuid4()), os.urandom(8).hex()]
    """,
}


@pytest.mark.parametrize("name", ["twins", "async_twins"])
def test_a_child_that_returns_from_the_handler(host: Running, name: str) -> None:
    """Only the parent's answer is given, each time; the child ends where it would answer."""
    pids = {host.call(f"d/{name}").json() for _ in range(10)}

    assert len(pids) == 1
    for child in eventually(lambda: len(path_of(host, name).read_text().split()) == 10, "ten children") and (
        path_of(host, name).read_text().split()
    ):
        eventually(lambda pid=int(child): not alive(pid), "the end of a child")


def test_a_child_that_goes_on_with_a_stream(host: Running) -> None:
    """Its chunks are not the answer's."""
    assert [host.call("d/stream_twins").text for _ in range(5)] == ["one two three"] * 5


def test_threads_left_behind_keep_nothing(host: Running) -> None:
    """Neither the next call nor the end of the worker waits for them."""
    pids = {host.call("d/threads").json() for _ in range(3)}

    assert len(pids) == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("fresh_threads", "left threads running"), ("fresh_socket", "left sockets open")]
)
def test_an_import_after_which_forking_is_unsafe(host: Running, name: str, reason: str) -> None:
    """Its workers are fresh processes, which works, and the log says so."""
    answer = host.call(f"d/{name}")

    assert answer.status_code == 200
    pid = answer.json() if isinstance(answer.json(), int) else answer.json()[0]
    assert parent_of(parent_of(pid)) == host.process.pid
    line = host.logged(reason)
    assert f"d/{name}" in line
    assert "fresh processes" in line


def test_a_fresh_worker_that_cannot_import(host: Running) -> None:
    """503 with a reason; the traceback is in the log, and the next one may work."""
    pid = host.call("d/fresh_fails").json()
    path_of(host, "fail").touch()
    os.kill(pid, signal.SIGKILL)
    gone(pid)

    answer = eventually(lambda: (a := host.call("d/fresh_fails")).status_code != 502 and a, "an answer")

    assert answer.status_code == 503
    assert "not again" in host.logged("not again")
    path_of(host, "fail").unlink()
    assert eventually(lambda: (a := host.call("d/fresh_fails")).status_code == 200 and a, "an answer").json() != pid


def test_orphans_are_reaped(host: Running) -> None:
    """A worker collects what its calls leave behind, and does not fill the process table with it."""
    pids = {host.call("d/zombies").json() for _ in range(300)}

    assert len(pids) == 1
    everybody = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    dead = [pid for pid in everybody if parent_or_none(pid) in pids and not alive(pid)]
    assert len(dead) < 200


def parent_or_none(pid: int) -> int | None:
    try:
        return parent_of(pid)
    except OSError:
        return None


def test_a_timer_that_goes_on_after_its_call(host: Running) -> None:
    """Signal handlers that run between calls, and while answers are sent, disturb neither."""
    pid = host.call("d/alarm", "/set").json()

    assert {host.call("d/alarm").json() for _ in range(300)} == {pid}
    host.logged("rang")


@pytest.mark.parametrize("name", ["alarm_raises", "alarm_kills"])
def test_a_timer_that_ends_its_worker(host: Running, name: str) -> None:
    """It costs the worker, between calls; the next call gets another."""
    pid = host.call(f"d/{name}", "/set").json()
    gone(pid)

    eventually(lambda: host.status(f"d/{name}")["workers"] == 0, "the end of the worker")
    answer = host.call(f"d/{name}")

    assert answer.status_code == 200
    assert answer.json() != pid


def test_a_handler_of_sigchld_set_at_import(host: Running) -> None:
    """It works in the workers, and does not take the zygote's children from it."""
    assert [host.call("d/child_handler").text for _ in range(3)] == ["reaped"] * 3


def test_random_numbers_differ_between_workers(site: Site) -> None:
    """Workers forked from one zygote do not continue one sequence."""
    take_notes(site, "d", "max_workers = 2")
    site.write("d/random.py", ODD["random"])
    host = site.start()
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda path: host.call("d/random", path).json(), ["/1", "/2"]))

    for one, other in zip(*answers, strict=True):
        assert one != other
