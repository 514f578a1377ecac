"""Which invocations there are: every call of the journal that may be read, whatever it came by.

Mounted by `__init__.py`, reads the journal of `host.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from ...authority import Access
from ...calls import Entry, Outcome, Status
from ...errors import BadRequest
from ...host import Host
from ...journal import Query
from ...request import bearer
from . import paging
from .apps import VERSION, Apps, Place, deployment_of
from .moments import read_since
from .records import Records, status_of

PAGE = 1000  # entries read at once
MOST_LOOKED_AT = 20_000  # entries for one answer
ROOM = 1024 * 1024  # bytes of outputs in one answer; those that are behind are to be asked for one by one
STATUSES = {
    "queued": (Status.QUEUED,),
    "running": (Status.RUNNING,),
    "succeeded": (Status.SUCCEEDED, Status.CANCELLED),
    "failed": (Status.FAILED, Status.CANCELLED),
}


class Listing:
    """Lists of invocations, the newest first."""

    def __init__(self, host: Host, apps: Apps) -> None:
        self._host = host
        self._apps = apps
        self._records = Records(host, apps)

    async def several(self, request: Request) -> Response:
        """Those that are asked for."""
        access = await self._host.identify(bearer(request.headers.get("authorization")))
        query = request.query_params
        part, filters = paging.read(query), _read(query)
        found: list[tuple[Entry, Outcome | None]] = []
        looked_at = 0
        async for entry in self._entries(filters, await self._places(access, query), part.end + 1):
            looked_at += 1
            if looked_at > MOST_LOOKED_AT:
                raise BadRequest("too many invocations to look through; ask for fewer with since, app_name, or status")
            if access.may("read", entry.space, entry.name) and self._matches(entry, query):
                outcome = await self._outcome_if_cancelled(entry) if query.get("status") else None
                if query.get("status") in (None, "", status_of(entry, outcome)):
                    found.append((entry, outcome))
            if len(found) > part.end:
                break
        return paging.answer(await self._shown(found[part.offset : part.end]), part, more=len(found) > part.end)

    async def _places(self, access: Access, query: QueryParams) -> list[Place]:
        """Where to look: in no space of which nothing may be read."""
        if query.get("version") not in (None, "", VERSION):
            return []
        app, action = query.get("app_name") or None, query.get("action_name") or None
        if deployment := query.get("deployment_id"):
            apps = [each["app_name"] for each in self._apps.listed(access, QueryParams())]
            apps = [name for name in apps if deployment_of(name) == deployment and app in (None, name)]
            if not apps:
                return []
            app = apps[0]
        every = await self._host.journal.spaces()
        readable = access.spaces("read", every)
        places: list[Place] = []
        for space, name in self._apps.places(app, action):
            if space is not None or len(readable) == len(every):
                places += [(space, name)] if space is None or space in readable else []
            else:
                places += [(each, name) for each in readable]
        return places

    async def _entries(self, filters: Query, places: Sequence[Place], wanted: int) -> AsyncIterator[Entry]:
        """Those of all these places, the newest first, without end but that of the journal."""
        limit = min(PAGE, wanted)
        while places:
            found: dict[int, Entry] = {}
            for space, name in places:
                asked = msgspec.structs.replace(filters, space=space, name=name, limit=limit)
                found |= {entry.id: entry for entry in await self._host.journal.find(asked)}
            newest = sorted(found, reverse=True)[:limit]
            for id in newest:
                yield found[id]
            if len(newest) < limit:
                return
            filters = msgspec.structs.replace(filters, before=newest[-1])
            limit = PAGE

    def _matches(self, entry: Entry, query: QueryParams) -> bool:
        text = query.get("query")
        return not text or any(text in name for name in (str(entry.id), *self._apps.names(entry.space, entry.name)))

    async def _outcome_if_cancelled(self, entry: Entry) -> Outcome | None:
        """Of a call that was cancelled, only this says whether it has failed."""
        return await self._records.outcome(entry) if entry.status is Status.CANCELLED else None

    async def _shown(self, found: Sequence[tuple[Entry, Outcome | None]]) -> list[dict[str, Any]]:
        """Their records, with their outputs as long as there is room."""
        records, size = [], 0
        for entry, kept in found:
            outcome = kept
            if outcome is None and (size < ROOM or entry.status is Status.CANCELLED):
                outcome = await self._records.outcome(entry)
            size += len(outcome.body) if outcome is not None else 0
            records.append(self._records.short(entry, outcome))
        return records


def _read(query: QueryParams) -> Query:
    """What the journal can look for; BadRequest."""
    status = query.get("status") or ""
    if status and status not in STATUSES:
        raise BadRequest(f"status must be one of {', '.join(STATUSES)}")
    return Query(statuses=STATUSES.get(status, ()), since=read_since(query.get("since")))
