"""The server: a listening socket, an engine on it, signals, and the order in which everything ends.

Started by `cli.py`, or as one of several by `member.py`; runs `app.py` around a `host.py`. On SIGTERM or SIGINT it
stops listening, lets what runs finish within `drain_timeout`, ends every child, and returns; a second signal ends
the waiting.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import logging
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread

from .app import App
from .authority import is_guarded
from .config import Config, ServerSettings, is_loopback, parse_bind
from .engines import BACKLOG, ENGINES, LAST_WORDS, Application, Ending, Farewell
from .errors import ConfigError
from .express import Express
from .host import Host
from .link import Link
from .request import hurry_bodies
from .triggers import TRIGGERS
from .whereabouts import told

UNSENT = 256 * 1024  # bytes that the kernel takes for a client ahead of sending; by itself it takes four megabytes
QUIC_FLUSH = 0.5  # seconds in which the end of the last answers over HTTP/3 must have reached their clients
LINGER = 2.0  # seconds in which a request must have come on a connection that was made just before its host left

log = logging.getLogger("spaces.server")


def listen(settings: ServerSettings, *, exposed: bool, count: int = 1) -> list[socket.socket]:
    """The listening sockets, all on one address; ConfigError when it cannot be had, or may not be had.

    `exposed`: it may be where other machines reach it, since there are tokens, or `--open` says so.
    """
    host, port = parse_bind(settings.bind)
    if not exposed and not is_loopback(host):
        raise ConfigError(
            f"{settings.bind} can be reached from other machines, and there are no tokens: anybody who reaches "
            "it could run these functions. Bind to 127.0.0.1, or set `tokens` in spaces.toml, or say --open if "
            "something in front checks who calls"
        )
    socks: list[socket.socket] = []
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socks.append(_bound(family, (host, port), shared=count > 1))
        if count > 1:
            address = socks[0].getsockname()[:2]
            socks.extend(
                socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True) for _ in range(count)
            )
            socks.pop(0).close()  # on a port of chance, it could not listen again once it was told to stop
    except OSError as error:
        for sock in socks:
            sock.close()
        number = error.errno or 0  # negative: from the resolver, which has words of its own
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        elsewhere = "; `--bind HOST:PORT` chooses another port, 0 a free one" if number == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {settings.bind}: {reason}{elsewhere}") from error
    for sock in socks:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)  # its connections inherit it
    return socks


def _bound(family: int, address: tuple[str, int], *, shared: bool) -> socket.socket:
    """A listening socket that nobody else has; `shared` with those that are bound with `reuse_port` from now on."""
    if not shared:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as `create_server` does
        sock.bind(address)  # before it is shared: the port of another host must not be shared with it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def endings() -> Sequence[signal.Signals]:
    """The signals that mean an end in good order; a terminal that closes, too, unless that is to be outlived."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup(1)
    return (signal.SIGTERM, signal.SIGINT) if outlives else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def require(settings: ServerSettings) -> None:
    """ConfigError when something that the settings ask for is not installed, or the certificate is no good."""
    for wanted, module, extra in (
        ('engine = "uvicorn"', "uvicorn" if settings.engine == "uvicorn" else None, "fast"),
        ("http3 = true", "aioquic" if settings.http3 else None, "h3"),
        ("issuer", "cryptography" if settings.issuer else None, "oidc"),
    ):
        if module is not None and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{wanted} needs an extra: {_installer()} '.[{extra}]', in the folder that spaces was installed from"
            )
    if settings.certfile and settings.keyfile:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: "")
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"certfile {settings.certfile} with keyfile {settings.keyfile}: {reason}") from error


def _installer() -> str:
    """The command that installs into the environment we run in; one that uv has made has no pip."""
    has_pip = importlib.util.find_spec("pip") is not None
    return f"{sys.executable} -m pip install" if has_pip else f"uv pip install --python {sys.executable}"


def url_of(sock: socket.socket, settings: ServerSettings) -> str:
    """Where a client finds it."""
    host, port = sock.getsockname()[:2]
    return f"{'https' if settings.certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(config: Config, *, dev: bool, exposed: bool, announce: Callable[[Host, str], None]) -> None:
    """Serve until told to end. `announce` is called once calls can be taken, with the address."""
    require(config.server)
    [sock] = listen(config.server, exposed=exposed or is_guarded(config))
    with sock, told(config.server.state, url_of(sock, config.server)):
        host = Host(config, debug=dev, durable=True)
        await serve_on(sock, host, exposed=exposed, announce=announce)
    log.info("ended")


async def serve_on(
    sock: socket.socket,
    host: Host,
    *,
    exposed: bool,
    announce: Callable[[Host, str], None],
    link: Link | None = None,
) -> None:
    """Serve on a listening socket until told to end, by signals or over the link."""
    settings, url = host.config.server, url_of(sock, host.config.server)
    host.bound_to_loopback = is_loopback(parse_bind(settings.bind)[0])
    host.exposed, host.url = exposed, url
    await anyio.to_thread.run_sync(host.authority.prepare)
    departure = Departure(link)
    async with AsyncExitStack() as scopes:
        if link is not None:
            await scopes.enter_async_context(link)
        await scopes.enter_async_context(host)
        calm_collector()
        app = App(host, log_calls=host.debug or settings.access_log)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(departure.await_signals)
            tasks.start_soon(hurry_bodies)
            for trigger in TRIGGERS:
                tasks.start_soon(trigger(host).run, host.submit)
            announce(host, url)
            async with anyio.create_task_group() as serving:  # in a task of its own: hypercorn leaves it cancelled
                ended = anyio.Event()
                application = departure.told_to_clients(app, app.express)
                serving.start_soon(_run, application, app.express, settings, sock, departure.ending, ended)
                try:
                    await departure.ending.stop.wait()
                    host.stopping = True
                    host.pause()
                    await _finish(host, settings, ended, departure.patience)
                finally:
                    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what is cut now has nothing to add
                serving.cancel_scope.cancel()
            tasks.cancel_scope.cancel()


class Departure:
    """How a host is told to end: by signals, and where it is one of several, by its supervisor.

    A signal to one of several is a wish to be replaced: its clients are told to make new connections, and it stops
    listening when another listens in its place.
    """

    def __init__(self, link: Link | None) -> None:
        self.ending = Ending()
        self.patience = anyio.CancelScope()  # of those who wait for what runs
        self._link = link
        self._farewell: Farewell | None = None
        self._leaving = False
        if link is not None:
            link.on_word = self._told

    def told_to_clients(self, app: Application, express: Express) -> Application:
        """The application that says so to clients."""
        if self._link is None:
            return app
        self._farewell = Farewell(app, express)
        return self._farewell

    async def await_signals(self) -> None:
        """Until the second one."""
        with anyio.open_signal_receiver(*endings()) as signals:
            async for number in signals:
                if self.ending.stop.is_set() or self._leaving:
                    log.warning("%s again: ending now", number.name)
                    self._now()
                    return
                if self._link is None:
                    log.info("%s: finishing what runs", number.name)
                    self.ending.stop.set()
                else:
                    log.info("%s: finishing what runs, as soon as another takes its place", number.name)
                    self._leave(self._link)

    def _leave(self, link: Link) -> None:
        self._leaving = True
        if self._farewell is not None:
            self._farewell.begin()
        link.say("leaving")

    def _told(self, word: str) -> None:
        if word == "now":
            self._now()
        elif word == "replaced":
            self.ending.linger = LINGER
        elif word == "lost" and not self.ending.stop.is_set():
            log.error("the supervisor is gone: finishing what runs")
        self.ending.stop.set()

    def _now(self) -> None:
        self.patience.cancel()
        self.ending.stop.set()


async def _run(
    app: Application,
    express: Express,
    settings: ServerSettings,
    sock: socket.socket,
    ending: Ending,
    ended: anyio.Event,
) -> None:
    try:
        await ENGINES[settings.engine](app, express, settings, sock, ending)
    finally:
        ending.stop.set()
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
