"""The frames between host and worker: one codec, both ways. See docs/reference/wire.md.

Used by `loop.py` and `aloop.py` (the worker's end) and by `runtime/channel.py` (the host's end).
A frame is a 12-byte prefix (payload length, kind, flags, stream) and its payload; integers are
little-endian. Nothing is decoded here but lengths: method, path, query, headers and bodies stay bytes.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

VERSION = 2

# Kinds. Host to worker: CALL BODY CANCEL CREDIT PING. Worker to host: the others.
READY, CALL, BODY, RESULT, CHUNK, END, ERROR, LOG, CANCEL, CREDIT, PING, PONG, PROGRESS = range(1, 14)
KINDS = frozenset(range(1, 14))

# Flags.
LAST = 1  # RESULT: the whole answer is in this frame.
FAILED = 2  # RESULT: the handler raised, or returned what cannot be encoded.
CROWDED = 1  # CALL: the host has much that clients do not take; a stream begins with the small window.

MAX_PAYLOAD = 4 * 1024 * 1024  # a longer frame breaks the rules
MAX_CALL = 160 * 1024  # a longer CALL would not fit into the packet that it travels in
INLINE = 64 * 1024  # bodies up to this length travel inside their CALL or RESULT
PIECE = 64 * 1024  # longer ones in BODY or CHUNK frames of this length
WINDOW = 256 * 1024  # bytes of an answer under way before the host grants more (CREDIT)
SMALL_WINDOW = 8 * 1024  # the same for a CALL that is CROWDED
SMALL_PIECE = 4 * 1024  # a CHUNK is cut to the credit that is left, but not to less than this

PREFIX = Struct("<IBBHI")  # payload length, kind, flags, 0, stream
PREFIX_SIZE = PREFIX.size
# Call id, deadline, attempt, schedule id, scheduled time, lengths: method, path, query, headers, body.
CALL_HEAD = Struct("<QdHQdBIIIQ")
RESULT_HEAD = Struct("<HII")  # status, microseconds in the handler, length of headers
U32 = Struct("<I")
FRACTION = Struct("<d")
READY_HEAD = Struct("<HI")  # version, pid


class ProtocolError(Exception):
    """The other end broke the rules of the wire."""


class CallFrame(NamedTuple):
    """A CALL's fields. `body` is complete when its length is `body_length`; else BODY frames follow.

    `schedule_id` and `scheduled_time` are 0 where no schedule made the call.
    """

    call_id: int
    deadline: float
    attempt: int
    method: str
    path: bytes
    query: bytes
    headers: bytes
    body_length: int
    body: bytes
    schedule_id: int = 0
    scheduled_time: float = 0.0


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame as bytes."""
    return PREFIX.pack(len(payload), kind, flags, 0, stream) + payload


def call_frame(
    stream: int,
    call_id: int,
    deadline: float,
    attempt: int,
    method: bytes,
    path: bytes,
    query: bytes,
    headers: bytes,
    body_length: int,
    body: bytes,
    schedule_id: int = 0,
    scheduled_time: float = 0.0,
    flags: int = 0,
) -> bytes:
    """A CALL. `body` is the whole body, or empty when BODY frames of `body_length` bytes in all follow."""
    size = CALL_HEAD.size + len(method) + len(path) + len(query) + len(headers) + len(body)
    if size > MAX_CALL:
        raise ProtocolError(f"a CALL of {size} bytes is more than {MAX_CALL}")
    lengths = len(method), len(path), len(query), len(headers), body_length
    head = CALL_HEAD.pack(call_id, deadline, attempt, schedule_id, scheduled_time, *lengths)
    prefix = PREFIX.pack(size, CALL, flags, 0, stream)
    return b"".join((prefix, head, method, path, query, headers, body))


def window(flags: int) -> int:
    """The credit that the answer to a CALL with these flags begins with."""
    return SMALL_WINDOW if flags & CROWDED else WINDOW


def piece(credit: int) -> int:
    """How long the next CHUNK may be."""
    return min(PIECE, max(credit, SMALL_PIECE))


def parse_call(payload: bytes) -> CallFrame:
    """The fields of a CALL's payload; ProtocolError when its lengths do not add up."""
    try:
        head = CALL_HEAD.unpack_from(payload)
    except StructError as error:
        raise ProtocolError("a CALL is shorter than its head") from error
    call_id, deadline, attempt, schedule_id, scheduled_time, m, p, q, h, body_length = head
    method_end = CALL_HEAD.size + m
    path_end = method_end + p
    query_end = path_end + q
    headers_end = query_end + h
    inline = len(payload) - headers_end
    if inline < 0 or (inline and inline != body_length):
        raise ProtocolError("the lengths in a CALL do not add up")
    return CallFrame(
        call_id,
        deadline,
        attempt,
        payload[CALL_HEAD.size : method_end].decode("ascii", "replace"),
        payload[method_end:path_end],
        payload[path_end:query_end],
        payload[query_end:headers_end],
        body_length,
        payload[headers_end:],
        schedule_id,
        scheduled_time,
    )


def result_frame(stream: int, status: int, micros: int, headers: bytes, body: bytes = b"", flags: int = LAST) -> bytes:
    """A RESULT: whole with `LAST`, else the head of an answer whose CHUNKs follow."""
    size = RESULT_HEAD.size + len(headers) + len(body)
    prefix = PREFIX.pack(size, RESULT, flags, 0, stream)
    return b"".join((prefix, RESULT_HEAD.pack(status, min(micros, 0xFFFFFFFF), len(headers)), headers, body))


def parse_result(payload: bytes) -> tuple[int, int, bytes, bytes]:
    """Status, microseconds, headers, body of a RESULT; ProtocolError when its lengths do not add up."""
    try:
        status, micros, length = RESULT_HEAD.unpack_from(payload)
    except StructError as error:
        raise ProtocolError("a RESULT is shorter than its head") from error
    end = RESULT_HEAD.size + length
    if end > len(payload) or not 200 <= status <= 599:
        raise ProtocolError("a RESULT's status or lengths are out of range")
    return status, micros, payload[RESULT_HEAD.size : end], payload[end:]


def progress_frame(stream: int, fraction: float, message: str) -> bytes:
    """A PROGRESS: how far a call is, 0 to 1."""
    return frame(PROGRESS, stream, FRACTION.pack(fraction) + message.encode("utf-8", "backslashreplace"))


def parse_progress(payload: bytes) -> tuple[float, str]:
    """Fraction and message of a PROGRESS."""
    if len(payload) < FRACTION.size:
        raise ProtocolError("a PROGRESS without its fraction")
    fraction: float = FRACTION.unpack_from(payload)[0]
    if not 0 <= fraction <= 1:
        raise ProtocolError("a PROGRESS that is not between 0 and 1")
    return fraction, payload[FRACTION.size :].decode("utf-8", "replace")


def parse_u32(payload: bytes) -> int:
    """The one number of a CREDIT."""
    if len(payload) != 4:
        raise ProtocolError("a CREDIT is not four bytes long")
    value: int = U32.unpack(payload)[0]
    return value


class Reader:
    """Cuts a byte stream into frames, whatever the pieces it arrives in."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    @property
    def pending(self) -> bool:
        """Whether a part of a frame has come, and the rest has not."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """Every frame complete by now, as (kind, flags, stream, payload); ProtocolError for a bad prefix."""
        if self._pending:
            data = self._pending + data
        frames = []
        start, size = 0, len(data)
        while size - start >= PREFIX_SIZE:
            length, kind, flags, zero, stream = PREFIX.unpack_from(data, start)
            if length > MAX_PAYLOAD or kind not in KINDS or zero:
                raise ProtocolError(f"bad frame prefix: kind {kind}, {length} bytes")
            end = start + PREFIX_SIZE + length
            if end > size:
                break
            frames.append((kind, flags, stream, data[start + PREFIX_SIZE : end]))
            start = end
        self._pending = data[start:] if start else data
        return frames
