"""Says when this process cannot open any more files: connections wait or are refused then, and nobody says why.

Run by `engines.py` beside an engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from typing import Any

import anyio

LOOK_EVERY = 5.0  # seconds
SPARE = 4  # so many are as good as none: each connection that is taken meanwhile has one for a moment

log = logging.getLogger("spaces.server")


class OpenFiles:
    """Tells once that there are too many, and again only when there were fewer in between."""

    def __init__(self) -> None:
        self._told = False

    async def watch(self) -> None:
        """For ever."""
        asyncio.get_running_loop().set_exception_handler(without_refusals)
        while True:
            await anyio.sleep(LOOK_EVERY)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self.look(open_files(limit), limit)

    def look(self, count: int, limit: int) -> None:
        """So many are open, and so many may be."""
        full = limit != resource.RLIM_INFINITY and count >= limit - SPARE
        if full and not self._told:
            log.error(
                "all of the %d files that this process may open are open, most of them connections: others have to wait"
                " or are refused until some are closed; to allow more, raise the limit (`ulimit -n`, LimitNOFILE= of a"
                " systemd unit), or serve with more --processes", limit,
            )  # fmt: skip
        self._told = full or (self._told and count >= limit * 0.9)


def open_files(limit: int) -> int:
    """How many files this process has open."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # to look, one has to be opened
        return limit


def without_refusals(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio does with what goes wrong in it, but for what we say once, and it says for each connection."""
    if context.get("message") != "socket.accept() out of system resource":
        loop.default_exception_handler(context)
