"""JSON that comes as a request, and the call that hands it to a function.

Used by the dialects whose bodies are JSON; what a body is in bytes, `request.py` says.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from .calls import Call
from .errors import BadRequest, FunctionRefused
from .registry import Function
from .request import read_body, read_headers
from .worker.faults import Refused
from .worker.inflate import codings, inflate
from .worker.multi import charset_of

T = TypeVar("T")


async def read_json(request: Request, kind: type[T], limit: int, setting: str = "max_body") -> T:
    """The body as this type: a msgspec Struct, dict, list, or Any. `limit` bytes hold packed and unpacked.

    CallerError or FunctionRefused says what is wrong with it: not JSON, not UTF-8, packed in an unknown way, too
    large, nested too deeply, or not of this type.
    """
    body = await read_whole(request, limit, setting)
    charset = charset_of(request.headers.get("content-type", "").encode("latin-1"))
    if charset.lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise BadRequest(f"the body must be JSON in UTF-8, and not in {charset[:40]}")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}" if body else "the body is empty") from None
    except RecursionError:
        raise BadRequest("the body is not valid JSON: it is nested too deeply") from None


async def read_whole(request: Request, limit: int, setting: str = "max_body") -> bytes:
    """The body, its Content-Encoding undone."""
    headers, length, _, _ = read_headers(request.scope, 0)
    body = b"".join(await read_body(request.receive, length, limit, setting))
    request.scope["body_read"] = True
    try:
        return inflate(body, codings(headers), limit)
    except Refused as refused:
        raise FunctionRefused(refused.status, refused.code, refused.message, refused.details) from None


def json_call(
    number: int,
    request: Request,
    function: Function,
    payload: bytes,
    *,
    query: bytes = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    timeout: float | None = None,
) -> Call:
    """A POST of this JSON to the function, whatever the request to the host was like.

    Of the request's own headers it has only who asked, from where: no credential can be among them.
    """
    client = request.client
    parts: list[bytes] = []
    if payload:
        parts += (b"content-type", b"application/json", b"content-length", b"%d" % len(payload))
    for pair in headers:
        parts += pair
    if host := request.headers.get("host"):
        parts += (b"x-forwarded-host", host.encode("latin-1"))
    parts += (b"x-forwarded-for", client.host.encode() if client else b"unknown")
    parts += (b"x-forwarded-proto", request.scope["scheme"].encode(), b"x-call-id", b"%d" % number)
    return Call(
        id=number,
        label=str(number),
        space=function.space,
        name=function.name,
        query=query,
        headers=b"\0".join(part.replace(b"\0", b"") for part in parts),
        body=(payload,) if payload else (),
        timeout=timeout,
    )
