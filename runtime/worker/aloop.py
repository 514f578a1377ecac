"""A worker for async handlers: one event loop, up to `concurrency` calls at once.

Run by `zygote.py` in a process of its own; the other end is `runtime/channel.py`. What both kinds of
worker do the same stands in `loop.py`.
"""

from __future__ import annotations

import asyncio
import threading
from os import _exit, getpid
from socket import socket
from time import perf_counter_ns
from typing import Any, NoReturn

from . import answer, loop, output, process, wire
from .context import CallInfo, Refused
from .handler import Handler

Frame = tuple[int, int, int, bytes]  # kind, flags, stream, payload


def serve(sock: socket, handler: Handler) -> None:
    """Serve calls until the host closes the socket; then cancel what runs, run exit handlers and return.

    When code of the handler's ends the event loop (a task of its own that exits, say), the process ends at once, and
    no call in it is answered: the host tells each how it ended, where an answer would say that it was cancelled.
    """
    with asyncio.Runner() as runner:
        try:
            runner.run(_serve(sock, handler))
        except BaseException as error:
            _end(error)
    loop.leave()


def _end(error: BaseException) -> NoReturn:
    """Log what ended the event loop, and exit with the status that it asks for."""
    status = 1
    try:
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            status = (error.code or 0) & 0xFF
        output.sink.emit(0, 40, answer.traceback_text(error))
    finally:
        _exit(status)


async def _serve(sock: socket, handler: Handler) -> None:
    running = asyncio.get_running_loop()
    worker = AsyncWorker(handler, running)
    await running.create_unix_connection(lambda: worker, sock=sock)
    output.attach(worker.log, worker.report, lambda: worker.let_go(sock))
    worker.send(wire.frame(wire.READY, 0, wire.READY_HEAD.pack(wire.VERSION, getpid())))
    await worker.closed.wait()


class AsyncWorker(asyncio.Protocol):
    """One process's end of the channel, for handlers on an event loop."""

    def __init__(self, handler: Handler, running: asyncio.AbstractEventLoop) -> None:
        self.handler = handler
        self.closed = asyncio.Event()
        self._loop = running
        self._thread = threading.get_ident()
        self._reader = wire.Reader()
        self._calls: dict[int, Exchange] = {}
        self._held: list[Frame] | None = None  # what came behind a PING whose PONG is not out yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)  # so that `resume_writing` says that everything is out
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        self._take(self._reader.feed(data))

    def resume_writing(self) -> None:
        if self._held is not None:
            frames, self._held = self._held, None
            self._transport.resume_reading()
            self._take(frames)

    def _take(self, frames: list[Frame]) -> None:
        """Do what they say, in order; what is behind a PING once its PONG is out, as the host relies on that."""
        for at, (kind, flags, stream, payload) in enumerate(frames, 1):
            exchange = self._calls.get(stream)
            if kind == wire.CALL:
                self._calls[stream] = Exchange(self, stream, wire.parse_call(payload), wire.window(flags))
            elif kind == wire.PING:
                self.send(wire.frame(wire.PONG, 0))
                if self._transport.get_write_buffer_size():
                    self._held = frames[at:]
                    self._transport.pause_reading()
                    return
            elif exchange is None:
                pass  # it was over before this frame was sent
            elif kind == wire.BODY:
                exchange.body_received(payload)
            elif kind == wire.CREDIT:
                exchange.credit_received(wire.parse_u32(payload))
            elif kind == wire.CANCEL:
                exchange.cancel()

    def send(self, data: bytes) -> None:
        """Queue a frame; from the loop's own thread."""
        self._transport.write(data)

    def log(self, stream: int, level: int, text: bytes) -> None:
        """Queue a LOG; from any thread."""
        self._post(wire.frame(wire.LOG, stream, bytes((min(level, 255),)) + text))

    def report(self, stream: int, fraction: float, message: str) -> None:
        """Queue a PROGRESS; from any thread."""
        self._post(wire.progress_frame(stream, fraction, message))

    def _post(self, frame: bytes) -> None:
        if threading.get_ident() == self._thread:
            self.send(frame)
        else:
            self._loop.call_soon_threadsafe(self.send, frame)

    def finish(self, stream: int, last: bytes) -> None:
        """The last frame of a call."""
        output.finish(stream)
        self._calls.pop(stream, None)
        self.send(last)
        if stream % loop.BURY_EVERY == 0:
            process.bury(loop.MAX_DEAD)

    def let_go(self, sock: socket) -> None:
        """In a child that the handler forked: the calls are not its own, and it ends when it wants to answer one."""
        sock.close()
        self._transport = Nowhere()


class Nowhere(asyncio.Transport):
    """What a forked child has for a channel."""

    def write(self, data: object) -> None:
        _exit(0)


class Exchange:
    """One call under way in this worker."""

    def __init__(self, worker: AsyncWorker, stream: int, call: wire.CallFrame, credit: int = wire.WINDOW) -> None:
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self._worker = worker
        self._stream = stream
        self._call = call
        self._pieces: list[bytes] = []
        self._missing = call.body_length - len(call.body)
        self._credit = credit
        self._granted = asyncio.Event()
        self._start_if_whole()

    def body_received(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._missing -= len(piece)
        self._start_if_whole()

    def credit_received(self, amount: int) -> None:
        self._credit += amount
        self._granted.set()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def _start_if_whole(self) -> None:
        if self._missing > 0:
            return
        if self.cancelled:
            self._worker.finish(self._stream, wire.frame(wire.END, self._stream))
            return
        if self._pieces:
            self._call = self._call._replace(body=b"".join(self._pieces))
            self._pieces.clear()
        self.task = self._worker._loop.create_task(self._run())

    async def _run(self) -> None:
        """The call from its arguments to its last frame; whatever happens, there is a last frame."""
        worker, stream, handler = self._worker, self._stream, self._worker.handler
        output.stream_of_call.set(stream)
        info = loop.call_info(handler, self._call, stream)
        started = perf_counter_ns()
        flags = 0
        try:
            value = handler.call(info)
            if handler.kind == "async":
                value = await value
            result = answer.encode(value, handler.request_convention, handler.max_response)
            if isinstance(result, answer.Stream):
                await self._send_stream(result, info, started)
                return
        except Refused as refused:
            worker.finish(stream, loop.refusal_frame(stream, refused))
            return
        except BaseException as error:
            if self.cancelled:
                worker.finish(stream, wire.frame(wire.END, stream))
                return
            result, flags = loop.failed(handler, stream, error), wire.FAILED
        micros = (perf_counter_ns() - started) // 1000
        if len(result.body) <= wire.INLINE:
            whole = wire.result_frame(stream, result.status, micros, result.headers, result.body, flags | wire.LAST)
            worker.finish(stream, whole)
            return
        worker.send(wire.result_frame(stream, result.status, micros, result.headers, flags=flags))
        await self._finish_long(result.body)

    async def _finish_long(self, body: bytes) -> None:
        try:
            await self._send_pieces(body)
        except asyncio.CancelledError:  # the client left
            pass
        self._worker.finish(self._stream, wire.frame(wire.END, self._stream))

    async def _send_stream(self, result: answer.Stream, info: CallInfo, started: int) -> None:
        """An answer as it is made: the head with the first item, then a chunk an item."""
        worker, stream = self._worker, self._stream
        items = _aiter(result.iterator)
        pending = await answer.first_item_async(result, items)
        status, headers, encode = answer.stream_head(result, pending, loop.accepts_events(info))
        micros = (perf_counter_ns() - started) // 1000
        worker.send(wire.result_frame(stream, status, micros, headers, flags=0))
        end = wire.frame(wire.END, stream)
        try:
            while pending is not answer.NOTHING:
                await self._send_pieces(encode(pending))
                pending = await anext(items, answer.NOTHING)
        except asyncio.CancelledError:  # the client left, or the deadline passed
            pass
        except BaseException as error:
            end = wire.frame(wire.ERROR, stream, loop.failed(worker.handler, stream, error).body)
        finally:
            await self._close(items)
        worker.finish(stream, end)

    async def _close(self, items: Any) -> None:
        close = getattr(items, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except BaseException as error:  # raised by the generator's own clean-up
            loop.failed(self._worker.handler, self._stream, error)

    async def _send_pieces(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            while self._credit <= 0:
                self._granted.clear()
                await self._granted.wait()
            size = wire.piece(self._credit)
            piece, view = view[:size], view[size:]
            self._credit -= len(piece)
            self._worker.send(wire.frame(wire.CHUNK, self._stream, bytes(piece)))


async def _aiter_of(iterator: Any) -> Any:
    for item in iterator:
        yield item


def _aiter(iterator: Any) -> Any:
    """An async iterator over what an async handler gave: its own, or a plain one it returned."""
    return aiter(iterator) if hasattr(iterator, "__aiter__") else _aiter_of(iterator)
