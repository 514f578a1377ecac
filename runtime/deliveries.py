"""Takes outcomes to their callbacks: claims due deliveries from the journal, has them made, notes what came of it.

Run by `host.py` beside `dispatcher.py`; `callbacks.py` makes one delivery.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import time

import anyio
from anyio.abc import TaskGroup

from .callbacks import Again, Dead, Delivered
from .calls import Delivery
from .errors import JournalError
from .journal import Journal

AT_ONCE = 128  # deliveries under way
OF_EACH = 32  # of these, of one function: its receiver may hang, and others' do not
LOOK_EVERY = 1.0  # seconds: what other hosts leave behind is seen by then
RESPITE = 1.0  # seconds after the journal has failed
LAST_WORDS = 2.0  # seconds for what is to be noted while the host ends
AFTER_FAILURE = 60.0  # seconds until a delivery is tried again that failed in the host
MOST_FAILURES = 8  # such a delivery is given up at this attempt

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
                    for delivery in await self._journal.claim_deliveries(AT_ONCE - len(self._under_way), OF_EACH):
                        self._begin(tasks, delivery)
                    due = await self._journal.next_due()
                    patience = LOOK_EVERY if due is None else max(0.0, min(LOOK_EVERY, due - time()))
                except JournalError:  # the dispatcher says so
                    pass
                if len(self._under_way) >= AT_ONCE or patience == 0:
                    patience = LOOK_EVERY
                with anyio.move_on_after(patience):
                    await self._wake.wait()

    def _begin(self, tasks: TaskGroup, delivery: Delivery) -> None:
        id = delivery.entry.id
        if id not in self._under_way:  # or else it was asked for again meanwhile: the one under way will do
            self._under_way.add(id)
            tasks.start_soon(self._one, delivery)

    async def _one(self, delivery: Delivery) -> None:
        id = delivery.entry.id
        try:
            found = await self._deliver(delivery)
        except Exception as error:
            log.exception("the callback of call %d failed in the host", id)
            reason = f"failed in the host: {error!r}"[:200]
            hopeless = delivery.attempt >= MOST_FAILURES
            found = Dead(reason) if hopeless else Again(time() + AFTER_FAILURE, reason)
        try:
            await self._note(id, found)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WORDS, shield=True):
                await self._note(id, found)
            raise
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
