"""What is taken for a plain request is one: our parser reads the same in it, and would take more than that."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.express.hypercorn import PlainRequest, plain_request
from runtime.protocols import Parser

PLAIN = b"POST /a?b=c HTTP/1.1\r\nHost: here\r\nX-Own:  a b \r\nContent-Length: 2\r\n\r\nhi"


def by_h11(data: bytes) -> PlainRequest | None:
    """The request that h11 finds, if there is one, whole, and nothing behind it."""
    parser = Parser(h11.SERVER)
    parser.receive_data(data)
    try:
        request = parser.next_event()
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += bytes(event.data)
    except (h11.RemoteProtocolError, AssertionError):
        return None
    if not isinstance(request, h11.Request) or parser.trailing_data[0]:
        return None
    return PlainRequest(request.method.decode(), bytes(request.target), list(request.headers), body)


names = st.sampled_from(
    ["Host", "host", "Content-Length", "content-length", "X-A", "Cookie", "x_b", "Transfer-Encoding"]
)
names |= st.text("aZ09-_ :\t\r\n", max_size=4)
values = st.sampled_from(["here", "2", "0", "02", "+2", " 2 ", "2, 2", "chunked", "\xe9", "a b"])
values |= st.text("aZ0 \t\r\n\0\x7f\x80", max_size=4)
lines = st.builds(
    lambda name, space, value: f"{name}{space}{value}\r\n", names, st.sampled_from([":", ": ", " :", ""]), values
)
heads = st.builds(
    lambda method, target, version, fields: f"{method} {target} HTTP/{version}\r\n{''.join(fields)}\r\n".encode(
        "latin-1"
    ),
    st.sampled_from(["GET", "POST", "get", "HEAD", "PATCH", "BREW"]),
    st.sampled_from(["/", "/a", "/a?b#c", "*", "/a b", "/\xe9", "http://here/", "//"]),
    st.sampled_from(["1.1", "1.0", "2.0"]),
    st.lists(lines, max_size=4),
)


@given(heads, st.sampled_from([b"", b"hi", b"h", b"hi!", b"GET / HTTP/1.1\r\n\r\n"]))
@example(PLAIN[:-2], b"hi")
@example(b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n", b"hi")
@example(b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", b"")
def test_nothing_is_read_otherwise_than_by_h11(head: bytes, body: bytes) -> None:
    found = plain_request(head + body)

    assert found is None or found == by_h11(head + body)


def test_a_plain_request() -> None:
    headers = [(b"host", b"here"), (b"x-own", b"a b"), (b"content-length", b"2")]

    assert plain_request(PLAIN) == ("POST", b"/a?b=c", headers, b"hi")


@pytest.mark.parametrize("at", range(len(PLAIN)))
def test_a_part_is_none(at: int) -> None:
    assert plain_request(PLAIN[:at]) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c", b"Host: two",
        b"Content-Length: 2", b"X-A : b", b" folded", b"no colon", b"X-A: \0",
    ],
)  # fmt: skip
def test_what_is_left_to_h11(line: bytes) -> None:
    assert plain_request(PLAIN.replace(b"Host", line + b"\r\nHost", 1)) is None


def test_keep_alive_is_what_it_is_anyway() -> None:
    assert plain_request(PLAIN.replace(b"Host", b"Connection: Keep-Alive\r\nHost", 1)) is not None
