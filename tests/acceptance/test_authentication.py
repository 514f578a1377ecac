"""Every address of every dialect, asked without a token, with a wrong one, another space's, and the right one.

The addresses are those that the application has mounted, so that a new one cannot be forgotten: if the tables below do
not know how to ask for it, a test fails and says so.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest

from runtime import config
from runtime.app import App
from runtime.dialects import DIALECTS, dialect_of
from runtime.errors import Unauthorized
from runtime.host import Host
from tests.acceptance.conftest import PATIENCE, Running, Site, error_of, eventually

ADMIN, HIDDEN, STRANGER, LOOKER = (
    "admin-token-of-all",
    "token-of-the-hidden",
    "token-of-elsewhere",
    "token-to-look-at-it",
)
TOKENS = {"ADMIN": ADMIN, "HIDDEN": HIDDEN, "STRANGER": STRANGER, "LOOKER": LOOKER, "SECRET": "secret-of-a-client"}
CONFIGURATION = """
[server]
tokens = ["env:ADMIN"]
[spaces.hidden]
tokens = ["env:HIDDEN", { token = "env:LOOKER", scopes = ["read"] }]
clients = [{ id = "ci", secret = "env:SECRET" }]
[spaces.hidden.functions.open]
public = true
[spaces.elsewhere]
tokens = ["env:STRANGER"]
"""
ECHO = """
import os
def handle(function_call_info):
    print("Authorization:", function_call_info.headers.get("authorization"))
    return {"credential": function_call_info.headers.get("authorization"), "environment": dict(os.environ)}
"""

SECRETIVE = """
def handle(data):
    return "red"
"""

# Who asks these needs no token: they tell of the host's health, or take credentials of another kind.
FREE = {"/healthz", "/readyz", "/oauth2/token", "/oauth/token", "/connect/token", "/oauth2/revoke"}
FREE |= {"/nyckel.com/connect/token"}
# These are found without the router.
UNROUTED = [("/spaces/{space}/functions/{name}/invoke/a/b", "GET"), ("/spaces/{space}/functions/{name}/invoke", "POST"),
            ("/spaces/{space}/functions/{name}/async-invoke", "POST")]  # fmt: skip


class Address(NamedTuple):
    """Something that can be asked for, with its place-holders."""

    method: str
    path: str

    @property
    def dialect(self) -> str:
        """By its name."""
        return dialect_of(self.path).NAME


def addresses() -> list[Address]:
    """All that the application answers."""
    root = Path(__file__).parents[2]

    async def mounted() -> list[Any]:
        return list(App(Host(config.load(root), durable=True))._router.routes)

    found = [(route.path, method) for route in anyio.run(mounted) for method in route.methods or ()]
    return sorted({Address(method, path) for path, method in [*found, *UNROUTED] if path not in FREE})


ADDRESSES = addresses()


class Guarded:
    """A host whose spaces are guarded, and what is in the hidden one: a function, and a call that has ended."""

    def __init__(self, host: Running) -> None:
        self.host = host
        self.function = host.client.get("/spaces/hidden/functions/secretive", headers=_bearer(ADMIN)).json()["id"]
        at = "/spaces/hidden/functions/secretive"
        accepted = host.client.post(f"{at}/async-invoke", headers=_bearer(HIDDEN), content=b"{}")
        self.call = int(accepted.headers["location"].rpartition("/")[2])
        result = host.client.get(f"{at}/calls/{self.call}/result?wait=20", headers=_bearer(HIDDEN))
        assert result.status_code == 200, result.text

    def ask(self, address: Address, token: str | None, headers: dict[str, str] | None = None) -> httpx2.Response:
        """Ask for the function, or the call."""
        path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: self._value(address, found[1]), address.path)
        headers = headers or (_bearer(token) if token is not None else {})
        body = self._body(address)
        content = json.dumps(body).encode() if address.method in ("POST", "PUT", "PATCH") else b""
        return self.host.client.request(
            address.method, path, headers={**headers, "Content-Type": "application/json"}, content=content
        )

    def _value(self, address: Address, name: str) -> str:
        values: dict[str, Any] = {
            "space": "hidden", "name": "secretive", "id": self.call, "call": self.call, "project": "main",
            "function": self.function, "schedule": 1, "sample": "s", "label": "l", "field": "f",
        }  # fmt: skip
        assert name in values, f"{address}: say what stands for {{{name}}} in tests/acceptance/test_authentication.py"
        if address.dialect == "nyckel" and name == "function":
            return f"function_{_base36(self.function):0>16}"
        return str(values[name])

    def _body(self, address: Address) -> Any:
        """One that means the hidden function or its call, where the address does not name it."""
        path = address.path
        if path == "/invocations":
            return {"app_name": "hidden", "action_name": "secretive", "version": "latest"}
        if path.endswith("/calls/byids"):
            return {"items": [{"id": self.call}]}
        if path.endswith(("/functions/byids", "/functions/delete")):
            return {"items": [{"id": self.function}]}
        if path.endswith("/functions/schedules"):
            cron = {"name": "s", "cronExpression": "0 0 1 1 *", "data": {}, "nonce": "n"}
            return {"items": [{**cron, "functionId": self.function}]}
        if path.endswith("/sessions"):
            return {"items": [{"tokenExchange": True}]}
        if path.endswith("/invoke") and address.dialect == "nyckel":
            return {"data": "text"}
        return {}

    def calls(self) -> int:
        """How many there are in the hidden space."""
        listed = self.host.client.get("/calls?space=hidden", headers=_bearer(ADMIN)).json()["calls"]
        return len(listed)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, rest = divmod(number, 36)
        text = digits[rest] + text
    return text


@pytest.fixture(scope="module")
def guarded(shared_site: Site, each_engine: str) -> Iterator[Guarded]:
    """One host for all addresses."""
    shared_site.write("spaces.toml", CONFIGURATION)
    shared_site.write("hidden/secretive.py", SECRETIVE)
    for place in ("hidden/mirror", "hidden/open", "elsewhere/known"):
        shared_site.write(f"{place}.py", ECHO)
    host = shared_site.start(engine=each_engine, env=TOKENS)
    yield Guarded(host)
    host.stop()


def shape(value: Any) -> Any:
    """Which keys a JSON value has, without what stands there."""
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value).__name__


def refused(answer: httpx2.Response, address: Address) -> None:
    """Check that it is a 401 as the address's dialect words it, and that it tells nothing."""
    assert answer.status_code == 401, f"{address}: {answer.status_code} {answer.text}"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    if address.method == "HEAD":
        return
    error = Unauthorized()
    status, _, body = dialect_of(address.path).to_error(error, False)
    assert (status, shape(json.loads(body))) == (401, shape(answer.json())), f"{address}: {answer.text}"
    tells_nothing(answer, address)


def tells_nothing(answer: httpx2.Response, address: Address) -> None:
    """Nothing of the hidden space is in it, but for what the address itself says."""
    asked = f"{answer.request.url} {answer.request.content.decode()}"
    for hidden in ("hidden", "secretive", "credential", *TOKENS.values()):
        assert hidden in asked or hidden not in answer.text, f"{address}: {answer.text}"


def test_all_dialects_are_asked() -> None:
    """The table is no empty one."""
    assert {dialect.NAME for dialect in DIALECTS} - {"oauth"} <= {address.dialect for address in ADDRESSES}
    assert Address("DELETE", "/spaces/{space}/functions/{name}/calls/{id}") in ADDRESSES


@pytest.mark.parametrize(
    "credential",
    [None, "Bearer", "Basic aGlkZGVuOmhpZGRlbg==", HIDDEN, "Bearer wrong", f"Bearer {HIDDEN[:-1]}",
     f"Bearer {HIDDEN} {HIDDEN}", "Bearer eyJhbGciOiJub25lIn0.e30.", f"Bearer {'x' * 20_000}"],
)  # fmt: skip
def test_without_a_good_token_nothing_is_answered(guarded: Guarded, credential: str | None) -> None:
    """401, in each dialect's own shape, before anything is done."""
    before = guarded.calls()
    headers = {"Authorization": credential} if credential is not None else {}
    for address in ADDRESSES:
        refused(guarded.ask(address, None, headers), address)

    assert guarded.calls() == before


def test_another_spaces_token_opens_nothing(guarded: Guarded) -> None:
    """403 where the address names the space; elsewhere it is as if there were nothing there."""
    before = guarded.calls()
    for address in ADDRESSES:
        answer = guarded.ask(address, STRANGER)
        if "{space}" in address.path or address.path == "/metrics":
            assert answer.status_code == 403, f"{address}: {answer.text}"
        elif "{" in address.path.replace("{project}", "") and answer.is_success:
            pytest.fail(f"{address} answers {answer.status_code} with another space's token: {answer.text}")
        tells_nothing(answer, address)
        assert answer.status_code not in (401, 500), f"{address}: {answer.text}"

    assert guarded.calls() == before


def test_a_token_that_may_only_look_changes_nothing(guarded: Guarded) -> None:
    """Where a function can be run, and wherever something would be changed."""
    before = guarded.calls()
    at = "/spaces/{space}/functions/{name}"
    for address in ADDRESSES:
        answer = guarded.ask(address, LOOKER)
        changes = address.method in ("DELETE", "PUT", "PATCH")
        runs = address.path.endswith(("/invoke", "/invoke/a/b", "/async-invoke", "/rerun", "/redeliver", "/call"))
        if (changes and not address.path.endswith("/browsers")) or runs:
            assert answer.status_code in (400, 403, 404, 501), f"{address}: {answer.status_code} {answer.text}"
        assert answer.status_code not in (401, 500), f"{address}: {answer.text}"
    assert guarded.ask(Address("GET", at), LOOKER).status_code == 200

    assert guarded.calls() == before


@pytest.mark.parametrize("token", [HIDDEN, ADMIN])
def test_the_right_token_is_let_in(guarded: Guarded, token: str) -> None:
    """Whatever else may be wrong with the request."""
    nowhere = {"/metrics", "/v1/functions", "/v0.9/functions", "/v1/projects", "/v0.9/projects"}
    for address in ADDRESSES:
        if address.method in ("DELETE", "PUT"):
            continue
        allowed = token == ADMIN or address.path.removeprefix("/nyckel.com") not in nowhere
        answer = guarded.ask(address, token)
        if allowed:
            assert answer.status_code not in (401, 403), f"{address}: {answer.status_code} {answer.text}"
        assert answer.status_code != 500, f"{address}: {answer.text}"


# What the token is seen by.


def test_the_credential_reaches_neither_handler_nor_journal_nor_log(guarded: Guarded) -> None:
    """Whichever way the function is called."""
    client, at = guarded.host.client, "/spaces/hidden/functions"
    issued = client.post(
        "/oauth2/token",
        data={"grant_type": "client_credentials", "client_id": "ci", "client_secret": TOKENS["SECRET"]},
    ).json()["access_token"]
    seen = []
    for token in (ADMIN, HIDDEN, issued):
        for name in ("mirror", "open"):
            seen.append(client.post(f"{at}/{name}/invoke", headers=_bearer(token)).text)
            accepted = client.post(f"{at}/{name}/async-invoke", headers=_bearer(token))
            seen.append(client.get(f"{accepted.headers['location']}/result?wait=20", headers=_bearer(token)).text)
    journal = b"".join(file.read_bytes() for file in guarded.host.root.glob(".spaces/journal.db*"))

    for token in (*TOKENS.values(), issued):
        assert not [text for text in seen if token in text]
        assert token not in guarded.host.log
        assert token.encode() not in journal
    assert {json.loads(text)["credential"] for text in seen} == {None}


def test_a_public_function_sees_what_others_send_it(guarded: Guarded) -> None:
    """It may check that by itself; the host does not."""
    answer = guarded.host.client.get("/spaces/hidden/functions/open/invoke", headers=_bearer("of-its-own"))

    assert answer.json()["credential"] == "Bearer of-its-own"
    assert guarded.host.client.get("/spaces/hidden/functions/open/invoke").json()["credential"] is None


def test_a_function_has_a_token_of_its_own(guarded: Guarded) -> None:
    """Good in its own space, and nowhere else."""
    client = guarded.host.client
    environment = client.get("/spaces/hidden/functions/open/invoke").json()["environment"]
    own = _bearer(environment["SPACES_TOKEN"])

    assert environment["SPACES_URL"] == guarded.host.url
    assert client.get("/spaces/hidden/functions/mirror/invoke", headers=own).status_code == 200
    assert client.get("/spaces/elsewhere/functions/known/invoke", headers=own).status_code == 403
    assert client.get("/metrics", headers=own).status_code == 403


# Changes and restarts.


def test_a_token_ends_when_the_configuration_says_so(site: Site) -> None:
    """While the host runs, without a restart; a new one begins."""
    site.write("spaces.toml", '[spaces.demo]\ntokens = ["file:one"]')
    site.write("demo/echo.py", ECHO)
    (site.root / "one").write_text("the-first-of-the-tokens")
    (site.root / "two").write_text("the-second-of-the-tokens")
    host = site.start()

    def status(token: str) -> int:
        return host.call("demo/echo", headers=_bearer(token)).status_code

    assert [status("the-first-of-the-tokens"), status("the-second-of-the-tokens")] == [200, 401]
    site.write("spaces.toml", '[spaces.demo]\ntokens = ["file:two"]')

    eventually(lambda: status("the-second-of-the-tokens") == 200, "the new token is good")
    assert status("the-first-of-the-tokens") == 401


def test_issued_tokens_and_revocations_outlive_the_host(site: Site) -> None:
    """The key and what was revoked are in the state folder."""
    site.write("spaces.toml", '[spaces.demo]\nclients = [{ id = "ci", secret = "env:SECRET" }]')
    site.write("demo/echo.py", ECHO)
    host = site.start(env=TOKENS)
    form = {"grant_type": "client_credentials", "client_id": "ci", "client_secret": TOKENS["SECRET"]}
    kept, ended = (host.client.post("/oauth2/token", data=form).json()["access_token"] for _ in range(2))
    assert host.client.post("/oauth2/revoke", data={"token": ended}).status_code == 200
    host.stop()

    host = site.start(env=TOKENS)

    assert host.call("demo/echo", headers=_bearer(kept)).status_code == 200
    assert host.call("demo/echo", headers=_bearer(ended)).status_code == 401


def test_with_tokens_a_host_may_be_reached(site: Site) -> None:
    """Beyond loopback; a space that has none is closed there, unless the host is open."""
    site.write("spaces.toml", '[spaces.demo]\ntokens = ["env:HIDDEN"]')
    for space in ("demo", "plain"):
        site.write(f"{space}/echo.py", ECHO)
    for options, expected in (((), [401, 200, 401, 403]), (("--open",), [401, 200, 200, 200])):
        host = site.start("serve", "--bind", "0.0.0.0:0", *options, env=TOKENS)
        url = host.url.replace("0.0.0.0", "127.0.0.1")
        found = [
            httpx2.get(f"{url}{host.path(f'{space}/echo')}", headers=headers, timeout=PATIENCE).status_code
            for space in ("demo", "plain")
            for headers in ({}, _bearer(HIDDEN))
        ]
        assert found == expected
        host.stop()


@pytest.mark.parametrize("text", ['tokens = ["literally-in-the-file"]', 'tokens = ["env:MISSING"]'])
def test_a_token_that_is_wrong_keeps_the_host_from_starting(site: Site, text: str) -> None:
    """With its line, and without the token."""
    site.write("spaces.toml", f"[server]\n{text}")
    ended = subprocess.run(
        [sys.executable, "-m", "runtime", "serve", site.root], capture_output=True, text=True, timeout=PATIENCE
    )

    assert ended.returncode == 2
    assert "spaces.toml:2: `tokens` in [server]" in ended.stderr
    assert "literally" not in ended.stderr


# The command line.


def spaces(*arguments: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """A command, with the tokens of the configuration and these variables in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE,
        env={**TOKENS, "PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip


def test_the_command_line_is_let_in(site: Site) -> None:
    """By the key of the state folder, by a token, and where no host serves; not by nothing."""
    site.write("spaces.toml", CONFIGURATION)
    site.write("hidden/secretive.py", ECHO)
    host = site.start(env=TOKENS)
    at = "/spaces/hidden/functions/secretive/async-invoke"
    number = host.client.post(at, headers=_bearer(HIDDEN)).headers["location"].rpartition("/")[2]

    shown = spaces("calls", "show", number, "--follow", "--root", site.root)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert number in shown.stdout
    assert number in spaces("calls", "list", "--root", site.root).stdout
    assert "Authorization: None" in spaces("logs", "--root", site.root).stdout
    for arguments, env in (((), {}), (("--token", "wrong"), {}), ((), {"SPACES_TOKEN": STRANGER})):
        refused = spaces("calls", "list", "hidden", "--url", host.url, *arguments, **env)
        assert refused.returncode == 1
        assert refused.stderr.startswith("spaces: ")
        assert "wrong" not in refused.stderr
    for arguments, env in ((("--token", HIDDEN), {}), ((), {"SPACES_TOKEN": HIDDEN})):
        assert number in spaces("calls", "list", "hidden", "--url", host.url, *arguments, **env).stdout
    host.stop()
    listed = spaces("calls", "list", "hidden", "--root", site.root)
    assert number in listed.stdout, listed.stderr


def test_the_command_line_needs_no_secrets_of_the_service(site: Site) -> None:
    """They are in the environment of the service alone; the key in the state folder is enough."""
    site.write("spaces.toml", CONFIGURATION)
    site.write("hidden/secretive.py", ECHO)
    host = site.start(env=TOKENS)
    at = "/spaces/hidden/functions/secretive/async-invoke"
    number = host.client.post(at, headers=_bearer(HIDDEN)).headers["location"].rpartition("/")[2]

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "runtime", *arguments]
        done = subprocess.run(
            command, cwd=site.root, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert number in run("calls", "show", number, "--follow")
    assert number in run("calls", "list")
    assert "hidden/secretive" in run("list")
    host.stop()
    assert number in run("calls", "list")
    assert "Authorization: None" in run("logs")


def test_an_open_host_takes_any_token(site: Site) -> None:
    """On loopback, with nothing configured: the endpoint gives one to everybody, and all are good."""
    site.write("demo/echo.py", ECHO)
    host = site.start()
    form = {"grant_type": "client_credentials", "client_id": "any", "client_secret": "any"}
    issued = host.client.post("/oauth2/token", data=form).json()["access_token"]

    for token in (issued, "anything"):
        answer = host.call("demo/echo", headers=_bearer(token))
        assert answer.status_code == 200
        assert answer.json()["credential"] == (None if token == issued else "Bearer anything")
    missing = host.client.get("/spaces/demo/functions/none", headers=_bearer("anything"))
    assert error_of(missing)["code"] == "not_found"
