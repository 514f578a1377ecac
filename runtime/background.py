"""Calls that run in the background: the journal, what runs them, what delivers and what forgets them, as one scope.

Made by `host.py` where calls are to be submitted; made of `journal/`, `dispatcher.py`, `deliveries.py`, `callbacks.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time

import anyio
import msgspec

from .callbacks import Again, Callbacks, Dead, Delivered
from .calls import Call, CallIds, Delivery, Outcome, Status, Submission
from .config import Config
from .deliveries import Deliveries
from .dispatcher import Dispatcher
from .errors import HostError, JournalError, NotFound
from .exchange import Exchange
from .journal import Bell, Counts, IdTaken, Journal, News, Receipt, Told, open_journal
from .registry import Function
from .share import WHOLE, Share

PRUNE_EVERY = 60.0  # seconds
RENUMBERINGS = 5  # that many times at most a call is given another id because the one it has is taken

log = logging.getLogger("spaces.journal")


class Background:
    """One host's part in a journal.

    Guarantee: what `submit` has returned is on disk, is run, and its outcome delivered, by this host or by the
    next one on the same journal. A journal that cannot be used makes `submit` fail, and nothing else.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        *,
        invoke: Callable[[Call], Exchange],
        lookup: Callable[[str, str], Function],
        ids: CallIds,
        loopback: Callable[[], bool],
        word: Callable[[HostError], HostError],
        dispatch: bool,
        bell: Bell | None = None,
        share: Share = WHOLE,
    ) -> None:
        """`bell`: rung for other processes on this journal; what theirs ring is to be given to `heard`."""
        self.journal: Journal = open_journal("sqlite", config().server.state, bell)
        self.journal.listen(self._learn)
        self._config, self._ids, self._dispatch = config, ids, dispatch
        self._callbacks = Callbacks(loopback_allowed=loopback)
        self._deliveries = Deliveries(self.journal, self._deliver)
        self._dispatcher = Dispatcher(
            self.journal,
            invoke=invoke,
            lookup=lookup,
            settings=lambda space, name: config().settings(space, name),
            on_outcome=self._deliveries.wake,
            word=word,
            share=share,
        )
        self._forgets = share.index == 0  # for all
        if not dispatch:
            self._dispatcher.pause()  # nor does it start at once what is submitted
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Background:
        try:
            await self.journal.open()
        except JournalError as error:
            log.error("%s (calls in the background are refused meanwhile)", error.message)
        await self._callbacks.__aenter__()
        await self._tasks.__aenter__()
        if self._dispatch:
            await self._tasks.start(self._dispatcher.run)
            self._tasks.start_soon(self._deliveries.run)
            if self._forgets:
                self._tasks.start_soon(self._forget_old)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dispatcher.pause()
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._callbacks.__aexit__(None, None, None)
                await self.journal.close()

    @property
    def busy(self) -> bool:
        """Whether a submitted call runs, or its outcome is still to be recorded."""
        return self._dispatcher.busy

    def pause(self) -> None:
        """Start no further calls; whoever waits for news of one looks what is the matter."""
        self._dispatcher.pause()
        self.journal.wake()

    def heard(self, payload: bytes) -> None:
        """The bell of another process on this journal has rung."""
        self.journal.heard(payload)

    def _learn(self, news: News) -> None:
        if news.calls:
            self._dispatcher.wake()
        if news.cancels:
            self._dispatcher.look()
        if news.callbacks:
            self._deliveries.wake()

    async def submit(self, submission: Submission, function: Function) -> Receipt:
        """Record a call to be run; see `Journal.append`."""
        for _ in range(RENUMBERINGS):
            try:
                return await self._dispatcher.accept(submission, function)
            except IdTaken:  # by another host on this journal, in the same millisecond
                submission = msgspec.structs.replace(submission, call=self._renumbered(submission.call))
        return await self._dispatcher.accept(submission, function)

    def take_in(self, submission: Submission, function: Function, told: Told) -> bool:
        """As `submit`, but `told` may hear of IdTaken; see `Dispatcher.take_in`."""
        return self._dispatcher.take_in(submission, function, told)

    async def cancel(self, id: int, outcome: Outcome | None = None) -> Status | None:
        """Cancel a call, wherever it is; its status then. `outcome`: see `Journal.cancel`."""
        status = await self.journal.cancel(id, outcome)
        if status is Status.RUNNING:
            self._dispatcher.cancel(id)
        return status

    async def again(self, id: int) -> Submission:
        """The submission that runs the request of an earlier call anew; NotFound."""
        call, entry = await self.journal.request(id), await self.journal.get(id)
        if call is None or entry is None:
            raise NotFound(f"there is no call {id}")
        call = self._renumbered(msgspec.structs.replace(call, label=str(call.id), attempt=1))
        return Submission(call, trigger="rerun", callback_url=entry.callback_url, priority=entry.priority)

    def _renumbered(self, call: Call) -> Call:
        """The same call under another id; a label that its caller chose stays."""
        number = self._ids.next()
        if call.label != str(call.id):
            return msgspec.structs.replace(call, id=number)
        headers = _with_label(call.headers, str(number))
        return msgspec.structs.replace(call, id=number, label=str(number), headers=headers)

    async def redeliver(self, id: int) -> bool:
        """Deliver a call's outcome once more, now. False: it has no URL or no outcome."""
        found = await self.journal.redeliver(id, time())
        self._deliveries.wake()
        return found

    async def counts(self) -> Counts | None:
        """For metrics; None while the journal cannot be read."""
        try:
            return await self.journal.counts()
        except JournalError:
            return None

    async def _deliver(self, delivery: Delivery) -> Delivered | Again | Dead:
        entry = delivery.entry
        return await self._callbacks.deliver(delivery, self._config().settings(entry.space, entry.name))

    async def _forget_old(self) -> None:
        while True:
            try:
                for space in await self.journal.spaces():
                    settings = self._config().settings(space, "")
                    await self.journal.prune(space, before=time() - settings.keep_for, keep=settings.keep_calls)
            except JournalError as error:
                log.warning("old calls could not be removed: %s", error.message)
            await anyio.sleep(PRUNE_EVERY)


def _with_label(headers: bytes, label: str) -> bytes:
    """The headers with another X-Call-Id."""
    parts = headers.split(b"\0") if headers else []
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    kept = [part for name, value in pairs if name != b"x-call-id" for part in (name, value)]
    return b"\0".join([*kept, b"x-call-id", label.encode()])
