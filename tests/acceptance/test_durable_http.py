"""Submitted calls over real HTTP: accepted, looked up, followed, cancelled, run again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, alive, error_of, eventually

ECHO = """
    def handle(data, function_call_info):
        info = function_call_info
        return {
            "body": info.body.decode(), "path": info.path, "query": info.query.multi_items(), "method": info.method,
            "headers": info.headers.multi_items(), "call_id": info.call_id, "attempt": info.attempt,
        }
    """
WORK = """
    import logging, os, pathlib, time

    def handle(data, function_call_info):
        folder = pathlib.Path(data["folder"])
        with open(folder / "order", "a") as order:
            order.write(data.get("name", "") + "\\n")
        (folder / f"pid{data.get('name', '')}").write_text(str(os.getpid()))
        print("working")
        logging.getLogger().warning("be patient")
        function_call_info.progress(0.4, "half way")
        while not (folder / "go").exists():
            time.sleep(0.01)
        print("done")
        return {"done": data.get("name")}
    """
PATIENT = """
    import asyncio, pathlib

    async def handle(data):
        folder = pathlib.Path(data["folder"])
        (folder / "began").touch()
        try:
            while not (folder / "go").exists():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            (folder / "stopped").touch()
            raise
        return "done"
    """
RAISING = """
    def handle(data):
        raise ValueError("bad thing")
    """
TEAPOT = """
    def handle(data):
        return {"status_code": 418, "body": "short and stout", "headers": {"X-Own": "yes", "Content-Type": "a/tea"}}
    """
EMPTY = """
    def handle(data):
        return {"status_code": 204, "headers": [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]}
    """
SETTINGS = """
    [spaces.demo.functions.one]
    max_workers = 1
    [spaces.demo.functions.reader]
    methods = ["GET"]
    [spaces.demo.functions.small]
    async_max_body = 10
    max_path_levels = 1
    require_callback = true
    [spaces.demo.functions.few]
    max_workers = 1
    max_queued = 1
    """


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host with functions that wait, print, fail."""
    for name in ("echo", "reader", "small"):
        shared_site.write(f"demo/{name}.py", ECHO)
    for name in ("work", "one", "few"):
        shared_site.write(f"demo/{name}.py", WORK)
    shared_site.write("demo/patient.py", PATIENT)
    shared_site.write("demo/raising.py", RAISING)
    shared_site.write("demo/teapot.py", TEAPOT)
    shared_site.write("demo/empty.py", EMPTY)
    shared_site.write("spaces.toml", SETTINGS)
    return shared_site.start(engine=each_engine)


def functions(name: str) -> str:
    return f"/spaces/demo/functions/{name}"


def post(host: Running, name: str, rest: str = "", **arguments: Any) -> httpx2.Response:
    """Submit a call."""
    return host.client.post(f"{functions(name)}/async-invoke{rest}", **arguments)


def submitted(host: Running, name: str, rest: str = "", **arguments: Any) -> str:
    """The address of a call that was accepted."""
    answer = post(host, name, rest, **arguments)
    assert answer.status_code == 202, answer.text
    location: str = answer.headers["location"]
    return location


def shown(host: Running, call: str) -> dict[str, Any]:
    """What is known of a call."""
    answer = host.client.get(call)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def result(host: Running, call: str) -> httpx2.Response:
    """Its result, once there is one."""
    return eventually(  # type: ignore[no-any-return]
        lambda: answer if (answer := host.client.get(f"{call}/result?wait=10s")).status_code != 202 else None,
        f"the result of {call}",
    )


def comes_to(host: Running, call: str, *statuses: str) -> dict[str, Any]:
    """What is known of a call, once it is in one of these states."""
    return eventually(  # type: ignore[no-any-return]
        lambda: found if (found := shown(host, call))["status"] in statuses else None, f"{call} {statuses}"
    )


def began(folder: Path, name: str = "") -> int:
    """The process that runs a call of WORK, once it does."""
    file = folder / f"pid{name}"
    return int(eventually(lambda: file.exists() and file.read_text(), f"the beginning of {name}"))


def events(lines: Iterator[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Number, kind and data of server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


class Receiver:
    """Takes callbacks on this machine; answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver in this scope."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


# Accepting.


def test_a_submitted_call_is_run_as_it_came(host: Running) -> None:
    """Path, query, headers, body; and its result is the function's own answer."""
    answer = post(
        host, "echo", "/a%20b/c?x=1&x=2", content=b"hello", headers={"X-Own": "1", "Content-Type": "text/plain"}
    )
    call = answer.headers["location"]
    ended = result(host, call)
    seen = ended.json()

    assert (answer.status_code, answer.content) == (202, b"")
    assert call == f"{functions('echo')}/calls/{answer.headers['x-call-id']}"
    assert "x-invoked" not in answer.headers
    assert ended.status_code == 200
    assert ended.headers["x-invoked"] == "true"
    assert ended.headers["x-call-id"] == answer.headers["x-call-id"]
    assert float(ended.headers["x-duration-seconds"]) >= 0
    assert (seen["body"], seen["path"], seen["query"]) == ("hello", "/a b/c", [["x", "1"], ["x", "2"]])
    assert (seen["method"], seen["attempt"], str(seen["call_id"])) == ("POST", 1, answer.headers["x-call-id"])
    assert ["x-own", "1"] in seen["headers"]


def test_a_result_has_the_functions_status_and_headers(host: Running) -> None:
    """Of an answer of the function, of one that it raised."""
    teapot, raised = (result(host, submitted(host, name)) for name in ("teapot", "raising"))
    failed = shown(host, str(raised.url.path).removesuffix("/result"))

    assert (teapot.status_code, teapot.text) == (418, "short and stout")
    assert (teapot.headers["x-own"], teapot.headers["content-type"]) == ("yes", "a/tea")
    assert raised.status_code == 500
    assert error_of(raised)["code"] == "function_error"
    assert raised.headers["x-invoked"] == "true"
    assert (failed["status"], failed["result"]["status"]) == ("failed", 500)


def test_a_result_without_a_body(host: Running) -> None:
    """204 stays 204, and headers of one name stay several; a HEAD request has the head alone."""
    call = submitted(host, "empty")
    empty = result(host, call)
    head = host.client.head(f"{result(host, submitted(host, 'teapot')).url.path}")
    heads = [host.client.head(f"{call}{suffix}") for suffix in ("", "/logs", "/events")]

    assert (empty.status_code, empty.content) == (204, b"")
    assert empty.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert (head.status_code, head.content, head.headers["x-own"]) == (418, b"", "yes")
    assert [(answer.status_code, answer.content) for answer in heads] == [(200, b"")] * 3


def test_the_callers_own_id_goes_along(host: Running) -> None:
    """To the function, and back with the result; the address has a number."""
    answer = post(host, "echo", headers={"X-Call-Id": "order-7.a_b"})
    call = answer.headers["location"]
    ended = result(host, call)

    assert answer.headers["x-call-id"] == ended.headers["x-call-id"] == "order-7.a_b"
    assert ["x-call-id", "order-7.a_b"] in ended.json()["headers"]
    assert shown(host, call)["label"] == "order-7.a_b"
    assert call.rpartition("/")[2].isdigit()


def test_what_can_be_refused_is_refused_at_once(host: Running) -> None:
    """Never with 202; nothing of it is in the journal."""
    url = {"X-Callback-Url": "http://a.example/"}
    refused = {
        "no function": post(host, "nosuch"),
        "get": host.client.get(f"{functions('echo')}/async-invoke"),
        "not by post": post(host, "reader"),
        "too large": post(host, "small", content=b"x" * 11, headers=url),
        "too deep": post(host, "small", "/1/2", headers=url),
        "no callback": post(host, "small"),
        "bad callback": post(host, "echo", headers={"X-Callback-Url": "ftp://a.example/"}),
        "bad key": post(host, "echo", headers={"Idempotency-Key": ""}),
        "bad time": post(host, "echo", headers={"X-Run-At": "tomorrow"}),
        "bad id": post(host, "echo", headers={"X-Call-Id": "a b"}),
    }
    statuses = {what: answer.status_code for what, answer in refused.items()}

    assert statuses == {
        "no function": 404, "get": 405, "not by post": 405, "too large": 413, "too deep": 404, "no callback": 400,
        "bad callback": 400, "bad key": 400, "bad time": 400, "bad id": 400,
    }  # fmt: skip
    assert refused["get"].headers["allow"] == "POST"
    assert refused["not by post"].headers["allow"] == ""
    assert host.client.get(f"{functions('small')}/calls").json() == {"calls": [], "next": None}


def test_a_full_queue_takes_no_more(host: Running, tmp_path: Path) -> None:
    """429, with when to come again; there is room as soon as one has ended."""
    data = {"folder": str(tmp_path)}
    running = submitted(host, "few", json=data)
    began(tmp_path)
    waiting = submitted(host, "few", json=data)
    full = post(host, "few", json=data)
    (tmp_path / "go").touch()
    ended = [result(host, call).status_code for call in (running, waiting)]
    again = post(host, "few", json=data)

    assert (full.status_code, error_of(full)["code"]) == (429, "overloaded")
    assert full.headers["retry-after"]
    assert ended == [200, 200]
    assert again.status_code == 202


def test_a_key_stands_for_one_call(host: Running) -> None:
    """Also when many come at once; another request with it is refused."""
    headers = {"Idempotency-Key": f"key-{os.urandom(4).hex()}"}

    def one(_: int) -> tuple[int, str]:
        answer = post(host, "echo", content=b"a", headers=headers)
        return answer.status_code, answer.headers["location"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(one, range(16)))
    other = post(host, "echo", content=b"b", headers=headers)
    elsewhere = post(host, "teapot", content=b"b", headers=headers)
    found = host.client.get(f"{functions('echo')}/calls", params={"idempotency_key": headers["Idempotency-Key"]}).json()

    assert len(answers) == 1
    assert next(iter(answers))[0] == 202
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
    assert elsewhere.status_code == 202
    assert len(found["calls"]) == 1


def test_a_call_may_be_for_later(host: Running) -> None:
    """It waits until then, and runs."""
    later = shown(host, submitted(host, "echo", headers={"X-Delay": "1h"}))
    soon = submitted(host, "echo", headers={"X-Delay": "300ms"})
    past = submitted(host, "echo", headers={"X-Run-At": "2020-01-31T09:00:00Z"})
    ended = [result(host, call).status_code for call in (soon, past)]
    call = shown(host, soon)
    delay = datetime.fromisoformat(later["run_at"]) - datetime.fromisoformat(later["accepted_at"])

    assert ended == [200, 200]
    assert later["status"] == "queued"
    assert 3590 < delay.total_seconds() < 3610
    assert call["started_at"] >= call["run_at"] > call["accepted_at"]


def test_calls_start_by_priority_then_in_order(host: Running, tmp_path: Path) -> None:
    """Of those that wait."""
    first = submitted(host, "one", json={"folder": str(tmp_path), "name": "first"})
    began(tmp_path, "first")
    names = [("a", "0"), ("b", "-1"), ("c", "0"), ("d", "100"), ("e", "-100")]
    calls = [
        submitted(host, "one", json={"folder": str(tmp_path), "name": name}, headers={"X-Priority": priority})
        for name, priority in names
    ]
    (tmp_path / "go").touch()
    ended = [result(host, call).status_code for call in (first, *calls)]

    assert ended == [200] * 6
    assert (tmp_path / "order").read_text().split() == ["first", "d", "a", "c", "b", "e"]


# Following.


def test_a_running_call_shows_how_far_it_is(host: Running, tmp_path: Path) -> None:
    """Its state, its progress, its lines so far; 202 for its result."""
    call = submitted(host, "work", json={"folder": str(tmp_path)})
    found = eventually(lambda: state if (state := shown(host, call))["progress"] else None, "progress")
    lines = eventually(
        lambda: logs if len(logs := host.client.get(f"{call}/logs").json()["logs"]) >= 2 else None, "log lines"
    )
    early = host.client.get(f"{call}/result")
    (tmp_path / "go").touch()
    ended = result(host, call)
    text = host.client.get(f"{call}/logs", headers={"Accept": "text/plain"}).text

    assert (found["status"], found["attempt"]) == ("running", 1)
    assert found["progress"] == {"fraction": 0.4, "message": "half way"}
    assert [(line["level"], line["text"].strip()) for line in lines] == [
        ("info", "working"),
        ("warning", "root: be patient"),
    ]
    assert (early.status_code, early.json()["status"]) == (202, "running")
    assert early.headers["retry-after"]
    assert "x-invoked" not in early.headers
    assert ended.json() == {"done": None}
    assert [line.split(" ", 1)[1].strip() for line in text.splitlines() if line.strip()] == [
        "info working",
        "warning root: be patient",
        "info done",
    ]  # fmt: skip


def test_events_come_as_they_happen_and_can_be_taken_up(host: Running, tmp_path: Path) -> None:
    """From a stream that was left in the middle to the end of the next one nothing is missing or twice."""
    call = submitted(host, "work", json={"folder": str(tmp_path)})
    seen: list[tuple[str, str, dict[str, Any]]] = []
    with host.client.stream("GET", f"{call}/events") as first:
        kind = first.headers["content-type"]
        for event in events(first.iter_lines()):
            seen.append(event)
            if event[1] == "progress":
                break
    (tmp_path / "go").touch()
    with host.client.stream("GET", f"{call}/events", headers={"Last-Event-ID": seen[-1][0]}) as second:
        seen += events(second.iter_lines())
    with host.client.stream("GET", f"{call}/events") as third:
        again = list(events(third.iter_lines()))

    assert kind == "text/event-stream"
    assert [number for number, _, _ in seen] == [number for number, _, _ in again]
    assert [int(number) for number, _, _ in seen[:-1]] == sorted({int(number) for number, _, _ in seen[:-1]})
    kinds = [kind if kind != "state" else data["status"] for _, kind, data in seen]
    assert kinds[0] in ("queued", "running")
    assert kinds[-2:] == ["succeeded", "end"]
    assert [data["text"].strip() for _, kind, data in seen if kind == "log"] == [
        "working",
        "root: be patient",
        "done",
    ]
    assert [data["fraction"] for _, kind, data in seen if kind == "progress"] == [0.4]
    assert seen[-1][2]["status"] == "succeeded"


def test_a_client_that_waits_has_the_result_when_it_is_there(host: Running, tmp_path: Path) -> None:
    """Several may wait for one call."""
    call = submitted(host, "work", json={"folder": str(tmp_path), "name": "x"})
    began(tmp_path, "x")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(host.client.get, f"{call}/result?wait=60") for _ in range(4)]
        (tmp_path / "go").touch()
        answers = [waiter.result(PATIENCE) for waiter in waiting]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"done": "x"})] * 4


def test_calls_are_listed_by_the_page_and_filtered(host: Running) -> None:
    """The newest first."""
    calls = [submitted(host, "teapot", content=str(number).encode()) for number in range(5)]
    for call in calls:
        result(host, call)
    later = submitted(host, "teapot", headers={"X-Delay": "1h"})
    host.client.delete(later)
    numbers = [int(call.rpartition("/")[2]) for call in (*calls, later)][::-1]
    pages, query = [], {"limit": "2", "since": shown(host, calls[0])["accepted_at"]}
    while query:
        page = host.client.get(f"{functions('teapot')}/calls", params=query).json()
        pages += [call["id"] for call in page["calls"]]
        query = {**query, "cursor": page["next"]} if page["next"] else {}

    def found(**filters: str) -> list[int]:
        answer = host.client.get(f"{functions('teapot')}/calls", params={"limit": "500", **filters})
        return [call["id"] for call in answer.json()["calls"]]

    assert pages == numbers
    assert numbers[0] in found(status="cancelled")
    assert set(found(status="failed")) >= set(numbers[1:])
    assert found(status="succeeded") == []
    assert found(trigger="schedule") == []
    assert found(until=shown(host, calls[0])["accepted_at"]) == found()[6:]
    assert found(dead_letters="1") == []
    assert (
        host.client.get("/calls", params={"space": "demo", "function": "teapot", "limit": "1"}).json()["calls"][0]["id"]
        == numbers[0]
    )
    assert host.client.get(f"/calls/{numbers[0]}").json()["status"] == "cancelled"


# Changing.


def test_a_queued_call_can_be_cancelled(host: Running) -> None:
    """At once; it has no result, and cannot be cancelled twice."""
    call = submitted(host, "echo", headers={"X-Delay": "1h"})
    answer = host.client.delete(call)
    again = host.client.delete(call)
    never = host.client.get(f"{call}/result")

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (again.status_code, error_of(again)["code"]) == (409, "conflict")
    assert (never.status_code, error_of(never)["code"]) == (409, "cancelled")


def test_a_running_sync_handler_is_stopped(host: Running, tmp_path: Path) -> None:
    """Its process is ended; the next call has another."""
    call = submitted(host, "one", json={"folder": str(tmp_path)})
    pid = began(tmp_path)
    answer = host.client.delete(call)
    ended = comes_to(host, call, "cancelled", "failed", "succeeded")
    eventually(lambda: not alive(pid), f"the end of process {pid}")
    (tmp_path / "go").touch()
    after = result(host, submitted(host, "one", json={"folder": str(tmp_path)}))

    assert answer.status_code in (200, 202)
    assert ended["status"] == "cancelled"
    assert ended["result"] is None
    assert after.status_code == 200


def test_a_running_async_handler_is_cancelled(host: Running, tmp_path: Path) -> None:
    """Its code is told; others in its process go on."""
    other = tmp_path / "other"
    other.mkdir()
    goes_on = submitted(host, "patient", json={"folder": str(other)})
    call = submitted(host, "patient", json={"folder": str(tmp_path)})
    eventually(lambda: (tmp_path / "began").exists() and (other / "began").exists(), "both began")
    answer = host.client.delete(call)
    ended = comes_to(host, call, "cancelled", "failed", "succeeded")
    eventually((tmp_path / "stopped").exists, "the handler is told")
    (other / "go").touch()

    assert answer.status_code in (200, 202)
    assert ended["status"] == "cancelled"
    assert result(host, goes_on).text == "done"


def test_what_has_ended_cannot_be_cancelled(host: Running) -> None:
    """And stays as it is."""
    call = submitted(host, "echo")
    result(host, call)
    answer = host.client.delete(call)

    assert (answer.status_code, error_of(answer)["details"]) == (409, {"status": "succeeded"})
    assert shown(host, call)["status"] == "succeeded"


def test_a_call_can_be_run_again(host: Running) -> None:
    """Its request as it was, under a new number."""
    call = submitted(host, "echo", "/again?x=1", content=b"body", headers={"X-Own": "1"})
    first = result(host, call).json()
    answer = host.client.post(f"{call}/rerun")
    second = result(host, answer.headers["location"]).json()

    assert answer.status_code == 202
    assert answer.headers["location"] != call
    assert answer.headers["location"].endswith(answer.headers["x-call-id"])
    assert shown(host, answer.headers["location"])["trigger"] == "rerun"
    assert {k: second[k] for k in ("body", "path", "query")} == {k: first[k] for k in ("body", "path", "query")}
    assert str(second["call_id"]) == answer.headers["x-call-id"]


def test_a_result_is_delivered_and_delivered_again(host: Running) -> None:
    """To the URL with its query; the query is not shown."""
    with receiving() as receiver:
        call = submitted(host, "teapot", headers={"X-Callback-Url": f"{receiver.url}/cb?k=1&j=2"})
        delivered = eventually(
            lambda: found if (found := shown(host, call))["callback"]["state"] == "delivered" else None, "delivered"
        )
        answer = host.client.post(f"{call}/redeliver")
        eventually(lambda: len(receiver.requests) == 2, "the second delivery")
        nothing = host.client.post(f"{submitted(host, 'echo')}/redeliver")
        (path, headers, body), (again, *_) = receiver.requests

    assert (path, again, body) == ("/cb?k=1&j=2", "/cb?k=1&j=2", b"short and stout")
    assert headers["x-function-status"] == "418"
    assert headers["x-call-id"] == call.rpartition("/")[2]
    assert delivered["callback"]["url"] == f"{receiver.url}/cb"
    assert answer.status_code == 202
    assert nothing.status_code == 409


@pytest.mark.parametrize("suffix", ["", "/result", "/logs", "/events"])
def test_a_call_is_found_under_its_own_function_only(host: Running, suffix: str) -> None:
    """404 elsewhere."""
    call = submitted(host, "echo")
    answers = [
        host.client.get(call.replace("/echo/", "/teapot/") + suffix),
        host.client.get(call.replace("/demo/", "/other/") + suffix),
        host.client.get(f"{functions('echo')}/calls/1{suffix}"),
        host.client.get(f"{functions('echo')}/calls/x{suffix}"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 4


# Ending.


def test_who_waits_does_not_hold_up_the_end(site: Site, tmp_path: Path, engine: str) -> None:
    """Streams end, long polls are answered, before the host's patience with calls does."""
    site.write("demo/echo.py", ECHO)
    site.write("spaces.toml", "[server]\ndrain_timeout = '10m'\n")
    host = site.start(engine=engine)
    call = submitted(host, "echo", headers={"X-Delay": "1h"})
    with (
        ThreadPoolExecutor(1) as pool,
        httpx2.Client(base_url=host.url, timeout=PATIENCE, trust_env=False) as client,
        client.stream("GET", f"{call}/events") as stream,
    ):
        lines = events(stream.iter_lines())
        first = next(lines)
        waiting = pool.submit(host.client.get, f"{call}/result?wait=60")
        host.process.send_signal(signal.SIGTERM)
        rest = list(lines)
        status = host.process.wait(PATIENCE)
        poll = waiting.exception(PATIENCE) or waiting.result()

    assert (first[1], rest, status) == ("state", [], 0)
    assert isinstance(poll, httpx2.TransportError) or poll.status_code == 202


def test_a_host_that_is_told_to_end_starts_no_further_call(site: Site, engine: str, tmp_path: Path) -> None:
    """Also while it waits for a client: what waits is run by the next host."""
    site.write("demo/work.py", WORK)
    site.write("demo/one.py", WORK)
    site.write("spaces.toml", "[server]\ndrain_timeout = '10m'\n" + SETTINGS.split("[spaces.demo.functions.reader]")[0])
    host = site.start(engine=engine)
    (tmp_path / "held").mkdir()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(host.call, "demo/work", method="POST", json={"folder": str(tmp_path / "held")})
        began(tmp_path / "held")
        first = submitted(host, "one", json={"folder": str(tmp_path), "name": "first"})
        second = submitted(host, "one", json={"folder": str(tmp_path), "name": "second"})
        began(tmp_path, "first")
        host.process.send_signal(signal.SIGTERM)
        host.logged("finishing what runs")
        (tmp_path / "go").touch()
        eventually(lambda: recorded(site, first) == "succeeded", "the end of the first call")
        (tmp_path / "held" / "go").touch()
        assert held.result(PATIENCE).status_code == 200
    assert host.process.wait(PATIENCE) == 0
    assert (tmp_path / "order").read_text() == "first\n"
    assert recorded(site, second) == "queued"
    assert result(site.start(engine=engine), second).json() == {"done": "second"}


def recorded(site: Site, call: str) -> str:
    """The status of a call in the journal on disk."""
    number = call.rpartition("/")[2]
    with closing(sqlite3.connect(site.root / ".spaces" / "journal.db")) as journal:
        state = journal.execute("SELECT state FROM calls WHERE id = ?", (int(number),)).fetchone()[0]
    return ("queued", "queued", "running", "succeeded", "failed", "cancelled")[state]


def test_an_accepted_call_survives_the_host(site: Site, engine: str) -> None:
    """Killed at once after 202, it runs after the next start; so does one whose time comes only then."""
    site.write("demo/echo.py", ECHO)
    site.write("spaces.toml", "[defaults]\nidempotent = true\n")
    host = site.start(engine=engine)
    calls = [submitted(host, "echo", content=b"kept", headers={"X-Delay": delay}) for delay in ("0", "1s", "2s")]
    host.process.kill()
    host.stop()
    after = site.start(engine=engine)

    assert [result(after, call).json()["body"] for call in calls] == ["kept"] * 3


def test_a_journal_that_cannot_be_used_refuses_submitted_calls_alone(site: Site, engine: str) -> None:
    """503 for all that needs it, while the log says why; calls that are run at once go on."""
    site.write("demo/echo.py", ECHO)
    (site.root / ".spaces").mkdir()
    (site.root / ".spaces" / "journal.db").write_text("this is no database, and must not become one\n" * 100)
    host = site.start(engine=engine)
    refused = [post(host, "echo"), host.client.get(f"{functions('echo')}/calls"), host.client.get("/calls/1")]

    assert [(answer.status_code, error_of(answer)["code"]) for answer in refused] == [(503, "journal_error")] * 3
    assert refused[0].headers["retry-after"]
    assert str(site.root) not in refused[0].text
    assert "journal.db" in host.logged("cannot be used")
    assert host.call("demo/echo").status_code == 200
    assert (site.root / ".spaces" / "journal.db").read_text().startswith("this is no database")
