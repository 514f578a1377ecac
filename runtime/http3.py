"""Hypercorn's HTTP/3, mended as its HTTP/2 is in `protocols.py`; importing it takes the extra `h3`.

`engines.py` puts it in the place of the original.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import hypercorn.protocol.quic
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StopSendingReceived, StreamReset
from hypercorn.protocol.events import Body, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h3 import H3Protocol
from hypercorn.protocol.quic import QuicProtocol

from . import stragglers
from .protocols import is_cut

INTERNAL_ERROR, REQUEST_CANCELLED = 0x0102, 0x010C
UNTAKEN = 256 * 1024  # bytes of an answer that wait for their client, before it waits for him too


class Http3(H3Protocol):
    """One connection of HTTP/3."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.moved = asyncio.Event()  # set whenever the client may have taken something

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what the application sends, as fast as the client takes it; reset the stream when it stops too early."""
        if isinstance(event, StreamClosed) and is_cut(self.streams.get(event.stream_id)):
            self.connection._quic.reset_stream(event.stream_id, INTERNAL_ERROR)
            await self.send()
        if event.stream_id not in self.streams:  # its client has gone
            return
        await super().stream_send(event)
        if isinstance(event, Body):
            await self._room(event.stream_id)

    async def _room(self, stream_id: int) -> None:
        """Wait until not too much waits for the client, who is cut off when he takes nothing for long."""
        quic: Any = self.connection._quic
        if stream_id not in quic._streams:  # it has just gone
            return
        sender, taken = quic._streams[stream_id].sender, -1
        while len(sender._buffer) > UNTAKEN and stream_id in self.streams:
            if sender._buffer_start != taken:
                taken, give_up = sender._buffer_start, monotonic() + stragglers.UNTAKEN
            try:
                async with asyncio.timeout(give_up - monotonic()):
                    self.moved.clear()
                    await self.moved.wait()
            except TimeoutError:
                quic.reset_stream(stream_id, REQUEST_CANCELLED)
                await self._forget(stream_id)
                await self.send()

    async def _forget(self, stream_id: int) -> None:
        if stream := self.streams.pop(stream_id, None):
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


class Quic(QuicProtocol):
    """All connections of HTTP/3."""

    async def send_all(self, connection: Any) -> None:
        """Called after everything that came."""
        await super().send_all(connection)
        if connection.h3 is not None:
            connection.h3.moved.set()


def mend_http3() -> None:
    """Have Hypercorn use the classes above."""
    setattr(hypercorn.protocol.quic, "H3Protocol", Http3)  # noqa: B010 - mypy minds the assignment
    setattr(hypercorn.protocol.quic, "QuicProtocol", Quic)  # noqa: B010 - it is looked up there when it starts
