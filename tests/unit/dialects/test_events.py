"""The stream of a call's events: in order, resumed, kept alive, ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from runtime.app import App
from runtime.calls import Status
from runtime.dialects.spaces import events
from tests.unit.dialects.standin import AT, Edge, answered, edge

pytestmark = pytest.mark.anyio
PATIENCE = 10.0


def told(text: str) -> list[tuple[str | None, str, Any]]:
    """Number, kind and data of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


async def ended_call(site: Edge) -> int:
    number = await site.accepted()
    site.journal.change(number, status=Status.RUNNING)
    site.journal.note(number, "log", {"level": 20, "text": "one\ntwo"})
    site.journal.note(number, "progress", {"fraction": 0.5, "message": "half"})
    site.journal.end(number, answered())
    return number


async def test_everything_that_happened_is_told_in_order() -> None:
    """From its acceptance to its end; a line break in a log line breaks nothing."""
    async with edge() as site:
        number = await ended_call(site)
        answer = await site.client.get(f"{AT}/calls/{number}/events")
        shown = (await site.client.get(f"{AT}/calls/{number}")).json()

    happened = told(answer.text)
    assert answer.headers["content-type"] == "text/event-stream"
    assert [(id, kind) for id, kind, _ in happened] == [
        ("1", "state"), ("2", "state"), ("3", "log"), ("4", "progress"), ("5", "state"), (None, "end"),
    ]  # fmt: skip
    assert happened[2][2] == {"at": "2027-01-15T08:00:00.000Z", "level": "info", "text": "one\ntwo"}
    assert happened[3][2] == {"at": "2027-01-15T08:00:00.000Z", "fraction": 0.5, "message": "half"}
    assert happened[5][2]["status"] == "succeeded"
    assert happened[5][2] == shown
    assert (shown["result"]["status"], shown["result"]["length"]) == (200, 11)


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_stream_is_taken_up_where_it_was_left(how: str) -> None:
    """By Last-Event-ID, which browsers send, or in the query."""
    async with edge() as site:
        number = await ended_call(site)
        headers, query = ({"Last-Event-ID": "3"}, "") if how == "header" else ({}, "?after=3")
        answer = await site.client.get(f"{AT}/calls/{number}/events{query}", headers=headers)
        bad = await site.client.get(f"{AT}/calls/{number}/events?after=x")

    assert [id for id, _, _ in told(answer.text)] == ["4", "5", None]
    assert bad.status_code == 400


async def test_more_than_a_page_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may print much."""
    monkeypatch.setattr(events, "PAGE", 2)
    async with edge() as site:
        number = await ended_call(site)
        answer = await site.client.get(f"{AT}/calls/{number}/events")

    assert len(told(answer.text)) == 6


class Listener:
    """A client that reads a stream as it comes, and may leave."""

    def __init__(self, site: Edge, number: int) -> None:
        self.sent: list[bytes] = []
        self.news = asyncio.Event()
        self.left = asyncio.Event()
        self._site, self._path = site, f"{AT}/calls/{number}/events"

    async def listen(self) -> None:
        async def receive() -> dict[str, Any]:
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message.get("body", b""))
            self.news.set()

        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": self._path, "query_string": b"",
            "raw_path": self._path.encode(), "headers": [], "client": None, "scheme": "http",
        }  # fmt: skip
        await App(self._site.host)(scope, receive, send)  # type: ignore[arg-type]

    async def heard(self, text: bytes) -> None:
        with anyio.fail_after(PATIENCE):
            while not any(text in piece for piece in self.sent):
                self.news.clear()
                await self.news.wait()

    @property
    def kinds(self) -> Sequence[str]:
        return [kind for _, kind, _ in told(b"".join(self.sent).decode())]


async def test_events_are_told_as_they_happen() -> None:
    """Each at once, then the end."""
    async with edge() as site, asyncio.TaskGroup() as tasks:
        number = await site.accepted()
        listener = Listener(site, number)
        listening = tasks.create_task(listener.listen())
        await listener.heard(b'"queued"')
        site.journal.note(number, "log", {"level": 20, "text": "hello"})
        await listener.heard(b"hello")
        site.journal.end(number, answered())
        await asyncio.wait_for(listening, PATIENCE)

    assert listener.kinds == ["state", "log", "state", "end"]


async def test_a_client_that_leaves_is_left() -> None:
    """Nothing goes on for it."""
    async with edge() as site, asyncio.TaskGroup() as tasks:
        number = await site.accepted()
        listener = Listener(site, number)
        listening = tasks.create_task(listener.listen())
        await listener.heard(b'"queued"')
        listener.left.set()
        await asyncio.wait_for(listening, PATIENCE)

    assert listener.kinds == ["state"]


async def test_a_silent_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """By comments."""
    monkeypatch.setattr(events, "HEARTBEAT", 0.001)
    async with edge() as site, asyncio.TaskGroup() as tasks:
        listener = Listener(site, await site.accepted())
        listening = tasks.create_task(listener.listen())
        await listener.heard(b":\n\n")
        listener.left.set()
        await asyncio.wait_for(listening, PATIENCE)

    assert listener.kinds == ["state"]


async def test_a_silent_stream_reads_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to show that it lives, as thousands may be followed; each time something is told, it reads the entry."""
    readings: list[str] = []
    beats = anyio.Event()
    async with edge() as site, asyncio.TaskGroup() as tasks:
        number = await site.accepted()
        journal = site.journal
        get, read, changed = journal.get, journal.events, journal.changed
        waits = 0

        async def counted_get(id: int) -> Any:
            readings.append("entry")
            return await get(id)

        async def counted_events(id: int, after: int = 0, limit: int = 1000) -> Any:
            readings.append("events")
            return await read(id, after, limit)

        async def counted_changed(id: int, timeout: float) -> bool:
            nonlocal waits
            waits += 1
            if waits == 5:
                beats.set()
            return await changed(id, 0.001 if waits < 5 else timeout)

        listener = Listener(site, number)
        for name, counted in (("get", counted_get), ("events", counted_events), ("changed", counted_changed)):
            monkeypatch.setattr(journal, name, counted)
        listening = tasks.create_task(listener.listen())
        with anyio.fail_after(PATIENCE):
            await beats.wait()
        silent = tuple(readings)
        journal.note(number, "log", {"level": 20, "text": "hello"})
        await listener.heard(b"hello")
        journal.end(number, answered())
        await asyncio.wait_for(listening, PATIENCE)

    # The first is for the address; and once for each keep-alive, in case that a change was missed.
    assert silent == ("entry", "events", "events", "entry", "events", *["events"] * 4)
    assert listener.sent.count(b":\n\n") == 4
    assert listener.kinds == ["state", "log", "state", "end"]


async def test_a_stream_ends_with_its_host() -> None:
    """What has happened is told, the end that has not come is not."""
    async with edge() as site:
        number = await site.accepted()
        site.host.stopping = True
        answer = await site.client.get(f"{AT}/calls/{number}/events")

    assert [kind for _, kind, _ in told(answer.text)] == ["state"]
