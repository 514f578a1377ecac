"""One call under way, as seen by whoever made it: its result, its chunks, its end.

Made by `pool.py`, fed by `channel.py`, read by the dialects. On the hot path: slots and bare futures.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Protocol

from .calls import Call, Result
from .errors import FunctionTimeout, HostError, NoFreeWorker, StillLoading
from .worker import wire

PART = 4  # credit is given back in amounts of at least this part of the window
GRANT = wire.WINDOW // PART
RETRY_AFTER = {"Retry-After": "1"}
STALLED = 60.0  # seconds that a client may leave a stream unread
CROWD = 4 * 1024 * 1024  # bytes; when clients leave more than this unread in all, each is allowed little


class Held:
    """What has arrived in this process and no client has taken yet, of all calls: its memory is one."""

    __slots__ = ("flags", "size", "window")

    def __init__(self) -> None:
        self.size = 0
        self.window, self.flags = wire.WINDOW, 0  # of a call that begins now

    def add(self, size: int) -> None:
        """So many bytes more, or fewer."""
        self.size += size
        self.flags = wire.CROWDED if self.size > CROWD else 0
        self.window = wire.window(self.flags)


held = Held()


class Link(Protocol):
    """The channel that a call runs on."""

    def write(self, data: bytes) -> bool: ...


class Follower(Protocol):
    """Who wants to hear of a call while it runs."""

    def printed(self, level: int, text: str) -> None:
        """Lines of its output."""

    def progressed(self, fraction: float, message: str) -> None:
        """How far it says it is, 0 to 1."""


class Exchange:
    """One call from its acceptance to its last byte: a scope, left when nobody wants the answer any more.

    with host.invoke(call) as exchange:
        result = await exchange.result()
        if not result.complete:
            async for chunk in exchange.chunks(): ...
    """

    __slots__ = (
        "_chunks", "_credit", "_error", "_loop", "_on_cancel", "_on_leave", "_result", "_wakeup", "accepted_at",
        "call", "channel", "deadline", "due", "follower", "late", "left", "on_news", "over", "overdue", "progress_at",
        "retried", "size", "started_at", "status", "stream", "timeout", "unread", "window",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        timeout: float,
        loop: asyncio.AbstractEventLoop,
        on_leave: Callable[[Exchange], None],
        on_cancel: Callable[[Exchange, HostError], None] | None = None,
    ) -> None:
        now = monotonic()
        self.call = call
        self.size = sum(map(len, call.body))  # bytes of the request's body
        self.timeout = timeout
        self.accepted_at = now
        self.deadline = now + timeout
        self.started_at = 0.0  # when a worker got it
        self.progress_at = now  # when the last chunk came or went
        self.channel: Link | None = None  # None: it waits for a worker
        self.follower: Follower | None = None
        self.on_news: Callable[[], None] | None = None  # called for every news of it, in the place of waiting for them
        self.due: dict[Exchange, Callable[[Exchange], None]] | None = None  # where it is in the deadlines
        self.stream = 0
        self.status = 0
        self.unread = 0  # bytes that have arrived and that the client has not taken yet
        self.window = wire.WINDOW  # how many of them there may be
        self.over = False  # the worker has nothing more to say on it, or never will
        self.left = False  # nobody wants the answer any more
        self.late = self.overdue = self.retried = False
        self._loop = loop
        self._on_leave = on_leave
        self._on_cancel = on_cancel
        self._result: Result | None = None
        self._error: HostError | None = None
        self._chunks: deque[bytes] | None = None
        self._wakeup: asyncio.Future[None] | None = None

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._result = None  # what it holds is no longer needed, and it may still be in a list of deadlines
        if self.unread:
            held.add(-self.unread)
            self.unread = 0
        if not self.over:
            self.left = True
            self._on_leave(self)

    def cancel(self, error: HostError) -> None:
        """End it with this error, wherever it is; what runs is stopped, by its process if need be."""
        if self._on_cancel is not None:
            self._on_cancel(self, error)

    @property
    def outcome(self) -> Result | HostError | None:
        """The function's answer, or the error that it has ended in; None as long as there is neither."""
        return self._error if self._result is None else self._result

    async def soon(self) -> Result | None:
        """The result, or None when it takes longer than a moment; raises the HostError that the call ended in."""
        if self._result is None and self._error is None:
            self._wakeup = self._loop.create_future()
            await self._wakeup
        if self._result is None and self._error is not None:
            raise self._error
        return self._result

    async def result(self) -> Result:
        """The function's answer, or its head when it is a stream; raises the HostError that it ended in."""
        while (result := await self.soon()) is None:
            pass
        return result

    async def chunks(self) -> AsyncIterator[bytes]:
        """The rest of an incomplete result as it arrives; raises the HostError that cut it short."""
        assert self._chunks is not None
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                yield chunk
                self._consumed(len(chunk))
            if self.over or self._error is not None:
                break
            self._wakeup = self._loop.create_future()
            await self._wakeup
        if self._error is not None:
            raise self._error

    @property
    def is_long(self) -> bool:
        """Whether the request's body does not travel with the call, but follows."""
        return self.size > wire.INLINE

    @property
    def ends_at(self) -> float:
        """When its time is up, unless something of a stream comes, or is taken, before."""
        if not self.streaming:
            return self.deadline
        return self.progress_at + (STALLED if self.unread else self.timeout)

    def timed_out(self, label: str) -> HostError:
        """That it began, and its time is up."""
        what = "sent nothing more" if self.streaming else "did not answer"
        return FunctionTimeout(f"`{label}` {what} within {self.timeout:g} s")

    def unbegun(self, label: str, *, loaded: bool) -> HostError:
        """Why it was not begun in time, although the function was `loaded`, or because it was not."""
        if loaded:
            return NoFreeWorker(f"no worker of `{label}` became free within {self.timeout:g} s", headers=RETRY_AFTER)
        message = f"`{label}` was still being imported after {self.timeout:g} s"
        return StillLoading(message, details={"state": "loading"}, headers=RETRY_AFTER)

    @property
    def streaming(self) -> bool:
        """Whether the head of a longer answer has arrived."""
        return self._chunks is not None

    def seconds(self) -> float:
        """How long ago the call was accepted."""
        return monotonic() - self.accepted_at

    def _consumed(self, size: int) -> None:
        self.unread -= size
        held.add(-size)
        self.progress_at = monotonic()
        self.window = held.window
        room = self.window - self.unread - self._credit
        if room >= self.window // PART and not self.over and self.channel is not None:
            self.channel.write(wire.frame(wire.CREDIT, self.stream, wire.U32.pack(room)))
            self._credit += room

    # What the channel and the pool tell it.

    def answered(self, result: Result) -> None:
        """The RESULT is here."""
        self.status = self.status or result.status
        self.over = result.complete
        if not result.complete:
            self._chunks = deque()
            self._credit = self.window  # what the worker may still send
            self.progress_at = monotonic()
        self._result = result
        self._wake()

    def chunk_received(self, chunk: bytes) -> None:
        """A CHUNK is here; ProtocolError when the worker sends more than it was granted."""
        if self._chunks is None:
            raise wire.ProtocolError("a CHUNK before its RESULT")
        if self.left or self._error is not None:
            return
        self.unread += len(chunk)
        held.add(len(chunk))
        self._credit -= len(chunk)
        if self._credit < -wire.PIECE:
            raise wire.ProtocolError("a worker sent more than its window")
        self.progress_at = monotonic()
        self._chunks.append(chunk)
        self._wake()

    def ended(self) -> None:
        """The END is here; ProtocolError when somebody still waits for a RESULT."""
        if self._chunks is None and self._error is None and not self.left:
            raise wire.ProtocolError("an END before its RESULT")
        self.over = True
        self._wake()

    def failed(self, error: HostError, *, over: bool = True) -> None:
        """It ends in an error; not `over` while a worker still has it."""
        self._error = self._error or error
        self.status = self.status or error.status
        self.over = self.over or over
        self._wake()

    def is_late(self) -> None:
        """It takes longer than a moment."""
        self.late = True
        self._wake()

    def _wake(self) -> None:
        if self.on_news is not None:
            self.on_news()
        elif self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
