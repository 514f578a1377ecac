"""Kernel's own client, unmodified, on the real command: every call of the contract, sync and async, in strict mode.

In strict mode the client raises for any answer that its schema does not allow.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kernel
import pytest
from kernel import AsyncKernel, Kernel

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually

FILES = {
    "demo/echo.py": """
        def handle(data, function_call_info):
            print("echoing")
            return {"data": data, "headers": function_call_info.headers.to_dict()}
        """,
    "demo/fail.py": """
        def handle(data):
            raise ValueError("no good")
        """,
    "demo/work.py": """
        import pathlib, time

        def handle(data):
            folder = pathlib.Path(data["folder"])
            with open(folder / "began", "a") as began:
                began.write("x")
            print("began")
            while not (folder / "go").exists():
                time.sleep(0.01)
            print("done")
            return {"done": True}
        """,
    "demo/patient.py": """
        import asyncio, pathlib

        async def handle(data):
            try:
                pathlib.Path(data["folder"], "began").touch()
                await asyncio.sleep(600)
            finally:
                pathlib.Path(data["folder"], "stopped").touch()
        """,
    "demo/agent.py": """
        import kernel

        client = kernel.Kernel()
        app = kernel.App("my-app")

        @app.action("analyze")
        async def analyze(ctx: kernel.KernelContext, payload):
            print("analyzing")
            return {"id": ctx.invocation_id, "payload": payload}

        @app.action("delegate")
        def delegate(ctx: kernel.KernelContext, payload):
            made = client.invocations.create(app_name="my-app", action_name="analyze", version="latest", payload='"in"')
            return made.output
        """,
}
ECHO: dict[str, Any] = {"app_name": "demo", "action_name": "echo", "version": "latest"}


def connect(host: Running, key: str = "anything", **options: Any) -> Kernel:
    """The client as the contract has it."""
    options = {"max_retries": 0, "timeout": PATIENCE, **options}
    http = httpx.Client(trust_env=False, timeout=options["timeout"])
    return Kernel(api_key=key, base_url=host.url, http_client=http, _strict_response_validation=True, **options)


def connect_async(host: Running) -> AsyncKernel:
    """The same, of the other kind."""
    http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE)
    return AsyncKernel(
        api_key="anything", base_url=host.url, max_retries=0, http_client=http, _strict_response_validation=True
    )


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host of these functions."""
    for path, text in FILES.items():
        shared_site.write(path, text)
    return shared_site.start("serve", engine=each_engine)


@pytest.fixture
def client(host: Running) -> Iterator[Kernel]:
    """A client of it."""
    with connect(host) as client:
        yield client


def work(folder: Path, **fields: Any) -> dict[str, Any]:
    """The arguments of an invocation that goes on until there is `folder/go`."""
    return {**ECHO, "action_name": "work", "payload": json.dumps({"folder": str(folder)}), **fields}


def finished(client: Kernel, id: str) -> Any:
    """The record of an invocation, once it is over."""

    def over() -> Any:
        record = client.invocations.retrieve(id)
        return record if record.status in ("succeeded", "failed") else None

    return eventually(over, f"the end of {id}")


# The calls that must work.


def test_a_sync_invocation(client: Kernel) -> None:
    """200, and what the function returned, as JSON; it saw no credential."""
    raw = client.invocations.with_raw_response.create(**ECHO, payload='{"n":1}')
    made = raw.parse()
    output = json.loads(made.output or "")

    assert raw.status_code == 200
    assert (made.action_name, made.status, made.status_reason) == ("echo", "succeeded", None)
    assert output["data"] == {"n": 1}
    assert not output["headers"].keys() & {"authorization", "cookie", "x-stainless-lang"}
    assert output["headers"]["x-call-id"] == made.id


def test_an_async_invocation(client: Kernel) -> None:
    """202 and queued; then it can be asked for until it has succeeded."""
    raw = client.invocations.with_raw_response.create(**ECHO, async_=True, async_timeout_seconds=60)
    made = raw.parse()
    record = finished(client, made.id)

    assert (raw.status_code, made.status) == (202, "queued")
    assert (record.app_name, record.action_name, record.version) == ("demo", "echo", "latest")
    assert record.status == "succeeded"
    assert record.started_at <= record.finished_at


def test_an_app_of_kernels(client: Kernel) -> None:
    """By the name of its app; it is told its invocation's id, and its own client comes back to this host."""
    made = client.invocations.create(app_name="my-app", action_name="analyze", version="latest", payload='{"n":1}')
    bare = client.invocations.create(app_name="my-app", action_name="analyze", version="latest")
    nested = client.invocations.create(app_name="my-app", action_name="delegate", version="latest")

    assert json.loads(made.output or "") == {"id": made.id, "payload": {"n": 1}}
    assert json.loads(bare.output or "") == {"id": bare.id, "payload": None}
    assert nested.status == "succeeded", nested
    assert json.loads(json.loads(nested.output or ""))["payload"] == "in"
    assert client.invocations.retrieve(made.id).app_name == "my-app"


def test_lists(client: Kernel) -> None:
    """Part by part, by itself or by hand, the newest first."""
    made = [client.invocations.create(**ECHO).id for _ in range(5)][::-1]
    listed = client.invocations.list(app_name="demo", action_name="echo", status="succeeded", since="5m", limit=2)
    every = [each.id for each in listed]
    page = client.invocations.list(limit=2)

    assert every[:5] == made
    assert len(every) == len(set(every))
    assert ([each.id for each in page.items], page.has_more, page.next_offset) == (made[:2], True, 2)
    assert page.has_next_page()
    assert [each.id for each in page.get_next_page().items] == made[2:4]
    assert [each.id for each in client.invocations.list(query=made[0])] == [made[0]]
    assert client.invocations.list(query="nothing").items == []
    assert not client.invocations.list(offset=10**6).has_next_page()


def test_apps(client: Kernel) -> None:
    """Spaces, and the apps of Kernel's files."""
    assert [app.app_name for app in client.apps.list()] == ["demo", "my-app"]
    page = client.apps.list(app_name="my-app", version="latest")
    assert [action.name for action in page.items[0].actions] == ["analyze", "delegate"]
    assert client.apps.list(app_name="demo", limit=1).items[0].actions[0].name == "analyze"
    deployment = page.items[0].deployment
    client.invocations.create(app_name="my-app", action_name="analyze", version="latest")
    assert {each.app_name for each in client.invocations.list(deployment_id=deployment)} == {"my-app"}


def test_following(client: Kernel, tmp_path: Path) -> None:
    """The state now, what it prints as it prints it, and its end; then the stream ends."""
    made = client.invocations.create(**work(tmp_path), async_=True)
    told = []
    for event in client.invocations.follow(made.id):
        told.append(event)
        if isinstance(event, kernel.types.shared.LogEvent) and event.message == "began":
            (tmp_path / "go").touch()
    again = list(client.invocations.follow(made.id, since="5m"))

    states = [event.invocation.status for event in told if event.event == "invocation_state"]
    assert [event.message for event in told if event.event == "log"] == ["began", "done"]
    assert states[0] in ("queued", "running")
    assert states[-1] == "succeeded"
    assert told[-1].event == "invocation_state"
    assert told[-1].invocation.output == '{"done":true}'
    assert [event.event for event in again] == ["log", "log", "invocation_state"]


def test_ending_an_invocation(client: Kernel, tmp_path: Path) -> None:
    """What runs is stopped; what the client says is kept; who follows hears of it."""
    arguments = {**work(tmp_path), "action_name": "patient"}
    made = client.invocations.create(**arguments, async_=True)
    eventually((tmp_path / "began").exists, "its start")
    ended = client.invocations.update(made.id, status="failed", output='{"error":"stop"}')
    told = list(client.invocations.follow(made.id))

    assert (ended.status, ended.output) == ("failed", '{"error":"stop"}')
    assert ended.status_reason
    assert ended.finished_at is not None
    assert told[-1].event == "invocation_state"
    assert told[-1].invocation.status == "failed"
    assert client.invocations.update(made.id, status="succeeded") == ended
    eventually((tmp_path / "stopped").exists, "its handler's end")
    assert client.invocations.list_browsers(made.id).browsers == []
    client.invocations.delete_browsers(made.id)


def test_all_of_it_asynchronously(host: Running, tmp_path: Path) -> None:
    """The other client, against the same host."""

    async def calls() -> None:
        async with connect_async(host) as client:
            made = await client.invocations.create(**ECHO, payload='{"n":1}')
            assert made.status == "succeeded"
            raw = await client.invocations.with_raw_response.create(**ECHO, async_=True, async_timeout_seconds=60)
            assert raw.status_code == 202
            assert (await client.invocations.retrieve(made.id)).output == made.output

            begun = await client.invocations.create(**work(tmp_path), async_=True)
            lines = []
            async for event in await client.invocations.follow(begun.id):
                if event.event == "log":
                    lines.append(event.message)
                    (tmp_path / "go").touch()
            assert lines == ["began", "done"]
            assert (await client.invocations.update(begun.id, status="failed")).status == "succeeded"

            ids = [each.id async for each in client.invocations.list(app_name="demo", limit=2)]
            assert {made.id, begun.id} <= set(ids)
            assert [app.app_name async for app in client.apps.list(limit=1)] == ["demo", "my-app"]
            assert (await client.invocations.list_browsers(made.id)).browsers == []
            await client.invocations.delete_browsers(made.id)
            with pytest.raises(kernel.NotFoundError):
                await client.invocations.retrieve("none")

    asyncio.run(asyncio.wait_for(calls(), 5 * PATIENCE))


# What goes wrong.


def test_a_handler_that_raises(client: Kernel) -> None:
    """Is an answer, not an error; why it failed is told, and logged."""
    made = client.invocations.create(**{**ECHO, "action_name": "fail"})
    told = list(client.invocations.follow(made.id))

    assert made.status == "failed"
    assert "no good" in (made.output or "")
    assert "no good" in (made.status_reason or "")
    assert "ValueError: no good" in "".join(event.message for event in told if event.event == "log")


def test_errors(client: Kernel) -> None:
    """The client's own exceptions, with Kernel's body."""
    with pytest.raises(kernel.NotFoundError) as missing:
        client.invocations.create(app_name="none", action_name="echo", version="latest")
    assert missing.value.body == {
        "code": "not_found",
        "message": 'there is no app "none" with an action "echo" here',
    }
    for unknown in ({"action_name": "none"}, {"version": "1.0"}):
        with pytest.raises(kernel.NotFoundError):
            client.invocations.create(**{**ECHO, **unknown})
    for wrong in (
        {"payload": "{"}, {"payload": {"n": 1}}, {"async_": True, "async_timeout_seconds": 9},
        {"async_": True, "async_timeout_seconds": 3601}, {"payload": json.dumps("x" * 5_000_000)},
    ):  # fmt: skip
        with pytest.raises(kernel.BadRequestError):
            client.invocations.create(**ECHO, **wrong)
    for call in (client.invocations.retrieve, client.invocations.follow, client.invocations.list_browsers):
        for id in ("none", "1", "a/b c"):
            with pytest.raises(kernel.NotFoundError):
                call(id)
    with pytest.raises(kernel.NotFoundError):
        client.invocations.update("1", status="failed")
    with pytest.raises(kernel.BadRequestError):
        list(client.invocations.list(since="monday"))
    with pytest.raises(kernel.BadRequestError):
        list(client.invocations.list(limit=101))
    with pytest.raises(kernel.NotFoundError):
        client.deployments.retrieve("x")
    with pytest.raises(kernel.NotFoundError):
        client.browsers.create()


def test_an_action_that_takes_longer_than_its_client_waits(host: Running, tmp_path: Path) -> None:
    """Is answered in time as running, and found by its id later: it is not run again."""
    with connect(host, timeout=2.0, max_retries=2) as client:
        made = client.invocations.create(**work(tmp_path))
        assert made.status == "running"
        (tmp_path / "go").touch()
        assert finished(client, made.id).output == '{"done":true}'
    assert (tmp_path / "began").read_text() == "x"


def test_a_client_that_sends_its_request_again(host: Running, tmp_path: Path) -> None:
    """Finds what it has begun, though it had told that it would wait for longer: one run for three requests."""
    attempts: list[str] = []

    def sending(request: httpx.Request) -> None:
        attempts.append(request.headers["x-stainless-retry-count"])
        if len(attempts) == 2:
            (tmp_path / "go").touch()

    http = httpx.Client(trust_env=False, timeout=3.0, event_hooks={"request": [sending]})
    patient = {"x-stainless-read-timeout": "60"}
    with Kernel(
        api_key="k", base_url=host.url, http_client=http, timeout=3.0, _strict_response_validation=True
    ) as again:
        made = again.invocations.create(**work(tmp_path), extra_headers=patient)

    assert attempts[:2] == ["0", "1"]
    assert (made.status, made.output) == ("succeeded", '{"done":true}')
    assert (tmp_path / "began").read_text() == "x"


def test_many_clients_at_once(host: Running) -> None:
    """Each gets its own answer."""
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        with connect(host) as client:
            answers[number] = client.invocations.create(**ECHO, payload=str(number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert {number: json.loads(made.output or "")["data"] for number, made in answers.items()} == {
        number: number for number in range(16)
    }


def test_other_dialects_see_the_same_calls(host: Running, client: Kernel) -> None:
    """One core: our own pages, the metrics, and the calls that came by our own address."""
    made = client.invocations.create(**ECHO)
    ours = host.client.get(f"/calls/{made.id}").json()
    sent = host.client.post("/spaces/demo/functions/echo/async-invoke", json={"n": 2})
    theirs = finished(client, sent.headers["location"].rpartition("/")[2])
    metrics = host.client.get("/metrics").text

    assert (ours["trigger"], ours["status"], ours["function"]) == ("kernel", "succeeded", "echo")
    assert (theirs.status, theirs.payload) == ("succeeded", '{"n":2}')
    assert 'spaces_received_calls_total{via="kernel"}' in metrics


# Hosts of their own.


def test_who_may_what(site: Site) -> None:
    """Each space has its token; a wrong one is 401, another space's finds nothing."""
    for space in ("one", "two"):
        site.write(f"{space}/echo.py", "def handle(data):\n    return data\n")
    site.write(
        "spaces.toml",
        """
        [spaces.one]
        tokens = ["env:ONE", { token = "env:READER", scopes = ["read"] }]
        [spaces.two]
        tokens = ["env:TWO"]
        """,
    )
    keys = {"ONE": "first-secret-token", "TWO": "second-secret-token", "READER": "reading-secret-token"}
    host = site.start(env=keys)
    asked = {"app_name": "one", "action_name": "echo", "version": "latest", "payload": "1"}
    with connect(host, keys["ONE"]) as first, connect(host, keys["TWO"]) as second, connect(host, "wrong") as wrong:
        made = first.invocations.create(**asked)
        assert made.status == "succeeded"
        assert [app.app_name for app in first.apps.list()] == ["one"]
        assert [each.id for each in first.invocations.list()] == [made.id]
        assert list(second.invocations.list()) == []
        with pytest.raises(kernel.NotFoundError):
            second.invocations.create(**asked)
        for call in (second.invocations.retrieve, second.invocations.follow):
            with pytest.raises(kernel.NotFoundError):
                call(made.id)
        with pytest.raises(kernel.AuthenticationError) as refused:
            wrong.invocations.create(**asked)
        assert refused.value.body["code"] == "unauthorized"  # type: ignore[index]
        for read in (wrong.invocations.list, wrong.apps.list):
            with pytest.raises(kernel.AuthenticationError):
                read()
        with connect(host, keys["READER"]) as reader:
            assert reader.invocations.retrieve(made.id).output == "1"
            with pytest.raises(kernel.PermissionDeniedError):
                reader.invocations.create(**asked)
    assert "secret-token" not in host.log


def test_a_host_that_ends_between_two_questions(site: Site, tmp_path: Path) -> None:
    """What it had taken is known to the next one: what waited is run, what ran has failed, and says why."""
    site.write("demo/work.py", FILES["demo/work.py"])
    site.write("spaces.toml", "[spaces.demo]\nmax_workers = 1\n")
    host = site.start()
    with connect(host) as client:
        running = client.invocations.create(**work(tmp_path), async_=True)
        eventually((tmp_path / "began").exists, "its start")
        waiting = client.invocations.create(**work(tmp_path), async_=True)
    os.kill(host.process.pid, signal.SIGKILL)
    host.process.wait(PATIENCE)
    (tmp_path / "go").touch()

    with connect(site.start()) as client:
        cut, run = finished(client, running.id), finished(client, waiting.id)
        assert (cut.status, run.status) == ("failed", "succeeded")
        assert cut.status_reason
        assert [event.event for event in client.invocations.follow(running.id)][-1] == "invocation_state"


def test_a_stream_ends_with_its_host(site: Site, tmp_path: Path, engine: str) -> None:
    """With an event that says so, and not with a broken connection."""
    site.write("demo/work.py", FILES["demo/work.py"])
    host = site.start(engine=engine)
    told: list[Any] = []
    with connect(host) as client:
        made = client.invocations.create(**work(tmp_path), async_=True)
        for event in client.invocations.follow(made.id):
            told.append(event)
            if event.event == "log" and event.message == "began":
                host.process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()

    assert told[-1].event == "error"
    assert "ending" in told[-1].error.message


def test_an_action_that_takes_too_long(site: Site, tmp_path: Path) -> None:
    """Is stopped at its own limit, of which Kernel's least is ten seconds."""
    site.write("demo/patient.py", FILES["demo/patient.py"])
    with connect(site.start()) as client:
        arguments = {**work(tmp_path), "action_name": "patient"}
        made = client.invocations.create(**arguments, async_=True, async_timeout_seconds=10)
        record = eventually(lambda: (r := client.invocations.retrieve(made.id)).status == "failed" and r, "its end", 60)

    assert record.status_reason == "Invocation timed out after 10 seconds"


def test_too_many_at_once(site: Site, tmp_path: Path) -> None:
    """429, which the client tries again later."""
    site.write("demo/work.py", FILES["demo/work.py"])
    site.write("spaces.toml", "[spaces.demo]\nmax_workers = 1\nmax_queued = 1\n")
    with connect(site.start()) as client:
        client.invocations.create(**work(tmp_path), async_=True)
        client.invocations.create(**work(tmp_path), async_=True)
        with pytest.raises(kernel.RateLimitError) as full:
            client.invocations.create(**work(tmp_path), async_=True)
        (tmp_path / "go").touch()

    assert full.value.response.headers["retry-after"] == "10"
    assert full.value.body["code"] == "too_many_requests"  # type: ignore[index]
