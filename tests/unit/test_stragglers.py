"""Who is cut off: whoever nothing moves with for its time; a byte taken, or another request, begins it anew."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from runtime.stragglers import UNTAKEN, Stragglers

HEAD_TIME = 75.0


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

    stragglers = Stragglers([transport], itself, streams=lambda _: [(7, far, lambda: cut.append(7))])
    stragglers.look(0)
    far = taken[1]
    stragglers.look(UNTAKEN - 1)
    early = list(cut)
    stragglers.look(UNTAKEN)

    assert early == []
    assert cut == ([7] if taken == [0, 0] else [])
    assert not transport.aborted


def test_a_closed_socket(transport: Transport) -> None:
    """It is left to whoever closed it."""
    stragglers = watching(transport)
    transport.buffered = 100
    stragglers.look(0)
    transport.sock.close()
    stragglers.look(UNTAKEN)

    assert not transport.aborted
