"""How many workers of one function there may be, where several hosts fork them from one process.

Used by `zygote.py`, and by `base_zygote.py` for workers with an import of their own.
"""

from __future__ import annotations

from collections import Counter, deque
from operator import itemgetter

from .parent import Message, Seat


class Places:
    """Who has how many workers, and who is to have the next.

    Guarantee: where several hosts have workers of the function, there are at most as many as each fork may make
    it; a host that was refused a worker that a call waits for is offered a place in its turn. One host alone is
    refused nothing: it keeps to the limit by itself.
    """

    def __init__(self, known_as: str | None = None) -> None:
        self.workers: Counter[Seat] = Counter()
        self._named: Message = {} if known_as is None else {"key": known_as}
        self._offered: set[Seat] = set()  # each has a place kept for it until it takes it
        self._wishes: deque[Seat] = deque()
        self._most = 0

    def take(self, seat: Seat, most: int, *, wanted: bool) -> bool:
        """Whether this host may have one more worker now, which then counts; else it is offered one, if `wanted`."""
        self._most = most
        kept = self._offered - {seat}
        others = sum(count for each, count in self.workers.items() if each.host != seat.host) + len(kept)
        if not others or self.workers.total() + len(kept) < most:
            self._offered.discard(seat)
            self.workers[seat] += 1
            self._offer()
            return True
        if wanted and seat not in self._wishes:
            self._wishes.append(seat)
        if wanted:
            self._ask_for(seat)
        return False

    def given(self, seat: Seat) -> Seat | None:
        """Who is to have a worker that this host has no use for, and has it now; None where nobody waits."""
        if not self._wishes:
            return None
        other = self._wishes.popleft()
        self.workers[other] += 1
        self.ended(seat)
        return other

    def ended(self, seat: Seat) -> None:
        """A worker is no more, or never came to be."""
        self.workers[seat] -= 1
        self.workers += Counter()  # forget who has none
        self._offer()

    def passed(self, seat: Seat) -> None:
        """A host has no use for the place that it was offered."""
        self._offered.discard(seat)
        self._offer()

    def left(self, seat: Seat) -> None:
        """A host is gone; its workers are still to end."""
        if seat in self._wishes:
            self._wishes.remove(seat)
        self.passed(seat)

    @property
    def unused(self) -> bool:
        """Whether nobody has workers, nor is to have one."""
        return not self.workers and not self._offered

    def _offer(self) -> None:
        while self._wishes and self.workers.total() + len(self._offered) < self._most:
            seat = self._wishes.popleft()
            self._offered.add(seat)
            seat.send({"op": "room", **self._named})
        if self._wishes:
            self._ask_for(self._wishes[0])

    def _ask_for(self, seat: Seat) -> None:
        """Tell who has more than its share that another waits; and whether to give up one in use, in fairness.

        Not the richest alone: it may have nothing but long calls.
        """
        shares = self.workers + Counter(self._offered)
        fair = self._most / len(shares.keys() | set(self._wishes))
        others = [(count, each) for each, count in shares.items() if each is not seat]
        rich = [(count, each) for count, each in others if count > fair]
        for count, each in rich or sorted(others, key=itemgetter(0))[-1:]:
            each.hint({"op": "wanted", "busy": not shares[seat] or count > shares[seat] + 1, **self._named})
