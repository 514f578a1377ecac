"""All pools of a host: one for each function that was ever called, made when it first is.

Used by `host.py`. A function on disk that nobody calls costs nothing here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import anyio
import anyio.abc
import msgspec

from .calls import Call
from .deadlines import Deadlines
from .entrypoints import FILES
from .errors import Draining
from .exchange import Exchange
from .loading import Loading, Sources
from .pool import OnOutput, Pool
from .registry import Function, Registry
from .share import WHOLE, Share
from .spawner import Spawner
from .specification import NOTHING
from .tasks import Tasks
from .telemetry import FunctionStats

LOADS_AT_ONCE = 4 * (os.cpu_count() or 1)
TIDY_EVERY = 1.0  # seconds
ZYGOTE_IDLE = 10  # a function zygote ends after this many idle timeouts without a worker


class Pools:
    """Which pool a function's calls go to, and what happens to pools as functions change."""

    def __init__(
        self,
        sources: Sources,
        spawner: Spawner,
        tasks: Tasks,
        on_output: OnOutput,
        *,
        max_zygotes: int,
        environment: Callable[[Function], Mapping[str, str]] = lambda function: NOTHING,
        stats: Callable[[str, str], FunctionStats] = lambda space, name: FunctionStats(),
        share: Share = WHOLE,
        debug: bool,
    ) -> None:
        """`share`: what this host has of each limit that holds for all that serve the same functions."""
        self._sources = sources
        self._spawner = spawner
        self._tasks = tasks
        self._on_output = on_output
        self._share = share
        self._max_zygotes = max(1, share.part(max_zygotes))
        self._environment = environment
        self._stats = stats
        self._debug = debug
        self._limiter = anyio.CapacityLimiter(max(1, share.part(LOADS_AT_ONCE)))
        self._loadings: dict[int, Loading] = {}
        self._leaving: list[Pool] = []  # of functions that are no more, with calls that still run
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)

    def __iter__(self) -> Iterator[Pool]:
        return (loading.pool for loading in self._loadings.values())

    @property
    def busy(self) -> bool:
        """Whether a call waits or runs anywhere."""
        return any(pool.busy for pool in (*self, *self._leaving))

    def find(self, function: Function) -> Pool | None:
        """The function's pool, if it was ever called."""
        loading = self._loadings.get(function.id)
        return loading.pool if loading is not None else None

    def lease(self, function: Function, call: Call) -> Exchange:
        """A place for this call in a worker of the function; see `Pool.lease`."""
        pool = (self._loadings.get(function.id) or self._make(function)).pool
        pool.last_used = self._loop.time()
        return pool.lease(call)

    def warm(self, function: Function) -> None:
        """Load a function before anybody calls it; again, where its processes have ended."""
        loading = self._loadings.get(function.id)
        if loading is None:
            self._make(function).need()
        elif loading.pool.state == "cold":
            loading.pool.last_used = self._loop.time()
            loading.need()

    def update(self, registry: Registry, changed_paths: Iterable[Path], *, everything: bool = False) -> None:
        """Functions were added, removed, moved or edited: drop, reconfigure or reload their pools.

        `everything`: any file may have changed, whether it is among the paths or not.
        """
        paths = [str(path) for path in changed_paths]
        self._leaving = [pool for pool in self._leaving if pool.busy]
        changed: list[Loading] = []
        sleeping: list[Loading] = []
        for number, loading in tuple(self._loadings.items()):
            pool, before = loading.pool, loading.pool.function
            after = registry.functions.get((before.space, before.name))
            if after is None:
                del self._loadings[number]
                self._leaving.append(pool)
                loading.close()
                pool.retire()
                continue
            pool.function = self._own_part(after)
            if before.settings != pool.function.settings:
                pool.reconfigured()
            if everything or _is_other(before, after):
                changed.append(loading)
            elif _concerns(pool, paths):  # a file that many may import, of which most are not in use
                (sleeping if pool.state == "cold" else changed).append(loading)
        # Loading takes its time: what is in use is not to wait for what is not.
        for loading in sorted(changed, key=lambda one: one.pool.last_used, reverse=True):
            loading.changed()
        for loading in sleeping:
            loading.outdated()

    def cut(self) -> None:
        """Every call is over, as far as its client is concerned: the host is ending."""
        for pool in (*self, *self._leaving):
            pool.refuse_waiting(Draining())
        for exchange in self._deadlines.waiting():
            exchange.failed(Draining())

    def close(self) -> None:
        """End every process of every function."""
        for pool in (*self, *self._leaving):
            pool.close()

    async def tidy(self) -> None:
        """For ever: end function zygotes that were not used for long, or that are too many."""
        while True:
            await anyio.sleep(TIDY_EVERY)
            now = self._loop.time()
            loaded = [pool for pool in self if pool.current is not None and pool.current.alive]
            self._spawner.tidy(pool.function.settings.preload for pool in self)
            loaded.sort(key=lambda pool: pool.last_used)
            excess = len(loaded) - self._max_zygotes
            for pool in loaded:
                settings = pool.function.settings
                idle_for = now - pool.last_used
                if settings.min_workers or pool.busy or pool.loading:
                    continue
                if idle_for > ZYGOTE_IDLE * settings.idle_timeout or excess > 0:
                    pool.retire()
                    excess -= 1

    def _own_part(self, function: Function) -> Function:
        """The function as this host alone is to keep to its settings. (`max_workers` its zygote counts.)"""
        if self._share.of == 1:
            return function
        settings, part = function.settings, self._share.part
        own = {"min_workers": part(settings.min_workers), "max_waiting": part(settings.max_waiting)}
        return msgspec.structs.replace(function, settings=msgspec.structs.replace(settings, **own))

    def _make(self, function: Function) -> Loading:
        pool = Pool(self._own_part(function), self._tasks, self._deadlines, lambda _: loading.need(), self._on_output)
        pool.stats = self._stats(function.space, function.name)
        loading = Loading(
            pool, self._sources, self._spawner, self._limiter, environment=self._environment, debug=self._debug
        )
        self._loadings[function.id] = loading
        return loading


def _is_other(before: Function, after: Function) -> bool:
    """Whether a process of the one cannot serve the other."""
    return (
        before.path != after.path
        or before.digest != after.digest
        or before.settings.process_settings() != after.settings.process_settings()
    )


def _concerns(pool: Pool, paths: Iterable[str]) -> bool:
    """Whether a change of these files or folders may concern what the pool has loaded, or failed to load."""
    if pool.current is None or pool.error is not None:
        entry = pool.function.path
        home = entry.parent.parent if entry.name in FILES else entry.parent
        return any(_is_below(path, str(home)) for path in paths)
    snapshot = pool.current.snapshot
    known = snapshot.files | pool.current.loaded.extras.keys()
    for path in paths:
        if path in known or any(_is_below(file, path) for file in known):
            return True
        # What is new to it may be what it imports under a name that was found elsewhere until now.
        if any(_is_below(path, folder) and snapshot.may_import(path, folder) for folder in snapshot.search):
            return True
    return False


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
