"""How several hosts share the workers of one function: what a pool asks for, and gives up. Used by `pool.py`.

The zygote that they fork from counts (`worker/places.py`). It refuses a worker when there are enough, offers a
place once there is one, and asks who has the most to let go of one: which goes over with its sockets, as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from time import monotonic
from typing import Protocol

from .generation import Generation, Worker
from .process import Message

LONG = 1.0  # seconds: what has run for so long may run for much longer
SLICE = 0.05  # seconds that a worker goes on with our calls when another host waits for its place


class Asking(Protocol):
    """What is asked of a pool."""

    def serve_waiting(self) -> None:
        """Give calls to workers, and ask for more of these."""

    @property
    def waiting(self) -> Collection[object]:
        """The calls that no worker has."""

    @property
    def current(self) -> Generation | None:
        """What its workers are forked from."""


class Turns:
    """Whether a pool may ask for workers, and which it owes to others.

    Guarantee: an offer is answered, by asking for a worker or by passing it on.
    """

    def __init__(
        self,
        pool: Asking,
        add_worker: Callable[[], bool],
        adopt: Callable[[Generation, Message], None],
    ) -> None:
        self.owing = False
        self._refused = False
        self._pool, self._add_worker, self._adopt = pool, add_worker, adopt
        self._owed_from = math.inf  # when a worker is to be given up although calls wait for it

    @property
    def crowded(self) -> bool:
        """Whether others have the workers that there may be, so that none is to be asked for: an offer will come."""
        return self._refused and self._pool.current is not None and self._pool.current.alive

    def was_refused(self, worker: Worker) -> None:
        """A worker that we asked for will not be."""
        self._refused |= worker.wanted and worker.generation is self._pool.current

    def restart(self, generation: Generation) -> None:
        """Workers are forked from this one now."""
        self._refused = self.owing = False
        generation.zygote.on_news = lambda message: self._heard(generation, message)

    def is_over(self, worker: Worker) -> bool:
        """Whether a worker that has answered a call is to be given up now; then nothing more is owed."""
        now = monotonic()
        if (worker.busy or self._pool.waiting) and now < self._owed_from:
            return False
        if holds_long_calls(worker, now):  # waiting for these, it would be of use to nobody
            self._owed_from = now + LONG
            return False
        self.owing = False
        return True

    def let_go(self, worker: Worker) -> None:
        """Another host is to have it, as it is: once it has no calls. One that cannot go over ends, for its place."""
        if worker.busy:
            worker.part()
        elif not worker.hand_over():
            worker.retire()
        self._pool.serve_waiting()

    def reconsider(self) -> None:
        """There may be more workers than when we were refused one."""
        self._refused = False

    def _heard(self, generation: Generation, message: Message) -> None:
        op, current = message["op"], generation is self._pool.current
        if op == "wanted" and current:
            self._give_up(generation, busy=bool(message["busy"]))
        elif op == "room":
            self._refused = self._refused and not current
            if current and self._pool.waiting and self._add_worker():
                self._pool.serve_waiting()
            else:
                generation.zygote.pass_on(fresh=generation.fresh)
        elif op == "given":
            self._refused = self._refused and not current
            self._adopt(generation, message)
            self._pool.serve_waiting()
        elif op == "lost" and current:
            self._refused = self.owing = False
            self._pool.serve_waiting()

    def _give_up(self, generation: Generation, *, busy: bool) -> None:
        """Let go of an idle worker, or the next one that is; of one in use, once it has been for long enough."""
        idle = [worker for worker in generation.workers if not worker.busy and not worker.leaving]
        if idle and not self._pool.waiting:
            self.let_go(min(idle, key=lambda worker: worker.idle_since))
            return
        if any(worker.parting for worker in generation.workers):
            return  # that one is for whoever waits
        due = monotonic() + SLICE if busy else math.inf
        self._owed_from = min(due, self._owed_from) if self.owing else due
        self.owing = True


def holds_long_calls(worker: Worker, now: float) -> bool:
    """Whether a call in it may go on for long."""
    calls = worker.channel.exchanges.values()
    return any(call.streaming or now - call.started_at > LONG for call in calls)
