"""A file of another platform, imported as a function zygote does it, and calls to it."""

from __future__ import annotations

import json
import textwrap
from types import ModuleType
from typing import Any

from runtime.worker.context import CallInfo
from runtime.worker.conventions import adapter
from runtime.worker.handler import Handler
from runtime.worker.head import Answer
from runtime.worker.multi import header_pairs

SPEC: dict[str, Any] = {
    "space": "shop", "name": "orders", "entry": "/shop/orders.py", "folder": "/shop", "debug": False, "concurrency": 1,
    "max_body": 10_000, "max_response": 10_000, "memory": 64 * 1024 * 1024, "secrets": {"key": "value"},
    "modules": [["functions.shop.orders"]], "app": "",
}  # fmt: skip


def call(
    body: bytes = b"",
    path: bytes = b"",
    query: bytes = b"",
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> CallInfo:
    """One call."""
    raw = b"\0".join(part.encode("latin-1") for pair in (headers or {}).items() for part in pair)
    return CallInfo(7, 8, "shop", "orders", method, path, query, raw, body, 4e9, 1, 10_000)


def loaded(convention: str, target: str, text: str, **spec: Any) -> Handler:
    """The function `target` of a file with this text."""
    module = ModuleType("orders")
    exec(compile(textwrap.dedent(text), "/shop/orders.py", "exec"), vars(module))
    told = {**SPEC, "convention": convention, "target": target, **spec}
    return Handler(told, *adapter(convention).adapt(module, told))


def shown(answer: Answer) -> tuple[int, list[tuple[str, str]], Any]:
    """Status, headers but the length, and body: decoded where it is JSON."""
    headers = [pair for pair in header_pairs(answer.headers) if pair[0] != "content-length"]
    is_json = ("content-type", "application/json") in headers
    return answer.status, headers, json.loads(answer.body) if is_json else answer.body
