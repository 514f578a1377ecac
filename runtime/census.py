"""What the loader has found on disk, made the registry that calls are looked up in.

Asked by `host.py` after each scan. It lets `loader.py` know nothing of settings and numbers.
"""

from __future__ import annotations

import msgspec

from .calls import function_id
from .config import Config
from .loader import Catalog
from .registry import Function, Registry


def registry_of(catalog: Catalog, config: Config, before: Registry) -> Registry:
    """The functions with their settings; those that are as they were `before` are the same objects."""
    functions = {}
    for key, found in catalog.functions.items():
        settings = config.settings(found.space, found.name)
        known = before.functions.get(key)
        if known is not None and (known.path, known.digest) == (found.path, found.digest):
            kept = known.settings is settings
            functions[key] = known if kept else msgspec.structs.replace(known, settings=settings)
            continue
        functions[key] = Function(
            id=function_id(found.space, found.name),
            space=found.space,
            name=found.name,
            path=found.path,
            line=found.line,
            kind=found.kind,
            takes=found.takes,
            digest=found.digest,
            settings=settings,
            convention=found.convention,
            target=found.target,
            app=found.app,
        )
    return Registry(spaces=catalog.spaces, functions=functions)
