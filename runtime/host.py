"""The host: every edge (HTTP dialects, command line) asks it, and it asks the organs. Read this file first.

    async with Host(config, durable=True) as host:
        with host.invoke(call) as exchange:             # run it now
            result = await exchange.result()
        receipt = await host.submit(Submission(call))    # have it run

A call goes registry → pool → worker; a submitted one journal → dispatcher → the same way; a change on disk goes
loader → registry → pools.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from .authority import Access, Authority
from .background import Background
from .calls import SEQUENCE_BITS, Call, CallIds, Entry, Outcome, Status, Submission
from .census import registry_of
from .config import Config, with_trained
from .errors import ConfigError, Draining, HostError, JournalError, LoadFailed
from .exchange import Exchange
from .journal import Journal, Receipt, Told
from .link import Link
from .loader import Loader
from .meter import Meter
from .pools import Pools
from .registry import Function, Registry
from .search import Hint
from .share import WHOLE
from .siblings import Siblings
from .spawner import Spawner
from .status import FunctionStatus, describe, merged, relative, status_of
from .tasks import Tasks
from .timetable import Timetable
from .training import Training

EAGER = 50  # in dev, so many changed functions at once are loaded before anybody calls them

log = logging.getLogger("spaces.host")


class Host:
    """One set of functions, their processes, and the way to call them.

    Guarantee: within `async with`, every function on disk can be invoked; after it, no process is left.
    """

    def __init__(
        self,
        config: Config,
        *,
        debug: bool = False,
        watch: bool = True,
        durable: bool = False,
        dispatch: bool = True,
        link: Link | None = None,
    ) -> None:
        """`durable`: calls can be submitted, and looked up; without `dispatch`, nothing but that is done with them.

        `link`: to the other host processes that serve the same, of which this one has its share.
        """
        self.config = config
        self.siblings = Siblings(link) if link is not None else None
        self.share = link.share if link is not None else WHOLE
        self.debug = debug
        self.registry = Registry()
        self.draining = False
        self.stopping = False  # the server is about to end: who waits for news is sent away
        self.ids = CallIds(first=random.randrange(1 << SEQUENCE_BITS))
        self.bound_to_loopback = False  # callbacks may go to this machine only from where nobody else can call
        self.exposed = False  # whoever started it says that it may be open to all who reach it
        self.url = ""  # where it is reached, as its functions are told
        self.authority = Authority(lambda: self.config, open=lambda: self.bound_to_loopback or self.exposed)
        self.meter = Meter(
            config.server.metrics_functions, lambda: self._pools, lambda: len(self.registry.functions), link
        )
        self.started_at, self.received = self.meter.started_at, self.meter.received
        self.timetable = Timetable(config.server.state)  # schedules that clients have created
        self.on_change: list[Callable[[], None]] = []  # called when functions or their settings may be others
        self._watch = watch
        self._runs = dispatch  # or else calls are only looked up
        self._loader = Loader(config)
        self._spawner = Spawner(link.attach_base if link is not None else None)
        self._tasks = anyio.create_task_group()
        self._background = self._make_background(dispatch) if durable else None
        self.training = Training(self)
        self._turn = anyio.Lock()  # of those who take up changes

    def _make_background(self, dispatch: bool) -> Background:
        return Background(
            lambda: self.config,
            invoke=self.invoke,
            lookup=self.lookup,
            ids=self.ids,
            loopback=lambda: self.bound_to_loopback,
            word=self.worded,
            dispatch=dispatch,
            bell=self.siblings,
            share=self.share,
        )

    async def __aenter__(self) -> Host:
        if self.siblings is not None:  # one of them may have known the settings that it begins with
            await self._reconfigure(told=False)
        await self.scan()
        if self._runs and self._background is not None:
            await anyio.to_thread.run_sync(self.authority.prepare)
        await self._spawner.__aenter__()
        await self._tasks.__aenter__()
        self._pools = Pools(
            self._loader,
            self._spawner,
            Tasks(self._tasks),
            self._printed,
            max_zygotes=self.config.server.max_zygotes,
            environment=self._environment,
            stats=self.meter.ledger.of,
            share=self.share,
            debug=self.debug,
        )
        self._tasks.start_soon(self.meter.join)
        self._tasks.start_soon(self._pools.tidy)
        if self._watch:
            self._tasks.start_soon(self._follow_changes)
        if self._runs:
            self._warm_configured()
        if self._background is not None:
            await self._background.__aenter__()
        if self.siblings is not None:
            tasks = Tasks(self._tasks)
            self.siblings.listen(tasks, self._take_up_written, self._states, self.training, self._background)
        if self._background is not None and self._runs:
            self.training.start(Tasks(self._tasks))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.draining = True
        try:
            if self._background is not None:  # first: what it runs is interrupted, and does not look like a crash
                await self._background.__aexit__()
            self._pools.close()
            self.meter.leave()
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self.training.close()
            await self._spawner.__aexit__()
            await self.timetable.close()

    # Who may what.

    async def identify(self, credential: str | None) -> Access:
        """Who asks, before it is known for which space; Unauthorized."""
        return await self.authority.identify(credential)

    async def authorize(self, scope: str, space: str | None, name: str | None, credential: str | None) -> None:
        """Whether who asks may do this there, everywhere where no space is named; Unauthorized, Forbidden."""
        await self.authority.authorize(scope, space, name, credential)

    # Calls.

    def lookup(self, space: str, name: str) -> Function:
        """The function at this address; NotFound."""
        return self.registry.lookup(space, name)

    def find(self, id: int) -> Function:
        """The function with this number; NotFound."""
        return self.registry.find(id)

    def invoke(self, call: Call) -> Exchange:
        """Run a call now: enter the exchange, await its result. Raises CapacityError and NotFound at once."""
        if self.draining:
            raise Draining
        return self._pools.lease(self.registry.lookup(call.space, call.name), call)

    async def submit(self, submission: Submission) -> Receipt:
        """Have a call run: it is on disk when this returns. Raises CallerError, CapacityError and JournalError."""
        if self.draining:
            raise Draining
        call = submission.call
        receipt = await self._durable.submit(submission, self.registry.lookup(call.space, call.name))
        if not receipt.repeated:
            self.received[submission.trigger] += 1
        return receipt

    def take_in(self, submission: Submission, function: Function, told: Told) -> bool:
        """`submit` for one who is told of it: perhaps of IdTaken. False: he has to ask `submit` whether it may be."""
        return not self.draining and self._durable.take_in(submission, function, told)

    async def wait(self, id: int, seconds: float) -> Entry | None:
        """A submitted call once it is over, or as it is then; None where there is no such call."""
        journal, deadline = self.journal, anyio.current_time() + seconds
        entry = await journal.get(id)
        while entry is not None and not entry.status.is_final and not self.stopping:
            left = deadline - anyio.current_time()
            if left <= 0:
                break
            await journal.changed(id, left)
            entry = await journal.get(id) or entry
        return entry

    async def cancel(self, id: int, outcome: Outcome | None = None) -> Status | None:
        """Cancel a submitted call, also a running one; its status then, None where there is no such call.

        `outcome`: what is kept as what came of it.
        """
        return await self._durable.cancel(id, outcome)

    async def rerun(self, id: int) -> Receipt:
        """Submit the request of an earlier call as a new one; NotFound."""
        return await self.submit(await self._durable.again(id))

    async def redeliver(self, id: int) -> bool:
        """Deliver the outcome of a call once more. False: it has no callback URL, or no outcome."""
        return await self._durable.redeliver(id)

    @property
    def journal(self) -> Journal:
        """The record of submitted calls, to be read."""
        return self._durable.journal

    @property
    def _durable(self) -> Background:
        if self._background is None:
            raise JournalError("this host keeps no journal: calls cannot be submitted to it")
        return self._background

    def pause(self) -> None:
        """Start no further submitted calls: they are the next host's. Others are still taken; who waits looks again."""
        if self._background is not None:
            self._background.pause()

    async def drain(self, timeout: float) -> bool:
        """Take no new calls and wait for those under way; whether all ended in time."""
        self.draining = True
        self.pause()
        with anyio.move_on_after(timeout) as waiting:
            while self._pools.busy or (self._background is not None and self._background.busy):
                await anyio.sleep(0.01)
        return not waiting.cancelled_caught

    def cut(self) -> None:
        """Fail every call that waits or runs with Draining; what runs is ended with its process."""
        self._pools.cut()

    def _environment(self, function: Function) -> dict[str, str]:
        """What a function's process is told of its host, so that the clients it makes come back here."""
        if not self.url:
            return {}
        token = self.authority.function_token(function.space, function.name)
        ours = {"SPACES_URL": self.url, "SPACES_TOKEN": token}
        return {**ours, "KERNEL_BASE_URL": self.url, "KERNEL_API_KEY": token}

    # What is here.

    def status(self, function: Function) -> FunctionStatus:
        """A function and how it is doing in this process."""
        return status_of(function, self._pools.find(function), self.config.root)

    async def statuses(self, functions: Sequence[Function]) -> list[FunctionStatus]:
        """The same of several functions; with siblings, how they do in all host processes together."""
        ours = [self.status(function) for function in functions]
        if self.siblings is None:
            return ours
        theirs = await self.siblings.states([function.id for function in functions])
        return [merged(each, theirs.get(each.id, ())) for each in ours]

    def _states(self, ids: Collection[int]) -> list[FunctionStatus]:
        return [self.status(pool.function) for pool in self._pools if pool.function.id in ids]

    def describe(self, error: LoadFailed) -> dict[str, Any]:
        """A load error as it is shown: paths relative to ROOT."""
        return describe(error, self.config.root)

    def worded(self, error: HostError) -> HostError:
        """An error as clients see it: it names no files of this machine, or only below ROOT."""
        if isinstance(error, LoadFailed):
            details = {"state": "failed", **self.describe(error)}
            message = f"the function cannot be loaded: {details['message']}"
            return LoadFailed(message, details=details, retryable=error.retryable)
        if isinstance(error, JournalError) and not self.debug:
            return JournalError()  # the log says what is wrong with it
        return error

    async def metrics(self) -> bytes:
        """The Prometheus text of every function that was ever called."""
        return await self.meter.text(await self._background.counts() if self._background is not None else None)

    async def load(self, function: Function) -> LoadFailed | None:
        """Load a function now, as its first call would; the error, if it cannot be loaded."""
        self._pools.warm(function)
        while (pool := self._pools.find(function)) is not None and pool.loading:
            await anyio.sleep(0.005)
        return pool.error if pool is not None else None

    def unload(self, function: Function) -> None:
        """End a function's processes; its next call loads it again."""
        if (pool := self._pools.find(function)) is not None:
            pool.retire()

    # Changes on disk.

    async def scan(self, spaces: set[str] | None = None) -> None:
        """Read which functions there are: everywhere, or in these spaces again."""

        def look() -> tuple[Registry, Sequence[Hint]]:
            catalog = self._loader.scan(spaces)
            return registry_of(catalog, self.config, self.registry), catalog.hints

        self.registry, self.hints = await anyio.to_thread.run_sync(look)

    async def _follow_changes(self) -> None:
        async for paths in self._loader.watch():
            try:
                async with self._turn:
                    await self._take_up(paths)
            except Exception:
                log.exception("what has changed on disk could not be taken up: the next change is another chance")

    async def written(self, path: Path) -> None:
        """Take up a file of a trained function, which the host itself has written: it is served when this returns."""
        await self._take_up_written(path)
        if self.siblings is not None:
            await self.siblings.have_written(path)

    async def _take_up_written(self, path: Path) -> None:
        async with self._turn:
            self.config = with_trained(self.config)
            await anyio.to_thread.run_sync(self._loader.configure, self.config)
            await self._take_up(frozenset([path]))

    async def _take_up(self, paths: frozenset[Path]) -> None:
        before, hints = self.registry, self.hints
        if self.config.file in paths:
            await self._reconfigure()
        await self.scan(self._loader.affected(paths))
        self._pools.update(self.registry, paths, everything=self.config.functions_dir in paths)
        self._report_changes(before)
        self._report_hints(set(hints))
        for notify in self.on_change:
            notify()

    async def _reconfigure(self, *, told: bool = True) -> None:
        try:
            config = await anyio.to_thread.run_sync(self._loader.reconfigured)
        except ConfigError as error:
            log.error("%s\n(the settings before go on)", error.message)
            return
        who = {"tokens": config.server.tokens, "issuer": config.server.issuer}  # who may what holds at once
        server = msgspec.structs.replace(self.config.server, **who)
        if config.server != server:
            log.warning("spaces.toml: changes in [server] take effect at the next start, but for tokens and issuer")
        self.config = msgspec.structs.replace(config, server=server)
        await anyio.to_thread.run_sync(self._loader.configure, self.config)
        if told:
            log.info("spaces.toml loaded")

    def _report_changes(self, before: Registry) -> None:
        old, new = before.functions, self.registry.functions
        for function in [function for key, function in old.items() if key not in new]:
            log.info("%s removed", function.label)
        others = [(old.get(key), function) for key, function in new.items() if old.get(key) is not function]
        for known, function in others:
            if known is None:
                log.info("%s added (%s)", function.label, relative(function.path, self.config.root))
        touched = [function for known, function in others if known is None or known.digest != function.digest]
        if self.debug:  # who edits a file wants to hear of its mistakes before the next call
            for function in touched[:EAGER]:
                self._pools.warm(function)
        self._warm_configured()

    def _report_hints(self, before: Collection[Hint]) -> None:
        for hint in self.hints:
            if hint.important and hint not in before:
                log.warning("%s: %s", relative(hint.path, self.config.root), hint.message)

    def _warm_configured(self) -> None:
        for function in self._with_min_workers(self.registry.functions.values()):
            self._pools.warm(function)

    def _with_min_workers(self, functions: Iterable[Function]) -> Sequence[Function]:
        return [function for function in functions if function.settings.min_workers]

    # Output of handlers.

    def _printed(self, function: Function, exchange: Exchange | None, level: int, text: str) -> None:
        extra = {"function": function.label, "call_id": exchange.call.label if exchange else None}
        logging.getLogger("spaces.output").log(level, "%s", text, extra=extra)
        if exchange is not None and exchange.follower is not None:
            exchange.follower.printed(level, text)
