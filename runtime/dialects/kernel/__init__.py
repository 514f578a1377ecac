"""Kernel's dialect: its apps are spaces, their actions are functions, and every invocation is a submitted call.

Mounted by `app.py`, asks `host.py`. docs/reference/dialects/kernel.md says what is as Kernel has it, and what is not.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...calls import Headers
from ...errors import HostError
from ...host import Host
from ...request import bearer
from . import paging
from .apps import Apps
from .invocations import Invocations
from .listing import Listing
from .wording import word

NAME = "kernel"

# Kernel has all of these at its root. What is not served is answered as Kernel would answer for what is not there.
PLACES = frozenset({
    "apps", "invocations", "deployments", "browsers", "browser_pools", "proxies", "profiles", "extensions",
    "credentials", "vaults", "vault-provider-configs", "auth", "search", "config-registry", "telemetry", "audit-logs",
    "org",
})  # fmt: skip


def owns(path: str) -> bool:
    """Kernel's addresses, also those that are not served."""
    return path[1:].partition("/")[0] in PLACES


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """An error as Kernel words it. What is wrong with a request is 400, and its clients try nothing again in vain."""
    status, worded = word(error, debug=debug)
    if status in (429, 503):
        error.headers.setdefault("Retry-After", "1")
    if status == 409 or (status >= 500 and not error.retryable):
        error.headers.setdefault("x-should-retry", "false")
    body = msgspec.json.encode(worded)
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    length = (b"content-length", b"%d" % len(body))
    return status, [(b"content-type", b"application/json"), length, *headers], body


def routes(host: Host) -> list[BaseRoute]:
    """Invocations made, looked up, followed and ended; which apps there are."""
    apps = Apps(host)
    invocations, listing = Invocations(host, apps), Listing(host, apps)

    async def several(request: Request) -> Response:
        return await (invocations.create(request) if request.method == "POST" else listing.several(request))

    async def one(request: Request) -> Response:
        return await (invocations.update(request) if request.method == "PATCH" else invocations.get(request))

    async def existing(request: Request) -> Response:
        access = await host.identify(bearer(request.headers.get("authorization")))
        return paging.page(apps.listed(access, request.query_params), request.query_params)

    return [
        Route("/apps", existing, methods=["GET"]),
        Route("/invocations", several, methods=["GET", "POST"]),
        Route("/invocations/{id}", one, methods=["GET", "PATCH"]),
        Route("/invocations/{id}/events", invocations.follow, methods=["GET"]),
        Route("/invocations/{id}/browsers", invocations.browsers, methods=["GET", "DELETE"]),
    ]
