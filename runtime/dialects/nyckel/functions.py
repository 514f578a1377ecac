"""Functions, what is known of them, and projects: `/functions`, `/functions/{function}`, `/projects`.

Mounted by `__init__.py`, asks `host.py` and its `training`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...config import TRAINED
from ...errors import BadRequest, Conflict
from ...host import Host
from ...lessons import Counts, ids
from ...payload import read_json
from . import queries
from .reach import Reach, Subject, told

LIMIT = 1024 * 1024  # bytes of a body without samples
LONGEST_NAME = 500
AT = "/functions/{function}"


class NewFunction(msgspec.Struct, frozen=True):
    """What a function is created from."""

    name: str
    input: str
    output: str
    projectId: str | None = None


class ChangedFunction(msgspec.Struct, frozen=True):
    """What can be changed of it; its input and output cannot."""

    name: str | None = None
    input: str | None = None
    output: str | None = None
    projectId: str | None = None


class NewProject(msgspec.Struct, frozen=True):
    """What a project is created from."""

    name: str


class Functions:
    """The endpoints."""

    def __init__(self, host: Host, reach: Reach) -> None:
        self._host = host
        self._reach = reach

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route("/functions", self._list, methods=["GET"]),
            Route("/functions", self._create, methods=["POST"]),
            Route(AT, self._show, methods=["GET"]),
            Route(AT, self._change, methods=["PUT"]),
            Route(AT, self._remove, methods=["DELETE"]),
            Route(f"{AT}/summary", self._summary, methods=["GET"]),
            Route(f"{AT}/metrics", self._metrics, methods=["GET"]),
            Route("/projects", self._projects, methods=["GET"]),
            Route("/projects", self._add_project, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        start, count = queries.bounds(request.query_params)
        found = await self._reach.functions(request)
        headers = queries.link(request, {"startIndex": start + count}) if len(found) > start + count else None
        return told([_described(await self._reach.subject(one)) for one in found[start : start + count]], headers)

    async def _create(self, request: Request) -> Response:
        access = await self._reach.access(request)
        access.require("deploy", TRAINED)
        queries.flag(request.query_params, "waitUntilReady", False)  # it is ready when this is answered, in any case
        wanted = await read_json(request, NewFunction, LIMIT)
        name = checked_name(wanted.name)
        kind = _one_of("input", wanted.input, ("Text", "Image", "Tabular"))
        output = _one_of("output", wanted.output, ("Classification", "Tags"))
        function = await self._host.training.create(name, kind, output, wanted.projectId)
        return told(_described(await self._reach.subject(function)))

    async def _show(self, request: Request) -> Response:
        subject = await self._reach.function(request, "read")
        described = _described(subject)
        if "/v0.9/" in request.scope["path"]:
            described["state"] = await self._state(subject)
        return told(described)

    async def _change(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        if not profile.created:
            raise Conflict(f"`{function.label}` is a handler file, and is called as that is")
        wanted = await read_json(request, ChangedFunction, LIMIT)
        if (wanted.input or profile.input, wanted.output or profile.output) != (profile.input, profile.output):
            raise BadRequest("the input and the output of a function cannot be changed; create another one")
        title = profile.title if wanted.name is None else checked_name(wanted.name)
        await self._host.training.lessons.rename(function, title, wanted.projectId or profile.project)
        return told(_described(Subject(function, await self._host.training.lessons.profile_now(function))))

    async def _remove(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        if not profile.created:
            raise Conflict(f"`{function.label}` is a handler file; remove that, and the function is gone")
        await self._host.training.remove(function)
        return told({})

    async def _summary(self, request: Request) -> Response:
        subject = await self._reach.function(request, "read")
        function, profile = subject
        counts = await self._host.training.lessons.counts(function)
        training = await self._host.training.is_training(function, profile)
        summary: dict[str, Any] = {
            **_described(subject),
            "sampleCount": counts.samples,
            "annotatedSampleCount": counts.annotated,
            "predictionCount": _predicted(subject, counts, training),
            "labelCount": len(profile.labels),
            "fieldCount": len(profile.fields),
            "isTraining": training,
            "state": await self._state(subject),
        }
        said = {"modelId": profile.model, "accuracy": profile.training.get("accuracy"), "message": profile.problem}
        return told({**summary, **{key: value for key, value in said.items() if value not in (None, "")}})

    async def _metrics(self, request: Request) -> Response:
        subject = await self._reach.function(request, "read")
        counts = await self._host.training.lessons.counts(subject.function)
        training = await self._host.training.is_training(*subject)
        return told(
            {
                "sampleCount": counts.samples,
                "predictionCount": _predicted(subject, counts, training),
                "isTraining": training,
                "annotatedLabelCounts": counts.mentions,
                "positiveAnnotatedLabelCounts": counts.presences,
            }
        )

    async def _state(self, subject: Subject) -> str:
        """`Tuning` once it can answer; a function of the user's own always can."""
        function, profile = subject
        if profile.model or not profile.created:
            return "Tuning"
        return "Training" if await self._host.training.is_training(function, profile) else "New"

    async def _projects(self, request: Request) -> Response:
        access = await self._reach.access(request)
        access.require("read", TRAINED)
        return told([{"id": one.id, "name": one.name} for one in await self._host.training.lessons.projects()])

    async def _add_project(self, request: Request) -> Response:
        access = await self._reach.access(request)
        access.require("deploy", TRAINED)
        wanted = await read_json(request, NewProject, LIMIT)
        project = await self._host.training.lessons.add_project(checked_name(wanted.name))
        return told({"id": project.id, "name": project.name})


def checked_name(name: str) -> str:
    """A name that something may have; BadRequest."""
    if not 0 < len(name) <= LONGEST_NAME:
        raise BadRequest(f"`name` must be 1 to {LONGEST_NAME} characters")
    return name


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise BadRequest(f"`{key}` must be one of {', '.join(choices)} here")
    return value


def _described(subject: Subject) -> dict[str, Any]:
    profile = subject.profile
    found = {
        "id": ids.function_text(profile.number),
        "name": profile.title,
        "input": profile.input,
        "output": profile.output,
    }
    return {**found, "projectId": profile.project} if profile.project is not None else found


def _predicted(subject: Subject, counts: Counts, training: bool) -> int:
    """Samples that the function has an answer for: all of them, once it can answer."""
    profile = subject.profile
    ready = not profile.created or (profile.model and not training)
    return counts.samples if ready else counts.predicted
