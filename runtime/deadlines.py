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
        self._ticks: dict[int, dict[Exchange, Look]] = {}

    def add(self, due: float, look: Look, exchange: Exchange) -> None:
        """Call `look(exchange)` once the loop's clock is past `due`, unless it is removed before."""
        tick = int(due / TICK) + 1
        waiting = self._ticks.get(tick)
        if waiting is None:
            waiting = self._ticks[tick] = {}
            self._loop.call_at(tick * TICK, self._reached, tick)
        waiting[exchange] = look
        exchange.due = waiting

    def remove(self, exchange: Exchange) -> None:
        """The call is over: let go of it at once, so that its memory serves the next one."""
        if exchange.due is not None:
            exchange.due.pop(exchange, None)

    def waiting(self) -> list[Exchange]:
        """All that are to be looked at: every call that is not over, nor past its deadline."""
        return [exchange for tick in self._ticks.values() for exchange in tick]

    def _reached(self, tick: int) -> None:
        for exchange, look in tuple(self._ticks.pop(tick).items()):
            try:
                look(exchange)
            except Exception:
                log.exception("a call could not be looked at")  # the others of this tick can
