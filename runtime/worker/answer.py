"""What a handler returned, as an HTTP answer: a whole one, or a stream to be drawn from.

Called by the worker's loops once a call. Two conventions differ in what a str and a dict mean: that of
`handle(data, ...)`, and that of `handle(req)`, which is Altair's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import jsons
from .failures import failure, refusal, to_json, traceback_text
from .faults import NotEncodable, TooLarge
from .head import HTML, JSON, NONE_GIVEN, OCTETS, TEXT, Answer, headers_of, is_status, status_of, whole
from .streams import (
    NOTHING,
    Stream,
    adopt_head,
    encoded,
    first_item,
    first_item_async,
    iterator_of,
    stream_head,
)

__all__ = [
    "NOTHING",
    "Answer",
    "NotEncodable",
    "Stream",
    "TooLarge",
    "adopt_head",
    "encode",
    "failure",
    "first_item",
    "first_item_async",
    "refusal",
    "stream_head",
    "to_json",
    "traceback_text",
]

_RESPONSE_KEYS = frozenset({"status_code", "body", "headers"})


def encode(value: Any, request_convention: bool, max_response: int) -> Answer | Stream:
    """The answer for what a handler returned; `NotEncodable` or `TooLarge` when there is none."""
    if type(value) is dict and not request_convention and "status_code" not in value:
        body = jsons.dumps(value)
        if len(body) > max_response:
            raise TooLarge(len(body), max_response)
        return Answer(200, b"content-type\0application/json\0content-length\0%d" % len(body), body)
    if type(value) is Answer:  # of another platform's convention, in `conventions/`
        return value
    status, given = 200, NONE_GIVEN
    response = _response(value, request_convention)
    if response is not None:
        status, given, value = status_of(response[0]), headers_of(response[2]), response[1]
        if value is None:
            return whole(status, given, HTML if request_convention else b"", b"", max_response)
    if isinstance(value, str):
        return whole(status, given, HTML if request_convention else TEXT, encoded(value), max_response)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return whole(status, given, OCTETS, bytes(value), max_response)
    iterator = iterator_of(value)
    if iterator is not None:
        return Stream(iterator, status, given)
    return whole(status, given, JSON, jsons.dumps(value), max_response)


def _response(value: Any, request_convention: bool) -> tuple[Any, Any, Any] | None:
    """Status, body and headers, if the value is a response rather than a response's body."""
    if isinstance(value, dict):
        if value.keys() <= _RESPONSE_KEYS and (request_convention or "status_code" in value):
            return value.get("status_code", 200), value.get("body"), value.get("headers")
        return None
    if type(value) is tuple and len(value) in (2, 3) and is_status(value[1]):
        if len(value) == 2:
            return value[1], value[0], None
        if value[2] is None or isinstance(value[2], (Mapping, list, tuple)):
            return value[1], value[0], value[2]
    return (200, None, None) if value is None and request_convention else None
