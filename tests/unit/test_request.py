"""What a request's head says, read from the ASGI scope: what could be taken for something else is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from runtime import request
from runtime.errors import BadRequest, BodyTooSlow
from runtime.request import hurry_bodies, read_body, read_headers


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request with these headers."""
    return {"headers": headers, "http_version": "2", "client": ("127.0.0.1", 1), "scheme": "http"}


@pytest.mark.parametrize("name", [b"x-a", b"cookie", b"authorization", b"x-forwarded-for", b"host"])
def test_a_nul_would_begin_another_header(name: bytes) -> None:
    """HTTP/2 and HTTP/3 can carry one, and the function's headers are separated by it."""
    with pytest.raises(BadRequest, match="NUL"):
        read_headers(scope((name, b"a\0x-forwarded-proto\0https")), 1)


class Client:
    """One that sends these pieces of a body, and then no more."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def receive(self) -> dict[str, Any]:
        if not self._pieces:
            await anyio.sleep_forever()
        await anyio.sleep(0.001)
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}


@pytest.mark.anyio
@pytest.mark.parametrize("rate", [1024, 0.001])
async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """One that pauses for too long is not waited for, however much of it came, and however fast."""
    monkeypatch.setattr(request, "BODY_PAUSE", 0.01)
    monkeypatch.setattr(request, "BODY_RATE", rate)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hurry_bodies)
        with pytest.raises(BodyTooSlow):
            await read_body(Client(b"a", b"b").receive, 10, 100, "max_body")
        with pytest.raises(BodyTooSlow):
            await read_body(Client().receive, None, 100, "max_body")
        await anyio.sleep(0)  # what was cancelled for it is not cancelled any more
        tasks.cancel_scope.cancel()

    assert not request._awaited


@pytest.mark.anyio
async def test_a_body_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is too long, and yet it would take for ever."""
    monkeypatch.setattr(request, "BODY_PAUSE", 0.02)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hurry_bodies)
        with pytest.raises(BodyTooSlow):
            await read_body(Client(*[b"a"] * 10_000).receive, 10_000, 10_000, "max_body")
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_body_is_no_longer_read_when_its_call_is_cancelled() -> None:
    """By somebody else: that is no error of the client."""
    reading = asyncio.create_task(read_body(Client().receive, 10, 100, "max_body"))
    await asyncio.sleep(0)
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not request._awaited
