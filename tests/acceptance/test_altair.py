"""Altair's own client, `iots`, unmodified: it fetches a token, calls, submits, and gives the token back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE, Site

PYTHON = Path(sys.prefix) / "iots" / "bin" / "python"  # made by the Makefile: it needs another pydantic than ours
SCRIPT = Path(__file__).with_name("iots_client.py")
ECHO = """
def handle(req):
    return {"body": {"method": req.method, "path": req.path, "query": dict(req.query), "text": req.body.decode(),
                     "credential": req.headers.get("authorization")}}
"""
GUARDED = """
[spaces.demo]
clients = [{ id = "device", secret = "env:DEVICE_SECRET" }]
"""
SECRET = "a-secret-of-some-length"

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="iots needs pydantic 1, which ends with 3.13")


def run(url: str, client: str, secret: str) -> dict[str, Any]:
    """What the client's user sees."""
    finished = subprocess.run(
        [PYTHON, SCRIPT, url, client, secret],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    said: dict[str, Any] = json.loads(finished.stdout)
    return said


@pytest.mark.parametrize("engine", ["hypercorn", "uvicorn"])
@pytest.mark.parametrize("guarded", [False, True])
def test_the_client_calls_functions(site: Site, engine: str, guarded: bool) -> None:
    """With a token it was given for its id and secret, which no function sees; open, any id and secret will do."""
    site.write("demo/echo.py", ECHO)
    if guarded:
        site.write("spaces.toml", GUARDED)
    host = site.start(engine=engine, env={"DEVICE_SECRET": SECRET})
    said = run(host.url, "device", SECRET)

    nothing = {"query": {}, "credential": None}
    asked = {"method": "GET", "path": "/stock/market", "query": {"company": "Google"}, "text": "", "credential": None}
    assert said["get"] == [200, "true", asked]
    assert said["post"] == [200, {"method": "POST", "path": "/", "text": '{"a": 1}', **nothing}]
    assert said["submit"] == [202, True]
    assert said["missing"] == [404, 404]
    assert said["revoked"] == (401 if guarded else 200)


def test_a_wrong_secret_gets_no_token(site: Site) -> None:
    """The client raises; the secret is in no log."""
    site.write("demo/echo.py", ECHO)
    site.write("spaces.toml", GUARDED)
    host = site.start(env={"DEVICE_SECRET": SECRET})
    finished = subprocess.run(
        [PYTHON, SCRIPT, host.url, "device", "another-secret-of-some-length"], capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip

    assert finished.returncode != 0
    assert "invalid_client" in finished.stderr
    assert "another-secret" not in host.log
