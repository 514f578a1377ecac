"""Calls: submitted, looked up one by one and as a list, and what they answered and printed.

Mounted by `__init__.py`. Every call is the journal's, and all of a function's calls are shown, whatever made them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from ... import answers
from ...calls import Entry, Event, Status, Submission
from ...errors import BadRequest, FunctionTimeout, KeyReused, NotFound
from ...journal import Query
from ...payload import json_call, read_json
from ...registry import Function
from .door import BASE, MOST_ITEMS, Door, Id, Limit, Range, Shape, milliseconds, number_in, unknown
from .functions import Failure
from .sessions import Sessions, key_of

MOST = 1000  # calls in one answer
USUAL = 100
MOST_LOOKED_AT = 10_000  # calls that one request passes over at most
PAGE = 1000  # events read at once
ERROR = 40  # the level at which a traceback is logged

Word = Literal["Running", "Completed", "Failed", "Timeout"]
# The journal's statuses in this API's words; a timeout is a failure with a code of its own.
WORDS: dict[Status, Word] = {
    Status.QUEUED: "Running",  # the SDK waits for nothing but this
    Status.RUNNING: "Running",
    Status.SUCCEEDED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Failed",
}
STATUSES: dict[Word, tuple[Status, ...]] = {
    "Running": (Status.QUEUED, Status.RUNNING),
    "Completed": (Status.SUCCEEDED,),
    "Failed": (Status.FAILED, Status.CANCELLED),
    "Timeout": (Status.FAILED,),
}


class CallBody(Shape, frozen=True):
    """Of POST call."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    nonce: str | None = None


class ItemOfCall(Shape, frozen=True):
    """What is asked for."""

    id: Id


class ByIdsBody(Shape, frozen=True):
    """Of POST calls/byids."""

    items: Annotated[list[ItemOfCall], msgspec.Meta(min_length=1, max_length=MOST_ITEMS)]
    ignore_unknown_ids: bool | None = None


class Filter(Shape, frozen=True):
    """Which calls to list."""

    status: Word | None = None
    schedule_id: Id | None = None
    start_time: Range | None = None
    end_time: Range | None = None

    def has(self, entry: Entry) -> bool:
        """Whether a call is asked for."""
        return (
            self.status in (None, word_of(entry))
            and self.schedule_id in (None, entry.schedule_id)
            and (self.start_time is None or self.start_time.has(milliseconds(entry.accepted_at)))
            and (self.end_time is None or self.end_time.has(_end_of(entry)))
        )


class ListBody(Shape, frozen=True):
    """Of POST calls/list."""

    filter: Filter | None = None
    limit: Limit | None = None
    cursor: str | None = None


class Shown(Shape, frozen=True):
    """A call."""

    id: int
    function_id: int
    start_time: int
    status: Word
    end_time: int | None = None
    schedule_id: int | None = None
    scheduled_time: int | None = None
    error: Failure | None = None


class Calls:
    """The pages of calls, and the one where they are made."""

    def __init__(self, door: Door, sessions: Sessions) -> None:
        self._door = door
        self._host = door.host
        self._sessions = sessions

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        route = self._door.route
        function = f"{BASE}/functions/{{function}}"
        return [
            route(f"{function}/call", "POST", self._call),
            route(f"{function}/calls/byids", "POST", self._by_ids),
            route(f"{function}/calls/list", "POST", self._list),
            route(f"{function}/calls", "GET", self._plain_list),
            route(f"{function}/calls/{{call}}", "GET", self._one),
            route(f"{function}/calls/{{call}}/response", "GET", self._response),
            route(f"{function}/calls/{{call}}/logs", "GET", self._logs),
        ]

    # Made.

    async def _call(self, request: Request) -> tuple[int, Any]:
        """Submit a call: it is in the journal when this answers. The same nonce again is the same call."""
        function, subject = await self._door.callable(request)
        body = await read_json(request, CallBody, function.settings.async_max_body, "async_max_body")
        authority = self._host.authority
        free = authority.is_open(function.space) or authority.is_public(function.space, function.name)
        self._sessions.check(body.nonce, subject, needed=not free)
        call = json_call(self._host.ids.next(), request, function, data_of(body.data))
        key = key_of(subject, body.nonce) if body.nonce else None
        try:
            receipt = await self._host.submit(Submission(call, trigger="cognite", idempotency_key=key))
        except KeyReused:
            raise BadRequest("this nonce was used for a call with other data: each call needs one of its own") from None
        except NotFound:  # its file was removed a moment ago
            raise unknown("Function ids", [{"id": function.id}]) from None
        request.scope["call_id"] = b"%d" % receipt.id
        entry = await self._host.journal.get(receipt.id)
        if entry is None:
            raise BadRequest("the call that this nonce was used for is no longer kept")
        if receipt.repeated:
            return 201, await self._shown(function, entry)
        return 201, shown(function, entry, final=False)  # also one that has ended already: so every client expects it

    # Looked up.

    async def _by_ids(self, request: Request) -> tuple[int, Any]:
        function = await self._door.readable(request)
        body = await self._door.read(request, ByIdsBody)
        found, missing = [], []
        for item in body.items:
            entry = await self._entry(function, item.id)
            if entry is None:
                missing.append({"id": item.id})
            else:
                found.append(await self._shown(function, entry, trace=True))
        if missing and not body.ignore_unknown_ids:
            raise unknown("Function call ids", missing)
        return 200, {"items": found}

    async def _one(self, request: Request) -> tuple[int, Any]:
        function, entry = await self._asked_for(request)
        return 200, await self._shown(function, entry, trace=True)

    async def _response(self, request: Request) -> tuple[int, Any]:
        """What the function returned; nothing as long as there is nothing."""
        function, entry = await self._asked_for(request)
        answer = {"functionId": function.id, "callId": entry.id}
        outcome = await self._host.journal.outcome(entry.id) if entry.status is Status.SUCCEEDED else None
        if outcome is None:
            return 200, answer
        return 200, {**answer, "response": msgspec.Raw(answers.read(outcome).value)}

    async def _logs(self, request: Request) -> tuple[int, Any]:
        """What it printed and logged so far, an item a line."""
        _, entry = await self._asked_for(request)
        items = [
            {"timestamp": milliseconds(event.at), "message": line}
            async for event in self._printed(entry.id)
            for line in event.data["text"].removesuffix("\n").split("\n")
        ]
        return 200, {"items": items}

    async def _printed(self, id: int) -> AsyncIterator[Event]:
        after = 0
        while page := await self._host.journal.events(id, after, PAGE):
            after = page[-1].number
            for event in page:
                if event.kind == "log":
                    yield event

    async def _asked_for(self, request: Request) -> tuple[Function, Entry]:
        """The function and the call in the address."""
        function = await self._door.readable(request)
        id = number_in(request, "call")
        entry = await self._entry(function, id)
        if entry is None:
            raise unknown("Function call ids", [{"id": id}])
        return function, entry

    async def _entry(self, function: Function, id: int) -> Entry | None:
        """A call of this function."""
        entry = await self._host.journal.get(id)
        if entry is None or (entry.space, entry.name) != (function.space, function.name):
            return None
        return entry

    # Listed.

    async def _list(self, request: Request) -> tuple[int, Any]:
        function = await self._door.readable(request)
        body = await self._door.read(request, ListBody)
        return await self._page(function, body.filter or Filter(), min(body.limit or USUAL, MOST), body.cursor)

    async def _plain_list(self, request: Request) -> tuple[int, Any]:
        function = await self._door.readable(request)
        parameters = request.query_params
        try:
            body = msgspec.convert(dict(parameters), ListBody, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(f"the query does not fit: {error}") from None
        return await self._page(function, Filter(), min(body.limit or USUAL, MOST), body.cursor)

    async def _page(self, function: Function, wanted: Filter, limit: int, cursor: str | None) -> tuple[int, Any]:
        """Calls, the newest first, and a cursor where there may be more."""
        query, found, looked = _query(function, wanted, limit + 1, cursor), list[Entry](), 0
        more = True
        while more and len(found) <= limit and looked < MOST_LOOKED_AT:
            page = await self._host.journal.find(query)
            looked += len(page)
            found += filter(wanted.has, page)
            more = len(page) == query.limit
            if more:
                query = msgspec.structs.replace(query, before=page[-1].id, limit=MOST)
        items = [await self._shown(function, entry) for entry in found[:limit]]
        if len(found) > limit:
            return 200, {"items": items, "nextCursor": str(found[limit - 1].id)}
        return 200, {"items": items, "nextCursor": str(query.before)} if more else {"items": items}

    async def _shown(self, function: Function, entry: Entry, *, trace: bool = False) -> Shown:
        """A call with its error, and on wish with the traceback that it logged."""
        if WORDS[entry.status] != "Failed":
            return shown(function, entry)
        if entry.status is Status.CANCELLED:
            return shown(function, entry, error=Failure("cancelled", ""))
        outcome = await self._host.journal.outcome(entry.id)
        message = answers.read(outcome).message if outcome else entry.error_code or "failed"
        logged = await self._traceback(entry.id) if trace else ""
        return shown(function, entry, error=Failure(message, logged))

    async def _traceback(self, id: int) -> str:
        """The last that the call logged as an error; it names no folders above the root."""
        found = ""
        async for event in self._printed(id):
            if event.data["level"] >= ERROR:
                found = event.data["text"]
        return found.replace(f"{self._host.config.root}/", "")


def data_of(raw: msgspec.Raw) -> bytes:
    """The data that a call is to get, as its client wrote it; BadRequest unless it is an object, `{}` where none is."""
    try:
        data = msgspec.json.decode(raw, type=dict[str, Any] | None)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"data must be a JSON object: {error}") from None
    return b"{}" if data is None else bytes(raw)


def word_of(entry: Entry) -> Word:
    """A call's status in this API's words."""
    timeout = entry.status is Status.FAILED and entry.error_code == FunctionTimeout.code
    return "Timeout" if timeout else WORDS[entry.status]


def shown(function: Function, entry: Entry, *, final: bool = True, error: Failure | None = None) -> Shown:
    """A call; without `final`, as if it had not ended."""
    return Shown(
        id=entry.id,
        function_id=function.id,
        start_time=milliseconds(entry.accepted_at),
        status=word_of(entry) if final else "Running",
        end_time=_end_of(entry) if final else None,
        schedule_id=entry.schedule_id or None,
        scheduled_time=milliseconds(entry.scheduled_time) if entry.schedule_id else None,
        error=error,
    )


def _end_of(entry: Entry) -> int | None:
    return None if entry.finished_at is None else milliseconds(entry.finished_at)


def _query(function: Function, wanted: Filter, limit: int, cursor: str | None) -> Query:
    """What the journal is asked for, which may be more than is wanted."""
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
        raise BadRequest("cursor must be the nextCursor of an earlier answer")
    start = wanted.start_time or Range()
    return Query(
        space=function.space,
        name=function.name,
        statuses=STATUSES[wanted.status] if wanted.status else (),
        trigger="schedule" if wanted.schedule_id else None,
        since=None if start.min is None else start.min / 1000 - 0.001,
        until=None if start.max is None else start.max / 1000 + 0.002,
        before=None if cursor is None else int(cursor),
        limit=limit,
    )
