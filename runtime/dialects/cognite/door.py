"""What every endpoint of this dialect does first and last: the project, who asks, which function; JSON with an id.

Used by the other modules of the package, asks `host.py`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...authority import Access
from ...errors import BadRequest, HostError, NotFound, Unauthorized
from ...host import Host
from ...payload import read_json
from ...registry import Function
from ...request import CALL_ID, bearer

BASE = "/api/v1/projects/{project}"
PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}")
LARGEST = 2**53 - 1  # of the integers that JSON clients can hold
MOST_ITEMS = 1000  # in one request

Id = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Limit = Annotated[int, msgspec.Meta(ge=1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Endpoint = Callable[[Request], Awaitable[tuple[int, Any]]]
T = TypeVar("T")


class Shape(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """JSON of this dialect: names in camelCase, and nothing that is not known."""


class Range(Shape, frozen=True):
    """From `min` to `max`, both included; milliseconds since the epoch."""

    min: Milliseconds | None = None
    max: Milliseconds | None = None

    def has(self, value: int | None) -> bool:
        """Whether a time is in it; one that there is not is in no range."""
        if value is None:
            return self.min is None and self.max is None
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class Item(Shape, frozen=True):
    """What is asked for, by one of these."""

    id: Id | None = None
    external_id: str | None = None


class Items(Shape, frozen=True):
    """The body of byids and delete."""

    items: Annotated[list[Item], msgspec.Meta(min_length=1, max_length=MOST_ITEMS)]
    ignore_unknown_ids: bool | None = None


class NotOffered(HostError):
    """This part of the API is not offered here."""

    status = 501
    code = "not_offered"


def unknown(what: str, missing: Sequence[Mapping[str, Any]]) -> BadRequest:
    """The error that the SDK takes for "not found": 400, and what is missing. So it is for what one may not see."""
    return BadRequest(f"{what} not found", details={"missing": list(missing)})


def milliseconds(seconds: float) -> int:
    """A time as this API tells it; a thousandth of a millisecond is what floats may lack."""
    return int(seconds * 1000 + 0.001)


class Door:
    """The host as this dialect's endpoints see it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def route(self, path: str, methods: str, endpoint: Endpoint) -> BaseRoute:
        """An address. The endpoint gives a status and a value, or raises a HostError; methods with spaces between."""

        async def answer(request: Request) -> Response:
            self._number(request)
            try:
                self._check_project(request)
                status, value = await endpoint(request)
            except HostError as error:
                error.headers["X-Request-ID"] = _id_of(request)
                raise
            headers = {"X-Request-ID": _id_of(request)}
            return Response(msgspec.json.encode(value), status, headers, media_type="application/json")

        return Route(path, answer, methods=methods.split())

    def _number(self, request: Request) -> None:
        """The request's id: the client's own where it is well-formed. The log has it as the call's."""
        theirs = request.headers.get("x-call-id", "").encode("latin-1")
        request.scope["call_id"] = theirs if CALL_ID.fullmatch(theirs) else b"%d" % self.host.ids.next()

    def _check_project(self, request: Request) -> None:
        """Every project has the same functions; one that is not known is as good as a wrong token."""
        project = request.path_params.get("project")
        allowed = self.projects
        if project is None or project in allowed or (not allowed and PROJECT.fullmatch(project)):
            return
        message = f"there is no project `{project[:64]}` here"
        raise Unauthorized(message, headers={"WWW-Authenticate": "Bearer"})

    @property
    def projects(self) -> tuple[str, ...]:
        """Those that there are; none: any."""
        return self.host.config.server.projects

    async def read(self, request: Request, kind: type[T]) -> T:
        """The body of a request that is not a call."""
        return await read_json(request, kind, self.host.config.defaults.max_body)

    # Who, and which function.

    async def access(self, request: Request) -> Access:
        """Who asks; Unauthorized."""
        return await self.host.identify(_credential(request))

    async def readable(self, request: Request) -> Function:
        """The function in the address, which who asks may look at."""
        access = await self.access(request)
        return self.visible(access, number_in(request, "function"))

    def visible(self, access: Access, id: int, scope: str = "read") -> Function:
        """A function that somebody may do this to; BadRequest with what is missing where they may not even see it."""
        function = self.known(id)
        if function is not None and access.may(scope, function.space, function.name):
            return function
        raise self._refusal(access, id, function, scope)

    async def callable(self, request: Request) -> tuple[Function, str]:
        """The function in the address, to be called, and the name of who calls it; empty for somebody unknown."""
        id = number_in(request, "function")
        function = self.known(id)
        public = function is not None and self.host.authority.is_public(function.space, function.name)
        try:
            access = await self.access(request)
        except Unauthorized:
            if function is None or not public:
                raise
            return function, ""
        if function is not None and public:
            return function, access.subject
        return self.visible(access, id, "invoke"), access.subject

    def known(self, id: int) -> Function | None:
        """The function with this number."""
        try:
            return self.host.find(id)
        except NotFound:
            return None

    def missing(self, access: Access, what: str, items: Sequence[Mapping[str, Any]]) -> HostError:
        """The error for what is not there, or may not be seen; with a token, this may look different."""
        return unknown(what, items) if access.subject else access.refusal("read", None)

    def _refusal(self, access: Access, id: int, function: Function | None, scope: str) -> HostError:
        if function is not None and access.may("read", function.space, function.name):
            return access.refusal(scope, function.space, function.name)
        return self.missing(access, "Function ids", [{"id": id}])


def _credential(request: Request) -> str | None:
    return bearer(request.headers.get("authorization"))


def number_in(request: Request, name: str) -> int:
    """A number in the address; NotFound where it is none."""
    text: str = request.path_params[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise NotFound(f"there is nothing at {request.url.path}")
    return int(text)


def _id_of(request: Request) -> str:
    label: bytes = request.scope["call_id"]
    return label.decode("ascii")
