"""The first process in a function environment: `python -P <this file> DOOR [MODULE…]`, started by `bases.py`.

Mounts this directory as the private package `_spaces_worker`, so that nothing of ours is importable by
a handler under a name it might want, and becomes the base zygote (`base_zygote.py`).
"""

from __future__ import annotations

import importlib.util
import os
import sys

PRIVATE_NAME = "_spaces_worker"


def mount() -> None:
    """Make this directory importable as `_spaces_worker`, whatever is on sys.path."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.util.spec_from_file_location(
        PRIVATE_NAME, os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    mount()
    importlib.import_module(f"{PRIVATE_NAME}.at_fork")  # before anything brings in `threading` or `logging`
    base_zygote = importlib.import_module(f"{PRIVATE_NAME}.base_zygote")
    base_zygote.serve_base(int(sys.argv[1]), sys.argv[2:])
