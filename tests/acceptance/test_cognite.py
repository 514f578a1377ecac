"""Cognite's own SDK, as it is, against the real command: sync and async clients, on both engines."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cognite.client import AsyncCogniteClient, ClientConfig, CogniteClient, global_config
from cognite.client.credentials import OAuthClientCredentials, Token
from cognite.client.data_classes.functions import Function, FunctionCall
from cognite.client.exceptions import CogniteAPIError, CogniteNotFoundError, CogniteProjectAccessError

from tests.acceptance.conftest import Running, Site, eventually

EXTERNAL_ID = "demo/work"
WORK = """
    import os
    import sys
    import time

    def handle(data, function_call_info):
        print("got", data)
        print("and so", file=sys.stderr)
        while "until" in data and not os.path.exists(data["until"]):
            time.sleep(0.01)
        if data.get("fail"):
            raise ValueError("no such luck")
        return {"got": data, "call_id": function_call_info["call_id"], "id": function_call_info.get("function_id")}
"""
FILES = {
    "spaces.toml": """
        [spaces.demo.functions.slow]
        async_timeout = "200ms"
        [spaces.demo.functions.narrow]
        max_workers = 1
        max_queued = 1
        env = { LEVEL = "info" }
        secrets = { key = "hush" }
    """,
    "demo/work.py": WORK,
    "demo/slow.py": WORK,
    "demo/narrow.py": WORK,
    "demo/text.py": "def handle(data):\n    return 'just text'\n",
    "demo/broken.py": "import nothing_of_this_name\n\ndef handle(data):\n    return 1\n",
    # As migrated handlers have it: keyword-only, all four arguments.
    "demo/moved.py": """
        def handle(*, client, data, secrets, function_call_info):
            return {"data": data, "secrets": secrets, "call": function_call_info.get("call_id")}
    """,
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """The SDK asks nobody else, and gives up at once where it would try for minutes."""
    changed = {"disable_pypi_version_check": True, "max_retries": 0, "max_retry_backoff": 1}
    before = {name: getattr(global_config, name) for name in changed}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        for name, value in changed.items():
            setattr(global_config, name, value)
        yield
    for name, value in before.items():
        setattr(global_config, name, value)


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host that all tests of the module share, on each engine in turn."""
    for path, text in FILES.items():
        shared_site.write(path, text)
    return shared_site.start(engine=each_engine)


def config(host: Running, token: str = "any-token", project: str = "myproj") -> ClientConfig:
    return ClientConfig(client_name="test", project=project, credentials=Token(token), base_url=host.url)


@pytest.fixture(scope="module")
def client(host: Running) -> CogniteClient:
    return CogniteClient(config(host))


@pytest.fixture(scope="module")
def function(client: CogniteClient) -> Function:
    """The function that most tests call."""
    found = client.functions.retrieve(external_id=EXTERNAL_ID)
    assert found is not None
    return found


def ended(call: FunctionCall) -> FunctionCall:
    """The call once it is over; without the SDK's sleeps."""

    def is_over() -> bool:
        call.update()
        return call.status != "Running"

    eventually(is_over, "the call is over")
    return call


# Calling.


def test_a_call_that_is_waited_for(client: CogniteClient, function: Function) -> None:
    """A session, the call, polls until it is over; then its response and its logs."""
    call = client.functions.call(id=function.id, data={"x": 1, "é": [None, 1.5, "😀"]})

    assert call.status == "Completed"
    assert call.get_response() == {"got": {"x": 1, "é": [None, 1.5, "😀"]}, "call_id": call.id, "id": function.id}
    assert [entry.message for entry in call.get_logs()][-1] == "and so"
    assert "got {'x': 1" in call.get_logs().to_text()
    assert call.end_time is not None
    assert call.start_time <= call.end_time


def test_a_call_that_is_not_waited_for(client: CogniteClient, function: Function, tmp_path: Path) -> None:
    """It is `Running` at once and as long as it takes, and looked up later."""
    done = tmp_path / "done"
    call = client.functions.call(external_id=EXTERNAL_ID, data={"until": str(done)}, wait=False)

    assert (call.status, call.end_time, call.error) == ("Running", None, None)
    assert call.get_response() is None
    call.update()
    assert call.status == "Running"
    assert call.id in [each.id for each in function.list_calls(status="Running")]
    done.touch()
    assert ended(call).status == "Completed"
    assert function.call(data={}, wait=False).function_id == function.id
    assert client.functions.call(id=function.id, wait=False).id != call.id


def test_a_call_without_data_gets_an_empty_dict(client: CogniteClient) -> None:
    """A handler that was written for Cognite runs as it is."""
    moved = client.functions.call(external_id="demo/moved")

    assert moved.get_response() == {"data": {}, "secrets": {}, "call": moved.id}


def test_a_value_that_is_no_object(client: CogniteClient) -> None:
    """Is the response as it is."""
    assert client.functions.call(external_id="demo/text").get_response() == "just text"


def test_a_call_that_fails(client: CogniteClient, function: Function) -> None:
    """Its error has a message and the traceback; there is no response."""
    call = client.functions.call(id=function.id, data={"fail": True})

    assert call.status == "Failed"
    assert call.error is not None
    assert call.error["message"].startswith("ValueError")
    assert "no such luck" in call.error["message"]
    assert call.error["trace"].startswith("Traceback")
    assert "ValueError: no such luck" in call.error["trace"]
    assert str(function.function_path) in call.error["trace"]
    assert call.get_response() is None


def test_a_call_that_takes_too_long(client: CogniteClient) -> None:
    """Is a `Timeout`, and says so."""
    call = client.functions.call(external_id="demo/slow", data={"until": "/never"})

    assert call.status == "Timeout"
    assert "0.2 s" in call.error["message"]  # type: ignore[index]


def test_a_function_that_cannot_be_loaded(client: CogniteClient) -> None:
    """Its calls fail, and it is `Failed` from then on."""
    call = client.functions.call(external_id="demo/broken")
    broken = client.functions.retrieve(external_id="demo/broken")

    assert call.status == "Failed"
    assert "nothing_of_this_name" in call.error["message"]  # type: ignore[index]
    assert broken is not None
    assert broken.status == "Failed"
    assert "nothing_of_this_name" in broken.error["message"]  # type: ignore[index]


def test_the_same_nonce_is_the_same_call(client: CogniteClient, function: Function) -> None:
    """So a request that the SDK sends again starts nothing new."""
    calls = [client.functions.call(id=function.id, data={"n": 1}, nonce="mine", wait=False) for _ in range(3)]
    other = client.functions.call(external_id="demo/moved", data={"n": 1}, nonce="mine", wait=False)

    assert len({call.id for call in calls}) == 1
    assert other.id != calls[0].id
    with pytest.raises(CogniteAPIError, match="other data") as refusal:
        client.functions.call(id=function.id, data={"n": 2}, nonce="mine", wait=False)
    assert refusal.value.code == 400


def test_too_many_calls(client: CogniteClient, tmp_path: Path) -> None:
    """429, which the SDK would try again."""
    narrow = client.functions.retrieve(external_id="demo/narrow")
    assert narrow is not None
    done = tmp_path / "done"
    first = narrow.call(data={"until": str(done)}, wait=False)
    narrow.call(data={}, wait=False)
    with pytest.raises(CogniteAPIError) as refusal:
        narrow.call(data={}, wait=False)
    done.touch()

    assert refusal.value.code == 429
    assert refusal.value.x_request_id
    assert ended(first).status == "Completed"


def test_the_raw_way(client: CogniteClient, function: Function, host: Running) -> None:
    """With gzip, as the SDK does it, and without."""
    path = f"/api/v1/projects/myproj/functions/{function.id}/call"
    packed = client.post(path, json={"data": {"x": 1}}).json()
    plain = host.client.post(path, json={"data": {"x": 1}})

    assert packed["status"] == "Running"
    assert plain.status_code == 201
    assert plain.json()["functionId"] == function.id
    assert plain.headers["x-request-id"] == str(plain.json()["id"])


# Looking up.


def test_calls_are_listed(client: CogniteClient) -> None:
    """The newest first, by status, by time, and page by page."""
    function = client.functions.retrieve(external_id="demo/text")
    assert function is not None
    calls = [ended(function.call(wait=False)) for _ in range(5)]
    ids = [call.id for call in reversed(calls)]
    listed = client.functions.calls.list(function_id=function.id, limit=None)

    assert [call.id for call in listed][:5] == ids
    assert [call.id for call in client.functions.calls.list(function_id=function.id, limit=2)] == ids[:2]
    assert len(client.functions.calls.list(function_id=function.id, status="Completed", limit=5)) == 5
    assert client.functions.calls.list(function_id=function.id, status="Failed", limit=3) == []
    middle = {"min": calls[1].start_time, "max": calls[3].start_time}
    found = client.functions.calls.list(function_id=function.id, start_time=middle, limit=None)
    assert set(ids[1:4]) <= {call.id for call in found}
    assert all(middle["min"] <= call.start_time <= middle["max"] for call in found)
    until = {"max": calls[2].end_time}
    before = client.functions.calls.list(function_id=function.id, end_time=until, limit=None)
    assert calls[2].id in {call.id for call in before}
    assert all(call.end_time <= until["max"] for call in before)  # type: ignore[operator]
    assert function.list_calls(limit=1)[0].id == ids[0]


def test_pages_follow_each_other(host: Running, client: CogniteClient) -> None:
    """By a cursor, without a gap and without an end that is not there."""
    function = client.functions.retrieve(external_id="demo/moved")
    assert function is not None
    for _ in range(3):
        ended(function.call(wait=False))
    everything = [call.id for call in function.list_calls(limit=None)]
    found: list[int] = []
    body: dict[str, Any] = {"limit": 2}
    while True:
        page = host.client.post(f"/api/v1/projects/p/functions/{function.id}/calls/list", json=body).json()
        found += [item["id"] for item in page["items"]]
        if "nextCursor" not in page:
            break
        body["cursor"] = page["nextCursor"]

    assert found == everything
    assert len(set(found)) == len(found) >= 3


def test_what_is_not_there(client: CogniteClient, function: Function) -> None:
    """Is None, or CogniteNotFoundError with what is missing."""
    assert client.functions.retrieve(id=9) is None
    assert client.functions.retrieve(external_id="demo/nothing") is None
    assert client.functions.calls.retrieve(call_id=1, function_id=function.id) is None
    assert client.functions.schedules.retrieve(id=31) is None
    with pytest.raises(CogniteNotFoundError) as refusal:
        client.functions.retrieve_multiple(external_ids=["nope", EXTERNAL_ID])
    assert list(refusal.value.not_found) == [{"externalId": "nope"}]
    with pytest.raises(CogniteNotFoundError):
        client.functions.call(id=9)
    known = client.functions.retrieve_multiple(external_ids=["nope", EXTERNAL_ID], ignore_unknown_ids=True)
    assert [each.id for each in known] == [function.id]


def test_calls_of_another_function_are_not_there(client: CogniteClient, function: Function) -> None:
    """A call is found by its own function alone."""
    call = client.functions.call(external_id="demo/text", wait=False)

    assert client.functions.calls.retrieve(call_id=call.id, function_id=function.id) is None
    with pytest.raises(CogniteNotFoundError):
        client.functions.calls.get_response(call_id=call.id, function_id=function.id)
    with pytest.raises(CogniteNotFoundError):
        client.functions.calls.get_logs(call_id=call.id, function_id=function.id)


def test_functions_are_listed(client: CogniteClient, function: Function) -> None:
    """With what the SDK needs of each; secrets are not told."""
    listed = client.functions.list(limit=None)
    narrow = client.functions.retrieve(external_id="demo/narrow")

    assert {each.external_id for each in listed} == {f"demo/{path[5:-3]}" for path in FILES if path[:4] == "demo"}
    assert [each.id for each in client.functions.list(name="work", status="Ready")] == [function.id]
    assert [each.id for each in client.functions.list(external_id_prefix="demo/wo")] == [function.id]
    assert client.functions.list(owner="somebody") == []
    assert len(client.functions.list(limit=2)) == 2
    assert function.name == "work"
    assert function.function_path == "work.py"
    assert function.file_id > 0
    assert narrow is not None
    assert narrow.secrets == {"key": "***"}
    assert narrow.env_vars == {"LEVEL": "***"}
    function.update()
    assert function.status == "Ready"


def test_what_the_project_may(client: CogniteClient) -> None:
    """Limits, activation, and who asks."""
    limits = client.functions.limits()

    assert limits.timeout_minutes == 15
    assert limits.runtimes[0].startswith("py3")
    assert limits.response_size_mb == 6
    assert client.functions.status().status == "activated"
    assert client.functions.activate().status == "activated"
    inspected = client.iam.token.inspect()
    assert inspected.subject
    assert [project.url_name for project in inspected.projects] == ["spaces"]
    session = client.iam.sessions.create(session_type="ONESHOT_TOKEN_EXCHANGE")
    assert (session.type, session.status) == ("ONESHOT_TOKEN_EXCHANGE", "READY")
    assert session.nonce


def test_what_is_not_offered(client: CogniteClient) -> None:
    """Creating and deleting functions, and keeping sessions: 501, and the message says why."""

    def handle(data: dict[str, Any]) -> dict[str, Any]:
        return data

    for refused in (
        lambda: client.functions.create(name="f", function_handle=handle),
        lambda: client.functions.delete(id=1),
        lambda: client.iam.sessions.list(),
    ):
        with pytest.raises(CogniteAPIError) as refusal:
            refused()
        assert refusal.value.code == 501
        assert "here" in refusal.value.message
    with pytest.raises(CogniteAPIError) as nowhere:
        client.assets.list()
    assert nowhere.value.code == 404


def test_plain_requests_as_curl_sends_them(host: Running, function: Function) -> None:
    """GET where the SDK takes POST."""
    base = "/api/v1/projects/p/functions"
    call = host.client.post(f"{base}/{function.id}/call", json={}).json()

    assert function.id in [item["id"] for item in host.client.get(base).json()["items"]]
    assert len(host.client.get(base, params={"limit": 1}).json()["items"]) == 1
    assert host.client.get(f"{base}/{function.id}").json()["externalId"] == EXTERNAL_ID
    assert host.client.get(f"{base}/{function.id}/calls/{call['id']}").json()["startTime"] == call["startTime"]
    assert host.client.get(f"{base}/{function.id}/calls", params={"limit": 1}).json()["items"][0]["id"] == call["id"]
    assert host.client.get(f"{base}/schedules").json() == {"items": []}


# Schedules.


def test_schedules(client: CogniteClient, function: Function) -> None:
    """Created, listed, looked up with their data, and deleted."""
    created = client.functions.schedules.create(
        name="often", cron_expression="*/5 * * * *", function_id=function.id, data={"a": 1}, description="so often"
    )
    with pytest.warns(UserWarning, match="Looking up"):
        other = client.functions.schedules.create(
            name="seldom", cron_expression="0 0 1 1 *", function_external_id=EXTERNAL_ID
        )
    schedules = client.functions.schedules

    assert created.when == "Every 5 minutes"
    assert isinstance(created.session_id, int)
    assert created.cron_expression == "*/5 * * * *"
    assert [each.id for each in schedules.list(function_id=function.id)] == [created.id, other.id]
    assert [each.id for each in schedules.list(name="seldom", limit=None)] == [other.id]
    assert [each.id for each in function.list_schedules()] == [created.id, other.id]
    found = schedules.retrieve(id=created.id)
    assert found is not None
    assert (found.name, found.description, found.function_id) == ("often", "so often", function.id)
    assert schedules.get_input_data(id=created.id) == {"a": 1}
    assert schedules.get_input_data(id=other.id) == {}
    for each in (created, other):
        schedules.delete(id=each.id)
    assert schedules.list() == []
    with pytest.raises(CogniteNotFoundError):
        schedules.delete(id=created.id)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cron_expression": "every day"}, "cronExpression"),
        ({"cron_expression": "0 0 30 2 *"}, "day-of-month"),
        ({"name": "n" * 141}, "name"),
        ({"description": "d" * 501}, "description"),
    ],
)
def test_schedules_that_are_wrong(
    client: CogniteClient, function: Function, fields: dict[str, str], message: str
) -> None:
    """400, with what is wrong."""
    good = {"name": "n", "cron_expression": "* * * * *", "function_id": function.id}
    with pytest.raises(CogniteAPIError, match=message) as refusal:
        client.functions.schedules.create(**{**good, **fields})  # type: ignore[arg-type]
    assert refusal.value.code == 400


LATE = """
import sys, time
now, later = time.time, (57 - time.time()) % 60
time.time = lambda: now() + later
from runtime import cli
sys.exit(cli.main())
"""


def started_late(site: Site) -> Running:
    """A host that thinks that it is some seconds before the full minute."""
    options = "serve", str(site.root), "--bind", "127.0.0.1:0"
    process = subprocess.Popen([sys.executable, "-c", LATE, *options], stderr=subprocess.PIPE, text=True)
    return site.adopt(Running(process, site.root))


def test_a_schedule_fires_after_a_restart(site: Site) -> None:
    """It is kept by a host that is killed, fires by the next one, and is no more once it is deleted."""
    site.write("demo/work.py", WORK)
    first = site.start()
    before = CogniteClient(config(first))
    function = before.functions.retrieve(external_id=EXTERNAL_ID)
    assert function is not None
    created = before.functions.schedules.create(
        name="minutely", cron_expression="* * * * *", function_id=function.id, data={"tick": True}
    )
    first.process.kill()
    first.stop()
    client = CogniteClient(config(started_late(site)))
    (call, *_) = eventually(
        lambda: client.functions.calls.list(function_id=function.id, schedule_id=created.id, status="Completed"),
        "the schedule fires within the minute",
        patience=90,
    )

    assert call.schedule_id == created.id
    assert call.scheduled_time % 60_000 == 0  # type: ignore[operator]
    assert call.start_time >= call.scheduled_time  # type: ignore[operator]
    assert call.get_response()["got"] == {"tick": True}  # type: ignore[index]
    client.functions.schedules.delete(id=created.id)
    assert client.functions.schedules.list() == []


# Who may.

GUARDED = """
    [server]
    projects = ["main"]
    [spaces.demo]
    tokens = [
        "env:ALL",
        { token = "env:CALLS", scopes = ["invoke"] },
        { token = "env:READS", scopes = ["read"] },
        { token = "env:OTHER", scopes = ["invoke", "read"] },
    ]
    clients = [{ id = "ci", secret = "env:ALL", scopes = ["invoke", "read"] }]
    [spaces.other]
    tokens = ["env:ELSEWHERE"]
"""
NAMES = ("ALL", "CALLS", "READS", "OTHER", "ELSEWHERE")
TOKENS = {name: f"token-of-{name.lower()}-0123456789" for name in NAMES}


@pytest.fixture
def guarded(site: Site, engine: str) -> Running:
    """A host that wants tokens."""
    site.write("spaces.toml", GUARDED)
    site.write("demo/work.py", WORK)
    site.write("other/work.py", WORK)
    return site.start(engine=engine, env=TOKENS)


def test_a_wrong_project(guarded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused as the real service does it, and the SDK finds out by itself which ones there are."""
    asking = inspect.unwrap(CogniteProjectAccessError._attempt_to_get_projects)  # the SDK asks once in five seconds
    monkeypatch.setattr(CogniteProjectAccessError, "_attempt_to_get_projects", staticmethod(asking))
    with pytest.raises(CogniteProjectAccessError) as refusal:
        CogniteClient(config(guarded, TOKENS["ALL"], "nowhere")).functions.list()

    assert refusal.value.maybe_projects == ["main"]


def test_tokens(guarded: Running) -> None:
    """A wrong one, one for another space, one without the right: each as the SDK has it."""

    def client_of(name: str) -> CogniteClient:
        return CogniteClient(config(guarded, TOKENS.get(name, name), "main"))

    function = client_of("ALL").functions.retrieve(external_id=EXTERNAL_ID)
    assert function is not None
    assert client_of("ALL").functions.call(id=function.id).status == "Completed"
    with pytest.raises(CogniteProjectAccessError):
        client_of("wrong").functions.call(id=function.id)
    assert client_of("ELSEWHERE").functions.retrieve(external_id=EXTERNAL_ID) is None
    with pytest.raises(CogniteNotFoundError):
        client_of("ELSEWHERE").functions.call(id=function.id)
    assert [each.external_id for each in client_of("ELSEWHERE").functions.list()] == ["other/work"]
    assert client_of("CALLS").functions.call(id=function.id, wait=False).status == "Running"
    assert client_of("CALLS").functions.list() == []
    with pytest.raises(CogniteAPIError) as refusal:
        client_of("READS").functions.call(id=function.id)
    assert refusal.value.code == 403
    with pytest.raises(CogniteAPIError) as deploying:
        client_of("OTHER").functions.schedules.create(name="n", cron_expression="* * * * *", function_id=function.id)
    assert deploying.value.code == 403
    capabilities = client_of("READS").iam.token.inspect().capabilities.dump()
    assert "RUN" not in json.dumps(capabilities)


def test_a_nonce_is_for_who_was_given_it(guarded: Running) -> None:
    """Not for another token, and not made up."""
    one, other = (CogniteClient(config(guarded, TOKENS[name], "main")) for name in ("ALL", "OTHER"))
    nonce = one.iam.sessions.create().nonce
    function = one.functions.retrieve(external_id=EXTERNAL_ID)
    assert function is not None
    call = one.functions.call(id=function.id, data={"n": 1}, nonce=nonce, wait=False)

    for client, wrong in ((other, nonce), (one, "mine"), (one, nonce[:-1] + "x"), (one, "")):
        with pytest.raises(CogniteAPIError, match="nonce") as refusal:
            client.post(f"/api/v1/projects/main/functions/{function.id}/call", json={"data": {"n": 1}, "nonce": wrong})
        assert refusal.value.code == 400
    assert one.functions.call(id=function.id, data={"n": 1}, nonce=nonce, wait=False).id == call.id
    assert nonce not in guarded.log


def test_client_credentials(guarded: Running) -> None:
    """As production scripts have it: a token from our own token endpoint."""
    credentials = OAuthClientCredentials(
        token_url=f"{guarded.url}/oauth/token", client_id="ci", client_secret=TOKENS["ALL"], scopes=["x"]
    )
    client = CogniteClient(
        ClientConfig(client_name="test", project="main", credentials=credentials, base_url=guarded.url)
    )

    call = client.functions.call(external_id=EXTERNAL_ID, data={"n": 1})
    assert call.get_response()["got"] == {"n": 1}  # type: ignore[index]
    with pytest.raises(CogniteAPIError) as refusal:
        client.functions.schedules.create(name="n", cron_expression="* * * * *", function_id=call.function_id)
    assert refusal.value.code == 403


# The async client.


@pytest.mark.anyio
async def test_the_async_client(host: Running) -> None:
    """The same, awaited."""
    client = AsyncCogniteClient(config(host))
    call = await client.functions.call(external_id=EXTERNAL_ID, data={"x": 1})
    function = await client.functions.retrieve(external_id=EXTERNAL_ID)
    assert function is not None

    assert call.status == "Completed"
    assert (await call.get_response_async())["got"] == {"x": 1}  # type: ignore[index]
    assert "got {'x': 1}" in (await call.get_logs_async()).to_text()
    await call.update_async()
    later = await client.functions.call(id=function.id, wait=False)
    await later.wait_async()
    assert later.status == "Completed"
    listed = await client.functions.calls.list(function_id=function.id, limit=1)
    assert [each.id for each in listed] == [later.id]
    assert [each.id async for each in client.functions(limit=None)]
    schedule = await client.functions.schedules.create(
        name="s", cron_expression="0 0 1 1 *", function_id=function.id, data={"a": 1}
    )
    assert await client.functions.schedules.get_input_data(id=schedule.id) == {"a": 1}
    await client.functions.schedules.delete(id=schedule.id)
    assert await client.functions.retrieve(id=9) is None
    assert (await client.functions.limits()).timeout_minutes == 15


def test_our_own_api_shows_these_calls(host: Running, client: CogniteClient) -> None:
    """They are calls like all others."""
    call = client.functions.call(external_id="demo/text", wait=False)
    found = host.client.get(f"/calls/{call.id}").json()

    assert found["trigger"] == "cognite"
    assert found["function"] == "text"
