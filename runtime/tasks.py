"""Background work of the host: one piece that fails is logged, and takes nothing else with it.

Given by `host.py` to everything below it that starts work of its own accord.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.abc

log = logging.getLogger("spaces.host")


class Tasks:
    """A task group whose tasks may fail: what one raises is a mistake of ours, and no reason to end the host."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self._group = group

    def start_soon(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run `work(*arguments)` until it ends, or until the host does."""
        self._group.start_soon(self._run, work, arguments)

    async def _run(self, work: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> None:
        try:
            await work(*arguments)
        except Exception:
            log.exception("%s failed in the host", getattr(work, "__qualname__", work))
