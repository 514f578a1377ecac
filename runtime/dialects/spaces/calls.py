"""Calls looked up, cancelled, delivered again and run again: `/spaces/{space}/functions/{name}/calls`, and `/calls`.

Mounted by `__init__.py`, asks `host.py` and its journal. `listing.py` reads what a list is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ...calls import Entry, Event, Status
from ...errors import BadRequest, Cancelled, Conflict, Forbidden, NotFound
from ...host import Host
from ...journal import Query
from ...request import while_client_stays
from . import entries, listing
from .admission import credential, require
from .events import EventStream
from .invoke import INVOKED
from .moments import read_seconds
from .submit import location

LONGEST_WAIT = 60.0  # seconds that one request may wait for a result
AGAIN = "1"  # seconds after which to ask again
PAGE = 1000  # events read at once
MANY = 1000  # log lines in one answer
BASE = "/spaces/{space}/functions/{name}/calls"


class Calls:
    """The pages of what was submitted."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route("/calls", self._list, methods=["GET"]),
            Route("/calls/{id}", self._anywhere, methods=["GET"]),
            Route(BASE, self._list, methods=["GET"]),
            Route(f"{BASE}/{{id}}", self._one, methods=["GET", "DELETE"]),
            Route(f"{BASE}/{{id}}/result", self._result, methods=["GET"]),
            Route(f"{BASE}/{{id}}/logs", self._logs, methods=["GET"]),
            Route(f"{BASE}/{{id}}/events", self._events, methods=["GET"]),
            Route(f"{BASE}/{{id}}/redeliver", self._redeliver, methods=["POST"]),
            Route(f"{BASE}/{{id}}/rerun", self._rerun, methods=["POST"]),
        ]

    # Look-ups.

    async def _list(self, request: Request) -> Response:
        """Calls, the newest first: of a function, or of all."""
        query = await self._allowed(request, listing.read(request.query_params, request.path_params))
        found = await self._host.journal.find(msgspec.structs.replace(query, limit=query.limit + 1))
        if not found and query.space is not None:
            self._must_be_there(query.space, query.name)
        page = found[: query.limit]
        following = str(page[-1].id) if len(found) > query.limit else None
        return _json({"calls": [entries.describe(entry) for entry in page], "next": following})

    def _must_be_there(self, space: str, name: str | None) -> None:
        """NotFound where there is no such space, or no such function in it."""
        if name is None:
            self._host.registry.in_space(space)
        else:
            self._host.lookup(space, name)

    async def _allowed(self, request: Request, query: Query) -> Query:
        """The query, narrowed to the one space that who asks may read, if it names none; Unauthorized, Forbidden."""
        if query.space is not None:
            await require(self._host, request, "read", query.space, query.name)
            return query
        access = await self._host.identify(credential(request))
        if access.everywhere("read"):
            return query
        spaces = access.spaces("read", self._host.registry.spaces)
        if access.subject and len(spaces) > 1:
            raise Forbidden("Unauthorized: this token may not read every space; say which one with `space=`")
        if len(spaces) != 1:
            raise access.refusal("read", None)
        access.require("read", spaces[0], query.name)
        return msgspec.structs.replace(query, space=spaces[0])

    async def _anywhere(self, request: Request) -> Response:
        """A call whose space the address does not tell: one that may not be read is as if it were not there."""
        access = await self._host.identify(credential(request))
        entry = await self._find(request)
        if not access.may("read", entry.space, entry.name):
            raise _unknown(request.path_params["id"])
        return await self._shown(entry)

    async def _one(self, request: Request) -> Response:
        if request.method == "DELETE":
            return await self._cancel(await self._entry(request, "invoke"))
        return await self._shown(await self._entry(request))

    async def _shown(self, entry: Entry) -> Response:
        outcome = await self._host.journal.outcome(entry.id) if entry.code is not None else None
        return _json(entries.describe(entry, outcome))

    async def _result(self, request: Request) -> Response:
        """The function's own answer; 202 as long as there is none."""
        entry = await self._entry(request)
        wait = min(read_seconds(request.query_params.get("wait", "0"), "wait"), LONGEST_WAIT)
        if wait and not entry.status.is_final:
            entry = await while_client_stays(request.receive, partial(self._final, entry, wait))
        request.scope["call_id"] = entry.label.encode()
        if not entry.status.is_final:
            return _json(entries.describe(entry), 202, {"Retry-After": AGAIN})
        if entry.status is Status.CANCELLED:
            raise Cancelled
        outcome = await self._host.journal.outcome(entry.id)
        if outcome is None:
            raise NotFound("the call's result is no longer kept")
        headers = [*entries.headers_of(outcome), (b"x-duration-seconds", b"%.6f" % outcome.seconds)]
        response = Response(outcome.body, outcome.code)
        response.raw_headers = [*headers, INVOKED] if outcome.invoked else headers
        return response

    async def _final(self, entry: Entry, wait: float) -> Entry:
        """The entry once it is final, or as it is then."""
        return await self._host.wait(entry.id, wait) or entry

    async def _logs(self, request: Request) -> Response:
        """What it printed and logged so far: JSON by the page, or all of it as lines of text."""
        entry = await self._entry(request)
        after = _number(request.query_params.get("after", "0"), "after")
        if "text/plain" in request.headers.get("accept", ""):
            lines = (_line(event) async for event in self._printed(entry.id, after))
            return StreamingResponse(lines, media_type="text/plain")
        limit = _number(request.query_params.get("limit", str(MANY)), "limit")
        if not 1 <= limit <= MANY:
            raise BadRequest(f"limit must be 1 to {MANY}")
        found: list[Event] = []
        async for event in self._printed(entry.id, after):
            found.append(event)
            if len(found) > limit:
                break
        following = found[limit - 1].number if len(found) > limit else None
        logs = [{"number": event.number, **entries.describe_event(event)} for event in found[:limit]]
        return _json({"logs": logs, "next": following})

    async def _printed(self, id: int, after: int) -> AsyncIterator[Event]:
        while page := await self._host.journal.events(id, after, PAGE):
            after = page[-1].number
            for event in page:
                if event.kind == "log":
                    yield event

    async def _events(self, request: Request) -> Response:
        """What happens, as it happens."""
        entry = await self._entry(request)
        last = request.query_params.get("after") or request.headers.get("last-event-id") or "0"
        return EventStream(self._host, entry, _number(last, "Last-Event-ID"))

    # Changes.

    async def _cancel(self, entry: Entry) -> Response:
        """200 when it will never run; 202 when it runs and is being stopped."""
        if entry.status.is_final:
            raise _too_late(entry)
        status = await self._host.cancel(entry.id)
        now = await self._host.journal.get(entry.id)
        if status is None or now is None:
            raise _unknown(str(entry.id))
        if status not in (Status.CANCELLED, Status.RUNNING):
            raise _too_late(now)
        return _json(entries.describe(now), 200 if status is Status.CANCELLED else 202)

    async def _redeliver(self, request: Request) -> Response:
        entry = await self._entry(request, "invoke")
        if not await self._host.redeliver(entry.id):
            why = "it has no callback URL" if entry.callback_url is None else f"it has no result: it is {entry.status}"
            raise Conflict(f"there is nothing to deliver: {why}", details={"status": entry.status})
        now = await self._host.journal.get(entry.id)
        return _json(entries.describe(now or entry), 202)

    async def _rerun(self, request: Request) -> Response:
        entry = await self._entry(request, "invoke")
        receipt = await self._host.rerun(entry.id)
        request.scope["call_id"] = receipt.label.encode()
        headers = {"Location": location(entry.space, entry.name, receipt.id)}
        return Response(status_code=202, headers=headers)

    async def _entry(self, request: Request, scope: str = "read") -> Entry:
        """The call that the address names, if this may be done to it; Unauthorized, Forbidden, NotFound."""
        await require(self._host, request, scope, request.path_params["space"], request.path_params["name"])
        return await self._find(request)

    async def _find(self, request: Request) -> Entry:
        """The call with this number; NotFound, also when it is another function's."""
        place = request.path_params
        id: str = place["id"]
        entry = await self._host.journal.get(int(id)) if id.isascii() and id.isdigit() and len(id) <= 16 else None
        if entry is None or ("name" in place and (entry.space, entry.name) != (place["space"], place["name"])):
            raise _unknown(id)
        return entry


def _unknown(id: str) -> NotFound:
    return NotFound(f"there is no call {id} here, or it is no longer kept", details={"call": id})


def _too_late(entry: Entry) -> Conflict:
    how = "was cancelled" if entry.status is Status.CANCELLED else f"has ended: {entry.status}"
    return Conflict(f"the call {how}", details={"status": entry.status})


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise BadRequest(f"{what} must be a number")
    return int(text)


def _line(event: Event) -> str:
    data = entries.describe_event(event)
    return f"{data['at']} {data['level']} {data['text']}\n"


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
