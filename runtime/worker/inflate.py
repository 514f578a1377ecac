"""Undoes the Content-Encoding of a request body, never producing more than a given number of bytes.

Called by `context` when a body that came compressed is first looked at.
"""

from __future__ import annotations

import zlib

from .faults import Refused
from .multi import header_pairs

KNOWN = frozenset({"gzip", "x-gzip", "deflate"})
_MOST_LAYERS = 5
_RAW_DEFLATE = -zlib.MAX_WBITS
_GZIP = zlib.MAX_WBITS | 16


def codings(raw_headers: bytes) -> list[str]:
    """The codings of a body in the order in which they were applied, identity left out."""
    if b"content-encoding\0" not in raw_headers:
        return []
    return [
        coding
        for name, value in header_pairs(raw_headers)
        if name == "content-encoding"
        for part in value.split(",")
        if (coding := part.strip().lower()) not in ("", "identity")
    ]


def inflate(body: bytes, applied: list[str], limit: int) -> bytes:
    """The body with its codings undone; refused when unknown, damaged, or more than `limit` bytes."""
    unknown = [coding for coding in applied if coding not in KNOWN]
    if unknown or len(applied) > _MOST_LAYERS:
        message = f"content encoding {', '.join(applied)[:100]} is not supported"
        raise Refused(415, "unsupported_encoding", message, {"supported": ["gzip", "deflate"]})
    for coding in reversed(applied):
        try:
            body = _deflate(body, limit) if coding == "deflate" else _gzip(body, limit)
        except zlib.error as error:
            raise _damaged(coding, str(error)) from None
    return body


def _deflate(body: bytes, limit: int) -> bytes:
    # "deflate" means the zlib format, but some clients send the bare stream, which may even look like zlib.
    if len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0:
        try:
            return _whole(body, zlib.MAX_WBITS, limit)
        except zlib.error:
            pass
    return _whole(body, _RAW_DEFLATE, limit)


def _whole(body: bytes, wbits: int, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    out = stream.decompress(body, limit + 1)
    if len(out) > limit:
        raise _too_large(limit)
    if not stream.eof:
        raise zlib.error("the data end too early")
    if stream.unused_data:
        raise zlib.error("there are data after the end")
    return out


def _gzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file, one after the other."""
    parts: list[bytes] = []
    size = at = 0
    # The first member gets all there is; what follows is fed in growing pieces, because zlib copies
    # whatever it did not use, and thousands of tiny members would otherwise cost their number squared.
    piece = len(body)
    while not parts or body[at : at + 1] == b"\x1f":
        stream = zlib.decompressobj(_GZIP)
        while not stream.eof:
            if at >= len(body):
                raise zlib.error("the data end too early")
            fed = body[at : at + piece]
            out = stream.decompress(fed, limit + 1 - size)
            size += len(out)
            if size > limit:
                raise _too_large(limit)
            parts.append(out)
            at += len(fed) - len(stream.unused_data)
            piece = min(piece * 2, 1 << 20)
        piece = 256
    if body[at:].strip(b"\0"):
        raise zlib.error("there are data after the end")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> Refused:
    return Refused(413, "body_too_large", f"the body is larger than {limit} bytes", {"max_body": limit})


def _damaged(coding: str, reason: str) -> Refused:
    return Refused(400, "bad_encoding", f"the body is not valid {coding}: {reason}")
