"""A host whose journal is in memory: for the edge alone, without workers, dispatcher and files.

Calls do not run here: a test says what becomes of them with `start`, `note` and `end`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec

from runtime.app import App
from runtime.authority import Authority
from runtime.calls import Call, CallbackState, CallIds, Entry, Event, Outcome, Status, Submission
from runtime.config import Config, FunctionSettings, ServerSettings
from runtime.errors import HostError, KeyReused, NotFound
from runtime.host import Host
from runtime.journal import Query, Receipt
from runtime.registry import Function, Registry

AT = "/spaces/demo/functions/work"
SUBMIT = f"{AT}/async-invoke"


class MemoryJournal:
    """As much of a journal as the edge asks for."""

    def __init__(self) -> None:
        self.submissions: dict[int, Submission] = {}
        self.entries: dict[int, Entry] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.happened: dict[int, list[Event]] = {}
        self.news, self.unread = anyio.Event(), False
        self.queries: list[Query] = []

    async def get(self, id: int) -> Entry | None:
        self.unread = False
        return self.entries.get(id)

    async def request(self, id: int) -> Call | None:
        submission = self.submissions.get(id)
        return None if submission is None else submission.call

    async def spaces(self) -> list[str]:
        return sorted({entry.space for entry in self.entries.values()})

    async def outcome(self, id: int) -> Outcome | None:
        return self.outcomes.get(id)

    async def events(self, id: int, after: int = 0, limit: int = 1000) -> list[Event]:
        self.unread = False
        return [event for event in self.happened[id] if event.number > after][:limit]

    async def find(self, query: Query) -> list[Entry]:
        self.queries.append(query)
        found = [
            entry
            for id, entry in sorted(self.entries.items(), reverse=True)
            if query.before is None or id < query.before
        ]
        return [entry for entry in found if query.name in (None, entry.name)][: query.limit]

    async def changed(self, id: int, timeout: float) -> bool:
        if not self.unread:
            with anyio.move_on_after(timeout):
                await self.news.wait()
        return self.unread

    def change(self, id: int, **fields: Any) -> None:
        """An entry is another one from now on."""
        self.entries[id] = msgspec.structs.replace(self.entries[id], **fields)
        if "status" in fields:
            self.note(id, "state", {"status": str(fields["status"])})
        self.wake()

    def note(self, id: int, kind: str, data: dict[str, Any]) -> None:
        """Something happens to a call."""
        events = self.happened.setdefault(id, [])
        events.append(Event(len(events) + 1, 1_800_000_000.0, kind, data))
        self.wake()

    def end(self, id: int, outcome: Outcome) -> None:
        """A call ends."""
        self.outcomes[id] = outcome
        self.change(
            id, status=outcome.status, code=outcome.code, error_code=outcome.error_code, seconds=outcome.seconds,
            finished_at=time.time(),
        )  # fmt: skip

    def wake(self) -> None:
        """Whoever waits is to look."""
        self.unread = True
        self.news.set()
        self.news = anyio.Event()


class StandIn:
    """A host with the functions that a test gives it."""

    worded = Host.worded
    wait, identify, authorize, find = Host.wait, Host.identify, Host.authorize, Host.find

    def __init__(self, **settings: Any) -> None:
        self.ids = CallIds()
        self.debug = self.draining = self.stopping = self.bound_to_loopback = False
        self.siblings = None
        root = Path("/root")
        self.config = Config(root, root / "spaces.toml", root / "functions", ServerSettings(), FunctionSettings(), {})
        self.authority = Authority(lambda: self.config, open=lambda: True)
        self.received: Counter[str] = Counter()
        self.journal = MemoryJournal()
        self.refusal: HostError | None = None
        self.registry = Registry()
        self.add("work", **settings)

    def add(self, name: str, **settings: Any) -> None:
        """Another function."""
        function = Function(
            id=1, space="demo", name=name, path=Path(f"/root/functions/demo/{name}.py"), line=1, kind="sync",
            takes=("data",), digest="", settings=FunctionSettings(**settings),
        )  # fmt: skip
        self.registry = Registry(("demo",), {**self.registry.functions, ("demo", name): function})

    def status(self, function: Function) -> Any:
        return {"name": function.name}

    async def statuses(self, functions: Sequence[Function]) -> list[Any]:
        return [self.status(function) for function in functions]

    def lookup(self, space: str, name: str) -> Function:
        return self.registry.lookup(space, name)

    async def submit(self, submission: Submission) -> Receipt:
        if self.refusal is not None:
            raise self.refusal
        call = submission.call
        for id, other in self.journal.submissions.items():
            if submission.idempotency_key is not None and other.idempotency_key == submission.idempotency_key:
                if other.call.body != call.body:
                    raise KeyReused
                return Receipt(id, other.call.label, repeated=True)
        now = time.time()
        self.journal.submissions[call.id] = submission
        self.journal.entries[call.id] = Entry(
            id=call.id, label=call.label, space=call.space, name=call.name, status=Status.QUEUED,
            trigger=submission.trigger, priority=submission.priority, idempotency_key=submission.idempotency_key,
            schedule_id=0, scheduled_time=0.0, attempt=0, accepted_at=now, run_at=submission.run_at or now,
            started_at=None, finished_at=None, code=None, error_code=None, seconds=None, progress=None,
            progress_message="", callback_url=submission.callback_url, callback_attempts=0, callback_at=None,
            callback=CallbackState.WAITING if submission.callback_url else CallbackState.NONE, callback_error=None,
        )  # fmt: skip
        self.journal.note(call.id, "state", {"status": "queued"})
        return Receipt(call.id, call.label)

    async def cancel(self, id: int, outcome: Outcome | None = None) -> Status | None:
        entry = self.journal.entries[id]
        if outcome is not None and not entry.status.is_final:
            self.journal.outcomes[id] = outcome
        if entry.status is Status.QUEUED:
            self.journal.change(id, status=Status.CANCELLED)
        return self.journal.entries[id].status

    async def redeliver(self, id: int) -> bool:
        return self.journal.entries[id].callback_url is not None and id in self.journal.outcomes

    async def rerun(self, id: int) -> Receipt:
        if id not in self.journal.submissions:
            raise NotFound
        number = self.ids.next()
        call = msgspec.structs.replace(self.journal.submissions[id].call, id=number, label=str(number))
        return await self.submit(Submission(call, trigger="rerun"))


class Edge:
    """The application around a stand-in, and a client of it."""

    def __init__(self, host: StandIn, client: httpx2.AsyncClient) -> None:
        self.host = host
        self.journal = host.journal
        self.client = client

    async def accepted(self, **headers: str) -> int:
        """A call that was submitted; its number."""
        answer = await self.client.post(SUBMIT, content=b"{}", headers=headers)
        assert answer.status_code == 202, answer.text
        return int(answer.headers["location"].rpartition("/")[2])

    @property
    def last(self) -> Submission:
        """What was submitted last."""
        return list(self.journal.submissions.values())[-1]


@asynccontextmanager
async def edge(**settings: Any) -> AsyncIterator[Edge]:
    """The edge over a function with these settings."""
    host = StandIn(**settings)
    transport = httpx2.ASGITransport(App(host))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield Edge(host, client)


def answered(code: int = 200, body: bytes = b'{"ok":true}', *, invoked: bool = True, **fields: Any) -> Outcome:
    """An outcome."""
    return Outcome(code, b"content-type\0application/json\0x-own\0yes", body, invoked, 0.25, **fields)
