"""Exchanges as Kernel's client has them on the wire: what it was recorded to send, and what it must get for that.

The requests are those of section 5 of the contract, byte for byte; a real host answers. The answers are compared
whole: only ids and times, which no two runs share, are replaced by a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import pytest

from runtime.app import App
from runtime.dialects.kernel import invocations
from tests.contract.bad_clients import Answer, Sent, answer_to, serving

pytestmark = pytest.mark.anyio

FILES = {
    "my-app/analyze.py": """
        def handle(data):
            print("analyzing")
            return {"sum": data.get("a", 0)}
        """,
    "my-app/fail.py": """
        def handle(data):
            raise ValueError("no good")
        """,
    "my-app/wait.py": """
        import asyncio

        async def handle(data):
            print("waiting")
            await asyncio.sleep(600)
        """,
}
# What the client sends with every request (section 3).
HEADERS = {
    "host": "127.0.0.1", "accept": "application/json", "accept-encoding": "gzip, deflate", "connection": "keep-alive",
    "user-agent": "Kernel/Python 0.131.0", "authorization": "Bearer anything", "x-stainless-lang": "python",
    "x-stainless-package-version": "0.131.0", "x-stainless-os": "Linux", "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython", "x-stainless-runtime-version": "3.11.7", "x-stainless-async": "false",
    "x-stainless-retry-count": "0", "x-stainless-read-timeout": "60",
}  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DEPLOYMENT = re.compile(r"[0-9a-f]{24}")


class Client(NamedTuple):
    """Sends what the client sends."""

    app: App

    async def send(self, method: str, target: str, body: str = "", **headers: str) -> Answer:
        """One request. DELETE says that it has JSON, and has none."""
        fields = {**HEADERS, **headers}
        if method != "GET":
            fields["content-type"] = "application/json"
        data = body.encode()
        if data:
            fields["content-length"] = str(len(data))
        pairs = tuple((name.encode(), value.encode()) for name, value in fields.items())
        return await answer_to(self.app, Sent(method, target, pairs, data))

    async def begin(self, action: str) -> str:
        """An async invocation; its id."""
        body = f'{{"action_name":"{action}","app_name":"my-app","version":"latest","async":true}}'
        answer = await self.send("POST", "/invocations", body)
        assert answer.status == 202
        id: str = answer.json()["id"]
        return id

    async def ended(self, id: str) -> dict[str, Any]:
        """Its record, once it is over."""
        with anyio.fail_after(60):
            while True:
                record: dict[str, Any] = (await self.send("GET", f"/invocations/{id}")).json()
                if record["status"] in ("succeeded", "failed"):
                    return record
                await anyio.sleep(0.01)


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """Of a host of its own."""
    toml = '[spaces.my-app]\nenv = { LEVEL = "secret" }\n'
    async with serving(tmp_path_factory.mktemp("kernel"), FILES, toml) as app:
        yield Client(app)


def known(value: Any, id: str) -> Any:
    """Without what no two runs share."""
    text = json.dumps(value)
    for pattern, word in ((re.compile(id), "ID"), (TIME, "TIME"), (DEPLOYMENT, "OPAQUE")):
        text = pattern.sub(word, text)
    return json.loads(text)


RECORD = {
    "id": "ID", "app_name": "my-app", "action_name": "analyze", "version": "latest", "status": "succeeded",
    "started_at": "TIME", "finished_at": "TIME", "payload": '{"a": 1}', "output": '{"sum":1}',
}  # fmt: skip


async def test_sync(client: Client) -> None:
    """POST /invocations: 200, and less than a record; the record itself has all of it."""
    body = r'{"action_name":"analyze","app_name":"my-app","version":"latest","payload":"{\"a\": 1}"}'
    answer = await client.send("POST", "/invocations", body)
    id = answer.json()["id"]
    got = await client.send("GET", f"/invocations/{id}")

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert id.isdigit()
    assert known(answer.json(), id) == {
        "id": "ID", "action_name": "analyze", "status": "succeeded", "output": '{"sum":1}'
    }  # fmt: skip
    assert (got.status, known(got.json(), id)) == (200, RECORD)


async def test_async(client: Client) -> None:
    """202 and queued at once, whatever becomes of it."""
    body = (
        '{"action_name":"analyze","app_name":"my-app","version":"latest","async":true,"async_timeout_seconds":600,'
        '"payload":null}'
    )
    answer = await client.send("POST", "/invocations", body)
    id = answer.json()["id"]
    record = await client.ended(id)

    assert answer.status == 202
    assert known(answer.json(), id) == {"id": "ID", "action_name": "analyze", "status": "queued"}
    expected = {**RECORD, "output": '{"sum":0}'}
    del expected["payload"]
    assert known(record, id) == expected


async def test_a_failure(client: Client) -> None:
    """200: it is an answer, and its status_reason is there."""
    body = '{"action_name":"fail","app_name":"my-app","version":"latest"}'
    answer = await client.send("POST", "/invocations", body)

    assert answer.status == 200
    assert known(answer.json(), answer.json()["id"]) == {
        "id": "ID", "action_name": "fail", "status": "failed", "output": "ValueError at line 3: no good",
        "status_reason": "ValueError at line 3: no good",
    }  # fmt: skip


async def test_the_time_limit_of_sync(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 as well, or the client would have it run again; its reason names the limit."""
    monkeypatch.setattr(invocations, "SYNC_LIMIT", 0.5)
    body = '{"action_name":"wait","app_name":"my-app","version":"latest"}'
    answer = await client.send("POST", "/invocations", body)

    assert answer.status == 200
    assert known(answer.json(), answer.json()["id"]) == {
        "id": "ID", "action_name": "wait", "status": "failed", "output": "Invocation timed out after 0.5 seconds",
        "status_reason": "Invocation timed out after 0.5 seconds",
    }  # fmt: skip


async def test_an_impatient_client(client: Client) -> None:
    """Is answered before it stops waiting; the invocation goes on."""
    body = '{"action_name":"wait","app_name":"my-app","version":"latest"}'
    answer = await client.send("POST", "/invocations", body, **{"x-stainless-read-timeout": "0.5"})
    id = answer.json()["id"]
    ended = await client.send("PATCH", f"/invocations/{id}", '{"status":"failed","output":"{\\"error\\":\\"stop\\"}"}')

    assert (answer.status, known(answer.json(), id)) == (200, {"id": "ID", "action_name": "wait", "status": "running"})
    assert ended.json()["status"] == "failed"


async def test_cancel(client: Client) -> None:
    """PATCH /invocations/{id}: the record, with what the client says; the first end counts."""
    id = await client.begin("wait")
    answer = await client.send(
        "PATCH", f"/invocations/{id}", r'{"status":"failed","output":"{\"error\":\"cancelled\"}"}'
    )
    again = await client.send("PATCH", f"/invocations/{id}", '{"status":"succeeded"}')
    browsers = await client.send("GET", f"/invocations/{id}/browsers")
    deleted = await client.send("DELETE", f"/invocations/{id}/browsers", accept="*/*")

    expected = {
        **RECORD, "action_name": "wait", "status": "failed", "output": '{"error":"cancelled"}',
        "status_reason": "Invocation was cancelled",
    }  # fmt: skip
    del expected["payload"]
    assert (answer.status, known(answer.json(), id)) == (200, expected)
    assert (again.status, again.json()) == (200, answer.json())
    assert (browsers.status, browsers.json()) == (200, {"browsers": []})
    assert (deleted.status, deleted.body) == (204, b"")


async def test_a_list(client: Client) -> None:
    """A bare array, and headers that say where the next part begins."""
    ids = [await client.begin("analyze") for _ in range(3)]
    records = [await client.ended(id) for id in ids]
    pages = [
        await client.send(
            "GET", f"/invocations?app_name=my-app&action_name=analyze&limit=2&since=5m&status=succeeded{offset}"
        )
        for offset in ("", "&offset=2")
    ]

    assert [page.status for page in pages] == [200, 200]
    assert [record["id"] for record in pages[0].json()] == [ids[2], ids[1]]
    assert pages[0].json()[0] == records[2]
    assert [pages[0].headers[f"x-{name}"] for name in ("has-more", "next-offset", "limit", "offset")] == [
        "true", "2", "2", "0",
    ]  # fmt: skip
    assert pages[1].json()[0]["id"] == ids[0]
    assert pages[1].headers["x-offset"] == "2"


async def test_a_stream(client: Client) -> None:
    """GET /invocations/{id}/events: each event says its kind in its JSON, and the last ends with a blank line."""
    id = await client.begin("analyze")
    record = await client.ended(id)
    answer = await client.send("GET", f"/invocations/{id}/events?since=5m", accept="text/event-stream")
    text = answer.body.decode()

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert TIME.sub("TIME", text) == (
        'event: log\ndata: {"event":"log","timestamp":"TIME","message":"analyzing"}\n\n'
        'event: invocation_state\ndata: {"event":"invocation_state","timestamp":"TIME","invocation":'
        f"{TIME.sub('TIME', json.dumps(record, separators=(',', ':')))}}}\n\n"
    )


async def test_apps(client: Client) -> None:
    """GET /apps: one item, whose region is the only one that strict clients take; no variable's value."""
    answer = await client.send("GET", "/apps?app_name=my-app&version=latest")
    actions = [
        {"name": name, "input_schema": None, "output_schema": None} for name in ("analyze", "fail", "wait")
    ]  # fmt: skip

    assert answer.status == 200
    assert known(answer.json(), "none") == [
        {
            "id": "OPAQUE", "app_name": "my-app", "version": "latest", "deployment": "OPAQUE",
            "region": "aws.us-east-1a", "actions": actions, "env_vars": {"LEVEL": ""},
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "error"),
    [
        (
            "POST", "/invocations", '{"action_name":"x","app_name":"none","version":"latest"}', 404,
            {"code": "not_found", "message": 'there is no app "none" with an action "x" here'},
        ),
        (
            "POST", "/invocations", '{"action_name":"analyze","app_name":"my-app","version":"1.0"}', 404,
            {"code": "not_found", "message": 'there is no version "1.0" here: every app has one version, "latest"'},
        ),
        (
            "POST", "/invocations",
            '{"action_name":"analyze","app_name":"my-app","version":"latest","payload":{"a":1}}', 400,
            {
                "code": "bad_request",
                "message": "payload must be a string that contains JSON: encode the value, such as json.dumps(value)",
            },
        ),
        (
            "POST", "/invocations",
            '{"action_name":"analyze","app_name":"my-app","version":"latest","async":true,"async_timeout_seconds":5}',
            400,
            {"code": "bad_request", "message": "async_timeout_seconds must be a whole number from 10 to 3600"},
        ),
        (
            "GET", "/invocations/inv_1", "", 404,
            {"code": "not_found", "message": 'there is no invocation "inv_1" here, or it is no longer kept'},
        ),
        (
            "GET", "/invocations/a%2Fb%20c/events", "", 404,
            {"code": "not_found", "message": "there is nothing at /invocations/a/b c/events"},
        ),
        ("GET", "/deployments", "", 404, {"code": "not_found", "message": "there is nothing at /deployments"}),
    ],
)  # fmt: skip
async def test_errors(client: Client, method: str, target: str, body: str, status: int, error: dict[str, Any]) -> None:
    """`code` and `message` at the top, and nothing that the client would try again."""
    answer = await client.send(method, target, body)

    assert (answer.status, answer.json()) == (status, error)
    assert answer.headers["content-type"] == "application/json"
