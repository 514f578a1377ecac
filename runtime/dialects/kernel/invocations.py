"""Invocations: made, looked up, ended by their clients, followed. Each is a submitted call, whose id it has.

Mounted by `__init__.py`, asks `host.py` and its journal. `records.py` makes what is shown.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...authority import Access
from ...calls import Entry, Submission
from ...errors import BadRequest, Forbidden, HostError, NotFound
from ...host import Host
from ...payload import json_call, read_json
from ...registry import Function
from ...request import ClientLeft, bearer, while_client_stays
from .apps import Apps, action_of, unknown
from .attaching import Abandoned
from .events import EventStream
from .moments import read_since
from .records import Records, settled

SYNC_LIMIT = 100.0  # seconds, Kernel's own
GRACE = 5.0  # seconds in which the end of a call that was late is on record
ASYNC_USUAL, ASYNC_LEAST, ASYNC_MOST = 900, 10, 3600  # seconds
STOPPING = 5.0  # seconds that a call which is to stop may take to do so before its record is shown as it is
MOST_PAYLOAD = 4_718_592  # bytes: 4.5 MB
MOST_BODY = 2 * MOST_PAYLOAD + 65536  # bytes: in JSON text within JSON, every quote has a backslash
NULL = msgspec.Raw(b"null")
ABANDONED = "kernel/abandoned"  # what is asked of other host processes: which call a client has left there

_decode_parts = msgspec.msgpack.Decoder(tuple[str, str, str, str]).decode


class Create(msgspec.Struct):
    """A POST. What is null is as what is not there. Of what may be anything no objects are made: it may be long."""

    app_name: str
    action_name: str
    version: str | None = None
    payload: msgspec.Raw = NULL
    is_async: bool | None = msgspec.field(name="async", default=None)
    async_timeout_seconds: msgspec.Raw = NULL


class Update(msgspec.Struct):
    """A PATCH."""

    status: Literal["succeeded", "failed"]
    output: str | None = None


class Invocations:
    """What can be done with one invocation."""

    def __init__(self, host: Host, apps: Apps) -> None:
        self._host = host
        self._apps = apps
        self._records = Records(host, apps)
        self._abandoned = Abandoned()
        if host.siblings is not None:
            host.siblings.answer(ABANDONED, self._taken_from_here)

    async def create(self, request: Request) -> Response:
        """Run an action: 202 as soon as it is on disk, or 200 when it is over.

        Also 200 when it is not, as late as the client is thought to wait: it goes on, and can be asked for by its id.
        """
        asked, function, access = await self._asked(request)
        _check(asked, function)
        payload = _payload(asked, function)
        if asked.is_async:
            id = await self._submit(request, function, payload, _async_timeout(asked))
            return _json({"id": str(id), "action_name": action_of(function), "status": "queued"}, 202)
        credential = request.headers.get("authorization", "")
        parts = (credential, function.space, function.name, payload)
        digest = self._abandoned.digest(*parts)
        # Others may send the same to a public function; but for the credential, nothing tells their calls apart.
        is_known = (access is not None and access.subject != "") or self._host.authority.is_open(function.space)
        found = await self._left_before(parts) if is_known and self._comes_again(request) else None
        id = await self._submit(request, function, payload, SYNC_LIMIT) if found is None else found
        request.scope["call_id"] = b"%d" % id
        try:
            entry = await while_client_stays(request.receive, partial(self._host.wait, id, _patience(request)))
            if entry is None:
                raise NotFound(f"invocation {id} is no longer kept")
            return _json(await self._records.created(entry))
        except (ClientLeft, HostError):  # it goes on, and is found when the client asks again
            if is_known:
                self._abandoned.add(id, digest)
            raise

    async def _left_before(self, parts: tuple[str, str, str, str]) -> int | None:
        """The call that a client with this request has left, in whichever host process."""
        found = self._abandoned.take(self._abandoned.digest(*parts))
        if found is None and self._host.siblings is not None:
            answers = await self._host.siblings.ask(ABANDONED, msgspec.msgpack.encode(parts))
            found = next((int(answer) for answer in answers if answer), None)
        return found

    def _taken_from_here(self, asked: bytes) -> bytes:
        found = self._abandoned.take(self._abandoned.digest(*_decode_parts(asked)))
        return b"" if found is None else b"%d" % found

    async def get(self, request: Request) -> Response:
        """One invocation."""
        return _json(await self._records.whole(await self._entry(request, "read")))

    async def update(self, request: Request) -> Response:
        """End an invocation, with what its client says came of it. One that is over stays as it is."""
        entry = await self._entry(request, "invoke")
        asked = await read_json(request, Update, MOST_BODY, "output")
        if not entry.status.is_final:
            await self._host.cancel(entry.id, settled(asked.status, asked.output))
            entry = await self._host.wait(entry.id, STOPPING) or entry
        return _json(await self._records.whole(entry))

    async def follow(self, request: Request) -> Response:
        """What it prints and what becomes of it, as it happens."""
        entry = await self._entry(request, "read")
        return EventStream(self._host, self._records, entry, read_since(request.query_params.get("since")))

    async def browsers(self, request: Request) -> Response:
        """Those of an invocation: there are none."""
        if request.method == "DELETE":
            await self._entry(request, "invoke")
            return Response(status_code=204)
        await self._entry(request, "read")
        return _json({"browsers": []})

    async def _asked(self, request: Request) -> tuple[Create, Function, Access | None]:
        """What is to run, and who asks. Who may not be let in learns nothing, unless anybody may run that function."""
        credential = bearer(request.headers.get("authorization"))
        access: Access | None = None
        refusal: HostError | None = None
        try:
            access = await self._host.identify(credential)
        except HostError as error:
            refusal = error
        try:
            asked = await read_json(request, Create, MOST_BODY, "payload")
            function = self._apps.find(asked.app_name, asked.action_name, asked.version)
            await self._admit(function, credential)
        except HostError as error:
            if isinstance(error, NotFound) and access is not None and not access.subject:
                refusal = access.refusal("invoke", None)  # as for what is there: without a token nobody can tell
            raise refusal or error from None
        return asked, function, access

    async def _admit(self, function: Function, credential: str | None) -> None:
        """Nothing, if this function may be run. Forbidden; NotFound for who may not even know of it."""
        try:
            await self._host.authorize("invoke", function.space, function.name, credential)
        except Forbidden:
            access = await self._host.identify(credential)
            if access.may("read", function.space, function.name):
                raise
            raise unknown(*self._apps.names(function.space, function.name)) from None

    async def _submit(self, request: Request, function: Function, payload: str, timeout: float) -> int:
        """Have it run; its id, once it is on disk."""
        call = json_call(self._host.ids.next(), request, function, payload.encode(), timeout=timeout)
        receipt = await self._host.submit(Submission(call, trigger="kernel"))
        request.scope["call_id"] = receipt.label.encode()
        return receipt.id

    def _comes_again(self, request: Request) -> bool:
        count = request.headers.get("x-stainless-retry-count", "0")
        return count.isascii() and count.isdigit() and count.strip("0") != "" and self._host.config.server.kernel_attach

    async def _entry(self, request: Request, scope: str) -> Entry:
        """The call that the address names, for who may read it and do this too; NotFound, Forbidden."""
        access = await self._host.identify(bearer(request.headers.get("authorization")))
        id: str = request.path_params["id"]
        entry = await self._host.journal.get(int(id)) if id.isascii() and id.isdigit() and len(id) <= 16 else None
        if entry is None or not access.may("read", entry.space, entry.name):
            raise NotFound(f'there is no invocation "{id[:100]}" here, or it is no longer kept')
        access.require(scope, entry.space, entry.name)
        return entry


def _check(asked: Create, function: Function) -> None:
    """Refuse what the function's settings do not allow; BadRequest."""
    methods = function.settings.methods
    if methods is not None and "POST" not in methods:
        raise BadRequest(f"this action takes {', '.join(sorted(methods))}, and an invocation is a POST (`methods`)")
    if asked.is_async and function.settings.require_callback:
        raise BadRequest("this action's calls need a callback (`require_callback`), and an invocation has none")


def _payload(asked: Create, function: Function) -> str:
    """The JSON text for the function, empty for none; BadRequest."""
    try:
        payload = msgspec.json.decode(asked.payload, type=str | None) or ""
    except ValueError:
        message = "payload must be a string that contains JSON: encode the value, such as json.dumps(value)"
        raise BadRequest(message) from None
    size = len(payload.encode())
    limit = min(MOST_PAYLOAD, function.settings.max_body)
    if size > limit:
        raise BadRequest(f"payload has {size} bytes; at most {limit} are allowed here")
    if payload:
        try:
            msgspec.json.decode(payload, type=msgspec.Raw)
        except ValueError as error:
            raise BadRequest(f"payload is not valid JSON: {error}") from None
        except RecursionError:
            raise BadRequest("payload is not valid JSON: it is nested too deeply") from None
    return payload


def _async_timeout(asked: Create) -> float:
    try:
        seconds = msgspec.json.decode(asked.async_timeout_seconds, type=int | None)
    except ValueError:
        seconds = 0
    seconds = ASYNC_USUAL if seconds is None else seconds
    if not ASYNC_LEAST <= seconds <= ASYNC_MOST:
        raise BadRequest(f"async_timeout_seconds must be a whole number from {ASYNC_LEAST} to {ASYNC_MOST}")
    return float(seconds)


def _patience(request: Request) -> float:
    """Seconds until there should be an answer: before the client stops waiting, or it would ask again."""
    most = SYNC_LIMIT + GRACE
    try:
        theirs = float(request.headers.get("x-stainless-read-timeout", "nan"))
    except ValueError:
        return most
    if not math.isfinite(theirs) or theirs <= 0:
        return most
    return min(most, theirs - min(5.0, theirs / 10))


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
