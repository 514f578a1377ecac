"""What the engines' applications say to clients when their host leaves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message, Receive, Scope, Send

from runtime.engines import Farewell

pytestmark = pytest.mark.anyio

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"0"), (b"Connection", b"keep-alive")],
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b""})


async def answer(farewell: Farewell, version: str) -> list[Message]:
    """What goes to the engine."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Any:
        pytest.fail("it has no body")

    await farewell({"type": "http", "http_version": version}, receive, send)
    return sent


async def test_answers_say_close_once_the_host_leaves() -> None:
    """Whatever they say of the connection themselves; before, they are left as they are."""
    express: Any = SimpleNamespace(open=True)
    farewell = Farewell(app, express)
    before = await answer(farewell, "1.1")
    farewell.begin()
    after = await answer(farewell, "1.1")

    assert before[0] is START
    assert not express.open
    assert after[0]["headers"] == [(b"content-length", b"0"), (b"connection", b"close")]
    assert before[1:] == after[1:]


async def test_later_versions_have_no_such_header() -> None:
    """HTTP/2 forbids it."""
    farewell = Farewell(app, cast(Any, SimpleNamespace()))
    farewell.begin()

    assert (await answer(farewell, "2"))[0] is START
