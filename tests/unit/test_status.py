"""What is shown of a function that several host processes serve."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from runtime.status import STATES, FunctionStatus, merged, relative

COLD = FunctionStatus("d", "who", 1, "d/who.py", 1, "sync", (), "cold", None, 0, 0, 0, None)


def state(name: str, workers: int = 0, busy: int = 0, waiting: int = 0) -> FunctionStatus:
    failed = {"message": "no"} if name == "failed" else None
    return msgspec.structs.replace(
        COLD, state=name, workers=workers, busy=busy, waiting=waiting, load_error=failed,
        generation="abc" if name == "ready" else None,
    )  # fmt: skip


def test_workers_and_calls_are_added_up() -> None:
    """Those of all processes."""
    found = merged(state("ready", 1, 1, 0), [state("ready", 2, 1, 5), COLD])

    assert (found.workers, found.busy, found.waiting) == (3, 2, 5)


@pytest.mark.parametrize(("one", "other"), [*itertools.product(STATES, STATES)])
def test_the_state_is_the_furthest(one: str, other: str) -> None:
    """Whoever is asked; an error that only one has is shown."""
    found = merged(state(one), [state(other)])

    assert found.state == min(one, other, key=STATES.index)
    assert found == merged(state(other), [state(one)])
    assert (found.generation is not None) == ("ready" in (one, other))
    assert (found.load_error is not None) == ("failed" in (one, other))


def test_alone_it_is_itself() -> None:
    """Nobody else has called it."""
    assert merged(state("ready", 1, 1, 1), []) == state("ready", 1, 1, 1)


@pytest.mark.parametrize(
    ("path", "root", "shown"),
    [
        ("/srv/functions/demo/stock.py", "/srv", "functions/demo/stock.py"),
        ("/srv2/stock.py", "/srv", "/srv2/stock.py"),
        ("/srv/stock.py", "/", "srv/stock.py"),
        ("/else/srv/stock.py", "/srv", "/else/srv/stock.py"),
    ],
)
def test_paths_are_shown_from_root(path: str, root: str, shown: str) -> None:
    """Those that are below it."""
    assert relative(Path(path), Path(root)) == shown
