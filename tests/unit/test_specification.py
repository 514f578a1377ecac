"""What a zygote is told of a function."""

from __future__ import annotations

from runtime.entrypoints import Entrypoint
from runtime.snapshots import Snapshot
from runtime.sources import Signature
from runtime.specification import specification
from tests.unit.simulated import function


def test_what_a_zygote_is_told() -> None:
    """All that its processes need, secrets among them, and of the environment what is passed on."""
    snapshot = Snapshot("demo", "stock", "/demo/stock.py", "/demo", ("/demo",), (), "d", frozenset(), frozenset())
    settings = {"env": {"OWN": "1"}, "secrets": {"key": "value"}, "memory": 5, "max_body": 7}

    told = specification(function(**settings), snapshot, debug=True)

    assert told["env"]["OWN"] == "1"
    assert "PYTEST_CURRENT_TEST" not in told["env"]
    assert (told["secrets"], told["memory"], told["max_body"], told["debug"]) == ({"key": "value"}, 5, 7, True)
    assert (told["space"], told["name"], told["folder"], told["fork"]) == ("demo", "stock", "/demo", "auto")
    assert told["open_files"] > 0
    assert (told["convention"], told["target"], told["app"]) == ("handle", "", "")


def test_a_zygote_is_told_which_function_of_the_file_it_is() -> None:
    """By the file that was taken, not by what the registry knew before."""
    entry = Entrypoint(Signature(1, "sync", ()), "kernel", "buy", "shop")
    snapshot = Snapshot("demo", "stock", "/a.py", "/", ("/",), (), "d", frozenset(), frozenset(), entry)

    told = specification(function(), snapshot, debug=False)

    assert (told["convention"], told["target"], told["app"]) == ("kernel", "buy", "shop")
