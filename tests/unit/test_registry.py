"""Registry: what is here, by name, and which part of an address is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.calls import function_id
from runtime.config import FunctionSettings
from runtime.errors import NotFound
from runtime.registry import Function, Registry


def function(space: str, name: str) -> Function:
    return Function(
        id=function_id(space, name),
        space=space,
        name=name,
        path=Path(f"/{space}/{name}.py"),
        line=1,
        kind="sync",
        takes=(),
        digest="",
        settings=FunctionSettings(),
    )


def registry(*addresses: str, spaces: tuple[str, ...] = ("demo", "empty")) -> Registry:
    functions = [function(*address.split("/")) for address in addresses]
    return Registry(spaces=spaces, functions={(each.space, each.name): each for each in functions})


def test_a_function_is_found_by_space_and_name() -> None:
    """The one of that space, when two have the name."""
    both = registry("demo/stock", "other/stock", spaces=("demo", "other"))

    assert both.lookup("demo", "stock").label == "demo/stock"
    assert both.lookup("other", "stock").label == "other/stock"


@pytest.mark.parametrize(
    ("space", "name", "message", "details"),
    [
        ("nowhere", "stock", "there is no space `nowhere` here", {"space": "nowhere"}),
        (
            "demo",
            "stok",
            "there is no function `stok` in space `demo`",
            {"space": "demo", "function": "stok"},
        ),
        (
            "empty",
            "stock",
            "there is no function `stock` in space `empty`",
            {"space": "empty", "function": "stock"},
        ),
    ],
)
def test_what_is_not_there_is_named(space: str, name: str, message: str, details: dict[str, str]) -> None:
    """The space if it is unknown, else the function."""
    with pytest.raises(NotFound) as caught:
        registry("demo/stock").lookup(space, name)

    assert (caught.value.message, caught.value.details) == (message, details)


def test_a_space_lists_its_functions_by_name() -> None:
    """Its own, and none where it has none."""
    three = registry("demo/b", "demo/a", "other/c", spaces=("demo", "other", "empty"))

    assert [each.label for each in three.in_space("demo")] == ["demo/a", "demo/b"]
    assert list(three.in_space("empty")) == []


def test_listing_every_space_looks_at_each_function_once() -> None:
    """Ten thousand spaces with one function each are listed in no more steps than one space with all of them."""

    class Counting(dict[tuple[str, str], Function]):
        looks = 0

        def items(self) -> Any:
            Counting.looks += 1
            return super().items()

    spaces = tuple(f"space-{number}" for number in range(100))
    functions = {(space, "stock"): function(space, "stock") for space in spaces}
    many = Registry(spaces=spaces, functions=Counting(functions))

    assert [each.label for space in spaces for each in many.in_space(space)] == [f"{space}/stock" for space in spaces]
    assert Counting.looks == 1


def test_an_unknown_space_has_no_list() -> None:
    """It is told apart from one with nothing in it."""
    with pytest.raises(NotFound) as caught:
        registry("demo/a").in_space("nowhere")

    assert caught.value.details == {"space": "nowhere"}


def test_it_is_replaced_and_never_changed() -> None:
    """Who has looked at it goes on with what it saw."""
    with pytest.raises(AttributeError):
        registry().functions = {}  # type: ignore[misc]
    assert Registry() == Registry((), {})


def test_a_function_is_found_by_its_number() -> None:
    """Which says nothing of its name; an unknown one is told."""
    both = registry("demo/stock", "other/stock", spaces=("demo", "other"))

    assert both.find(function_id("other", "stock")).label == "other/stock"
    with pytest.raises(NotFound, match="there is no function 7 here"):
        both.find(7)
