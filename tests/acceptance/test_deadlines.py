"""Deadlines stop code that will not stop: the client hears at the deadline, the process goes, the next call is fine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.acceptance.conftest import Running, Site, error_of, eventually
from tests.acceptance.notes import gone, noted, path_of, take_notes

SYNC = """
    import ctypes, faulthandler, os, re, signal, subprocess, sys, threading, time
    from note import note

    def fall():
        try:
            fall()
        finally:
            fall()

    def handle(function_call_info):
        name = function_call_info.name
        if function_call_info.path == "/fine":
            return os.getpid()
        note(name)
        {stuck}  # HERE
"""

ASYNC = """
    import asyncio, os, time
    from note import note

    async def handle(function_call_info):
        name = function_call_info.name
        if function_call_info.path == "/fine":
            return os.getpid()
        note(name)
        {stuck}  # HERE
"""

IGNORING = (
    "[signal.signal(n, signal.SIG_IGN) for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, 32, 33}]"
)
STUCK = {
    "spin": "while True: pass",
    "sleep": "time.sleep(1e6)",
    "c_loop": "sum(range(10**12))",
    "backtrack": "re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "lock": "threading.Lock().__enter__(), (lock := threading.Lock()).acquire(), lock.acquire()",
    "system_call": "os.read(os.pipe()[0], 1)",
    "without_gil": "ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)",
    "with_gil": "ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)",
}
UNWILLING = {  # these keep us from finding out where they are, or may
    "ignores_signals": f"{IGNORING}\n        while True: time.sleep(1e6)",
    "blocks_signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n        while True: pass",
    "catches_all": (
        "while True:\n            try: time.sleep(1e6)\n            except BaseException: signal.alarm(0)\n           "
    ),
    "falls": "fall()",
    "closes_all": "os.closerange(0, 4096); time.sleep(1e6)",
}
STUCK_ASYNC = {
    "blocks_loop": "time.sleep(1e6)",
    "spins_in_loop": "while True: pass",
}


SETTINGS = """
    timeout = "300ms"
    max_workers = 2

    [spaces.d.functions.slow_import]
    load_timeout = "60s"

    [spaces.d.functions.never_imported]
    load_timeout = "300ms"
    timeout = "20s"

    [spaces.d.functions.closes_all]
    timeout = "20s"

    [spaces.d.functions.bystander]
    timeout = "20s"

    [spaces.d.functions.single]
    timeout = "1s"
    max_workers = 1

    [spaces.d.functions.blocking]
    timeout = "20s"

    [spaces.d.functions.alone]
    concurrency = 1

    [spaces.d.functions.with_child]
    timeout = "1s"
"""
OTHERS = {
    "bystander": "def handle(data):\n    return 'here'\n",
    "cooperative": """
        import asyncio, os
        from note import note

        async def handle(function_call_info):
            if function_call_info.path == "/fine":
                return os.getpid()
            note("cooperative")
            try:
                await asyncio.sleep(1e6)
            finally:
                note("cooperative_left")
    """,
    "blocking": """
        import os, time
        from note import note

        async def handle(function_call_info):
            if function_call_info.path == "/block":
                note("blocking")
                while not os.path.exists(os.environ["NOTES"] + "/unblocked"):
                    time.sleep(0.01)
            return os.getpid()
    """,
    "alone": """
        import asyncio, os
        from note import note

        async def handle(function_call_info):
            if function_call_info.path == "/fine":
                return os.getpid()
            note("alone")
            await asyncio.sleep(1e6)
    """,
    "swallows": """
        import asyncio, os
        from note import note

        async def handle(function_call_info):
            if function_call_info.path == "/fine":
                return os.getpid()
            if function_call_info.path == "/stream":
                return stream()
            note("swallows" + function_call_info.path.strip("/"))
            while True:
                try:
                    await asyncio.sleep(0.01)
                except BaseException:
                    pass

        async def stream():
            for i in range(6):
                yield f"{i}\\n"
                await asyncio.sleep(0.15)
    """,
    "silent_generator": """
        import os, time
        from note import note

        def handle(function_call_info):
            if function_call_info.path == "/first":
                note("silent_generator_first")
                time.sleep(1e6)
            yield str(os.getpid())
            if function_call_info.path != "/fine":
                note("silent_generator")
                time.sleep(1e6)
    """,
    "silent_async_generator": """
        import asyncio, os
        from note import note

        async def handle(function_call_info):
            yield str(os.getpid())
            if function_call_info.path != "/fine":
                note("silent_async_generator")
                await asyncio.sleep(1e6)
    """,
    "endless_cleanup": """
        import os, time
        from note import note

        def handle(function_call_info):
            if function_call_info.path == "/fine":
                yield "fine"
                return
            try:
                note("endless_cleanup")
                while True:
                    yield "x" * 1000
            finally:
                while True: time.sleep(1e6)
    """,
    "with_child": """
        import os, subprocess
        from note import note

        def handle(function_call_info):
            if function_call_info.path == "/fine":
                return os.getpid()
            note("with_child")
            child = subprocess.Popen(["sh", "-c", "sleep 100000 & echo $! > $NOTES/grandchild; wait"])
            note("child", child.pid)
            child.wait()
    """,
    "single": """
        import os, time
        from note import note

        def handle(function_call_info):
            note("single" + function_call_info.path.strip("/"))
            if function_call_info.path == "/quick":
                return os.getpid()
            time.sleep(1e6)
    """,
    "slow_import": """
        import os, time
        while not os.path.exists(os.environ["NOTES"] + "/go"):
            time.sleep(0.01)

        def handle(data):
            return "imported"
    """,
    "never_imported": """
        import time

        time.sleep(1e6)

        def handle(data):
            return "imported"
    """,
}


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host with a function for each way of being stuck, each with a fraction of a second."""
    take_notes(shared_site, "d", SETTINGS)
    for name, stuck in (STUCK | UNWILLING).items():
        shared_site.write(f"d/{name}.py", SYNC.replace("{stuck}", stuck))
    for name, stuck in STUCK_ASYNC.items():
        shared_site.write(f"d/{name}.py", ASYNC.replace("{stuck}", stuck))
    for name, source in OTHERS.items():
        shared_site.write(f"d/{name}.py", source)
    return shared_site.start()


def fine(host: Running, name: str, path: str = "/fine") -> str:
    """What a call that does not get stuck is answered, once its process is there in time for these deadlines."""

    def answered() -> httpx2.Response | None:
        answer = host.call(f"d/{name}", path)
        assert answer.status_code in (200, 503, 504), answer.text
        return answer if answer.status_code == 200 else None

    found: str = eventually(answered, f"an answer of {name}").text
    return found


def line_of(host: Running, name: str) -> int:
    """The line at which a handler is stuck."""
    lines = (host.root / f"functions/d/{name}.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if "# HERE" in line)


@pytest.mark.parametrize("name", [*STUCK, *STUCK_ASYNC, *UNWILLING])
def test_a_stuck_handler_loses_its_process(host: Running, name: str) -> None:
    """504 at the deadline, the process is gone, the log names the line, and another process answers the next call."""
    fine(host, name)
    answer = host.call(f"d/{name}", headers={"X-Call-Id": f"stuck-{name}"})

    assert answer.status_code == (502 if name == "closes_all" else 504)
    assert error_of(answer)["code"] == ("worker_died" if name == "closes_all" else "timeout")
    assert "X-Invoked" not in answer.headers
    pid = noted(host, name)
    gone(pid)
    assert fine(host, name) != str(pid)
    if name == "closes_all":
        return
    stopped = f"d/{name} did not stop at its deadline", f'"call_id":"stuck-{name}"'
    line = eventually(lambda: next((each for each in host.lines if all(said in each for said in stopped)), None), name)
    if name not in UNWILLING:
        assert f"d/{name}.py:{line_of(host, name)} in handle" in line


def test_other_functions_do_not_notice(host: Running) -> None:
    """While every core spins, another function answers."""
    for name in ("spin", "spins_in_loop", "c_loop"):
        fine(host, name)
    with ThreadPoolExecutor(4) as clients:
        stuck = [clients.submit(host.call, name) for name in ("d/spin", "d/spin", "d/spins_in_loop", "d/c_loop")]
        answers = []
        while not all(call.done() for call in stuck):
            answers.append(host.call("d/bystander").text)

    assert {call.result().status_code for call in stuck} <= {503, 504}  # the second process of one may come too late
    assert set(answers) == {"here"}


def test_an_async_call_is_cancelled_and_its_process_stays(host: Running) -> None:
    """What yields to its loop is cancelled like any task, and costs no process."""
    fine(host, "cooperative")
    assert host.call("d/cooperative").status_code == 504

    assert noted(host, "cooperative_left") == noted(host, "cooperative")
    assert fine(host, "cooperative") == str(noted(host, "cooperative"))


def test_an_async_call_alone_in_its_worker_is_cancelled_too(host: Running) -> None:
    """`concurrency` 1 makes no difference to what a deadline means."""
    fine(host, "alone")
    assert host.call("d/alone").status_code == 504
    eventually(lambda: not host.status("d/alone")["busy"], "it has ended")  # a call that waits may get another worker

    assert fine(host, "alone") == str(noted(host, "alone"))


def test_who_comes_while_an_event_loop_is_blocked_goes_elsewhere(host: Running) -> None:
    """But for those that it was given before that was known: they are answered once it turns again."""
    worker = fine(host, "blocking")
    with ThreadPoolExecutor(32) as clients:
        blocked = clients.submit(host.call, "d/blocking", "/block")
        assert str(noted(host, "blocking")) == worker
        others = []

        def answered() -> bool:
            others.append(clients.submit(host.call, "d/blocking", "/fine"))
            return any(other.done() for other in others)

        eventually(answered, "another worker")
        assert not blocked.done()
        path_of(host, "unblocked").touch()

        pids = [other.result().text for other in others]
        assert len({worker, *pids}) == 2
        assert blocked.result().text == worker


def test_an_async_handler_that_will_not_be_cancelled(host: Running) -> None:
    """It loses its process once the other calls in there are over."""
    fine(host, "swallows")
    with ThreadPoolExecutor(2) as clients:
        stream = clients.submit(host.call, "d/swallows", "/stream")
        eventually(lambda: host.status("d/swallows")["busy"], "the stream")
        assert host.call("d/swallows").status_code == 504

    assert stream.result().text == "".join(f"{i}\n" for i in range(6))
    gone(noted(host, "swallows"))
    assert fine(host, "swallows") != str(noted(host, "swallows"))
    said = "d/swallows did not stop at its deadline of 0.3 s; it was awaiting something; its process is killed"
    eventually(lambda: said in host.log, said)


def test_two_async_calls_that_will_not_be_cancelled(host: Running) -> None:
    """They do not wait for each other."""
    fine(host, "swallows")
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda path: host.call("d/swallows", path), ["/one", "/two"]))

    assert [answer.status_code for answer in answers] == [504, 504]
    gone(noted(host, "swallowsone"))
    gone(noted(host, "swallowstwo"))


def test_a_generator_that_gives_nothing(host: Running) -> None:
    """No first item by the deadline is no answer: 504."""
    assert host.call("d/silent_generator", "/first").status_code == 504

    gone(noted(host, "silent_generator_first"))


@pytest.mark.parametrize("name", ["silent_generator", "silent_async_generator"])
def test_a_generator_that_stops_yielding(host: Running, name: str) -> None:
    """The answer breaks off, which a client can tell from an end."""
    fine(host, name)
    with host.client.stream("GET", host.path(f"d/{name}")) as answer:
        assert answer.status_code == 200
        with pytest.raises(Exception, match=r"peer|incomplete|closed"):
            answer.read()

    pid = noted(host, name)
    if name == "silent_generator":
        gone(pid)
    assert fine(host, name)


def test_a_generator_whose_clean_up_never_ends(host: Running) -> None:
    """A client that leaves is no way to keep a process for ever."""
    fine(host, "endless_cleanup")
    with host.client.stream("GET", host.path("d/endless_cleanup")) as answer:
        next(answer.iter_bytes())

    gone(noted(host, "endless_cleanup"))
    assert fine(host, "endless_cleanup") == "fine"


def test_the_children_of_a_stuck_handler_go_with_it(host: Running) -> None:
    """Children and grandchildren."""
    assert host.call("d/with_child").status_code == 504

    for name in ("with_child", "child", "grandchild"):
        gone(noted(host, name))


def test_a_call_that_never_got_a_worker_never_runs(host: Running) -> None:
    """503, not 504; its code is not run later."""
    fine(host, "single", "/quick")
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(host.call, "d/single", "/first")
        noted(host, "singlefirst")
        second = clients.submit(host.call, "d/single", "/second")
        eventually(lambda: host.status("d/single")["waiting"], "the second call to wait")

    assert first.result().status_code == 504
    # It got the place of the first only if that was gone before its own deadline.
    assert second.result().status_code in (503, 504)
    if second.result().status_code == 503:
        assert error_of(second.result())["code"] == "no_free_worker"
        assert second.result().headers["Retry-After"]
        assert not path_of(host, "singlesecond").exists()
    assert fine(host, "single", "/quick")


def test_a_call_whose_function_is_still_imported_at_its_deadline(host: Running) -> None:
    """503 `still_loading`; the import goes on, and a later call is answered."""
    answer = host.call("d/slow_import")

    assert answer.status_code == 503
    assert error_of(answer)["code"] == "still_loading"
    assert answer.headers["Retry-After"]
    path_of(host, "go").touch()
    eventually(lambda: host.call("d/slow_import").status_code == 200, "the end of the import")


def test_an_import_that_never_ends(host: Running) -> None:
    """503 after `load_timeout`, naming the line where it hangs."""
    answer = host.call("d/never_imported")

    assert answer.status_code == 503
    assert error_of(answer)["code"] == "load_failed"
    assert re.search(r"did not finish.*never_imported\.py.*line 4", error_of(answer)["message"])
