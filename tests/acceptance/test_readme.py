"""The README's promise: its four clients, as they stand there, against this repository's own functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, Site

REPOSITORY = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## Four clients, one function$(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[str] = BLOCK.findall(SECTION.findall((REPOSITORY / "README.md").read_text())[0])


def test_there_are_four() -> None:
    """Ours, Kernel's, Cognite's and Nyckel's."""
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("block", BLOCKS, ids=["http", "kernel", "cognite", "nyckel"])
def test_each_prints_what_the_readme_says(site: Site, block: str) -> None:
    """Its last line."""
    source = REPOSITORY / "functions" / "demo" / "sentiment.py"
    site.write("demo/sentiment.py", source.read_text())
    host = site.start()
    script = block.replace("http://127.0.0.1:8000", host.url)
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "COGNITE_DISABLE_PYPI_VERSION_CHECK": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=3 * PATIENCE, env=environment
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == block.splitlines()[-1].removeprefix("# ")
