"""An invocation followed: its state, what it prints, and its end, as server-sent events.

Made by `invocations.py` for one client; reads the journal of `host.py`. What goes wrong on the way is an event too,
since Kernel's client cannot tell a cut connection from a broken one.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...calls import Entry, Event
from ...errors import Draining, HostError, NotFound
from ...host import Host
from ...request import while_client_stays
from .moments import shown
from .records import Records
from .wording import word

HEARTBEAT = 15.0  # seconds without an event after which one shows that the connection lives
PAGE = 1000  # events read at once
LONGEST = 64 * 1024  # bytes of one line of a log
HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"x-sse-content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream(Response):
    """What happens to one invocation, from its state now to its end or the client's.

    Every log line comes before the event that says how it ended, which is the last.
    """

    def __init__(self, host: Host, records: Records, entry: Entry, since: float | None) -> None:
        super().__init__()
        self._host = host
        self._records = records
        self._id = entry.id
        self._since = since
        self._after = 0  # the number of the last event that was told
        self._told = ""  # the state that was told last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if scope["method"] != "HEAD":
            await while_client_stays(receive, partial(self._tell_or_say_why_not, send))
        await send({"type": "http.response.body", "body": b""})

    async def _tell_or_say_why_not(self, send: Send) -> None:
        try:
            await self._tell(send)
        except HostError as error:
            _, problem = word(self._host.worded(error))
            await _send(send, _event("error", time.time(), error=problem))

    async def _tell(self, send: Send) -> None:
        """Everything, in order."""
        journal, silent_since = self._host.journal, anyio.current_time()
        while True:
            entry = await journal.get(self._id)  # first: when it is final, all its events are there
            if entry is None:
                raise NotFound("the invocation is no longer kept")
            news = b"" if entry.status.is_final else await self._state(entry)
            events = await journal.events(self._id, self._after, PAGE)
            if events:
                self._after = events[-1].number
                news += b"".join(map(self._line, events))
            elif entry.status.is_final:
                await _send(send, await self._state(entry))
                return
            if news:
                await _send(send, news)
                silent_since = anyio.current_time()
            elif events:
                continue
            elif self._host.stopping:
                raise Draining("the host is ending; follow the invocation again to go on")
            elif not await journal.changed(self._id, silent_since + HEARTBEAT - anyio.current_time()):
                await _send(send, _event("sse_heartbeat", time.time()))
                silent_since = anyio.current_time()

    async def _state(self, entry: Entry) -> bytes:
        """The state, unless it was told already."""
        if entry.status == self._told:
            return b""
        self._told = str(entry.status)
        return _event("invocation_state", time.time(), invocation=await self._records.whole(entry))

    def _line(self, event: Event) -> bytes:
        """What the function has printed or logged; nothing of other events, or of those before the time asked for."""
        if event.kind != "log" or (self._since is not None and event.at < self._since):
            return b""
        text: str = event.data["text"]
        if len(text) * 4 > LONGEST:
            text = text.encode()[:LONGEST].decode(errors="ignore")
        return _event("log", event.at, message=text)


def _event(kind: str, at: float, **fields: Any) -> bytes:
    """Its kind is within the data too, which is where Kernel's client looks for it."""
    data = msgspec.json.encode({"event": kind, "timestamp": shown(at), **fields})
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
