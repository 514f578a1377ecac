"""Answers: what a function returned, read out of the HTTP answer that the journal keeps of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.answers import Answer, header, read
from runtime.calls import Outcome
from runtime.errors import FunctionTimeout, envelope


def outcome(body: bytes, kind: str = "application/json", code: int = 200, *, invoked: bool = True) -> Outcome:
    headers = b"content-type\0" + kind.encode() if kind else b""
    return Outcome(code, headers, body, invoked=invoked, seconds=0.1)


@pytest.mark.parametrize(
    ("body", "kind", "value"),
    [
        (b'{"a":1}', "application/json", b'{"a":1}'),
        (b'{"a":1}', "application/problem+json; charset=utf-8", b'{"a":1}'),
        (b"null", "application/json", b"null"),
        (b"", "", b"null"),
        (b"hello", "text/plain; charset=utf-8", b'"hello"'),
        (b'say "hi"', "text/html", b'"say \\"hi\\""'),
        (b"\xff\x00", "application/octet-stream", b'"/wA="'),
        (b"not json", "application/json", b'"not json"'),
    ],
)
def test_the_value_is_json_text(body: bytes, kind: str, value: bytes) -> None:
    """Whatever it was."""
    assert read(outcome(body, kind)) == Answer(True, value)


@given(st.binary(), st.sampled_from(["application/json", "text/plain", "image/png", ""]), st.integers(200, 599))
def test_whatever_a_function_answers_can_be_told(body: bytes, kind: str, code: int) -> None:
    """The value is JSON, and a failure has something to say."""
    answer = read(outcome(body, kind, code))

    msgspec.json.decode(answer.value)
    assert answer.ok is (code < 400)
    assert answer.ok or (answer.message and answer.kind)


def test_a_handler_that_raised_says_what() -> None:
    """With the type of the exception."""
    body = (
        b'{"error":{"status":500,"code":"function_error","message":"ValueError at line 3: no",'
        b'"details":{"exception_type":"ValueError"}}}'
    )

    assert read(outcome(body, code=500)) == Answer(False, body, "ValueError at line 3: no", "ValueError")


def test_what_the_host_failed_with_is_told_by_its_code() -> None:
    """A deadline, for one."""
    error = FunctionTimeout("too late")
    answer = read(outcome(envelope(error), code=504, invoked=False))

    assert (answer.ok, answer.message, answer.kind) == (False, "too late", "timeout")


def test_a_function_may_answer_an_error_of_its_own() -> None:
    """Then its status says so, and its body what."""
    answer = read(outcome(b"not here", "text/plain", 404))

    assert (answer.message, answer.kind) == ("the function answered 404: not here", "http_status")


def test_a_header_is_found_by_its_name() -> None:
    """The first; none is an empty text."""
    headers = b"a\0one\0b\0two\0b\0three"
    it = Outcome(200, headers, b"", invoked=True, seconds=0.0)

    assert [header(it, name) for name in (b"b", b"c")] == ["two", ""]
