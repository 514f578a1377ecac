"""The host's end of one worker's socket, and the calls that are under way on it.

Used by `pool.py`, which owns each channel; the worker's end is `worker/loop.py` or `worker/aloop.py`, the
frames are `worker/wire.py`. This is the hot path: it uses the event loop's reader and writer callbacks
directly, without streams or tasks.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from time import monotonic
from typing import Annotated, Any, Protocol

import msgspec

from .calls import Result
from .errors import FunctionRefused, HostError, ProtocolViolation, WorkerDied
from .exchange import Exchange, held
from .worker import wire

RECEIVE = 64 * 1024  # larger buffers would be mapped and unmapped at each read
ASK_EVERY = 0.05  # seconds: so often at most, an async worker that is given a call is asked whether its loop turns
SILENCE = 0.05  # seconds without an answer after which it is taken not to
KNOWN_HEADERS = 256  # that many of a worker's are remembered as good
HEADERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9a-z]+\0[^\0\r\n]*(?:\0(?=.)|$))*", re.DOTALL)


class Refusal(msgspec.Struct):
    """What an ERROR says before the answer."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    code: str
    message: str
    details: dict[str, Any]


class Envelope(msgspec.Struct):
    """What an ERROR says within a stream."""

    error: dict[str, Any]


class Owner(Protocol):
    """What a channel tells the worker it belongs to."""

    def ready(self) -> None:
        """The worker has started and waits for calls."""

    def released(self, exchange: Exchange, result: Result | None) -> None:
        """A call is over; its place in the worker is free."""

    def turned(self) -> None:
        """Its loop turns again."""

    def broken(self, error: HostError | None) -> None:
        """The channel has closed, or must be: an `error` says which rule the worker broke."""

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        """A call's output."""


class CallQueue:
    """The way into a sync worker: one packet a call, and who takes it out first has it.

    The worker takes one when it is free for it. The host may take back what the worker has not taken: the
    kernel decides between them, so a call is run once or is ours again, whatever happens to the worker.
    """

    def __init__(self, pair: tuple[socket.socket, socket.socket] | None = None) -> None:
        """`pair`: one that was made before, by a host that had the worker then."""
        self._ours, self.theirs = pair or socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def push(self, call: bytes) -> bool:
        """Add a CALL frame; False when there is no room for it now, or never as the worker has shut its end."""
        try:
            self._ours.send(call, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def take_back(self) -> list[int]:
        """The streams of the calls that the worker has not taken; it never will."""
        streams = []
        try:
            while prefix := self.theirs.recv(wire.PREFIX_SIZE, socket.MSG_DONTWAIT):
                streams.append(wire.PREFIX.unpack(prefix)[4])
        except BlockingIOError:
            pass
        return streams

    @property
    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Our end and the worker's."""
        return self._ours, self.theirs

    def close(self) -> None:
        """The worker, once it has no calls, exits."""
        self._ours.close()
        self.theirs.close()


class Channel:
    """Frames out, frames in, and the calls they belong to, the oldest first."""

    def __init__(
        self,
        sock: socket.socket,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        queue: CallQueue | None,
        last_stream: int = 0,
    ) -> None:
        """`last_stream`: of the calls that were sent by it before."""
        sock.setblocking(False)
        self.queue = queue
        self.exchanges: dict[int, Exchange] = {}
        self.closed = False
        self._sock = sock
        self._send = sock.send
        self._receive = sock.recv
        self.owner = owner
        self._loop = loop
        self._reader = wire.Reader()
        self._unsent: deque[memoryview] = deque()
        self.last_stream = last_stream
        self._good_headers: set[bytes] = set()
        self.pongs = 0
        self._asked: deque[tuple[int, float]] = deque()  # PINGs without a PONG: the last call before each, and when
        self._ask_at = 0.0
        loop.add_reader(sock, self._readable)

    def start(self, exchange: Exchange, deadline: float) -> bool:
        """Send a call; `deadline` in seconds since the epoch. False when it has no room now, or is gone."""
        call = exchange.call
        stream = self.last_stream = (self.last_stream + 1) & 0xFFFFFFFF or 1
        if self.queue is None:
            self._ask_now_and_then(stream)
        length = exchange.size
        inline = b"".join(call.body) if length <= wire.INLINE else b""
        frame = wire.call_frame(
            stream, call.id, deadline, call.attempt, call.method,
            call.path, call.query, call.headers, length, inline, call.schedule_id, call.scheduled_time, held.flags,
        )  # fmt: skip
        if not (self.write(frame) if self.queue is None else self.queue.push(frame)):
            return False
        exchange.stream, exchange.channel, exchange.window = stream, self, held.window
        self.exchanges[stream] = exchange
        if length > wire.INLINE:
            self._write_body(stream, call.body)
        return True

    def take_back(self) -> list[Exchange]:
        """The calls that the worker has not begun, which are the caller's to place again."""
        taken = self.queue.take_back() if self.queue is not None and not self.closed else []
        exchanges = [self.exchanges.pop(stream) for stream in taken if stream in self.exchanges]
        for exchange in exchanges:
            exchange.channel, exchange.started_at = None, 0.0
        return exchanges

    @property
    def sockets(self) -> list[socket.socket] | None:
        """What it consists of, as long as nothing is on its way that only this host could make sense of."""
        if self.closed or self.exchanges or self._unsent or self._asked or self._reader.pending:
            return None
        return [self._sock, *(self.queue.pair if self.queue is not None else ())]

    def cancel(self, exchange: Exchange) -> None:
        """Tell the worker that nobody wants the answer any more."""
        self.write(wire.frame(wire.CANCEL, exchange.stream))

    def ping(self) -> None:
        """Ask an async worker to add one to `pongs`, which it does as long as its loop turns."""
        self._ask(self.last_stream, monotonic())

    def _ask_now_and_then(self, stream: int) -> None:
        """Before a call is sent to an async worker that has had others for some time."""
        now = monotonic()
        if not self.exchanges:
            self._ask_at = now + ASK_EVERY
        elif now >= self._ask_at:
            self._ask(stream - 1, now)

    def _ask(self, last: int, now: float) -> None:
        self._ask_at = now + ASK_EVERY
        self._asked.append((last, now))
        self.write(wire.frame(wire.PING, 0))

    @property
    def silent(self) -> bool:
        """Whether an async worker has been asked whether its loop turns, and should have answered by now."""
        return bool(self._asked) and monotonic() - self._asked[0][1] > SILENCE

    def unbegun(self) -> list[Exchange]:
        """Of a worker that has ended: the calls it surely had not begun, which are the caller's to place again.

        An async one hears of everything in order, so never of what was sent behind a PING that it has not answered.
        """
        found = self.take_back()
        if self._asked and not self.closed:
            last = self._asked[0][0]
            unheard = [stream for stream in self.exchanges if 0 < (stream - last) & 0xFFFFFFFF < 1 << 31]
            found += [self.exchanges.pop(stream) for stream in unheard]
        return found

    def _answered(self) -> None:
        was_silent = self.silent
        self.pongs += 1
        if self._asked:
            self._asked.popleft()
        if was_silent and not self.silent:
            self.owner.turned()

    def close(self) -> None:
        """Close the socket: the worker finishes what it is doing and exits."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self.queue is not None:
            self.queue.close()
        self._unsent.clear()

    def write(self, data: bytes) -> bool:
        """Send now what the socket takes, and the rest as it takes it; False when the worker is gone."""
        if self.closed:
            return False
        if self._unsent:
            self._unsent.append(memoryview(data))
            return True
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the reader finds the same, after what the worker still said
            return False
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._loop.add_writer(self._sock, self._writable)
        return True

    def _write_body(self, stream: int, body: tuple[bytes, ...]) -> None:
        for whole in body:
            view = memoryview(whole)
            while view:
                piece, view = view[: wire.PIECE], view[wire.PIECE :]
                prefix = wire.PREFIX.pack(len(piece), wire.BODY, 0, 0, stream)
                if self._unsent:  # no copy: the pieces are views of the body
                    self._unsent.extend((memoryview(prefix), piece))
                else:
                    self.write(prefix + piece)

    def _writable(self) -> None:
        try:
            while self._unsent:
                batch = [self._unsent[i] for i in range(min(16, len(self._unsent)))]
                sent = self._sock.sendmsg(batch)
                while sent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self._sock)

    def drain(self) -> None:
        """Take in what a worker that has ended still said."""
        while not self.closed and self._readable():
            pass

    def _readable(self) -> bool:
        """Take in what has arrived; whether there may be more."""
        try:
            data = self._receive(RECEIVE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.owner.broken(None)
            return False
        try:
            for kind, flags, stream, payload in self._reader.feed(data):
                self._handle(kind, flags, stream, payload)
        except wire.ProtocolError as error:
            self.owner.broken(ProtocolViolation(f"the function's process broke the wire protocol: {error}"))
        return True

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        exchange = self.exchanges.get(stream)
        if kind == wire.RESULT and exchange is not None:
            self._result(exchange, flags, payload)
        elif kind == wire.CHUNK and exchange is not None:
            exchange.chunk_received(payload)
        elif kind == wire.END and exchange is not None:
            exchange.ended()
            self._over(exchange, None)
        elif kind == wire.ERROR and exchange is not None:
            exchange.failed(refusal(exchange, payload))
            self._over(exchange, None)
        elif kind == wire.LOG:
            self.owner.printed(exchange, payload[0] if payload else 0, payload[1:].decode("utf-8", "replace"))
        elif kind == wire.PROGRESS:
            if exchange is not None and exchange.follower is not None:
                exchange.follower.progressed(*wire.parse_progress(payload))
        elif kind == wire.READY:
            self.owner.ready()
        elif kind == wire.PONG:
            self._answered()
        else:
            raise wire.ProtocolError(f"a frame of kind {kind} out of place")

    def _result(self, exchange: Exchange, flags: int, payload: bytes) -> None:
        if exchange.streaming:
            raise wire.ProtocolError("a second RESULT")
        status, micros, headers, body = wire.parse_result(payload)
        if headers not in self._good_headers:
            self._check_headers(headers)
        last = bool(flags & wire.LAST)
        if body and not last:
            raise wire.ProtocolError("a RESULT with part of a body")
        result = Result(status, headers, body, last, bool(flags & wire.FAILED), micros / 1e6)
        exchange.answered(result)
        if last:
            self._over(exchange, result)
        elif exchange.left:  # it turns out to be a stream, and nobody will read it
            self.cancel(exchange)

    def _check_headers(self, headers: bytes) -> None:
        """ProtocolError unless they can be put on a connection. The same ones come again and again."""
        if HEADERS.fullmatch(headers) is None:
            raise wire.ProtocolError("malformed headers in a RESULT")
        if len(self._good_headers) < KNOWN_HEADERS and len(headers) < 512:
            self._good_headers.add(headers)

    def _over(self, exchange: Exchange, result: Result | None) -> None:
        del self.exchanges[exchange.stream]
        self.owner.released(exchange, result)


def refusal(exchange: Exchange, payload: bytes) -> HostError:
    """The error in an ERROR frame: a refusal before the answer, a failed stream after its head."""
    try:
        if exchange.streaming:
            raised = msgspec.json.decode(payload, type=Envelope)
            return WorkerDied("the function raised while it was streaming its answer", details=raised.error)
        said = msgspec.json.decode(payload, type=Refusal)
    except (msgspec.MsgspecError, ValueError) as error:
        raise wire.ProtocolError("a malformed ERROR") from error
    return FunctionRefused(said.status, said.code, said.message, said.details)
