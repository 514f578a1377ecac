"""What is kept of an invocation: no more than has a chance to be recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.config import FunctionSettings
from runtime.dialects.nyckel import invoke
from runtime.dialects.nyckel.invoke import Invoke
from runtime.dialects.nyckel.reach import Subject
from runtime.lessons import Captured, Label, Profile
from runtime.registry import Function

WORK = Function(
    id=7, space="demo", name="work", path=Path("/f.py"), line=1, kind="sync", takes=(), digest="",
    settings=FunctionSettings(),
)  # fmt: skip


class Keeper:
    """Where invocations are put."""

    def __init__(self) -> None:
        self.kept: list[Captured] = []
        self.training = SimpleNamespace(captures=self)

    def put(self, captured: Captured) -> bool:
        self.kept.append(captured)
        return True


@pytest.mark.parametrize(("known", "kept"), [(0, 3), (2, 1), (3, 0), (9, 0)])
def test_labels_that_can_no_longer_be_learned_are_not_kept(
    known: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that answers with free text would have the record written to at each call, for nothing."""
    monkeypatch.setattr(invoke, "MOST_LEARNED", 3)
    keeper = Keeper()
    labels = tuple(Label(number, f"label_{number}", str(number)) for number in range(known))
    subject = Subject(WORK, Profile(7, "demo", "work", "demo/work", "Text", "Classification", labels=labels))
    verdict = tuple((f"new {number}", 0.1) for number in range(5))
    found = Invoke(keeper, None)._keep(subject, None, verdict)  # type: ignore[arg-type]

    assert not found
    assert [len(one.names) for one in keeper.kept] == ([kept] if kept else [])
