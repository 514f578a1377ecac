"""Stand-ins for modules that other platforms have and this environment may lack: `kernel`, and Altair's `function`.

Served by `handler.load` and `kernel_app` through a finder at the end of sys.meta_path: an installed package, or a
module of the user's, always goes first.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[..., Any]


def serve(name: str, spec: dict[str, Any]) -> None:
    """From now on `import NAME` gives the stand-in, if it would find nothing else."""
    local = {module[0].rpartition(".")[2] for module in spec["modules"][1:]}
    if name not in local:
        sys.meta_path.append(StandIn(name, spec["secrets"]))


class StandIn:
    """Finder and loader of one module."""

    def __init__(self, name: str, secrets: dict[str, str]) -> None:
        self.name = name
        self.secrets = secrets

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What importlib asks every finder."""
        return ModuleSpec(name, self) if name == self.name else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to importlib."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the names into it that handlers import."""
        vars(module).update(_kernel() if self.name == "kernel" else {"variables": Variables(self.secrets)})


# Altair: `from function import variables`.


class Variables:
    """The function's secrets, and before them those in the file that Altair's own runtime reads."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._secrets = secrets

    def get(self, name: str) -> Any:
        """A variable's value, empty text where there is none."""
        return self._all().get(name, "")

    def exists(self, name: str) -> bool:
        """Whether there is a variable of this name."""
        return name in self._all()

    def _all(self) -> dict[str, Any]:
        folder = os.environ.get("_SECRETS_PATH")
        if not folder:
            return {**self._secrets}
        try:
            with open(os.path.join(folder, "function-variables"), encoding="utf-8") as file:
                stored = json.load(file)
        except FileNotFoundError:
            stored = {}
        return {**self._secrets, **{name: each["value"] for name, each in stored.items()}}


# Kernel: what an app file needs of the package `kernel`, without its client.


class KernelContext:
    """What an action gets as its first argument."""

    def __init__(self, invocation_id: str) -> None:
        self.invocation_id = invocation_id


class KernelAction:
    """One action of an app."""

    def __init__(self, name: str, handler: Action) -> None:
        self.name = name
        self.handler = handler


class KernelApp:
    """An app and its actions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.actions: dict[str, KernelAction] = {}
        app_registry.apps[name] = self

    def action(self, name: str) -> Callable[[Action], Action]:
        """Decorator: the function becomes the action of this name."""

        def decorator(handler: Action) -> Action:
            count = len(inspect.signature(handler).parameters)
            if count not in (1, 2):
                raise TypeError("an action takes the context, or the context and the payload")

            @wraps(handler)
            def action(context: KernelContext, payload: Any = None) -> Any:
                return handler(context) if count == 1 else handler(context, payload)

            self.actions[name] = KernelAction(name, action)
            return action

        return decorator

    def get_actions(self) -> list[KernelAction]:
        """All actions."""
        return list(self.actions.values())

    def get_action(self, name: str) -> KernelAction | None:
        """The action of this name."""
        return self.actions.get(name)


class KernelAppRegistry:
    """All apps of this process."""

    def __init__(self) -> None:
        self.apps: dict[str, KernelApp] = {}

    def get_apps(self) -> list[KernelApp]:
        """Every app, in the order in which they were made."""
        return list(self.apps.values())

    def get_app_by_name(self, name: str) -> KernelApp | None:
        """The app of this name."""
        return self.apps.get(name)


class Kernel:
    """In the place of the client: it can be made, as most app files do, but not used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever the client takes."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"`{name}` needs Kernel's client, which is not installed here: pip install kernel")


app_registry = KernelAppRegistry()


def _kernel() -> dict[str, Any]:
    return {
        "App": KernelApp,
        "AsyncKernel": Kernel,
        "Kernel": Kernel,
        "KernelApp": KernelApp,
        "KernelContext": KernelContext,
        "app_registry": app_registry,
    }
