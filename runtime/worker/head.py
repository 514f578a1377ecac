"""The head of an answer: the status and headers that a function may give, checked, in their wire form.

Used by `answer`, `streams` and `failures`; what leaves here is safe to put on an HTTP connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import jsons
from .faults import NotEncodable, TooLarge
from .multi import MultiDict

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"
OCTETS = b"application/octet-stream"

#: Bytes of all the headers that a function gives. Clients and proxies take less; a frame could not hold much more.
MOST_HEADERS = 64 * 1024

NO_CONTENT = frozenset({204, 205, 304})
# The length of a 304 would be that of the answer it stands for, which nobody knows here.
_NO_LENGTH = frozenset({204, 304})

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VISIBLE = bytes((9, *range(32, 127), *range(128, 256)))

# About the connection, which is not the function's, or said by the host in the function's place.
_DROPPED = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-call-id",
        b"x-duration-seconds",
        b"x-invoked",
    }
)


class Answer(NamedTuple):
    """A whole answer; the headers are `name NUL value NUL name NUL value`, names in lower case."""

    status: int
    headers: bytes
    body: bytes


class Given(NamedTuple):
    """Headers that a function gave: the content type, None if it gave none, and the others in wire form."""

    content_type: bytes | None = None
    others: bytes = b""


NONE_GIVEN = Given()


def whole(status: int, given: Given, content_type: bytes, body: bytes, max_response: int) -> Answer:
    """A buffered answer with its length; the content type is the function's own if it gave one."""
    if len(body) > max_response:
        raise TooLarge(len(body), max_response)
    if status in NO_CONTENT:
        content_type = body = b""
    if given.content_type is not None:
        content_type = given.content_type
    fields = [b"content-type\0" + content_type] if content_type else []
    if status not in _NO_LENGTH:
        fields.append(b"content-length\0%d" % len(body))
    if given.others:
        fields.append(given.others)
    return Answer(status, b"\0".join(fields), body)


def is_status(value: Any) -> bool:
    """Whether a value is an integer that can be the status of a final answer."""
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


def status_of(given: Any) -> int:
    """The status that a function gave, as a number or as its digits."""
    if is_status(given):
        return int(given)
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) == 3 and is_status(int(given)):
        return int(given)
    shown = f"{given!r:.40}" if isinstance(given, (int, str)) else jsons.describe(given)
    raise NotEncodable(f"the function returned {shown} as status_code; it takes a number from 200 to 599")


def headers_of(given: Any) -> Given:
    """The headers that a function gave as a dict or as pairs, without those that are the host's to say."""
    content_type = None
    found: list[tuple[bytes, bytes]] = []
    dropped = _DROPPED
    for name, value in _pairs(given):
        key = _name(name)
        raw = _value(name, value)
        if key == b"content-type":
            content_type = raw
        elif key == b"connection":
            dropped = dropped.union(part.strip().lower() for part in raw.split(b","))
        else:
            found.append((key, raw))
    return checked(Given(content_type, b"\0".join(b"%b\0%b" % pair for pair in found if pair[0] not in dropped)))


def checked(given: Given) -> Given:
    """The headers, if they are not too long."""
    size = len(given.others) + len(given.content_type or b"")
    if size <= MOST_HEADERS:
        return given
    fields = [b"content-type", given.content_type or b"", *given.others.split(b"\0")]
    longest = max(zip(fields[1::2], fields[::2], strict=False), key=lambda field: len(field[0]))[1].decode("ascii")
    said = f"the headers that the function returned have {size} bytes, and may have {MOST_HEADERS}"
    raise NotEncodable(f"{said}; the longest is {longest!r:.80}")


def _pairs(given: Any) -> Iterable[tuple[Any, Any]]:
    if given is None:
        return ()
    if isinstance(given, MultiDict):
        return given.multi_items()
    if isinstance(given, Mapping):
        return _flat(given)
    if isinstance(given, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in given):
        return given
    raise NotEncodable(f"the function returned {jsons.describe(given)} as headers; it takes a dict or pairs")


def _flat(given: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            for one in value:
                yield name, one
        else:
            yield name, value


def _name(name: Any) -> bytes:
    if not isinstance(name, str):
        raise NotEncodable(f"the function returned a header whose name is {jsons.describe(name)}")
    raw = name.encode("utf-8", "replace")
    if not raw or raw.translate(None, _TOKEN):
        raise NotEncodable(f"the function returned a header named {name!r:.80}, which is not a valid name")
    return raw.lower()


def _value(name: str, value: Any) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    if not isinstance(value, str):
        raise NotEncodable(f"the function returned {jsons.describe(value)} as the value of header {name!r:.80}")
    try:
        raw = value.encode("latin-1").strip(b" \t")
    except UnicodeEncodeError:
        raise NotEncodable(f"the value of header {name!r:.80} has characters outside of latin-1") from None
    if raw.translate(None, _VISIBLE):
        raise NotEncodable(f"the value of header {name!r:.80} has a line break or other control character")
    return raw
