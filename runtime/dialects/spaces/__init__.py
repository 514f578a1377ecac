"""Our own dialect: functions run now or submitted to be run, calls looked up, and what is to be known of functions.

Mounted by `app.py`, asks `host.py`. The answers are those of docs/reference/http.md.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from ...authority import Access
from ...calls import Headers
from ...errors import HostError, envelope
from ...host import Host
from ...registry import Function
from ...request import CALL_ID, Address, ClientLeft
from .admission import credential, require, whoever
from .calls import Calls
from .invoke import Invoke
from .submit import Submit

JSON = (b"content-type", b"application/json")

NAME = "http"

__all__ = ["CALL_ID", "NAME", "ClientLeft", "Functions", "Submit", "owns", "routes", "to_error"]


class Functions:
    """The addresses at which functions are called, found without a router."""

    def __init__(self, host: Host) -> None:
        self._endpoints: dict[bytes, Invoke | Submit] = {b"invoke": Invoke(host), b"async-invoke": Submit(host)}

    def find(self, scope: Scope) -> tuple[Invoke | Submit, Address] | None:
        """Who answers this request, and of which function, when this is the address of a call."""
        return self.at(scope.get("raw_path") or scope["path"].encode())

    def at(self, raw: bytes) -> tuple[Invoke | Submit, Address] | None:
        """The same, of a path as it came."""
        parts = raw.split(b"/", 6)
        if len(parts) < 6 or parts[1] != b"spaces" or parts[3] != b"functions":
            return None
        endpoint = self._endpoints.get(parts[5])
        if endpoint is None:
            return None
        rest = b"/" + parts[6] if len(parts) == 7 else b""
        return endpoint, (_name(parts[2]), _name(parts[4]), rest)


def _name(segment: bytes) -> str:
    return unquote(segment.decode("ascii", "replace")) if b"%" in segment else segment.decode("ascii", "replace")


def owns(path: str) -> bool:
    """Whatever belongs to no other dialect."""
    return True


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """An error as this dialect words it: status, headers, body."""
    body = envelope(error, debug=debug)
    if error.status in (429, 503):
        error.headers.setdefault("Retry-After", "1")
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return error.status, [JSON, (b"content-length", b"%d" % len(body)), *headers], body


def routes(host: Host) -> list[BaseRoute]:
    """What is to be known: the spaces, a space's functions, a function."""

    async def spaces(request: Request) -> Response:
        access = await host.identify(credential(request))
        names = access.spaces("read", host.registry.spaces)
        return _json({"spaces": [{"name": name, "functions": len(_readable(host, access, name))} for name in names]})

    async def functions(request: Request) -> Response:
        space = request.path_params["space"]
        access = await whoever(host, request, space)
        if not access.spaces("read", [space]):
            raise access.refusal("read", space)
        return _json({"functions": await host.statuses(_readable(host, access, space))})

    async def function(request: Request) -> Response:
        space, name = request.path_params["space"], request.path_params["name"]
        await require(host, request, "read", space, name)
        [status] = await host.statuses([host.lookup(space, name)])
        return _json(status)

    return [
        *Calls(host).routes(),
        Route("/spaces", spaces, methods=["GET"]),
        Route("/spaces/{space}/functions", functions, methods=["GET"]),
        Route("/spaces/{space}/functions/{name}", function, methods=["GET"]),
    ]


def _readable(host: Host, access: Access, space: str) -> list[Function]:
    """The functions of a space that may be looked at; NotFound."""
    return [found for found in host.registry.in_space(space) if access.may("read", space, found.name)]


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
