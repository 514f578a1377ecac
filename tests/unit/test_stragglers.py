"""Who is cut off: whoever nothing moves with for its time; a byte taken, or another request, begins it anew."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from runtime.protocols import Buffer, Http2
from runtime.stragglers import LONGEST, UNTAKEN, Stragglers, patience

HEAD_TIME = 75.0
MIB = 1024 * 1024


class Transport:
    """A connection's end, with something in its buffer; the other end is `client`."""

    def __init__(self) -> None:
        self.sock, self.client = socket.socketpair()
        self.buffered = 0
        self.aborted = False
        self.head: object = None  # the request before the one that is awaited

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.sock

    def abort(self) -> None:
        self.aborted = True


def watching(*transports: Transport) -> Stragglers[Any]:
    def itself(transport: Transport) -> asyncio.WriteTransport:
        return transport  # type: ignore[return-value]

    return Stragglers(transports, itself, lambda each: each.head, HEAD_TIME)


@pytest.fixture
def transport() -> Any:
    """A connection on which all is well."""
    transport = Transport()
    yield transport
    transport.sock.close()
    transport.client.close()


def test_whoever_is_not_waited_for_may_stay(transport: Transport) -> None:
    """However long."""
    stragglers = watching(transport)
    for now in (0.0, 1000.0, 2000.0):
        stragglers.look(now)

    assert not transport.aborted


def test_an_answer_that_is_not_taken(transport: Transport) -> None:
    """After its time, and not before."""
    stragglers = watching(transport)
    transport.buffered = 100
    stragglers.look(0)
    stragglers.look(UNTAKEN - 1)
    early = transport.aborted
    stragglers.look(UNTAKEN)

    assert (early, transport.aborted) == (False, True)


@pytest.mark.parametrize("where", ["here", "in the kernel"])
def test_a_client_that_takes_something(transport: Transport, where: str) -> None:
    """Its time begins anew: be it of what waits in the host, or of what the kernel has for it."""
    transport.sock.send(bytes(2000))
    stragglers = watching(transport)
    transport.buffered = 100
    stragglers.look(0)
    if where == "here":
        transport.buffered = 99
    else:
        transport.client.recv(2000)
    stragglers.look(UNTAKEN - 1)
    stragglers.look(UNTAKEN + 1)
    early = transport.aborted
    stragglers.look(2 * UNTAKEN - 1)

    assert (early, transport.aborted) == (False, True)


def test_a_head_that_does_not_come(transport: Transport) -> None:
    """It has its time from the end of the request before it."""
    stragglers = watching(transport)
    transport.head = "first"
    stragglers.look(0)
    transport.head = "second"
    stragglers.look(HEAD_TIME - 1)
    stragglers.look(HEAD_TIME + 1)
    early = transport.aborted
    stragglers.look(2 * HEAD_TIME - 1)

    assert (early, transport.aborted) == (False, True)


def test_one_that_is_well_in_between(transport: Transport) -> None:
    """Two holds of half the time are not one of the whole."""
    stragglers = watching(transport)
    for now, buffered in ((0.0, 100), (UNTAKEN - 1, 0), (UNTAKEN, 100), (2 * UNTAKEN - 2, 100)):
        transport.buffered = buffered
        stragglers.look(now)

    assert not transport.aborted


@pytest.mark.parametrize("taken", [[0, 0], [0, 1]])
def test_a_stream_that_is_not_taken(transport: Transport, taken: list[int]) -> None:
    """It is cut off alone, unless something of it was taken meanwhile; the connection goes on."""
    cut: list[int] = []
    far = taken[0]

    def itself(transport: Transport) -> asyncio.WriteTransport:
        return transport  # type: ignore[return-value]

    stragglers = Stragglers([transport], itself, streams=lambda _: [(7, far, lambda: cut.append(7), UNTAKEN)])
    stragglers.look(0)
    far = taken[1]
    stragglers.look(UNTAKEN - 1)
    early = list(cut)
    stragglers.look(UNTAKEN)

    assert early == []
    assert cut == ([7] if taken == [0, 0] else [])
    assert not transport.aborted


@pytest.mark.parametrize(
    ("window", "seconds"), [(65_535, UNTAKEN), (10 * MIB, 5 * 1024), (400 * 1024, 200.0), (2**31 - 1, LONGEST)]
)
def test_the_patience_with_a_window(window: int, seconds: float) -> None:
    """Time to read half of it slowly, and not for ever."""
    assert patience(window, by_itself=True) == min(seconds, LONGEST)


@pytest.mark.parametrize(("window", "early"), [(65_535, [7]), (10 * MIB, [])])
def test_a_stream_with_a_large_window(transport: Transport, window: int, early: list[int]) -> None:
    """Its client may take long before it says that it has taken something."""
    cut: list[int] = []

    def itself(transport: Transport) -> asyncio.WriteTransport:
        return transport  # type: ignore[return-value]

    time = patience(window, by_itself=True)
    stragglers = Stragglers([transport], itself, streams=lambda _: [(7, 0, lambda: cut.append(7), time)])
    stragglers.look(0)
    stragglers.look(UNTAKEN + 1)
    seen = list(cut)
    stragglers.look(LONGEST)

    assert (seen, 7 in cut) == (early, True)


def http2(initial: int, connection: int, **streams: int) -> Http2:
    """One whose client has these windows, for each stream and for all; something waits on each."""
    http = Http2.__new__(Http2)
    http.closed, http.task_group, http.stream_buffers = False, MagicMock(), {}
    http.connection = MagicMock(outbound_flow_control_window=connection, streams={})
    http.connection.remote_settings.initial_window_size = initial
    for number, window in enumerate(streams.values()):
        http.stream_buffers[number] = Buffer(MagicMock())
        http.stream_buffers[number].buffer.extend(b"waits")
        http.connection.streams[number] = MagicMock(outbound_flow_control_window=window)
    return http


def test_the_patience_of_http2() -> None:
    """As long as its client's windows ask for; one for which others left no room outlasts them."""
    small, large = http2(65_535, 10, own=0), http2(10 * MIB, 10, own=0)
    beside = http2(65_535, 0, paused=0, read=65_535)

    assert [each[3] for each in small.held_up()] == [UNTAKEN]
    assert [each[3] for each in large.held_up()] == [LONGEST]
    assert [each[3] for each in beside.held_up()] == [UNTAKEN, UNTAKEN + LONGEST]


@pytest.mark.anyio
async def test_a_window_that_has_grown() -> None:
    """It counts as one that was large from the beginning."""
    http = http2(65_535, 10, first=0, second=400 * 1024)
    http.priority, http.has_data = MagicMock(), AsyncMock()
    await http._window_updated(1)
    http.connection.streams[1].outbound_flow_control_window = 0

    assert [each[3] for each in http.held_up()] == [UNTAKEN, 200.0]


def test_a_closed_socket(transport: Transport) -> None:
    """It is left to whoever closed it."""
    stragglers = watching(transport)
    transport.buffered = 100
    stragglers.look(0)
    transport.sock.close()
    stragglers.look(UNTAKEN)

    assert not transport.aborted
