"""What the journal in an SQLite file keeps of what it has read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.journal import reader
from runtime.journal.sqlite import SQLiteJournal

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(("seconds", "gap"), [(0.0, 0.05), (0.01, 0.2), (10.0, 2.0)])
async def test_delayed_calls_are_not_counted_all_the_time(
    seconds: float, gap: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longer it takes the seldomer, but every two seconds at least; until then what was counted last is told."""
    asked: list[int] = []
    now = 1000.0

    def count(*_: Any) -> tuple[dict[tuple[str, str], int], float]:
        asked.append(1)
        return {("demo", "one"): len(asked)}, seconds

    monkeypatch.setitem(reader._QUESTIONS, "delayed", count)
    journal = SQLiteJournal(tmp_path / "journal.db", uptime=lambda: now)
    await journal.open()
    first = await journal.delayed()
    now += gap - 0.001
    same = await journal.delayed()
    now += 0.002
    another = await journal.delayed()
    await journal.close()

    assert same is first
    assert first == {("demo", "one"): 1}
    assert another == {("demo", "one"): 2}
