"""What a stream of HTTP/3 hears of its client, and its client of it, on a connection that is not one."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

pytest.importorskip("aioquic", reason="aioquic is not installed")

from aioquic.quic.events import ConnectionTerminated, PingAcknowledged, StopSendingReceived, StreamReset
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from runtime.http3 import INTERNAL_ERROR, Http3

pytestmark = pytest.mark.anyio

RESET = StreamReset(error_code=0x010C, stream_id=4)
STOPPED = StopSendingReceived(error_code=0x010C, stream_id=4)
ENDED = ConnectionTerminated(error_code=0, frame_type=None, reason_phrase="")


def connection(quic: Any) -> Http3:
    """One whose client says nothing by itself."""
    http = Http3(*[MagicMock() for _ in range(7)], quic, AsyncMock())
    http.connection.handle_event = lambda event: []  # type: ignore[method-assign]
    return http


@pytest.mark.parametrize(
    ("state", "is_reset"),
    [(ASGIHTTPState.RESPONSE, True), (ASGIHTTPState.REQUEST, False), (ASGIHTTPState.CLOSED, False)],
)
async def test_an_answer_that_ends_too_early_is_reset(state: ASGIHTTPState, is_reset: bool) -> None:
    """Or its client would take it for a whole one."""
    quic = MagicMock()
    http = connection(quic)
    http.streams[4] = stream = HTTPStream.__new__(HTTPStream)
    stream.__dict__.update(state=state)
    await http.stream_send(StreamClosed(stream_id=4))

    assert [call.args for call in quic.reset_stream.call_args_list] == [(4, INTERNAL_ERROR)] * is_reset
    assert http.send.await_count == is_reset  # type: ignore[attr-defined]
    assert 4 not in http.streams


@pytest.mark.parametrize(
    ("event", "gone"), [(RESET, [4]), (STOPPED, [4]), (ENDED, [4, 8]), (PingAcknowledged(uid=1), [])], ids=str
)
async def test_an_application_hears_that_its_client_has_gone(event: Any, gone: list[int]) -> None:
    """From one stream, or from all; and who waits for him to take something looks again."""
    http = connection(MagicMock())
    streams = {number: AsyncMock(app_put=None) for number in (4, 8)}
    http.streams.update(streams)
    await http.handle(event)

    heard = {number: [call.args for call in stream.handle.await_args_list] for number, stream in streams.items()}
    assert heard == {number: [(StreamClosed(stream_id=number),)] if number in gone else [] for number in (4, 8)}
    assert list(http.streams) == [number for number in (4, 8) if number not in gone]
    assert http.moved.is_set()
