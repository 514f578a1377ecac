"""Which function an id means: its number in base 36, or its name as a person writes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.calls import function_id
from runtime.config import FunctionSettings
from runtime.dialects.nyckel.reach import Reach
from runtime.lessons import ids
from runtime.registry import Function, Registry

LABELS = ("demo/mood", "demo/tone-of-voice", "my-space/mood")


def function(label: str) -> Function:
    space, name = label.split("/")
    return Function(
        id=function_id(space, name), space=space, name=name, path=Path(f"/{label}.py"), line=1, kind="sync", takes=(),
        digest="", settings=FunctionSettings(),
    )  # fmt: skip


FUNCTIONS = {(each.space, each.name): each for each in map(function, LABELS)}
REGISTRY = Registry(("demo", "my-space"), FUNCTIONS)
HOST = SimpleNamespace(registry=REGISTRY, find=REGISTRY.find)


def found(id: str) -> str | None:
    function = Reach(HOST)._found(id)  # type: ignore[arg-type]
    return function and function.label


@pytest.mark.parametrize("label", LABELS)
def test_an_id_and_a_name_are_the_same_function(label: str) -> None:
    """With hyphens in either part of the name, too."""
    id = ids.function_text(function_id(*label.split("/")))

    assert found(id) == found(id.removeprefix("function_")) == found(label.replace("/", "-")) == label


@pytest.mark.parametrize(
    "id", ["", "-", "demo-", "-mood", "demo", "demo-none", "demo/mood", "function_demo-mood", "0" * 16]
)
def test_what_is_none_finds_none(id: str) -> None:
    """Whatever it is."""
    assert found(id) is None
