"""The text of a trained function's `handler.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime import sources
from runtime.classify.source import generated

FIELD = {"id": "field_1", "name": "Größe \U0001f600 \ud800 {x}\n\"'''\\", "type": "Number"}
NAMES = st.text(st.characters(exclude_categories=[]))


def arguments(text: str) -> dict[str, Any]:
    """What the file gives to `serve`."""
    call = ast.parse(text).body[-1]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    return {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.value.keywords}


@given(NAMES, NAMES, st.integers(0, 20))
def test_it_says_exactly_what_was_given(name: str, folder: str, fields: int) -> None:
    """Whatever names hold, the file has them as they are, and is pure ASCII."""
    function = {"name": name, "input": "Tabular", "output": "Tags", "fields": [{**FIELD, "name": name}] * fields}

    text = generated(function, folder, "model_x", keep=3)

    assert text.isascii()
    assert arguments(text) == {"function": function, "models": folder, "model": "model_x", "keep": 3}
    assert generated(function, folder, "model_x", keep=3) == text


def test_the_loader_finds_its_handle() -> None:
    """The host reads of the text that there is a `handle`."""
    text = generated({"input": "Text", "output": "Tags", "fields": [FIELD]}, "/m").encode()

    assert sources.signature(text) is not None


def test_the_host_imports_no_scikit_learn_for_it() -> None:
    """Only a worker that serves pays for scikit-learn, numpy and Pillow; and the host's environment stays as it is."""
    code = (
        "import os, sys; before = dict(os.environ); import runtime.classify.source, runtime.classify.headers;"
        "print({'sklearn', 'numpy', 'PIL', 'scipy'} & {*sys.modules}, dict(os.environ) == before)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set() True\n"
