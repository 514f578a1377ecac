"""The heads of answers that are plain, and calls that are handed on."""

from __future__ import annotations

import asyncio

import pytest

from runtime.calls import Call
from runtime.exchange import Exchange
from runtime.express import Begun, closing, plain_head


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
