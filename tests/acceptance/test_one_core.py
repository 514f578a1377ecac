"""One core under four dialects: calls of one function that each of them, and the command line, can see and end."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually

COGNITE = "/api/v1/projects/main/functions"
MOOD = """
def handle(data):
    print("asked:", data)
    return {"good": 0.75, "bad": 0.25}
"""
WAITING = """
import time

def handle(data):
    print("it waits", flush=True)
    time.sleep(600)
"""


def listed(host: Running, *options: str) -> list[dict[str, Any]]:
    """What `spaces calls list` prints."""
    command = [sys.executable, "-m", "runtime", "calls", "list", "--root", str(host.root), "--json", *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)["calls"]
    return found


def number(host: Running, function: str) -> int:
    found: int = host.status(function)["id"]
    return found


@pytest.mark.parametrize("engine", ["hypercorn", "uvicorn"])
def test_a_call_is_a_call_by_whatever_it_came(site: Site, engine: str) -> None:
    """It is listed with what it came by, has printed what it printed, and is counted; all of them answer the same."""
    site.write("demo/mood.py", MOOD)
    host = site.start(engine=engine)
    client, answer = host.client, {"good": 0.75, "bad": 0.25}

    assert host.call("demo/mood", method="POST", json="x").json() == answer
    submitted = client.post("/spaces/demo/functions/mood/async-invoke", json="x").headers["x-call-id"]
    asked = {"app_name": "demo", "action_name": "mood", "version": "latest", "payload": '"x"'}
    kernel = client.post("/invocations", json=asked).json()
    assert json.loads(kernel["output"]) == answer
    called = f"{COGNITE}/{number(host, 'demo/mood')}"
    cognite = client.post(f"{called}/call", json={"data": {"a": 1}, "nonce": "one"}).json()["id"]
    response = f"{called}/calls/{cognite}/response"
    assert eventually(lambda: client.get(response).json().get("response"), "an answer") == answer
    assert client.post("/v1/functions/demo-mood/invoke", json={"data": "x"}).json()["labelName"] == "good"

    eventually(lambda: all(call["status"] == "succeeded" for call in listed(host)), "the end of all calls")
    by = {call["trigger"]: str(call["id"]) for call in listed(host)}
    assert by == {"http": submitted, "kernel": kernel["id"], "cognite": str(cognite), "nyckel": by["nyckel"]}
    assert {record["id"] for record in client.get("/invocations").json()} == set(by.values())
    for id in by.values():
        logs = client.get(f"/spaces/demo/functions/mood/calls/{id}/logs").json()["logs"]
        assert [line["text"].partition(":")[0] for line in logs] == ["asked"]
    metrics = client.get("/metrics").text
    for via, count in {"http": 2, "kernel": 1, "cognite": 1, "nyckel": 1}.items():
        assert f'spaces_received_calls_total{{via="{via}"}} {count}.0' in metrics


def test_a_call_can_be_ended_from_elsewhere(site: Site) -> None:
    """Made by Cognite's API, ended by Kernel's: its process stops, and both say so."""
    site.write("demo/waits.py", WAITING)
    host = site.start()
    called = f"{COGNITE}/{number(host, 'demo/waits')}"
    id = host.client.post(f"{called}/call", json={"data": {}, "nonce": "one"}).json()["id"]
    host.logged("it waits")
    ended = host.client.patch(f"/invocations/{id}", json={"status": "failed", "output": '"enough"'}).json()
    seen = host.client.get(f"{called}/calls/{id}").json()
    (call,) = listed(host)

    assert (ended["status"], ended["output"]) == ("failed", '"enough"')
    assert seen["status"] == "Failed"
    assert call["status"] == "cancelled"
