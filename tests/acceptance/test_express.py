"""The express way of a call: nobody can tell it from the ordinary one, however requests come and connections end."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually
from tests.acceptance.connection import Answer, Connection

ANSWERS = """
    def handle(function_call_info):
        info = function_call_info
        kind = info.path.strip("/")
        if kind == "raise":
            raise ValueError("bad thing")
        if kind == "none":
            return None
        if kind == "status":
            return {"status_code": int(info.query["code"]), "body": "x", "headers": {"X-Own": "yes"}}
        if kind == "headers":
            return {"body": "ok", "headers": [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Type", "a/b")]}
        if kind == "empty":
            return b""
        if kind == "long":
            return b"x" * 300_000
        if kind == "stream":
            return iter([b"one", b"two"])
        return {
            "method": info.method, "path": info.path, "query": info.query.multi_items(), "body": info.body.decode(),
            "headers": [pair for pair in info.headers.multi_items() if pair[0] not in ("x-call-id", "connection")],
        }
    """
WAITING = """
    import pathlib, time

    def handle(function_call_info):
        folder = pathlib.Path(function_call_info.query["folder"])
        (folder / "began").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return "done"
    """
SETTINGS = """
    [spaces.demo.functions.answers]
    max_body = 1000
    [spaces.demo.functions.reader]
    methods = ["PUT"]
    [spaces.closed]
    tokens = ["env:CLOSED"]
    """
TOKEN = "token-of-the-closed"
TARGET = "/spaces/demo/functions/answers/invoke"
CHANGING = {"date", "x-call-id", "x-duration-seconds", "connection"}


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host whose functions answer in many ways."""
    for name in ("demo/answers", "demo/reader", "closed/answers"):
        shared_site.write(f"{name}.py", ANSWERS)
    shared_site.write("demo/waiting.py", WAITING)
    shared_site.write("demo/broken.py", "import nowhere\n\ndef handle(data):\n    pass\n")
    shared_site.write("spaces.toml", SETTINGS)
    return shared_site.start(engine=each_engine, env={"CLOSED": TOKEN})


def told(answer: Answer) -> tuple[int, list[tuple[str, str]], object]:
    """What both ways must answer alike."""
    kept = [pair for pair in answer.headers if pair[0] not in CHANGING]
    body: object = answer.body
    if answer.body.startswith(b"{"):
        body = json.loads(answer.body)
        if isinstance(body, dict) and "error" in body:
            body["error"].pop("call_id", None)
    return answer.status, sorted(kept), body


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "rest", ["", "/", "/a/b%20c?d=e&f", "/raise", "/none", "/headers", "/empty", "/long", "/stream", "?a=b#c"]
)
def test_both_ways_answer_alike(host: Running, method: str, rest: str) -> None:
    """A connection that the client wants closed is not for the express way."""
    body = b'{"a": 1}' if method in ("POST", "PUT", "PATCH") else b""
    with Connection(host.url) as express, Connection(host.url) as ordinary:
        express.request(TARGET + rest, method=method, body=body)
        ordinary.request(TARGET + rest, "Connection: close", method=method, body=body)
        one, other = express.answer(method), ordinary.answer(method)

    assert told(one) == told(other)
    assert one.get("x-call-id")
    assert one.get("date")
    assert float(one.get("x-duration-seconds") or "nan") >= 0
    assert other.get("connection") == "close" != one.get("connection")


@pytest.mark.parametrize("code", [200, 201, 204, 299, 304, 404, 418, 500, 599])
def test_every_status_alike(host: Running, code: int) -> None:
    """Those without a body, and those without a name too."""
    with Connection(host.url) as express, Connection(host.url) as ordinary:
        express.request(f"{TARGET}/status?code={code}")
        ordinary.request(f"{TARGET}/status?code={code}", "Connection: close")

        assert told(express.answer()) == told(ordinary.answer())
        express.request(f"{TARGET}/empty")
        assert express.answer().status == 200


@pytest.mark.parametrize(
    "lines",
    [
        [f"Authorization: Bearer {TOKEN}"], ["Authorization: Bearer wrong"], ["Cookie: a=1", "Cookie: b=2"],
        ["X-Empty:"], ["X-Call-Id: mine"], ["X-Call-Id: not fit"], ["X-Forwarded-For: 1.2.3.4"],
        ["Connection: x-a, keep-alive", "X-A: b"], ["X-Latin: gr\xfc\xdfe"],
        ["Content-Length: 3"], ["TE: trailers"], ["Upgrade: h3"],
    ],
    ids=lambda lines: lines[0].partition(":")[0] + lines[0][-5:],
)  # fmt: skip
@pytest.mark.parametrize("space", ["demo", "closed"])
def test_headers_mean_the_same(host: Running, lines: list[str], space: str) -> None:
    """Who calls, what it is called, what is passed on."""
    target, body = f"/spaces/{space}/functions/answers/invoke", b"abc" if "Content-Length: 3" in lines else b""
    with Connection(host.url) as express, Connection(host.url) as ordinary:
        express.request(target, *lines, body=body)
        closing = [f"{line}, close" if line.startswith("Connection") else line for line in lines]
        ordinary.request(target, *closing, *(() if closing != lines else ["Connection: close"]), body=body)
        one, other = express.answer(), ordinary.answer()

    assert told(one) == told(other)
    assert one.get("x-call-id") == "mine" if lines == ["X-Call-Id: mine"] else one.get("x-call-id")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/spaces/demo/functions/nobody/invoke", 404), ("/spaces/nowhere/functions/answers/invoke", 404),
        ("/spaces/demo/functions/reader/invoke", 405), ("/spaces/demo/functions/broken/invoke", 503),
        (f"{TARGET}/%zz", 400), (f"{TARGET}/%00", 400), (f"{TARGET}/__/x", 404),
        ("/spaces/closed/functions/answers/invoke", 401), (f"{TARGET}#fragment", 200),
    ],
)  # fmt: skip
def test_what_cannot_be_run(host: Running, target: str, status: int) -> None:
    """In the same words; and the connection serves on."""
    with Connection(host.url) as express, Connection(host.url) as ordinary:
        express.request(target)
        ordinary.request(target, "Connection: close")
        one, other = express.answer(), ordinary.answer()

        assert told(one) == told(other)
        assert one.status == status or "#" in target
        if one.get("connection") != "close":
            express.request(f"{TARGET}/empty")
            assert express.answer().status == 200


@pytest.mark.parametrize(
    "lines",
    [
        [], ["X-Delay: 1h"], ["X-Delay: nonsense"], ["X-Call-Id: mine"], ["X-Callback-Url: http://10.0.0.1/"],
        ["Idempotency-Key: a", "Idempotency-Key: b"], [f"Authorization: Bearer {TOKEN}"],
    ],
    ids=lambda lines: (lines or ["none"])[-1].partition(":")[0] + str(len(lines)),
)  # fmt: skip
@pytest.mark.parametrize("space", ["demo", "closed", "nowhere"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_submitted_alike(host: Running, lines: list[str], space: str, method: str) -> None:
    target = f"/spaces/{space}/functions/answers/async-invoke/later"
    with Connection(host.url) as express, Connection(host.url) as ordinary:
        express.request(target, *lines, method=method, body=b"abc")
        ordinary.request(target, *lines, "Connection: close", method=method, body=b"abc")
        one, other = express.answer(), ordinary.answer()
        places = [answer.get("location") for answer in (one, other)]

        assert told(without_location(one)) == told(without_location(other))
        assert one.get("x-call-id") == "mine" or lines != ["X-Call-Id: mine"]
        if one.status == 202:
            assert len(set(places)) == 2
            express.request(f"{places[0]}", *lines)
            assert express.answer().status == 200


def without_location(answer: Answer) -> Answer:
    """All but where the call is found."""
    return answer._replace(headers=[pair for pair in answer.headers if pair[0] != "location"])


def test_a_body_that_is_too_long(host: Running) -> None:
    with Connection(host.url) as express:
        express.request(TARGET, method="POST", body=b"x" * 1001)
        answer = express.answer()

    assert answer.status == 413


def test_requests_in_pieces(host: Running) -> None:
    """Cut anywhere."""
    with Connection(host.url) as connection:
        text = f"POST {TARGET}/cut HTTP/1.1\r\nHost: {connection.authority}\r\nContent-Length: 5\r\n\r\nhello"
        for at in range(1, len(text), 7):
            connection.send(text[:at])
            connection.send(text[at:])
            answer = connection.answer()
            assert (answer.status, json.loads(answer.body)["body"]) == (200, "hello")


def test_requests_without_waiting(host: Running) -> None:
    """Several in one go are answered in their order, whichever way each of them takes."""
    rests = ["/1", "/stream", "/2", "/long", "/raise", "/3", "/status?code=204", "/4"]
    with Connection(host.url) as connection:
        head = f"Host: {connection.authority}\r\n\r\n"
        connection.send("".join(f"GET {TARGET}{rest} HTTP/1.1\r\n{head}" for rest in rests))
        answers = [connection.answer() for _ in rests]

    assert [answer.status for answer in answers] == [200, 200, 200, 200, 500, 200, 204, 200]
    assert [json.loads(answers[at].body)["path"] for at in (0, 2, 5, 7)] == ["/1", "/2", "/3", "/4"]


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2, HTTP/2.0"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", ["Upgrade, HTTP2-Settings", "close, upgrade"])
def test_an_upgrade_is_not_taken_up(host: Running, upgrade: str, chunked: bool, how: str) -> None:
    """Java's client and `curl --http2` ask for one with the first request they have: it is answered as any other."""
    framing, body = "Content-Length: 5", "hello"
    if chunked:
        framing, body = "Transfer-Encoding: chunked", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    asking = [f"Connection: {how}", f"Upgrade: {upgrade}", "HTTP2-Settings: AAEAAEAAAAIAAAAB", framing]
    lines = "".join(f"{line}\r\n" for line in ["Host: x", *asking])
    head = f"POST {TARGET}/up?a=b HTTP/1.1\r\n{lines}\r\n"
    told_so = []
    for pieces in ([head + body], [head, body], [head[:50], head[50:] + body[:2], body[2:]]):
        with Connection(host.url) as connection:
            for piece in pieces:
                connection.send(piece)
                time.sleep(0.02)
            answer = connection.answer()
            told_so.append(json.loads(answer.body))
            assert answer.status == 200
            if "close" in how:
                assert connection.at_end()
            else:
                connection.request(f"{TARGET}/next")
                assert json.loads(connection.answer().body)["path"] == "/next"

    assert [(each["path"], each["query"], each["body"]) for each in told_so] == [("/up", [["a", "b"]], "hello")] * 3
    assert [name for name, _ in told_so[0]["headers"] if name in ("upgrade", "http2-settings")] == []


def test_what_follows_an_upgrade_in_the_same_piece(host: Running) -> None:
    """It is the next request, and the body of the one before is none."""
    hidden = f"GET {TARGET}/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    asking = f"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: {len(hidden)}\r\n\r\n"
    with Connection(host.url) as connection:
        connection.send(*(f"POST {TARGET}/{number} HTTP/1.1\r\n{asking}{hidden}" for number in range(3)), hidden)
        answers = [json.loads(connection.answer().body) for _ in range(4)]

    assert [(each["path"], each["body"]) for each in answers] == [
        ("/0", hidden), ("/1", hidden), ("/2", hidden), ("/hidden", "")
    ]  # fmt: skip


def test_submitted_with_an_upgrade(host: Running) -> None:
    """What is recorded has its body."""
    with Connection(host.url) as connection:
        target = "/spaces/demo/functions/answers/async-invoke"
        connection.request(target, "Connection: Upgrade", "Upgrade: h2c", method="POST", body=b"hello")
        accepted = connection.answer()
        connection.request(f"{accepted.get('location')}/result?wait=20s")
        answer = connection.answer()

    assert accepted.status == 202
    assert json.loads(answer.body)["body"] == "hello"


def test_many_clients_at_once(host: Running) -> None:
    """Each gets its own answer."""

    def ask(number: int) -> list[bool]:
        with Connection(host.url) as connection:
            found = []
            for at in range(30):
                rest = "/stream" if at % 7 == 3 else f"/{number}-{at}"
                connection.request(TARGET + rest, "X-Call-Id: " + f"{number}.{at}")
                answer = connection.answer()
                right = answer.body == b"onetwo" if at % 7 == 3 else json.loads(answer.body)["path"] == rest
                found.append(right and answer.get("x-call-id") == f"{number}.{at}")
            return found

    with ThreadPoolExecutor(24) as clients:
        assert all(map(all, clients.map(ask, range(24))))


def test_a_call_that_takes_longer(host: Running, tmp_path: Path) -> None:
    """It is answered too, and what comes meanwhile on the same connection after it."""
    with Connection(host.url) as connection:
        connection.request(f"/spaces/demo/functions/waiting/invoke?folder={tmp_path}")
        eventually((tmp_path / "began").exists, "the call has begun")
        connection.request(f"{TARGET}/next")
        eventually(lambda: host.status("demo/waiting")["busy"] == 1, "it runs")
        (tmp_path / "go").touch()

        assert connection.answer().body == b"done"
        assert json.loads(connection.answer().body)["path"] == "/next"


def test_a_client_that_leaves(host: Running, tmp_path: Path) -> None:
    """Its worker is free again once the call has ended, and the host serves on."""
    for _ in range(3):
        with Connection(host.url) as connection:
            connection.request(f"/spaces/demo/functions/waiting/invoke?folder={tmp_path}")
            eventually((tmp_path / "began").exists, "the call has begun")
    (tmp_path / "go").touch()

    eventually(lambda: host.status("demo/waiting")["busy"] == 0, "the worker is free")
    assert host.client.get(f"{TARGET}/still").status_code == 200


def test_the_end_of_the_host(site: Site, tmp_path: Path, engine: str) -> None:
    """A call that runs is answered, and then the connection closed."""
    site.write("demo/waiting.py", WAITING)
    host = site.start(engine=engine)
    with Connection(host.url) as connection:
        connection.request(f"/spaces/demo/functions/waiting/invoke?folder={tmp_path}")
        eventually((tmp_path / "began").exists, "the call has begun")
        host.process.terminate()
        host.logged("finishing what runs")
        (tmp_path / "go").touch()

        assert connection.answer().body == b"done"
        assert connection.at_end()
    assert host.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("target", [f"{TARGET}?after=0.2", "/spaces/demo/functions/answers/async-invoke"])
def test_what_is_no_request_comes_after_the_answers_to_those_before_it(host: Running, target: str) -> None:
    """Who sends several at once must not take the refusal of one for the answer to another."""
    with Connection(host.url) as connection:
        request = f"POST {target} HTTP/1.1\r\nHost: {connection.authority}\r\nContent-Length: 2\r\n\r\n{{}}"
        connection.send(request, "no request at all\r\n\r\n")
        assert connection.answer().status in (200, 202)
        if not connection.at_end():
            connection.close()
