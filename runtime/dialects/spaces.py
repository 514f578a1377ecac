"""Our own dialect: `/spaces/{space}/functions/{name}/invoke[/path]` and what is to be known of functions.

Mounted by `app.py`, asks `host.py`. The answers are those of docs/reference/http.md. `Invoke` is the hot
path: it reads the ASGI scope itself, without a Request object.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from ..calls import Call, Headers, Result
from ..errors import BadRequest, BodyTooLarge, HostError, MethodNotAllowed, NotFound
from ..exchange import Exchange
from ..host import Host
from ..registry import Function

HOP_BY_HOP = frozenset(
    b"connection keep-alive te trailer trailers transfer-encoding upgrade expect http2-settings".split()
)
CALL_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
JSON = (b"content-type", b"application/json")
RESERVED = b"/__/"


class ClientLeft(Exception):
    """The client closed its connection: there is nobody to answer."""


class Invoke:
    """Runs calls: an ASGI endpoint for one function and what follows its address."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def find(self, scope: Scope) -> tuple[str, str, bytes] | None:
        """Space, function and the rest of the path, when this is the address of a call."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        parts = raw.split(b"/", 6)
        if len(parts) < 6 or parts[1] != b"spaces" or parts[3] != b"functions" or parts[5] != b"invoke":
            return None
        rest = b"/" + parts[6] if len(parts) == 7 else b""
        return _name(parts[2]), _name(parts[4]), rest

    async def __call__(self, address: tuple[str, str, bytes], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, whatever becomes of it short of a HostError."""
        space, name, path = address
        function = self._host.lookup(space, name)
        number = self._host.ids.next()
        headers, length, label = read_headers(scope, number)
        scope["call_id"] = label
        method: str = scope["method"]
        check_address(function, method, path)
        body = await read_body(receive, length, function.settings.max_body)
        call = Call(number, label.decode(), space, name, method.encode(), path, scope["query_string"], headers, body)
        with self._host.invoke(call) as exchange:
            result = await exchange.soon() or await result_while_client_stays(exchange, receive)
            await respond(exchange, result, method, label, receive, send)


def _name(segment: bytes) -> str:
    return unquote(segment.decode("ascii", "replace")) if b"%" in segment else segment.decode("ascii", "replace")


def read_headers(scope: Scope, number: int) -> tuple[bytes, int | None, bytes]:
    """The function's headers as one NUL-joined string, the body's announced length, the call's id.

    Hop-by-hop headers (RFC 9110 section 7.6.1) stay behind; X-Call-Id and X-Forwarded-* are added.
    """
    parts: list[bytes] = []
    length: int | None = 0
    label = forwarded_for = b""
    proto = host = None
    for name, value in scope["headers"]:
        if name in HOP_BY_HOP:
            if name == b"transfer-encoding":
                length = None
            continue
        if name == b"content-length":
            length = _length(value)
        elif name == b"x-call-id":
            label = value
            continue
        elif name == b"x-forwarded-for":
            forwarded_for = value + b", "
            continue
        elif name == b"x-forwarded-proto":
            proto = value
        elif name == b"x-forwarded-host":
            host = value
        parts += (name, value)
        if name == b"host" and host is None:
            host = b""
            parts += (b"x-forwarded-host", value)
    if label and CALL_ID.fullmatch(label) is None:
        raise BadRequest("X-Call-Id must be 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    label = label or b"%d" % number
    if scope["http_version"] in ("2", "3") and not length:
        length = None  # these need not announce a body
    client = scope["client"]
    address = client[0].encode() if client else b"unknown"
    parts += (b"x-call-id", label, b"x-forwarded-for", forwarded_for + address)
    if proto is None:
        parts += (b"x-forwarded-proto", scope["scheme"].encode())
    blob = b"\0".join(parts)
    if blob.count(b"\0") != len(parts) - 1:
        raise BadRequest("a header contains a NUL character")
    return blob, length, label


def _length(value: bytes) -> int:
    if not value.isdigit():
        raise BadRequest("Content-Length must be a number")
    return int(value)


def check_address(function: Function, method: str, path: bytes) -> None:
    """Refuse what the function's `methods` and `max_path_levels` do not allow, and malformed paths."""
    settings = function.settings
    if settings.methods is not None and method not in settings.methods:
        allowed = ", ".join(sorted(settings.methods))
        raise MethodNotAllowed(f"`{function.label}` takes {allowed}", headers={"Allow": allowed})
    if b"%" in path:
        if BAD_ESCAPE.search(path):
            raise BadRequest("the path has a % that is not followed by two hexadecimal digits")
        try:
            decoded = unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise BadRequest("the path is not UTF-8 once its %-escapes are decoded") from None
        if "\0" in decoded:
            raise BadRequest("the path contains a NUL character")
    if path.startswith(RESERVED):
        raise NotFound("paths that start with /__/ are reserved")
    limit = settings.max_path_levels
    if limit is not None and sum(map(bool, path.split(b"/"))) > limit:
        raise NotFound(f"`{function.label}` takes at most {limit} path levels after its address")


async def read_body(receive: Receive, length: int | None, limit: int) -> tuple[bytes, ...]:
    """The request body in the pieces it came in; `length` is what was announced, None for unknown."""
    if length == 0:
        return ()
    if length is not None and length > limit:
        raise BodyTooLarge(f"the body has {length} bytes; at most {limit} are allowed here (`max_body`)")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        piece = message.get("body", b"")
        if piece:
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"the body is larger than the {limit} bytes allowed here (`max_body`)")
            pieces.append(piece)
        if not message.get("more_body", False):
            return tuple(pieces)


def response_headers(result: Result, exchange: Exchange, label: bytes) -> Headers:
    """The function's own headers, and ours."""
    parts = result.headers.split(b"\0") if result.headers else []
    headers = list(zip(parts[::2], parts[1::2], strict=True))
    headers.append((b"x-invoked", b"true"))
    headers.append((b"x-call-id", label))
    headers.append((b"x-duration-seconds", b"%.6f" % exchange.seconds()))
    return headers


async def respond(exchange: Exchange, result: Result, method: str, label: bytes, receive: Receive, send: Send) -> None:
    """Send a result; a stream as it is made, until its end or until the client leaves."""
    headers = response_headers(result, exchange, label)
    start: Message = {"type": "http.response.start", "status": result.status, "headers": headers}
    await send(start)
    if result.complete or method == "HEAD":
        body = b"" if method == "HEAD" else result.body
        await send({"type": "http.response.body", "body": body})
        return
    cut: HostError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_leave_with_client, receive, tasks.cancel_scope)
        try:
            async for chunk in exchange.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except HostError as error:
            cut = error
        tasks.cancel_scope.cancel()
    if cut is not None:
        raise cut


async def result_while_client_stays(exchange: Exchange, receive: Receive) -> Result:
    """The result of a call that takes its time; ClientLeft when the client goes away before."""
    result: Result | None = None
    failure: HostError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_leave_with_client, receive, tasks.cancel_scope)
        try:
            result = await exchange.result()
        except HostError as error:
            failure = error
        tasks.cancel_scope.cancel()
    if result is None:
        raise failure or ClientLeft
    return result


async def _leave_with_client(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """An error as this dialect words it: status, headers, body."""
    details = {key: value for key, value in error.details.items() if debug or key != "traceback"}
    envelope: dict[str, Any] = {"status": error.status, "code": error.code, "message": error.message}
    if details:
        envelope["details"] = details
    body = msgspec.json.encode({"error": envelope}, enc_hook=str)
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return error.status, [JSON, (b"content-length", b"%d" % len(body)), *headers], body


def routes(host: Host) -> list[BaseRoute]:
    """What is to be known: the spaces, a space's functions, a function."""

    async def spaces(_: Request) -> Response:
        names = host.registry.spaces
        return _json({"spaces": [{"name": n, "functions": len(host.registry.in_space(n))} for n in names]})

    async def functions(request: Request) -> Response:
        found = host.registry.in_space(request.path_params["space"])
        return _json({"functions": [host.status(function) for function in found]})

    async def function(request: Request) -> Response:
        found = host.lookup(request.path_params["space"], request.path_params["name"])
        return _json(host.status(found))

    return [
        Route("/spaces", spaces, methods=["GET"]),
        Route("/spaces/{space}/functions", functions, methods=["GET"]),
        Route("/spaces/{space}/functions/{name}", function, methods=["GET"]),
    ]


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
