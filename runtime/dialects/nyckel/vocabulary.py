"""Labels and fields: `/functions/{function}/labels`, `/functions/{function}/fields`.

Mounted by `__init__.py`, asks `lessons` through `host.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...errors import BadRequest
from ...host import Host
from ...lessons import Label, Lessons
from ...payload import read_json
from . import queries
from .functions import AT, LIMIT, checked_name
from .reach import Reach, told

LABELS, FIELDS = f"{AT}/labels", f"{AT}/fields"


class LabelBody(msgspec.Struct, frozen=True):
    """A label as it is sent; the SDK sends nulls."""

    name: str
    description: str | None = None
    metadata: dict[str, str] | None = None


class FieldBody(msgspec.Struct, frozen=True):
    """A field as it is sent."""

    name: str
    type: Literal["Text", "Number", "Image"]


class FieldChange(msgspec.Struct, frozen=True):
    """What can be changed of a field, which is its name."""

    name: str
    type: str | None = None


class Vocabulary:
    """The endpoints."""

    def __init__(self, host: Host, reach: Reach) -> None:
        self._host = host
        self._reach = reach

    @property
    def _lessons(self) -> Lessons:
        return self._host.training.lessons

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route(LABELS, self._labels, methods=["GET"]),
            Route(LABELS, self._add_label, methods=["POST"]),
            Route(f"{LABELS}/{{label}}", self._label, methods=["GET"]),
            Route(f"{LABELS}/{{label}}", self._change_label, methods=["PUT"]),
            Route(f"{LABELS}/{{label}}", self._remove_label, methods=["DELETE"]),
            Route(FIELDS, self._fields, methods=["GET"]),
            Route(FIELDS, self._add_field, methods=["POST"]),
            Route(f"{FIELDS}/{{field}}", self._field, methods=["GET"]),
            Route(f"{FIELDS}/{{field}}", self._rename_field, methods=["PUT"]),
            Route(f"{FIELDS}/{{field}}", self._remove_field, methods=["DELETE"]),
        ]

    async def _labels(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "read")
        profile = await self._lessons.profile_now(function)
        return _page(request, [_shown(label) for label in profile.labels])

    async def _add_label(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        body = await read_json(request, LabelBody, LIMIT)
        label = await self._lessons.add_label(function, checked_name(body.name), body.description, body.metadata)
        return told(_shown(label))

    async def _label(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "read")
        return told(_shown(await self._lessons.label(function, request.path_params["label"])))

    async def _change_label(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        body = await read_json(request, LabelBody, LIMIT)
        label = await self._lessons.change_label(
            function, request.path_params["label"], checked_name(body.name), body.description, body.metadata
        )
        return told(_shown(label))

    async def _remove_label(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        await self._lessons.remove_label(function, request.path_params["label"])
        return told({})

    async def _fields(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "read")
        profile = await self._lessons.profile_now(function)
        return _page(request, list(profile.fields))

    async def _add_field(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        if profile.input != "Tabular":
            raise BadRequest(f"this function takes {profile.input}; only Tabular has fields")
        body = await read_json(request, FieldBody, LIMIT)
        return told(await self._lessons.add_field(function, checked_name(body.name), body.type))

    async def _field(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "read")
        return told(await self._lessons.field(function, request.path_params["field"]))

    async def _rename_field(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        body = await read_json(request, FieldChange, LIMIT)
        known = await self._lessons.field(function, request.path_params["field"])
        if body.type not in (None, known.type):
            raise BadRequest("the type of a field cannot be changed; create another one")
        return told(await self._lessons.rename_field(function, known.id, checked_name(body.name)))

    async def _remove_field(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        await self._lessons.remove_field(function, request.path_params["field"])
        return told({})


def _page(request: Request, found: list[Any]) -> Response:
    """One page of a list; without a wish all of it, because clients read only what there is now."""
    query = request.query_params
    if not any(key in query for key in ("startIndex", "count", "batchSize")):
        return told(found)
    start, count = queries.bounds(query)
    headers = queries.link(request, {"startIndex": start + count}) if len(found) > start + count else None
    return told(found[start : start + count], headers)


def _shown(label: Label) -> dict[str, Any]:
    """A label without what it does not have."""
    shown: dict[str, Any] = {"id": label.id, "name": label.name}
    if label.description is not None:
        shown["description"] = label.description
    if label.metadata is not None:
        shown["metadata"] = label.metadata
    return shown
