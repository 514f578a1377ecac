"""Payload: JSON bodies of requests, and the calls that are made of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from runtime.config import FunctionSettings
from runtime.errors import HostError
from runtime.payload import json_call, read_json
from runtime.registry import Function

pytestmark = pytest.mark.anyio

FUNCTION = Function(
    id=7, space="demo", name="work", path=Path("/work.py"), line=1, kind="sync", takes=(), digest="",
    settings=FunctionSettings(),
)  # fmt: skip


class Wanted(msgspec.Struct):
    number: int


def request(body: bytes, **headers: str) -> Request:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": "/", "raw_path": b"/",
        "query_string": b"", "client": ("192.0.2.1", 5), "headers": [(b"content-length", b"%d" % len(body)), *fields],
    }  # fmt: skip
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    return Request(scope, receive)


async def refused(body: bytes, kind: Any = Any, limit: int = 1000, **headers: str) -> tuple[int, str]:
    with pytest.raises(HostError) as raised:
        await read_json(request(body, **headers), kind, limit)
    return raised.value.status, raised.value.message


async def test_a_body_is_read_as_what_is_wanted() -> None:
    """Packed or not; whatever else is in it is left out."""
    body = b'{"number": 3, "more": true}'

    assert await read_json(request(body), Wanted, 1000) == Wanted(3)
    assert await read_json(request(gzip.compress(body), content_encoding="gzip"), Wanted, 1000) == Wanted(3)
    assert await read_json(request(body, content_type="application/json; charset=UTF-8"), Wanted, 1000) == Wanted(3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'{"other":' + b"[" * 1_000_000, "nested too deeply"),
        (b'{"number": NaN}', "is not valid JSON"),
        (b'{"number": "3"}', "does not fit: Expected `int`, got `str`"),
        (b"[]", "does not fit"),
    ],
)
async def test_what_does_not_fit_says_why(body: bytes, message: str) -> None:
    """It is the client's to mend."""
    status, told = await refused(body, Wanted, 2_000_000)

    assert status == 400
    assert message in told


async def test_other_charsets_and_codings_are_refused() -> None:
    """Rather than misread."""
    assert await refused(b"{}", content_type="application/json; charset=utf-16") == (
        400, "the body must be JSON in UTF-8, and not in utf-16",
    )  # fmt: skip
    assert (await refused(b"{}", content_encoding="br"))[0] == 415
    assert (await refused(b"{}", content_encoding="gzip"))[0] == 400


async def test_a_bomb_does_not_go_off() -> None:
    """The limit holds for what is unpacked."""
    bomb = gzip.compress(b"0" * 1_000_000)

    assert len(bomb) < 2000
    assert (await refused(bomb, limit=2000, content_encoding="gzip"))[0] == 413
    assert (await refused(b"0" * 2001, limit=2000))[0] == 413


def test_a_call_has_none_of_the_headers_that_its_request_had() -> None:
    """But from whom it came."""
    theirs = request(b"{}", authorization="Bearer secret", cookie="a=b", host="here")
    call = json_call(9, theirs, FUNCTION, b"[1]", query=b"a=1", timeout=3.0)

    assert (call.method, call.path, call.query, call.body, call.timeout) == (b"POST", b"", b"a=1", (b"[1]",), 3.0)
    assert (call.id, call.label, call.space, call.name) == (9, "9", "demo", "work")
    assert call.headers == (
        b"content-type\0application/json\0content-length\x003\0x-forwarded-host\0here\0"
        b"x-forwarded-for\x00192.0.2.1\0x-forwarded-proto\0https\0x-call-id\x009"
    )


def test_a_call_without_a_payload_has_no_body() -> None:
    """And says nothing of one."""
    call = json_call(9, request(b""), FUNCTION, b"")

    assert call.body == ()
    assert b"content-type" not in call.headers
