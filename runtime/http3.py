"""Hypercorn's HTTP/3, mended as its HTTP/2 is in `protocols.py`; importing it takes the extra `h3`.

`engines.py` puts it in the place of the original.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from time import monotonic
from typing import Any

import hypercorn.protocol.quic
from aioquic.h3.connection import ProtocolError
from aioquic.h3.events import HeadersReceived
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StopSendingReceived, StreamReset
from hypercorn.events import Event
from hypercorn.protocol.events import Body, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h3 import H3Protocol
from hypercorn.protocol.quic import QuicProtocol

from . import stragglers
from .protocols import Streams, is_cut, is_sound

INTERNAL_ERROR, REQUEST_CANCELLED, MESSAGE_ERROR = 0x0102, 0x010C, 0x010E
UNTAKEN = 256 * 1024  # bytes of an answer that wait for their client, before it waits for him too


class Http3(H3Protocol):
    """One connection of HTTP/3."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = Streams()
        self.moved = asyncio.Event()  # set whenever the client may have taken something

    async def _create_stream(self, request: HeadersReceived) -> None:
        if request.stream_id in self.streams or b":method" not in dict(request.headers):  # these are trailers
            return
        if is_sound(request.headers):
            await super()._create_stream(request)
        else:
            self.connection._quic.reset_stream(request.stream_id, MESSAGE_ERROR)

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what the application sends, as fast as the client takes it; reset the stream when it stops too early."""
        if isinstance(event, StreamClosed):
            release(self.streams.get(event.stream_id))
        with suppress(RuntimeError, ValueError, ProtocolError):  # its client has just gone
            if isinstance(event, StreamClosed) and is_cut(self.streams.get(event.stream_id)):
                self.connection._quic.reset_stream(event.stream_id, INTERNAL_ERROR)
                await self.send()
            if event.stream_id in self.streams:
                await super().stream_send(event)
        if isinstance(event, Body):
            await self._room(event.stream_id)

    async def _room(self, stream_id: int) -> None:
        """Wait until not too much waits for the client, who is cut off when he takes nothing for long."""
        quic: Any = self.connection._quic
        if stream_id not in quic._streams:  # it has just gone
            return
        stream, taken, window, since = quic._streams[stream_id], -1, 0, monotonic()
        while len(stream.sender._buffer) > UNTAKEN and stream_id in self.streams:
            if stream.sender._buffer_start != taken:
                taken, since = stream.sender._buffer_start, monotonic()
            window = max(window, stream.max_stream_data_remote - taken)
            left = since + stragglers.patience(window, by_itself=by_itself(quic, stream)) - monotonic()
            if left > 0:
                await self._move(left)
            else:
                quic.reset_stream(stream_id, REQUEST_CANCELLED)
                await self._forget(stream_id)
                await self.send()

    async def _move(self, patience: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                self.moved.clear()
                await self.moved.wait()

    async def _forget(self, stream_id: int) -> None:
        if stream := self.streams.pop(stream_id, None):
            release(stream)
            await stream.handle(StreamClosed(stream_id=stream_id))

    async def handle(self, quic_event: QuicEvent) -> None:
        """Take what the client sends; nothing waits for it once it has gone."""
        await super().handle(quic_event)
        gone: list[int] = []
        if isinstance(quic_event, ConnectionTerminated):
            gone = list(self.streams)
        elif isinstance(quic_event, (StopSendingReceived, StreamReset)):
            gone = [quic_event.stream_id]
        for stream_id in gone:
            await self._forget(stream_id)
        self.moved.set()


def release(stream: Any) -> None:
    """Drop what its application has not read of a request, so that the one task of all does not wait for that."""
    unread = getattr(getattr(stream, "app_put", None), "__self__", None)
    if isinstance(unread, asyncio.Queue):
        unread._maxsize = 0  # type: ignore[attr-defined]  # the last words find room
        while not unread.empty():
            unread.get_nowait()  # and wake who waits


def by_itself(quic: Any, stream: Any) -> bool:
    """Whether a stream waits for its own reader, not for those of the connection's other streams."""
    used_up = quic._remote_max_data_used >= quic._remote_max_data
    return not used_up or stream.sender.highest_offset >= stream.max_stream_data_remote


class Quic(QuicProtocol):
    """All connections of HTTP/3. One task of Hypercorn's serves all of them, and nothing raised here ends it."""

    async def handle(self, event: Event) -> None:
        """Called with everything that came."""
        await self._survive(super().handle(event))

    async def _handle_events(self, connection: Any, client: tuple[str, int] | None = None) -> None:
        await self._survive(super()._handle_events(connection, client), connection)

    async def _handle_timer(self, timer: float, connection: Any) -> None:
        await self._survive(super()._handle_timer(timer, connection), connection)

    async def send_all(self, connection: Any) -> None:
        """Called after everything that came."""
        await self._survive(super().send_all(connection))
        if connection.h3 is not None:
            connection.h3.moved.set()

    async def _survive(self, work: Awaitable[None], connection: Any = None) -> None:
        """A mistake costs no more than its connection."""
        try:
            await work
        except Exception:
            await self.config.log.exception("HTTP/3 failed")
            if connection is not None:
                connection.quic.close(error_code=INTERNAL_ERROR)
                await self.send_all(connection)


def mend_http3() -> None:
    """Have Hypercorn use the classes above."""
    setattr(hypercorn.protocol.quic, "H3Protocol", Http3)  # noqa: B010 - mypy minds the assignment
    setattr(hypercorn.protocol.quic, "QuicProtocol", Quic)  # noqa: B010 - it is looked up there when it starts
