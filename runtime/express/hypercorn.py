"""Hypercorn's connection with an express way: the rest of it sees nothing of plain calls over HTTP/1.1.

Put in the place of hypercorn's own by `engines.py`. A request is plain when it has come whole, alone, and as nearly
every client writes it: `plain_request` knows those, and h11 all the others. A call that takes longer, or whose answer
is more than a few bytes, is given to hypercorn after all, as a request that has begun already (`Express.rest`).
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, NamedTuple

import h11
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol

from ..calls import Headers
from ..errors import HostError
from ..exchange import Exchange
from . import BEGUN, METHODS, Begun, Express, closing

REQUEST = re.compile(
    rb"(%s) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
    % "|".join(sorted(METHODS)).encode()
)
UNUSUAL = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})


class PlainRequest(NamedTuple):
    """What a plain request says. Names of headers are in lower case."""

    method: str
    target: bytes
    headers: Headers
    body: bytes


def plain_request(data: bytes) -> PlainRequest | None:
    """The request in these bytes, if they are one, whole, and it is plain (RFC 9112): less than h11 would take."""
    found = REQUEST.match(data)
    if found is None:
        return None
    headers: Headers = []
    hosts, length = 0, None
    for line in found[3][:-2].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 9:
                return None
            length = value
        elif name in UNUSUAL and (name != b"connection" or value.lower() != b"keep-alive"):
            return None
        headers.append((name, value))
    if hosts != 1 or found.end() + int(length or 0) != len(data):
        return None
    return PlainRequest(found[1].decode(), found[2], headers, data[found.end() :])


class Connection(TCPServer):
    """One connection of any protocol that hypercorn speaks."""

    def __init__(self, *arguments: Any, express: Express, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._express = express
        self._used_at = 0.0
        self._closing = False  # nothing that comes now is answered
        self._passed = asyncio.Event()  # not set while a call is on the express way
        self._passed.set()

    async def _read_data(self) -> None:
        while not self._is_over():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            if self._closing:
                break
            if not await self._pass(data):
                await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        await self.idle_task.stop()  # or a connection that its client has closed would be kept as long as an idle one

    def _is_over(self) -> bool:
        return self._closing or self.reader.at_eof()

    async def _pass(self, data: bytes) -> bool:
        """Answer the request in these bytes on the express way, if it may go there."""
        request = plain_request(data) if self._is_between_requests() else None
        if request is None:
            return False
        scheme = "https" if self.protocol.ssl else "http"
        self._passed.clear()
        try:
            begun = self._express.begin(*request, scheme, self.protocol.client)
            if begun is None:
                return False
            if isinstance(begun, Exchange):
                await self._answer(begun, data)
            else:
                await self._write(await begun)
        except HostError as error:  # it could not even begin
            await self._write(self._express.refusal(error, *request[:3]))
        finally:
            self._used_at = self.loop.time()
            self._passed.set()
        return True

    def _is_between_requests(self) -> bool:
        """Whether what comes now is the beginning of a request over HTTP/1.1."""
        protocol = self.protocol.protocol
        if not isinstance(protocol, H11Protocol) or protocol.stream is not None:
            return False
        parser = protocol.connection
        return parser.our_state is parser.their_state is h11.IDLE and not parser.trailing_data[0]

    async def _answer(self, exchange: Exchange, data: bytes) -> None:
        """The answer to a call that has begun with the request in these bytes."""
        answer: bytes | None = None
        given_away = False
        try:
            result = await exchange.soon()
            answer = self._express.answer(exchange, result) if result is not None else None
            if answer is None:
                given_away = True
                await self._go_on(exchange, data)
        except HostError as error:
            answer = self._express.failure(error, exchange)
        finally:
            if not given_away:
                exchange.__exit__()
        if answer is not None:
            await self._write(answer)

    async def _go_on(self, exchange: Exchange, data: bytes) -> None:
        """Have hypercorn read the request after all, and its application go on from here."""
        protocol: Any = self.protocol.protocol
        before = protocol.connection_state  # shared by all connections
        protocol.connection_state = {**before, BEGUN: Begun(exchange)}
        self._passed.set()  # it is hypercorn's now
        try:
            await self.protocol.handle(RawData(data))
        finally:
            protocol.connection_state = before

    async def _write(self, answer: bytes) -> None:
        if self._is_ending():
            self._closing, answer = True, closing(answer)
        try:
            self.writer.write(answer)
            await self.writer.drain()
        except (ConnectionError, RuntimeError):  # the client has gone, as reading finds too
            pass

    def _is_ending(self) -> bool:
        return self.context.terminated.is_set()

    async def _linger(self) -> None:
        """How long an idle connection is kept when the server ends."""

    async def _idle_timeout(self) -> None:
        """Close the connection once nothing has come for long, or the server ends; what is under way comes first."""
        self._used_at = self.loop.time()
        while not self._is_ending():
            left = self._used_at + self.config.keep_alive_timeout - self.loop.time()
            if left <= 0 and self._passed.is_set():
                break
            if left <= 0:
                await self._passed.wait()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.context.terminated.wait()
        if self._is_ending():
            await self._linger()
        while not self._passed.is_set():  # another request may have begun before we get to know of the last one's end
            await self._passed.wait()
        self._closing = True
        await asyncio.shield(self._initiate_server_close())
