"""Kernel's convention: `@app.action("name")` on a function of a context and a payload.

Asked by `handler.load`, once for each action: every action is a function of its own. Works through the
registry of the package `kernel`, or of its stand-in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from .. import jsons
from ..context import CallInfo
from ..handler import LoadError, kind_of
from ..head import JSON, NONE_GIVEN, Answer, whole
from . import Adapted, standins


def prepare(spec: dict[str, Any]) -> None:
    """Where the package is not installed, its stand-in is served.

    Most files make a client as they are imported, which must have some key, also where no host runs that has one.
    """
    os.environ.setdefault("KERNEL_API_KEY", "none")
    standins.serve("kernel", spec)


def adapt(module: ModuleType, spec: dict[str, Any]) -> Adapted:
    """The action `spec["target"]`; what it returns is answered as JSON, whatever it is."""
    kernel = import_module("kernel")
    handler, limit = _action(kernel.app_registry, spec["app"], spec["target"]), spec["max_response"]

    def run(info: CallInfo) -> Any:
        # The payload must be given even when there is none: the wrapper knows no default.
        return handler(kernel.KernelContext(invocation_id=str(info.call_id)), info.json() if info.body else None)

    async def call(info: CallInfo) -> Answer:
        return _json(await run(info), limit)

    return Adapted(handler, call if kind_of(handler) == "async" else lambda info: _json(run(info), limit))


def _action(registry: Any, app: str, name: str) -> Callable[..., Any]:
    """The handler of an action, preferably of that app."""
    named = registry.get_app_by_name(app)
    for each in ([] if named is None else [named]) + registry.get_apps():
        action = each.get_action(name)
        if action is not None:
            handler: Callable[..., Any] = action.handler
            return handler
    raise LoadError(f"there is no action `{name}` once the file has been imported")


def _json(value: Any, limit: int) -> Answer:
    return whole(200, NONE_GIVEN, JSON, jsons.dumps(value), limit)
