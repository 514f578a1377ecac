"""A thread that does what the event loop asks of it, in batches: all that has come up while it was busy.

Made by `sqlite.py`: one lane writes, another one reads. A batch costs one wake-up each way, however long it is.
So the thread is not woken for the first operation of a batch, but once the loop has got round to all that is due now:
half of what costs time is done once for each batch. One that is alone waits for a turn of the loop, which is nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..errors import JournalError
from . import Told

log = logging.getLogger("spaces.journal")


def _nothing(*_: object) -> None:
    """Where nobody wants to know."""


class Operation:
    """Something to do, and, when it has been done, what came of it: a result or an error."""

    __slots__ = ("arguments", "error", "future", "kind", "result")

    def __init__(self, kind: str, arguments: Any, future: Told | None) -> None:
        self.kind, self.arguments, self.future = kind, arguments, future
        self.result: Any = None
        self.error: Exception | None = None


class Lane:
    """Operations go in on the event loop, are done in the thread, and come back on the loop.

    `work` is given each batch in the thread, and must not raise. What it returns, if not None, is handed to `done`
    on the loop, before those who wait are woken. `lost` is given the operations that were done for somebody who
    was cancelled meanwhile, and did not hear of it.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Operation]], Any],
        done: Callable[[Any], None] = _nothing,
        lost: Callable[[Operation], None] = _nothing,
    ) -> None:
        self._name, self._work, self._done, self._lost = name, work, done, lost
        self._queue: deque[Operation] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event in C
        self._waking = False  # the thread will be woken soon, or works, and what it did is to be reported
        self._batches, self._heard = 0, 0  # done by the thread, and told to the loop: each is counted by one of them
        self._state = "new"  # running, ending, abandoned
        self._last: Callable[[], None] = _nothing
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._state = "running"
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    async def ask(self, kind: str, arguments: Any = None) -> Any:
        """Have it done; its result. One who is cancelled meanwhile leaves it to be done as a whole, or not at all."""
        self._check()
        future = self._loop.create_future()
        operation = Operation(kind, arguments, future)
        self.send(operation)
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:  # it came just when we were cancelled
                self._lost(operation)
            raise

    def begin(self, kind: str, arguments: Any, told: Told) -> None:
        """Have it done, and this one told what came of it."""
        self._check()
        self.send(Operation(kind, arguments, told))

    def send(self, operation: Operation) -> None:
        """Have it done, without waiting for it."""
        self._queue.append(operation)
        self.wake()

    def wake(self) -> None:
        """See to it that the thread calls `work` soon, with nothing to do if there is nothing."""
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake.put, None)

    def _check(self) -> None:
        if self._state != "running":
            raise JournalError("The journal is closed.")

    async def stop(self, last: Callable[[], None], *, abandon: bool = False) -> None:
        """Wait for all that was asked for, do one last thing in the thread, and end.

        `abandon`: as if the process had died, without what was asked for.
        """
        if self._thread is None:
            return
        self._last = last
        self._state = "abandoned" if abandon else "ending"
        self._wake.put(None)
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    def _run(self) -> None:
        while True:
            batch = self._take()
            if self._state == "abandoned" or (self._state == "ending" and not batch and self._heard == self._batches):
                break
            report = self._work(batch)
            self._batches += 1
            try:
                self._loop.call_soon_threadsafe(self._report, batch, report)
            except RuntimeError:  # the loop was closed, so nobody waits
                break
        self._last()

    def _take(self) -> list[Operation]:
        """All that is to be done; waits for being woken."""
        if self._state == "running" or self._heard != self._batches:  # whoever hears of it may ask for more
            self._wake.get()
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def _report(self, batch: list[Operation], report: Any) -> None:
        self._waking = False
        try:
            if report is not None:
                self._done(report)
        finally:
            for operation in batch:
                try:
                    self._answer(operation)
                except Exception:
                    log.exception("what came of a `%s` in the journal could not be told", operation.kind)
            self._heard += 1
            if self._state != "running":
                self._wake.put(None)
            elif self._queue:
                self.wake()  # behind those who are answered now: what they ask goes into the same batch

    def _answer(self, operation: Operation) -> None:
        future = operation.future
        if future is None:
            return
        if future.cancelled():
            self._lost(operation)
        elif operation.error is None:
            future.set_result(operation.result)
        else:
            future.set_exception(operation.error)
