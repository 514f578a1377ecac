"""What happens to a call, told as it happens: server-sent events, and the end.

Made by `calls.py` for one client; reads the journal of `host.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...calls import Entry
from ...errors import NotFound
from ...host import Host
from ...request import while_client_stays
from . import entries

HEARTBEAT = 15.0  # seconds without an event after which a comment shows that the connection lives
PAGE = 1000  # events read at once
HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream(Response):
    """The events of one call with numbers above `after`, to its end or the client's.

    It also ends when the host does; a client then comes again with `Last-Event-ID`.
    """

    def __init__(self, host: Host, entry: Entry, after: int) -> None:
        super().__init__()
        self._host = host
        self._id = entry.id
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if scope["method"] != "HEAD":
            await while_client_stays(receive, partial(self._tell, send))
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, send: Send) -> None:
        """Everything, in order."""
        journal = self._host.journal
        await _send(send, b"retry: 1000\n\n")
        silent_since = anyio.current_time()
        entry: Entry | None = None  # None: it may have changed, as every change of it is an event
        while True:
            events = await journal.events(self._id, self._after, PAGE)
            if events:
                entry = None
                self._after = events[-1].number
                told = (_event(each.kind, entries.describe_event(each), each.number) for each in events)
                await _send(send, b"".join(told))
                silent_since = anyio.current_time()
            elif entry is None:
                entry = await journal.get(self._id)  # and then events again: when it is final, all of them are there
                if entry is None:
                    raise NotFound("the call is no longer kept")
            elif entry.status.is_final:
                outcome = await journal.outcome(self._id) if entry.code is not None else None
                await _send(send, _event("end", entries.describe(entry, outcome), None))
                return
            elif self._host.stopping:
                return
            elif not await journal.changed(self._id, silent_since + HEARTBEAT - anyio.current_time()):
                await _send(send, b":\n\n")
                silent_since = anyio.current_time()


def _event(kind: str, data: dict[str, Any], number: int | None) -> bytes:
    numbered = b"id: %d\n" % number if number is not None else b""
    return b"%sevent: %s\ndata: %s\n\n" % (numbered, kind.encode(), msgspec.json.encode(data))


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
