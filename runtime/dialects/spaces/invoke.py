"""Runs a call now: `/spaces/{space}/functions/{name}/invoke[/path]`.

Mounted by `__init__.py`, asks `host.py`. This is the hot path: it reads the ASGI scope itself, without a
Request object.
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

from ...calls import Call, Headers, Result
from ...clock import date_header
from ...exchange import Exchange
from ...host import Host
from ...request import Address, check_address, read_body, read_headers, while_client_stays, with_authorization
from .admission import admit

INVOKED = (b"x-invoked", b"true")


class Invoke:
    """Runs calls: an ASGI endpoint for one function and what follows its address."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(self, address: Address, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, whatever becomes of it short of a HostError."""
        space, name, path = address
        number = self._host.ids.next()
        headers, length, label, authorization = read_headers(scope, number)
        scope["call_id"] = label
        if authorization is not None or not self._host.authority.is_open(space):
            authorization = await admit(self._host, space, name, authorization)
            if authorization is not None:
                headers = with_authorization(headers, authorization)
        function = self._host.lookup(space, name)
        method: str = scope["method"]
        check_address(function, method, path)
        body = await read_body(receive, length, function.settings.max_body, "max_body")
        scope["body_read"] = True
        call = Call(number, label.decode(), space, name, method.encode(), path, scope["query_string"], headers, body)
        self._host.received["http"] += 1
        with self._host.invoke(call) as exchange:
            await finish(exchange, method, label, scope, receive, send)


async def finish(exchange: Exchange, method: str, label: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call that has begun, as soon as there is something to answer."""
    result = None if exchange.late else await exchange.soon()
    if result is None:
        result = await while_client_stays(receive, exchange.result)
    scope["answered"] = True
    await respond(exchange, result, method, label, receive, send)


def response_headers(result: Result, exchange: Exchange, label: bytes) -> Headers:
    """The function's own headers, and ours."""
    parts = result.headers.split(b"\0") if result.headers else []
    fields = iter(parts)
    duration = b"%.6f" % exchange.seconds()
    ours = (date_header(), INVOKED, (b"x-call-id", label), (b"x-duration-seconds", duration))
    return [*zip(fields, fields), *ours]  # noqa: B905 - a name and its value, in turn, out of one iterator


async def respond(exchange: Exchange, result: Result, method: str, label: bytes, receive: Receive, send: Send) -> None:
    """Send a result; a stream as it is made, until its end or until the client leaves."""
    headers = response_headers(result, exchange, label)
    start: Message = {"type": "http.response.start", "status": result.status, "headers": headers}
    await send(start)
    if result.complete or method == "HEAD":
        body = b"" if method == "HEAD" else result.body
        await send({"type": "http.response.body", "body": body})
        return

    async def stream() -> None:
        async for chunk in exchange.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    await while_client_stays(receive, stream)
