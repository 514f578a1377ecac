"""How the unit tests wait for what other tasks, threads and processes do: for it, and never for a time of a guess."""

from __future__ import annotations

from collections.abc import Callable

import anyio

PATIENCE = 20.0  # seconds: far more than anything here takes, also on a loaded machine


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until this is so."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.001)
