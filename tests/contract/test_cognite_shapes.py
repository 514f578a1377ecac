"""Exchanges as Cognite's SDK has them on the wire: what it was recorded to send, and what it must get for that.

The requests are those of sections 3, 5 and 7 of the contract, packed as the SDK packs them; a real host answers. The
answers are compared whole: only ids, times and nonces, which no two runs share, are replaced by a word.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from runtime.app import App
from runtime.calls import function_id
from tests.contract.bad_clients import Answer, Sent, answer_to, serving

pytestmark = pytest.mark.anyio

FILES = {
    "demo/fx.py": """
        def handle(data, function_call_info):
            print("first")
            print("second")
            if "fail" in data:
                raise ValueError("no good")
            return {"x": data.get("x")}
        """,
    "demo/slow.py": "import time\n\ndef handle(data):\n    time.sleep(600)\n",
    "demo/broken.py": "import nothing_of_this_name\n\ndef handle(data):\n    return 1\n",
}
TOML = """
    [spaces.demo.functions.slow]
    async_timeout = "300ms"
    [spaces.demo.functions.fx]
    secrets = { key = "hush" }
    memory = "512 MiB"
"""
FX, SLOW, BROKEN = (function_id("demo", name) for name in ("fx", "slow", "broken"))
P = "/api/v1/projects/myproj"
# What the SDK sends with every request (section 3).
HEADERS = {
    "host": "127.0.0.1", "accept": "application/json", "accept-encoding": "gzip, deflate", "connection": "keep-alive",
    "user-agent": "python-httpx2/2.16.0 CognitePythonSDK/8.22.0 CPython/3.11.7", "authorization": "Bearer any-token",
    "content-type": "application/json", "cdf-version": "20230101", "x-cdp-sdk": "CognitePythonSDK:8.22.0",
    "x-cdp-app": "test",
}  # fmt: skip
NONCE = re.compile(r"[0-9]+-[0-9]+-[0-9a-f]{32}")
MOMENTS = ("startTime", "endTime", "createdTime", "timestamp")
NUMBERS = ("id", "callId", "sessionId", "fileId")


class Client(NamedTuple):
    """Sends what the SDK sends."""

    app: App

    async def send(self, method: str, path: str, body: str = "", *, packed: bool = True) -> Answer:
        """One request. What has a body is packed, unless the SDK is told otherwise; GET says that it has JSON too."""
        fields = dict(HEADERS)
        data = gzip.compress(body.encode()) if body and packed else body.encode()
        if data:
            fields["content-length"] = str(len(data))
            if packed:
                fields["content-encoding"] = "gzip"
        pairs = tuple((name.encode(), value.encode()) for name, value in fields.items())
        return await answer_to(self.app, Sent(method, path, pairs, data))

    async def called(self, function: int, data: str = "{}") -> int:
        """A call that is over."""
        answer = await self.send("POST", f"{P}/functions/{function}/call", f'{{"data":{data}}}')
        assert answer.status == 201
        id: int = answer.json()["id"]
        with anyio.fail_after(60):
            while (await self.shown(function, id))["status"] == "Running":
                await anyio.sleep(0.01)
        return id

    async def shown(self, function: int, id: int) -> dict[str, Any]:
        """A call, as the SDK polls it."""
        path = f"{P}/functions/{function}/calls/byids"
        (item,) = (await self.send("POST", path, f'{{"items":[{{"id":{id}}}]}}')).json()["items"]
        found: dict[str, Any] = item
        return found


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """On a host with a function that works, one that is slow, one that is broken."""
    root: Path = tmp_path_factory.mktemp("cognite")
    async with serving(root, FILES, TOML) as app:
        yield Client(app)


def compact(value: Any) -> str:
    """JSON as the SDK writes it."""
    return json.dumps(value, separators=(",", ":"))


def worded(value: Any, key: str = "") -> Any:
    """A value with a word in place of everything that differs from run to run."""
    if isinstance(value, dict):
        return {name: worded(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [worded(inner, key) for inner in value]
    if key in MOMENTS and isinstance(value, int) and value > 1_600_000_000_000:
        return "a time"
    if key in NUMBERS and isinstance(value, int) and 0 < value < 2**53 and value not in (FX, SLOW, BROKEN):
        return "a number"
    return "a nonce" if key == "nonce" and NONCE.fullmatch(value) else value


async def test_a_session(client: Client) -> None:
    """What the SDK asks for before each call (5.1)."""
    answer = await client.send("POST", f"{P}/sessions", '{"items":[{"tokenExchange":true}]}')

    assert answer.status == 201
    assert worded(answer.json()) == {
        "items": [{"id": "a number", "status": "READY", "nonce": "a nonce", "type": "TOKEN_EXCHANGE"}]
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("packed", [True, False])
async def test_a_call(client: Client, packed: bool) -> None:
    """Running at once; the same request again, as after a reset connection, is the same call (5.2, 6.3)."""
    session = (await client.send("POST", f"{P}/sessions", '{"items":[{"tokenExchange":true}]}')).json()["items"][0]
    body = compact({"data": {"x": 1}, "nonce": session["nonce"]})
    answers = [await client.send("POST", f"{P}/functions/{FX}/call", body, packed=packed) for _ in range(4)]

    assert answers[0].status == 201
    assert worded(answers[0].json()) == {
        "id": "a number", "functionId": FX, "startTime": "a time", "status": "Running",
    }  # fmt: skip
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert answers[0].headers["x-request-id"] == str(answers[0].json()["id"])


async def test_a_call_that_is_over(client: Client) -> None:
    """What the SDK looks up then (5.3, 5.5, 5.6)."""
    id = await client.called(FX, '{"x":1}')
    response = await client.send("GET", f"{P}/functions/{FX}/calls/{id}/response")
    logs = await client.send("GET", f"{P}/functions/{FX}/calls/{id}/logs")

    assert worded(await client.shown(FX, id)) == {
        "id": "a number", "functionId": FX, "startTime": "a time", "endTime": "a time", "status": "Completed",
    }  # fmt: skip
    assert response.json() == {"functionId": FX, "callId": id, "response": {"x": 1}}
    assert worded(logs.json()) == {
        "items": [{"timestamp": "a time", "message": "first"}, {"timestamp": "a time", "message": "second"}]
    }


async def test_a_call_that_failed(client: Client) -> None:
    """An object with message and trace, and no response (4, 5.5)."""
    id = await client.called(FX, '{"fail":true}')
    shown = worded(await client.shown(FX, id))

    assert shown["error"].keys() == {"message", "trace"}
    assert shown["error"]["message"] == "ValueError at line 6: no good"
    assert shown["error"]["trace"].startswith('Traceback (most recent call last):\n  File "functions/demo/fx.py"')
    assert {key: value for key, value in shown.items() if key != "error"} == {
        "id": "a number", "functionId": FX, "startTime": "a time", "endTime": "a time", "status": "Failed",
    }  # fmt: skip
    response = await client.send("GET", f"{P}/functions/{FX}/calls/{id}/response")
    assert (response.status, response.json()) == (200, {"functionId": FX, "callId": id})


async def test_a_call_that_was_too_slow(client: Client) -> None:
    """Has a status of its own (6.1)."""
    shown = worded(await client.shown(SLOW, await client.called(SLOW)))

    assert (shown["status"], shown["endTime"]) == ("Timeout", "a time")
    assert shown["error"] == {"message": "`demo/slow` did not end within 0.3 s", "trace": ""}


async def test_a_list_of_calls(client: Client) -> None:
    """By status, a page at a time, the cursor in the next request (5.4, 7)."""
    for _ in range(3):
        await client.called(FX, '{"fail":true}')
    path = f"{P}/functions/{FX}/calls/list"
    first = (await client.send("POST", path, '{"filter":{"status":"Failed"},"limit":2}')).json()
    body = compact({"filter": {"status": "Failed"}, "limit": 1, "cursor": first["nextCursor"]})
    second = (await client.send("POST", path, body)).json()
    ids = [item["id"] for item in (*first["items"], *second["items"])]

    assert worded(first) == {
        "items": [
            {
                "id": "a number", "functionId": FX, "startTime": "a time", "endTime": "a time", "status": "Failed",
                "error": {"message": "ValueError at line 6: no good", "trace": ""},
            }
        ] * 2,
        "nextCursor": first["nextCursor"],
    }  # fmt: skip
    assert ids == sorted(set(ids), reverse=True)
    assert len(ids) == 3


async def test_functions(client: Client) -> None:
    """Looked up by external id, as before a call, and listed (5.7)."""
    found = await client.send("POST", f"{P}/functions/byids", '{"items":[{"externalId":"demo/fx"}]}')
    listed = await client.send("POST", f"{P}/functions/list", '{"filter":{},"limit":10000}')
    runtime = f"py{sys.version_info.major}{sys.version_info.minor}"

    assert worded(found.json()) == {
        "items": [
            {
                "id": FX, "name": "fx", "externalId": "demo/fx", "status": "Ready", "fileId": "a number",
                "createdTime": "a time", "owner": "", "functionPath": "fx.py", "secrets": {"key": "***"}, "envVars": {},
                "cpu": 1.0, "memory": 0.5, "runtime": runtime, "runtimeVersion": f"Python {sys.version.split()[0]}",
                "functionType": "classic", "metadata": {},
            }
        ]
    }  # fmt: skip
    assert [item["externalId"] for item in listed.json()["items"]] == ["demo/broken", "demo/fx", "demo/slow"]
    assert found.json()["items"][0] in listed.json()["items"]


async def test_a_function_that_is_broken(client: Client) -> None:
    """Failed, once it was tried, with message and trace (4)."""
    id = await client.called(BROKEN)
    found = await client.send("POST", f"{P}/functions/byids", compact({"items": [{"id": BROKEN}]}))
    (item,) = found.json()["items"]

    assert (await client.shown(BROKEN, id))["status"] == "Failed"
    assert item["status"] == "Failed"
    assert item["error"].keys() == {"message", "trace"}
    assert "nothing_of_this_name" in item["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "message", "missing"),
    [
        ("/functions/byids", '{"items":[{"id":9}]}', "Function ids not found", [{"id": 9}]),
        ("/functions/byids", '{"items":[{"externalId":"x"}]}', "Function ids not found", [{"externalId": "x"}]),
        ("/functions/9/call", '{"data":{},"nonce":"n"}', "Function ids not found", [{"id": 9}]),
        (f"/functions/{FX}/calls/byids", '{"items":[{"id":1}]}', "Function call ids not found", [{"id": 1}]),
        ("/functions/schedules/byids", '{"items":[{"id":31}],"ignoreUnknownIds":false}', "Schedule ids not found",
         [{"id": 31}]),
    ],
)  # fmt: skip
async def test_what_is_not_there(client: Client, path: str, body: str, message: str, missing: list[Any]) -> None:
    """400 with what is missing, which the SDK takes for not found (4)."""
    answer = await client.send("POST", P + path, body)

    assert answer.status == 400
    assert answer.json() == {"error": {"code": 400, "message": message, "missing": missing}}
    assert answer.headers["x-request-id"]


async def test_a_schedule(client: Client) -> None:
    """Created, listed, looked up, deleted, each as the SDK does it (5.9)."""
    base = f"{P}/functions/schedules"
    wanted = {"name": "s", "cronExpression": "*/5 * * * *", "functionId": FX, "data": {"a": 1}, "nonce": "n-1"}
    body = compact({"items": [wanted]})
    created = await client.send("POST", base, body)
    again = await client.send("POST", base, body)
    (item,) = created.json()["items"]
    ids = compact({"items": [{"id": item["id"]}]})
    listed = await client.send("POST", f"{base}/list", compact({"filter": {"functionId": FX}, "limit": 25}))
    data = await client.send("GET", f"{base}/{item['id']}/input_data")
    deleted = await client.send("POST", f"{base}/delete", ids)

    assert (created.status, again.json()) == (201, created.json())
    assert worded(item) == {
        "id": "a number", "name": "s", "createdTime": "a time", "cronExpression": "*/5 * * * *",
        "sessionId": "a number", "when": "Every 5 minutes", "functionId": FX, "functionExternalId": "demo/fx",
    }  # fmt: skip
    assert listed.json() == {"items": [item]}
    assert data.json() == {"id": item["id"], "data": {"a": 1}}
    assert (deleted.status, deleted.json()) == (200, {})
    assert (await client.send("POST", f"{base}/byids", ids)).status == 400


async def test_the_fixed_answers(client: Client) -> None:
    """Limits, status, and who asks (5.7, 5.10)."""
    limits = (await client.send("GET", f"{P}/functions/limits")).json()
    runtime = f"py{sys.version_info.major}{sys.version_info.minor}"
    inspected = (await client.send("GET", "/api/v1/token/inspect")).json()

    assert limits.pop("memoryGb").keys() == {"min", "max", "default"}
    assert limits == {
        "timeoutMinutes": 15, "cpuCores": {"min": 1.0, "max": 1.0, "default": 1.0}, "runtimes": [runtime],
        "responseSizeMb": 6,
    }  # fmt: skip
    for method in ("GET", "POST"):
        assert (await client.send(method, f"{P}/functions/status")).json() == {"status": "activated"}
    within = {"projects": ["spaces"]}
    assert inspected == {
        "subject": "anybody",
        "projects": [{"projectUrlName": "spaces", "groups": []}],
        "capabilities": [
            {"functionsAcl": {"actions": ["READ", "WRITE", "RUN"], "scope": {"all": {}}}, "projectScope": within},
            {"sessionsAcl": {"actions": ["CREATE"], "scope": {"all": {}}}, "projectScope": within},
        ],
    }
