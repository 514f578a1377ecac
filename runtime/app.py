"""The ASGI application: routes of every dialect around one host, errors turned into responses in one place.

Served by `server.py` on either engine, calls the dialects. Knows no engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from .clock import date_header
from .dialects import DIALECTS, dialect_of, spaces
from .errors import BadRequest, Draining, HostError, MethodNotAllowed, NotFound
from .express import BEGUN, Begun, Express, log_call
from .host import Host
from .request import bearer

LINGER = 30.0  # seconds that a client whose request was refused may go on sending it
NOTHING: Mapping[str, Any] = MappingProxyType({})
LINGER_STEP = 5.0  # seconds that it may pause while it does

log = logging.getLogger("spaces.call")


class App:
    """Answers every request, also those that fail: what is raised below becomes a response here."""

    def __init__(self, host: Host, *, log_calls: bool = False) -> None:
        self._host = host
        self._log_calls = log_calls
        self._functions = spaces.Functions(host)
        self.express = Express(host, log_calls=log_calls)
        self._router = Router(
            routes=[
                *(route for dialect in DIALECTS for route in dialect.routes(host)),
                Route("/healthz", self._healthy),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
            ],
            default=self._no_route,
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._log_calls:
                await self._logged(scope, receive, send)
            else:
                await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "no WebSockets here"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if begun := scope.get("state", NOTHING).get(BEGUN):
                await begun(scope, receive, send)
                return
            if scope["method"] == "CONNECT":
                raise _no_tunnel(scope)
            found = self._functions.find(scope)
            if found is None and scope["raw_path"][:4].lower() == b"http":
                _drop_authority(scope)
                found = self._functions.find(scope)
            if found is not None:
                endpoint, address = found
                await endpoint(address, scope, receive, send)
            else:
                scope["app"] = self  # so that the router raises what it does not allow
                await self._router(scope, *self._routed(scope, receive, sending))
        except spaces.ClientLeft:
            pass
        except HTTPException:  # the router's, when there are addresses like this one, but for other methods
            allowed = ", ".join(self._methods(scope))
            error = MethodNotAllowed(f"{scope['path']} takes {allowed}", headers={"Allow": allowed})
            await self._refuse(error, scope, receive, sending)
        except HostError as error:
            if (
                started or "answered" in scope
            ):  # too late for a status: the connection is cut, which the client can tell from an end
                log.warning("%s %s: %s", scope["method"], scope["path"], error.message, extra=self._fields(scope))
            else:
                await self._refuse(error, scope, receive, sending)
        except Exception:
            log.exception("%s %s failed in the host", scope["method"], scope["path"], extra=self._fields(scope))
            if not started and "answered" not in scope:
                await self._refuse(HostError(), scope, receive, sending)

    def _methods(self, scope: Scope) -> list[str]:
        """What may be done at this address; for each of these there may be a route of its own."""
        matching = (route for route in self._router.routes if route.matches(scope)[0] is not Match.NONE)
        return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})

    async def _refuse(self, error: HostError, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._host.worded(error)
        status, headers, body = dialect_of(scope["path"]).to_error(error, self._host.debug)
        headers += (date_header(), (b"x-call-id", self._call_id(scope)))
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if "body_read" not in scope:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await _linger(receive)
            body = b""
        await send({"type": "http.response.body", "body": body})

    def _call_id(self, scope: Scope) -> bytes:
        """The id of this request in its answer: the client's own where it is well-formed."""
        label: bytes | None = scope.get("call_id")
        if label is None:
            theirs: bytes = next((value for name, value in scope["headers"] if name == b"x-call-id"), b"")
            label = theirs if spaces.CALL_ID.fullmatch(theirs) else b"%d" % self._host.ids.next()
            scope["call_id"] = label  # the log says the same one
        return label

    def _fields(self, scope: Scope) -> dict[str, str]:
        """What every line of the log on this request has."""
        return {"method": scope["method"], "path": scope["path"], "call_id": self._call_id(scope).decode()}

    def _routed(self, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """What a route receives and sends with: its answer has our headers, and ends when the request has come whole.

        Hypercorn closes a connection, without a word to its client, whose request has not when its answer ends.
        """
        unread = _has_body(scope)

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), date_header(), (b"x-call-id", self._call_id(scope))]
                message = {**message, "headers": headers}
            elif unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _linger(receive)
                message = {"type": message["type"]}
            await send(message)

        return receiving, sending

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Begun | None = scope.get("state", NOTHING).get(BEGUN)
        started, status = begun.accepted_at if begun else time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await self._answer(scope, receive, sending)
        label = self._call_id(scope).decode()
        log_call(scope["method"], scope["path"], label, status, time.monotonic() - started)

    async def _healthy(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready(self, _: Request) -> Response:
        if self._host.draining:
            raise Draining
        return PlainTextResponse("ready\n")

    async def _metrics(self, request: Request) -> Response:
        await self._host.authorize("read", None, None, bearer(request.headers.get("authorization")))
        return Response(await self._host.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _no_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        where = ": what is served is at /spaces" if scope["path"] == "/" else ""
        raise NotFound(f"there is nothing at {scope['path']}{where}")


def _has_body(scope: Scope) -> bool:
    """Whether a body is announced (RFC 9112 section 6)."""
    lengths = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
    return lengths.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in lengths


async def _linger(receive: Receive) -> None:
    """Take in what the client still sends: if its connection closed now, it could not read why it was refused."""
    with anyio.move_on_after(LINGER):
        more = True
        while more:
            with anyio.move_on_after(LINGER_STEP) as step:
                message = await receive()
            more = not step.cancelled_caught and message.get("more_body", False)


def _no_tunnel(scope: Scope) -> BadRequest:
    """CONNECT is for proxies. Its client takes what follows for the tunnel's, so nothing there is a request to us."""
    close = {"Connection": "close"} if scope["http_version"].startswith("1") else {}
    return BadRequest("CONNECT asks for a tunnel, and this is no proxy", headers=close)


def _drop_authority(scope: Scope) -> None:
    """Of `http://host/path` in a request line, leave `/path`, which is what all others send."""
    target: bytes = scope["raw_path"]
    try:
        raw = urlsplit(target).path or b"/"
    except ValueError:
        raise BadRequest("the host in the address is malformed") from None
    scope["raw_path"], scope["path"] = raw, unquote(raw.decode("ascii", "replace"))


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops with the engine: the host's scope is around it."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
