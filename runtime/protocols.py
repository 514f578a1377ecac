"""Hypercorn's HTTP/1.1 and HTTP/2, mended; HTTP/3 is in `http3.py`.

`engines.py` puts them in the place of the originals. With that of HTTP/1.1, a proxy before us may find other requests
on a connection than we do. With that of HTTP/2, a client waits for ever for the rest of an answer that was cut short,
an answer waits for ever for a client that has gone, and all of one that nobody takes is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import h11
import hypercorn.protocol
import hypercorn.protocol.h2
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, BufferCompleteError, H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState

from . import stragglers

EMPTY_LINES = b"\r\n"
BOTH_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


class Parser(h11.Connection):
    """Finds the requests on a connection of HTTP/1.1, and nothing between them or behind the last one (RFC 9112).

    Empty lines before a request are passed over (section 2.2), and so is whatever follows one after which the
    connection is to close (9.6). A request that says the length of its body in two ways is refused (6.1): a proxy that
    has read the other one would take what is behind it for another client's.
    """

    def receive_data(self, data: bytes) -> None:
        """Take in what the client sends; empty at its end."""
        if not data or self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """What comes next."""
        self._pass_over()
        event = super().next_event()
        if isinstance(event, h11.Request) and BOTH_LENGTHS.issubset([name for name, _ in event.headers]):
            self._process_error(self.their_role)  # nothing more is read
            raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding")
        if event is h11.PAUSED and not self._receive_buffer:  # until we have said whether we switch protocols
            return h11.NEED_DATA  # or nobody would see that the client leaves
        return event

    def _pass_over(self) -> None:
        """Drop what is no part of a request. A body that is not whole has its own reader."""
        buffer, state = self._receive_buffer, self.their_state
        if state is h11.MUST_CLOSE:
            buffer.maybe_extract_at_most(len(buffer))
        elif state in (h11.IDLE, h11.DONE) and buffer.is_next_line_obviously_invalid_request_line():
            text = bytes(buffer)
            buffer.maybe_extract_at_most(len(text) - len(text.lstrip(EMPTY_LINES)))


class Http1(H11Protocol):
    """One connection of HTTP/1.1, as long as it is one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection = Parser(h11.SERVER, self.config.h11_max_incomplete_size)


class Buffer(StreamBuffer):
    """What waits on a stream of HTTP/2 for its client, who says how much he takes: there is an end to it."""

    taken = 0  # bytes
    window = 0  # the most that it could have had on its way to him

    async def push(self, data: bytes) -> None:
        """Add some; wait until there is room for more."""
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take some."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        self.taken += len(data)
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class Gone:
    """A stream that was answered, cut or refused before its request came to its end."""

    idle = True

    async def handle(self, event: StreamEvent) -> None:
        """Nothing: what still comes is for nobody."""


class Streams(dict[int, Any]):
    """The streams of a connection by their numbers; looked up, one that is not there is a `Gone`."""

    def __missing__(self, stream_id: int) -> Gone:
        return Gone()


class Http2(H2Protocol):
    """One connection of HTTP/2."""

    stream_buffers: dict[int, Buffer]  # type: ignore[assignment]  # see `mend_protocols`

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = Streams()

    async def _create_stream(self, request: Any) -> None:
        if is_sound(request.headers):
            await super()._create_stream(request)
        else:
            self.connection.reset_stream(request.stream_id, error_code=ErrorCodes.PROTOCOL_ERROR)

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what the application sends; reset the stream when it stops before the end."""
        if isinstance(event, StreamClosed) and is_cut(self.streams.get(event.stream_id)):
            buffer = self.stream_buffers[event.stream_id]
            if buffer.buffer:
                await buffer.drain()
            with suppress(ProtocolError):
                self.connection.reset_stream(event.stream_id, error_code=ErrorCodes.INTERNAL_ERROR)
            await self._flush()
        await super().stream_send(event)

    async def handle(self, event: Event) -> None:
        """Take what the client sends; nothing waits for it once it has gone."""
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _window_updated(self, stream_id: int | None) -> None:
        await super()._window_updated(stream_id)
        if buffer := self.stream_buffers.get(stream_id or 0):
            buffer.window = max(buffer.window, self._window(stream_id or 0))

    def _window(self, stream_id: int) -> int:
        """How much the client has room for on this stream, whatever there is on its connection."""
        stream = self.connection.streams.get(stream_id)
        return stream.outbound_flow_control_window if stream else 0

    def held_up(self) -> Iterator[stragglers.Stream]:
        """The streams on which something waits for the client."""
        initial = self.connection.remote_settings.initial_window_size
        alone = self.connection.outbound_flow_control_window > 0
        for stream_id, buffer in () if self.closed else self.stream_buffers.items():
            if buffer.buffer:
                by_itself = alone or self._window(stream_id) <= 0
                patience = stragglers.patience(max(initial, buffer.window), by_itself=by_itself)
                yield stream_id, buffer.taken, partial(self.task_group.spawn, self._cut, stream_id), patience

    async def _cut(self, stream_id: int) -> None:
        with suppress(ProtocolError):
            self.connection.reset_stream(stream_id, error_code=ErrorCodes.CANCEL)
        if buffer := self.stream_buffers.get(stream_id):
            await buffer.close()
        await self._close_stream(stream_id)
        await self._window_updated(stream_id)  # so that it is forgotten
        await self._flush()


def is_cut(stream: Any) -> bool:
    """Whether an answer has begun on this stream, and has not ended."""
    return getattr(stream, "state", None) is ASGIHTTPState.RESPONSE


def is_sound(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request says, in ASCII, its method and its path: Hypercorn takes that for granted."""
    fields = dict(headers)
    return all(name in fields and fields[name].isascii() for name in (b":method", b":path"))


def mend_protocols() -> None:
    """Have Hypercorn use the classes above."""
    setattr(hypercorn.protocol, "H11Protocol", Http1)  # noqa: B010 - mypy minds the assignment
    setattr(hypercorn.protocol.h2, "StreamBuffer", Buffer)  # noqa: B010 - mypy minds the assignment
    setattr(hypercorn.protocol, "H2Protocol", Http2)  # noqa: B010 - mypy minds the assignment
