"""The two engines: what speaks HTTP on a listening socket and calls the application.

Run by `server.py`, which tells them when to end by an `Ending`. Neither knows the other, and `app.py` knows none.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import anyio
import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.config
from hypercorn.asyncio.tcp_server import TCPServer
from starlette.types import Message, Receive, Scope, Send

from .config import ServerSettings
from .express import Express
from .express.hypercorn import Connection
from .openfiles import OpenFiles
from .protocols import Http2, mend_protocols
from .stragglers import Stragglers, Stream

MAX_HEAD = 256 * 1024  # bytes of a request's head that are read at all; the host refuses much smaller ones in words
LAST_WORDS = 1.0  # seconds in which clients whose calls are cut must have been told so
BACKLOG = 2048  # connections that wait to be accepted: with more at once, clients try again a second later
KEEP_ALIVE = 75.0  # seconds that an idle connection is kept: longer than the usual proxy keeps its end
TICK = 0.05  # seconds between looks at whether connections are left
CLOSE = (b"connection", b"close")


class Ending:
    """How an engine ends: it stops listening when `stop` is set, and answers what it has begun to read.

    `linger`: seconds for which it then still takes a request on a connection that it has accepted.
    """

    def __init__(self) -> None:
        self.stop = anyio.Event()
        self.linger = 0.0


Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Engine = Callable[[Application, Express, ServerSettings, socket.socket, Ending], Coroutine[Any, Any, None]]


class Farewell:
    """An application whose answers tell clients, from `begin` on, to make another connection for the next request.

    HTTP/1 only: other versions have no such header. Nothing goes the express way then.
    """

    def __init__(self, app: Application, express: Express) -> None:
        self._app, self._express = app, express
        self._begun = False

    def begin(self) -> None:
        """From now on."""
        self._begun = True
        self._express.open = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if not self._begun or not scope.get("http_version", "").startswith("1"):
            return self._app(scope, receive, send)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*kept, CLOSE]}
            await send(message)

        return self._app(scope, receive, sending)


async def hypercorn_engine(
    app: Application, express: Express, settings: ServerSettings, sock: socket.socket, ending: Ending
) -> None:
    """HTTP/1.1, HTTP/2 (also h2c), with `http3` HTTP/3, with a certificate TLS."""
    mend_protocols()
    connections: set[TCPServer] = set()
    _mend_connections(express, ending, connections)
    config = hypercorn.config.Config()
    address, port = sock.getsockname()[:2]
    config.bind = [f"fd://{sock.detach()}"]  # it closes what it is given
    config.certfile = str(settings.certfile) if settings.certfile else None
    config.keyfile = str(settings.keyfile) if settings.keyfile else None
    if settings.http3:
        from .http3 import mend_http3

        mend_http3()
        config.quic_bind = [f"{f'[{address}]' if ':' in address else address}:{port}"]
    config.graceful_timeout = settings.drain_timeout + 2 * LAST_WORDS  # the server cuts it before
    config.keep_alive_timeout = KEEP_ALIVE
    config.backlog = BACKLOG  # it calls `listen` once more
    config.h11_max_incomplete_size = MAX_HEAD
    config.keep_alive_max_requests = sys.maxsize
    config.include_server_header = False
    config.include_date_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    stragglers = Stragglers(connections, lambda each: each.writer.transport, streams=_held_up)

    async def serve() -> None:
        try:
            await hypercorn.asyncio.serve(app, config, shutdown_trigger=ending.stop.wait, mode="asgi")  # type: ignore[arg-type]
        except asyncio.InvalidStateError:  # when it is cancelled before its connections have ended
            if not ending.stop.is_set():
                raise
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stragglers.watch)
        tasks.start_soon(OpenFiles().watch)
        tasks.start_soon(serve)  # in a task of its own: it is left cancelled


def _held_up(connection: TCPServer) -> Iterable[Stream]:
    """The streams of a connection of HTTP/2 that wait for its client."""
    inner = getattr(connection, "protocol", None)
    http = getattr(inner, "protocol", None)
    return http.held_up() if isinstance(http, Http2) else ()


def _mend_connections(express: Express, ending: Ending, connections: set[TCPServer]) -> None:
    """Have Hypercorn leave idle connections of HTTP/1 open for `linger`, where it would close them at once.

    Each is in `connections` as long as it is open.
    """

    class Lingering(Connection):
        async def run(self) -> None:
            connections.add(self)
            try:
                await super().run()
            finally:
                connections.discard(self)

        async def _linger(self) -> None:
            if ending.linger and not isinstance(self.protocol.protocol, Http2):
                await asyncio.sleep(ending.linger)  # a request that comes meanwhile cancels this

    setattr(hypercorn.asyncio.run, "TCPServer", partial(Lingering, express=express))  # noqa: B010 - mypy minds the assignment


async def uvicorn_engine(
    app: Application, express: Express, settings: ServerSettings, sock: socket.socket, ending: Ending
) -> None:
    """HTTP/1.1 parsed in C."""
    import uvicorn

    from .express.uvicorn import protocol

    class Lingering(uvicorn.Server):
        async def main_loop(self) -> None:
            """Until the end, without looking for it ten times a second."""
            await self.on_tick(0)  # for the headers that it gives to answers
            await ending.stop.wait()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for server in self.servers:
                server.close()
            with anyio.move_on_after(ending.linger):
                while self.server_state.connections:
                    await anyio.sleep(TICK)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=protocol(express),
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(KEEP_ALIVE),
        backlog=BACKLOG,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )
    server = Lingering(config)
    stragglers = Stragglers(
        server.server_state.connections, lambda each: each.transport, _awaited_head, head_time=KEEP_ALIVE
    )
    setattr(server, "capture_signals", nullcontext)  # noqa: B010 - signals are ours

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stragglers.watch)
        tasks.start_soon(OpenFiles().watch)
        await server.serve(sockets=[sock])
        tasks.cancel_scope.cancel()


def _awaited_head(connection: Any) -> object:
    """What came before the head that Uvicorn waits for without a timer; None when it does not."""
    cycle = connection.cycle
    waits = (cycle is None or cycle.response_complete) and connection.idle_since is None
    return (cycle,) if waits else None


ENGINES: dict[str, Engine] = {"hypercorn": hypercorn_engine, "uvicorn": uvicorn_engine}
