"""What goes into a handler as data and what comes out as an answer, through a real host and a real client."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import Running, Site, error_of
from tests.acceptance.connection import Connection

MIB = 1024 * 1024
BIG = 100 * MIB

DATA = """
    def shown(value):
        if isinstance(value, bytes):
            return {"bytes": value.decode("latin-1")}
        if hasattr(value, "filename"):
            return {"file": value.filename, "type": value.content_type, "text": value.content.decode("latin-1")}
        if isinstance(value, dict):
            return {key: shown(item) for key, item in value.items()}
        return [shown(item) for item in value] if isinstance(value, list) else value

    def handle(data, function_call_info):
        return {"kind": type(data).__name__, "data": shown(data), "length": len(function_call_info.body)}
    """
TYPED = {
    "dataclass": """
        from dataclasses import dataclass, field

        @dataclass
        class Item:
            name: str
            price: float

        @dataclass
        class Order:
            items: list[Item]
            count: int = 1

        def handle(data: Order):
            return {"total": sum(item.price for item in data.items) * data.count, "type": type(data).__name__}
        """,
    "struct": """
        import msgspec

        class Item(msgspec.Struct):
            name: str
            price: float

        class Order(msgspec.Struct):
            items: list[Item]
            count: int = 1

        def handle(data: Order) -> dict:
            return {"total": sum(item.price for item in data.items) * data.count, "type": type(data).__name__}
        """,
    "pydantic": """
        from pydantic import BaseModel

        class Item(BaseModel):
            name: str
            price: float

        class Order(BaseModel):
            items: list[Item]
            count: int = 1

        async def handle(data: Order):
            return {"total": sum(item.price for item in data.items) * data.count, "type": type(data).__name__}
        """,
    "typeddict": """
        from __future__ import annotations
        from typing import NotRequired, TypedDict

        class Item(TypedDict):
            name: str
            price: float

        class Order(TypedDict):
            items: list[Item]
            count: NotRequired[int]

        def handle(data: Order):
            return {"total": sum(item["price"] for item in data["items"]) * data.get("count", 1), "type": "Order"}
        """,
}
RETURNS = """
    import datetime, decimal, enum, uuid
    from dataclasses import dataclass

    import msgspec
    from pydantic import BaseModel

    @dataclass
    class Point:
        x: int
        y: int

    class Row(msgspec.Struct):
        name: str

    class Model(BaseModel):
        when: datetime.date

    class Colour(enum.Enum):
        RED = "red"

    loop = []
    loop.append(loop)

    VALUES = {
        "dict": {"b": 1, "a": "ü"},
        "list": [1, "two", None, True, 2.5],
        "number": 42,
        "true": True,
        "none": None,
        "str": "grüße",
        "bytes": b"\\x00\\xff",
        "bytearray": bytearray(b"abc"),
        "dataclass": Point(1, 2),
        "struct": [Row("x")],
        "model": {"model": Model(when="2024-02-29")},
        "odd": {"d": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), "n": decimal.Decimal("1.50"),
                "u": uuid.UUID(int=1), "e": Colour.RED, "s": {1}, "f": float("nan")},
        "created": ({"id": 7}, 201),
        "tuple": ("gone", 410, {"X-Why": "moved"}),
        "pairs": ("x", 200, [("X-One", "1"), ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")]),
        "response": {"status_code": 202, "headers": {"X-A": "b", "Set-Cookie": ["c=3", "d=4"]}, "body": {"x": [1]}},
        "html": {"status_code": 200, "headers": {"content-type": "text/html"}, "body": "<p>"},
        "binary": {"status_code": 200, "headers": {"Content-Type": "image/png"}, "body": b"\\x89PNG"},
        "no_content": ({"ignored": True}, 204),
        "empty": {"status_code": 204},
        "not_modified": {"status_code": 304, "headers": {"ETag": '"v1"'}},
        "teapot": ("", 418),
        "unassigned": ("x", 599),
        "string_status": {"status_code": "404", "body": "no"},
        "redirect": {"status_code": 302, "headers": {"Location": "/elsewhere?a=b"}},
        "reserved": ("x", 200, {"X-Invoked": "no", "X-Call-Id": "forged", "Content-Length": "999",
                                "Transfer-Encoding": "chunked", "Connection": "close", "Keep-Alive": "x"}),
        "date": ("x", 200, {"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Server": "mine"}),
        "latin": ("x", 200, {"X-Name": "grüße"}),
        "injection": ("x", 200, {"X-Bad": "a\\r\\nSet-Cookie: evil=1"}),
        "newline": ("x", 200, {"X-Bad": "a\\nb"}),
        "nul": ("x", 200, {"X-Bad": "a\\0b"}),
        "bad_name": ("x", 200, {"Bad Name": "x"}),
        "bad_name_injection": ("x", 200, {"X\\r\\nY": "x"}),
        "bad_status": {"status_code": 99},
        "status_600": {"status_code": 600, "body": "x"},
        "status_text": {"status_code": "OK", "body": "x"},
        "object": {"x": object()},
        "function": len,
        "loop": loop,
        "surrogate": "\\ud800",
    }

    def handle(data):
        return VALUES[data["what"]]
    """
SIZES = """
    import hashlib

    def handle(data, function_call_info):
        body = function_call_info.body
        if not body:
            return b"0123456789abcdef" * (int(data["size"]) // 16)
        return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    """
SETTINGS = """
    [defaults]
    idle_timeout = "1h"
    [spaces.demo.functions.sizes]
    max_body = "101 MiB"
    max_response = "101 MiB"
    timeout = "60s"
    [spaces.demo.functions.sizes_async]
    max_body = "101 MiB"
    max_response = "101 MiB"
    timeout = "60s"
    [spaces.demo.functions.small]
    max_body = "10 KB"
    max_response = "10 KB"
    """


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host with functions that show their data, check it, and answer in every way."""
    shared_site.write("spaces.toml", SETTINGS)
    shared_site.write("demo/data.py", DATA)
    shared_site.write("demo/small.py", SIZES)
    shared_site.write("demo/sizes.py", SIZES)
    shared_site.write("demo/sizes_async.py", SIZES.replace("def handle", "async def handle"))
    shared_site.write("demo/returns.py", RETURNS)
    shared_site.write("demo/returns_async.py", RETURNS.replace("def handle", "async def handle"))
    for name, text in TYPED.items():
        shared_site.write(f"demo/{name}.py", text)
    return shared_site.start(engine=each_engine)


def data_of(host: Running, content: bytes | str | Iterator[bytes], content_type: str = "", **headers: str) -> Any:
    """What the handler got as data when this was sent."""
    headers = {"Content-Type": content_type, **headers} if content_type else headers
    answer = host.call("demo/data", method="POST", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


# Bodies in.


@pytest.mark.parametrize(
    ("content", "content_type", "data"),
    [
        (b'{"a": [1, "\xc3\xbc"]}', "application/json", {"a": [1, "ü"]}),
        (b'{"a": 1}', "application/json; charset=utf-8", {"a": 1}),
        (b'{"a": 1}', "APPLICATION/JSON", {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', "application/json", {"a": 1}),
        (b'{"a": 1}', "application/cloudevents+json", {"a": 1}),
        (b"null", "application/json", None),
        (b'"text"', "application/json", "text"),
        (b'{"a": 1}', "", {"a": 1}),
        (b"\x00\x01", "", {"bytes": "\x00\x01"}),
        (b"\x00\xff", "application/octet-stream", {"bytes": "\x00\xff"}),
        (b"%PDF", "application/pdf", {"bytes": "%PDF"}),
        ("grüße".encode(), "text/plain", "grüße"),
        ("grüße".encode("latin-1"), "text/plain; charset=iso-8859-1", "grüße"),
        (b"<a/>", "text/xml", "<a/>"),
        (b"a=1&b=2&b=3&c=", "application/x-www-form-urlencoded", {"a": "1", "b": ["2", "3"], "c": ""}),
        (b"d=%C3%BC+%26", "application/x-www-form-urlencoded", {"d": "ü &"}),
        (b'{"a": 1}', "application/x-www-form-urlencoded", {"a": 1}),
    ],
)  # fmt: skip
def test_bodies_by_content_type(host: Running, content: bytes, content_type: str, data: Any) -> None:
    """JSON is decoded, text is str, forms are dicts, anything else is bytes."""
    assert data_of(host, content, content_type) == data


def test_no_body(host: Running) -> None:
    """Without a body, data is the query as a dict; empty when there is none."""
    assert host.call("demo/data").json()["data"] == {}
    assert host.call("demo/data", "?a=1&b=2&b=3").json()["data"] == {"a": "1", "b": ["2", "3"]}
    assert host.call("demo/data", "?a=1", method="POST").json()["data"] == {"a": "1"}
    assert host.call("demo/data", "?a=1", method="POST", json={"b": 2}).json()["data"] == {"b": 2}
    assert host.call("demo/data", method="GET", json={"b": 2}).json()["data"] == {"b": 2}
    assert host.call("demo/data", method="DELETE", json={"b": 2}).json()["data"] == {"b": 2}


def test_multipart(host: Running) -> None:
    """Fields are text, files have name, type and content; repeated names are lists."""
    answer = host.call(
        "demo/data",
        method="POST",
        data={"title": "grüße", "tag": ["a", "b"]},
        files={"photo": ("a b.png", b"\x89PNG\r\n--x", "image/png"), "note": ("n.txt", "hi", "text/plain")},
    )

    assert answer.json()["data"] == {
        "title": "grüße",
        "tag": ["a", "b"],
        "photo": {"file": "a b.png", "type": "image/png", "text": "\x89PNG\r\n--x"},
        "note": {"file": "n.txt", "type": "text/plain", "text": "hi"},
    }


def test_a_body_in_chunks(host: Running) -> None:
    """A body of unknown length, in many pieces, arrives whole."""
    pieces = [b'{"list": [', *[b"%d," % number for number in range(2000)], b"2000]}"]

    assert data_of(host, iter(pieces), "application/json") == {"list": list(range(2001))}


@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b'{"a": }', "application/json", "bad_json"),
        (b"{", "application/json", "bad_json"),
        (b"NaN", "application/json", "bad_json"),
        (b"\xff", "application/json", "bad_json"),
        (b"[" * 100_000, "application/json", "bad_json"),
        (b"\xff", "text/plain; charset=utf-8", "bad_charset"),
        (b"x", "text/plain; charset=klingon", "bad_charset"),
        (b"--x\r\nno end", "multipart/form-data; boundary=x", "bad_multipart"),
        (b"x", "multipart/form-data", "bad_multipart"),
    ],
)
def test_malformed_bodies(host: Running, content: bytes, content_type: str, code: str) -> None:
    """They are answered 400 before the handler runs, in the host's envelope, not the function's."""
    answer = host.call("demo/data", method="POST", content=content, headers={"Content-Type": content_type})

    assert (answer.status_code, error_of(answer)["code"]) == (400, code)
    assert "x-invoked" not in answer.headers
    assert host.call("demo/data").status_code == 200


def raw_deflate(data: bytes) -> bytes:
    """The bare stream that some clients call deflate."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("coding", "squeeze"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("GZIP", gzip.compress),
        ("identity", bytes),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
def test_compressed_bodies(host: Running, coding: str, squeeze: Any) -> None:
    """gzip and deflate are undone before the handler looks."""
    data = {"list": list(range(5000))}
    content = squeeze(json.dumps(data).encode())

    assert data_of(host, content, "application/json", **{"Content-Encoding": coding}) == data


@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("br", b"x", 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400),
        ("deflate", b"\x00\x01\x02", 400),
    ],
)
def test_bodies_that_cannot_be_inflated(host: Running, coding: str, content: bytes, status: int) -> None:
    """Unknown codings are answered 415, damaged data 400."""
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    answer = host.call("demo/data", method="POST", content=content, headers=headers)

    assert answer.status_code == status
    assert "x-invoked" not in answer.headers


def test_bombs(host: Running) -> None:
    """A body that inflates beyond `max_body` is answered 413, and costs no more than `max_body` of memory."""
    zeros = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join(zeros.compress(bytes(MIB)) for _ in range(64)) + zeros.flush()
    answer = host.call("demo/data", method="POST", content=bomb, headers={"Content-Encoding": "gzip"})
    twice = host.call(
        "demo/data", method="POST", content=gzip.compress(bomb), headers={"Content-Encoding": "gzip, gzip"}
    )

    assert (answer.status_code, twice.status_code) == (413, 413)
    assert error_of(answer)["code"] == "body_too_large"
    assert host.call("demo/data").status_code == 200


# Typed data.


@pytest.mark.parametrize("name", list(TYPED))
def test_typed_data(host: Running, name: str) -> None:
    """Data of the right shape arrive as the annotated type."""
    answer = host.call(f"demo/{name}", method="POST", json={"items": [{"name": "tea", "price": 2}], "count": 3})

    assert answer.json() == {"total": 6.0, "type": "Order"}


@pytest.mark.parametrize("name", list(TYPED))
@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"items": [{"name": "tea", "price": "cheap"}]}, "items[0].price"),
        ({"items": [{"name": "tea"}]}, "items[0].price"),
        ({"items": [], "count": "three"}, "count"),
        ({}, "items"),
        ([], ""),
    ],
)
def test_typed_data_that_do_not_fit(host: Running, name: str, data: Any, field: str) -> None:
    """422 that names the field; the handler does not run."""
    answer = host.call(f"demo/{name}", method="POST", json=data)
    error = error_of(answer)

    assert (answer.status_code, error["status"], error["code"]) == (422, 422, "invalid_data")
    assert error["details"]["field"] == field
    assert field in error["message"]
    assert "x-invoked" not in answer.headers


# Answers out.

PLAIN = {
    "dict": ("application/json", b'{"b":1,"a":"\xc3\xbc"}'),
    "list": ("application/json", b'[1,"two",null,true,2.5]'),
    "number": ("application/json", b"42"),
    "true": ("application/json", b"true"),
    "none": ("application/json", b"null"),
    "str": ("text/plain; charset=utf-8", "grüße".encode()),
    "bytes": ("application/octet-stream", b"\x00\xff"),
    "bytearray": ("application/octet-stream", b"abc"),
    "dataclass": ("application/json", b'{"x":1,"y":2}'),
    "struct": ("application/json", b'[{"name":"x"}]'),
    "model": ("application/json", b'{"model":{"when":"2024-02-29"}}'),
    "html": ("text/html", b"<p>"),
    "binary": ("image/png", b"\x89PNG"),
}


@pytest.mark.parametrize("function", ["demo/returns", "demo/returns_async"])
@pytest.mark.parametrize("what", list(PLAIN))
def test_values(host: Running, function: str, what: str) -> None:
    """Values are JSON, text or binary, with the type that says so."""
    answer = host.call(function, f"?what={what}")

    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, *PLAIN[what])
    assert answer.headers["x-invoked"] == "true"
    assert answer.headers["content-length"] == str(len(answer.content))


def test_values_that_json_has_no_form_for(host: Running) -> None:
    """Dates, decimals, UUIDs, enums, sets have an obvious form; NaN is null."""
    assert host.call("demo/returns", "?what=odd").json() == {
        "d": "2024-01-02T00:00:00Z",
        "n": "1.50",
        "u": "00000000-0000-0000-0000-000000000001",
        "e": "red",
        "s": [1],
        "f": None,
    }


def returned(host: Running, what: str) -> httpx2.Response:
    """The answer to a value that the handler returns."""
    return host.call("demo/returns", f"?what={what}")


def test_statuses_and_headers(host: Running) -> None:
    """A tuple or a dict with status_code says status and headers; whatever status from 200 to 599."""
    created, gone, response = returned(host, "created"), returned(host, "tuple"), returned(host, "response")

    assert (created.status_code, created.json()) == (201, {"id": 7})
    assert (gone.status_code, gone.text, gone.headers["x-why"]) == (410, "gone", "moved")
    assert (response.status_code, response.json(), response.headers["x-a"]) == (202, {"x": [1]}, "b")
    assert (returned(host, "teapot").status_code, returned(host, "unassigned").status_code) == (418, 599)
    assert returned(host, "string_status").status_code == 404
    assert returned(host, "redirect").headers["location"] == "/elsewhere?a=b"
    assert all(answer.headers["x-invoked"] == "true" for answer in (created, gone, response))


def test_headers_that_come_twice(host: Running) -> None:
    """Each stays a header of its own: cookies cannot be joined."""
    assert returned(host, "pairs").headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
    assert returned(host, "response").headers.get_list("set-cookie") == ["c=3", "d=4"]
    assert returned(host, "pairs").headers["x-one"] == "1"


@pytest.mark.parametrize(("what", "status"), [("no_content", 204), ("empty", 204), ("not_modified", 304)])
def test_answers_without_a_body(host: Running, what: str, status: int) -> None:
    """204 and 304 have no body and no length, and the connection goes on."""
    with Connection(host.url) as connection:
        target = host.path("demo/returns", f"?what={what}")
        connection.request(target)
        answer = connection.answer()
        connection.request(target)
        again = connection.answer()

    assert answer.status == again.status == status
    assert answer.get("content-length") is None
    assert answer.get("transfer-encoding") is None
    assert answer.get("x-invoked") == "true"
    assert status == 204 or answer.get("etag") == '"v1"'


def test_headers_that_are_not_the_functions_to_say(host: Running) -> None:
    """Those about the connection and the host's own are left out, silently."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/returns", "?what=reserved"))
        answer = connection.answer()
        connection.request("/healthz")
        after = connection.answer()

    assert (answer.body, answer.get("content-length"), answer.get("x-invoked")) == (b"x", "1", "true")
    assert answer.get("x-call-id") != "forged"
    assert answer.get("keep-alive") is None
    assert after.status == 200


def test_a_date_of_the_functions_own(host: Running) -> None:
    """Each answer has one Date, the host's; Server is the function's to say."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/returns", "?what=date"))
        answer = connection.answer()

    assert "1970" not in (answer.get("date") or "1970")
    assert answer.get("server") == "mine"


@pytest.mark.parametrize(
    "what",
    [
        "injection", "newline", "nul", "bad_name", "bad_name_injection", "bad_status", "status_600", "status_text",
        "object", "function", "loop", "surrogate",
    ],
)  # fmt: skip
def test_answers_that_cannot_be_sent(host: Running, what: str) -> None:
    """500 with the envelope, marked as the function's; nothing of a forged header gets out."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/returns", f"?what={what}"))
        answer = connection.answer()
        connection.request("/healthz")
        after = connection.answer()
    error = json.loads(answer.body)["error"]

    assert (answer.status, error["status"], error["code"]) == (500, 500, "not_encodable")
    assert answer.get("x-invoked") == "true"
    assert answer.get("set-cookie") is None
    assert "returned" in error["message"] or "header" in error["message"]
    assert after.status == 200


def test_header_values_in_latin_1(host: Running) -> None:
    """What HTTP can say is said."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/returns", "?what=latin"))
        assert connection.answer().get("x-name") == "grüße"


def test_an_exception(host: Running) -> None:
    """500 with what and where, marked as the function's; in production without source and traceback."""
    answer = returned(host, "missing")
    error = error_of(answer)

    assert (answer.status_code, error["status"], error["code"]) == (500, 500, "function_error")
    assert re.fullmatch(r"KeyError at line \d+: 'missing'", error["message"])
    assert error["details"]["exception_type"] == "KeyError"
    assert set(error["details"]) == {"exception_type", "exception_info", "exception_line_number"}
    assert answer.headers["x-invoked"] == "true"
    assert "KeyError" in host.logged("Traceback")


def test_an_answer_that_is_too_large(host: Running) -> None:
    """More than `max_response` is a 500 that says so."""
    answer = host.call("demo/small", "?size=16000")

    assert (answer.status_code, error_of(answer)["code"]) == (500, "response_too_large")
    assert len(host.call("demo/small", "?size=9600").content) == 9600


# Large ones.


def peak(host: Running) -> int:
    """The host's largest resident set so far, in bytes."""
    status = Path(f"/proc/{host.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def reset_peak(host: Running) -> int:
    """Let the largest resident set begin anew from the present one."""
    Path(f"/proc/{host.process.pid}/clear_refs").write_text("5")
    return peak(host)


@pytest.mark.parametrize("function", ["demo/sizes", "demo/sizes_async"])
def test_a_body_of_100_megabytes(host: Running, function: str) -> None:
    """It arrives intact, and the host grows by less than four times of it."""
    before = reset_peak(host)
    piece = bytes(range(256)) * (MIB // 256)
    answer = host.call(function, method="POST", content=itertools.repeat(piece, BIG // MIB))

    assert answer.json() == {"size": BIG, "sha256": hashlib.sha256(piece * (BIG // MIB)).hexdigest()}
    assert peak(host) - before < 4 * BIG


@pytest.mark.parametrize("function", ["demo/sizes", "demo/sizes_async"])
def test_an_answer_of_100_megabytes(host: Running, function: str) -> None:
    """It arrives intact, and the host grows by less than four times of it."""
    before = reset_peak(host)
    digest, size = hashlib.sha256(), 0
    with host.client.stream("GET", host.path(function, f"?size={BIG}")) as answer:
        for piece in answer.iter_raw():
            digest.update(piece)
            size += len(piece)

    assert (answer.status_code, size) == (200, BIG)
    assert digest.hexdigest() == hashlib.sha256(b"0123456789abcdef" * (BIG // 16)).hexdigest()
    assert peak(host) - before < 4 * BIG


@pytest.mark.parametrize("lines", [("Content-Length: 4",), ("Transfer-Encoding: chunked",)])
def test_a_body_that_nobody_asks_for_may_come_late(host: Running, lines: tuple[str, ...]) -> None:
    """After the answer, even: the connection is good for the next request."""
    body = b"body" if "Length" in lines[0] else b"4\r\nbody\r\n0\r\n\r\n"
    with Connection(host.url) as connection:
        for _ in range(3):
            connection.request("/healthz", *lines)
            assert connection.answer().status == 200
            connection.send(body)
