"""One call as its handler sees it: `function_call_info`, and the request object `req`, are the same object.

Built by the worker's loop from the raw slices of a frame. Nothing is decoded before it is looked at: most
handlers look at one or two of these fields, and a call has microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from . import jsons, output
from .faults import Refused as Refused
from .inflate import KNOWN, codings, inflate
from .multi import Headers, Query, charset_of, first_header, header_pairs, query_pairs

PROGRESS_MESSAGE = 1000  # characters

_HEX = frozenset(b"0123456789abcdefABCDEF")


class CallInfo(Mapping[str, Any]):
    """A call, its fields as attributes and as mapping keys; one that cannot be decoded raises `Refused`."""

    __slots__ = (
        "attempt",
        "body",
        "call_id",
        "deadline",
        "function_id",
        "headers",
        "max_body",
        "method",
        "name",
        "path",
        "query",
        "raw_path",
        "schedule_id",
        "scheduled_time",
        "space",
        "stream",
        "text",
        "wire_body",
        "wire_headers",
        "wire_path",
        "wire_query",
    )

    call_id: int
    function_id: int
    space: str
    name: str
    method: str
    deadline: float
    attempt: int
    # What is below came raw and is decoded by `__getattr__`, which runs only while the slot is empty.
    path: str
    raw_path: str
    query: Query
    headers: Headers
    body: bytes
    text: str
    schedule_id: int | None
    scheduled_time: float | None

    def __init__(
        self,
        call_id: int,
        function_id: int,
        space: str,
        name: str,
        method: str,
        raw_path: bytes,
        raw_query: bytes,
        raw_headers: bytes,
        raw_body: bytes,
        deadline: float,
        attempt: int,
        max_body: int,
        schedule_id: int | None = None,
        scheduled_time: float | None = None,
        stream: int = 0,
    ) -> None:
        self.call_id = call_id
        self.function_id = function_id
        self.space = space
        self.name = name
        self.method = method
        self.wire_path = raw_path
        self.wire_query = raw_query
        self.wire_headers = raw_headers
        self.wire_body = raw_body
        self.deadline = deadline
        self.attempt = attempt
        self.max_body = max_body
        self.schedule_id = schedule_id
        self.scheduled_time = scheduled_time
        self.stream = stream

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            decode = _DECODED.get(name)
            if decode is None:
                raise AttributeError(f"a call has no {name!r}; it has {', '.join(_KEYS)}, text and json()")
            value = decode(self)
            setattr(self, name, value)
            return value

    def json(self) -> Any:
        """The body decoded as JSON, whatever its content type says."""
        return jsons.loads(self.body)

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the call is, from 0 to 1: whoever looks it up or follows it is shown that. Costs next to nothing.

        Of what is said more often than twenty times a second, some is left out.
        """
        fraction = float(fraction)
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a number from 0 to 1, not {fraction:g}")
        output.report(self.stream, fraction, str(message)[:PROGRESS_MESSAGE])

    def __getitem__(self, key: str) -> Any:
        if key in _KEYS:
            return getattr(self, key)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    # Two calls are the same only if they are one: comparing by content would decode everything.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        path = self.wire_path[:80].decode("latin-1") or "/"
        return (
            f"<call {self.call_id}: {self.method} {path!r} of {self.space}/{self.name},"
            f" attempt {self.attempt}, {len(self.wire_body)} bytes>"
        )


_KEYS = dict.fromkeys(
    (
        "call_id",
        "function_id",
        "space",
        "name",
        "method",
        "path",
        "raw_path",
        "query",
        "headers",
        "body",
        "deadline",
        "attempt",
        "schedule_id",
        "scheduled_time",
    )
)


def _path(info: CallInfo) -> str:
    raw = info.wire_path
    if not raw:
        return "/"
    if b"%" in raw:
        for escape in raw.split(b"%")[1:]:
            if len(escape) < 2 or not _HEX.issuperset(escape[:2]):
                raise Refused(400, "bad_path", "the path has a broken percent escape")
        raw = unquote_to_bytes(raw)
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "bad_path", "the path is not UTF-8") from None
    if "\0" in path:
        raise Refused(400, "bad_path", "the path contains NUL")
    return path


def _raw_path(info: CallInfo) -> str:
    return info.wire_path.decode("latin-1") or "/"


def _query(info: CallInfo) -> Query:
    return Query(query_pairs(info.wire_query))


def _headers(info: CallInfo) -> Headers:
    pairs = header_pairs(info.wire_headers)
    applied = codings(info.wire_headers)
    if applied and info.wire_body and KNOWN.issuperset(applied):
        # They describe the compressed form, which the handler never sees.
        pairs = [pair for pair in pairs if pair[0] not in ("content-encoding", "content-length")]
    elif info.wire_body and b"content-length\0" not in info.wire_headers:  # it came in chunks
        pairs.append(("content-length", str(len(info.wire_body))))
    return Headers(pairs)


def _body(info: CallInfo) -> bytes:
    body = info.wire_body
    if not body or b"content-encoding\0" not in info.wire_headers:
        return body
    applied = codings(info.wire_headers)
    return inflate(body, applied, info.max_body) if applied else body


def _text(info: CallInfo) -> str:
    charset = charset_of(first_header(info.wire_headers, b"content-type"))
    try:
        return info.body.decode(charset)
    except LookupError:
        raise Refused(400, "bad_charset", f"charset {charset[:40]!r} is not known") from None
    except ValueError as error:
        raise Refused(400, "bad_charset", f"the body is not valid {charset[:40]}: {error}"[:300]) from None


_DECODED: dict[str, Callable[[CallInfo], Any]] = {
    "path": _path,
    "raw_path": _raw_path,
    "query": _query,
    "headers": _headers,
    "body": _body,
    "text": _text,
}
