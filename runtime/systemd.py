"""What systemd is told of the main process: that it serves, and that it lives, as long as its event loop goes round.

Used by `cli.py`, around `server.py` or `supervisor.py`. Nothing is told where systemd has not asked for it
(`Type=notify`, `WatchdogSec=`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

PATIENCE = 5.0  # seconds that systemd has to take the news that we serve; without them it would end us

T = TypeVar("T")
log = logging.getLogger("spaces.server")


def tell_ready() -> None:
    """Say that requests are taken."""
    with _voice() as sock:
        sock.settimeout(PATIENCE)
        _tell(sock, "READY=1")


async def watched(work: Callable[[], Awaitable[T]]) -> T:
    """Do this; meanwhile systemd hears twice in `WatchdogSec` that the event loop goes round.

    Also when no more files can be opened, which is no reason to end the process.
    """
    loop = asyncio.get_running_loop()
    seconds = _seconds(os.environ)
    timer: asyncio.TimerHandle | None = None
    with _voice() as sock:
        sock.setblocking(False)

        def beat(every: float) -> None:
            nonlocal timer
            _tell(sock, "WATCHDOG=1")
            timer = loop.call_later(every, beat, every)

        if seconds is not None:
            beat(seconds / 2)
        try:
            return await work()
        finally:
            if timer is not None:
                timer.cancel()


def _seconds(environ: Mapping[str, str]) -> float | None:
    """After how long a silence systemd takes this very process to hang, if it does."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isdecimal() and int(text) else None


def _voice() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _tell(sock: socket.socket, words: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        sock.sendto(words.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", words, error)
