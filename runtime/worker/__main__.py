"""The first process in a function environment: `python -P <this file> DOOR [MODULE…]`, started by `bases.py`.

Mounts this directory as the private package `_spaces_worker`, so that nothing of ours is importable by
a handler under a name it might want, and becomes the base zygote (`base_zygote.py`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress

PRIVATE_NAME = "_spaces_worker"

#: Imported before ours, which so lie together in memory: what a call writes to is in fewer pages then.
LIBRARIES = (
    "ctypes", "dataclasses", "datetime", "decimal", "faulthandler", "inspect", "json", "msgspec", "resource",
    "selectors", "signal", "socket", "traceback", "typing", "urllib.parse", "uuid", "zlib",
)  # fmt: skip


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
    for name in LIBRARIES:
        with suppress(ImportError):  # msgspec need not be there
            importlib.import_module(name)
    base_zygote = importlib.import_module(f"{PRIVATE_NAME}.base_zygote")
    base_zygote.serve_base(int(sys.argv[1]), sys.argv[2:])
