"""Crashes cost their own calls, and nothing else: not the next call, not other functions, not the host."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.conftest import Running, Site, error_of, eventually
from tests.acceptance.notes import gone, noted, parent_of, path_of, take_notes

HANDLER = """
    import asyncio, ctypes, os, signal, socket, sys, threading, time
    from note import note

    class Silent(Exception):
        def __str__(self): raise RuntimeError("no text")
        __repr__ = __str__

    class Base(BaseException): pass

    class Shy(Exception):
        def __getattribute__(self, name): raise RuntimeError("not to be looked at")

    class Classless(Exception):
        __class__ = property(lambda self: 1 / 0)

    class Anonymous(type):
        def __getattribute__(self, name): raise RuntimeError("not to be looked at")

    def chained():
        error = None
        for number in range(20_000):
            later = ValueError(number)
            later.__context__, error = error, later
        return error

    class Bottomless:
        def __del__(self): pass

    def fall(): fall()

    @ctypes.CFUNCTYPE(None)
    def fall_in_c():
        sys.setrecursionlimit(10**9)
        fall_in_c()

    def exit_in_thread():
        threading.Thread(target=os._exit, args=(5,)).start()
        time.sleep(1e6)

    def channel():
        for name in os.listdir("/proc/self/fd"):
            try:
                found = socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue
            if found.type == socket.SOCK_STREAM and found.family == socket.AF_UNIX:
                try:
                    found.getpeername()
                except OSError:
                    continue
                if not found.getsockname():
                    yield found

    def say(data):
        for found in channel():
            found.sendall(data)
        time.sleep(1e6)

    {keyword} handle(function_call_info):
        if function_call_info.path == "/fine":
            return os.getpid()
        if function_call_info.path == "/wait":
            note("waiting-" + function_call_info.name)
            while not os.path.exists(os.environ["NOTES"] + "/go"):
                {wait}(0.01)
            return "waited"
        note(function_call_info.name)
        with open(os.environ["NOTES"] + "/runs-" + function_call_info.name, "a") as file:
            file.write(".")
        {crash}
"""
CRASHES = {
    "exit0": ("os._exit(0)", "its process exited with status 0"),
    "exit3": ("os._exit(3)", "its process exited with status 3"),
    "exit_in_thread": ("exit_in_thread()", "its process exited with status 5"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "its process was killed by SIGSEGV"),
    "null": ("ctypes.string_at(0)", "its process was killed by SIGSEGV"),
    "abort": ("os.abort()", "its process was killed by SIGABRT"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed by SIGKILL"),
    "term": ("os.kill(os.getpid(), signal.SIGTERM)", "its process was killed by SIGTERM"),
    "group": ("os.kill(0, signal.SIGTERM); time.sleep(1e6)", "its process was killed by SIGTERM"),
    "real_time": ("os.kill(os.getpid(), 50)", "its process was killed by 50"),
    "memory": ("bytearray(10**9)", "its memory limit was reached"),
    "shut": ("[found.shutdown(2) for found in channel()]; time.sleep(1e6)", "it closed its connection to the host"),
}
if sys.version_info < (3, 12):  # later ones do not let C code recurse so far
    CRASHES["stack"] = ("fall_in_c()", "its process was killed by SIGSEGV")
RAISED = {
    "recursion": ("fall()", "RecursionError"),
    "system_exit": ("sys.exit(3)", "SystemExit"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "generator_exit": ("raise GeneratorExit", "GeneratorExit"),
    "stop_iteration": ("raise StopIteration(1)", "StopIteration"),
    "cancelled": ("raise asyncio.CancelledError", "CancelledError"),
    "base": ("raise Base('no Exception')", "Base"),
    "silent": ("raise Silent", "Silent"),
    "group_of_them": ("raise ExceptionGroup('all', [Silent(), ValueError(1)])", "ExceptionGroup"),
    "no_memory": ("raise MemoryError", "MemoryError"),
    "shy": ("raise Shy('text')", "Shy"),
    "classless": ("raise Classless('text')", "Classless"),
    "nameless": ("raise Anonymous('Nameless', (Exception,), {{}})('text')", "Nameless"),
    "chained": ("raise chained()", "ValueError"),
    "class_of_old": ("raise type('Name with spaces', (Exception,), {{}})('text')", "Name with spaces"),
}
ENDS = {  # of the event loop, by code that belongs to no call
    "exit": ("later(sys.exit, 4)", "its process exited with status 4", "SystemExit: 4"),
    "words": ("later(sys.exit, 'enough')", "its process exited with status 1", "SystemExit: enough"),
    "callback": ("asyncio.get_running_loop().call_soon(sys.exit)", "its process exited with status 0", "SystemExit"),
    "interrupt": ("later(interrupt)", "its process exited with status 1", "KeyboardInterrupt"),
    "stop": ("asyncio.get_running_loop().stop()", "its process exited with status 1", "Event loop stopped"),
}
ENDING = """
    import asyncio, os, sys

    tasks = []

    def interrupt():
        raise KeyboardInterrupt

    def later(function, *arguments):
        async def run():
            function(*arguments)
        tasks.append(asyncio.create_task(run()))

    async def handle(function_call_info):
        if function_call_info.path == "/fine":
            return os.getpid()
        if function_call_info.path != "/wait":
            {end}
        try:
            await asyncio.sleep(4)
        except asyncio.CancelledError:
            return "it was cancelled"
"""
GARBAGE = {
    "noise": "b'\\xff' * 100",
    "unknown_kind": "bytes(12)",
    "long": "b'\\xff\\xff\\xff\\x7f\\x04' + bytes(7)",
    "second_result": "(b'\\x0a\\0\\0\\0\\x04\\1\\0\\0' + b'\\7\\0\\0\\0' + b'\\xc8\\0' + bytes(8))",
    "bad_status": "(b'\\x0a\\0\\0\\0\\x04\\1\\0\\0' + b'\\1\\0\\0\\0' + b'\\1\\0' + bytes(8))",
    "split_response": (
        "(b'\\x1a\\0\\0\\0\\x04\\1\\0\\0' + b'\\1\\0\\0\\0' + b'\\xc8\\0' + bytes(4)"
        " + b'\\x10\\0\\0\\0' + b'a\\0b\\r\\nset-cookie:')"
    ),
    "bad_error": "(b'\\4\\0\\0\\0\\x07\\0\\0\\0' + b'\\1\\0\\0\\0' + b'null')",
    "error_status": (
        """(lambda text: len(text).to_bytes(4, 'little') + b'\\7\\0\\0\\0' + b'\\1\\0\\0\\0' + text)"""
        """(b'{{"status": 1e300, "code": 1, "message": [], "details": 5}}')"""
    ),
    "call": "(b'\\0\\0\\0\\0\\2\\0\\0\\0' + b'\\1\\0\\0\\0')",
}
IMPORTS = {
    "raises": ("x = 1\nraise ValueError('not today')\n", "ValueError: not today", 2),
    "syntax": ("def handle(data):\n    return (1\n", "SyntaxError: ", 2),
    "missing": ("import surely_not_installed\n", "No module named 'surely_not_installed'", 1),
    "silent": (
        "class Silent(Exception):\n    def __str__(self): raise self\n\nraise Silent\n", "Silent", 4,
    ),
    "exits": ("import sys\nsys.exit('enough')\n", "SystemExit: enough", 2),
    "interrupts": ("raise KeyboardInterrupt\n", "KeyboardInterrupt", 1),
    "argument": ("def handle(data, colour):\n    pass\n", "`colour`", None),
    "wordy": ("raise ValueError('\\U0001f600\\udc80' * 20000)\n", "ValueError: \U0001f600", 1),
    "dies": ("import os\nos._exit(4)\n", "importing it ended the process: its process exited with status 4", None),
    "segfaults": ("import ctypes\nctypes.string_at(0)\n", "its process was killed by SIGSEGV", None),
    "too_much": ("x = bytearray(10**9)\n", "MemoryError", 1),
}  # fmt: skip
FINE = "\ndef handle(data):\n    return 'fine'\n"
STRANGE_IMPORTS = {  # they do no good, but an answer is possible
    "forks": "import os\nos.fork()\n",
    "forks_and_raises": "import os\nif os.fork() == 0: raise ValueError\n",
    "closes_standard": "import os\nos.closerange(0, 3)\n",
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, print)\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\n",
    "alarm_default": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.2)\n",
    "ignores_children": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
    "ignores_all": "import signal\n[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]\n",
    "low_recursion": "import sys\nsys.setrecursionlimit(120)\n",
    "joined_threads": (
        "import threading\nfor _ in range(20):\n    t = threading.Thread(target=int)\n    t.start()\n    t.join()\n"
    ),
}


def settings(memory: str) -> str:
    """The limits of this module's functions."""
    return f"""
        timeout = "5s"
        max_workers = 2

        [spaces.d.functions.memory]
        memory = "{memory}"

        [spaces.d.functions.async_memory]
        memory = "{memory}"

        [spaces.d.functions.import_too_much]
        memory = "{memory}"
    """


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host with a function for each way to crash, sync and async."""
    site = shared_site
    take_notes(site, "d", settings("200MiB"))
    bodies = {name: body for name, (body, _) in (CRASHES | RAISED).items()}
    bodies |= {f"garbage_{name}": f"say({data})" for name, data in GARBAGE.items()}
    for name, body in bodies.items():
        for prefix, keyword, wait in (("", "def", "time.sleep"), ("async_", "async def", "await asyncio.sleep")):
            text = HANDLER.replace("{keyword}", keyword).replace("{wait}", wait)
            site.write(f"d/{prefix}{name}.py", text.replace("{crash}", body).replace("{{", "{").replace("}}", "}"))
    for name, (text, _, _) in IMPORTS.items():
        site.write(f"d/import_{name}.py", text + ("" if "handle" in text else FINE))
    for name, text in STRANGE_IMPORTS.items():
        site.write(f"d/strange_{name}.py", text + FINE)
    for name, (text, _, _) in ENDS.items():
        site.write(f"d/end_{name}.py", ENDING.replace("{end}", text))
    site.write("d/bystander.py", "import os\ndef handle(data):\n    return os.getpid()\n")
    return site.start()


def runs(host: Running, name: str) -> int:
    """How often a handler has run."""
    path = path_of(host, f"runs-{name}")
    return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def bystander(host: Running) -> Iterator[None]:
    """Another function is called before and after the test, and must be answered by the same process."""
    before = host.call("d/bystander").json()
    yield
    assert host.call("d/bystander").json() == before


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", [f"{prefix}{name}" for prefix in ("", "async_") for name in CRASHES])
def test_a_crash_is_a_502_with_its_reason(host: Running, name: str) -> None:
    """The call is answered, is not run again, and the next one gets a new process."""
    before = runs(host, name)

    answer = host.call(f"d/{name}")

    assert answer.status_code == 502, answer.text
    assert error_of(answer)["code"] == "worker_died"
    assert CRASHES[name.removeprefix("async_")][1] in error_of(answer)["message"]
    assert "X-Invoked" not in answer.headers
    assert runs(host, name) == before + 1
    gone(noted(host, name))
    assert host.call(f"d/{name}", "/fine").json() != noted(host, name)


@pytest.mark.parametrize("name", [f"{prefix}{name}" for prefix in ("", "async_") for name in RAISED])
def test_whatever_is_raised_is_a_500(host: Running, name: str) -> None:
    """BaseException included; the process goes on, and the traceback is in the log with the call's id."""
    kind = RAISED[name.removeprefix("async_")][1]
    call_id = f"raised-{name}"

    answer = host.call(f"d/{name}", headers={"X-Call-Id": call_id})

    assert answer.status_code == 500
    if name == "async_stop_iteration":
        kind = "RuntimeError"  # what Python makes of it in a coroutine
    assert error_of(answer)["details"]["exception_type"] == kind
    assert answer.headers["X-Invoked"] == "true"
    assert kind in host.logged(f'"call_id":"{call_id}"')
    assert host.call(f"d/{name}", "/fine").json() == noted(host, name)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", [f"{prefix}garbage_{name}" for prefix in ("", "async_") for name in GARBAGE])
def test_a_worker_that_breaks_the_protocol_is_ended(host: Running, name: str) -> None:
    """Garbage on the channel is a 502 for who sent it."""
    answer = host.call(f"d/{name}")

    assert answer.status_code == 502, answer.text
    assert error_of(answer)["code"] == "protocol_violation"
    gone(noted(host, name))
    assert host.call(f"d/{name}", "/fine").status_code == 200


def test_a_crash_of_a_sync_worker_concerns_no_other_worker(host: Running) -> None:
    """Another call of the same function goes on in its own process."""
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(host.call, "d/segfault", "/wait")
        noted(host, "waiting-segfault")
        assert host.call("d/segfault").status_code == 502
        path_of(host, "go").touch()
        assert waiting.result().text == "waited"
    path_of(host, "go").unlink()


def test_a_crash_of_an_async_worker_concerns_all_its_calls(host: Running) -> None:
    """And those are told why."""
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(host.call, "d/async_segfault", "/wait") for _ in range(3)]
        noted(host, "waiting-async_segfault")
        eventually(lambda: host.status("d/async_segfault")["busy"] == 3, "three calls")
        assert host.call("d/async_segfault").status_code == 502
        answers = [call.result() for call in waiting]

    assert [answer.status_code for answer in answers] == [502] * 3
    assert all("SIGSEGV" in error_of(answer)["message"] for answer in answers)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", ENDS)
def test_an_event_loop_that_is_ended(host: Running, name: str) -> None:
    """By a task that exits, say: all calls in it are told how the process ended, and the log has what was raised."""
    before = host.call(f"d/end_{name}", "/fine").json()
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(host.call, f"d/end_{name}", "/wait") for _ in range(3)]
        eventually(lambda: host.status(f"d/end_{name}")["busy"] == 3, "three calls")
        answers = [host.call(f"d/end_{name}"), *(call.result() for call in waiting)]

    assert [answer.status_code for answer in answers] == [502] * 4, answers[-1].text
    assert {error_of(answer)["code"] for answer in answers} == {"worker_died"}
    assert all(ENDS[name][1] in error_of(answer)["message"] for answer in answers)
    marks = (ENDS[name][2], f'"function":"d/end_{name}"', '"level":"error"')
    eventually(lambda: any(all(mark in line for mark in marks) for line in host.lines), "the reason in the log")
    gone(before)
    assert host.call(f"d/end_{name}", "/fine").status_code == 200


@pytest.mark.parametrize("max_workers", [1, 3])
def test_crashes_and_stuck_calls_in_a_burst(site: Site, max_workers: int) -> None:
    """Each costs itself: every other call is answered, and no call is run twice, however many wait in one worker."""
    take_notes(site, "d", f'timeout = "4s"\nmax_workers = {max_workers}')
    site.write(
        "d/mixed.py",
        """
        import os

        runs = os.open(os.environ["NOTES"] + "/runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def handle(data, function_call_info):
            os.write(runs, b"%d\\n" % data["number"])
            if data["do"] == "crash":
                os.kill(os.getpid(), 9)
            while data["do"] == "spin":
                pass
            return data["number"]
        """,
    )
    host = site.start()

    def call(number: int) -> tuple[int, str]:
        do = "spin" if number == 500 and max_workers > 1 else "crash" if number % 37 == 36 else "answer"
        answer = host.call("d/mixed", method="POST", json={"number": number, "do": do})
        return answer.status_code, answer.text

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(call, range(1000)))

    for number, (status, text) in enumerate(answers):
        if number == 500 and max_workers > 1:
            assert status == 504
        elif number % 37 == 36:
            assert status == 502, text
        else:
            assert (status, text) == (200, str(number))
    assert sorted(map(int, path_of(host, "runs").read_text().split())) == list(range(1000))


@pytest.mark.parametrize("name", IMPORTS)
def test_an_import_that_fails_is_a_503_with_the_reason(host: Running, name: str) -> None:
    """What was raised, in which file, at which line; the same in the log and in the status."""
    _, message, line = IMPORTS[name]

    answer = host.call(f"d/import_{name}")

    assert answer.status_code == 503
    error = error_of(answer)
    assert error["code"] == "load_failed"
    assert message in error["message"]
    if line is not None:
        assert (error["details"]["file"], error["details"]["line"]) == (f"functions/d/import_{name}.py", line)
    assert "traceback" not in error.get("details", {})
    status = host.status(f"d/import_{name}")
    assert status["state"] == "failed"
    assert message in status["load_error"]["message"]
    assert "could not be loaded" in host.logged(f"d/import_{name} could")


@pytest.mark.parametrize("name", STRANGE_IMPORTS)
def test_an_import_that_does_strange_things(host: Running, name: str) -> None:
    """It is served all the same, again and again."""
    answers = [host.call(f"d/strange_{name}") for _ in range(5)]

    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "fine")] * 5
    assert not [line for line in host.lines if '"level":"error"' in line and f"d/strange_{name}" in line]


def test_a_killed_function_zygote(host: Running) -> None:
    """The next call gets another one; its workers do not outlive it."""
    worker = host.call("d/exit0", "/fine").json()
    zygote = parent_of(worker)

    os.kill(zygote, signal.SIGKILL)
    gone(zygote)

    after = host.call("d/exit0", "/fine")
    assert after.status_code == 200
    assert parent_of(after.json()) != zygote
    gone(worker)


def test_a_killed_base_zygote(host: Running) -> None:
    """All calls after it are served as before, and nothing of before is left."""
    worker = host.call("d/bystander").json()
    base = parent_of(parent_of(worker))
    assert parent_of(base) == host.process.pid
    before = host.descendants()

    os.kill(base, signal.SIGKILL)
    for pid in before:
        gone(pid)

    assert host.call("d/bystander").status_code == 200
    assert host.call("d/async_exit0", "/fine").status_code == 200
    assert not host.descendants() & before
    assert "base zygote ended" in host.logged("base zygote")


def open_files(host: Running) -> int:
    """How many file descriptors the host has."""
    return len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))


def zombies(host: Running) -> set[int]:
    """Dead children that nobody has reaped, of the host and of everything below it."""
    family = {host.process.pid, *host.descendants()}
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) in family:
                found.add(int(entry.name))
    return found


def memory_of(pid: int, field: str = "VmHWM") -> int:
    """KiB that a process has, or has had at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def test_crashes_leave_nothing_behind(site: Site) -> None:
    """After many crashes and cold starts: no file descriptor, no zombie, no process, hardly any memory."""
    site.write("d/crashing.py", "import os\ndef handle(data):\n    os._exit(1)\n")
    site.write(
        "d/cold.py", "import os\ndef handle(data):\n    os.kill(os.getppid(), 9)\n    os.read(os.pipe()[0], 1)\n"
    )
    site.write("d/fine.py", "def handle(data):\n    return 'fine'\n")
    host = site.start()

    def everything(crashes: int, cold_starts: int) -> None:
        assert {host.call("d/crashing").status_code for _ in range(crashes)} == {502}
        assert {host.call("d/cold").status_code for _ in range(cold_starts)} == {502}
        assert host.call("d/fine").text == "fine"
        eventually(lambda: not host.status("d/crashing")["workers"], "the end of the workers")
        eventually(lambda: not host.status("d/cold")["workers"], "the end of the workers")
        eventually(lambda: len(host.descendants()) == 6, "the base, a worker, two zygotes, and a spare of each")

    everything(20, 5)
    files, memory = open_files(host), memory_of(host.process.pid)
    everything(200, 50)

    most = files + 1  # of a spare that was seen the host had perhaps not heard by then
    eventually(lambda: open_files(host) <= most, f"{files} open files again")
    eventually(lambda: not zombies(host), "an end of zombies")
    assert memory_of(host.process.pid) - memory < 16 * 1024


def test_a_host_that_may_open_no_more_files(site: Site) -> None:
    """503 for what needs a new process; what runs goes on, and with room again all is as before."""
    for name in ("first", "second", "third"):
        site.write(f"d/{name}.py", "import os\ndef handle(data):\n    return os.getpid()\n")
    host = site.start()
    pid = host.call("d/first").json()
    assert host.call("d/second").status_code == 200
    os.kill(host.call("d/second").json(), signal.SIGKILL)
    eventually(lambda: not host.status("d/second")["workers"], "the end of the worker")
    before = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
    for spare in range(8):
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (open_files(host) + spare, before[1]))
        answers = [host.call(f"d/{name}").status_code for name in ("second", "third")]
        assert set(answers) <= {200, 503}
        assert spare or answers[1] == 503  # `second` may have a process that was started ahead
        assert host.call("d/first").json() == pid

    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, before)

    for name in ("second", "third"):
        eventually(lambda name=name: host.call(f"d/{name}").status_code == 200, "an answer")
    assert host.call("d/first").json() == pid


def submit(host: Running, name: str, count: int) -> list[str]:
    """Addresses of calls that were accepted."""
    answers = [host.client.post(f"/spaces/d/functions/{name}/async-invoke") for _ in range(count)]
    assert {answer.status_code for answer in answers} == {202}
    return [answer.headers["location"] for answer in answers]


def outcomes(host: Running, calls: list[str]) -> list[tuple[str, str | None]]:
    """State and error code of each of these calls, now."""
    entries = [host.client.get(call).json() for call in calls]
    return [(entry["status"], (entry["result"] or {}).get("error")) for entry in entries]


def test_submitted_calls_outlast_a_moment_without_open_files(site: Site) -> None:
    """They wait until there can be a process for them; only those fail whose process was killed."""
    site.write("spaces.toml", "[spaces.d.functions.work]\nmax_workers = 1\n")
    site.write(
        "d/work.py",
        "import os, time\ndef handle(data):\n    time.sleep(0.05)\n    return [os.getpid(), os.getppid()]\n",
    )
    host = site.start()
    _, zygote = host.call("d/work").json()
    calls = submit(host, "work", 40)
    before = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))  # what ends makes room for nothing
    for pid in host.descendants():
        if parent_of(pid) == zygote:
            os.kill(pid, signal.SIGKILL)
    host.logged("no worker of d/work can be started")
    assert ("queued", None) in outcomes(host, calls)

    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, before)

    open_states = {"queued", "running"}
    eventually(lambda: not open_states & {state for state, _ in outcomes(host, calls)}, "the end of all calls")
    ended = [outcome for outcome in outcomes(host, calls) if outcome != ("succeeded", None)]
    assert set(ended) <= {("failed", "worker_died")}
    assert len(ended) <= 2


def test_submitted_calls_outlast_an_import_that_is_killed(site: Site) -> None:
    """As by a kernel that has no memory left. One that fails by itself fails them at once."""
    site.write(
        "d/big.py",
        f"""
        import os, pathlib, time
        folder = pathlib.Path({str(site.root)!r})
        (folder / "importing.new").write_text(str(os.getpid()))
        (folder / "importing.new").rename(folder / "importing")
        while not (folder / "go").exists():
            time.sleep(0.01)
        def handle(data):
            return os.getppid()
        """,
    )
    site.write("d/broken.py", "def handle(data):\n    pass\nraise ValueError('no')\n")
    importing, go = site.root / "importing", site.root / "go"
    go.touch()
    host = site.start()
    zygote = host.call("d/big").json()
    go.unlink()
    importing.unlink()
    os.kill(zygote, signal.SIGKILL)
    calls = submit(host, "big", 10)
    for _ in range(2):
        eventually(importing.exists, "another import")
        pid = int(importing.read_text())
        importing.unlink()
        os.kill(pid, signal.SIGKILL)
    assert {state for state, _ in outcomes(host, calls)} <= {"queued", "running"}
    go.touch()
    eventually(lambda: set(outcomes(host, calls)) == {("succeeded", None)}, "the end of all calls")
    assert not host.status("d/big")["load_error"]

    (broken,) = submit(host, "broken", 1)
    eventually(lambda: outcomes(host, [broken]) == [("failed", "load_failed")], "the end of the call")
