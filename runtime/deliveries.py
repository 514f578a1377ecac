"""Takes outcomes to their callbacks: claims due deliveries from the journal, has them made, notes what came of it.

Run by `host.py` beside `dispatcher.py`; `callbacks.py` makes one delivery.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import time

import anyio

from .callbacks import Again, Dead, Delivered
from .calls import Delivery
from .errors import JournalError
from .journal import Journal

AT_ONCE = 128  # deliveries under way
LOOK_EVERY = 1.0  # seconds: what other hosts leave behind is seen by then
RESPITE = 1.0  # seconds after the journal has failed

log = logging.getLogger("spaces.callbacks")


class Deliveries:
    """Guarantee: a pending callback is tried until it has arrived or is given up, by this host or the next one."""

    def __init__(self, journal: Journal, deliver: Callable[[Delivery], Awaitable[Delivered | Again | Dead]]) -> None:
        self._journal = journal
        self._deliver = deliver
        self._under_way: set[int] = set()
        self._wake = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether something is being delivered right now."""
        return bool(self._under_way)

    def wake(self) -> None:
        """There may be something to deliver."""
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._wake = anyio.Event()
                patience = LOOK_EVERY
                try:
                    for delivery in await self._journal.claim_deliveries(AT_ONCE - len(self._under_way)):
                        self._under_way.add(delivery.entry.id)
                        tasks.start_soon(self._one, delivery)
                    due = await self._journal.next_due()
                    patience = LOOK_EVERY if due is None else max(0.0, min(LOOK_EVERY, due - time()))
                except JournalError:  # the dispatcher says so
                    pass
                if len(self._under_way) >= AT_ONCE or patience == 0:
                    patience = LOOK_EVERY
                with anyio.move_on_after(patience):
                    await self._wake.wait()

    async def _one(self, delivery: Delivery) -> None:
        id = delivery.entry.id
        try:
            found = await self._deliver(delivery)
        except Exception as error:
            log.exception("the callback of call %d failed in the host", id)
            found = Again(time() + LOOK_EVERY * 60, f"failed in the host: {error!r}"[:200])
        try:
            await self._note(id, found)
        finally:
            self._under_way.discard(id)
            self.wake()

    async def _note(self, id: int, found: Delivered | Again | Dead) -> None:
        while True:
            try:
                match found:
                    case Delivered():
                        return await self._journal.delivered(id)
                    case Again(at=at, error=error):
                        await self._journal.redeliver(id, at, error)
                        return None
                    case Dead(error=error):
                        return await self._journal.give_up(id, error)
            except JournalError:
                await anyio.sleep(RESPITE)
