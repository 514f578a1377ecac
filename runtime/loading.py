"""Gives one pool its generation: loads it when first needed, beside the old one when its files change.

Made by `pools.py`; reads sources through the loader that `host.py` hands in, starts processes through
`generation.py`. At most one load a function at a time, and the newest files win.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Protocol

import anyio
import anyio.to_thread

from .errors import LoadFailed, NotFound
from .generation import Generation
from .pool import Pool
from .process import FRAME
from .registry import Function
from .snapshots import Snapshot
from .spawner import Spawner
from .specification import NOTHING

RETRY_AFTER = 1.0  # seconds in which a failed import is not tried again by calls
TRY_AGAIN = 5.0  # seconds until new files are tried again for which no process was to be had
ATTEMPTS = 5  # how often files may change under a load before what was read is taken as it is
LONG = 0.5  # seconds after which an import no longer counts among those that run at once

log = logging.getLogger("spaces.reload")


class Sources(Protocol):
    """Where sources come from: the loader. Both block, and are called in threads."""

    def snapshot(self, space: str, name: str) -> Snapshot: ...

    def changed(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool: ...


class Loading:
    """The loads of one pool.

    Guarantee: a generation that starts to serve consists of what was on disk at one moment, and while it
    was imported none of it changed (unless its files never stand still). A failed load replaces nothing.
    """

    def __init__(
        self,
        pool: Pool,
        sources: Sources,
        spawner: Spawner,
        limiter: anyio.CapacityLimiter,
        *,
        environment: Callable[[Function], Mapping[str, str]] = lambda function: NOTHING,
        debug: bool,
    ) -> None:
        self.pool = pool
        self._sources = sources
        self._spawner = spawner
        self._limiter = limiter
        self._environment = environment
        self._debug = debug
        self._dirty = False  # files may have changed since they were last read
        self._closed = self._will_try_again = False
        self._importing: Snapshot | None = None
        self._scope = anyio.CancelScope()
        self._refusal: tuple[float, LoadFailed] | None = None  # when and why there was nothing to serve with

    def need(self) -> None:
        """A call waits and there is nothing to fork its worker from."""
        if self._closed:
            self.pool.refuse_waiting(NotFound(f"`{self.pool.function.label}` was removed"))
        elif self.pool.loading:
            pass
        elif self._refusal is not None and monotonic() - self._refusal[0] < RETRY_AFTER:
            self.pool.refuse_waiting(self._refusal[1])
        else:
            self._start()

    def changed(self) -> None:
        """Its files may have changed: load them, and drop the load of older ones that is under way."""
        self._dirty = True
        if not self.pool.loading:
            self._start()
        elif self._importing is not None:
            self.pool.tasks.start_soon(self._supersede, self._importing, self._scope)

    def outdated(self) -> None:
        """Files that it imports may have changed: read them anew when a call next needs them."""
        self._dirty = True

    def close(self) -> None:
        """The function is no more: load nothing for it, answer nobody who still waits."""
        self._closed = True
        self._scope.cancel()
        self.need()

    def _start(self) -> None:
        self.pool.loading = True
        self.pool.tasks.start_soon(self._run)

    async def _run(self) -> None:
        attempts = 0
        again = True
        try:
            while (again or self._dirty) and not self._closed:
                attempts += 1
                again = await self._load(last=attempts >= ATTEMPTS)
                if not again:
                    attempts = 0
        finally:
            self.pool.loading = False
        self.pool.serve_waiting()

    async def _supersede(self, snapshot: Snapshot, scope: anyio.CancelScope) -> None:
        """End the import of these sources if they are no longer what is on disk."""
        if await anyio.to_thread.run_sync(self._sources.changed, snapshot, {}):
            scope.cancel()

    async def _load(self, *, last: bool) -> bool:
        """One load; whether its sources were out of date by its end."""
        reload, self._dirty = self._dirty, False
        again = True
        with anyio.CancelScope() as self._scope:
            again = await self._load_once(reload, last=last)
        self._importing = None
        self._dirty |= again and reload
        return again

    async def _load_once(self, reload: bool, *, last: bool) -> bool:
        pool, current = self.pool, self.pool.current
        fresh = reload or current is None
        try:
            snapshot = await self._read() if fresh or current is None else current.snapshot
            if fresh and current is not None and await self._is(current, snapshot):
                self._restored()
                return False
            self._importing = snapshot
            async with self._turn():
                generation = await Generation.load(
                    pool.function,
                    snapshot,
                    self._spawner,
                    self._print,
                    environment=self._environment(pool.function),
                    debug=self._debug,
                )
        except LoadFailed as error:
            if fresh and not last and self._importing is not None and await self._moved_on(self._importing, {}):
                return True
            self._failed(error, fresh, reload)
            return False
        try:
            moved_on = fresh and not last and await self._moved_on(snapshot, generation.loaded.extras)
        except BaseException:
            generation.kill()
            raise
        if moved_on or self._closed:
            generation.kill()
            return moved_on
        self._succeeded(generation, fresh, reload)
        return False

    async def _read(self) -> Snapshot:
        function = self.pool.function
        return await anyio.to_thread.run_sync(self._sources.snapshot, function.space, function.name)

    async def _is(self, current: Generation, snapshot: Snapshot) -> bool:
        """Whether a new generation would be what serves already, or what would if it were not asleep."""
        return (
            current.snapshot.digest == snapshot.digest
            and current.function.settings.process_settings() == self.pool.function.settings.process_settings()
            and not await self._moved_on(current.snapshot, current.loaded.extras)
        )

    async def _moved_on(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool:
        """Whether what is on disk now is something else."""
        return await anyio.to_thread.run_sync(self._sources.changed, snapshot, extras)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the few imports that run at once; a slow one, which mostly waits, holds up nobody."""
        turn: object | None = object()
        await self._limiter.acquire_on_behalf_of(turn)

        def give_up() -> None:
            nonlocal turn
            if turn is not None:
                self._limiter.release_on_behalf_of(turn)
                turn = None

        timer = asyncio.get_running_loop().call_later(LONG, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()

    def _restored(self) -> None:
        """What is on disk is what serves already."""
        if self.pool.error is not None:
            log.info("%s is as it was before the error", self.pool.function.label)
        self.pool.error = None

    def _succeeded(self, generation: Generation, fresh: bool, reload: bool) -> None:
        pool, loaded = self.pool, generation.loaded
        if fresh or self._is_refusal(pool.error):
            pool.error = None
        self._refusal = None
        if reload and pool.current is not None:
            pool.stats.reloads["ok"] += 1
        log.info(
            "%s loaded in %.0f ms (generation %s)",
            pool.function.label, loaded.import_seconds * 1000, generation.snapshot.digest[:12],
            extra={"function": pool.function.label},
        )  # fmt: skip
        if loaded.unsafe is not None:
            log.warning(
                "%s: %s; its workers start as fresh processes, which is slower (setting `fork`)",
                pool.function.label, loaded.unsafe, extra={"function": pool.function.label},
            )  # fmt: skip
        pool.swap(generation)

    def _failed(self, error: LoadFailed, fresh: bool, reload: bool) -> None:
        pool = self.pool
        serves = reload and pool.current is not None
        if reload:
            pool.stats.reloads["failed"] += 1
        self._say_where(error)
        log.error(
            "%s could not be loaded: %s:%s: %s%s",
            pool.function.label, error.details["file"], error.details["line"], error.message,
            "; the generation before it goes on serving" if serves else "",
            extra={"function": pool.function.label, "stack": error.details.get("traceback", "")},
        )  # fmt: skip
        if not self._debug:
            error.details.pop("traceback", None)
        if fresh or pool.error is None or self._is_refusal(pool.error):  # not one of newer files: it is true still
            pool.error = error
        if serves and error.retryable and not self._will_try_again:
            self._will_try_again = True
            pool.tasks.start_soon(self._try_again)
        if not serves:
            self._refusal = monotonic(), error
            pool.refuse_waiting(error)

    async def _try_again(self) -> None:
        """Load what was not to blame for its failure: nobody will save it once more."""
        await anyio.sleep(TRY_AGAIN)
        self._will_try_again = False
        self.changed()

    def _is_refusal(self, error: LoadFailed | None) -> bool:
        """Whether it is why callers were last refused."""
        return self._refusal is not None and error is self._refusal[1]

    def _say_where(self, error: LoadFailed) -> None:
        """File and line where the error has none: of the user's innermost frame, else of the function."""
        if "file" in error.details:
            return
        file, line = str(self.pool.function.path), self.pool.function.line
        search = self._importing.search if self._importing is not None else ()
        for frame in FRAME.finditer(str(error.details.get("traceback", ""))):
            if any(frame["file"].startswith(folder + os.sep) for folder in search):
                file, line = frame["file"], int(frame["line"])
                break
        error.details |= {"file": file, "line": line}

    def _print(self, line: str) -> None:
        self.pool.printed(None, logging.INFO, line)
