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
from ..clock import date_header
from ..errors import BadRequest, BodyTooLarge, HostError, MethodNotAllowed, NotFound
from ..exchange import Exchange
from ..host import Host
from ..registry import Function

HOP_BY_HOP = frozenset(
    b"connection keep-alive te trailer trailers transfer-encoding upgrade expect http2-settings"
    b" proxy-authenticate proxy-authorization proxy-connection".split()
)
SPECIAL = HOP_BY_HOP.union(
    b"content-length cookie host x-call-id x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)
CALL_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
INVOKED = (b"x-invoked", b"true")
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
        scope["body_read"] = True
        call = Call(number, label.decode(), space, name, method.encode(), path, scope["query_string"], headers, body)
        with self._host.invoke(call) as exchange:
            result = await exchange.soon() or await result_while_client_stays(exchange, receive)
            scope["answered"] = True
            await respond(exchange, result, method, label, receive, send)


def _name(segment: bytes) -> str:
    return unquote(segment.decode("ascii", "replace")) if b"%" in segment else segment.decode("ascii", "replace")


def read_headers(scope: Scope, number: int) -> tuple[bytes, int | None, bytes]:
    """The function's headers as one NUL-joined string, the body's announced length, the call's id.

    Hop-by-hop headers (RFC 9110 section 7.6.1) stay behind; X-Call-Id and X-Forwarded-* are added.
    """
    parts: list[bytes] = []
    special: dict[bytes, bytes] = {}
    length: int | None = 0
    host = b""
    for pair in scope["headers"]:
        name = pair[0]
        if name not in SPECIAL:
            parts += pair
        elif name == b"host":
            parts += pair
            host = pair[1]
        elif name == b"content-length":
            parts += pair
            length = _length(pair[1])
        else:
            _take(name, pair[1], special)
    if not length and scope["http_version"] in ("2", "3"):
        length = None  # these need not announce a body
    client = scope["client"]
    address: bytes = client[0].encode() if client else b"unknown"
    proto: bytes = scope["scheme"].encode()
    label = b"%d" % number
    if special:
        if b"transfer-encoding" in special:
            length = None
        if b"connection" in special:
            parts = _without_named(parts, special[b"connection"])
        if b"cookie" in special:
            parts += (b"cookie", special[b"cookie"])
        if b"x-forwarded-for" in special:
            address = special[b"x-forwarded-for"] + b", " + address
        host = special.get(b"x-forwarded-host", host)
        proto = special.get(b"x-forwarded-proto", proto)
        label = _own_id(special.get(b"x-call-id", label))
    if host:
        parts += (b"x-forwarded-host", host)
    parts += (b"x-forwarded-for", address, b"x-forwarded-proto", proto, b"x-call-id", label)
    blob = b"\0".join(parts)
    if blob.count(b"\0") != len(parts) - 1:
        raise BadRequest("a header contains a NUL character")
    return blob, length, label


def _take(name: bytes, value: bytes, special: dict[bytes, bytes]) -> None:
    """Note a header that is not simply passed on; one that is a list may come in several lines."""
    value = value.strip(b" \t")
    if name in special:
        if name == b"x-call-id":
            raise BadRequest("X-Call-Id is there twice")
        value = special[name] + (b"; " if name == b"cookie" else b", ") + value
    special[name] = value


def _own_id(label: bytes) -> bytes:
    if CALL_ID.fullmatch(label) is None:
        raise BadRequest("X-Call-Id must be 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    return label


def _without_named(parts: list[bytes], connection: bytes) -> list[bytes]:
    """The headers without those that Connection names as being about the connection."""
    named = {name.strip() for name in connection.lower().split(b",")} - SPECIAL
    return [part for at, part in enumerate(parts) if parts[at & ~1] not in named]


def _length(value: bytes) -> int:
    digits = value if value.isdigit() else value.strip(b" \t")
    if not digits.isdigit() or len(digits) > 18:
        raise BadRequest("Content-Length must be a number")
    return int(digits)


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
        if size == length or not message.get("more_body", False):
            return tuple(pieces)


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
    if error.status == 503:
        error.headers.setdefault("Retry-After", "1")
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
