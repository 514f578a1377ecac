"""The stores that the contract is held against, and what tests hand to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from runtime.calls import Call, Outcome, Submission
from runtime.journal import Bell, Journal
from runtime.journal.sqlite import SQLiteJournal

F, G, H = ("demo", "f"), ("demo", "g"), ("other", "f")
FUNCTIONS = [F, G, H]

OK = Outcome(200, b"content-type\0text/plain", b"fine", invoked=True, seconds=0.25)
BAD = Outcome(503, b"", b'{"error":{}}', invoked=False, seconds=1.5, error_code="interrupted")


class Clock:
    """The time of day, which may jump, and the time that the machine runs, which does not."""

    def __init__(self) -> None:
        self.now, self.uptime = 1_800_000_000.0, 1_000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.uptime += seconds


class SQLiteStore:
    """Journals on one SQLite file, each as if in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "journal.db"
        self.clock = Clock()

    def journal(self, bell: Bell | None = None) -> SQLiteJournal:
        return SQLiteJournal(self.path, clock=lambda: self.clock.now, uptime=lambda: self.clock.uptime, bell=bell)

    async def crash(self, journal: Journal) -> None:
        """The end of its process, as far as others can tell: nothing more is written, all is let go of."""
        assert isinstance(journal, SQLiteJournal)
        journal._is_open = False
        journal._lookout.close()
        for timer in (journal._timer, journal._renewal):
            if timer is not None:
                timer.cancel()
        await journal._reading.stop(journal._reader.close, abandon=True)
        await journal._writing.stop(journal._writer.abandon, abandon=True)


STORES = {"sqlite": SQLiteStore}


def submission(id: int, function: tuple[str, str] = F, *, body: bytes = b"body", **wanted: Any) -> Submission:
    """A call, in all that can be said of one."""
    of_call = {
        name: wanted.pop(name) for name in ("label", "schedule_id", "scheduled_time", "timeout") if name in wanted
    }
    call = Call(
        id, of_call.pop("label", str(id)), *function, b"POST", b"/a%20b", b"q=1&q=2", b"a\0b\0c\0d", (body,), **of_call
    )
    return Submission(call, **wanted)


async def soon(awaited: Awaitable[Any]) -> Any:
    """What must end; the limit is only for when it does not."""
    return await asyncio.wait_for(awaited, 30)
