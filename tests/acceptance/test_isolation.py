"""What a handler does to its own process harms no other function and never the host."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.notes import take_notes

HARM = """
    import asyncio, builtins, ctypes, decimal, gc, json, locale, logging, os, random, resource, select, shutil
    import signal, socket, subprocess, sys, tempfile, threading, time, warnings

    def broken(*_, **__):
        raise RuntimeError("broken on purpose")

    def patch(module, *names):
        for name in names or [name for name in vars(module) if not name.startswith("_")]:
            setattr(module, name, broken)

    def like_gevent():
        class Socket(socket.socket):
            def recv_into(self, *_): raise BlockingIOError
            recv = recv_into
            def sendall(self, *_): raise BlockingIOError
        socket.socket = socket.SocketType = Socket
        for module, names in {{
            os: ("fork", "waitpid", "write", "read", "pidfd_open"),
            select: ("poll", "epoll", "select"),
            time: ("sleep",),
            threading: ("Thread", "Lock", "RLock", "enumerate", "get_ident"),
            signal: ("signal", "set_wakeup_fd", "pthread_sigmask"),
            subprocess: ("Popen",),
        }}.items():
            patch(module, *names)

    def limit(which, value):
        resource.setrlimit(getattr(resource, which), (value, value))

    def without_builtins():
        for name in [name for name in vars(builtins) if not name.startswith("_")]:
            delattr(builtins, name)

    def vanish():
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)

    def harm():
        {harm}
"""
IN_A_CALL = (
    HARM
    + """
    def handle(function_call_info):
        if function_call_info.path == "/harm":
            harm()
        return "done"
"""
)
AT_IMPORT = (
    HARM
    + """
    harm()

    def handle(function_call_info):
        return "done"
"""
)
HARMLESS = {  # the function itself goes on as if nothing had been
    "folder": "os.chdir('/')",
    "no_folder": "vanish()",
    "path": "sys.path.clear(); sys.path.append('/nowhere')",
    "path_entry": "sys.path.insert(0, os.path.dirname(json.__file__)); sys.meta_path.clear(); sys.path_hooks.clear()",
    "environment": "os.environ.clear(); os.putenv('PATH', '')",
    "json": "patch(json); json._default_encoder = None; json.JSONEncoder.default = broken",
    "socket": "patch(socket, 'socket', 'socketpair', 'fromfd', 'create_connection', 'send_fds', 'recv_fds')",
    "os": "patch(os, 'fork', 'read', 'write', 'close', 'kill', 'waitpid', '_exit', 'getpid', 'listdir')",
    "threading": "patch(threading)",
    "time": "patch(time)",
    "frozen_time": "time.time = time.monotonic = time.perf_counter = time.perf_counter_ns = lambda: 0",
    "select": "patch(select)",
    "signal": "patch(signal, 'signal', 'setitimer', 'alarm', 'set_wakeup_fd', 'pthread_sigmask', 'raise_signal')",
    "asyncio": "patch(asyncio)",
    "logging": "logging.shutdown(); logging.getLogger().handlers.clear(); logging.disable(100); patch(logging)",
    "random": "random.seed(1); patch(random, 'random', 'getrandbits')",
    "like_gevent": "like_gevent()",
    "print": "builtins.print = broken; builtins.open = broken; builtins.input = broken",
    "stdout": "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = sys.stdin = None",
    "closed_stdout": "sys.stdout.close(); sys.stderr.close()",
    "recursion": "sys.setrecursionlimit(10**6)",
    "hooks": "sys.excepthook = sys.unraisablehook = sys.displayhook = threading.excepthook = broken",
    "trace": "sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None); threading.settrace(lambda *_: None)",
    "collector": "gc.disable(); gc.set_threshold(1, 1, 1); gc.callbacks.append(lambda *_: None); gc.unfreeze()",
    "warnings": "warnings.simplefilter('error')",
    "umask": "os.umask(0o777); os.nice(5)",
    "policy": "asyncio.set_event_loop_policy(None); asyncio.set_event_loop(asyncio.new_event_loop())",
    "signals": "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]",
    "switch_interval": "sys.setswitchinterval(100)",
    "hash": "str.__hash__; int.__add__; sys.flags",
    "file_size": "limit('RLIMIT_FSIZE', 0)",
    "affinity": "os.sched_setaffinity(0, {{0}})",
    "user": "os.setgroups([]); os.setgid(65534); os.setuid(65534)",
}
HARMFUL = {  # the function itself may come to grief
    "builtins": "without_builtins()",
    "len": "del builtins.len, builtins.isinstance, builtins.bytes, builtins.memoryview",
    "modules": "sys.modules.clear()",
    "no_files": "limit('RLIMIT_NOFILE', 0)",
    "no_memory": "limit('RLIMIT_AS', 10_000_000)",
    "processor": "limit('RLIMIT_CPU', 1); threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()",
    "tiny_recursion": "sys.setrecursionlimit(len(__import__('inspect').stack()) + 8)",
    "frames": "[frame.clear() for frame in sys._current_frames().values() if 0]; sys._getframe(1).f_globals.clear()",
    "our_modules": "[vars(m).clear() for n, m in list(sys.modules.items()) if n.startswith('_spaces_worker')]",
    "interned": "ctypes.memset(id(7), 0xFF, 32)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "all_signals": "[os.kill(0, n) for n in (1, 2, 3, 15)]",
    "main_thread": "ctypes.CDLL(None).pthread_exit(0)",
    "finalize": "ctypes.pythonapi.Py_FinalizeEx()",
    "exec": "os.execvp('true', ['true'])",
    "gil": "ctypes.pythonapi.PyGILState_Release(7)",
}

BYSTANDER = """
    import json, os, sys, time, threading

    PATH, ENVIRON, FOLDER = list(sys.path), dict(os.environ), os.getcwd()

    def handle(data):
        assert sys.path == PATH and dict(os.environ) == ENVIRON and os.getcwd() == FOLDER
        assert json.loads(json.dumps({"a": [1, 2.5, None]})) == {"a": [1, 2.5, None]}
        assert time.time() > 1_500_000_000 and threading.active_count() == 1
        return f"{data['number']} by {os.getpid()}"
"""


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host with a function for each kind of harm, done in a call and done by the import."""
    take_notes(shared_site, "d", 'timeout = "2s"\nload_timeout = "1s"\nmax_workers = 2')
    for name, harm in (HARMLESS | HARMFUL).items():
        for prefix, text in (("call", IN_A_CALL), ("import", AT_IMPORT)):
            text = text.replace("{harm}", harm).replace("{{", "{").replace("}}", "}")
            shared_site.write(f"d/{prefix}_{name}.py", text)
    shared_site.write("d/bystander.py", BYSTANDER)
    return shared_site.start()


@pytest.fixture
def bystander(host: Running) -> Iterator[None]:
    """Another function answers rightly and from the same process, before and after."""
    before = host.call("d/bystander", method="POST", json={"number": 7})
    assert before.status_code == 200, before.text
    yield
    after = host.call("d/bystander", method="POST", json={"number": 7})
    assert (after.status_code, after.text) == (200, before.text)
    assert host.client.get("/readyz").status_code == 200


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", HARMLESS)
def test_harm_done_in_a_call(host: Running, name: str) -> None:
    """Its own answer and the next ones are given as ever."""
    answers = [host.call(f"d/call_{name}", path) for path in ("/first", "/harm", "/", "/", "/")]

    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "done")] * 5, host.log[-3000:]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", HARMLESS)
def test_harm_done_by_an_import(host: Running, name: str) -> None:
    """It is loaded, and answers."""
    answers = [host.call(f"d/import_{name}") for _ in range(3)]

    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "done")] * 3, host.log[-3000:]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", HARMFUL)
def test_grave_harm_done_in_a_call(host: Running, name: str) -> None:
    """It gets an answer whatever it is; and so do later calls, which a new process answers rightly."""
    assert host.call(f"d/call_{name}", "/first").status_code == 200
    harmed = host.call(f"d/call_{name}", "/harm")
    assert harmed.status_code in (200, 500, 502, 503, 504)

    answer = eventually(lambda: (a := host.call(f"d/call_{name}")).status_code in (200, 500) and a, "an answer")

    if name != "tiny_recursion":
        assert answer.status_code == 200 or harmed.status_code == 200


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", HARMFUL)
def test_grave_harm_done_by_an_import(host: Running, name: str) -> None:
    """It gets an answer whatever it is, again and again."""
    answers = [host.call(f"d/import_{name}") for _ in range(3)]

    assert {answer.status_code for answer in answers} <= {200, 500, 502, 503, 504}


def test_only_what_is_configured_is_in_the_environment(site: Site) -> None:
    """The host's variables stay its own, but for those of an ordinary shell; a function's env and secrets, too."""
    site.write(
        "spaces.toml",
        """
        [spaces.d]
        env = { SHARED = "for all", LEVEL = "space" }
        secrets = { key = "env:FOR_THE_SPACE" }

        [spaces.d.functions.one]
        env = { LEVEL = "one" }
        secrets = { own = "secret of one" }

        [spaces.d.functions.two]
        secrets = { key = "another" }
        """,
    )
    handler = """
        import os

        def handle(data, secrets):
            with open("/proc/self/environ") as initial, open(f"/proc/{os.getppid()}/environ") as of_parent:
                everything = initial.read() + of_parent.read()
            secrets["mine"] = "changed"
            return {"environ": dict(os.environ), "everything": everything, "secrets": secrets}
    """
    site.write("d/one.py", handler)
    site.write("d/two.py", handler)
    host = site.start(env={"HOST_PASSWORD": "hunter2", "FOR_THE_SPACE": "of the space", "LANG": "C.UTF-8"})

    one, two = (host.call(f"d/{name}").json() for name in ("one", "two"))

    assert (one["environ"]["SHARED"], one["environ"]["LEVEL"]) == ("for all", "one")
    assert (two["environ"]["SHARED"], two["environ"]["LEVEL"]) == ("for all", "space")
    assert one["environ"]["LANG"] == "C.UTF-8"
    assert one["environ"]["PATH"] == os.environ["PATH"]
    assert one["secrets"] == {"key": "of the space", "own": "secret of one", "mine": "changed"}
    assert two["secrets"] == {"key": "another", "mine": "changed"}
    assert host.call("d/two").json() == two
    for answer in (one, two):
        assert "HOST_PASSWORD" not in answer["environ"]
        assert "FOR_THE_SPACE" not in answer["environ"]
        assert "hunter2" not in answer["everything"]
        assert "of the space" not in answer["everything"]


def test_a_worker_has_no_file_of_the_host_open(site: Site) -> None:
    """Its descriptors: the three standard ones, its own way to the host, and nothing that the host listens on."""
    site.write(
        "d/files.py",
        """
        import os

        def handle(data):
            found = {}
            for fd in os.listdir("/proc/self/fd"):
                try:
                    found[fd] = os.readlink(f"/proc/self/fd/{fd}")
                except OSError:
                    pass
            return found
        """,
    )
    host = site.start()
    for _ in range(3):
        files = host.call("d/files").json()
    ours = {os.readlink(f"/proc/{host.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{host.process.pid}/fd")}

    shared = {link for link in files.values() if link in ours and link.startswith(("socket:", "/", "anon_inode:"))}
    shared = {link for link in shared if ".so" not in link}  # libffi has itself open, in each process
    assert files["0"] == "/dev/null"
    assert files["1"] == files["2"]
    assert len(files) <= 9
    # The queue of calls is shared with the host on purpose; the faults are one file, written by one, read by the other.
    assert {link for link in shared if not link.startswith(("/dev/null", "/memfd:faults"))} <= {
        link for link in shared if link.startswith("socket:")
    }
    assert len([link for link in shared if link.startswith("socket:")]) <= 1
