"""Cognite's dialect over a host in memory: its shapes, its words for what happens, and who may see what."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from runtime.app import App
from runtime.authority import Authority
from runtime.calls import Outcome, Status, function_id
from runtime.config import load
from runtime.dialects import cognite
from runtime.dialects.cognite import calls, sessions, words
from runtime.errors import Draining, HostError, JournalError, NotFound, Overloaded
from runtime.registry import Function, Registry
from runtime.status import FunctionStatus
from runtime.timetable import Timetable
from tests.unit.dialects.standin import StandIn, answered

pytestmark = pytest.mark.anyio

P = "/api/v1/projects/p"
WORK = function_id("demo", "work")
AT = f"{P}/functions/{WORK}"
TOKENS = {name: f"token-of-{name.lower()}-0123456789" for name in ("ALL", "CALLS", "READS", "ELSEWHERE")}
GUARDED = """
    [server]
    projects = ["p", "q"]
    [spaces.demo]
    tokens = [
        "env:ALL",
        { token = "env:CALLS", scopes = ["invoke"] },
        { token = "env:READS", scopes = ["read"] },
    ]
    [spaces.demo.functions.shown]
    public = true
    [spaces.other]
    tokens = ["env:ELSEWHERE"]
"""


class CogniteHost(StandIn):
    """A host with a configuration of its own, and functions with numbers of their own."""

    def __init__(self, root: Path, toml: str = "", *, loopback: bool = True) -> None:
        super().__init__()
        (root / "functions").mkdir()
        (root / "spaces.toml").write_text(toml)
        self.config = load(root, environ=TOKENS)
        self.authority = Authority(lambda: self.config, open=lambda: loopback)
        self.timetable = Timetable(self.config.server.state)
        self.started_at = 1_700_000_000.0
        self.failed: dict[str, dict[str, Any]] = {}
        self.registry = Registry()
        for place in ("demo/work", "demo/shown", "other/work"):
            self.put(place)

    def put(self, place: str) -> None:
        """Another function."""
        space, name = place.split("/")
        found = Function(
            id=function_id(space, name), space=space, name=name, path=self.config.root / f"{name}.py", line=1,
            kind="sync", takes=("data",), digest="", settings=self.config.settings(space, name),
        )  # fmt: skip
        functions = {**self.registry.functions, (space, name): found}
        self.registry = Registry(tuple({key[0]: None for key in functions}), functions)

    def status(self, function: Function) -> FunctionStatus:
        error = self.failed.get(function.name)
        return FunctionStatus(
            space=function.space, name=function.name, id=function.id, file="", line=1, kind="sync", takes=(),
            state="failed" if error else "cold", generation=None, workers=0, busy=0, waiting=0, load_error=error,
        )  # fmt: skip


class Edge:
    """The application around the host, and a client of it."""

    def __init__(self, host: CogniteHost, client: httpx2.AsyncClient) -> None:
        self.host = host
        self.journal = host.journal
        self.client = client

    async def post(self, path: str, body: Any = None, token: str | None = None) -> Any:
        """The status and the JSON of an answer."""
        return await self.ask("POST", path, token, json=body if body is not None else {})

    async def get(self, path: str, token: str | None = None) -> Any:
        return await self.ask("GET", path, token)

    async def ask(self, method: str, path: str, token: str | None, **arguments: Any) -> Any:
        headers = {"authorization": f"Bearer {TOKENS.get(token, token)}"} if token else {}
        answer = await self.client.request(method, path, headers=headers, **arguments)
        assert answer.headers["x-request-id"]
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()

    async def called(self, data: Any = None, **more: Any) -> int:
        """A call that was submitted; its number."""
        status, body = await self.post(f"{AT}/call", {"data": data or {}, **more})
        assert status == 201, body
        id: int = body["id"]
        return id

    async def shown(self, id: int) -> dict[str, Any]:
        """A call as byids shows it."""
        status, body = await self.post(f"{AT}/calls/byids", {"items": [{"id": id}]})
        assert status == 200, body
        (item,) = body["items"]
        found: dict[str, Any] = item
        return found


@asynccontextmanager
async def serving(root: Path, toml: str = "", *, loopback: bool = True) -> AsyncIterator[Edge]:
    host = CogniteHost(root, toml, loopback=loopback)
    transport = httpx2.ASGITransport(App(host))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield Edge(host, client)
    await host.timetable.close()


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """One that is open to all."""
    async with serving(tmp_path) as edge:
        yield edge


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Edge]:
    """One with tokens, which other machines reach."""
    async with serving(tmp_path, GUARDED, loopback=False) as edge:
        yield edge


def message(answer: Any, status: int = 400) -> str:
    """What an error says; it must be as the SDK needs it."""
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert error["code"] == status
    text: str = error["message"]
    assert text
    return text


# Calls


async def test_a_call_is_submitted(edge: Edge) -> None:
    """A POST of the data as it came, known by the dialect; its answer is Running with an id."""
    status, body = await edge.post(f"{AT}/call", {"data": {"x": [1, 2.50]}, "nonce": "n"})
    (submission,) = edge.journal.submissions.values()
    call = submission.call
    entry = edge.journal.entries[body["id"]]

    assert status == 201
    assert body == {
        "id": call.id, "functionId": WORK, "startTime": calls.milliseconds(entry.accepted_at), "status": "Running",
    }  # fmt: skip
    assert (call.space, call.name, call.method, call.path, call.query) == ("demo", "work", b"POST", b"", b"")
    assert call.body == (b'{"x":[1,2.5]}',)
    assert (call.timeout, submission.trigger) == (None, "cognite")
    assert b"authorization" not in call.headers
    assert submission.idempotency_key is not None
    assert submission.idempotency_key.startswith("cognite:")


async def test_the_data_is_passed_on_byte_by_byte(edge: Edge) -> None:
    """Numbers and escapes stay as they were written."""
    text = b'{"data": {"a" : 1.0, "b": 12345678901234567890123, "c":"\\u00e9"}}'
    answer = await edge.client.post(f"{AT}/call", content=text)

    assert answer.status_code == 201
    (submission,) = edge.journal.submissions.values()
    assert submission.call.body == (text[9:-1],)


@pytest.mark.parametrize("body", [b"{}", b'{"data":null}', b'{"data":{}}', b'{"nonce":null}', b'{"nonce":""}'])
async def test_no_data_is_an_empty_object(edge: Edge, body: bytes) -> None:
    """And without a nonce there is no key."""
    answer = await edge.client.post(f"{AT}/call", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    (submission,) = edge.journal.submissions.values()

    assert answer.status_code == 201
    assert submission.call.body == (b"{}",)
    assert submission.idempotency_key is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data":[1]}', "data must be a JSON object"),
        (b'{"data":"x"}', "data must be a JSON object"),
        (b'{"data":{"a":"\xff"}}', "data must be a JSON object"),
        (b'{"data":{}', "not valid JSON"),
        (b'{"nonce":5}', "nonce"),
        (b"", "the body is empty"),
        (b"[]", "does not fit"),
    ],
)
async def test_what_is_no_call(edge: Edge, body: bytes, words: str) -> None:
    """400, and nothing is submitted."""
    answer = await edge.client.post(f"{AT}/call", content=body)

    assert words in message((answer.status_code, answer.json()))
    assert edge.journal.submissions == {}


async def test_the_same_nonce_is_the_same_call(edge: Edge) -> None:
    """As it is by then; with other data it is refused."""
    first = await edge.called({"n": 1}, nonce="once")
    edge.journal.end(first, answered())
    status, again = await edge.post(f"{AT}/call", {"data": {"n": 1}, "nonce": "once"})

    assert (status, again["id"], again["status"]) == (201, first, "Completed")
    assert "other data" in message(await edge.post(f"{AT}/call", {"data": {"n": 2}, "nonce": "once"}))
    assert await edge.called({"n": 1}, nonce="twice") != first
    assert await edge.called({"n": 1}) != first


@pytest.mark.parametrize(
    ("refusal", "status"), [(Overloaded(), 429), (Draining(), 503), (JournalError(), 503), (NotFound("gone"), 400)]
)
async def test_what_the_host_refuses(edge: Edge, refusal: HostError, status: int) -> None:
    """429 is tried again by the SDK, 503 is not; a function that has gone is one that is not there."""
    edge.host.refusal = refusal

    assert message(await edge.post(f"{AT}/call"), status)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "Running"),
        ({"status": Status.RUNNING}, "Running"),
        ({"status": Status.SUCCEEDED, "finished_at": 1.5}, "Completed"),
        ({"status": Status.FAILED, "finished_at": 1.5}, "Failed"),
        ({"status": Status.FAILED, "finished_at": 1.5, "error_code": "timeout"}, "Timeout"),
        ({"status": Status.CANCELLED, "finished_at": 1.5}, "Failed"),
    ],
)
async def test_statuses(edge: Edge, fields: dict[str, Any], word: str) -> None:
    """Everything that is not over is Running; what is over has an end, and an error unless it is Completed."""
    id = await edge.called()
    edge.journal.change(id, **fields)
    shown = await edge.shown(id)

    assert shown["status"] == word
    assert shown.get("endTime") == (1500 if word != "Running" else None)
    assert ("error" in shown) == (word not in ("Running", "Completed"))
    if "error" in shown:
        assert shown["error"].keys() == {"message", "trace"}


async def test_an_error_has_what_was_logged_last_as_an_error(edge: Edge) -> None:
    """Without the folders above the root; in lists there is the message alone."""
    id = await edge.called()
    body = b'{"error":{"status":500,"code":"function_error","message":"ValueError at line 3: no"}}'
    edge.journal.note(id, "log", {"level": 40, "text": "first"})
    edge.journal.note(id, "log", {"level": 40, "text": f'Traceback\n  File "{edge.host.config.root}/work.py"\n'})
    edge.journal.note(id, "log", {"level": 20, "text": "last"})
    edge.journal.end(id, Outcome(500, b"content-type\0application/json", body, True, 0.1))
    listed = await edge.post(f"{AT}/calls/list")

    assert (await edge.shown(id))["error"] == {
        "message": "ValueError at line 3: no", "trace": 'Traceback\n  File "work.py"\n',
    }  # fmt: skip
    assert listed[1]["items"][0]["error"] == {"message": "ValueError at line 3: no", "trace": ""}


async def test_a_cancelled_call_says_so(edge: Edge) -> None:
    """There is no such status in this API."""
    id = await edge.called()
    edge.journal.change(id, status=Status.CANCELLED, finished_at=2.0)

    assert (await edge.shown(id))["error"] == {"message": "cancelled", "trace": ""}
    assert "response" not in (await edge.get(f"{AT}/calls/{id}/response"))[1]


@pytest.mark.parametrize(
    ("body", "kind", "value"),
    [
        (b'{"a":1}', "application/json", {"a": 1}),
        (b"[1,null]", "application/json", [1, None]),
        (b"text", "text/plain", "text"),
        (b"", "text/plain", None),
    ],
)
async def test_responses(edge: Edge, body: bytes, kind: str, value: Any) -> None:
    """What the function returned, whatever that is."""
    id = await edge.called()
    edge.journal.end(id, Outcome(200, f"content-type\0{kind}".encode(), body, True, 0.1))

    assert await edge.get(f"{AT}/calls/{id}/response") == (
        200, {"functionId": WORK, "callId": id, "response": value},
    )  # fmt: skip


async def test_there_is_no_response_of_what_has_none(edge: Edge) -> None:
    """While it runs, when it failed, when it is no longer kept: 200 without one."""
    running, failed, forgotten = [await edge.called() for _ in range(3)]
    edge.journal.end(failed, answered(500))
    edge.journal.change(forgotten, status=Status.SUCCEEDED)

    for id in (running, failed, forgotten):
        assert await edge.get(f"{AT}/calls/{id}/response") == (200, {"functionId": WORK, "callId": id})


async def test_logs_are_lines(edge: Edge) -> None:
    """One item each, whatever came together."""
    id = await edge.called()
    for text in ("one\ntwo", "", "three\n", "a\u2028b"):
        edge.journal.note(id, "log", {"level": 20, "text": text})
    status, body = await edge.get(f"{AT}/calls/{id}/logs")

    assert status == 200
    assert [item["message"] for item in body["items"]] == ["one", "two", "", "three", "a\u2028b"]
    assert {item["timestamp"] for item in body["items"]} == {1_800_000_000_000}


async def test_lists(edge: Edge) -> None:
    """By status, times and schedule, the newest first; a cursor only where there is more."""
    ids = [await edge.called({"n": number}) for number in range(6)]
    for number, id in enumerate(ids):
        edge.journal.change(id, accepted_at=1000.0 + number, schedule_id=7 if number % 2 else 0)
    edge.journal.end(ids[0], answered())
    edge.journal.change(ids[1], status=Status.FAILED, error_code="timeout", finished_at=2000.0)
    edge.journal.change(ids[2], status=Status.CANCELLED, finished_at=3000.0)

    async def listed(limit: int | None = None, **wanted: Any) -> list[int]:
        status, body = await edge.post(f"{AT}/calls/list", {"filter": wanted, "limit": limit})
        assert status == 200, body
        return [ids.index(item["id"]) for item in body["items"]]

    assert await listed() == [5, 4, 3, 2, 1, 0]
    assert await listed(limit=2) == [5, 4]
    assert await listed(status="Running") == [5, 4, 3]
    assert await listed(status="Completed") == [0]
    assert await listed(status="Failed") == [2]
    assert await listed(status="Timeout") == [1]
    assert await listed(scheduleId=7) == [5, 3, 1]
    assert await listed(startTime={"min": 1_001_000, "max": 1_003_000}) == [3, 2, 1]
    assert await listed(endTime={"min": 2_000_000, "max": 2_999_999}) == [1]
    assert await listed(endTime={"max": 3_000_000}) == [2, 1]


async def test_pages(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call once, also where a request may look at few of them."""
    monkeypatch.setattr(calls, "MOST", 3)
    monkeypatch.setattr(calls, "MOST_LOOKED_AT", 4)
    ids = [await edge.called({"n": number}) for number in range(20)]
    for id in ids[::7]:
        edge.journal.change(id, schedule_id=7)
    found, body = [], {"filter": {"scheduleId": 7}, "limit": 1}
    for _ in range(30):
        _, page = await edge.post(f"{AT}/calls/list", body)
        found += [item["id"] for item in page["items"]]
        if "nextCursor" not in page:
            break
        body["cursor"] = page["nextCursor"]

    assert found == ids[::7][::-1]


@pytest.mark.parametrize("body", [{"cursor": "x"}, {"limit": 0}, {"filter": {"status": "running"}}, {"limit": "5"}])
async def test_lists_that_are_wrong(edge: Edge, body: dict[str, Any]) -> None:
    """400."""
    assert message(await edge.post(f"{AT}/calls/list", body))


async def test_calls_that_are_not_there(edge: Edge) -> None:
    """400 and what is missing, as the request had it; or nothing where that is asked for."""
    id = await edge.called()
    mixed = {"items": [{"id": 5}, {"id": id}, {"id": 6}]}
    status, body = await edge.post(f"{AT}/calls/byids", mixed)

    assert status == 400
    assert body["error"]["missing"] == [{"id": 5}, {"id": 6}]
    status, body = await edge.post(f"{AT}/calls/byids", {**mixed, "ignoreUnknownIds": True})
    assert [item["id"] for item in body["items"]] == [id]
    other = f"{P}/functions/{function_id('demo', 'shown')}/calls"
    for path in (f"{other}/{id}", f"{other}/{id}/response", f"{other}/{id}/logs", f"{AT}/calls/5"):
        status, body = await edge.get(path)
        assert (status, "missing" in body["error"]) == (400, True)


@pytest.mark.parametrize("items", [[], [{}], [{"id": 0}], [{"id": 2**53}], [{"id": "1"}], [{"id": 1}] * 1001])
async def test_items_that_are_wrong(edge: Edge, items: list[Any]) -> None:
    """400, for calls, functions and schedules alike."""
    for path in (f"{AT}/calls/byids", f"{P}/functions/byids", f"{P}/functions/schedules/byids"):
        assert message(await edge.post(path, {"items": items}))


# Functions


async def test_functions(edge: Edge) -> None:
    """With all that the SDK needs of one."""
    (edge.host.config.root / "work.py").write_text("")
    status, body = await edge.post(f"{P}/functions/byids", {"items": [{"id": WORK}, {"externalId": "demo/shown"}]})
    work, shown = body["items"]

    assert status == 200
    assert work.keys() >= {"id", "name", "status", "fileId", "createdTime", "externalId", "functionPath", "runtime"}
    assert (work["id"], work["name"], work["externalId"]) == (WORK, "work", "demo/work")
    assert (work["status"], work["functionPath"], work["owner"]) == ("Ready", "work.py", "")
    assert work["fileId"] not in (0, WORK)
    assert work["createdTime"] > shown["createdTime"] == 1_700_000_000_000
    assert await edge.get(AT) == (200, work)


async def test_a_function_that_cannot_be_loaded(edge: Edge) -> None:
    """Is Failed, with both keys that tools look for."""
    edge.host.failed["work"] = {"message": "No module named x", "file": "f"}
    _, body = await edge.post(f"{P}/functions/list", {"filter": {"status": "Failed"}})

    assert [item["externalId"] for item in body["items"]] == ["demo/work", "other/work"]
    assert body["items"][0]["error"] == {"message": "No module named x", "trace": ""}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["demo/shown", "demo/work", "other/work"]),
        ({"name": "work"}, ["demo/work", "other/work"]),
        ({"externalIdPrefix": "demo/"}, ["demo/shown", "demo/work"]),
        ({"owner": "me"}, []),
        ({"metadata": {}}, ["demo/shown", "demo/work", "other/work"]),
        ({"metadata": {"a": "b"}}, []),
        ({"createdTime": {"max": 1_700_000_000_000}}, ["demo/shown", "demo/work", "other/work"]),
        ({"createdTime": {"min": 1_700_000_000_001}}, []),
    ],
)
async def test_functions_are_filtered(edge: Edge, wanted: dict[str, Any], found: list[str]) -> None:
    """By everything that the API has."""
    _, body = await edge.post(f"{P}/functions/list", {"filter": wanted, "limit": 10000})

    assert [item["externalId"] for item in body["items"]] == found


async def test_functions_that_are_not_there(edge: Edge) -> None:
    """400 and what is missing; an item must name one thing."""
    items = [{"id": 9}, {"externalId": "demo/x"}, {"externalId": "work"}]
    status, body = await edge.post(f"{P}/functions/byids", {"items": items})

    assert (status, body["error"]["missing"]) == (400, items)
    assert await edge.post(f"{P}/functions/byids", {"items": items, "ignoreUnknownIds": True}) == (200, {"items": []})
    assert message(await edge.post(f"{P}/functions/byids", {"items": [{"id": WORK, "externalId": "demo/work"}]}))
    for path in (f"{P}/functions/9/call", f"{P}/functions/9/calls/list", f"{P}/functions/9/calls/byids"):
        status, body = await edge.post(path, {"items": [{"id": 1}]})
        assert body["error"]["missing"] == [{"id": 9}]


async def test_limits_and_status(edge: Edge) -> None:
    """Those of the defaults; functions are always activated."""
    _, limits = await edge.get(f"{P}/functions/limits")

    assert limits["timeoutMinutes"] == 15
    assert limits["responseSizeMb"] == 6
    assert limits["memoryGb"].keys() == limits["cpuCores"].keys() == {"min", "max", "default"}
    assert await edge.get(f"{P}/functions/status") == (200, {"status": "activated"})
    assert (await edge.client.post(f"{P}/functions/status")).json() == {"status": "activated"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/functions"), ("POST", "/functions/delete"), ("POST", "/files"), ("POST", "/files/byids"),
        ("GET", "/sessions"), ("POST", "/sessions/byids"), ("POST", "/sessions/revoke"),
    ],
)  # fmt: skip
async def test_what_is_not_offered(edge: Edge, method: str, path: str) -> None:
    """501, which the SDK does not try again."""
    assert "here" in message(await edge.ask(method, P + path, None), 501)


@pytest.mark.parametrize("path", ["/assets/list", "/functions/x", f"/functions/{WORK}/nothing", "/functions/1/2/3", ""])
async def test_addresses_that_there_are_not(edge: Edge, path: str) -> None:
    """404 in this dialect's words, with an id for the log."""
    assert message(await edge.get(P + path), 404)


async def test_methods_that_there_are_not(edge: Edge) -> None:
    """405, and which there are."""
    answer = await edge.client.delete(f"{AT}/call")

    assert message((answer.status_code, answer.json()), 405)
    assert answer.headers["allow"] == "POST"


def test_errors_have_a_code_and_a_message() -> None:
    """Whatever was raised; the SDK would raise KeyError without."""
    for error in (HostError(), HostError("x", details={"missing": [{"id": 1}], "space": "s"}), Overloaded()):
        status, headers, body = cognite.to_error(error, True)
        told = json.loads(body)["error"]
        assert (told["code"], bool(told["message"])) == (status, True)
        assert told.keys() <= {"code", "message", "missing", "duplicated"}
        assert {b"x-request-id", b"content-type"} <= {name for name, _ in headers}


# Sessions


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"tokenExchange": True}, "TOKEN_EXCHANGE"),
        ({"oneshotTokenExchange": True}, "ONESHOT_TOKEN_EXCHANGE"),
        ({"clientId": "c", "clientSecret": "s3cret"}, "CLIENT_CREDENTIALS"),
    ],
)
async def test_sessions(edge: Edge, item: dict[str, Any], kind: str) -> None:
    """Each kind is given out at once; the secret is not told again."""
    status, body = await edge.post(f"{P}/sessions", {"items": [item]})
    (session,) = body["items"]

    assert status == 201
    assert (session["status"], session["type"], session.get("clientId")) == ("READY", kind, item.get("clientId"))
    assert session["id"] > 0
    assert str(session["id"]) in session["nonce"]
    assert "s3cret" not in json.dumps(body)


@pytest.mark.parametrize(
    "items", [[], [{}], [{"tokenExchange": False}], [{"tokenExchange": True}] * 2, [{"clientId": "x"}],
              [{"tokenExchange": True, "oneshotTokenExchange": True}]],
)  # fmt: skip
async def test_sessions_that_are_wrong(edge: Edge, items: list[Any]) -> None:
    """400."""
    assert message(await edge.post(f"{P}/sessions", {"items": items}))


async def nonce_of(edge: Edge, token: str) -> str:
    """A nonce for who has this token."""
    status, body = await edge.post(f"{P}/sessions", {"items": [{"tokenExchange": True}]}, token)
    assert status == 201, body
    nonce: str = body["items"][0]["nonce"]
    return nonce


async def test_a_nonce_that_is_needed(guarded: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own, of the same caller, in time; so it is also after a restart. It calls once."""
    nonce = await nonce_of(guarded, "ALL")
    theirs = await nonce_of(guarded, "CALLS")
    guarded.host.authority = Authority(lambda: guarded.host.config, open=lambda: False)  # as after a restart
    status, first = await guarded.post(f"{AT}/call", {"nonce": nonce}, "ALL")

    assert status == 201
    assert (await guarded.post(f"{AT}/call", {"nonce": nonce}, "ALL"))[1]["id"] == first["id"]
    number, expiry, seal = nonce.split("-")
    later = f"{number}-{int(expiry) + 999}-{seal}"
    for wrong in (theirs, "mine", later, f"{number}-{expiry}-", "--", f"{number}-{expiry}-é", "9" * 5000):
        text = message(await guarded.post(f"{AT}/call", {"nonce": wrong}, "ALL"))
        assert "not known here, or has expired" in text
    assert "missing" in message(await guarded.post(f"{AT}/call", {}, "ALL"))
    monkeypatch.setattr(sessions.time, "time", lambda: int(expiry) + 1.0)  # type: ignore[attr-defined]
    assert "expired" in message(await guarded.post(f"{AT}/call", {"nonce": nonce}, "ALL"))
    assert len(guarded.journal.submissions) == 1


async def test_the_journal_holds_no_nonce(guarded: Edge) -> None:
    """What it holds of it differs from caller to caller, and does not tell it."""
    nonce = await nonce_of(guarded, "ALL")
    await guarded.post(f"{AT}/call", {"nonce": nonce}, "ALL")
    (submission,) = guarded.journal.submissions.values()

    assert nonce.encode() not in msgspec.json.encode(submission.idempotency_key) + submission.call.headers
    assert sessions.key_of("a", nonce) != sessions.key_of("b", nonce)


# Who may


async def test_who_asks(guarded: Edge) -> None:
    """A wrong token and none are 401 everywhere, before anything is said of what is there."""
    for path in ("/functions/limits", "/functions", f"/functions/{WORK}", "/functions/9", "/functions/schedules/9"):
        for token in (None, "wrong-token-0123456789"):
            assert message(await guarded.get(P + path, token), 401)
    for path in (f"/functions/{WORK}/call", "/functions/9/call", "/sessions", "/functions/list", "/functions/byids"):
        assert message(await guarded.post(P + path, {}, "wrong-token-0123456789"), 401)
    answer = await guarded.client.get("/api/v1/token/inspect")
    assert message((answer.status_code, answer.json()), 401)
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_what_one_may_not_read_is_not_there(guarded: Edge) -> None:
    """The same answer as for what is really not there."""
    for id in (WORK, 9):
        for path in ("call", "calls/list", "calls/byids"):
            status, body = await guarded.post(f"{P}/functions/{id}/{path}", {}, "ELSEWHERE")
            assert (status, body["error"]["missing"]) == (400, [{"id": id}])
        status, body = await guarded.get(f"{P}/functions/{id}", "ELSEWHERE")
        assert (status, body["error"]["missing"]) == (400, [{"id": id}])
    _, listed = await guarded.get(f"{P}/functions", "ELSEWHERE")
    assert [item["externalId"] for item in listed["items"]] == ["other/work"]


async def test_a_guarded_space_beside_an_open_one(tmp_path: Path) -> None:
    """Without a token, what is guarded looks like what is not there; with one, the open space is still open."""
    async with serving(tmp_path, GUARDED) as edge:
        edge.host.put("free/work")
        free = f"{P}/functions/{function_id('free', 'work')}"
        for id in (WORK, 9):
            assert message(await edge.post(f"{P}/functions/{id}/call"), 401)
            assert message(await edge.post(f"{P}/functions/byids", {"items": [{"id": id}]}), 401)
        for token in (None, "ALL", "ELSEWHERE"):
            assert (await edge.post(f"{free}/call", {"nonce": "mine"}, token))[0] == 201
        _, listed = await edge.get(f"{P}/functions")
        assert [item["externalId"] for item in listed["items"]] == ["free/work"]


async def test_rights(guarded: Edge) -> None:
    """Reading is not calling, calling is not reading, and neither is creating schedules."""
    assert "invoke" in message(await guarded.post(f"{AT}/call", {}, "READS"), 403)
    assert (await guarded.get(AT, "READS"))[0] == 200
    nonce = await nonce_of(guarded, "CALLS")
    status, body = await guarded.post(f"{AT}/call", {"nonce": nonce}, "CALLS")
    assert status == 201
    status, body = await guarded.get(f"{AT}/calls/{body['id']}", "CALLS")
    assert (status, body["error"]["missing"]) == (400, [{"id": WORK}])
    item = {"name": "n", "cronExpression": "* * * * *", "functionId": WORK, "nonce": await nonce_of(guarded, "READS")}
    assert "deploy" in message(await guarded.post(f"{P}/functions/schedules", {"items": [item]}, "READS"), 403)


async def test_a_public_function_is_called_by_anybody(guarded: Edge) -> None:
    """With no token or a wrong one, and without a nonce; its calls are not for everybody to see."""
    at = f"{P}/functions/{function_id('demo', 'shown')}"
    for token in (None, "wrong-token-0123456789", "ELSEWHERE"):
        status, body = await guarded.post(f"{at}/call", {}, token)
        assert status == 201, body
    assert message(await guarded.get(f"{at}/calls/{body['id']}"), 401)


async def test_projects(guarded: Edge, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those that are configured, else any; a wrong one is 401, and inspect tells the right ones."""
    assert message(await guarded.get("/api/v1/projects/r/functions/status", "ALL"), 401)
    assert (await guarded.get("/api/v1/projects/q/functions/status", "ALL"))[0] == 200
    _, inspected = await guarded.get("/api/v1/token/inspect", "READS")
    assert [project["projectUrlName"] for project in inspected["projects"]] == ["p", "q"]
    assert inspected["capabilities"][0]["functionsAcl"]["actions"] == ["READ"]
    async with serving(tmp_path_factory.mktemp("open")) as edge:
        assert (await edge.get("/api/v1/projects/any-thing_1/functions/status"))[0] == 200
        assert message(await edge.get("/api/v1/projects/a.b/functions/status"), 401)


# Schedules


def wanted(**fields: Any) -> dict[str, Any]:
    """The body that creates a schedule."""
    return {"items": [{"name": "n", "cronExpression": "*/5 * * * *", "functionId": WORK, "nonce": "x", **fields}]}


async def test_a_schedule_is_created(edge: Edge) -> None:
    """With all that the SDK needs of it, and its data at an address of its own."""
    status, body = await edge.post(f"{P}/functions/schedules", wanted(data={"a": 1.0}, description="why"))
    (item,) = body["items"]
    (kept,) = edge.host.timetable.known

    assert status == 201
    assert item.pop("sessionId") > 0
    assert item.pop("createdTime") == calls.milliseconds(kept.created_at)
    assert item == {
        "id": kept.id, "name": "n", "cronExpression": "*/5 * * * *", "functionId": WORK, "description": "why",
        "functionExternalId": "demo/work", "when": "Every 5 minutes",
    }  # fmt: skip
    assert (kept.space, kept.name, kept.data) == ("demo", "work", b'{"a":1.0}')
    at = f"{P}/functions/schedules"
    assert await edge.get(f"{at}/{kept.id}/input_data") == (200, {"id": kept.id, "data": {"a": 1}})
    assert (await edge.get(f"{at}/{kept.id}"))[1]["name"] == "n"
    assert (await edge.post(f"{at}/byids", {"items": [{"id": kept.id}]}))[1]["items"][0]["id"] == kept.id
    assert await edge.post(f"{at}/delete", {"items": [{"id": kept.id}]}) == (200, {})
    assert edge.host.timetable.known == ()


async def test_the_same_nonce_is_the_same_schedule(edge: Edge) -> None:
    """So a request that the SDK sends again creates none; another nonce does."""
    answers = [await edge.post(f"{P}/functions/schedules", wanted()) for _ in range(2)]

    assert answers[0] == answers[1]
    assert "nonce" in message(await edge.post(f"{P}/functions/schedules", wanted(name="m")))
    assert (await edge.post(f"{P}/functions/schedules", wanted(nonce="y")))[1] != answers[0][1]
    assert len(edge.host.timetable.known) == 2


async def test_schedules_are_filtered(edge: Edge) -> None:
    """By everything that the API has."""
    at = f"{P}/functions/schedules"
    other = function_id("other", "work")
    for fields in ({}, {"name": "m", "nonce": "y"}, {"functionId": other, "cronExpression": "@daily"}):
        assert (await edge.post(at, wanted(**fields)))[0] == 201

    async def listed(limit: int | None = None, **filter: Any) -> list[str]:
        _, body = await edge.post(f"{at}/list", {"filter": filter, "limit": limit})
        return [f"{item['name']} {item['functionExternalId']}" for item in body["items"]]

    assert await listed() == ["n demo/work", "m demo/work", "n other/work"]
    assert await listed(limit=1) == ["n demo/work"]
    assert await listed(name="n") == ["n demo/work", "n other/work"]
    assert await listed(functionId=WORK) == ["n demo/work", "m demo/work"]
    assert await listed(functionExternalId="other/work") == ["n other/work"]
    assert await listed(cronExpression="@daily") == ["n other/work"]
    assert await listed(createdTime={"max": 1}) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""}, {"name": "n" * 141}, {"name": None}, {"description": "d" * 501}, {"cronExpression": "x"},
        {"cronExpression": "* * * * * *"}, {"cronExpression": "*" * 1025}, {"data": [1]}, {"functionId": None},
        {"functionId": 9}, {"functionId": None, "functionExternalId": "demo/x"},
    ],
)  # fmt: skip
async def test_schedules_that_are_wrong(edge: Edge, fields: dict[str, Any]) -> None:
    """400, and none is created."""
    assert message(await edge.post(f"{P}/functions/schedules", wanted(**fields)))
    assert edge.host.timetable.known == ()


async def test_schedules_have_little_data(edge: Edge) -> None:
    """They are all held in memory."""
    assert message(await edge.post(f"{P}/functions/schedules", wanted(data={"a": "x" * 65536})), 413)


async def test_schedules_of_others(guarded: Edge) -> None:
    """Are neither shown nor deleted; whoever may read them may still not delete them."""
    at = f"{P}/functions/schedules"
    status, body = await guarded.post(at, wanted(nonce=await nonce_of(guarded, "ALL")), "ALL")
    assert status == 201, body
    id = body["items"][0]["id"]
    items = {"items": [{"id": id}]}

    assert (await guarded.post(f"{at}/list", {}, "ELSEWHERE"))[1] == {"items": []}
    for path in ("byids", "delete"):
        status, body = await guarded.post(f"{at}/{path}", items, "ELSEWHERE")
        assert (status, body["error"]["missing"]) == (400, items["items"])
    assert (await guarded.get(f"{at}/{id}/input_data", "ELSEWHERE"))[0] == 400
    assert (await guarded.post(f"{at}/byids", items, "READS"))[0] == 200
    assert message(await guarded.post(f"{at}/delete", items, "READS"), 403)
    assert (await guarded.post(f"{at}/delete", items, "ALL"))[0] == 200


async def test_a_schedule_outlives_its_function(edge: Edge) -> None:
    """It is still listed, and can be deleted."""
    at = f"{P}/functions/schedules"
    _, body = await edge.post(at, wanted())
    edge.host.registry = Registry(("demo",), {})
    _, listed = await edge.get(at)

    assert [item["id"] for item in listed["items"]] == [body["items"][0]["id"]]
    assert (await edge.post(f"{at}/delete", {"items": [{"id": listed["items"][0]["id"]}]}))[0] == 200


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("* * * * *", "Every minute"),
        ("*/1 * * * *", "Every minute"),
        ("*/5 * * * *", "Every 5 minutes"),
        ("0 * * * *", "Every hour"),
        ("15 * * * *", "At minute 15 of every hour"),
        ("0,30 * * * *", "At minute 0 and 30 of every hour"),
        ("0 */2 * * *", "Every 2 hours"),
        ("0 */1 * * *", "Every hour"),
        ("*/90 * * * *", "Every hour"),
        ("0 */30 * * *", "At 00:00 UTC"),
        ("30 8 * * *", "At 08:30 UTC"),
        ("0 8,12,18 * * *", "At 08:00, 12:00 and 18:00 UTC"),
        ("30 8 * * 1-5", "At 08:30 UTC, on Monday to Friday"),
        ("30 8 * * MON,7", "At 08:30 UTC, on Monday and Sunday"),
        ("0 0 1 1 *", "At 00:00 UTC, on day 1 of the month, in January"),
        ("0 0 1,15 JAN-MAR *", "At 00:00 UTC, on day 1 and 15 of the month, in January to March"),
        ("0 0 1 * 0", "At 00:00 UTC, on day 1 of the month or on Sunday"),
        ("*/10 8-17 * * *", "Every 10 minutes, during hour 8 to 17 UTC"),
        ("5-55/10 */3 * * *", "At minute every 10 minutes from 5 to 55 of every hour, during hour every 3 hours UTC"),
        ("0 0 L * *", "At 00:00 UTC, on day L of the month"),
        ("0 0 * * 1#2", "At 00:00 UTC, on 1#2"),
    ],
)
def test_cron_expressions_in_words(expression: str, text: str) -> None:
    """As somebody would say it, or nearly so."""
    assert words.describe(expression) == text


# The walk of one call


async def test_many_at_once_with_one_nonce(edge: Edge) -> None:
    """However they come, they are one call."""
    found: set[int] = set()

    async def call() -> None:
        found.add(await edge.called({"n": 1}, nonce="once"))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call)

    assert len(found) == 1


def test_the_key_is_no_plain_digest() -> None:
    """One of the nonce alone could be looked up."""
    assert hashlib.blake2b(b"n", digest_size=16).hexdigest() not in sessions.key_of("me", "n")
