"""The token endpoint as clients use it: forms, Basic, JSON; its refusals in the words of RFC 6749."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtime import config
from runtime.authority import Authority
from tests.unit.dialects.standin import Edge, edge

pytestmark = pytest.mark.anyio

SECRET = "s3cret/of+the=client"
ADDRESSES = ["/oauth2/token", "/oauth/token", "/connect/token", "/nyckel.com/connect/token"]
FORM = {"grant_type": "client_credentials", "client_id": "ci", "client_secret": SECRET}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge with one client."""
    (tmp_path / "functions").mkdir()
    (tmp_path / "spaces.toml").write_text('[spaces.demo]\nclients = [{ id = "ci", secret = "env:SECRET" }]')
    async with edge() as site:
        site.host.config = config.load(tmp_path, environ={"SECRET": SECRET})
        site.host.authority = Authority(lambda: site.host.config, open=lambda: True)
        yield site


async def may(site: Edge, token: str) -> bool:
    """Whether the token is good."""
    headers = {"Authorization": f"Bearer {token}"}
    return (await site.client.get("/spaces/demo/functions/work/calls", headers=headers)).status_code == 200


def refused(answer: httpx2.Response, status: int, code: str) -> str:
    """Check a refusal; what it says."""
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), answer.text
    assert body["message"] == body["error_description"]
    assert answer.headers["cache-control"] == "no-store"
    assert SECRET not in answer.text
    assert "x-call-id" in answer.headers
    return str(body["message"])


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_token_is_issued(site: Edge, address: str) -> None:
    """At each address at which a vendor's client looks for it."""
    answer = await site.client.post(address, data={**FORM, "scope": "function read", "audience": "ignored"})

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert {**body, "access_token": ""} == {
        "access_token": "", "token_type": "Bearer", "expires_in": 3600, "scope": "read",
    }  # fmt: skip
    assert await may(site, body["access_token"])


@pytest.mark.parametrize("credentials", [f"ci:{SECRET}", "ci:s3cret%2Fof%2Bthe%3Dclient"])
async def test_with_http_basic(site: Edge, credentials: str) -> None:
    """As the RFC has it, and as most clients send it."""
    packed = base64.b64encode(credentials.encode()).decode()
    answer = await site.client.post(
        "/oauth2/token", data={"grant_type": "client_credentials"}, headers={"Authorization": f"Basic {packed}"}
    )

    assert answer.status_code == 200, answer.text


async def test_with_json(site: Edge) -> None:
    """Some clients do."""
    assert (await site.client.post("/oauth/token", json=FORM)).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"client_secret": ""}, 401, "invalid_client"),
        ({"client_id": ""}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "invalid_request"),
        ({"scope": ["read", "read"]}, 400, "invalid_request"),
    ],
)
async def test_what_is_refused(site: Edge, change: dict[str, Any], status: int, code: str) -> None:
    """With the code that clients look at."""
    answer = await site.client.post("/oauth2/token", data={**FORM, **change})

    refused(answer, status, code)
    assert answer.headers.get("www-authenticate") == ('Basic realm="spaces"' if status == 401 else None)


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic /w==", "Basic Y2k=", "Bearer x", "Digest a"])
async def test_what_is_no_basic(site: Edge, header: str) -> None:
    """It is as if there were no credentials."""
    form = {"grant_type": "client_credentials"}
    answer = await site.client.post("/oauth2/token", data=form, headers={"Authorization": header})

    refused(answer, 401, "invalid_client")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 400),
        (b"\xff=\xff&grant_type=a", "application/x-www-form-urlencoded", 400),
        (b"a=%ff", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a%d=1" % n for n in range(99)), "application/x-www-form-urlencoded", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"grant_type": 5}', "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"\0" * 70_000, "application/json", 413),
        (b"grant_type=" + b"a" * 70_000, "application/x-www-form-urlencoded", 413),
    ],
)
async def test_rubbish(site: Edge, body: bytes, kind: str, status: int) -> None:
    """It is told in the same shape."""
    answer = await site.client.post("/connect/token", content=body, headers={"Content-Type": kind})

    refused(answer, status, "invalid_request")


@pytest.mark.parametrize("address", [*ADDRESSES, "/oauth2/revoke"])
async def test_only_post(site: Edge, address: str) -> None:
    """A secret does not belong into a URL."""
    answer = await site.client.get(address, params=FORM)

    refused(answer, 405, "invalid_request")
    assert answer.headers["allow"] == "POST"


async def test_a_token_is_revoked(site: Edge) -> None:
    """With whatever else the client sends; twice is no mistake."""
    token = (await site.client.post("/oauth2/token", data=FORM)).json()["access_token"]
    assert await may(site, token)

    for _ in range(2):
        fields = {"token": token, "client_id": "ci", "client_secret": SECRET}
        answer = await site.client.post("/oauth2/revoke", data=fields)
        assert (answer.status_code, answer.json()) == (200, {})

    assert not await may(site, token)


async def test_what_cannot_be_revoked(site: Edge) -> None:
    """What is no token of ours is none afterwards either; a request without one is malformed."""
    assert (await site.client.post("/oauth2/revoke", data={"token": "rubbish"})).json() == {}
    refused(await site.client.post("/oauth2/revoke", data={"client_id": "ci"}), 400, "invalid_request")


async def test_a_disk_that_is_full(site: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is to try again: after a restart the token might be good."""
    token = (await site.client.post("/oauth2/token", data=FORM)).json()["access_token"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = await site.client.post("/oauth2/revoke", data={"token": token})

    refused(answer, 503, "temporarily_unavailable")
    assert not await may(site, token)


async def test_no_secret_is_logged(site: Edge, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where all is well nor where it is not."""
    caplog.set_level(logging.DEBUG)
    token = (await site.client.post("/oauth2/token", data=FORM)).json()["access_token"]
    await site.client.post("/oauth2/token", data={**FORM, "client_id": "other"})
    await site.client.post("/oauth2/revoke", data={"token": token})

    assert SECRET not in caplog.text
    assert token not in caplog.text
