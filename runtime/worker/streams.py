"""Answers made as they are sent: what a generator yields, as chunks, JSON lines or server-sent events.

`answer.encode` makes a Stream of a generator; a worker's loop takes the first item, asks for the head, then
for a chunk an item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from . import jsons
from .faults import NotEncodable
from .head import NO_CONTENT, NONE_GIVEN, OCTETS, TEXT, Given, checked, headers_of, status_of
from .multi import first_header

EVENTS = b"text/event-stream"
LINES = b"application/x-ndjson"

_EVENT_FIELDS = frozenset({"event", "data", "id", "retry", "comment"})
_HEAD_FIELDS = frozenset({"status_code", "headers", "body"})
_LINE_TYPES = frozenset({LINES, b"application/ndjson", b"application/jsonl", b"application/jsonlines"})

Chunk = Callable[[Any], bytes]


class _Nothing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()


class Stream:
    """An iterator, sync or async, whose items are the body, with the status and headers given for it."""

    __slots__ = ("given", "is_async", "iterator", "status")

    def __init__(self, iterator: Any, status: int = 200, given: Given = NONE_GIVEN) -> None:
        self.iterator = iterator
        self.is_async = hasattr(type(iterator), "__anext__")
        self.status = status
        self.given = given


def iterator_of(value: Any) -> Any:
    """The iterator to stream from; None when the value is not made to be streamed."""
    cls = type(value)
    if hasattr(cls, "__next__") or hasattr(cls, "__anext__"):
        return value
    return aiter(value) if hasattr(cls, "__aiter__") else None


def first_item(stream: Stream, items: Iterator[Any]) -> Any:
    """The first item of the body, NOTHING when there is none; a head yielded before it goes to the stream."""
    item = next(items, NOTHING)
    return next(items, NOTHING) if adopt_head(stream, item) else item


async def first_item_async(stream: Stream, items: AsyncIterator[Any]) -> Any:
    """The same of an async iterator."""
    item = await anext(items, NOTHING)
    return await anext(items, NOTHING) if adopt_head(stream, item) else item


def adopt_head(stream: Stream, item: Any) -> bool:
    """Whether an item is a `{"status_code": ..., "headers": ...}` without body, which becomes the head."""
    if not isinstance(item, dict) or "status_code" not in item or not item.keys() <= _HEAD_FIELDS:
        return False
    if item.get("body") is not None:
        return False
    stream.status = status_of(item["status_code"])
    given = headers_of(item.get("headers"))
    content_type = stream.given.content_type if given.content_type is None else given.content_type
    others = [block for block in (stream.given.others, given.others) if block]
    stream.given = checked(Given(content_type, b"\0".join(others)))
    return True


def stream_head(stream: Stream, first: Any, accepts_events: bool) -> tuple[int, bytes, Chunk]:
    """The status, the headers, and what makes a chunk of each item, the first one (or NOTHING) included."""
    if stream.status in NO_CONTENT:
        raise NotEncodable(f"the function streams an answer with status {stream.status}, which has no body")
    content_type, others = stream.given
    if content_type is None:
        content_type = _fitting_type(first, accepts_events)
    fields = [b"content-type\0" + content_type]
    media = content_type.partition(b";")[0].strip().lower()
    if media == EVENTS:
        # Caches and proxies in between would hold events back.
        fields += [
            name + b"\0" + value
            for name, value in ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
            if not first_header(others, name)
        ]
    if others:
        fields.append(others)
    chunk = event if media == EVENTS else _line if media in _LINE_TYPES else _piece
    return stream.status, b"\0".join(fields), chunk


def _fitting_type(first: Any, accepts_events: bool) -> bytes:
    if accepts_events or is_event(first):
        return EVENTS + b"; charset=utf-8"
    if isinstance(first, str) or first is NOTHING:
        return TEXT
    return OCTETS if isinstance(first, (bytes, bytearray, memoryview)) else LINES


def _piece(item: Any) -> bytes:
    if isinstance(item, str):
        return encoded(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    return jsons.dumps(item)


def _line(item: Any) -> bytes:
    return _piece(item) if isinstance(item, (str, bytes, bytearray, memoryview)) else jsons.dumps(item) + b"\n"


def encoded(text: str) -> bytes:
    """Text in UTF-8."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotEncodable("the function returned text with a lone surrogate") from None


# -- server-sent events --------------------------------------------------------------------------------


def is_event(item: Any) -> bool:
    """Whether an item is a dict that says how its event looks, rather than being an event's data."""
    return isinstance(item, dict) and ("data" in item or "event" in item) and item.keys() <= _EVENT_FIELDS


def event(item: Any) -> bytes:
    """One event: text and values become its data, a dict of event fields those, bytes are sent as is."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if not is_event(item):
        return _lines(b"data: ", item) + b"\n"
    block = b""
    if item.get("comment") is not None:
        block += _lines(b": ", item["comment"])
    if item.get("event") is not None:
        block += b"event: " + _one_line("event", item["event"]) + b"\n"
    if item.get("id") is not None:
        block += b"id: " + _one_line("id", item["id"]) + b"\n"
    if item.get("retry") is not None:
        block += b"retry: " + _milliseconds(item["retry"]) + b"\n"
    # An event without data is never dispatched by a browser, so one that has only a name gets empty data.
    return block + _lines(b"data: ", item.get("data", "")) + b"\n"


def _lines(prefix: bytes, value: Any) -> bytes:
    if not isinstance(value, str):
        return prefix + jsons.dumps(value) + b"\n"
    lines = encoded(value).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(prefix + line + b"\n" for line in lines)


def _one_line(field: str, value: Any) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    if not isinstance(value, str):
        raise NotEncodable(f"the function yielded an event whose {field} is {jsons.describe(value)}")
    if "\n" in value or "\r" in value or "\0" in value:
        raise NotEncodable(f"the function yielded an event whose {field} contains a line break or NUL")
    return encoded(value)


def _milliseconds(value: Any) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NotEncodable("the function yielded an event whose retry is not a number of milliseconds")
    return b"%d" % value
