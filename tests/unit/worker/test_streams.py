"""Streamed answers: heads, chunks, JSON lines, server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.answer import (
    NOTHING,
    NotEncodable,
    Stream,
    adopt_head,
    encode,
    first_item,
    first_item_async,
    stream_head,
)
from runtime.worker.multi import Headers, header_pairs

EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"
OCTETS = "application/octet-stream"

ODD_TEXT = st.text(st.sampled_from("ab: \n\r\u2028\x0b\x85é")) | st.text(st.characters(exclude_categories=["Cs"]))
ONE_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)


def stream(headers: Any = None, status: int = 200) -> Stream:
    made = encode({"status_code": status, "body": iter(()), "headers": headers}, False, 10)
    assert isinstance(made, Stream)
    return made


def sent(items: list[Any], accepts_events: bool = False, headers: Any = None) -> tuple[str, bytes]:
    _, raw, chunk = stream_head(stream(headers), items[0], accepts_events)
    return Headers(header_pairs(raw))["content-type"], b"".join(chunk(item) for item in items)


def parse_events(data: bytes) -> list[dict[str, Any]]:
    """The events that a browser would dispatch, after the algorithm of the WHATWG standard."""
    lines = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events, buffer, name, last_id = [], [], "", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if buffer:
                events.append({"data": "\n".join(buffer), "event": name or "message", "id": last_id})
            buffer, name = [], ""
        elif field == "data":
            buffer.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value
        else:
            assert not field or (field == "retry" and value.isdigit()), line
    return events


# -- the head -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "content_type"),
    [
        ("text", TEXT),
        (b"bytes", OCTETS),
        (bytearray(b"x"), OCTETS),
        ({"a": 1}, LINES),
        ([1], LINES),
        (3, LINES),
        (None, LINES),
        (NOTHING, TEXT),
        ({"data": 1}, EVENTS),
        ({"event": "x"}, EVENTS),
        ({"event": "x", "data": "y", "id": 1, "retry": 2, "comment": "c"}, EVENTS),
        ({"id": 1}, LINES),
        ({"comment": "x", "retry": 1}, LINES),
        ({"data": 1, "other": 2}, LINES),
        ({}, LINES),
    ],
)
def test_type_by_first_item(first: Any, content_type: str) -> None:
    """The first item decides what kind of stream it is, unless the client asked for events."""
    for accepts_events, expected in ((False, content_type), (True, EVENTS)):
        status, raw, _ = stream_head(stream(), first, accepts_events)
        headers = Headers(header_pairs(raw))
        assert (status, headers["content-type"]) == (200, expected)
        assert "content-length" not in headers
        assert headers.get("cache-control") == ("no-cache" if expected == EVENTS else None)
        assert headers.get("x-accel-buffering") == ("no" if expected == EVENTS else None)


def test_type_of_the_function_wins() -> None:
    """A content type given by the function decides before the item and the client."""
    assert sent(["a", {"data": 1}], True, {"Content-Type": "text/csv"}) == ("text/csv", b'a{"data":1}')
    assert sent(["a"], False, {"Content-Type": "Text/Event-Stream"}) == ("Text/Event-Stream", b"data: a\n\n")
    assert sent([1, 2], False, {"Content-Type": "application/jsonl"}) == ("application/jsonl", b"1\n2\n")


def test_headers_of_the_function() -> None:
    """Headers given for a stream are sent, and are not doubled by those that events need."""
    given_headers = [("Cache-Control", "no-store"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    status, raw, _ = stream_head(stream(given_headers, 201), "x", True)
    assert status == 201
    assert sorted(header_pairs(raw)) == [
        ("cache-control", "no-store"),
        ("content-type", EVENTS),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-accel-buffering", "no"),
    ]


@pytest.mark.parametrize("status", [204, 205, 304])
def test_status_without_content(status: int) -> None:
    """A stream cannot have a status that has no content."""
    with pytest.raises(NotEncodable, match=str(status)):
        stream_head(stream(status=status), "x", False)


def test_a_head_yielded_first() -> None:
    """A first item of status and headers is the head of the answer, not part of its body."""
    made = stream({"X-A": "1", "Content-Type": "a/b"})
    items = iter([{"status_code": "418", "headers": {"X-B": "2"}}, "body", "more"])
    assert first_item(made, items) == "body"
    status, raw, _ = stream_head(made, "body", False)
    assert (status, header_pairs(raw)) == (418, [("content-type", "a/b"), ("x-a", "1"), ("x-b", "2")])
    assert list(items) == ["more"]
    assert adopt_head(made, {"status_code": 200, "headers": {"content-type": "c/d"}, "body": None})
    assert stream_head(made, "x", False)[1].startswith(b"content-type\0c/d\0")


def test_a_head_yielded_first_that_is_too_long() -> None:
    """Its headers count together with those that were given before."""
    long = "y" * 40_000
    made = stream({"X-A": long})
    with pytest.raises(NotEncodable, match=r"65536; the longest is 'x-\w'"):
        adopt_head(made, {"status_code": 200, "headers": {"X-B": long}})
    assert adopt_head(stream({"Content-Type": long}), {"status_code": 200, "headers": {"Content-Type": long}})


@pytest.mark.parametrize(
    "item", ["x", None, {}, {"headers": {}}, {"status_code": 200, "body": "x"}, {"status_code": 200, "a": 1}, NOTHING]
)
def test_items_that_are_no_head(item: Any) -> None:
    """Other items are left to the body."""
    made = stream()
    assert not adopt_head(made, item)
    assert first_item(made, iter([item, "next"])) is item
    assert made.status == 200


def test_a_bad_head() -> None:
    """A head that no answer can have is an error like that of a whole answer."""
    with pytest.raises(NotEncodable, match="status_code"):
        adopt_head(stream(), {"status_code": 99})
    with pytest.raises(NotEncodable, match="X-A"):
        adopt_head(stream(), {"status_code": 200, "headers": {"X-A": "a\nb"}})


def test_empty_streams() -> None:
    """A stream without items, or with a head only, has no first item."""
    assert first_item(stream(), iter(())) is NOTHING
    assert first_item(stream(), iter([{"status_code": 201}])) is NOTHING
    assert repr(NOTHING) == "NOTHING"


@pytest.mark.anyio
async def test_async_first_item() -> None:
    """Async iterators are treated the same."""

    async def items(*values: Any) -> AsyncIterator[Any]:
        for value in values:
            yield value

    made = stream()
    assert await first_item_async(made, items({"status_code": 202}, "x")) == "x"
    assert made.status == 202
    assert await first_item_async(stream(), items("x", "y")) == "x"
    assert await first_item_async(stream(), items()) is NOTHING


# -- chunks ---------------------------------------------------------------------------------------------


def test_chunks() -> None:
    """Text and bytes are sent as they are, other values as JSON, a line each in a stream of lines."""
    assert sent(["é", b"\xff", {"a": 1}]) == (TEXT, "é".encode() + b'\xff{"a":1}')
    assert sent([b"a", "b", memoryview(b"c"), 1]) == (OCTETS, b"abc1")
    assert sent([{"a": 1}, [2], None, "x\n", b"y\n"]) == (LINES, b'{"a":1}\n[2]\nnull\nx\ny\n')


def test_chunks_that_cannot_be_encoded() -> None:
    """An item without a form is an error, in every kind of stream."""
    for first, accepts_events in (("x", False), (1, False), ("x", True)):
        _, _, chunk = stream_head(stream(), first, accepts_events)
        with pytest.raises(NotEncodable):
            chunk(object())
        with pytest.raises(NotEncodable):
            chunk("\ud800")


# -- events ---------------------------------------------------------------------------------------------


def unified(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@settings(deadline=None)
@given(st.lists(ODD_TEXT, min_size=1))
def test_text_events(items: list[str]) -> None:
    """Each text is one event with that text as data, line breaks and all."""
    kind, data = sent(items, True)
    assert kind == EVENTS
    assert [event["data"] for event in parse_events(data)] == [unified(item) for item in items]


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"event": ONE_LINE.filter(lambda name: name.strip() != "")},
            optional={"data": ODD_TEXT, "id": ONE_LINE | st.integers(), "retry": st.integers(0), "comment": ODD_TEXT},
        ),
        min_size=1,
    )
)
def test_dict_events(items: list[dict[str, Any]]) -> None:
    """Event dicts come back with their names, ids and data; comments and retry do no harm."""
    expected, last_id = [], ""
    for item in items:
        last_id = str(item.get("id", last_id))
        expected.append({"event": item["event"], "data": unified(item.get("data", "")), "id": last_id})
    assert parse_events(sent(items)[1]) == expected


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text("ab\n"), st.integers() | ODD_TEXT) | st.integers() | st.lists(ODD_TEXT), min_size=1
    )
)
def test_value_events(items: list[Any]) -> None:
    """Other values are one event each with JSON as data."""
    for wrapped in (items, [{"data": item} for item in items]):
        found = [json.loads(event["data"]) for event in parse_events(sent(wrapped, True)[1])]
        expected = [unified(item) if wrapped is not items and isinstance(item, str) else item for item in items]
        assert found == expected


def test_event_bytes() -> None:
    """The bytes of an event are the standard's; bytes that are yielded are sent untouched."""
    item = {"data": "a\r\nb\rc\n", "event": "e", "id": 7, "retry": 100, "comment": "x\ny"}
    expected = b": x\n: y\nevent: e\nid: 7\nretry: 100\ndata: a\ndata: b\ndata: c\ndata: \n\n"
    assert sent([item]) == (EVENTS, expected)
    assert sent([{"event": "done"}])[1] == b"event: done\ndata: \n\n"
    assert sent([{"data": None}])[1] == b"data: null\n\n"
    assert sent([{"data": {"a": "x\ny"}, "id": None}])[1] == b'data: {"a":"x\\ny"}\n\n'
    assert sent(["x", b": ping\n\n"], True)[1] == b"data: x\n\n: ping\n\n"
    assert sent([{"id": 5}], True)[1] == b'data: {"id":5}\n\n'


@pytest.mark.parametrize(
    "item",
    [
        {"event": "a\nb"},
        {"data": 1, "id": "a\rb"},
        {"data": 1, "id": "a\0"},
        {"event": ["x"]},
        {"data": 1, "id": 1.5},
        {"data": 1, "id": True},
        {"data": 1, "retry": "5"},
        {"data": 1, "retry": -1},
        {"data": 1, "retry": True},
        {"data": object()},
        {"data": "\ud800"},
        {"event": "\ud800"},
    ],
)
def test_bad_events(item: Any) -> None:
    """An event that would be read as something else is an error."""
    with pytest.raises(NotEncodable):
        sent([item])
