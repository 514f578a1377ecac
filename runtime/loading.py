"""Gives one pool its generation: loads it when first needed, beside the old one when its files change.

Made by `pools.py`; reads sources through a function that `host.py` hands in (the loader's), starts
processes through `generation.py`. At most one load a function at a time, and the newest files win.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Protocol

import anyio

from .errors import LoadFailed
from .generation import Generation
from .pool import Pool
from .snapshots import Snapshot
from .spawner import Spawner

RETRY_AFTER = 1.0  # seconds in which a failed import is not tried again by calls
ATTEMPTS = 5  # how often files may change under a load before it is taken as it is

log = logging.getLogger("spaces.reload")


class Sources(Protocol):
    """Where sources come from: the loader. Both block, and are called in threads."""

    def snapshot(self, space: str, name: str) -> Snapshot: ...

    def changed(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool: ...


class Loading:
    """The loads of one pool."""

    def __init__(
        self, pool: Pool, sources: Sources, spawner: Spawner, limiter: anyio.CapacityLimiter, *, debug: bool
    ) -> None:
        self._pool = pool
        self._sources = sources
        self._spawner = spawner
        self._limiter = limiter
        self._debug = debug
        self._wanted = False
        self._dirty = False
        self._scope: anyio.CancelScope | None = None
        self._failed_at = 0.0

    def need(self) -> None:
        """A call waits and there is nothing to fork its worker from."""
        pool = self._pool
        if pool.loading:
            return
        if pool.error is not None and pool.current is None and time.monotonic() - self._failed_at < RETRY_AFTER:
            pool.refuse_waiting(pool.error)
            return
        self._start()

    def changed(self) -> None:
        """Its files may have changed: load them, and drop the load of older ones that is under way."""
        self._dirty = True
        if self._pool.loading and self._scope is not None:
            self._wanted = True
            self._scope.cancel()
        else:
            self._start()

    def _start(self) -> None:
        self._wanted = self._pool.loading = True
        self._pool.tasks.start_soon(self._run)

    async def _run(self) -> None:
        attempts = 0
        while self._wanted:
            self._wanted = False
            attempts += 1
            with anyio.CancelScope() as self._scope:
                await self._load(last=attempts >= ATTEMPTS)
        self._pool.loading = False
        self._pool.loaded()

    async def _load(self, *, last: bool) -> None:
        pool, current = self._pool, self._pool.current
        reload, self._dirty = self._dirty, False
        try:
            if current is not None and not reload:
                snapshot = current.snapshot  # ended while idle: the same sources again, whatever is on disk
            else:
                snapshot = await anyio.to_thread.run_sync(
                    self._sources.snapshot, pool.function.space, pool.function.name
                )
                if current is not None and current.alive and self._same(current, snapshot):
                    pool.error = None
                    return
            async with self._limiter:
                generation = await Generation.load(
                    pool.function, snapshot, self._spawner, self._print, debug=self._debug
                )
        except LoadFailed as error:
            await self._failed(error, reload)
            return
        except anyio.get_cancelled_exc_class():
            self._dirty = True
            raise
        fresh_sources = current is None or reload
        if fresh_sources and not last and await self._moved_on(generation):
            self._wanted = self._dirty = True
            generation.kill()
            return
        self._succeeded(generation, reload)

    def _same(self, current: Generation, snapshot: Snapshot) -> bool:
        """Whether a new generation would be what already serves."""
        return (
            current.snapshot.digest == snapshot.digest
            and current.function.settings.process_settings() == self._pool.function.settings.process_settings()
            and not self._sources.changed(current.snapshot, current.loaded.extras)
        )

    async def _moved_on(self, generation: Generation) -> bool:
        """Whether files were saved while they were imported."""
        try:
            return await anyio.to_thread.run_sync(self._sources.changed, generation.snapshot, generation.loaded.extras)
        except BaseException:
            generation.kill()
            raise

    def _succeeded(self, generation: Generation, reload: bool) -> None:
        pool, loaded = self._pool, generation.loaded
        pool.error = None
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

    async def _failed(self, error: LoadFailed, reload: bool) -> None:
        pool = self._pool
        self._failed_at = time.monotonic()
        if reload:
            pool.stats.reloads["failed"] += 1
        trace = str(error.details.get("traceback", ""))
        at = f"{error.details['file']}:{error.details['line']}: " if "file" in error.details else ""
        serving = "; the generation before it goes on serving" if pool.current is not None else ""
        log.error(
            "%s could not be loaded: %s%s%s", pool.function.label, at, error.message, serving,
            extra={"function": pool.function.label, "stack": trace},
        )  # fmt: skip
        if not self._debug:
            error.details.pop("traceback", None)
        pool.error = error
        if pool.current is None or not pool.current.alive:
            pool.refuse_waiting(error)

    def _print(self, line: str) -> None:
        self._pool.printed(None, logging.INFO, line)
