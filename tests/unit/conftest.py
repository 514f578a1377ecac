"""What the tests of a pool and of its parts begin with: a stage, or several, cleared after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.simulated import MakeStage, Stage, jump_clocks


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeStage]:
    """Makes stages; `loaded`: the pool has its first generation. For tests that are `ON_STAGE`."""
    jump_clocks(monkeypatch)
    stages: list[Stage] = []

    def new(kind: str = "sync", *, loaded: bool = True, **settings: Any) -> Stage:
        stages.append(Stage(kind, **settings))
        if loaded:
            stages[-1].swap()
        return stages[-1]

    yield new
    for stage in stages:
        await stage.close()
