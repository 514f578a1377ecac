"""Handlers of other platforms, unchanged, on the real command: with the packages that they import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, error_of
from tests.acceptance.space import Space

VENDORS = Path(__file__).parent.parent / "functions" / "vendors"
SETTINGS = '[spaces.vendors]\nsecrets = { greeting = "good day" }\n'
EVENT = {"ce-id": "1", "ce-source": "disk", "ce-type": "stored", "ce-specversion": "1.0", "ce-subject": "a.txt"}


def write_vendors(site: Site) -> None:
    """The files in tests/functions/vendors, and their settings."""
    shutil.copytree(VENDORS, site.root / "functions" / "vendors")
    site.write("spaces.toml", SETTINGS)


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """A host that serves them."""
    write_vendors(shared_site)
    return shared_site.start("serve")


def test_they_are_listed_with_what_they_take(host: Running) -> None:
    """Each under the name that it has on its platform, with kind and parameters as the file says."""
    listed = host.client.get("/spaces/vendors/functions").json()["functions"]

    assert {each["name"]: (each["kind"], each["takes"]) for each in listed} == {
        "assets": ("sync", ["client", "data", "secrets", "function_call_info"]),
        "fail": ("sync", ["ctx", "payload"]),
        "google": ("sync", ["request"]),
        "greet": ("sync", ["greeting"]),
        "orders": ("sync", ["event", "context"]),
        "picture": ("sync", ["request"]),
        "ping-back": ("sync", ["ctx"]),
        "stored": ("sync", ["event"]),
        "summarise": ("async", ["ctx", "payload"]),
        "thing": ("sync", ["req"]),
    }
    files = {each["name"]: each["file"] for each in listed}
    assert files["summarise"] == files["fail"] == "functions/vendors/agents.py"


def test_they_can_be_checked_without_a_host(site: Site) -> None:
    """`spaces check` imports every one; `spaces list` shows them."""
    write_vendors(site)
    for command, said in (("check", "10 functions, 0 with a problem"), ("list", "vendors/summarise")):
        run = [sys.executable, "-m", "runtime", command, str(site.root)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout


def test_kernel_actions(host: Running) -> None:
    """Sync and async, with a payload and without; whatever is returned is the output, as JSON."""
    answer = host.call("vendors/summarise", method="POST", json={"topic": "tea"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    output = answer.json()
    assert output.pop("invocation").isdigit()
    assert output == {"payload": {"topic": "tea"}, "status_code": 404}
    assert host.call("vendors/summarise", method="POST").json()["payload"] is None
    assert host.call("vendors/ping-back", method="POST", json=1).json() == "pong"
    assert host.logged("asked about {'topic': 'tea'}")


def test_a_kernel_action_that_raises(host: Running) -> None:
    """Its error is that of any function, with the line of the app file."""
    error = error_of(host.call("vendors/fail", method="POST", json={"topic": "tea"}))
    line = (VENDORS / "agents.py").read_text().split("\n").index("    raise ValueError(f\"no {payload['topic']}\")") + 1
    assert error["code"] == "function_error"
    assert error["message"] == f"ValueError at line {line}: no tea"
    refused = host.call("vendors/fail", method="POST", content=b"{")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "bad_json")


def test_a_cognite_handler(host: Running) -> None:
    """It gets a client that speaks to this host, and the numbers of the call."""
    found = host.call("vendors/assets", method="POST", json={"x": 1}).json()
    assert found.pop("call") > 0
    assert found == {
        "client": "CogniteClient",
        "base_url": host.url,
        "project": "spaces",
        "data": {"x": 1},
        "secrets": ["greeting"],
        "function": host.status("vendors/assets")["id"],
        "schedule": None,
    }


def test_a_lambda_handler(host: Running) -> None:
    """Answers with a status, without one, and in base64."""
    answer = host.call("vendors/orders", "/orders", "POST", json={"id": 7})
    assert (answer.status_code, answer.headers["location"]) == (201, "/orders/7")
    assert answer.headers.get_list("set-cookie") == ["seen=1", "last=2"]
    assert answer.json() == {"method": "POST", "left": True}
    host.client.cookies.clear()
    inferred = host.call("vendors/orders", "/inferred?id=3").json()
    assert inferred["order"] == "3"
    assert inferred["request"].isdigit()
    image = host.call("vendors/orders", "/image")
    assert (image.headers["content-type"], image.content) == ("image/png", b"\xff\x00")
    assert error_of(host.call("vendors/orders", "/orders"))["code"] == "function_error"


def test_functions_framework_http(host: Running) -> None:
    """A Flask request and Flask's answers, its own errors among them."""
    answer = host.call("vendors/google", "/a%20b//c?name=x", "PUT", json=[1])
    assert answer.json() == {"method": "PUT", "path": "/a b//c", "name": "x", "json": [1]}
    assert host.call("vendors/google", "/teapot").status_code == 418
    assert host.call("vendors/google", "/", "POST", content=b"{").status_code == 415
    lines = host.call("vendors/google", "/lines")
    assert (lines.status_code, lines.text, lines.headers["x-kind"]) == (202, "0\n1\n2\n", "stream")
    assert host.call("vendors/picture").text == "got"


def test_functions_framework_typed(host: Running) -> None:
    """The body becomes the annotated type, and the result what its to_dict says."""
    assert host.call("vendors/greet", method="POST", json={"name": "you"}).json() == {"hello": "you"}
    assert error_of(host.call("vendors/greet", method="POST", content=b"{"))["code"] == "bad_json"


def test_functions_framework_cloud_event(host: Running) -> None:
    """In the headers or in the body; what is no event is refused."""
    assert host.call("vendors/stored", method="POST", headers=EVENT, json={"size": 3}).text == "OK"
    assert host.logged("stored a.txt {'size': 3}")
    event = {name.removeprefix("ce-"): value for name, value in EVENT.items()} | {"data": [1]}
    headers = {"content-type": "application/cloudevents+json"}
    assert host.call("vendors/stored", method="POST", headers=headers, json=event).text == "OK"
    refused = host.call("vendors/stored", method="POST", json={"size": 3})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "bad_event")


def test_an_altair_handler(host: Running) -> None:
    """Its `variables` are the secrets, and its answers mean what they mean there."""
    page = host.call("vendors/thing")
    assert (page.text, page.headers["content-type"]) == ("<p>good day</p>", "text/html; charset=utf-8")
    answer = host.call("vendors/thing", "/a/b", "POST")
    assert (answer.status_code, answer.json(), answer.headers["x-a"]) == (201, {"path": "/a/b", "known": False}, "1")


APP = """
import kernel
app = kernel.App("shop")

@app.action("buy")
def buy(ctx): return {version}
"""
SELL = """
@app.action("sell")
def sell(ctx): return {version}
"""


def test_an_app_file_reloads_all_its_actions(host: Running) -> None:
    """An edit changes every one; those that are new are served, those that are gone are not."""
    space = Space(host)
    space.copy({"shop.py": (APP + SELL).format(version=1)})
    space.comes_to_serve(1, "buy")
    space.serves(1, "sell")
    space.write("shop.py", (APP + SELL).format(version=2))
    space.serves(2, "buy")
    space.serves(2, "sell")
    space.write("shop.py", APP.format(version=3))
    space.serves(3, "buy")
    space.refuses(404, "sell")
    space.write("shop.py", (APP + SELL).format(version=4))
    space.comes_to_serve(4, "sell")


def test_a_broken_app_file_goes_on_serving(host: Running) -> None:
    """All actions stay as they were, and say what is wrong; so does one that was never called."""
    space = Space(host)
    space.copy({"shop.py": (APP + SELL).format(version=1)})
    space.comes_to_serve(1, "buy")
    space.write("shop.py", APP.format(version=2) + "\n@app.action('sell'\ndef sell(ctx): ...\n")
    assert "SyntaxError" in space.load_error("buy")["message"]
    space.serves(1, "buy")
    refused = space.refuses(503, "sell")
    assert "SyntaxError" in error_of(refused)["message"]
    space.write("shop.py", (APP + SELL).format(version=3))
    space.serves(3, "buy")
    space.comes_to_serve(3, "sell")
