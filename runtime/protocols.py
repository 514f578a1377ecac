"""Hypercorn's HTTP/2 and HTTP/3, mended where one side of a stream is not told that the other has ended it.

`server.py` puts them in the place of the originals, with which a client waits for ever for the rest of an
answer that was cut short, and an answer waits for ever for a client that has gone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypercorn.protocol
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState

H3_INTERNAL_ERROR = 0x0102


class Http2(H2Protocol):
    """One connection of HTTP/2."""

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


def is_cut(stream: Any) -> bool:
    """Whether an answer has begun on this stream, and has not ended."""
    return getattr(stream, "state", None) is ASGIHTTPState.RESPONSE


def mend_http2() -> None:
    """Have Hypercorn use the class above."""
    setattr(hypercorn.protocol, "H2Protocol", Http2)  # noqa: B010 - mypy minds the assignment


def mend_http3() -> None:
    """Have Hypercorn use such a class for HTTP/3; ImportError without the extra `h3`."""
    import hypercorn.protocol.quic
    from aioquic.quic.events import ConnectionTerminated, QuicEvent, StopSendingReceived, StreamReset
    from hypercorn.protocol.h3 import H3Protocol

    class Http3(H3Protocol):
        async def stream_send(self, event: StreamEvent) -> None:
            if isinstance(event, StreamClosed) and is_cut(self.streams.get(event.stream_id)):
                self.connection._quic.reset_stream(event.stream_id, H3_INTERNAL_ERROR)
                await self.send()
            await super().stream_send(event)

        async def handle(self, quic_event: QuicEvent) -> None:
            await super().handle(quic_event)
            gone: list[int] = []
            if isinstance(quic_event, ConnectionTerminated):
                gone = list(self.streams)
            elif isinstance(quic_event, (StopSendingReceived, StreamReset)):
                gone = [quic_event.stream_id]
            for stream_id in gone:
                if stream := self.streams.pop(stream_id, None):
                    await stream.handle(StreamClosed(stream_id=stream_id))

    setattr(hypercorn.protocol.quic, "H3Protocol", Http3)  # noqa: B010
