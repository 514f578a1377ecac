"""What a handler returned, as an HTTP answer."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import io
import json
import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.answer import Answer, NotEncodable, Stream, TooLarge, encode
from runtime.worker.multi import Headers, header_pairs

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
OCTETS = "application/octet-stream"
BOTH = pytest.mark.parametrize("request_convention", [False, True], ids=["data", "req"])

DROPPED = (
    *("Connection", "Keep-Alive", "Transfer-Encoding", "TE", "Trailer", "Upgrade", "Proxy-Connection"),
    *("Content-Length", "X-Call-Id", "X-Invoked", "X-Duration-Seconds"),
)
TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12)
VISIBLE = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]) | st.just("\t"), max_size=20)


@dataclasses.dataclass
class Point:
    x: int


class Struct(msgspec.Struct):
    status_code: int
    body: str = "b"


class Model(pydantic.BaseModel):
    n: int


class Colour(enum.Enum):
    RED = "r"


class Size(NamedTuple):
    width: int
    height: int


def answer(value: Any, request_convention: bool = False, limit: int = 10_000) -> Answer:
    found = encode(value, request_convention, limit)
    assert isinstance(found, Answer)
    length = fields(found).get("content-length")
    assert length == (None if found.status in (204, 304) else str(len(found.body)))
    return found


def fields(found: Answer) -> Headers:
    return Headers(header_pairs(found.headers))


def brief(value: Any, request_convention: bool = False) -> tuple[int, str | None, bytes]:
    found = answer(value, request_convention)
    return found.status, fields(found).get("content-type"), found.body


def with_headers(given: Any) -> list[tuple[str, str]]:
    return [
        pair
        for pair in fields(answer({"status_code": 200, "headers": given})).multi_items()
        if pair[0] != "content-length"
    ]


def not_encodable(value: Any, request_convention: bool = False) -> str:
    with pytest.raises(NotEncodable) as error:
        encode(value, request_convention, 1000)
    assert (error.value.status, error.value.code) == (500, "not_encodable")
    return error.value.message


# -- values ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"a": [1, 2]}, b'{"a":[1,2]}'),
        ([1, "x"], b'[1,"x"]'),
        (3, b"3"),
        (2.5, b"2.5"),
        (math.nan, b"null"),
        (True, b"true"),
        (Point(1), b'{"x":1}'),
        (Struct(200), b'{"status_code":200,"body":"b"}'),
        (Model(n=1), b'{"n":1}'),
        (dt.date(2020, 1, 2), b'"2020-01-02"'),
        (Colour.RED, b'"r"'),
        ({3}, b"[3]"),
        ((1, 2, 3, 4), b"[1,2,3,4]"),
        ((), b"[]"),
        (Size(640, 480), b"[640,480]"),
        (("a", 700), b'["a",700]'),
        (("a", True), b'["a",true]'),
        (("a", "200"), b'["a","200"]'),
        ((1, 200, 3), b"[1,200,3]"),
        ({"status_code": 201, "body": "x", "extra": 1}, b'{"status_code":201,"body":"x","extra":1}'),
    ],
)
def test_json_values(value: Any, body: bytes, request_convention: bool) -> None:
    """Values are 200 and JSON in both conventions, those that only look like responses included."""
    assert brief(value, request_convention) == (200, JSON, body)


@BOTH
def test_text_and_bytes(request_convention: bool) -> None:
    """Text is text, or HTML for a handler of requests; bytes are bytes."""
    assert brief("é", request_convention) == (200, HTML if request_convention else TEXT, "é".encode())
    for value in (b"\xff", bytearray(b"\xff"), memoryview(b"\xff")):
        assert brief(value, request_convention) == (200, OCTETS, b"\xff")
        assert type(answer(value).body) is bytes


def test_what_differs_between_the_conventions() -> None:
    """None, and a dict without a status, are a response only to a handler of requests."""
    assert brief(None) == (200, JSON, b"null")
    assert brief(None, True) == (200, HTML, b"")
    assert brief({}) == (200, JSON, b"{}")
    assert brief({}, True) == (200, HTML, b"")
    assert brief({"body": "x"}) == (200, JSON, b'{"body":"x"}')
    assert brief({"body": "x"}, True) == (200, HTML, b"x")
    assert brief({"headers": {"a": "b"}}) == (200, JSON, b'{"headers":{"a":"b"}}')
    assert fields(answer({"headers": {"a": "b"}}, True))["a"] == "b"


# -- responses ------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        ({"a": 1}, JSON, b'{"a":1}'),
        ([1], JSON, b"[1]"),
        (3, JSON, b"3"),
        (False, JSON, b"false"),
        ("x", TEXT, b"x"),
        (b"\xff", OCTETS, b"\xff"),
        (None, None, b""),
        ({"status_code": 500}, JSON, b'{"status_code":500}'),
        (Point(1), JSON, b'{"x":1}'),
    ],
)
def test_bodies_of_responses(body: Any, content_type: str, sent: bytes, request_convention: bool) -> None:
    """A response's body is encoded like a value, whichever way the response is spelt."""
    if request_convention and content_type in (TEXT, None):
        content_type = HTML
    for value in (
        {"status_code": 201, "body": body},
        {"status_code": "201", "body": body, "headers": None},
        (body, 201),
        (body, HTTPStatus.CREATED, {}),
        (body, 201, None),
    ):
        assert brief(value, request_convention) == (201, content_type, sent)


@pytest.mark.parametrize("status", [200, 599, "404", HTTPStatus.NOT_FOUND])
def test_statuses(status: Any) -> None:
    """Every final status goes through, as a number or as its digits."""
    assert answer({"status_code": status}).status == int(status)


@pytest.mark.parametrize(
    "status", [0, 199, 600, 99999, "abc", "", " 200", "2e2", "000200999", "٢٠٠", None, True, 200.0, [200]]
)
def test_bad_statuses(status: Any) -> None:
    """Anything else as a status is an error that says so."""
    assert "status_code" in not_encodable({"status_code": status, "body": "x"})
    assert "status_code" in not_encodable({"status_code": status}, True)


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("body", [None, "x", {"a": 1}])
def test_statuses_without_content(status: int, body: Any) -> None:
    """Statuses that have no content send none, whatever the function gave."""
    found = answer((body, status))
    assert found.body == b""
    assert "content-type" not in fields(found)
    etag = answer((body, status, {"ETag": '"x"', "Content-Type": "a/b"}))
    assert fields(etag)["etag"] == '"x"'
    assert fields(etag)["content-type"] == "a/b"


# -- headers --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(TOKENS, VISIBLE)))
def test_headers_come_through(pairs: list[tuple[str, str]]) -> None:
    """Valid headers arrive as given, in order, repeated ones too; names in lower case, values trimmed."""
    skipped = {name.lower() for name in (*DROPPED, "content-type", "proxy-authenticate", "proxy-authorization")}
    expected = [(name.lower(), value.strip(" \t")) for name, value in pairs if name.lower() not in skipped]
    assert with_headers(pairs) == expected


@settings(deadline=None)
@given(st.text(min_size=1, max_size=6), st.text(max_size=6))
def test_headers_are_valid_or_refused(name: str, value: str) -> None:
    """No header that is not valid HTTP ever leaves, whatever a function gives."""
    bad_name = not all(char.isascii() and (char.isalnum() or char in "!#$%&'*+-.^_`|~") for char in name)
    bad_value = any((ord(char) < 32 and char != "\t") or ord(char) == 127 or ord(char) > 255 for char in value)
    if bad_name or bad_value:
        assert repr(name) in not_encodable({"status_code": 200, "headers": {name: value}})
    else:
        assert with_headers({name: value}) in ([(name.lower(), value.strip(" \t"))], [])


def test_header_values() -> None:
    """Numbers are written out, lists become repeated headers, and other mappings and pairs work too."""
    expected = [("x-n", "5"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
    assert with_headers({"X-N": 5, "Set-Cookie": ["a=1", "b=2"]}) == expected
    assert with_headers([("X-N", 5), ("Set-Cookie", "a=1"), ["Set-Cookie", "b=2"]]) == expected
    assert with_headers(Headers(expected)) == expected
    assert with_headers({"x-a": []}) == with_headers([]) == with_headers(()) == []


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"X-A": "a\r\nX-B: b"}, "X-A"),
        ({"X-A": "a\nb"}, "X-A"),
        ({"X-A": "a\0"}, "X-A"),
        ({"X-A": "a\x7f"}, "X-A"),
        ({"X-A": "😀"}, "X-A"),
        ({"X-A": None}, "X-A"),
        ({"X-A": b"x"}, "X-A"),
        ({"X-A": True}, "X-A"),
        ({"X-A": ["x", 1.5]}, "X-A"),
        ({"X A": "x"}, "X A"),
        ({"": "x"}, "''"),
        ({"X:A": "x"}, "X:A"),
        ({"É": "x"}, "É"),
        ({"\ud800": "x"}, "ud800"),
        ({5: "x"}, "an int"),
        ("X-A: b", "a str"),
        ([("a", "b", "c")], "a list"),
        (3, "an int"),
    ],
)
def test_bad_headers(headers: Any, word: str) -> None:
    """A header that cannot be sent is an error that names it."""
    assert word in not_encodable({"status_code": 200, "headers": headers})


def test_headers_that_are_the_hosts() -> None:
    """Headers about the connection, and those that only the host may say, are dropped."""
    given = dict.fromkeys(DROPPED, "5") | {"Connection": "x-mine, close", "X-Mine": "1", "X-Other": "2"}
    assert with_headers(given) == [("x-other", "2")]


@pytest.mark.parametrize("name", ["X-Long", "Content-Type"])
def test_headers_that_are_too_long(name: str) -> None:
    """All of them together may have 64 KiB; of more, the longest is named, and the limit."""
    given = {"X-Other": "1", name: "z" * 65_500}
    assert answer({"status_code": 200, "headers": given}).headers.count(b"z") == 65_500
    for longer in (given | {name: "z" * 65_530}, given | {name: "z" * 5_000_000}, {name: "z" * 65_537}):
        message = not_encodable({"status_code": 200, "headers": longer})
        assert f"'{name.lower()}'" in message
        assert "65536" in message
    many = [("Set-Cookie", f"{number}={'z' * 100}") for number in range(1000)]
    assert "'set-cookie'" in not_encodable({"status_code": 200, "headers": many})
    assert with_headers({"Connection": "x-mine", "X-Mine": "z" * 100_000}) == []


def test_content_type_of_the_function_wins() -> None:
    """A content type given by the function is the one that is sent, the last one if there are several."""
    for body in ("x", b"x", {"a": 1}, None):
        assert brief({"status_code": 200, "body": body, "headers": {"Content-Type": "a/b"}})[1] == "a/b"
        assert brief((body, 200, [("content-type", "a/b"), ("CONTENT-TYPE", "c/d")]))[1] == "c/d"


# -- what is refused ------------------------------------------------------------------------------------


def test_too_large() -> None:
    """An answer of exactly the limit passes, one byte more does not, whatever it is made of."""
    for value in ({"a": 1}, "1234567", b"1234567", {"status_code": 200, "body": "1234567"}):
        assert len(answer(value, limit=7).body) == 7
        with pytest.raises(TooLarge, match="7 bytes; max_response is 6") as error:
            encode(value, False, 6)
        assert (error.value.status, error.value.code) == (500, "response_too_large")
        assert error.value.details == {"size": 7, "max_response": 6}


@BOTH
def test_not_encodable(request_convention: bool) -> None:
    """What cannot be encoded is named with its place."""
    assert "an object" in not_encodable(object(), request_convention)
    assert "result['x']" in not_encodable({"x": object()}, request_convention)
    assert "surrogate" in not_encodable("\ud800", request_convention)
    assert "surrogate" in not_encodable({"status_code": 200, "body": "\ud800"}, request_convention)

    async def later() -> None: ...

    coroutine = later()
    assert "await" in not_encodable(coroutine, request_convention)
    coroutine.close()


# -- streams --------------------------------------------------------------------------------------------


@BOTH
def test_streams(request_convention: bool) -> None:
    """Generators and other iterators, sync and async, are streams, alone or as a response's body."""

    def items() -> Iterator[int]:
        yield 1

    async def later() -> Any:
        yield 1

    class Lazy:
        def __aiter__(self) -> Any:
            return later()

    for value, is_async in (
        *((items(), False), (iter([1]), False), (map(str, [1]), False), (io.BytesIO(b"x"), False)),
        *((later(), True), (Lazy(), True)),
    ):
        found = encode(value, request_convention, 10)
        assert isinstance(found, Stream)
        assert (found.status, found.is_async) == (200, is_async)
        assert hasattr(found.iterator, "__anext__" if is_async else "__next__")
    given = items()
    found = encode({"status_code": 201, "body": given, "headers": {"X-A": "b", "Content-Type": "c/d"}}, False, 10)
    assert isinstance(found, Stream)
    assert (found.status, found.given, found.iterator) == (201, (b"c/d", b"x-a\0b"), given)


def test_lists_are_no_streams() -> None:
    """What can be iterated over but is no iterator is a value."""
    for value in ([1], {1}, range(1, 2), {"a": 1}.values()):
        assert json.loads(answer(value).body) == [1]


def test_an_answer_is_one_already() -> None:
    """As the conventions of other platforms make it; a tuple of the same content is not."""
    answer = Answer(201, b"", b"x")

    assert encode(answer, False, 1000) is answer
    assert encode(tuple(answer), False, 1000) != answer
