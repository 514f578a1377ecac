"""What `spaces new` writes: handlers that parse, say how to call them, and are of the kind that was asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from runtime import config
from runtime.errors import ConfigError
from runtime.loader import Loader
from runtime.scaffold import KINDS, write


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_a_function_of_its_kind(tmp_path: Path, kind: str) -> None:
    """The loader finds it, with the arguments that it takes, and hints at nothing."""
    path = write(tmp_path / "functions", "demo", f"my-{kind}", kind)
    catalog = Loader(config.load(tmp_path, environ={})).scan()
    found = catalog.functions["demo", f"my-{kind}"]
    kinds = {"async": "async", "stream": "async_generator"}

    assert found.path == path
    assert found.kind == kinds.get(kind, "sync")
    assert "data" in found.takes
    assert catalog.hints == ()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_says_how_to_try_it(tmp_path: Path, kind: str) -> None:
    """With its own address; no placeholder is left, and the text is as a formatter would have it."""
    text = write(tmp_path, "demo", "stock", kind).read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""

    assert "http://127.0.0.1:8000/spaces/demo/functions/stock/invoke" in docstring
    assert "{{" not in text
    assert "{space}" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_folders_are_made(tmp_path: Path) -> None:
    """The space's, and those above it."""
    path = write(tmp_path / "new" / "functions", "demo", "stock", "json")

    assert path == tmp_path / "new" / "functions" / "demo" / "stock.py"
    assert path.is_file()


@pytest.mark.parametrize("taken", ["demo/stock.py", "demo/stock/handler.py"])
def test_a_handler_that_is_there_is_not_touched(tmp_path: Path, taken: str) -> None:
    """In either of the forms that a function has; the message names the file."""
    there = tmp_path / taken
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    with pytest.raises(ConfigError, match=taken):
        write(tmp_path, "demo", "stock", "json")

    assert there.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*.py") if path != there] == []


def test_a_helper_folder_of_that_name_is_in_nobodys_way(tmp_path: Path) -> None:
    """Without a handler.py it is no function."""
    (tmp_path / "demo" / "stock").mkdir(parents=True)

    assert write(tmp_path, "demo", "stock", "json").is_file()
