"""A call as its handler sees it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.context import CallInfo, Refused


def call(**given: Any) -> CallInfo:
    fields = {
        "call_id": 12,
        "function_id": 34,
        "space": "demo",
        "name": "stock",
        "method": "POST",
        "path": b"/a",
        "query": b"",
        "headers": b"",
        "body": b"",
        "deadline": 1700000000.5,
        "attempt": 1,
        "max_body": 1000,
    }
    return CallInfo(*(fields | given).values())


def refusal(info: CallInfo, field: str) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        getattr(info, field)
    return refused.value.status, refused.value.code


def test_every_field_as_attribute_and_key() -> None:
    """Each field is the same as an attribute and as a mapping key, and there are no other keys."""
    info = call(query=b"a=1", headers=b"host\0h", body=b"hi")
    assert isinstance(info, Mapping)
    expected = {
        "call_id": 12,
        "function_id": 34,
        "space": "demo",
        "name": "stock",
        "method": "POST",
        "path": "/a",
        "raw_path": "/a",
        "query": {"a": "1"},
        "headers": {"host": "h", "content-length": "2"},
        "body": b"hi",
        "deadline": 1700000000.5,
        "attempt": 1,
        "schedule_id": None,
        "scheduled_time": None,
    }
    assert dict(info) == expected
    assert {name: getattr(info, name) for name in expected} == expected
    assert len(info) == len(expected)
    assert info.get("function_id") == 34
    assert info.get("nope", 5) == 5
    assert "body" in info
    assert "text" not in info
    with pytest.raises(KeyError):
        info["wire_body"]
    with pytest.raises(AttributeError, match="call_id"):
        info.boddy  # noqa: B018


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"", "/"),
        (b"/", "/"),
        (b"/a%20b/c%2Fd//e/", "/a b/c/d//e/"),
        (b"/../a/./b", "/../a/./b"),
        (b"/%25%32%30", "/%20"),
        (b"/caf%C3%A9", "/café"),
        ("/café".encode(), "/café"),
        (b"/a+b", "/a+b"),
    ],
)
def test_path(raw: bytes, path: str) -> None:
    """The path is decoded once and otherwise left as it came; the raw one is not decoded at all."""
    info = call(path=raw)
    assert info.path == path
    assert info.raw_path == (raw.decode("latin-1") or "/")


@pytest.mark.parametrize("raw", [b"/%zz", b"/%2", b"/%", b"/%+1", b"/%ff", b"/\xff", b"/%00"])
def test_bad_path(raw: bytes) -> None:
    """Broken escapes, NUL, and what is not UTF-8 are refused."""
    assert refusal(call(path=raw), "path") == (400, "bad_path")


@settings(deadline=None)
@given(st.binary())
def test_any_path_is_decoded_or_refused(raw: bytes) -> None:
    """No path does anything else than decode or be refused."""
    try:
        path = call(path=raw).path
    except Refused as refused:
        path, code = "", refused.code
    assert path or code == "bad_path"


def test_body_as_it_came() -> None:
    """A body that is not compressed is the very object that came, identity coding or not."""
    raw = b"x" * 100
    assert call(body=raw).body is raw
    assert call(body=raw, headers=b"content-encoding\0identity").body is raw


def test_compressed_body() -> None:
    """A compressed body is inflated, and the headers that describe the compressed form are gone."""
    headers = b"content-encoding\0gzip\0content-length\x0099\0content-type\0text/plain"
    info = call(body=gzip.compress(b"hello"), headers=headers)
    assert dict(info.headers) == {"content-type": "text/plain"}
    assert info.body == b"hello"
    assert info.text == "hello"
    assert info.body is info.body
    assert dict(info.headers) == {"content-type": "text/plain"}


def test_headers_that_stay() -> None:
    """Where nothing is inflated the headers stay as they came."""
    headers = b"content-encoding\0gzip\0content-length\x000"
    empty = call(headers=headers)
    assert empty.body == b""
    assert empty.headers["content-encoding"] == "gzip"
    unknown = call(headers=b"content-encoding\0br", body=b"x")
    assert unknown.headers["content-encoding"] == "br"
    assert refusal(unknown, "body") == (415, "unsupported_encoding")


def test_body_bound() -> None:
    """A compressed body may become as large as the function's limit."""
    headers = b"content-encoding\0gzip"
    assert len(call(body=gzip.compress(b"a" * 1000), headers=headers).body) == 1000
    assert refusal(call(body=gzip.compress(b"a" * 1001), headers=headers), "body") == (413, "body_too_large")
    assert refusal(call(body=b"zzz", headers=headers), "body") == (400, "bad_encoding")


def test_text_by_charset() -> None:
    """Text is decoded by the charset of its content type."""
    assert call(body=b"\xe9", headers=b"content-type\0text/plain; charset=latin-1").text == "é"
    assert call(body="é".encode()).text == "é"
    for charset in (b"klingon", b"hex", b"ascii", b"\0"):
        info = call(body=b"\xe9", headers=b"content-type\0text/plain; charset=" + charset)
        assert refusal(info, "text") == (400, "bad_charset")


def test_json() -> None:
    """The body is JSON on demand whatever its type, and refused when it is not."""
    assert call(body=b'{"a":1}', headers=b"content-type\0text/plain").json() == {"a": 1}
    with pytest.raises(Refused, match="byte 1") as refused:
        call(body=b"{").json()
    assert (refused.value.status, refused.value.code) == (400, "bad_json")


def test_repr_shows_no_secrets() -> None:
    """The repr identifies the call without header values, query or body."""
    shown = repr(call(headers=b"cookie\0secret1", body=b"secret2", query=b"token=secret3", path=b"/x" * 500))
    assert "demo/stock" in shown
    assert "12" in shown
    assert "secret" not in shown
    assert len(shown) < 200


def test_calls_compare_by_identity() -> None:
    """Two calls are equal only if they are one, and can be kept in a set."""
    one, other = call(), call()
    assert one != other
    assert len({one, other, one}) == 2


def test_a_body_of_unannounced_length_has_one_in_the_headers() -> None:
    """What came in chunks has a length by now; an empty body needs none."""
    assert call(headers=b"host\0h", body=b"hello").headers["content-length"] == "5"
    assert "content-length" not in call(headers=b"host\0h").headers
