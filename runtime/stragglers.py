"""Connections and streams that only hold: a request's head that does not come to its end, an answer that nobody takes.

`engines.py` starts one `Stragglers` for each engine. Bodies that do not come are `request.py`'s.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Collection, Hashable, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

LOOK_EVERY = 5.0  # seconds
UNTAKEN = 60.0  # seconds in which a client takes nothing of what waits for it, after which it is cut off
SLOWEST = 1024  # bytes a second that a client reads at least, where it says only now and then what it has read
LONGEST = 600.0  # seconds: a window may be of any size

C = TypeVar("C")
Hold = tuple[Any, ...]  # what a connection is held up by; the same one as long as nothing moves
Stream = tuple[Hashable, object, Callable[[], None], float]  # which; how far it is; what cuts it off; its patience


class Stragglers(Generic[C]):
    """Cuts off connections on which nothing moves though it should.

    Looked at now and then from outside, so that those that go on well pay nothing for it. `awaited` says by which
    request's head a connection is held up, if the engine itself has no eye on it; `streams` has those of its streams
    whose answers wait for the client by themselves.
    """

    def __init__(
        self,
        connections: Collection[C],
        transport: Callable[[C], asyncio.WriteTransport],
        awaited: Callable[[C], object] = lambda _: None,
        head_time: float = UNTAKEN,
        streams: Callable[[C], Iterable[Stream]] = lambda _: (),
    ) -> None:
        self._connections = connections
        self._transport = transport
        self._awaited = awaited
        self._head_time = head_time
        self._streams = streams
        self._seen: dict[Hashable, tuple[Hold, float]] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            await anyio.sleep(min(LOOK_EVERY, UNTAKEN / 4, self._head_time / 4))
            self.look(monotonic())

    def look(self, now: float) -> None:
        """Cut off whoever has been held up by the same thing for too long."""
        before, self._seen = self._seen, {}

        def judge(who: Hashable, hold: Hold, patience: float, cut: Callable[[], None]) -> None:
            held, since = before.get(who, (hold, now))
            if held != hold:
                since = now
            if now - since >= patience:
                cut()
            else:
                self._seen[who] = hold, since

        for connection in tuple(self._connections):
            transport = self._transport(connection)
            if (hold := untaken(transport)) is not None:
                judge(connection, hold, UNTAKEN, partial(abort, transport))
            elif (head := self._awaited(connection)) is not None:
                judge(connection, (head,), self._head_time, partial(abort, transport))
            for which, far, cut, time in tuple(self._streams(connection)):
                judge((connection, which), (far,), time, cut)


def patience(window: int, *, by_itself: bool) -> float:
    """Seconds without a move after which a stream is cut off whose client has this window, in bytes, for it.

    Clients say what they have read once in half a window. A stream that is not held up `by_itself`, but because others
    have used up what its connection has room for, outlasts them: it goes on when they are cut off.
    """
    return max(UNTAKEN, min(window / 2 / SLOWEST, LONGEST)) if by_itself else UNTAKEN + LONGEST


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
