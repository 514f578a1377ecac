"""What a zygote is told of a function and its generation. Made by `generation.py`, read by `worker/zygote.py`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .bases import passed_environment
from .registry import Function
from .snapshots import Snapshot
from .worker.process import OPEN_FILES

NOTHING: Mapping[str, str] = MappingProxyType({})


def specification(
    function: Function, snapshot: Snapshot, *, environment: Mapping[str, str] = NOTHING, debug: bool
) -> dict[str, Any]:
    """What a zygote is told of a function: the JSON that `worker/zygote.py` reads.

    `environment` is the host's; where the settings have a variable of the same name, that one is passed.
    """
    settings = function.settings
    return {
        "space": function.space,
        "name": function.name,
        "function_id": function.id,
        "convention": snapshot.entrypoint.convention,
        "target": snapshot.entrypoint.target,
        "app": snapshot.entrypoint.app,
        "entry": snapshot.entry,
        "folder": snapshot.folder,
        "search": snapshot.search,
        "modules": [
            [module.name, module.path, module.code.decode("latin-1"), module.package, module.late]
            for module in snapshot.modules
        ],
        "env": passed_environment({**environment, **settings.env}),
        "secrets": settings.secrets,
        "memory": settings.memory,
        "open_files": OPEN_FILES,
        "fork": settings.fork,
        "concurrency": settings.concurrency,
        "max_body": settings.max_body,
        "max_response": settings.max_response,
        "debug": debug,
        "preload": settings.preload,
    }
