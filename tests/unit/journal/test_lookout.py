"""What those who wait for calls of other owners are told, where the journal is not a journal."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from runtime.errors import JournalError
from runtime.journal import lookout as module
from runtime.journal.lookout import Lookout, Question
from runtime.journal.watch import Watch
from tests.unit.waiting import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_who_waits_hears_of_a_journal_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """He asks then, and is told what is wrong; what was known before is looked at anew. Alone, nobody looks."""
    monkeypatch.setattr(module, "EVERY", 0.001)
    said: list[Any] = [(1, {7: "as it was"}), (1, {}), JournalError("The disk is gone."), (1, {7: "as it was"})]
    versions: list[object] = []

    async def ask(kind: str, question: Question) -> Any:
        versions.append(question[0])
        answer = said.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = Watch()
    lookout = Lookout(watch, ask)
    for expected in ([None], [None, 1, 1], [None, 1, 1, None]):
        watch.reading()
        lookout.wake()
        with anyio.fail_after(PATIENCE):
            assert await watch.changed(7, PATIENCE * 2)
        assert versions == expected

    assert lookout._timer is None
    lookout.close()
