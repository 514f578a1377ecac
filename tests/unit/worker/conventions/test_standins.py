"""Stand-ins: what they give, and that they give way to whatever else has the name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.worker.conventions import standins
from tests.unit.worker.conventions.imported import SPEC


@pytest.fixture(autouse=True)
def _importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test does to the import system ends with it."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "function", raising=False)


def variables() -> Any:
    """What `from function import variables` gives."""
    sys.modules.pop("function", None)
    return importlib.import_module("function").variables


def test_altairs_variables_are_the_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those in its own file, which go first and are read at every call."""
    standins.serve("function", SPEC)
    found = variables()
    assert (found.get("key"), found.get("other"), found.exists("other")) == ("value", "", False)
    monkeypatch.setenv("_SECRETS_PATH", str(tmp_path))
    assert found.get("key") == "value"
    stored = '{"key": {"value": 1, "type": "number"}, "other": {"value": "x", "type": "string"}}'
    (tmp_path / "function-variables").write_text(stored)
    assert (found.get("key"), found.get("other"), found.exists("other")) == (1, "x", True)


def test_a_module_of_the_name_goes_first(tmp_path: Path) -> None:
    """Installed, or the function's own."""
    (tmp_path / "function.py").write_text("variables = 'installed'\n")
    standins.serve("function", SPEC)
    sys.path.append(str(tmp_path))
    importlib.invalidate_caches()
    assert variables() == "installed"
    before = len(sys.meta_path)
    standins.serve("function", {**SPEC, "modules": [["functions.s.f"], ["functions.s.function"]]})
    assert len(sys.meta_path) == before


def test_nothing_else_is_served() -> None:
    """Other modules are missing as ever."""
    standins.serve("function", SPEC)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("function_of_something")
