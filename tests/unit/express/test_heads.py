"""The heads of answers that are plain, and calls that are handed on."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.calls import Call, CallIds, Result
from runtime.errors import NotFound, Overloaded
from runtime.exchange import Exchange
from runtime.express import Begun, Express, closing, plain_head


def blob(*pairs: tuple[str, str]) -> bytes:
    """Headers as a worker sends them."""
    return b"\0".join(part.encode() for pair in pairs for part in pair)


def test_a_plain_head() -> None:
    head = plain_head(200, blob(("content-type", "a/b"), ("content-length", "12"), ("x-own", "")))

    assert head == (b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 12\r\nx-own: \r\n", 12)


def test_a_status_without_a_name() -> None:
    head = plain_head(299, blob(("content-length", "0")))

    assert head is not None
    assert head[0].startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (204, [("content-length", "0")]), (304, [("content-length", "0")]), (101, [("content-length", "0")]),
        (600, [("content-length", "0")]), (200, []), (200, [("content-length", "1"), ("content-length", "1")]),
        (200, [("content-length", "-1")]), (200, [("content-length", "1"), ("connection", "close")]),
        (200, [("content-length", "1"), ("transfer-encoding", "chunked")]),
        (200, [("content-length", "1"), ("x-own", "a\x01")]),
    ],
)  # fmt: skip
def test_heads_that_are_not_plain(status: int, headers: list[tuple[str, str]]) -> None:
    """The engine has to see to these, or to refuse them."""
    assert plain_head(status, blob(*headers)) is None


def exchange() -> Exchange:
    """Of a call that a client has named."""
    call = Call(1, "mine", "demo", "stock", b"PUT", b"/a%20b")
    return Exchange(call, 60, asyncio.get_running_loop(), lambda _: None)


HOST: Any = SimpleNamespace(ids=CallIds(), debug=False, worded=lambda error: error)
HI = Result(201, blob(("content-length", "2")), b"hi", complete=True, failed=False, handler_seconds=0.0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "result",
    [
        Result(200, blob(("content-length", "3")), b"hi", complete=True, failed=False, handler_seconds=0.0),
        Result(200, blob(("content-length", "0")), b"", complete=False, failed=False, handler_seconds=0.0),
        Result(200, blob(("a", "b")), b"hi", complete=True, failed=False, handler_seconds=0.0),
    ],
    ids=["of another length", "of which more follows", "of no length"],
)
async def test_answers_that_are_not_plain(result: Result) -> None:
    """Whatever came before them with the same head, which is known by then."""
    express = Express(HOST)
    for _ in range(2):
        answer = express.answer(exchange(), HI)
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n")
        assert answer.endswith(b"\r\n\r\nhi")
        assert express.answer(exchange(), result) is None


@pytest.mark.anyio
async def test_what_becomes_of_calls_is_in_the_log_of_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Where one is kept: what was answered, what failed, whom its client left, and what was refused at once."""
    caplog.set_level(logging.INFO, "spaces.call")
    for log_calls in (False, True):
        express = Express(HOST, log_calls=log_calls)
        express.answer(exchange(), HI)
        express.failure(Overloaded(), exchange())
        express.abandoned(exchange())
        express.refusal(NotFound("there is none"), "GET", b"/spaces/b%20c?d", [(b"x-call-id", b"theirs")])

    path = "/spaces/demo/functions/stock/invoke/a b"
    said = [tuple(vars(record)[name] for name in ("method", "path", "call_id", "status")) for record in caplog.records]
    assert said == [
        ("PUT", path, "mine", 201), ("PUT", path, "mine", 429), ("PUT", path, "mine", 0),
        ("GET", "/spaces/b c", "theirs", 404),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_call_that_nobody_goes_on_with_is_left() -> None:
    """As where the engine refuses its request after all."""
    left: list[Exchange] = []
    exchange = Exchange(Call(1, "1", "a", "b"), 60, asyncio.get_running_loop(), left.append)
    begun = Begun(exchange)
    del begun

    assert left == [exchange]


def test_the_last_answer_of_a_connection_says_so() -> None:
    assert closing(b"HTTP/1.1 200 OK\r\na: b\r\n\r\nhi\r\n") == (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\na: b\r\n\r\nhi\r\n"
    )
