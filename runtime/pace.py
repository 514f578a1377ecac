"""How long a sync function's calls take lately, and so how many of them a worker may be given at once.

Used by `pool.py`. A worker whose calls take microseconds is given the next ones before it has answered: it
then goes on without waiting for the host. Where calls take longer, it has one at a time.
"""

from __future__ import annotations

AHEAD = 0.001  # seconds of work that a worker may have before it
MAX_DEPTH = 64  # calls in a worker, begun or not, at most
WEIGHT = 0.1  # of the last call in the average


class Pace:
    """A moving average of seconds per call, and the depth of a worker's queue that goes with it."""

    __slots__ = ("depth", "seconds")

    def __init__(self) -> None:
        self.slow_down()

    def slow_down(self) -> None:
        """A call took too long: one at a time, until the average says otherwise."""
        self.seconds, self.depth = AHEAD, 1

    def answered(self, seconds: float | None) -> None:
        """A call took so long in the handler; None: it is not known how long."""
        if seconds is None:
            self.slow_down()
            return
        average = self.seconds = self.seconds + (seconds - self.seconds) * WEIGHT
        depth = int(AHEAD / average) if average > 0 else MAX_DEPTH
        self.depth = MAX_DEPTH if depth > MAX_DEPTH else depth or 1
