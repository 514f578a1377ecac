"""A submitted call while it runs in this process, and the tasks that run such calls.

Made by `dispatcher.py`, which says what running one means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from anyio.abc import TaskGroup

from .calls import Call
from .exchange import Exchange
from .journal import Journal
from .settings import FunctionSettings

RESTING = 64  # tasks that are kept for the next calls


class Run:
    """A claimed call in this process: as its exchange's follower it records what the call says of itself."""

    def __init__(
        self, journal: Journal, call: Call, starts: int, settings: FunctionSettings, *, callback: bool = True
    ) -> None:
        self.call = call
        self.key = (call.space, call.name)
        self.starts = starts
        self.settings = settings
        self.callback = callback  # whether anybody is to be told of its outcome
        self.exchange: Exchange | None = None
        self.cancelled = False
        self.hopeless = False  # its function has been gone for too long
        self._journal = journal

    @property
    def begun(self) -> bool:
        """Whether a worker may have begun it."""
        return self.exchange is not None and self.exchange.channel is not None

    def printed(self, level: int, text: str) -> None:
        self._journal.note(self.call.id, "log", {"level": level, "text": text})

    def progressed(self, fraction: float, message: str) -> None:
        self._journal.note(self.call.id, "progress", {"fraction": fraction, "message": message})


class Runners:
    """Tasks that run one call after another: to start one for each would cost as much as all that it does.

    Guarantee: what `start` was given before it was `over` is begun, also where the tasks are cancelled at that moment.
    """

    def __init__(self, work: Callable[[Run], Awaitable[None]]) -> None:
        self._work = work
        self._resting: list[asyncio.Future[Run]] = []
        self._pending: deque[Run] = deque()
        self.over = False  # nothing can be run any more, but by those who run already

    def begin(self, tasks: TaskGroup) -> None:
        """Where the tasks live; `start` may be called from now on."""
        self._tasks = tasks
        self._wanted = asyncio.Event()
        tasks.start_soon(self._hire)

    def start(self, run: Run) -> None:
        """Have it run, without waiting. It need not be a task that asks for it, unless it is `over`."""
        while self._resting:
            rest = self._resting.pop()
            if not rest.done():  # or else its task has been cancelled
                rest.set_result(run)
                return
        if self.over:
            self._tasks.start_soon(self._serve, run)
        else:
            self._pending.append(run)
            self._wanted.set()

    async def _hire(self) -> None:
        """For ever: a task for each that finds none resting. Only a task can start another one in their group."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._pending:
                    self._tasks.start_soon(self._serve, self._pending.popleft())
        finally:
            self.over = True
            while self._pending:
                self._tasks.start_soon(self._serve, self._pending.popleft())

    async def _serve(self, run: Run) -> None:
        while True:
            await self._work(run)
            if len(self._resting) >= RESTING:
                return
            rest: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
            self._resting.append(rest)
            try:
                run = await rest
            except asyncio.CancelledError:
                if rest.done() and not rest.cancelled():  # it was given a call just then
                    await self._work(rest.result())
                raise
