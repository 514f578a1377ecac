"""How handlers written for other platforms are called: one module a convention, imported only where it is needed.

`handler.load` asks `adapter` for the module of a function's convention. Each has `prepare(spec)`, called
before the file is imported, and `adapt(module, spec)`, after it. What they need of a platform's own packages
the user's file has imported already.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from ..context import CallInfo

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?")

MODULES = {
    "lambda": "aws_lambda",
    "functions_framework": "functions_framework",
    "kernel": "kernel_app",
}


class Adapted(NamedTuple):
    """The user's function, from which its kind and parameters are read, and what answers a call with it."""

    handle: Callable[..., Any]
    call: Callable[[CallInfo], Any]


class Adapter(Protocol):
    """One convention."""

    def prepare(self, spec: dict[str, Any]) -> None:
        """What has to be there when the file is imported."""

    def adapt(self, module: ModuleType, spec: dict[str, Any]) -> Adapted:
        """The function that `spec` means, of the imported file; LoadError where it is not there."""


def adapter(convention: str) -> Adapter:
    """The module of a convention."""
    return import_module(f".{MODULES[convention]}", __package__)


def server_of(info: CallInfo) -> tuple[str, str]:
    """The host and the port that the client called, empty where it did not say."""
    found = _HOST.match(info.headers.get("host", ""))
    return (found[1], found[2] or "") if found is not None else ("", "")


def client_of(info: CallInfo) -> str:
    """The address that the host got the call from; empty for one that came from no client."""
    address: str = info.headers.get("x-forwarded-for", "")
    return address.rpartition(",")[2].strip()
