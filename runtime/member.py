"""One of several host processes on one address: what `supervisor.py` starts as a process of its own.

Its seat comes as an argument, its configuration pickled on standard input, which nobody but the supervisor writes.
Runs `server.py` with the link to its siblings.
"""

from __future__ import annotations

import faulthandler
import logging
import pickle
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import anyio
import msgspec

from .config import Config
from .errors import ConfigError
from .host import Host
from .link import Link
from .logs import logging_to
from .server import require, serve_on
from .share import Share
from .worker.output import STACK_SIGNAL

PACKAGE = Path(__file__).parent
#: Imports this very package, whatever else is of its name in the current folder or is installed.
BOOT = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runtime", sys.argv[1] + "/__init__.py")
sys.modules["runtime"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from runtime.member import main
sys.exit(main(sys.argv[2]))
"""
log = logging.getLogger("spaces.server")

NOTICED_BY_ALL = ("spaces.host", "spaces.loader")  # what they log, every member sees happen


class Seat(msgspec.Struct, frozen=True):
    """What a member is given: its share of the limits, and file descriptors."""

    share: Share
    exposed: bool
    sock: int
    line: int
    doors: int
    faults: int
    log_lock: int


def command(seat: Seat) -> list[str]:
    """The command that starts a member."""
    return [sys.executable, "-P", "-c", BOOT, str(PACKAGE), msgspec.json.encode(seat).decode()]


def pickled(config: Config) -> bytes:
    """The configuration as a member reads it."""
    return pickle.dumps(config)


def main(argument: str) -> int:
    """Serve until told to end; the exit status."""
    seat = msgspec.json.decode(argument, type=Seat)
    tell_faults(seat.faults)
    config: Config = pickle.load(sys.stdin.buffer)
    with logging_to(console=False, lock=seat.log_lock):
        if seat.share.index:
            for name in NOTICED_BY_ALL:
                logging.getLogger(name).addFilter(_is_unexpected)
        try:
            anyio.run(partial(_serve, seat, config), backend_options={"use_uvloop": find_spec("uvloop") is not None})
        except ConfigError as error:
            log.error("%s", error.message)
            return 2
    return 0


def tell_faults(file: int) -> None:
    """Where this process is, in every thread, is written there when it crashes, or on `STACK_SIGNAL`."""
    faulthandler.enable(file)
    faulthandler.register(STACK_SIGNAL, file)


async def _serve(seat: Seat, config: Config) -> None:
    require(config.server)  # what it names may have gone since
    link = Link(seat.share, socket.socket(fileno=seat.line), socket.socket(fileno=seat.doors))
    host = Host(config, durable=True, link=link)
    host.on_change.append(_told_of_changes(host, link))
    with socket.socket(fileno=seat.sock) as sock:
        sock.setblocking(False)
        await serve_on(sock, host, exposed=seat.exposed, announce=partial(_announce, link), link=link)


def _announce(link: Link, host: Host, url: str) -> None:
    link.say("ready", str(len(host.registry.functions)).encode())


def _told_of_changes(host: Host, link: Link) -> Callable[[], None]:
    """Tells the supervisor of new settings, so that whoever replaces this member begins with them."""
    known = host.config

    def tell() -> None:
        nonlocal known
        if host.config != known:
            known = host.config
            link.say("config", pickled(known))

    return tell


def _is_unexpected(record: logging.LogRecord) -> bool:
    return record.exc_info is not None
