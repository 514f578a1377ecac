"""How many workers there are, how long they stay, and what happens when there are too many calls for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from tests.acceptance.conftest import Running, Site, alive, error_of, eventually
from tests.acceptance.notes import gone, parent_of, path_of, take_notes

HANDLER = """
    import asyncio, os, time

    {keyword} handle(function_call_info):
        path = function_call_info.path.strip("/")
        if not path:
            return os.getpid()
        with open(os.environ["NOTES"] + "/started-" + function_call_info.name, "a") as file:
            file.write(f"{os.getpid()} ")
        while not os.path.exists(os.environ["NOTES"] + "/" + path):
            {wait}(0.005)
        return os.getpid()
"""
SETTINGS = """
    timeout = "20s"

    [spaces.d.functions.two]
    max_workers = 2

    [spaces.d.functions.small]
    max_workers = 1
    max_waiting = 3

    [spaces.d.functions.none_waiting]
    max_workers = 1
    max_waiting = 0

    [spaces.d.functions.impatient]
    max_workers = 1
    timeout = "300ms"

    [spaces.d.functions.concurrent]
    max_workers = 2
    concurrency = 3

    [spaces.d.functions.idle]
    idle_timeout = "200ms"
    max_workers = 4

    [spaces.d.functions.warm]
    min_workers = 2
    max_workers = 4
    idle_timeout = "200ms"

    [spaces.d.functions.warm_async]
    min_workers = 1
"""


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host with functions of different limits."""
    take_notes(shared_site, "d", SETTINGS)
    for name in ("two", "small", "none_waiting", "impatient", "idle", "warm", "many", "lively"):
        shared_site.write(f"d/{name}.py", HANDLER.replace("{keyword}", "def").replace("{wait}", "time.sleep"))
    for name in ("concurrent", "warm_async"):
        text = HANDLER.replace("{keyword}", "async def").replace("{wait}", "await asyncio.sleep")
        shared_site.write(f"d/{name}.py", text)
    return shared_site.start()


def started(host: Running, name: str) -> list[int]:
    """In which process each waiting call of this function has begun."""
    path = path_of(host, f"started-{name}")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


@contextmanager
def waiting_calls(host: Running, name: str, count: int) -> Iterator[list[Future[httpx2.Response]]]:
    """Calls that are answered when the scope is left."""
    gate = f"gate-{name}"
    path_of(host, gate).unlink(missing_ok=True)
    path_of(host, f"started-{name}").unlink(missing_ok=True)
    with ThreadPoolExecutor(count) as clients:
        try:
            yield [clients.submit(host.call, f"d/{name}", f"/{gate}") for _ in range(count)]
        finally:
            path_of(host, gate).touch()


def status(host: Running, name: str, **expected: int) -> Callable[[], bool]:
    """Whether the status endpoint says so."""
    return lambda: all(host.status(f"d/{name}")[key] == value for key, value in expected.items())


def test_no_more_than_max_workers(host: Running) -> None:
    """The others wait, and are served by those that there are."""
    with waiting_calls(host, "two", 5) as calls:
        eventually(lambda: len(started(host, "two")) == 2, "two calls")
        eventually(status(host, "two", workers=2, busy=2, waiting=3), "the others to wait")

    answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.json() for answer in answers}) == 2


def test_a_worker_for_each_call_that_takes_its_time(host: Running) -> None:
    """Up to `max_workers`, workers are added while calls wait."""
    with waiting_calls(host, "many", 6) as calls:
        eventually(lambda: len(set(started(host, "many"))) == 6, "six workers")

    assert len({call.result().json() for call in calls}) == 6


def test_too_many_waiting_calls_are_refused(host: Running) -> None:
    """429 with Retry-After, at once; and once there is room again, all is as before."""
    with waiting_calls(host, "small", 4) as calls:
        eventually(status(host, "small", busy=1, waiting=3), "a full queue")
        refused = [host.call("d/small", method="POST", json={}) for _ in range(3)]
        assert host.call("d/two").status_code == 200

    assert [answer.status_code for answer in refused] == [429] * 3
    assert error_of(refused[0])["code"] == "overloaded"
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert "X-Invoked" not in refused[0].headers
    assert [call.result().status_code for call in calls] == [200] * 4
    assert host.call("d/small").status_code == 200
    assert status(host, "small", waiting=0)()


def test_a_queue_of_none(host: Running) -> None:
    """`max_waiting` 0: a call is run at once or not at all; the first one is, though its worker starts cold."""
    with waiting_calls(host, "none_waiting", 1) as calls:
        eventually(lambda: started(host, "none_waiting"), "the call")
        assert host.call("d/none_waiting").status_code == 429

    assert calls[0].result().status_code == 200


def test_no_worker_becomes_free(host: Running) -> None:
    """503 with Retry-After for who waited in vain; it is never run."""
    eventually(lambda: host.call("d/impatient").status_code == 200, "its process to be there in time")
    with waiting_calls(host, "impatient", 3) as calls:
        answers = [call.result() for call in calls]

    assert sorted(answer.status_code for answer in answers)[-1] == 504
    assert {answer.status_code for answer in answers} <= {503, 504}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 3 - len(started(host, "impatient"))
    assert all(error_of(answer)["code"] == "no_free_worker" for answer in refused)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    eventually(lambda: host.call("d/impatient").status_code == 200, "another process in time")


def test_async_calls_share_a_worker(host: Running) -> None:
    """Up to `concurrency`; then there is another worker; then they wait."""
    with waiting_calls(host, "concurrent", 8) as calls:
        eventually(lambda: len(started(host, "concurrent")) == 6, "six calls")
        eventually(status(host, "concurrent", workers=2, busy=6, waiting=2), "the others to wait")

    assert [call.result().status_code for call in calls] == [200] * 8
    first_six = started(host, "concurrent")[:6]
    assert sorted(first_six.count(pid) for pid in set(first_six)) == [3, 3]


def test_idle_workers_end(host: Running) -> None:
    """After `idle_timeout`, all of them; the next call gets a new one from the same zygote."""
    with waiting_calls(host, "idle", 3) as calls:
        eventually(lambda: len(set(started(host, "idle"))) == 3, "three workers")
        zygote = parent_of(started(host, "idle")[0])
    pids = {call.result().json() for call in calls}

    for pid in pids:
        gone(pid)
    eventually(status(host, "idle", workers=0), "no workers")

    after = host.call("d/idle").json()
    assert after not in pids
    assert parent_of(after) == zygote


def test_the_fewest_workers(host: Running) -> None:
    """`min_workers` are there before any call, stay when idle, and are replaced when they die."""
    eventually(status(host, "warm", workers=2), "two workers before any call")
    with waiting_calls(host, "warm", 4) as calls:
        eventually(lambda: len(set(started(host, "warm"))) == 4, "four workers")
    pids = {call.result().json() for call in calls}

    eventually(lambda: sum(map(alive, pids)) == 2, "two workers to end")
    eventually(status(host, "warm", workers=2), "two workers to stay")

    old = next(pid for pid in pids if alive(pid))
    os.kill(old, signal.SIGKILL)
    gone(old)
    eventually(status(host, "warm", workers=2), "another worker")
    zygote = parent_of(next(pid for pid in pids if alive(pid)))
    os.kill(zygote, signal.SIGKILL)
    gone(zygote)
    eventually(status(host, "warm", workers=2), "another zygote with its workers")
    assert not any(map(alive, pids))


def test_a_warm_async_worker(host: Running) -> None:
    """It is the one that serves the first call."""
    eventually(status(host, "warm_async", workers=1), "a worker before any call")

    assert host.call("d/warm_async").status_code == 200
    assert status(host, "warm_async", workers=1)()


def test_a_client_that_leaves_the_queue(host: Running) -> None:
    """Its call is never run."""
    with waiting_calls(host, "small", 1) as calls:
        eventually(lambda: len(started(host, "small")) == 1, "the first call")
        with pytest.raises(httpx2.TimeoutException):
            host.call("d/small", "/gate-small", timeout=0.3)
        eventually(status(host, "small", waiting=0), "an empty queue")

    assert calls[0].result().status_code == 200
    assert len(started(host, "small")) == 1


def test_a_burst_of_short_calls(host: Running) -> None:
    """Hundreds at once, from many clients, of a function that was cold: all answered."""
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: host.call("d/lively").status_code, range(800)))

    assert answers == [200] * 800


def answered(host: Running, name: str, status: int) -> float:
    """How many calls of a function were answered so, as the metrics say."""
    sample = f'spaces_calls_total{{function="{name}",space="d",status="{status}"}} '
    found = [line for line in host.client.get("/metrics").text.splitlines() if line.startswith(sample)]
    return float(found[0].removeprefix(sample)) if found else 0.0


def test_refusals_are_counted(host: Running) -> None:
    """In the metrics, by status."""
    before = [answered(host, "none_waiting", status) for status in (429, 200)]
    with waiting_calls(host, "none_waiting", 1) as calls:
        eventually(lambda: started(host, "none_waiting"), "the call")
        for _ in range(3):
            host.call("d/none_waiting")
    calls[0].result()

    assert [answered(host, "none_waiting", status) for status in (429, 200)] == [before[0] + 3, before[1] + 1]
