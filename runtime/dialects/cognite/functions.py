"""Functions as this API shows them: by id or external id, as a list; what they may use; and what cannot be done here.

Mounted by `__init__.py`. A function is known by its number, and by `space/name` as its external id.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from ...authority import Access
from ...errors import BadRequest
from ...registry import Function
from ...status import FunctionStatus
from .door import BASE, Door, Item, Items, Limit, NotOffered, Range, Shape, milliseconds

MOST = 10_000  # functions in one answer, which has no second page
USUAL = 100
MIB, GIB = 1024**2, 1024**3
HIDDEN = "***"
RUNTIME = f"py{sys.version_info.major}{sys.version_info.minor}"
FILES = "functions are files here: put handler files into the folder of their space, and take them out of it"


class Failure(msgspec.Struct, frozen=True):
    """Why something failed; both are always there."""

    message: str
    trace: str


class Shown(Shape, frozen=True):
    """A function."""

    id: int
    name: str
    external_id: str
    status: str
    file_id: int
    created_time: int
    owner: str
    function_path: str
    secrets: dict[str, str]
    env_vars: dict[str, str]
    cpu: float
    runtime: str
    runtime_version: str
    function_type: str
    metadata: dict[str, str]
    memory: float | None = None
    error: Failure | None = None


class Filter(Shape, frozen=True):
    """Which functions to list."""

    name: str | None = None
    owner: str | None = None
    file_id: int | None = None
    status: str | None = None
    external_id_prefix: str | None = None
    created_time: Range | None = None
    metadata: dict[str, str] | None = None

    def has(self, shown: Shown) -> bool:
        """Whether a function is asked for."""
        wanted = {"name": self.name, "owner": self.owner, "file_id": self.file_id, "status": self.status}
        return (
            all(value is None or getattr(shown, field) == value for field, value in wanted.items())
            and shown.external_id.startswith(self.external_id_prefix or "")
            and (self.created_time is None or self.created_time.has(shown.created_time))
            and not self.metadata  # no function has any
        )


class ListBody(Shape, frozen=True):
    """Of POST functions/list."""

    filter: Filter | None = None
    limit: Limit | None = None


class Functions:
    """The pages of functions. Each shows only what who asks may read."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._host = door.host

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        route = self._door.route
        functions = f"{BASE}/functions"
        return [
            route(f"{functions}/byids", "POST", self._by_ids),
            route(f"{functions}/list", "POST", self._list),
            route(f"{functions}/limits", "GET", self._limits),
            route(f"{functions}/status", "GET POST", self._status),
            route(f"{functions}/delete", "POST", self._not_offered),
            route(f"{BASE}/files", "POST", self._not_offered),
            route(f"{BASE}/files/byids", "POST", self._not_offered),
            route(functions, "GET", self._plain_list),
            route(functions, "POST", self._not_offered),
            route(f"{functions}/{{function}}", "GET", self._one),
        ]

    async def _by_ids(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        body = await self._door.read(request, Items)
        found = [self._find(access, item) for item in body.items]
        missing = [item for item, function in zip(body.items, found, strict=True) if function is None]
        if missing and not body.ignore_unknown_ids:
            raise self._door.missing(access, "Function ids", [msgspec.to_builtins(item) for item in missing])
        return 200, {"items": await self._shown([function for function in found if function is not None])}

    def _find(self, access: Access, item: Item) -> Function | None:
        if (item.id is None) == (item.external_id is None):
            raise BadRequest("each item needs either an id or an externalId")
        if item.id is not None:
            function = self._door.known(item.id)
        else:
            space, _, name = (item.external_id or "").partition("/")
            function = self._host.registry.functions.get((space, name))
        if function is None or not access.may("read", function.space, function.name):
            return None
        return function

    async def _one(self, request: Request) -> tuple[int, Any]:
        function = await self._door.readable(request)
        (shown,) = await self._shown([function])
        return 200, shown

    async def _list(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        body = await self._door.read(request, ListBody)
        return await self._found(access, body.filter or Filter(), body.limit or USUAL)

    async def _plain_list(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        limit = number_of(request.query_params.get("limit", str(USUAL)), "limit")
        return await self._found(access, Filter(), limit)

    async def _found(self, access: Access, wanted: Filter, limit: int) -> tuple[int, Any]:
        everything = sorted(self._host.registry.functions.values(), key=lambda each: (each.space, each.name))
        functions = [each for each in everything if access.may("read", each.space, each.name)]
        shown = [each for each in await self._shown(functions) if wanted.has(each)]
        return 200, {"items": shown[: min(limit, MOST)]}

    async def _shown(self, functions: Sequence[Function]) -> list[Shown]:
        paths = [function.path for function in functions]
        times = await anyio.to_thread.run_sync(_modified, paths, self._host.started_at) if paths else []
        states = await self._host.statuses(functions)
        return [self._describe(*each) for each in zip(functions, times, states, strict=True)]

    def _describe(self, function: Function, modified: float, status: FunctionStatus) -> Shown:
        settings = function.settings
        failed = status.load_error if status.state == "failed" else None
        error = Failure(failed["message"], "") if failed else None
        return Shown(
            id=function.id,
            name=function.name,
            external_id=function.label,
            status="Failed" if error else "Ready",
            file_id=file_id(function),
            created_time=milliseconds(modified),
            owner="",
            function_path=function.path.name,
            secrets=dict.fromkeys(settings.secrets, HIDDEN),
            env_vars=dict.fromkeys(settings.env, HIDDEN),
            cpu=1.0,
            runtime=RUNTIME,
            runtime_version=f"Python {platform.python_version()}",
            function_type="classic",
            metadata={},
            memory=None if settings.memory is None else settings.memory / GIB,
            error=error,
        )

    async def _limits(self, request: Request) -> tuple[int, Any]:
        await self._door.access(request)
        defaults = self._host.config.defaults
        memory = (_all_memory() if defaults.memory is None else defaults.memory) / GIB
        return 200, {
            "timeoutMinutes": math.ceil(defaults.async_timeout / 60),
            "cpuCores": {"min": 1.0, "max": 1.0, "default": 1.0},
            "memoryGb": dict.fromkeys(("min", "max", "default"), memory),
            "runtimes": [RUNTIME],
            "responseSizeMb": max(1, defaults.max_response // MIB),
        }

    async def _status(self, request: Request) -> tuple[int, Any]:
        await self._door.access(request)
        return 200, {"status": "activated"}

    async def _not_offered(self, request: Request) -> tuple[int, Any]:
        await self._door.access(request)
        raise NotOffered(FILES)


def file_id(function: Function) -> int:
    """A number for the function's file: it stands for no file of this API."""
    return function.id ^ 1 or 2


def number_of(text: str, what: str) -> int:
    """A positive number of a query; BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text)):
        raise BadRequest(f"{what} must be a number above 0")
    return int(text)


def _all_memory() -> int:
    """Bytes that this machine has: what a function without a limit may use."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _modified(paths: Iterable[Path], otherwise: float) -> list[float]:
    """When these files were last written. Blocks."""
    found = []
    for path in paths:
        try:
            found.append(path.stat().st_mtime)
        except OSError:  # it was removed a moment ago
            found.append(otherwise)
    return found
