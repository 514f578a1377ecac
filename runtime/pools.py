"""All pools of a host: one for each function that was ever called, made when it first is.

Used by `host.py`. A function on disk that nobody calls costs nothing here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
import anyio.abc

from .calls import Call
from .exchange import Exchange
from .loading import Loading, Sources
from .pool import OnOutput, Pool
from .registry import Function, Registry
from .spawner import Spawner

LOADS_AT_ONCE = 2 * (os.cpu_count() or 1)
TIDY_EVERY = 5.0  # seconds
ZYGOTE_IDLE = 10  # a function zygote ends after this many idle timeouts without a worker


class Pools:
    """Which pool a function's calls go to, and what happens to pools as functions change."""

    def __init__(
        self,
        sources: Sources,
        spawner: Spawner,
        tasks: anyio.abc.TaskGroup,
        on_output: OnOutput,
        *,
        max_zygotes: int,
        debug: bool,
    ) -> None:
        self._sources = sources
        self._spawner = spawner
        self._tasks = tasks
        self._on_output = on_output
        self._max_zygotes = max_zygotes
        self._debug = debug
        self._limiter = anyio.CapacityLimiter(LOADS_AT_ONCE)
        self._pools: dict[int, Pool] = {}
        self._loadings: dict[int, Loading] = {}
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def find(self, function: Function) -> Pool | None:
        """The function's pool, if it was ever called."""
        return self._pools.get(function.id)

    def lease(self, function: Function, call: Call) -> Exchange:
        """A place for this call in a worker of the function; see `Pool.lease`."""
        pool = self._pools.get(function.id) or self._make(function)
        pool.last_used = self._loop.time()
        return pool.lease(call)

    def warm(self, function: Function) -> None:
        """Load a function before anybody calls it."""
        if function.id not in self._pools:
            self._make(function)
            self._loadings[function.id].need()

    def update(self, registry: Registry, changed_paths: Iterable[Path]) -> None:
        """Functions were added, removed, moved or edited: drop, reconfigure or reload their pools."""
        paths = {str(path) for path in changed_paths}
        for number, pool in tuple(self._pools.items()):
            before = pool.function
            after = registry.functions.get((before.space, before.name))
            if after is None:
                pool.retire()
                del self._pools[number], self._loadings[number]
                continue
            pool.function = after
            if _touched(pool, before, paths):
                self._loadings[number].changed()

    def close(self) -> None:
        """End every process of every function."""
        for pool in self._pools.values():
            pool.close()

    async def tidy(self) -> None:
        """For ever: end function zygotes that were not used for long, or that are too many."""
        while True:
            await anyio.sleep(TIDY_EVERY)
            now = self._loop.time()
            loaded = [pool for pool in self._pools.values() if pool.current is not None and pool.current.alive]
            loaded.sort(key=lambda pool: pool.last_used)
            excess = len(loaded) - self._max_zygotes
            for pool in loaded:
                settings = pool.function.settings
                idle_for = now - pool.last_used
                if settings.min_workers or pool.busy or pool.loading:
                    continue
                if idle_for > ZYGOTE_IDLE * settings.idle_timeout or excess > 0:
                    pool.sleep()
                    excess -= 1

    def _make(self, function: Function) -> Pool:
        pool = Pool(function, self._tasks, lambda pool: self._loadings[function.id].need(), self._on_output)
        self._pools[function.id] = pool
        self._loadings[function.id] = Loading(pool, self._sources, self._spawner, self._limiter, debug=self._debug)
        return pool


def _touched(pool: Pool, before: Function, paths: set[str]) -> bool:
    """Whether these changes may concern what the pool has loaded, or has failed to load."""
    after = pool.function
    if (
        before.path != after.path
        or before.settings.process_settings() != after.settings.process_settings()
        or before.digest != after.digest
    ):
        return True
    current = pool.current
    if current is None or pool.error is not None:
        return bool(paths)
    known = current.snapshot.files | current.loaded.extras.keys()
    if paths & known:
        return True
    # A file that is new to it may be one that it imports under a name found elsewhere until now.
    return any(path.endswith(".py") and path.startswith(current.snapshot.search) for path in paths)
