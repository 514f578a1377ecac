"""When calls are to be looked at again: one timer for all that are due within the same few milliseconds.

Used by `pool.py` for every call. A timer of the event loop for each of them, most of which are cancelled a
moment later, would cost more than anything else that the host does for a short call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .exchange import Exchange

log = logging.getLogger("spaces.host")

TICK = 0.02  # seconds: a call is looked at up to so much after it is due

Look = Callable[[Exchange], None]


class Deadlines:
    """Calls by the tick in which they are due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks: dict[int, list[tuple[Look, Exchange]]] = {}

    def add(self, due: float, look: Look, exchange: Exchange) -> None:
        """Call `look(exchange)` once the loop's clock is past `due`, also when the call is over by then."""
        tick = int(due / TICK) + 1
        waiting = self._ticks.get(tick)
        if waiting is None:
            waiting = self._ticks[tick] = []
            self._loop.call_at(tick * TICK, self._reached, tick)
        waiting.append((look, exchange))

    def _reached(self, tick: int) -> None:
        for look, exchange in self._ticks.pop(tick):
            try:
                look(exchange)
            except Exception:
                log.exception("a call could not be looked at")  # the others of this tick can
