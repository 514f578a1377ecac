"""The requests that are found on a connection of HTTP/1.1: those that a proxy before us finds, and no others."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.protocols import Parser

POST = b"POST /a HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
LAST = POST.replace(b"Host", b"Connection: close\r\nHost")
OLD = POST.replace(b"HTTP/1.1", b"HTTP/1.0")
OK = h11.Response(status_code=200, headers=[(b"content-length", b"0")])


def answer_all(parser: Parser, requests: list[tuple[bytes, bytes]]) -> object:
    """Answer what has come, and add its targets and bodies to these; what the parser then waits for."""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            requests.append((event.target, b""))
        elif isinstance(event, h11.Data):
            target, body = requests.pop()
            requests.append((target, body + event.data))
        elif isinstance(event, h11.EndOfMessage):
            parser.send(OK)
            parser.send(event)
            parser.start_next_cycle()
        else:
            return event


def parser_of(*pieces: bytes) -> Parser:
    """One that these have come to."""
    parser = Parser(h11.SERVER)
    for piece in pieces:
        parser.receive_data(piece)
    return parser


@given(st.lists(st.sampled_from([POST, CHUNKED, b"\r\n", b"\n"]), max_size=6), st.integers(1, 300))
@example([b"\r\n", POST, b"\r\n", b"\r\n", CHUNKED, b"\r\n"], 1)
@example([b"\r\n"], 1)
@example([b"\r\n", CHUNKED], 300)
def test_empty_lines_are_passed_over(pieces: list[bytes], size: int) -> None:
    """Before a request, between two, and behind one; however they are cut."""
    text = b"".join(pieces)
    parser = parser_of()
    requests: list[tuple[bytes, bytes]] = []
    waits = []
    for at in range(0, len(text), size):
        parser.receive_data(text[at : at + size])
        waits.append(answer_all(parser, requests))

    assert requests == [(piece.split()[1], b"hi") for piece in pieces if len(piece) > 2]
    assert set(waits) <= {h11.NEED_DATA}
    assert parser.trailing_data == (b"", False)


def test_empty_lines_behind_a_request_that_is_not_answered_yet() -> None:
    """They are no reason to stop reading: its client may leave."""
    parser = parser_of(POST)
    events = [parser.next_event() for _ in range(4)]
    parser.receive_data(b"\r\n")
    events.append(parser.next_event())
    parser.receive_data(b"")

    assert [type(event) for event in events[:3]] == [h11.Request, h11.Data, h11.EndOfMessage]
    assert events[3:] == [h11.NEED_DATA] * 2
    assert isinstance(parser.next_event(), h11.ConnectionClosed)


def test_a_wish_for_another_protocol() -> None:
    """It is no reason to stop reading either; what has come behind it waits, as behind any other request."""
    parser = parser_of(POST.replace(b"Host", b"Upgrade: h3\r\nHost"))
    events = [parser.next_event() for _ in range(4)]
    parser.receive_data(POST)

    assert events[3] is h11.NEED_DATA
    assert parser.next_event() is h11.PAUSED
    parser.send(OK)
    parser.send(events[2])  # type: ignore[arg-type]  # the end, as ours
    parser.start_next_cycle()
    assert isinstance(parser.next_event(), h11.Request)


def test_a_request_behind_one_that_is_not_answered_yet() -> None:
    """It waits."""
    parser = parser_of(POST + b"\r\n" + POST)
    events = [parser.next_event() for _ in range(4)]

    assert events[3] is h11.PAUSED
    assert parser.trailing_data == (POST, False)


@pytest.mark.parametrize("request_", [LAST, OLD])
@pytest.mark.parametrize("rest", [b"\r\n", POST, b"no request", b"\0" * 1000])
def test_what_follows_the_last_request_is_for_nobody(request_: bytes, rest: bytes) -> None:
    """It is neither a request nor a mistake, and not kept."""
    parser = parser_of(request_ + rest)
    before = [type(event) for event in (parser.next_event() for _ in range(3))]
    waits = [parser.next_event()]
    parser.receive_data(rest)
    kept = parser.trailing_data[0]
    waits.append(parser.next_event())
    parser.send(OK)
    parser.send(h11.EndOfMessage())
    waits.append(parser.next_event())
    parser.receive_data(b"")

    assert before == [h11.Request, h11.Data, h11.EndOfMessage]
    assert waits == [h11.NEED_DATA] * 3
    assert kept == b""
    assert isinstance(parser.next_event(), h11.ConnectionClosed)


@pytest.mark.parametrize(
    "lines", [b"Content-Length: 4\r\nTransfer-Encoding: chunked", b"TRANSFER-ENCODING: chunked\r\ncontent-length: 4"]
)
def test_a_body_with_two_lengths(lines: bytes) -> None:
    """Refused before a byte of it is read, and nothing after it is."""
    parser = parser_of(b"POST /a HTTP/1.1\r\nHost: here\r\n" + lines + b"\r\n\r\n0\r\n\r\n" + POST)
    with pytest.raises(h11.RemoteProtocolError) as refused:
        parser.next_event()
    parser.send(h11.Response(status_code=refused.value.error_status_hint, headers=[(b"content-length", b"0")]))
    parser.send(h11.EndOfMessage())

    assert refused.value.error_status_hint == 400
    assert parser.our_state is h11.MUST_CLOSE
    with pytest.raises(h11.RemoteProtocolError):
        parser.next_event()


@pytest.mark.parametrize("text", [b" " + POST, b"\r\n\0", b"GET / HTTP/1.1\r\n bad\r\n\r\n", b"\x16\x03"])
def test_what_is_no_request(text: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        parser_of(text).next_event()
