"""The server: a listening socket, an engine on it, signals, and the order in which everything ends.

Started by `cli.py`; runs `app.py` around a `host.py`. On SIGTERM or SIGINT it stops listening, lets what runs
finish within `drain_timeout`, ends every child, and returns; a second signal ends the waiting.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.to_thread
import hypercorn.asyncio
import hypercorn.config

from .app import App
from .authority import is_guarded
from .config import Config, ServerSettings, is_loopback, parse_bind
from .errors import ConfigError
from .host import Host
from .protocols import mend_http2, mend_http3
from .triggers import TRIGGERS
from .whereabouts import told

BACKLOG = 2048
MAX_HEAD = 256 * 1024  # bytes of a request's head that are read at all; the host refuses much smaller ones in words
QUIC_FLUSH = 0.5  # seconds in which the end of the last answers over HTTP/3 must have reached their clients
LAST_WORDS = 1.0  # seconds in which clients whose calls are cut must have been told so
KEEP_ALIVE = 75.0  # seconds that an idle connection is kept: longer than the usual proxy keeps its end

log = logging.getLogger("spaces.server")

Engine = Callable[[App, ServerSettings, socket.socket, anyio.Event], Coroutine[Any, Any, None]]


def listen(settings: ServerSettings, *, exposed: bool) -> socket.socket:
    """The listening socket; ConfigError when it cannot be had, or may not be had.

    `exposed`: it may be where other machines reach it, since there are tokens, or `--open` says so.
    """
    host, port = parse_bind(settings.bind)
    if not exposed and not is_loopback(host):
        raise ConfigError(
            f"{settings.bind} can be reached from other machines, and there are no tokens: anybody who reaches "
            "it could run these functions. Bind to 127.0.0.1, or set `tokens` in spaces.toml, or say --open if "
            "something in front checks who calls"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        number = error.errno or 0  # negative: from the resolver, which has words of its own
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ConfigError(f"cannot listen on {settings.bind}: {reason}") from error
    sock.setblocking(False)
    return sock


def require(settings: ServerSettings) -> None:
    """ConfigError when something that the settings ask for is not installed, or the certificate is no good."""
    for wanted, module, extra in (
        ('engine = "uvicorn"', "uvicorn" if settings.engine == "uvicorn" else None, "fast"),
        ("http3 = true", "aioquic" if settings.http3 else None, "h3"),
        ("issuer", "cryptography" if settings.issuer else None, "oidc"),
    ):
        if module is not None and importlib.util.find_spec(module) is None:
            raise ConfigError(f'{wanted} needs an extra: pip install "spaces-runtime[{extra}]"')
    if settings.certfile and settings.keyfile:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: "")
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"certfile {settings.certfile} with keyfile {settings.keyfile}: {reason}") from error


def url_of(sock: socket.socket, settings: ServerSettings) -> str:
    """Where a client finds it."""
    host, port = sock.getsockname()[:2]
    return f"{'https' if settings.certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(config: Config, *, dev: bool, exposed: bool, announce: Callable[[Host, str], None]) -> None:
    """Serve until told to end. `announce` is called once calls can be taken, with the address."""
    engine = ENGINES[config.server.engine]
    require(config.server)
    may_listen = exposed or is_guarded(config)
    with listen(config.server, exposed=may_listen) as sock, told(config.server.state, url_of(sock, config.server)):
        host = Host(config, debug=dev, durable=True)
        host.bound_to_loopback = is_loopback(parse_bind(config.server.bind)[0])
        host.exposed = exposed
        host.url = url_of(sock, config.server)
        await anyio.to_thread.run_sync(host.authority.prepare)
        async with host:
            calm_collector()
            stop, patience = anyio.Event(), anyio.CancelScope()
            app = App(host, log_calls=dev or config.server.access_log)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_await_signals, stop, patience)
                for trigger in TRIGGERS:
                    tasks.start_soon(trigger(host).run, host.submit)
                announce(host, url_of(sock, config.server))
                async with anyio.create_task_group() as serving:  # in a task of its own: hypercorn leaves it cancelled
                    ended = anyio.Event()
                    serving.start_soon(_run, engine, app, config.server, sock, stop, ended)
                    try:
                        await stop.wait()
                        host.stopping = True
                        host.pause()
                        await _finish(host, config.server, ended, patience)
                    finally:
                        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what is cut now has nothing to add
                    serving.cancel_scope.cancel()
                tasks.cancel_scope.cancel()
    log.info("ended")


async def _run(
    engine: Engine, app: App, settings: ServerSettings, sock: socket.socket, stop: anyio.Event, ended: anyio.Event
) -> None:
    try:
        await engine(app, settings, sock, stop)
    except asyncio.InvalidStateError:  # from Hypercorn, when it is cancelled before its connections have ended
        if not stop.is_set():
            raise
    finally:
        stop.set()
        ended.set()


async def _finish(host: Host, settings: ServerSettings, ended: anyio.Event, patience: anyio.CancelScope) -> None:
    """Wait for the engine, which has stopped listening, and for the calls, within `drain_timeout`; cut the others."""
    patience.deadline = anyio.current_time() + settings.drain_timeout
    with patience:
        if not settings.http3:  # whose endpoint never ends by itself
            await ended.wait()
        await host.drain(math.inf)
        if settings.http3:
            await anyio.sleep(QUIC_FLUSH)
    if await host.drain(0):
        return
    log.warning("calls still run: they are cut (drain_timeout is %g s)", settings.drain_timeout)
    host.cut()
    with anyio.move_on_after(LAST_WORDS):
        await ended.wait()


def calm_collector() -> None:
    """A call leaves next to nothing to the garbage collector: let it look less often, and not at what stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


async def _await_signals(stop: anyio.Event, patience: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if stop.is_set():
                log.warning("%s again: ending now", number.name)
                patience.cancel()
                return
            log.info("%s: finishing what runs", number.name)
            stop.set()


async def hypercorn_engine(app: App, settings: ServerSettings, sock: socket.socket, stop: anyio.Event) -> None:
    """HTTP/1.1, HTTP/2 (also h2c), with `http3` HTTP/3, with a certificate TLS."""
    mend_http2()
    config = hypercorn.config.Config()
    address, port = sock.getsockname()[:2]
    config.bind = [f"fd://{sock.detach()}"]  # it closes what it is given
    config.certfile = str(settings.certfile) if settings.certfile else None
    config.keyfile = str(settings.keyfile) if settings.keyfile else None
    if settings.http3:
        mend_http3()
        config.quic_bind = [f"{f'[{address}]' if ':' in address else address}:{port}"]
    config.graceful_timeout = settings.drain_timeout + 2 * LAST_WORDS  # _finish cuts it before
    config.keep_alive_timeout = KEEP_ALIVE
    config.h11_max_incomplete_size = MAX_HEAD
    config.include_server_header = False
    config.include_date_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]


async def uvicorn_engine(app: App, settings: ServerSettings, sock: socket.socket, stop: anyio.Event) -> None:
    """HTTP/1.1 parsed in C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(KEEP_ALIVE),
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )
    server = uvicorn.Server(config)
    setattr(server, "capture_signals", nullcontext)  # noqa: B010 - signals are ours

    async def stop_server() -> None:
        await stop.wait()
        server.should_exit = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_server)
        await server.serve(sockets=[sock])
        tasks.cancel_scope.cancel()


ENGINES: dict[str, Engine] = {"hypercorn": hypercorn_engine, "uvicorn": uvicorn_engine}
