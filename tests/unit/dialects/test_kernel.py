"""Kernel's dialect at the edge: what it takes, what it refuses, what it shows, in which order it tells."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from runtime.calls import Call, Outcome, Status, Submission
from runtime.config import FunctionSettings, SpaceSettings
from runtime.credentials import Grant, Token, digest_of
from runtime.dialects import dialect_of, kernel
from runtime.dialects.kernel import attaching, events, invocations, listing, moments
from runtime.dialects.kernel.apps import deployment_of
from runtime.errors import BadRequest, Conflict, Draining, HostError, JournalError, Overloaded
from runtime.registry import Function, Registry
from tests.unit.dialects.standin import Edge, answered, edge

pytestmark = pytest.mark.anyio

ASKED = {"app_name": "demo", "action_name": "work", "version": "latest"}
PATIENCE = 20.0


async def make(site: Edge, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    """An invocation that is asked for."""
    return await site.client.post("/invocations", json={**ASKED, **fields}, headers=headers or {})


async def queued(site: Edge, **fields: Any) -> int:
    """The number of an invocation that nothing has become of yet."""
    answer = await make(site, **{"async": True}, **fields)
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


@asynccontextmanager
async def made(site: Edge, headers: dict[str, str] | None = None, **fields: Any) -> AsyncIterator[list[Any]]:
    """While a sync invocation is under way; afterwards its answer is in the list."""
    answers: list[Any] = []
    before = len(site.journal.submissions)

    async def ask() -> None:
        answers.append(await make(site, headers, **fields))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while len(site.journal.submissions) == before and not answers:
                await anyio.sleep(0.001)
            yield answers


def labelled(site: Edge, name: str, app: str, target: str, space: str = "demo") -> None:
    """A function of a file of Kernel's kind."""
    function = Function(
        id=2, space=space, name=name, path=Path("/root/functions/demo/app.py"), line=1, kind="sync", takes=(),
        digest="", settings=FunctionSettings(), convention="kernel", target=target, app=app,
    )  # fmt: skip
    known = site.host.registry
    spaces = tuple(dict.fromkeys((*known.spaces, space)))
    site.host.registry = Registry(spaces, {**known.functions, (space, name): function})


# Which is meant.


@pytest.mark.parametrize(
    ("path", "name"),
    [("/apps", "kernel"), ("/invocations/1/events", "kernel"), ("/deployments", "kernel"), ("/browsers/x", "kernel"),
     ("/org/projects", "kernel"), ("/application", "http"), ("/spaces", "http"), ("/", "http"), ("/calls", "http")],
)  # fmt: skip
def test_which_addresses_are_kernels(path: str, name: str) -> None:
    """All that Kernel has, served or not, and no other."""
    assert name == dialect_of(path).NAME


async def test_an_action_is_found_by_its_space_and_by_its_app() -> None:
    """The space's first; where the action's name differs from the function's, by either."""
    async with edge() as site:
        labelled(site, "analyze", "my-app", "analyze")
        labelled(site, "odd-name", "my-app", "odd name")
        labelled(site, "work2", "demo", "work")
        ids = [
            await queued(site, app_name=app, action_name=action)
            for app, action in (
                ("my-app", "analyze"), ("demo", "analyze"), ("my-app", "odd name"), ("demo", "odd name"),
                ("demo", "odd-name"), ("demo", "work"),
            )
        ]  # fmt: skip
        shown = [(await site.client.get(f"/invocations/{id}")).json() for id in ids]
        names = [site.journal.entries[id].name for id in ids]

    assert names == ["analyze", "analyze", "odd-name", "odd-name", "odd-name", "work"]
    assert [(each["app_name"], each["action_name"]) for each in shown] == [
        ("my-app", "analyze"), ("my-app", "analyze"), ("my-app", "odd name"), ("my-app", "odd name"),
        ("my-app", "odd name"), ("demo", "work"),
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [{"app_name": "none"}, {"action_name": "none"}, {"version": "1.0"}])
async def test_what_is_not_there_is_not_found(asked: dict[str, str]) -> None:
    """Neither the app, nor the action, nor the version."""
    async with edge() as site:
        answer = await make(site, **asked)

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    assert next(iter(asked.values())) in answer.json()["message"]


async def test_apps_are_listed() -> None:
    """Each space, and each app of Kernel's that has no space's name; of variables only the names."""
    async with edge() as site:
        labelled(site, "analyze", "my-app", "analyze")
        labelled(site, "again", "demo", "again")
        site.host.config = msgspec.structs.replace(
            site.host.config, defaults=FunctionSettings(env={"B": "secret", "A": "1"})
        )
        every = (await site.client.get("/apps")).json()
        one = await site.client.get("/apps", params={"app_name": "my-app", "version": "latest", "limit": 1})
        none = [
            (await site.client.get("/apps", params=query)).json()
            for query in ({"app_name": "x"}, {"version": "2"}, {"query": "zzz"}, {"offset": 2})
        ]

    assert [(app["app_name"], [action["name"] for action in app["actions"]]) for app in every] == [
        ("demo", ["again", "analyze", "work"]), ("my-app", ["analyze"]),
    ]  # fmt: skip
    assert one.json() == [every[1]]
    assert every[1] == {
        "id": every[1]["id"], "app_name": "my-app", "version": "latest", "deployment": deployment_of("my-app"),
        "region": "aws.us-east-1a", "env_vars": {"A": "", "B": ""},
        "actions": [{"name": "analyze", "input_schema": None, "output_schema": None}],
    }  # fmt: skip
    assert len({app[key] for app in every for key in ("id", "deployment")}) == 4
    assert one.headers["x-has-more"] == "false"
    assert one.headers["x-next-offset"] == "0"
    assert none == [[], [], [], []]


# What is taken.


async def test_an_async_invocation_is_a_submitted_call() -> None:
    """Counted as Kernel's, with its own time limit, its payload as the body, and no credential of the client's."""
    async with edge() as site:
        answer = await make(
            site, {"Authorization": "Bearer secret", "Cookie": "a=b"}, payload='{"n": 1}',
            **{"async": True, "async_timeout_seconds": 60},
        )  # fmt: skip
        call = site.last.call

    assert answer.status_code == 202
    assert answer.json() == {"id": str(call.id), "action_name": "work", "status": "queued"}
    assert answer.headers["x-call-id"] == str(call.id)
    assert (site.last.trigger, call.timeout, call.method, call.path) == ("kernel", 60.0, b"POST", b"")
    assert call.body == (b'{"n": 1}',)
    assert b"secret" not in call.headers
    assert b"a=b" not in call.headers


@pytest.mark.parametrize("payload", [None, ""])
async def test_no_payload_is_no_body(payload: Any) -> None:
    """Null is as absent, and so is empty text, which the command line sends."""
    async with edge() as site:
        await queued(site, payload=payload)

        assert site.last.call.body == ()
        assert site.last.call.timeout == 900.0


@pytest.mark.parametrize("payload", [{"n": 1}, [], 0, False, 7, "{", "nul", "[" * 100_000])
async def test_a_payload_that_is_no_json_text_is_refused(payload: Any) -> None:
    """Nothing runs."""
    async with edge() as site:
        answer = await make(site, payload=payload)

        assert answer.status_code == 400
        assert answer.json()["code"] == "bad_request"
        assert "payload" in answer.json()["message"]
        assert site.journal.submissions == {}


async def test_a_payload_may_have_four_and_a_half_megabytes() -> None:
    """And one byte more is refused; so is what is longer than the function takes."""
    most = json.dumps("é" * (invocations.MOST_PAYLOAD // 2 - 1), ensure_ascii=False)
    async with edge(max_body=10**9) as site:
        taken = await make(site, payload=most, **{"async": True})
        longer = await make(site, payload=most + " ", **{"async": True})
        much_longer = await make(site, payload=most * 4, **{"async": True})
    async with edge(max_body=10) as site:
        small = await make(site, payload='"12345678"', **{"async": True})
        large = await make(site, payload='"123456789"', **{"async": True})

    assert [each.status_code for each in (taken, longer, much_longer, small, large)] == [202, 400, 400, 202, 400]
    assert "at most 10" in large.json()["message"]


@pytest.mark.parametrize("field", ["payload", "async_timeout_seconds", "other"])
def test_what_is_no_payload_is_not_built(field: str) -> None:
    """Millions of small objects, in what is refused anyway, would take many times the memory of the request."""
    body = b'{"app_name":"a","action_name":"b","%b":[%b]}' % (field.encode(), b",".join([b"{}"] * 100_000))
    tracemalloc.start()
    try:
        msgspec.json.decode(body, type=invocations.Create)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * len(body)


@pytest.mark.parametrize("seconds", [9, 3601, -1, 0, "60", 60.5, True, [], 10**30])
async def test_a_time_limit_out_of_range_is_refused(seconds: Any) -> None:
    """Where it is async; else it is passed over."""
    async with edge() as site:
        answer = await make(site, **{"async": True, "async_timeout_seconds": seconds})
        assert answer.status_code == 400
        assert "async_timeout_seconds" in answer.json()["message"]

        async with made(site, async_timeout_seconds=seconds) as answers:
            site.journal.end(site.last.call.id, answered())
        assert answers[0].status_code == 200
        assert site.last.call.timeout == 100.0


async def test_settings_of_the_function_hold() -> None:
    """One that takes no POST has no invocations, and one that needs a callback none in the background."""
    async with edge(methods=frozenset({"GET"})) as site:
        refused = await make(site)
    async with edge(require_callback=True) as site:
        without = await make(site, **{"async": True})

    assert (refused.status_code, without.status_code) == (400, 400)
    assert "POST" in refused.json()["message"]
    assert "callback" in without.json()["message"]


# Sync.


@pytest.mark.parametrize(
    ("outcome", "fields"),
    [
        (answered(), {"status": "succeeded", "output": '{"ok":true}'}),
        (Outcome(200, b"", b"", True, 0.1), {"status": "succeeded", "output": "null"}),
        (
            Outcome(200, b"content-type\0text/plain", b"hi", True, 0.1),
            {"status": "succeeded", "output": '"hi"'},
        ),
        (
            answered(500, b'{"error":{"message":"no good","code":"exception"}}'),
            {"status": "failed", "output": "no good", "status_reason": "no good"},
        ),
        (
            answered(504, b'{"error":{"message":"late"}}', invoked=False, error_code="timeout"),
            {
                "status": "failed",
                "output": "Invocation timed out after 100 seconds",
                "status_reason": "Invocation timed out after 100 seconds",
            },
        ),
    ],
)
async def test_a_sync_invocation_answers_what_came_of_it(outcome: Outcome, fields: dict[str, str]) -> None:
    """By 200, whatever it was, since the client would have anything else run again."""
    async with edge() as site:
        async with made(site, payload="{}") as answers:
            site.journal.end(site.last.call.id, outcome)
        number = site.last.call.id

    assert answers[0].status_code == 200
    assert answers[0].json() == {"id": str(number), "action_name": "work", **fields}
    assert answers[0].headers["x-call-id"] == str(number)
    assert site.last.call.timeout == 100.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 105.0), ("60", 55.0), ("10", 9.0), ("0.5", 0.45), ("600", 105.0), ("x", 105.0), ("nan", 105.0),
     ("-1", 105.0), ("inf", 105.0)],
)  # fmt: skip
async def test_the_answer_comes_before_the_client_stops_waiting(
    header: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose patience its client tells; the invocation goes on, and can be asked for."""
    asked: list[float] = []
    async with edge() as site:

        async def wait(id: int, seconds: float) -> Any:
            asked.append(seconds)
            return site.journal.entries[id]

        monkeypatch.setattr(site.host, "wait", wait)
        answer = await make(site, {} if header is None else {"x-stainless-read-timeout": header})

    assert answer.status_code == 200
    assert answer.json()["status"] == "queued"
    assert asked == [pytest.approx(seconds)]


class Leaver:
    """A client that leaves once its invocation is under way."""

    def __init__(self, site: Edge) -> None:
        self.site = site

    async def leave(self, retry: int = 0, payload: str = "{}", key: str | None = "k", action: str = "work") -> None:
        """Ask, and leave without an answer."""
        body = json.dumps({**ASKED, "action_name": action, "payload": payload}).encode()
        before = len(self.site.journal.submissions)
        sent = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            while len(self.site.journal.submissions) == before and not retry:
                await anyio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        headers = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
            (b"x-stainless-retry-count", b"%d" % retry),
        ]  # fmt: skip
        if key is not None:
            headers.append((b"authorization", b"Bearer " + key.encode()))
        app = self.site.client._transport.app  # type: ignore[attr-defined]
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/invocations",
            "raw_path": b"/invocations", "query_string": b"", "headers": headers, "client": None, "server": None,
        }  # fmt: skip
        with anyio.fail_after(PATIENCE):
            await app(scope, receive, send)


def again(key: str = "k", retry: str = "1") -> dict[str, str]:
    """Headers of a request that comes again."""
    return {"Authorization": f"Bearer {key}", "x-stainless-retry-count": retry}


async def test_who_may_run_finds_it_again_without_reading() -> None:
    """By the key, which is known to be that of the one who left."""
    async with edge() as site:
        guard(site)
        await Leaver(site).leave(key="runner")
        (number,) = site.journal.submissions
        site.journal.end(number, answered())

        assert (await make(site, again("runner"), payload="{}")).json()["id"] == str(number)


async def test_who_comes_again_finds_what_was_begun() -> None:
    """Running or over, and once: what is asked for a third time after an answer is run."""
    async with edge() as site:
        await Leaver(site).leave()
        (number,) = site.journal.submissions
        await Leaver(site).leave(retry=1)
        assert list(site.journal.submissions) == [number]

        site.journal.end(number, answered())
        answer = await make(site, again(retry="2"), payload="{}")
        assert answer.json()["id"] == str(number)
        assert answer.headers["x-call-id"] == str(number)

        async with made(site, again(), payload="{}") as answers:
            site.journal.end(site.last.call.id, answered())
        assert answers[0].json()["id"] != str(number)


async def test_what_cannot_be_told_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that fails once the action runs makes the client ask again, but not the action run again."""
    async with edge() as site:

        async def fail(id: int, seconds: float) -> Any:
            raise JournalError

        with monkeypatch.context() as broken:
            broken.setattr(site.host, "wait", fail)
            refused = await make(site, again(retry="0"), payload="{}")
        (number,) = site.journal.submissions
        site.journal.end(number, answered())
        found = await make(site, again(), payload="{}")

    assert refused.status_code == 503
    assert "x-should-retry" not in refused.headers
    assert found.json()["id"] == str(number)


@pytest.mark.parametrize(
    ("headers", "payload"),
    [(again(retry="0"), "{}"), ({"Authorization": "Bearer k"}, "{}"), (again(key="other"), "{}"), (again(), "[]"),
     (again(retry="00"), "{}"), (again(retry="x"), "{}")],
)  # fmt: skip
async def test_who_does_not_come_again_is_run(headers: dict[str, str], payload: str) -> None:
    """Another client, another payload, or the first of a request."""
    async with edge() as site:
        await Leaver(site).leave()
        async with made(site, headers, payload=payload) as answers:
            site.journal.end(site.last.call.id, answered())

        assert answers[0].status_code == 200
        assert len(site.journal.submissions) == 2


async def test_attaching_can_be_switched_off() -> None:
    """By `kernel_attach`."""
    async with edge() as site:
        server = msgspec.structs.replace(site.host.config.server, kernel_attach=False)
        site.host.config = msgspec.structs.replace(site.host.config, server=server)
        await Leaver(site).leave()
        async with made(site, again(), payload="{}") as answers:
            site.journal.end(site.last.call.id, answered())

        assert answers[0].status_code == 200
        assert len(site.journal.submissions) == 2


def test_what_was_left_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and the first where there are too many."""
    left = attaching.Abandoned()
    for number in range(3):
        left.add(number, left.digest(str(number)))
    monkeypatch.setattr(attaching, "MOST", 3)
    left.add(3, left.digest("3"))
    assert [left.take(left.digest(str(number))) for number in range(3)] == [None, 1, 2]
    monkeypatch.setattr(attaching, "WINDOW", 0.0)
    assert left.take(left.digest("3")) is None
    assert left.digest("a", "bc") != left.digest("ab", "c")


# Records.


async def test_a_record_is_whole() -> None:
    """With its payload, its times, and what came of it."""
    async with edge() as site:
        number = await queued(site, payload='{"n": 1}')
        site.journal.change(number, accepted_at=1_800_000_000.25)
        first = (await site.client.get(f"/invocations/{number}")).json()
        site.journal.change(number, status=Status.RUNNING, started_at=1_800_000_001.0)
        second = (await site.client.get(f"/invocations/{number}")).json()
        site.journal.end(number, answered())
        site.journal.change(number, finished_at=1_800_000_002.0)
        third = (await site.client.get(f"/invocations/{number}")).json()

    known = {
        "id": str(number), "app_name": "demo", "action_name": "work", "version": "latest", "payload": '{"n": 1}'
    }  # fmt: skip
    assert first == {**known, "status": "queued", "started_at": "2027-01-15T08:00:00.250Z"}
    assert second == {**known, "status": "running", "started_at": "2027-01-15T08:00:01.000Z"}
    assert third == {
        **second, "status": "succeeded", "finished_at": "2027-01-15T08:00:02.000Z", "output": '{"ok":true}'
    }  # fmt: skip


@pytest.mark.parametrize(("body", "payload"), [(b"\xff", None), (b"text", None), (b"", None), (b"[1]", "[1]")])
async def test_calls_of_other_dialects_have_records_too(body: bytes, payload: str | None) -> None:
    """A body that is no JSON is not shown."""
    async with edge() as site:
        call = Call(site.host.ids.next(), "mine", "demo", "work", b"PUT", b"/a", b"q=1", b"", (body,))
        await site.host.submit(Submission(call))
        shown = (await site.client.get(f"/invocations/{call.id}")).json()

    assert shown.get("payload") == payload
    assert shown["id"] == str(call.id)


@pytest.mark.parametrize("id", ["1", "x", "0x1", "9" * 17, "-1", "1.0", "١", "%00"])
@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("PATCH", ""), ("GET", "/events"), ("GET", "/browsers"), ("DELETE", "/browsers")]
)
async def test_an_unknown_invocation_is_not_found(method: str, rest: str, id: str) -> None:
    """At each of its addresses."""
    async with edge() as site:
        answer = await site.client.request(method, f"/invocations/{id}{rest}")

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


async def test_an_invocation_has_no_browsers() -> None:
    """Which can be listed, and deleted."""
    async with edge() as site:
        number = await queued(site)
        listed = await site.client.get(f"/invocations/{number}/browsers")
        deleted = await site.client.delete(
            f"/invocations/{number}/browsers", headers={"content-type": "application/json"}
        )

    assert listed.json() == {"browsers": []}
    assert (deleted.status_code, deleted.content) == (204, b"")


# Ending one.


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (
            {"status": "failed", "output": '{"error":"stop"}'},
            {"status": "failed", "output": '{"error":"stop"}', "status_reason": "Invocation was cancelled"},
        ),
        ({"status": "failed"}, {"status": "failed", "status_reason": "Invocation was cancelled"}),
        ({"status": "failed", "output": None}, {"status": "failed", "status_reason": "Invocation was cancelled"}),
        ({"status": "succeeded", "output": "plain é"}, {"status": "succeeded", "output": "plain é"}),
    ],
)
async def test_a_client_can_end_an_invocation(asked: dict[str, Any], shown: dict[str, str]) -> None:
    """What it says came of it is kept; who comes later is shown the first."""
    async with edge() as site:
        number = await queued(site)
        ended = await site.client.patch(f"/invocations/{number}", json=asked)
        later = await site.client.patch(f"/invocations/{number}", json={"status": "failed", "output": "later"})
        wanted = {
            status: [each["id"] for each in (await site.client.get("/invocations", params={"status": status})).json()]
            for status in ("succeeded", "failed")
        }

    assert (ended.status_code, later.status_code) == (200, 200)
    assert ended.json() == later.json()
    assert {key: ended.json()[key] for key in shown} == shown
    assert ("output" in ended.json(), "status_reason" in ended.json()) == ("output" in shown, "status_reason" in shown)
    assert wanted[shown["status"]] == [str(number)]
    assert sum(map(len, wanted.values())) == 1


async def test_what_ended_by_itself_stays_as_it_is() -> None:
    """Also when it ends between the request and its end."""
    async with edge() as site:
        number = await queued(site)
        site.journal.change(number, status=Status.RUNNING)
        site.journal.end(number, answered())
        ended = await site.client.patch(f"/invocations/{number}", json={"status": "failed", "output": "x"})

    assert ended.status_code == 200
    assert (ended.json()["status"], ended.json()["output"]) == ("succeeded", '{"ok":true}')


async def test_a_running_one_is_shown_once_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as it is, where it does not."""
    monkeypatch.setattr(invocations, "STOPPING", 0.0)
    async with edge() as site:
        number = await queued(site)
        site.journal.change(number, status=Status.RUNNING)
        answer = await site.client.patch(f"/invocations/{number}", json={"status": "failed"})

    assert (answer.status_code, answer.json()["status"]) == (200, "running")


async def test_an_outcome_of_an_earlier_attempt_is_not_the_cancellers() -> None:
    """A call that had failed, was queued again and then cancelled, was cancelled."""
    async with edge() as site:
        number = await queued(site)
        site.journal.outcomes[number] = answered(500, b"{}", error_code=None)
        await site.host.cancel(number)
        shown = (await site.client.get(f"/invocations/{number}")).json()

    assert shown["status"] == "failed"
    assert shown["status_reason"] == "Invocation was cancelled"
    assert "output" not in shown


@pytest.mark.parametrize("body", [b"{}", b"", b'{"status":"running"}', b'{"status":"failed","output":{}}', b"[]"])
async def test_an_end_that_is_none_is_refused(body: bytes) -> None:
    """And changes nothing."""
    async with edge() as site:
        number = await queued(site)
        answer = await site.client.patch(f"/invocations/{number}", content=body)

        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert site.journal.entries[number].status is Status.QUEUED


# Lists.


async def test_a_list_comes_in_parts() -> None:
    """The newest first, with headers that say where the next begins, and 0 where there is none."""
    async with edge() as site:
        ids = [str(await queued(site)) for _ in range(5)][::-1]
        parts = [
            await site.client.get("/invocations", params={"limit": 2, "offset": offset}) for offset in (0, 2, 4, 6)
        ]
        usual = await site.client.get("/invocations")

    assert [[each["id"] for each in part.json()] for part in parts] == [ids[:2], ids[2:4], ids[4:], []]
    told = [
        tuple(part.headers[name] for name in ("x-has-more", "x-next-offset", "x-limit", "x-offset")) for part in parts
    ]
    assert told == [
        ("true", "2", "2", "0"),
        ("true", "4", "2", "2"),
        ("false", "0", "2", "4"),
        ("false", "0", "2", "6"),
    ]
    assert (usual.headers["x-limit"], usual.headers["x-offset"]) == ("20", "0")


async def test_a_deep_part_is_found_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many places there are to look in."""
    monkeypatch.setattr(listing, "PAGE", 2)
    async with edge() as site:
        site.host.add("other")
        ids = [str(await queued(site, action_name=("work", "other")[n % 3 == 0])) for n in range(11)][::-1]
        part = await site.client.get("/invocations", params={"limit": 5, "offset": 4})

    assert [each["id"] for each in part.json()] == ids[4:9]


async def test_what_is_passed_over_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those before the part, no outcomes: there may be thousands of them that were cancelled."""
    async with edge() as site:
        for _ in range(4):
            site.journal.change(await queued(site), status=Status.CANCELLED, finished_at=1.0)
        asked: list[int] = []
        read = site.journal.outcome

        async def outcome(id: int) -> Outcome | None:
            asked.append(id)
            return await read(id)

        monkeypatch.setattr(site.journal, "outcome", outcome)
        shown = (await site.client.get("/invocations", params={"limit": 1, "offset": 2})).json()
        assert asked == [int(shown[0]["id"])]
        monkeypatch.setattr(listing, "ROOM", 0)
        site.journal.outcomes[asked[0]] = Outcome(200, b"", b"", True, 0.0, "cancelled")
        shown = (await site.client.get("/invocations", params={"limit": 1, "offset": 2})).json()
        assert [each["status"] for each in shown] == ["succeeded"]


async def test_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone finds what it says, and the others nothing."""
    async with edge() as site:
        site.host.add("other")
        labelled(site, "odd", "my-app", "odd one")
        work, other = await queued(site), await queued(site, action_name="other")
        odd = await queued(site, app_name="my-app", action_name="odd one")
        site.journal.end(work, answered())
        site.journal.change(other, status=Status.RUNNING, started_at=1.0)

        async def found(**query: str) -> list[int]:
            answer = await site.client.get("/invocations", params=query)
            assert answer.status_code == 200, answer.text
            return [int(each["id"]) for each in answer.json()]

        assert await found() == [odd, other, work]
        assert await found(app_name="", status="", version="", since="", query="") == [odd, other, work]
        assert await found(app_name="demo") == [odd, other, work]
        assert await found(app_name="my-app") == [odd]
        assert await found(app_name="my-app", action_name="other") == []
        assert await found(action_name="odd one") == [odd]
        assert await found(action_name="work") == [work]
        assert await found(app_name="none") == await found(version="2") == await found(action_name="none") == []
        assert await found(deployment_id=deployment_of("my-app")) == [odd]
        assert await found(deployment_id=deployment_of("my-app"), app_name="demo") == []
        assert await found(deployment_id="x") == []
        assert await found(query="odd o") == await found(query="my-") == [odd]
        assert await found(query=str(other)) == [other]
        assert await found(status="succeeded") == [work]
        assert await found(status="running") == [other]
        assert await found(status="queued") == [odd]
        assert await found(status="failed") == []
        await found(since="1h30m")
        asked = site.journal.queries[-1]
        assert asked.since == pytest.approx(site.journal.entries[odd].accepted_at - 5400, abs=60)

        monkeypatch.setattr(listing, "MOST_LOOKED_AT", 2)
        refused = await site.client.get("/invocations", params={"query": "none"})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
        assert len(await found(limit="1")) == 1


@pytest.mark.parametrize(
    "query", ["status=done", "since=monday", "since=5", "limit=0", "limit=101", "limit=x", "offset=-1", "offset=1.5"]
)
async def test_a_filter_that_is_not_understood_is_refused(query: str) -> None:
    """In Kernel's words."""
    async with edge() as site:
        answer = await site.client.get(f"/invocations?{query}")

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_long_outputs_are_left_out_of_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a sum; why one failed is told all the same."""
    monkeypatch.setattr(listing, "ROOM", 10)
    async with edge() as site:
        ids = [await queued(site, payload="{}") for _ in range(4)]
        for id in ids:
            site.journal.end(id, answered(504, b'{"error":{"message":"late"}}', invoked=False, error_code="timeout"))
        listed = (await site.client.get("/invocations")).json()

    assert ["output" in each for each in listed] == [True, False, False, False]
    assert all(each["status_reason"] for each in listed)
    assert not any("payload" in each for each in listed)


# Followed.


def blocks(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which is whole; each says its kind twice."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['event']}"
        assert event["timestamp"].endswith("Z")
        found.append(event)
    return found


async def follow(site: Edge, id: int, query: str = "") -> list[dict[str, Any]]:
    """All events of an invocation."""
    answer = await site.client.get(f"/invocations/{id}/events{query}", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-sse-content-type"] == "application/json"
    return blocks(answer.text)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """What they tell, in short."""
    return [event["invocation"]["status"] if "invocation" in event else event["message"] for event in events]


def log(site: Edge, id: int, text: str) -> None:
    """A line of its output."""
    site.journal.note(id, "log", {"level": 20, "text": text})


async def test_the_end_is_told_last() -> None:
    """After every log line, also of what ended long ago."""
    async with edge() as site:
        id = await queued(site)
        site.journal.change(id, status=Status.RUNNING, started_at=1.0)
        log(site, id, "one")
        log(site, id, "two")
        site.journal.note(id, "progress", {"fraction": 0.5, "message": "half"})
        site.journal.end(id, answered())
        told = await follow(site, id)
        record = (await site.client.get(f"/invocations/{id}")).json()

    assert kinds(told) == ["one", "two", "succeeded"]
    assert told[-1]["invocation"] == record


async def test_what_happens_is_told_as_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state now comes first, then each change of it, among the lines; and it is no other's news."""
    monkeypatch.setattr(events, "PAGE", 2)
    async with edge() as site:
        id = await queued(site)
        told: list[dict[str, Any]] = []

        async def listen() -> None:
            told.extend(await follow(site, id))

        async def settled() -> None:
            for _ in range(50):
                await anyio.lowlevel.checkpoint()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await settled()
                site.journal.change(id, status=Status.RUNNING, started_at=1.0)
                await settled()
                for line in "abc":
                    log(site, id, line)
                await settled()
                site.journal.change(id, status=Status.QUEUED)
                await settled()
                site.journal.change(id, status=Status.CANCELLED)

    assert kinds(told) == ["queued", "running", "a", "b", "c", "queued", "failed"]


async def test_lines_since_a_time() -> None:
    """The states are told whatever it is."""
    async with edge() as site:
        id = await queued(site)
        log(site, id, "line")
        site.journal.end(id, answered())
        at = site.journal.happened[id][-2].at
        before = await follow(site, id, f"?since={moments.shown(at)}")
        after = await follow(site, id, f"?since={moments.shown(at + 0.001)}")
        refused = await site.client.get(f"/invocations/{id}/events?since=x")

    assert (kinds(before), kinds(after)) == (["line", "succeeded"], ["succeeded"])
    assert refused.status_code == 400
    assert refused.json()["code"] == "bad_request"


async def test_a_long_line_is_cut() -> None:
    """After 64 KiB, between two characters."""
    async with edge() as site:
        id = await queued(site)
        log(site, id, "é" * 40_000)
        log(site, id, "x" * 65536)
        site.journal.end(id, answered())
        told = await follow(site, id)

    assert told[0]["message"] == "é" * 32768
    assert told[1]["message"] == "x" * 65536


async def test_silence_has_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event as any other."""
    monkeypatch.setattr(events, "HEARTBEAT", 0.0)
    beats: list[bytes] = []
    async with edge() as site:
        id = await queued(site)

        async def receive() -> dict[str, Any]:
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Any) -> None:
            beats.append(message.get("body", b""))
            if len(beats) == 4:
                site.journal.end(id, answered())

        app = site.client._transport.app  # type: ignore[attr-defined]
        path = f"/invocations/{id}/events"
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": b"", "headers": [], "client": None, "server": None,
        }  # fmt: skip
        with anyio.fail_after(PATIENCE):
            await app(scope, receive, send)

    told = [event["event"] for event in blocks(b"".join(beats).decode())]
    assert told[:3] == ["invocation_state", "sse_heartbeat", "sse_heartbeat"]
    assert told[-1] == "invocation_state"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda site, id: setattr(site.host, "stopping", True), "internal_error"),
        (lambda site, id: site.journal.entries.pop(id), "not_found"),
    ],
)
async def test_what_goes_wrong_on_the_way_is_an_event(spoil: Callable[[Edge, int], Any], code: str) -> None:
    """The last one; the stream itself is whole."""
    async with edge() as site:
        id = await queued(site)
        told: list[dict[str, Any]] = []

        async def listen() -> None:
            told.extend(await follow(site, id))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                spoil(site, id)
                site.journal.wake()

    assert [event["event"] for event in told] == ["invocation_state", "error"]
    assert told[-1]["error"]["code"] == code


# Errors.


@pytest.mark.parametrize(
    ("error", "status", "code", "again"),
    [
        (BadRequest("no"), 400, "bad_request", None),
        (Conflict("no"), 409, "conflict", "false"),
        (Overloaded("full", headers={"Retry-After": "10"}), 429, "too_many_requests", None),
        (Draining(), 503, "internal_error", None),
        (JournalError(), 503, "internal_error", None),
        (HostError("bug"), 500, "internal_error", "false"),
    ],
)
async def test_errors_are_kernels(error: HostError, status: int, code: str, again: str | None) -> None:
    """And its clients try again only where there is hope."""
    async with edge() as site:
        site.host.refusal = error
        answer = await make(site, **{"async": True})

    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body["message"]
    assert body.keys() <= {"code", "message", "inner_error"}
    assert answer.headers.get("x-should-retry") == again
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/deployments", 404), ("POST", "/deployments", 404), ("GET", "/browsers", 404), ("GET", "/apps/x", 404),
     ("PUT", "/invocations", 405), ("POST", "/apps", 405), ("POST", "/invocations/1/events", 405)],
)  # fmt: skip
async def test_what_is_not_served_is_refused_in_kernels_words(method: str, path: str, status: int) -> None:
    """Also where there is no route."""
    async with edge() as site:
        answer = await site.client.request(method, path)

    assert answer.status_code == status
    assert answer.json().keys() == {"code", "message"}
    assert ("allow" in answer.headers) == (status == 405)


def test_a_traceback_is_for_debugging() -> None:
    """And for nobody else."""
    error = HostError("no", details={"traceback": "line 1"})
    plain, debug = (json.loads(kernel.to_error(error, each)[2]) for each in (False, True))

    assert plain == {"code": "internal_error", "message": "no"}
    assert debug == {**plain, "details": [{"code": "traceback", "message": "line 1"}]}


# Who may.


def guard(site: Edge) -> None:
    """From now on there are tokens: for all, and some that are good for less."""
    grants = {
        "all": Grant(),
        "reader": Grant(frozenset({"read"})),
        "runner": Grant(frozenset({"invoke"})),
        "other-only": Grant(functions=frozenset({"other"})),
    }
    config = site.host.config
    tokens = tuple(Token(digest_of(key), grant) for key, grant in grants.items())
    open_settings = FunctionSettings(public=True)
    space = SpaceSettings(Path("/x"), config.defaults, {"open": open_settings}, tokens=tokens)
    elsewhere = SpaceSettings(Path("/y"), config.defaults, {}, tokens=(Token(digest_of("elsewhere"), Grant()),))
    site.host.config = msgspec.structs.replace(config, spaces={"demo": space, "elsewhere": elsewhere})
    site.host.authority = type(site.host.authority)(lambda: site.host.config, open=lambda: False)


def bearing(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("key", "create", "get", "update", "listed", "apps"),
    [
        (None, 401, 401, 401, 401, 401),
        ("wrong", 401, 401, 401, 401, 401),
        ("elsewhere", 404, 404, 404, 0, 0),
        ("other-only", 404, 404, 404, 0, 1),
        ("reader", 403, 200, 403, 1, 1),
        ("runner", 202, 404, 404, 0, 0),
        ("all", 202, 200, 200, 1, 1),
    ],
)
async def test_who_may_what(key: str | None, create: int, get: int, update: int, listed: int, apps: int) -> None:
    """Who may not know of something finds nothing there; who may not change it is told so."""
    async with edge() as site:
        id = await queued(site)
        guard(site)
        client, headers = site.client, bearing(key)
        assert (await make(site, headers, **{"async": True})).status_code == create
        site.journal.entries = {id: site.journal.entries[id]}
        for rest in ("", "/browsers"):
            assert (await client.get(f"/invocations/{id}{rest}", headers=headers)).status_code == get
        for path, count in (("/invocations", listed), ("/apps", apps)):
            answer = await client.get(path, headers=headers)
            assert (answer.status_code if count == 401 else len(answer.json())) == count
        body = {"status": "failed"}
        assert (await client.patch(f"/invocations/{id}", json=body, headers=headers)).status_code == update
        site.host.stopping = True  # or what does not end would be followed for ever
        assert (await client.get(f"/invocations/{id}/events", headers=headers)).status_code == get
        deleted = await client.delete(f"/invocations/{id}/browsers", headers=headers)
        assert deleted.status_code == (204 if update == 200 else update)


@pytest.mark.parametrize("key", [None, "wrong", "elsewhere", "all"])
async def test_a_public_function_is_for_all(key: str | None) -> None:
    """Its calls are not."""
    async with edge() as site:
        site.host.add("open")
        guard(site)
        answer = await make(site, bearing(key), action_name="open", **{"async": True})
        assert answer.status_code == 202
        seen = await site.client.get(f"/invocations/{answer.json()['id']}", headers=bearing(key))

    assert seen.status_code == {"all": 200, "elsewhere": 404}.get(key or "", 401)


@pytest.mark.parametrize("body", [b"", b"{}", b"[", b'{"app_name":"x","action_name":"y"}'])
async def test_who_is_not_let_in_learns_nothing(body: bytes) -> None:
    """401 before any complaint about the request."""
    async with edge() as site:
        guard(site)
        answer = await site.client.post("/invocations", content=body, headers=bearing("wrong"))

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_what_is_not_there_and_what_is_another_s_look_the_same() -> None:
    """Word for word, but for the name."""
    async with edge() as site:
        guard(site)
        missing = await make(site, bearing("elsewhere"), action_name="none")
        hidden = await make(site, bearing("elsewhere"))

    assert missing.json()["message"].replace("none", "work") == hidden.json()["message"]


async def test_without_a_key_nothing_is_told_of_a_guarded_space() -> None:
    """Not even which functions it has; in a space that is open to all, what is not there is not there."""
    async with edge() as site:
        guard(site)
        site.host.authority = type(site.host.authority)(lambda: site.host.config, open=lambda: True)
        labelled(site, "free", "", "", space="plain")
        statuses = [
            (await make(site, app_name=app, action_name=action, version=version, **{"async": True})).status_code
            for app, action, version in (
                ("demo", "work", "latest"), ("demo", "none", "latest"), ("demo", "work", "2"), ("none", "x", "latest"),
                ("plain", "free", "latest"), ("demo", "open", "latest"),
            )
        ]  # fmt: skip
        bad = await site.client.post("/invocations", content=b"[")

    assert statuses == [401, 401, 401, 401, 202, 401]
    assert bad.status_code == 400


@pytest.mark.parametrize("key", [None, "anything"])
async def test_who_cannot_be_told_apart_gets_no_call_of_another(key: str | None) -> None:
    """Anybody may run a public function, and say that he comes again."""
    async with edge() as site:
        site.host.add("open")
        guard(site)
        headers = {**bearing(key), "x-stainless-retry-count": "1"}
        await Leaver(site).leave(key=key, action="open")
        async with made(site, headers, action_name="open", payload="{}") as answers:
            site.journal.end(site.last.call.id, answered())

        assert answers[0].status_code == 200
        assert len(site.journal.submissions) == 2


# Times.


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-15T08:00:00Z", 1_800_000_000.0),
        ("2027-01-15t08:00:00.123456789z", 1_800_000_000.123456),
        ("2027-01-15T09:00:00+01:00", 1_800_000_000.0),
        ("2027-01-15T09:00:00 01:00", 1_800_000_000.0),
        ("0001-01-01T00:00:00Z", 0.0),
        ("", None),
        (None, None),
    ],
)
def test_a_time_is_read(text: str | None, moment: float | None) -> None:
    """With its offset, which a query may have spoilt."""
    assert moments.read_since(text) == (None if moment is None else pytest.approx(moment))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90s", 90),
        ("500ms", 0.5),
        ("1h2m3s4ms5us6ns", 3723.004),
        ("0s", 0),
    ],
)
def test_how_long_ago_is_read(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Go writes it."""
    monkeypatch.setattr(moments.time, "time", lambda: 1_800_000_000.0)
    assert moments.read_since(text) == pytest.approx(1_800_000_000 - seconds, abs=0.001)


@pytest.mark.parametrize("text", ["5", "m", "-5m", "5 m", "5x", "5m5", "2027-01-15", "2027-01-15T08:00:00", "x" * 9999])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Rather than to show what was not asked for."""
    with pytest.raises(BadRequest):
        moments.read_since(text)
