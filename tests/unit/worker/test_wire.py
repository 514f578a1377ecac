"""The codec of the wire: what goes in comes out, whatever the pieces; what breaks the rules is a ProtocolError."""

from __future__ import annotations

import struct
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.exchange import GRANT
from runtime.worker import wire
from runtime.worker.wire import ProtocolError, Reader

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "wire.md"

KINDS = st.sampled_from(sorted(wire.KINDS))
U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
METHODS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)
FRAMES = st.lists(st.tuples(KINDS, U8, U32, st.binary(max_size=40)), max_size=8)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def read(pieces: list[bytes]) -> list[tuple[int, int, int, bytes]]:
    reader = Reader()
    return [frame for piece in pieces for frame in reader.feed(piece)]


def payload_of(frame: bytes) -> bytes:
    """The payload of the one frame that this is."""
    ((_, _, _, payload),) = Reader().feed(frame)
    return payload


def u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def call(**changes: Any) -> bytes:
    """A CALL frame, as usual but for these fields."""
    fields: dict[str, Any] = {
        "stream": 1,
        "call_id": 7,
        "deadline": 1.5,
        "attempt": 1,
        "method": b"POST",
        "path": b"/a",
        "query": b"q=1",
        "headers": b"host\0here",
        "body_length": 4,
        "body": b"body",
    }
    return wire.call_frame(**{**fields, **changes})


@given(FRAMES, st.lists(st.integers(0, 2000)))
def test_frames_come_out_as_they_went_in(frames: list[Any], cuts: list[int]) -> None:
    """Whatever the pieces in which their bytes arrive."""
    data = b"".join(wire.frame(kind, stream, payload, flags) for kind, flags, stream, payload in frames)

    assert read(cut(data, cuts)) == frames


@given(FRAMES.filter(bool))
def test_a_frame_is_given_as_soon_as_it_is_whole(frames: list[Any]) -> None:
    """Its last byte brings it out, and no byte before."""
    reader = Reader()
    for kind, flags, stream, payload in frames:
        data = wire.frame(kind, stream, payload, flags)

        assert reader.feed(data[:-1]) == []
        assert reader.feed(data[-1:]) == [(kind, flags, stream, payload)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 2000), max_size=5))
def test_random_bytes_are_frames_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    """Nothing that arrives raises anything else."""
    try:
        frames = read(cut(data, cuts))
    except ProtocolError:
        return

    whole = b"".join(wire.frame(kind, stream, payload, flags) for kind, flags, stream, payload in frames)
    assert data.startswith(whole)


@given(FRAMES, st.binary(min_size=wire.PREFIX_SIZE, max_size=60))
def test_what_follows_good_frames_is_looked_at_as_closely(frames: list[Any], tail: bytes) -> None:
    """A bad prefix is found at any place, also one that came in pieces."""
    length, kind, _, zero, _ = wire.PREFIX.unpack_from(tail)
    bad = kind not in wire.KINDS or zero or length > wire.MAX_PAYLOAD
    data = b"".join(wire.frame(kind, stream, payload, flags) for kind, flags, stream, payload in frames) + tail
    pieces = [data[at : at + 1] for at in range(len(data))]

    if bad:
        with pytest.raises(ProtocolError):
            read(pieces)
    else:
        assert read(pieces)[: len(frames)] == frames


@pytest.mark.parametrize("kind", [0, 14, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    """Kinds are 1 to 13."""
    with pytest.raises(ProtocolError, match=f"kind {kind}"):
        Reader().feed(wire.PREFIX.pack(0, kind, 0, 0, 1))


def test_the_reserved_bytes_of_a_prefix_are_zero() -> None:
    """So that they can mean something in a later version."""
    with pytest.raises(ProtocolError):
        Reader().feed(wire.PREFIX.pack(0, wire.LOG, 0, 1, 1))


def test_the_longest_payload_passes_and_a_longer_one_is_refused_by_its_prefix() -> None:
    """A length beyond MAX_PAYLOAD is never waited for."""
    longest = bytes(wire.MAX_PAYLOAD)

    assert Reader().feed(wire.frame(wire.CHUNK, 1, longest)) == [(wire.CHUNK, 0, 1, longest)]
    with pytest.raises(ProtocolError, match=str(wire.MAX_PAYLOAD + 1)):
        Reader().feed(wire.PREFIX.pack(wire.MAX_PAYLOAD + 1, wire.CHUNK, 0, 0, 1))


@given(
    stream=U32,
    call_id=U64,
    deadline=st.floats(allow_nan=False),
    attempt=U16,
    method=METHODS,
    path=st.binary(max_size=50),
    query=st.binary(max_size=50),
    headers=st.binary(max_size=50),
    body=st.binary(max_size=50),
)
def test_a_call_comes_out_as_it_went_in(stream: int, method: bytes, body: bytes, **fields: Any) -> None:
    """Every field of it, and the stream in the prefix."""
    data = wire.call_frame(stream, method=method, body=body, body_length=len(body), **fields)
    ((kind, flags, found, payload),) = Reader().feed(data)

    assert (kind, flags, found) == (wire.CALL, 0, stream)
    assert wire.parse_call(payload)._asdict() == {
        **fields,
        "method": method.decode(),
        "body": body,
        "body_length": len(body),
        "schedule_id": 0,
        "scheduled_time": 0.0,
    }


def test_a_call_whose_body_follows_carries_its_length_alone() -> None:
    """The body comes in BODY frames."""
    parsed = wire.parse_call(payload_of(call(body_length=10**12, body=b"")))

    assert (parsed.body_length, parsed.body) == (10**12, b"")


@pytest.mark.parametrize("body", [b"bod", b"bodyy", b"b"])
def test_a_call_with_part_of_its_body_is_refused(body: bytes) -> None:
    """A body is inside its CALL as a whole or not at all."""
    with pytest.raises(ProtocolError):
        wire.parse_call(payload_of(call(body=body)))


@pytest.mark.parametrize("field", range(4))
def test_a_call_whose_lengths_do_not_add_up_is_refused(field: int) -> None:
    """Each of the lengths of method, path, query and headers is checked against what is there."""
    payload = bytearray(payload_of(call(body=b"", body_length=0)))
    at = struct.calcsize("<QdHQd") + (0, 1, 5, 9)[field]
    payload[at] += 1

    with pytest.raises(ProtocolError):
        wire.parse_call(bytes(payload))


def test_the_longest_call_passes_and_a_longer_one_is_not_made() -> None:
    """MAX_CALL bounds the payload: it has to fit into one packet."""
    room = wire.MAX_CALL - len(payload_of(call(body=b"", body_length=0)))

    assert len(payload_of(call(body=bytes(room), body_length=room))) == wire.MAX_CALL
    with pytest.raises(ProtocolError, match=str(wire.MAX_CALL)):
        call(body=bytes(room + 1), body_length=room + 1)


@given(st.binary(max_size=120))
@example(b"")
@example(bytes(wire.CALL_HEAD.size - 1))
@example(bytes(wire.CALL_HEAD.size))
def test_a_random_call_is_parsed_or_a_protocol_error(payload: bytes) -> None:
    """And what is parsed is all that was there."""
    try:
        parsed = wire.parse_call(payload)
    except ProtocolError:
        return

    fields = (parsed.method.encode("ascii", "replace"), parsed.path, parsed.query, parsed.headers, parsed.body)
    assert sum(map(len, fields)) == len(payload) - wire.CALL_HEAD.size
    assert parsed.body in (b"", payload[len(payload) - parsed.body_length :])


@given(U32, st.integers(200, 599), st.integers(0, 2**40), st.binary(max_size=50), st.binary(max_size=50), U8)
def test_a_result_comes_out_as_it_went_in(
    stream: int, status: int, micros: int, headers: bytes, body: bytes, flags: int
) -> None:
    """Microseconds stop at what four bytes can say."""
    ((kind, found_flags, found, payload),) = Reader().feed(
        wire.result_frame(stream, status, micros, headers, body, flags)
    )

    assert (kind, found_flags, found) == (wire.RESULT, flags, stream)
    assert wire.parse_result(payload) == (status, min(micros, 2**32 - 1), headers, body)


@pytest.mark.parametrize("status", [0, 100, 199, 600, 65535])
def test_a_result_needs_a_final_status(status: int) -> None:
    """200 to 599 are what a client can be told."""
    with pytest.raises(ProtocolError):
        wire.parse_result(wire.RESULT_HEAD.pack(status, 0, 0))


def test_a_result_shorter_than_its_headers_is_refused() -> None:
    """Its one length is checked against what is there."""
    assert wire.parse_result(wire.RESULT_HEAD.pack(200, 0, 3) + b"abc") == (200, 0, b"abc", b"")
    with pytest.raises(ProtocolError):
        wire.parse_result(wire.RESULT_HEAD.pack(200, 0, 4) + b"abc")


@given(st.binary(max_size=60))
@example(b"")
@example(wire.RESULT_HEAD.pack(200, 0, 0)[:-1])
def test_a_random_result_is_parsed_or_a_protocol_error(payload: bytes) -> None:
    """And what is parsed is all that was there."""
    try:
        status, _, headers, body = wire.parse_result(payload)
    except ProtocolError:
        return

    assert 200 <= status <= 599
    assert payload.endswith(headers + body)
    assert len(headers) + len(body) == len(payload) - wire.RESULT_HEAD.size


@given(U32)
def test_a_credit_comes_out_as_it_went_in(amount: int) -> None:
    """Four bytes."""
    assert wire.parse_u32(wire.U32.pack(amount)) == amount


@given(st.binary(max_size=8).filter(lambda payload: len(payload) != 4))
def test_a_credit_of_another_length_is_refused(payload: bytes) -> None:
    """Neither shorter nor longer."""
    with pytest.raises(ProtocolError):
        wire.parse_u32(payload)


def test_a_call_with_everything_in_it_has_room_in_its_packet() -> None:
    """The longest inline body and 80 KiB of path, query and headers stay below MAX_CALL, and so below a packet."""
    assert wire.PREFIX_SIZE + wire.CALL_HEAD.size + wire.INLINE + 80 * 1024 < wire.MAX_CALL
    assert wire.PIECE <= wire.WINDOW < wire.MAX_PAYLOAD


def test_the_bytes_of_every_frame() -> None:
    """Written out by hand: another implementation would have to make the same."""
    assert wire.frame(wire.CHUNK, 0x01020304, b"abc", flags=9) == b"\3\0\0\0\5\x09\0\0\4\3\2\1abc"
    assert call(stream=2) == (
        u32(55 + 4 + 2 + 3 + 9 + 4) + b"\2\0\0\0" + u32(2)
        + u64(7) + struct.pack("<d", 1.5) + u16(1) + u64(0) + bytes(8)
        + b"\4" + u32(2) + u32(3) + u32(9) + u64(4)
        + b"POST" + b"/a" + b"q=1" + b"host\0here" + b"body"
    )  # fmt: skip
    assert wire.result_frame(3, 201, 5, b"a\0b", b"hi", wire.LAST | wire.FAILED) == (
        u32(10 + 3 + 2) + b"\4\3\0\0" + u32(3) + u16(201) + u32(5) + u32(3) + b"a\0b" + b"hi"
    )
    assert wire.READY_HEAD.pack(wire.VERSION, 77) == u16(2) + u32(77)


# What docs/reference/wire.md says.


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    _, _, below = PAGE.read_text().partition(f"# {title}\n")
    assert below, f"no section {title}"
    return below.partition("\n#")[0]


def rows(text: str, columns: str) -> list[list[str]]:
    """The cells of the table with this head."""
    lines = iter(text.splitlines())
    assert any(line.replace(" ", "") == columns.replace(" ", "") for line in lines), f"no table {columns}"
    next(lines)
    table = takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]


def said_of(title: str, data: bytes) -> dict[str, int | bytes]:
    """What a reader of the page would find in `data`: fields with a size as numbers, the rest as bytes."""
    found: dict[str, int | bytes] = {}
    end = 0
    for offset, size, field in rows(section(title), "| offset | size | field |"):
        if size:
            assert int(offset) == end, f"{field}: there is a gap before it"
            end += int(size)
            found[field] = int.from_bytes(data[int(offset) : end], "little")
        elif offset:
            assert int(offset) == end
            found["the rest"] = data[end:]
    return found


def test_the_page_describes_the_prefix() -> None:
    """Sizes and order of its fields, and the longest payload."""
    fields = said_of("Frames", wire.frame(wire.CHUNK, 0x01020304, b"abc", flags=9)[: wire.PREFIX_SIZE])
    length, kind, flags, zero, stream = fields

    assert list(fields.values()) == [3, wire.CHUNK, 9, 0, 0x01020304]
    assert (length.partition(",")[0], kind, flags, zero) == ("length of the payload", "kind", "flags", "0")
    assert f"{wire.MAX_PAYLOAD:,}" in length
    assert stream.startswith("stream:")


def test_the_page_describes_the_head_of_a_call() -> None:
    """Sizes and order of its fields, and what they count."""
    data = payload_of(call(method=b"1", path=b"22", query=b"333", headers=b"4444", body=b"55555", body_length=5))

    assert said_of("CALL", data) == {
        "call id": 7,
        "deadline, a double: seconds since the epoch": int.from_bytes(struct.pack("<d", 1.5), "little"),
        "attempt": 1,
        "id of the schedule that made the call; 0 for none": 0,
        "scheduled time, a double: seconds since the epoch": 0,
        "length of the method": 1,
        "length of the path": 2,
        "length of the query": 3,
        "length of the headers": 4,
        "length of the body": 5,
        "the rest": b"122333444455555",
    }
    assert f"{wire.MAX_CALL:,} bytes" in section("CALL")
    assert f"at most {wire.INLINE:,} bytes" in section("CALL")
    assert f"frames of at most {wire.PIECE:,} bytes" in section("CALL")


def test_the_page_describes_the_head_of_a_result() -> None:
    """Sizes and order of its fields."""
    data = payload_of(wire.result_frame(1, 201, 5, b"a\0b", b"body"))

    assert said_of("RESULT", data) == {
        "status, 200 to 599": 201,
        "microseconds in the handler": 5,
        "length of the headers": 3,
        "the rest": b"a\0bbody",
    }


def test_the_page_describes_progress() -> None:
    """A fraction and a message."""
    data = payload_of(wire.progress_frame(1, 0.5, "half"))
    half = int.from_bytes(struct.pack("<d", 0.5), "little")
    assert said_of("PROGRESS", data) == {"fraction, a double: 0 to 1": half, "the rest": b"half"}


@given(st.binary(max_size=30))
def test_random_progress_is_parsed_or_a_protocol_error(payload: bytes) -> None:
    """And what is parsed can be shown."""
    try:
        fraction, message = wire.parse_progress(payload)
    except ProtocolError:
        return
    assert 0 <= fraction <= 1
    assert message == payload[8:].decode("utf-8", "replace")


def test_a_call_that_a_schedule_made() -> None:
    """It brings which one, and the time that was due."""
    frame = wire.call_frame(1, 7, 1.5, 1, b"POST", b"", b"", b"", 0, b"", 2**53 - 1, 1e9)
    parsed = wire.parse_call(payload_of(frame))
    assert (parsed.schedule_id, parsed.scheduled_time) == (2**53 - 1, 1e9)


def test_the_page_describes_the_head_of_a_worker() -> None:
    """Sizes and order of its fields."""
    assert said_of("READY", wire.READY_HEAD.pack(wire.VERSION, 77)) == {
        f"version: {wire.VERSION}": wire.VERSION,
        "pid": 77,
    }


def test_the_page_names_every_kind_and_flag() -> None:
    """With its number."""
    kinds = rows(section("Frames"), "| kind | | from | payload |")
    flags = rows(section("Frames"), "| flag | value | on | |")

    assert {int(number): name for number, name, _, _ in kinds} == {getattr(wire, name): name for _, name, _, _ in kinds}
    assert {int(number) for number, _, _, _ in kinds} == wire.KINDS
    assert [(name, int(value)) for name, value, _, _ in flags] == [("LAST", wire.LAST), ("FAILED", wire.FAILED)]


def test_the_page_says_how_much_may_be_sent() -> None:
    """The window, and the amounts in which it is granted again."""
    assert f"{wire.WINDOW:,} bytes" in section("CREDIT")
    assert f"at least {GRANT:,} at a time" in section("CREDIT")
