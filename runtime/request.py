"""What a request to run a function says: its headers, its address, its body, and whether its client is still there.

Used by the dialects; `payload.py` reads the bodies that are JSON. Whatever it cannot read is a CallerError.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import anyio
from starlette.types import Receive, Scope

from .errors import BadRequest, BodyTooLarge, BodyTooSlow, HostError, MethodNotAllowed, NotFound
from .registry import Function

HOP_BY_HOP = frozenset(
    b"connection keep-alive te trailer trailers transfer-encoding upgrade expect http2-settings"
    b" proxy-authenticate proxy-authorization proxy-connection".split()
)
SPECIAL = HOP_BY_HOP.union(
    b"authorization content-length cookie host x-call-id x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)
CALL_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
RESERVED = b"/__/"
BODY_PAUSE = 30.0  # seconds within which more of a body must come
BODY_RATE = 1024  # bytes a second at which it must come on the whole, once that time is over
LOOK_EVERY = 1.0  # seconds

_awaited: dict[asyncio.Task[Any], float] = {}  # who reads a body, and when it is too slow: infinity once it is told so

T = TypeVar("T")
Address = tuple[str, str, bytes]  # space, function, and the rest of the path as it came


class ClientLeft(Exception):
    """The client closed its connection: there is nobody to answer."""


def read_headers(scope: Scope, number: int) -> tuple[bytes, int | None, bytes, bytes | None]:
    """The function's headers as one NUL-joined string, the body's announced length, the call's id, Authorization.

    Hop-by-hop headers (RFC 9110 section 7.6.1) stay behind, and so does Authorization, which may be meant for the
    host and not for the function: see `with_authorization`. X-Call-Id and X-Forwarded-* are added.
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
    authorization: bytes | None = None
    if special:
        authorization = special.get(b"authorization")
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
    if blob.count(b"\0") != len(parts) - 1 or (authorization is not None and b"\0" in authorization):
        raise BadRequest("a header contains a NUL character")
    return blob, length, label, authorization


def with_authorization(headers: bytes, value: bytes) -> bytes:
    """The function's headers with an Authorization that is the function's to look at."""
    return b"%s\0authorization\0%s" % (headers, value)


def bearer(authorization: bytes | str | None) -> str | None:
    """The token of an Authorization header (RFC 6750 section 2.1); None where there is none."""
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization or ""
    scheme, _, token = text.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


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
    methods = function.settings.methods
    if methods is not None and method not in methods:
        allowed = ", ".join(sorted(methods))
        raise MethodNotAllowed(f"`{function.label}` takes {allowed}", headers={"Allow": allowed})
    check_path(function, path)


def check_path(function: Function, path: bytes) -> None:
    """Refuse what the function's `max_path_levels` does not allow, and malformed paths."""
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
    limit = function.settings.max_path_levels
    if limit is not None and sum(map(bool, path.split(b"/"))) > limit:
        raise NotFound(f"`{function.label}` takes at most {limit} path levels after its address")


async def read_body(receive: Receive, length: int | None, limit: int, setting: str) -> tuple[bytes, ...]:
    """The request body in the pieces it came in; `length` is what was announced, None for unknown."""
    if length == 0:
        return ()
    if length is not None and length > limit:
        raise BodyTooLarge(f"the body has {length} bytes; at most {limit} are allowed here (`{setting}`)")
    task = asyncio.current_task()
    assert task is not None
    began = monotonic()
    _awaited[task] = began + BODY_PAUSE
    try:
        return await _read_pieces(receive, length, limit, setting, task, began)
    except asyncio.CancelledError:
        if _awaited[task] != math.inf:
            raise
        task.uncancel()
        raise BodyTooSlow(f"the body paused for {BODY_PAUSE:g} s, or comes too slowly") from None
    finally:
        del _awaited[task]


async def _read_pieces(
    receive: Receive, length: int | None, limit: int, setting: str, task: asyncio.Task[Any], began: float
) -> tuple[bytes, ...]:
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
                raise BodyTooLarge(f"the body is larger than the {limit} bytes allowed here (`{setting}`)")
            pieces.append(piece)
        if size == length or not message.get("more_body", False):
            return tuple(pieces)
        now = monotonic()
        _awaited[task] = min(now, began + size / BODY_RATE) + BODY_PAUSE


async def hurry_bodies() -> None:
    """For ever: end the wait for bodies that are too slow. One look at all of them, as most are there at once."""
    while True:
        await anyio.sleep(min(LOOK_EVERY, BODY_PAUSE / 4))
        now = monotonic()
        for task, due in tuple(_awaited.items()):
            if due <= now:
                _awaited[task] = math.inf
                task.cancel()


async def while_client_stays(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """What the work gives; ClientLeft when the client goes away before."""
    done: list[T] = []
    failure: HostError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_leave_with_client, receive, tasks.cancel_scope)
        try:
            done.append(await work())
        except HostError as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not done:
        raise ClientLeft
    return done[0]


async def _leave_with_client(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
