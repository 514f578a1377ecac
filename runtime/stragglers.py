"""Connections that only hold: a request's head that does not come to its end, an answer that nobody takes.

`engines.py` starts one `Stragglers` for each engine. Bodies that do not come are `request.py`'s.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Collection
from contextlib import suppress
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

LOOK_EVERY = 5.0  # seconds
UNTAKEN = 60.0  # seconds in which a client takes nothing of what waits for it, after which it is cut off

C = TypeVar("C")
Hold = tuple[Any, ...]  # what a connection is held up by; the same one as long as nothing moves


class Stragglers(Generic[C]):
    """Cuts off connections on which nothing moves though it should.

    Looked at now and then from outside, so that those that go on well pay nothing for it. `awaited` says by which
    request's head a connection is held up, if the engine itself has no eye on it.
    """

    def __init__(
        self,
        connections: Collection[C],
        transport: Callable[[C], asyncio.WriteTransport],
        awaited: Callable[[C], object] = lambda _: None,
        head_time: float = UNTAKEN,
    ) -> None:
        self._connections = connections
        self._transport = transport
        self._awaited = awaited
        self._head_time = head_time
        self._seen: dict[C, tuple[Hold, float]] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            await anyio.sleep(min(LOOK_EVERY, UNTAKEN / 4, self._head_time / 4))
            self.look(monotonic())

    def look(self, now: float) -> None:
        """Cut off whoever has been held up by the same thing for too long."""
        seen: dict[C, tuple[Hold, float]] = {}
        for connection in tuple(self._connections):
            transport = self._transport(connection)
            hold, patience = untaken(transport), UNTAKEN
            if hold is None and (head := self._awaited(connection)) is not None:
                hold, patience = (head,), self._head_time
            if hold is None:
                continue
            before, since = self._seen.get(connection, (hold, now))
            if before != hold:
                since = now
            if now - since >= patience:
                abort(transport)
            else:
                seen[connection] = hold, since
        self._seen = seen


def abort(transport: asyncio.WriteTransport) -> None:
    """Close it now; the kernel forgets what it still has for the client, instead of offering it for minutes."""
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def untaken(transport: asyncio.WriteTransport) -> Hold | None:
    """How much waits for the client here and in the kernel; None when nothing waits here."""
    size = transport.get_write_buffer_size()
    if not size:
        return None
    sock = transport.get_extra_info("socket")
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # it has just been closed
        return None
    return size, struct.unpack("i", queued)[0]
