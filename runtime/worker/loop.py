"""A worker for sync handlers: read a call, run it, write the result; one call at a time, no event loop.

Run by `zygote.py` in a process of its own; the other end is `runtime/channel.py`. What a handler raises,
BaseException included, is caught here and in `aloop.py` and nowhere else.
"""

from __future__ import annotations

import atexit
from _thread import RLock
from collections import deque
from collections.abc import Iterator
from os import _exit, close, dup2, getpid
from select import POLLIN, poll
from socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, socket
from time import perf_counter_ns
from typing import Any

from . import answer, output, process, wire
from .context import CallInfo, Refused
from .handler import Handler

RECEIVE = 256 * 1024
#: A call with its headers and an inline body is smaller: see wire.MAX_CALL. Made before the first fork, so that a
#: worker has only as much of it to itself as it fills.
BUFFER = memoryview(bytearray(256 * 1024))

BURY_EVERY = 256  # calls
MAX_DEAD = 64  # children that have ended and that nobody waits for

Frame = tuple[int, int, int, bytes]


def serve(worker: SyncWorker) -> None:
    """Serve calls until the host closes both sockets; then run exit handlers and return."""
    worker.run()
    leave()


def leave() -> None:
    """What the handler registered with atexit runs; nothing else of the interpreter's shutdown does."""
    output.sink.send = None  # the channel is closed: what they print goes the other way
    atexit._run_exitfuncs()


def unconnected(handler: Handler) -> SyncWorker:
    """A worker without a host: made before the fork, so that in the child there is only `connect` left to do."""
    return SyncWorker(socket(AF_UNIX, SOCK_STREAM), socket(AF_UNIX, SOCK_SEQPACKET), handler)


def call_info(handler: Handler, call: wire.CallFrame, stream: int) -> CallInfo:
    """The handler's view of a call."""
    spec = handler.spec
    return CallInfo(
        call.call_id,
        spec["function_id"],
        spec["space"],
        spec["name"],
        call.method,
        call.path,
        call.query,
        call.headers,
        call.body,
        call.deadline,
        call.attempt,
        handler.max_body,
        call.schedule_id or None,
        call.scheduled_time if call.schedule_id else None,
        stream,
    )


def accepts_events(info: CallInfo) -> bool:
    """Whether the client asked for server-sent events."""
    return "text/event-stream" in info.headers.get("accept", "")


def refusal_frame(stream: int, refused: Refused) -> bytes:
    """An ERROR: the call could not be given to the handler."""
    body = {
        "status": refused.status,
        "code": refused.code,
        "message": refused.message,
        "details": refused.details,
    }
    return wire.frame(wire.ERROR, stream, answer.to_json(body))


def failed(handler: Handler, stream: int, error: BaseException) -> answer.Answer:
    """The answer to a call whose handler raised; its traceback goes to the log."""
    if issubclass(type(error), MemoryError) and handler.spec["memory"] is not None:
        _exit(process.EXIT_MEMORY)  # whatever else was going on in here cannot be trusted
    output.sink.emit(stream, 40, answer.traceback_text(error))
    return answer.failure(error, handler.entry, handler.debug)


class SyncWorker:
    """One process's end of the channel, for handlers without an event loop.

    Calls come by a queue of their own, a packet each: what is not taken out of it yet, the host may take back.
    """

    def __init__(self, sock: socket, queue: socket, handler: Handler) -> None:
        self.sock = sock
        self.queue = queue
        self.handler = handler
        self._send_lock: Any = RLock()
        self._unsent: deque[bytes] = deque()
        self._reader = wire.Reader()
        self._arrived: deque[Frame] = deque()  # read from the channel, not looked at yet
        self._credit = 0
        self._window = wire.WINDOW  # what the answer to the call begins with
        self._poll = poll()
        self._poll.register(sock, POLLIN)

    def connect(self, channel_fd: int, queue_fd: int) -> None:
        """Have these in place of its sockets; the descriptors are given away."""
        dup2(channel_fd, self.sock.fileno(), False)
        dup2(queue_fd, self.queue.fileno(), False)
        close(channel_fd)
        close(queue_fd)

    def run(self) -> None:
        """Until the host closes the socket."""
        output.attach(self._log, self._report, self.let_go)
        self._send(wire.frame(wire.READY, 0, wire.READY_HEAD.pack(wire.VERSION, getpid())))
        self.serve_queue()

    def serve_queue(self) -> None:
        """Run the calls in the queue, one after the other, until the host closes it."""
        packet = BUFFER
        while size := self.queue.recv_into(packet):
            _, _, flags, _, stream = wire.PREFIX.unpack_from(packet)
            self._window = wire.window(flags)
            call = wire.parse_call(bytes(packet[wire.PREFIX_SIZE : size]))
            self._serve(stream, call if len(call.body) == call.body_length else self._whole(call))
            if stream % BURY_EVERY == 0:
                process.bury(MAX_DEAD)

    def let_go(self) -> None:
        """In a child that the handler forked: the calls are not its own, and it ends when it wants to answer one."""
        self._send_lock = RLock()
        self.sock.close()
        self.queue.close()

    def _serve(self, stream: int, call: wire.CallFrame) -> None:
        output.sink.running = stream
        info = call_info(self.handler, call, stream)
        started = perf_counter_ns()
        flags = 0
        try:
            value = self.handler.call(info)
            result = answer.encode(value, self.handler.request_convention, self.handler.max_response)
            if isinstance(result, answer.Stream):
                self._stream(stream, result, info, started)
                return
        except Refused as refused:
            self._finish(stream, refusal_frame(stream, refused))
            return
        except BaseException as error:
            result, flags = failed(self.handler, stream, error), wire.FAILED
        micros = (perf_counter_ns() - started) // 1000
        if len(result.body) <= wire.INLINE:
            head = wire.result_frame(stream, result.status, micros, result.headers, result.body, flags | wire.LAST)
            self._finish(stream, head)
            return
        self._send(wire.result_frame(stream, result.status, micros, result.headers, flags=flags))
        self._credit = self._window
        self._send_pieces(stream, result.body)
        self._finish(stream, wire.frame(wire.END, stream))

    def _stream(self, stream: int, result: answer.Stream, info: CallInfo, started: int) -> None:
        """An answer as it is made: the head with the first item, then a chunk an item."""
        items: Iterator[Any] = iter(result.iterator)
        pending = answer.first_item(result, items)
        status, headers, encode = answer.stream_head(result, pending, accepts_events(info))
        micros = (perf_counter_ns() - started) // 1000
        self._send(wire.result_frame(stream, status, micros, headers, flags=0))
        self._credit = self._window
        end = wire.frame(wire.END, stream)
        try:
            while pending is not answer.NOTHING:
                if not self._send_pieces(stream, encode(pending)) or self._cancelled(stream):
                    break
                pending = next(items, answer.NOTHING)
        except BaseException as error:
            failure = failed(self.handler, stream, error)
            end = wire.frame(wire.ERROR, stream, failure.body)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                self._close(stream, close)
        self._finish(stream, end)

    def _close(self, stream: int, close: Any) -> None:
        try:
            close()
        except BaseException as error:  # raised by the generator's own clean-up: there is nobody to tell but the log
            failed(self.handler, stream, error)

    def _send_pieces(self, stream: int, data: bytes) -> bool:
        """CHUNKs within the credit; False when the client left."""
        view = memoryview(data)
        while view:
            while self._credit <= 0:
                if not self._wait_for_credit(stream):
                    return False
            size = wire.piece(self._credit)
            piece, view = view[:size], view[size:]
            self._credit -= len(piece)
            self._send(wire.frame(wire.CHUNK, stream, bytes(piece)))
        return True

    def _wait_for_credit(self, stream: int) -> bool:
        frame = self._read()
        if frame is None:
            leave()
            _exit(0)
        kind, _, of, payload = frame
        if kind == wire.CREDIT and of == stream:
            self._credit += wire.parse_u32(payload)
        return kind != wire.CANCEL or of != stream  # what is said of earlier calls means nothing any more

    def _cancelled(self, stream: int) -> bool:
        """Whether a CANCEL for this stream has arrived by now, without waiting."""
        while self._arrived or self._poll.poll(0):
            if not self._wait_for_credit(stream):
                return True
        return False

    def _whole(self, call: wire.CallFrame) -> wire.CallFrame:
        """The call with its body, which follows in frames of its own."""
        pieces, missing = [], call.body_length
        while missing > 0:
            frame = self._read()
            if frame is None:
                leave()
                _exit(0)
            if frame[0] == wire.BODY:
                pieces.append(frame[3])
                missing -= len(frame[3])
        return call._replace(body=b"".join(pieces))

    def _finish(self, stream: int, last: bytes) -> None:
        output.finish(stream)
        self._send(last)

    def _log(self, stream: int, level: int, text: bytes) -> None:
        self._post(wire.frame(wire.LOG, stream, bytes((min(level, 255),)) + text))

    def _report(self, stream: int, fraction: float, message: str) -> None:
        self._post(wire.progress_frame(stream, fraction, message))

    def _post(self, frame: bytes) -> None:
        if self._send_lock._is_owned():
            self._unsent.append(frame)  # by a signal handler or a finalizer that came in while this thread was sending
        else:
            self._send(frame)

    def _send(self, data: bytes) -> None:
        with self._send_lock:
            try:
                self.sock.sendall(data)
                while self._unsent:
                    self.sock.sendall(self._unsent.popleft())
            except BaseException:  # the host is gone, or a frame was cut by a signal handler that raised
                _exit(0)

    def _read(self) -> Frame | None:
        """The next frame from the socket; None when the host has closed it."""
        while not self._arrived:
            data = self.sock.recv(RECEIVE)
            if not data:
                return None
            self._arrived.extend(self._reader.feed(data))
        return self._arrived.popleft()
