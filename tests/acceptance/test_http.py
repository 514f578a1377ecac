"""Requests as clients send them: methods, paths, queries, headers, connections; and the host's own pages."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, error_of
from tests.acceptance.connection import Answer, Connection

ECHO = """
    def handle(function_call_info):
        info = function_call_info
        return {
            "method": info.method, "path": info.path, "raw_path": info.raw_path,
            "query": info.query.multi_items(), "headers": info.headers.multi_items(),
            "body": info.body.decode("latin-1"), "call_id": info.call_id, "space": info.space, "name": info.name,
        }
    """
NOTES = """
    import pathlib

    def handle(function_call_info):
        (pathlib.Path(function_call_info.query["folder"]) / function_call_info.text).touch()
    """
BACK = """
    def handle(function_call_info):
        return function_call_info.body
    """
LONG = """
    import asyncio, os

    {keyword} handle(function_call_info):
        if function_call_info.path == "/wait":
            {wait}(0.5)
            return "waited"
        if function_call_info.path == "/stream":
            return items()
        size = int(function_call_info.query["size"])
        return {"status_code": 200, "body": os.getpid(), "headers": {"X-Long": "y" * size}}

    {keyword} items():
        yield {"status_code": 200, "headers": {"X-Long": "y" * 5_000_000}}
        yield "body"
    """
SETTINGS = """
    [server]
    access_log = true
    [spaces.demo.functions.reader]
    methods = ["GET", "HEAD"]
    max_path_levels = 3
    [spaces.demo.functions.small]
    max_body = 1000
    """
INVOKE = "/spaces/demo/functions/echo/invoke"


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host with a function that says what it got."""
    for name in ("echo", "reader", "small"):
        shared_site.write(f"demo/{name}.py", ECHO)
    shared_site.write("demo/notes.py", NOTES)
    shared_site.write("demo/back.py", BACK)
    shared_site.write("demo/back_async.py", BACK.replace("def handle", "async def handle"))
    for name, keyword, wait in (("long", "def", "str"), ("long_async", "async def", "await asyncio.sleep")):
        text = LONG.replace("{keyword}", keyword).replace("{wait}", wait)
        shared_site.write(f"demo/{name}.py", text)
    shared_site.write("demo/broken.py", "import nowhere\n\ndef handle(data):\n    pass\n")
    shared_site.write("other/Echo-2_x.py", ECHO)
    shared_site.write("spaces.toml", SETTINGS)
    return shared_site.start(engine=each_engine)


def got(answer: Answer | httpx2.Response) -> dict[str, Any]:
    """What the function says it got."""
    status = answer.status if isinstance(answer, Answer) else answer.status_code
    body = answer.body if isinstance(answer, Answer) else answer.content
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def headers_got(answer: Answer | httpx2.Response, name: str) -> list[str]:
    """The values of a header that the function got."""
    return [value for found, value in got(answer)["headers"] if found == name]


def raw(host: Running, target: bytes | str, *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
    """The answer to one request on a connection of its own."""
    with Connection(host.url) as connection:
        connection.request(target, *lines, method=method, body=body)
        return connection.answer(method)


# Methods.


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "REPORT", "QUERY", "TRACE"]
)
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_any_method_reaches_the_function(host: Running, method: str, body: bytes) -> None:
    """Whatever the method, with a body and without, the function is called with it."""
    answer = raw(host, INVOKE, method=method, body=body)

    assert (got(answer)["method"], got(answer)["body"].encode()) == (method, body)
    assert answer.get("x-invoked") == "true"


def test_a_method_that_nobody_has_registered(host: Running, each_engine: str) -> None:
    """Hypercorn passes any token on; uvicorn's parser knows the registered methods and refuses others."""
    answer = raw(host, INVOKE, method="BREW")

    assert answer.status == (200 if each_engine == "hypercorn" else 400)


def test_head_is_get_without_the_body(host: Running) -> None:
    """HEAD reaches the function; its answer has the headers of the whole and no body, and the connection goes on."""
    with Connection(host.url) as connection:
        connection.request(INVOKE, method="HEAD")
        head = connection.answer("HEAD")
        connection.request(INVOKE, method="GET")
        whole = connection.answer()

    assert head.status == 200
    assert head.get("x-invoked") == "true"
    assert int(head.get("content-length") or 0) > 0
    assert got(whole)["method"] == "GET"


@pytest.mark.parametrize("target", ["/spaces/demo/functions/none/invoke", "/nowhere", "/spaces/none/functions"])
def test_head_of_an_error(host: Running, target: str) -> None:
    """An error has no body when it answers a HEAD, and the connection goes on."""
    with Connection(host.url) as connection:
        connection.request(target, method="HEAD")
        head = connection.answer("HEAD")
        connection.request("/healthz")
        after = connection.answer()

    assert head.status == 404
    assert int(head.get("content-length") or 0) > 0
    assert after.status == 200


@pytest.mark.parametrize("target", ["/spaces", "/spaces/demo/functions", "/healthz", "/readyz", "/metrics"])
def test_head_of_the_hosts_own_pages(host: Running, target: str) -> None:
    """HEAD works where GET does."""
    with Connection(host.url) as connection:
        connection.request(target, method="HEAD")
        head = connection.answer("HEAD")
        connection.request("/healthz")
        after = connection.answer()

    assert (head.status, after.status) == (200, 200)


def test_methods_that_a_function_does_not_take(host: Running) -> None:
    """`methods` in spaces.toml: any other is answered 405 with Allow, and never reaches the function."""
    refused = host.call("demo/reader", method="POST", json={})
    options = host.call("demo/reader", method="OPTIONS")

    assert (refused.status_code, options.status_code) == (405, 405)
    assert refused.headers["allow"] == options.headers["allow"] == "GET, HEAD"
    assert error_of(refused)["code"] == "method_not_allowed"
    assert "x-invoked" not in refused.headers
    assert got(host.call("demo/reader"))["method"] == "GET"


# Paths.


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ("", "/"),
        ("/", "/"),
        ("/stock/market/today", "/stock/market/today"),
        ("/a/b/c/d/e/f/g/h/i/j/k", "/a/b/c/d/e/f/g/h/i/j/k"),
        ("/a%20b/c%2Fd//e/", "/a b/c/d//e/"),
        ("//", "//"),
        ("///x", "///x"),
        ("/trailing/", "/trailing/"),
        ("/../up/./here/..", "/../up/./here/.."),
        ("/%2e%2e/%2E", "/../."),
        ("/100%25", "/100%"),
        ("/%2525", "/%25"),
        ("/gr%C3%BC%C3%9Fe/%E2%82%AC/%F0%9F%90%8D", "/grüße/€/🐍"),
        ("/a+b;c=d,e:f@g!$&'()*~-._", "/a+b;c=d,e:f@g!$&'()*~-._"),
        ("/invoke/spaces/demo", "/invoke/spaces/demo"),
        ("/_/x", "/_/x"),
    ],
)
def test_what_follows_the_address(host: Running, rest: str, path: str) -> None:
    """The path is decoded once and otherwise as it came; the raw path is what came, byte for byte."""
    found = got(raw(host, INVOKE + rest))

    assert (found["path"], found["raw_path"]) == (path, rest or "/")


@pytest.mark.parametrize(
    "rest", ["/%", "/a%2", "/%zz", "/%g0", "/50%-off", "/%00", "/a%00b", "/%ff", "/%C3%28", "/%ED%A0%80"]
)
def test_malformed_paths(host: Running, rest: str) -> None:
    """A bad escape, NUL, and what is not UTF-8 are answered 400, and never reach the function."""
    answer = raw(host, INVOKE + rest)

    assert answer.status == 400
    assert answer.get("x-invoked") is None
    assert json.loads(answer.body)["error"]["code"] == "bad_request"


@pytest.mark.parametrize("target", [INVOKE.encode() + "/grüße".encode(), INVOKE.encode() + b"/\xff", b"/\xe2\x82\xac"])
def test_raw_bytes_beyond_ascii_in_the_request_line(host: Running, target: bytes) -> None:
    """They belong percent-encoded: 400, and the host goes on."""
    answer = raw(host, target)

    assert answer.status == 400
    assert host.client.get("/healthz").status_code == 200


def test_raw_bytes_beyond_ascii_in_the_query(host: Running) -> None:
    """The same in the query: refused, or read as UTF-8."""
    answer = raw(host, INVOKE.encode() + "?name=grüße".encode())

    assert answer.status == 400 or got(answer)["query"] == [["name", "grüße"]]


def test_names_are_compared_exactly(host: Running) -> None:
    """Spaces and functions are found by their exact names; escapes in them are decoded."""
    assert got(raw(host, "/spaces/other/functions/Echo-2_x/invoke/x"))["name"] == "Echo-2_x"
    assert got(raw(host, "/spaces/oth%65r/functions/Echo%2D2_x/invoke/x"))["space"] == "other"
    assert raw(host, "/spaces/other/functions/echo-2_x/invoke").status == 404
    assert raw(host, "/spaces/Other/functions/Echo-2_x/invoke").status == 404
    assert raw(host, "/spaces/other/functions/Echo%2/invoke").status == 404
    assert raw(host, "/spaces/other/functions/Echo-2_x%00/invoke").status == 404
    assert raw(host, "/spaces/other%2Ffunctions/x/functions/Echo-2_x/invoke").status == 404
    assert raw(host, "/spaces/..%2fdemo/functions/echo/invoke").status == 404


@pytest.mark.parametrize(
    "target",
    [
        "/", "/nowhere", "/spaces/", "/spaces/demo", "/spaces/none/functions", "/spaces/demo/functions/",
        "/spaces/demo/functions/none", "/spaces/demo/functions/none/invoke", "/spaces/demo/functions/echo/invok",
        "/spaces/demo/functions/echo/invoke2", "/spaces/demo/functions/echo/Invoke", "//spaces", "/healthz/",
        "/spaces/demo/functions//invoke", "/spaces//functions/echo/invoke", "/metrics/x", "/%", "/%ff", "/%00",
        f"{INVOKE}/__/health",
    ],
)  # fmt: skip
def test_where_there_is_nothing(host: Running, target: str) -> None:
    """404 with the error envelope and a call id, whatever the address; no redirects."""
    answer = raw(host, target)
    error = json.loads(answer.body)["error"]

    assert answer.status == 404
    assert (error["status"], error["code"]) == (404, "not_found")
    assert error["message"]
    assert answer.get("content-type") == "application/json"
    assert answer.get("x-call-id")
    assert answer.get("x-invoked") is None


def test_the_whole_address_in_the_request_line(host: Running) -> None:
    """A request line with scheme and host, as clients send it to proxies, is understood."""
    assert got(raw(host, f"{host.url}{INVOKE}/a?b=c"))["path"] == "/a"
    assert raw(host, f"{host.url}/healthz").status == 200


def test_max_path_levels(host: Running) -> None:
    """More levels than allowed are answered 404; %2F, doubled and trailing slashes are no levels."""
    refused = host.call("demo/reader", "/1/2/3/4")

    assert refused.status_code == 404
    assert "3" in error_of(refused)["message"]
    assert got(raw(host, "/spaces/demo/functions/reader/invoke/1//2/3%2F4/"))["path"] == "/1//2/3/4/"


# Queries.


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("x=1&x=2&y=&z&x=3", [["x", "1"], ["x", "2"], ["y", ""], ["z", ""], ["x", "3"]]),
        ("a+b=c%20d%2Be&%26=%3D", [["a b", "c d+e"], ["&", "="]]),
        ("q=%C3%BC&bad=%FF&odd=%zz&p=100%", [["q", "ü"], ["bad", "\ufffd"], ["odd", "%zz"], ["p", "100%"]]),
        ("u=a/b?c=d", [["u", "a/b?c=d"]]),
        ("", []),
        ("&&", []),
    ],
)
def test_queries(host: Running, query: str, pairs: list[list[str]]) -> None:
    """Keys repeat in order, blank values stay, + is a space; the query is no part of the path."""
    found = got(raw(host, f"{INVOKE}/p?{query}"))

    assert (found["path"], found["query"]) == ("/p", pairs)


def test_a_fragment_is_no_part_of_the_query(host: Running) -> None:
    """Clients do not send fragments; one that comes is refused or cut, never an error of the host's."""
    assert raw(host, f"{INVOKE}?a=b#c").status in (200, 400)


# Headers.


def test_headers_reach_the_function(host: Running) -> None:
    """All of them: repeated ones in order, credentials and cookies, any byte that HTTP allows."""
    answer = raw(
        host, INVOKE, "X-Many: one", "x-many: two", "Cookie: a=1; b=2", "Authorization: Bearer sesame",
        "X-Callback-Url: http://127.0.0.1/cb", "X-Blank:", "X-Spaced:   in the   middle   ", "X-Latin: gr\xfc\xdfe",
        "Accept-Encoding: br", "User-Agent: test",
    )  # fmt: skip

    assert headers_got(answer, "x-many") == ["one", "two"]
    assert headers_got(answer, "cookie") == ["a=1; b=2"]
    assert headers_got(answer, "authorization") == ["Bearer sesame"]
    assert headers_got(answer, "x-callback-url") == ["http://127.0.0.1/cb"]
    assert headers_got(answer, "x-blank") == [""]
    assert headers_got(answer, "x-spaced") == ["in the   middle"]
    assert headers_got(answer, "x-latin") == ["grüße"]
    assert headers_got(answer, "host") == [host.url.removeprefix("http://")]


def test_the_length_of_a_body(host: Running) -> None:
    """The function is told how long its body is, also when the client did not say."""
    announced = raw(host, INVOKE, "Content-Length: 4 ", method="POST", body=b"body")
    chunked = raw(host, INVOKE, "Transfer-Encoding: chunked", method="POST", body=b"4\r\nbody\r\n0\r\n\r\n")

    assert headers_got(announced, "content-length") == headers_got(chunked, "content-length") == ["4"]
    assert got(announced)["body"] == got(chunked)["body"] == "body"


def test_headers_about_the_connection_stay_behind(host: Running) -> None:
    """Hop-by-hop headers, and those that Connection names, do not reach the function."""
    answer = raw(
        host, INVOKE, "Connection: keep-alive, X-Private , TE", "X-Private: 1", "Keep-Alive: timeout=5",
        "TE: trailers", "Trailer: X-Checksum", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic eA==",
        "X-Public: 1",
    )  # fmt: skip
    names = {name for name, _ in got(answer)["headers"]}

    assert "x-public" in names
    assert not names & {
        "connection", "x-private", "keep-alive", "te", "trailer", "proxy-connection", "proxy-authorization", "upgrade",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["long", "long_async"])
def test_an_answer_with_long_headers(host: Running, name: str) -> None:
    """Up to 64 KiB they are sent; with more there is an error that names the header; other calls notice nothing."""
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(host.call, f"demo/{name}", "/wait") for _ in range(3)]
        fine = host.call(f"demo/{name}", "?size=60000")
        refused = [host.call(f"demo/{name}", rest) for rest in ("?size=70000", "?size=5000000", "/stream")]
        again = host.call(f"demo/{name}", "?size=60000")

    assert (fine.status_code, fine.headers["X-Long"]) == (200, "y" * 60_000)
    for answer in refused:
        assert (answer.status_code, error_of(answer)["code"]) == (500, "not_encodable")
        assert "'x-long'" in error_of(answer)["message"]
        assert "65536" in error_of(answer)["message"]
    assert again.status_code == 200
    if name == "long_async":
        assert again.text == fine.text, "another process"
    assert [call.result().text for call in waiting] == ["waited"] * 3


def test_connection_cannot_take_away_what_the_host_says(host: Running) -> None:
    """A client cannot make the host's own headers disappear by naming them in Connection."""
    answer = raw(host, INVOKE, "Connection: close, X-Forwarded-For, X-Call-Id, Host", "X-Call-Id: mine")

    assert headers_got(answer, "x-forwarded-for") == ["127.0.0.1"]
    assert headers_got(answer, "x-call-id") == ["mine"]


def test_forwarded_headers(host: Running) -> None:
    """The function is told who called, by which scheme and name."""
    answer = raw(host, INVOKE)

    assert headers_got(answer, "x-forwarded-for") == ["127.0.0.1"]
    assert headers_got(answer, "x-forwarded-proto") == ["http"]
    assert headers_got(answer, "x-forwarded-host") == [host.url.removeprefix("http://")]


@pytest.mark.parametrize("first", [True, False])
def test_forwarded_headers_behind_a_proxy(host: Running, first: bool) -> None:
    """What a proxy has said stands; the proxy's address is appended. Wherever Host stands."""
    lines = ["X-Forwarded-For: 203.0.113.7, 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: example.org"]
    with Connection(host.url) as connection:
        order = [*lines, "Host: inner"] if first else ["Host: inner", *lines]
        connection.send(f"GET {INVOKE} HTTP/1.1\r\n", *[f"{line}\r\n" for line in order], "\r\n")
        answer = connection.answer()

    assert headers_got(answer, "x-forwarded-for") == ["203.0.113.7, 10.0.0.1, 127.0.0.1"]
    assert headers_got(answer, "x-forwarded-proto") == ["https"]
    assert headers_got(answer, "x-forwarded-host") == ["example.org"]


def test_several_lines_of_forwarded_for(host: Running) -> None:
    """X-Forwarded-For in several lines is one list."""
    answer = raw(host, INVOKE, "X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 10.0.0.1")

    assert headers_got(answer, "x-forwarded-for") == ["203.0.113.7, 10.0.0.1, 127.0.0.1"]


def test_the_id_of_a_call(host: Running) -> None:
    """Every answer has one; the function gets the same, and each call another."""
    first, second = raw(host, INVOKE), raw(host, INVOKE)

    assert first.get("x-call-id") == headers_got(first, "x-call-id")[0] == str(got(first)["call_id"])
    assert 0 < int(first.get("x-call-id") or 0) < int(second.get("x-call-id") or 0) < 2**53


@pytest.mark.parametrize("label", ["mine", "a.B_c-9", "x" * 128, "0"])
def test_a_clients_own_call_id(host: Running, label: str) -> None:
    """A well-formed one is kept: in the answer, for the function, on errors."""
    answer = raw(host, INVOKE, f"X-Call-Id: {label}")
    missing = raw(host, "/spaces/demo/functions/none/invoke", f"X-Call-Id: {label}")
    page = raw(host, "/spaces", f"X-Call-Id: {label}")

    assert answer.get("x-call-id") == missing.get("x-call-id") == page.get("x-call-id") == label
    assert headers_got(answer, "x-call-id") == [label]


@pytest.mark.parametrize("label", ["", "two words", "x" * 129, "semi;colon", "gr\xfc\xdfe", "a/b"])
def test_a_malformed_call_id(host: Running, label: str) -> None:
    """It is answered 400, with an id of the host's own."""
    answer = raw(host, INVOKE, f"X-Call-Id: {label}")

    assert answer.status == 400
    assert (answer.get("x-call-id") or "").isdigit()
    assert "X-Call-Id" in json.loads(answer.body)["error"]["message"]


def test_two_call_ids(host: Running) -> None:
    """Nobody could tell which is meant: 400."""
    assert raw(host, INVOKE, "X-Call-Id: one", "X-Call-Id: two").status == 400


def test_every_answer_has_a_date_and_says_how_long_it_took(host: Running) -> None:
    """A function's answer has X-Duration-Seconds; each answer one Date, and no Server."""
    answer = raw(host, INVOKE)

    assert re.fullmatch(r"\d+\.\d{6}", answer.get("x-duration-seconds") or "")
    assert (answer.get("date") or "").endswith("GMT")
    assert answer.get("server") is None


def test_a_head_of_many_megabytes(host: Running) -> None:
    """Headers beyond all reason are refused with a 4xx or a closed connection; the host goes on."""
    with Connection(host.url) as connection:
        try:
            connection.request(INVOKE, *(f"X-{number}: {'x' * 60_000}" for number in range(100)))
            status = connection.answer().status
        except (ConnectionError, AssertionError):
            status = 431

    assert 400 <= status < 500
    assert host.client.get("/healthz").status_code == 200


def test_a_long_head(host: Running) -> None:
    """60 KB of path, query or headers are fine, also beside a body; 100 KB are answered 431 in the envelope."""
    long = "x" * 60_000
    with_body = raw(host, INVOKE, f"X-Long: {long}", method="POST", body=b"y" * 65_536)
    refused = raw(host, INVOKE, "X-Long: " + "x" * 100_000)

    assert got(raw(host, f"{INVOKE}/{long}"))["path"] == f"/{long}"
    assert got(raw(host, f"{INVOKE}?q={long}"))["query"] == [["q", long]]
    assert headers_got(with_body, "x-long") == [long]
    assert got(with_body)["body"] == "y" * 65_536
    assert refused.status == 431
    assert json.loads(refused.body)["error"]["code"] == "head_too_large"


# Connections.


def test_a_connection_is_kept(host: Running) -> None:
    """Many requests on one connection, with bodies and without, each with its own answer."""
    with Connection(host.url) as connection:
        for number in range(20):
            connection.request(f"{INVOKE}/{number}", method="POST", body=b"x" * number)
            assert got(connection.answer())["path"] == f"/{number}"
        connection.request("/spaces/demo/functions/none/invoke", method="POST", body=b"unread")
        assert connection.answer().status == 404


def test_connection_close(host: Running) -> None:
    """A client that says close gets its answer and then the end."""
    with Connection(host.url) as connection:
        connection.request(INVOKE, "Connection: close")
        answer = connection.answer()

        assert got(answer)
        assert answer.get("connection") == "close"
        assert connection.at_end()


def test_http_1_0(host: Running) -> None:
    """A client of HTTP/1.0, without Host, gets its answer and then the end."""
    with Connection(host.url) as connection:
        connection.send(f"GET {INVOKE}/old HTTP/1.0\r\n\r\n")
        answer = connection.answer()

        assert got(answer)["path"] == "/old"
        assert connection.at_end()


@pytest.mark.parametrize(("version", "line"), [("1.1", "Connection: close\r\n"), ("1.0", "")], ids=["1.1", "1.0"])
@pytest.mark.parametrize(
    "rest",
    ["\r\n", f"GET {INVOKE}/more HTTP/1.1\r\nHost: x\r\n\r\n", "no request at all"],
    ids=["empty", "request", "none"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_follows_the_last_request(host: Running, version: str, line: str, rest: str, at_once: bool) -> None:
    """It is for nobody: the request before it is answered as if it had not come."""
    request = f"POST {INVOKE} HTTP/{version}\r\nHost: x\r\n{line}Content-Length: 2\r\n\r\n{{}}"
    with Connection(host.url) as connection:
        for text in (request + rest,) if at_once else (request, rest):
            connection.send(text)
        answer = connection.answer()

        assert got(answer)["body"] == "{}"
        assert connection.at_end()


def test_empty_lines_between_requests(host: Running) -> None:
    """Some clients send one after a body: they are passed over, in one piece with a request or not."""
    request = f"POST {INVOKE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}"
    with Connection(host.url) as connection:
        for text in ("\r\n" + request, request + "\r\n", "\r\n\r\n" + request * 2, "\r", "\n", request):
            connection.send(text)
            for _ in range(text.count("POST")):
                assert got(connection.answer())["body"] == "{}"
        connection.send("\r\n")
        connection.request(f"{INVOKE}/last", "Connection: close")

        assert got(connection.answer())["path"] == "/last"
        assert connection.at_end()


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
@pytest.mark.parametrize("lines", [(0, 1), (1, 0)])
def test_a_body_with_two_lengths(host: Running, method: str, lines: tuple[int, int]) -> None:
    """Who stands before us may have read the other one: refused, and nothing behind it is taken for a request."""
    fields = ["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"]
    head = "".join(fields[line] for line in lines)
    with Connection(host.url) as connection:
        connection.send(
            f"{method} {INVOKE} HTTP/1.1\r\nHost: x\r\n{head}\r\n",
            f"0\r\n\r\nGET {INVOKE}/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        answer = connection.answer()

        assert answer.status == 400
        assert answer.get("connection") == "close"
        assert connection.at_end()


@pytest.mark.parametrize("target", [INVOKE, "/spaces/demo/functions/echo/async-invoke", "/healthz", "example.org:443"])
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_no_tunnels(host: Running, target: str, body: bytes) -> None:
    """CONNECT is for proxies: refused before any function is asked, and nothing behind it is taken for a request."""
    with Connection(host.url) as connection:
        connection.request(target, method="CONNECT", body=body)
        answer = connection.answer()

        assert answer.status == 400
        assert answer.get("connection") == "close"
        assert answer.get("x-invoked") is None
        assert connection.at_end()


def test_pipelining(host: Running) -> None:
    """Three requests in one write are answered in their order, on the same connection."""
    one = f"POST {INVOKE}/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
    two = "GET /spaces/demo/functions/none/invoke HTTP/1.1\r\nHost: x\r\n\r\n"
    three = f"POST {INVOKE}/3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n"
    with Connection(host.url) as connection:
        connection.send(one + two + three)
        first, second, third = connection.answer(), connection.answer(), connection.answer()

    assert (got(first)["path"], got(first)["body"]) == ("/1", "one")
    assert second.status == 404
    assert (got(third)["path"], got(third)["body"]) == ("/3", "three")


def test_a_request_in_tiny_pieces(host: Running) -> None:
    """A request may arrive byte by byte."""
    text = f"POST {INVOKE}/slow?a=b HTTP/1.1\r\nHost: x\r\nX-A: b\r\nContent-Length: 4\r\n\r\nbody"
    with Connection(host.url) as connection:
        for byte in text:
            connection.send(byte)
        found = got(connection.answer())

    assert (found["path"], found["query"], found["body"]) == ("/slow", [["a", "b"]], "body")


def test_expect_100_continue(host: Running) -> None:
    """The client is told to go on before it sends the body."""
    with Connection(host.url) as connection:
        connection.request(INVOKE, "Expect: 100-continue", "Content-Length: 4", method="POST")
        go_on = connection.answer()
        connection.send(b"body")
        answer = connection.answer()

    assert go_on.status == 100
    assert got(answer)["body"] == "body"
    assert headers_got(answer, "expect") == []


@pytest.mark.parametrize(
    "text",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Nul: a\0b\r\n\r\n",
        b"POST /spaces/demo/functions/echo/invoke HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_not_http(host: Running, text: bytes) -> None:
    """It costs its own connection only: a 4xx or the end."""
    with Connection(host.url) as connection:
        connection.send(text)
        try:
            status = connection.answer().status
        except (AssertionError, ConnectionError):
            status = 400

    assert 400 <= status < 500
    assert host.client.get("/healthz").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body(host: Running, tmp_path: Path) -> None:
    """Its call is never made."""
    target = f"/spaces/demo/functions/notes/invoke?folder={tmp_path}"
    with Connection(host.url) as connection:
        connection.request(target, "Content-Length: 10", method="POST", body=b"half")
    host.logged("notes/invoke (client left)")
    whole = raw(host, target, method="POST", body=b"all of it")

    assert whole.status == 200
    assert [path.name for path in tmp_path.iterdir()] == ["all of it"]


def test_answers_are_never_mixed_up(host: Running) -> None:
    """Many clients at once on two functions, with bodies of all sizes: each gets its own answer."""
    sizes = [0, 1, 100, 65_535, 65_536, 65_537, 200_000, 1_000_000]

    def call(client: int) -> None:
        with httpx2.Client(base_url=host.url, timeout=PATIENCE, trust_env=False) as session:
            for number in range(24):
                name = "back" if (client + number) % 2 else "back_async"
                body = f"{client}-{number}-".encode() + b"x" * sizes[(client + number) % len(sizes)]
                answer = session.post(f"/spaces/demo/functions/{name}/invoke", content=body)
                assert answer.content == body

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call, client) for client in range(8)]:
            done.result()


# The host's own pages.


@pytest.mark.parametrize(
    "target", ["/spaces", "/spaces/demo/functions", "/spaces/demo/functions/echo", "/healthz", "/readyz", "/metrics"]
)
def test_pages_are_read_only(host: Running, target: str) -> None:
    """Any method but GET and HEAD is answered 405 with Allow and the error envelope."""
    answer = raw(host, target, method="POST", body=b"{}")

    assert answer.status == 405
    assert answer.get("allow") == "GET, HEAD"
    assert json.loads(answer.body)["error"]["code"] == "method_not_allowed"
    assert answer.get("x-call-id")


def test_pages_of_spaces_and_functions(host: Running) -> None:
    """What is here: the spaces, a space's functions, one function, with its state."""
    got(host.call("demo/echo"))
    host.call("demo/broken")
    spaces = host.client.get("/spaces").json()
    functions = host.client.get("/spaces/demo/functions").json()["functions"]
    echo, broken = host.status("demo/echo"), host.status("demo/broken")

    assert spaces == {"spaces": [{"name": "demo", "functions": 9}, {"name": "other", "functions": 1}]}
    assert [function["name"] for function in functions] == [
        "back",
        "back_async",
        "broken",
        "echo",
        "long",
        "long_async",
        "notes",
        "reader",
        "small",
    ]
    assert (echo["state"], echo["kind"], echo["takes"]) == ("ready", "sync", ["function_call_info"])
    assert (echo["file"], echo["line"], echo["load_error"]) == ("functions/demo/echo.py", 2, None)
    assert echo["generation"]
    assert echo["workers"] >= 1
    assert 0 < echo["id"] < 2**53
    assert (broken["state"], broken["generation"], broken["workers"]) == ("failed", None, 0)
    assert broken["load_error"]["file"] == "functions/demo/broken.py"
    assert broken["load_error"]["line"] == 1
    assert "nowhere" in broken["load_error"]["message"]


def test_health(host: Running) -> None:
    """/healthz and /readyz answer 200 while the host serves."""
    assert host.client.get("/healthz").status_code == 200
    assert host.client.get("/readyz").status_code == 200


def test_a_function_that_cannot_be_loaded(host: Running) -> None:
    """503 without X-Invoked; in production the reason, and no traceback."""
    answer = host.call("demo/broken")
    error = error_of(answer)

    assert (answer.status_code, error["code"]) == (503, "load_failed")
    assert "nowhere" in error["message"]
    assert error["details"]["line"] == 1
    assert error["details"]["state"] == "failed"
    assert "traceback" not in error["details"]
    assert int(answer.headers["retry-after"]) > 0
    assert "x-invoked" not in answer.headers


# Bodies that are refused unread.


def test_a_body_that_is_too_large_by_its_own_account(host: Running) -> None:
    """413 at once: not a byte of the body has to be sent."""
    with Connection(host.url) as connection:
        connection.request(
            "/spaces/demo/functions/small/invoke", "Content-Length: 1000000000", method="POST", body=b"x"
        )
        answer = connection.answer()

    assert answer.status == 413
    assert json.loads(answer.body)["error"]["code"] == "body_too_large"


def test_a_body_that_turns_out_too_large(host: Running) -> None:
    """413 once more bytes have come than are allowed, when nobody said how many there will be."""
    with Connection(host.url) as connection:
        connection.request("/spaces/demo/functions/small/invoke", "Transfer-Encoding: chunked", method="POST")
        connection.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n", b"1\r\nx\r\n")
        answer = connection.answer()

    assert answer.status == 413


def test_a_body_of_the_largest_size(host: Running) -> None:
    """Exactly `max_body` bytes are taken, announced or not."""
    assert got(host.call("demo/small", method="POST", content=b"x" * 1000))["body"] == "x" * 1000
    assert got(host.call("demo/small", method="POST", content=iter([b"x" * 500] * 2)))["body"] == "x" * 1000


@pytest.mark.parametrize("target", ["small/invoke", "none/invoke", "small/invoke/%zz"])
def test_a_client_that_sends_all_before_it_reads(host: Running, target: str) -> None:
    """It still gets to read why its large body was refused."""
    answer = host.client.post(f"/spaces/demo/functions/{target}", content=b"x" * 5_000_000)

    assert answer.status_code in (413, 404, 400)
    assert error_of(answer)["status"] == answer.status_code


def test_a_refusal_without_going_on(host: Running, each_engine: str) -> None:
    """A client that waits for 100 Continue is refused instead; hypercorn says 100 first in any case."""
    with Connection(host.url) as connection:
        connection.request(
            "/spaces/demo/functions/small/invoke", "Expect: 100-continue", "Content-Length: 5000", method="POST"
        )
        answer = connection.answer()
        if each_engine == "hypercorn" and answer.status == 100:
            answer = connection.answer()

    assert answer.status == 413


@pytest.mark.parametrize("target", ["small/invoke", "none/invoke", "small/invoke/%zz"])
def test_reading_the_refusal_after_sending_all(host: Running, target: str) -> None:
    """A client that only sends, then only reads, finds the answer, and the connection is still good."""
    with Connection(host.url) as connection:
        connection.request(f"/spaces/demo/functions/{target}", method="POST", body=b"x" * 5_000_000)
        answer = connection.answer()
        connection.request(INVOKE)
        after = connection.answer()

    assert answer.status in (413, 404, 400)
    assert after.status == 200
