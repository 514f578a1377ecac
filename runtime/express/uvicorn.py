"""Uvicorn's protocol for HTTP/1.1 with an express way: from the parser to the function and back, without a task.

Put in the place of uvicorn's own by `engines.py`; what is no plain call goes uvicorn's ordinary way. A `Passage` stands
where uvicorn has a `RequestResponseCycle`: pipelined requests, shutdown and a lost connection find there what they ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..calls import Result
from ..errors import HostError
from ..exchange import Exchange
from . import BEGUN, Arriving, Begun, Express, Recording, closing, path_of

NOT_HTTP = "Invalid HTTP request received."

log = logging.getLogger("spaces.call")


def protocol(express: Express) -> type[HttpToolsProtocol]:
    """The class of protocol for this express way."""
    return type("Protocol", (ExpressProtocol,), {"express": express})


class ExpressProtocol(HttpToolsProtocol):
    """One connection."""

    express: Express

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._passage: Passage | None = None
        self._pieces: list[bytes] | None = None  # of the body, as long as this may be a plain call
        self.idle_since: float | None = None  # None: something is to come, or to be answered

    # What the parser finds.

    def data_received(self, data: bytes) -> None:
        """Take in what the client sends. A request that is not whole by its end goes the ordinary way."""
        if self.transport.is_closing():
            return  # what TLS still had
        self._unset_keepalive_if_required()
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_on(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning(NOT_HTTP)
            self.send_400_response(NOT_HTTP)
        if self._pieces is not None and not self.transport.is_closing():
            try:
                self._go_ordinary_way(self._pieces)
            except (httptools.HttpParserError, ValueError, AttributeError):  # it has no path
                self.send_400_response(NOT_HTTP)

    def _read_on(self, rest: memoryview) -> None:
        """Go on after the head of a request to which the parser sees no end, as it asks for another protocol.

        No such thing is taken up, so it is an ordinary request (RFC 9110 section 7.8): a parser is told its head once
        more, without that wish. It is another one, as the first is at its end after `Connection: close`. What follows
        a CONNECT is the tunnel's, which there is not.
        """
        while self._asks_for_upgrade():
            before, self.parser = self.parser, httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            head = [b"%s %s HTTP/%s\r\n" % (before.get_method(), self.url, before.get_http_version().encode())]
            head += [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] != b"upgrade"]
            self.parser.feed_data(b"".join((*head, b"\r\n")))
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]

    def _asks_for_upgrade(self) -> bool:
        """Whether that is why the parser sees no end to the request; for a CONNECT it sees none in any case."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self._asks_for_upgrade():
            return  # it will come again: see `_read_on`
        self._pieces = []
        if self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete):
            self._go_ordinary_way([])

    def on_body(self, body: bytes) -> None:
        if self._pieces is not None:
            self._pieces.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        pieces = self._pieces
        if pieces is None:
            if not self._asks_for_upgrade():
                super().on_message_complete()
        elif not self._go_express(pieces):
            self._go_ordinary_way(pieces)
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What comes is no HTTP. Where a request before it waits for its answer, that is the last one."""
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
            return
        last = self.pipeline[0][0] if self.pipeline else self.cycle
        last.keep_alive = False

    def _go_ordinary_way(self, pieces: list[bytes]) -> None:
        self._pieces = None
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        for piece in pieces:
            super().on_body(piece)

    def _go_express(self, pieces: list[bytes]) -> bool:
        parser = self.parser
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return False
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        method = parser.get_method().decode("ascii")
        passage = Passage(self)
        try:
            begun = self.express.begin(method, self.url, self.headers, body, self.scheme or "http", self.client)
        except HostError as error:
            self._pieces, self.cycle = None, passage  # type: ignore[assignment]
            passage.finish(self.express.refusal(error, method, self.url, self.headers))
            return True
        if begun is None:
            return False
        self._pieces, self.cycle, self._passage = None, passage, passage  # type: ignore[assignment]
        if isinstance(begun, Exchange):
            passage.begin(begun)
        elif isinstance(begun, Arriving):
            begun.on_answer = passage.arrived
        else:
            passage.record(begun)
        return True

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin. What waits for its turn is bounded: uvicorn would read on whenever one of those has been answered."""
        super().connection_made(transport)
        resume = self.flow.resume_reading

        def resume_reading() -> None:
            if not self.pipeline:
                resume()

        setattr(self.flow, "resume_reading", resume_reading)  # noqa: B010 - mypy minds the assignment

    def connection_lost(self, exc: Exception | None) -> None:
        self._pieces = None
        if self._passage is not None:
            self._passage.leave()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is out: the next request is welcome, for as long as idle connections are kept."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.flow.resume_reading()
        self.server_state.total_requests += 1
        self.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._look_again_in(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """It is not idle. The timer goes on: one for each request would cost more than the rest of its reading."""
        self.idle_since = None

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.idle_since is None or self.transport.is_closing():
            return
        left = self.idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._look_again_in(left)

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


class Passage:
    """One call on the express way, from its request to its answer."""

    __slots__ = ("_cycle", "_exchange", "_protocol", "disconnected", "keep_alive", "response_complete")

    def __init__(self, protocol: ExpressProtocol) -> None:
        self._protocol = protocol
        self._exchange: Exchange | None = None
        self._cycle: RequestResponseCycle | None = None
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    def begin(self, exchange: Exchange) -> None:
        """Answer as soon as there is something to answer."""
        self._exchange = exchange
        exchange.on_news = self._look
        if exchange.outcome is not None:
            self._look()

    def record(self, recording: Recording) -> None:
        """Answer when the call is recorded; it is, also when the client has gone."""
        task: asyncio.Task[Any] = self._protocol.loop.create_task(recording)
        self._protocol.tasks.add(task)
        task.add_done_callback(self._recorded)

    def arrived(self, answer: bytes) -> None:
        """The call is recorded, and this is the answer."""
        if not self.response_complete:
            self._safely(lambda: self.finish(answer))

    def _recorded(self, task: asyncio.Task[Any]) -> None:
        self._protocol.tasks.discard(task)
        if not task.cancelled() and not self.response_complete:
            self._safely(lambda: self.finish(task.result()))

    def leave(self) -> None:
        """The client has gone."""
        if self._cycle is not None:
            self._cycle.disconnected = True
            self._cycle.message_event.set()
        elif not self.response_complete:
            self.response_complete = True
            if self._exchange is not None:
                self._protocol.express.abandoned(self._exchange)
                self._let_go()

    @property
    def message_event(self) -> Passage:
        """Uvicorn wakes a cycle by this; whoever runs a passage is never asleep."""
        return self

    def set(self) -> None:
        """See `message_event`."""

    def _look(self) -> None:
        """There is news of the call."""
        exchange = self._exchange
        if exchange is None or exchange.outcome is None:
            return
        outcome = exchange.outcome
        if isinstance(outcome, Result):
            self._safely(lambda: self._answer(exchange, outcome))
        else:  # later: whoever says so is in the middle of something
            exchange.on_news = None
            self._protocol.loop.call_soon(self._safely, lambda: self._fail(exchange, outcome))

    def _safely(self, answer: Callable[[], None]) -> None:
        """Where this fails, it is the end of this connection and of nothing else."""
        try:
            answer()
        except Exception:
            log.exception("a call could not be answered")
            self._protocol.transport.close()

    def _fail(self, exchange: Exchange, error: HostError) -> None:
        if not self.response_complete:
            self.finish(self._protocol.express.failure(error, exchange))

    def _answer(self, exchange: Exchange, result: Result) -> None:
        answer = self._protocol.express.answer(exchange, result)
        if answer is None:
            self._go_on(exchange)
        else:
            self.finish(answer)

    def finish(self, answer: bytes) -> None:
        """This is the answer."""
        protocol, self.response_complete = self._protocol, True
        protocol.transport.write(answer if self.keep_alive else closing(answer))
        if not self.keep_alive:
            protocol.transport.close()
        self._let_go()
        protocol.on_response_complete()

    def _let_go(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_news = None
            exchange.__exit__()

    def _go_on(self, exchange: Exchange) -> None:
        """Send what is more than a plain answer the ordinary way."""
        protocol, call = self._protocol, exchange.call
        self._exchange, exchange.on_news = None, None
        scope: Any = {
            "type": "http",
            "http_version": "1.1",
            "method": call.method.decode(),
            "path": path_of(call),
            "headers": [],
            "state": {BEGUN: Begun(exchange)},
        }
        cycle = self._cycle = RequestResponseCycle(
            scope=scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=False,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.keep_alive,
            on_response=protocol.on_response_complete,
        )
        cycle.more_body = False
        if cast(object, protocol.cycle) is self:
            protocol.cycle = cycle
        protocol._start_asgi_task(cycle, protocol.app)
