"""Our own dialect asks who calls: of every address, and what reaches the function of the credential."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtime import config
from runtime.authority import Authority
from tests.unit.dialects.standin import AT, SUBMIT, Edge, edge

pytestmark = pytest.mark.anyio

ALL, OTHER, ONE, LOOK = "token-for-everything", "token-for-another-space", "token-for-work-only", "token-to-look-at-it"
COMMA = "token,with,commas"
ENVIRON = {"ALL": ALL, "OTHER": OTHER, "ONE": ONE, "LOOK": LOOK, "COMMA": COMMA}
GUARDED = """
[server]
tokens = ["env:ALL"]
[spaces.demo]
tokens = [
    { token = "env:ONE", functions = ["work"] },
    { token = "env:LOOK", scopes = ["read"] },
]
[spaces.demo.functions.page]
public = true
[spaces.other]
tokens = ["env:OTHER", "env:LOOK"]
"""
MIXED = GUARDED.replace('[server]\ntokens = ["env:ALL"]', "")


class Site:
    """An edge whose configuration may change."""

    def __init__(self, edge: Edge, root: Path) -> None:
        self.edge = edge
        self._root = root
        (root / "functions").mkdir()
        edge.host.add("page")
        edge.host.authority = Authority(lambda: edge.host.config, open=lambda: True)
        self.configure(GUARDED)

    def configure(self, text: str) -> None:
        """Another spaces.toml."""
        (self._root / "spaces.toml").write_text(text)
        self.edge.host.config = config.load(self._root, environ=ENVIRON)

    async def ask(self, method: str, path: str, token: str | None, **arguments: Any) -> httpx2.Response:
        """The answer to this request with this token."""
        headers = {**arguments.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return await self.edge.client.request(method, path, headers=headers, **arguments)

    async def accepted(self, at: str = SUBMIT) -> int:
        """A call that was submitted; its number."""
        answer = await self.ask("POST", at, ALL, content=b"{}")
        assert answer.status_code == 202
        return int(answer.headers["location"].rpartition("/")[2])

    async def status(self, method: str, path: str, token: str | None) -> int:
        """Only its status."""
        return (await self.ask(method, path, token)).status_code

    @property
    def stored(self) -> bytes:
        """The headers of the call that was submitted last."""
        return self.edge.last.call.headers


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with edge() as edge_:
        yield Site(edge_, tmp_path)


async def test_a_refusal_in_its_own_shape(site: Site) -> None:
    """What is missing or wrong, and what the token lacks."""
    for token, status, code, message, challenge in (
        (None, 401, "unauthorized", "No token provided", "Bearer"),
        ("wrong", 401, "unauthorized", "Unauthenticated", 'Bearer error="invalid_token"'),
        (OTHER, 403, "forbidden", "Unauthorized", 'Bearer error="insufficient_scope"'),
    ):
        answer = await site.ask("POST", SUBMIT, token, content=b"{}")
        error = answer.json()["error"]
        assert (answer.status_code, error["status"], error["code"]) == (status, status, code)
        assert error["message"].startswith(message)
        assert answer.headers["www-authenticate"] == challenge
        assert "x-invoked" not in answer.headers
        assert not token or token not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", SUBMIT, "invoke"), ("GET", f"{AT}/invoke", "invoke"), ("GET", AT, "read"),
        ("GET", f"{AT}/calls", "read"), ("GET", f"{AT}/calls/ID", "read"), ("DELETE", f"{AT}/calls/ID", "invoke"),
        ("GET", f"{AT}/calls/ID/result", "read"), ("GET", f"{AT}/calls/ID/logs", "read"),
        ("POST", f"{AT}/calls/ID/rerun", "invoke"), ("POST", f"{AT}/calls/ID/redeliver", "invoke"),
    ],
)  # fmt: skip
async def test_what_each_address_needs(site: Site, method: str, path: str, scope: str) -> None:
    """A token for the function, with the scope; and nobody learns what there is."""
    path = path.replace("ID", str(await site.accepted()))
    unknown = path.replace("/work", "/none")

    assert [await site.status(method, path, token) for token in (None, "wrong", OTHER)] == [401, 401, 403]
    assert [await site.status(method, unknown, token) for token in (None, "wrong", OTHER)] == [401, 401, 403]
    assert (await site.status(method, path, LOOK) == 403) == (scope == "invoke")
    assert await site.status(method, unknown, ONE) == 403
    assert await site.status(method, unknown, ALL) == 404
    if not path.endswith("/invoke"):  # which the stand-in does not do
        assert await site.status(method, path, ONE) in (200, 202, 409)


@pytest.mark.parametrize("text", [GUARDED, MIXED])
async def test_public_is_for_calls_alone(site: Site, text: str) -> None:
    """Whoever may make them may not look at, stop or repeat those of others."""
    site.configure(text)
    at = "/spaces/demo/functions/page"
    assert (await site.ask("POST", f"{at}/async-invoke", None)).status_code == 202
    [number] = site.edge.journal.submissions

    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/rerun"), ("POST", "/redeliver"), ("GET", "/result")):
        assert await site.status(method, f"{at}/calls/{number}{rest}", None) == 401
    assert await site.status("GET", at, None) == 401


async def test_what_is_listed(site: Site) -> None:
    """What may be read, and no more."""
    site.edge.host.registry = type(site.edge.host.registry)(("demo", "other"), site.edge.host.registry.functions)

    async def spaces(token: str | None) -> dict[str, int]:
        found = (await site.ask("GET", "/spaces", token)).json()["spaces"]
        return {space["name"]: space["functions"] for space in found}

    assert await site.status("GET", "/spaces", None) == 401
    assert await spaces(ALL) == await spaces(LOOK) == {"demo": 2, "other": 0}
    assert await spaces(ONE) == {"demo": 1}
    assert await spaces(OTHER) == {"other": 0}
    functions = (await site.ask("GET", "/spaces/demo/functions", ONE)).json()["functions"]
    assert [function["name"] for function in functions] == ["work"]
    statuses = [await site.status("GET", "/spaces/demo/functions", token) for token in (None, "wrong", OTHER, LOOK)]
    assert statuses == [401, 401, 403, 200]
    site.configure(MIXED.replace("[spaces.other]", "[spaces.third]"))
    assert await spaces(None) == {"other": 0}


async def test_calls_of_all_spaces(site: Site) -> None:
    """Who may read one alone is shown that one, who may read several is to say which."""
    site.edge.host.registry = type(site.edge.host.registry)(("demo", "other"), site.edge.host.registry.functions)
    await site.accepted()

    statuses = {
        (token, query): await site.status("GET", f"/calls{query}", token)
        for token in (None, "wrong", ALL, OTHER, LOOK, ONE)
        for query in ("", "?space=demo", "?space=demo&function=work", "?space=demo&function=page")
    }

    assert {status for (token, _), status in statuses.items() if token in (None, "wrong")} == {401}
    assert [statuses[ALL, query] for query in ("", "?space=demo")] == [200, 200]
    assert [statuses[OTHER, query] for query in ("", "?space=demo")] == [200, 403]
    assert site.edge.journal.queries[-1].space == "demo"
    assert [statuses[LOOK, query] for query in ("", "?space=demo")] == [403, 200]
    assert "space=" in (await site.ask("GET", "/calls", LOOK)).json()["error"]["message"]
    assert [status for (token, _), status in statuses.items() if token == ONE] == [403, 403, 200, 403]
    await site.ask("GET", "/calls", OTHER)
    assert site.edge.journal.queries[-1].space == "other"


async def test_a_call_of_another_space_is_as_if_it_were_not_there(site: Site) -> None:
    """At the address that does not name the space."""
    number = await site.accepted()

    wanted = [await site.ask("GET", f"/calls/{number}", token) for token in (OTHER, LOOK, ONE, None, "wrong")]

    assert [answer.status_code for answer in wanted] == [404, 200, 200, 401, 401]
    unknown = await site.ask("GET", f"/calls/{number + 1}", OTHER)
    assert wanted[0].json()["error"]["message"] == unknown.json()["error"]["message"].replace(
        str(number + 1), str(number)
    )


async def test_the_metrics_are_the_whole_hosts(site: Site) -> None:
    """Whoever may read everything may read them."""
    assert [await site.status("GET", "/metrics", token) for token in (None, "wrong", LOOK)] == [401, 401, 403]
    site.configure(MIXED)
    assert await site.status("GET", "/metrics", None) == 401
    for path in ("/healthz", "/readyz"):
        assert await site.status("GET", path, None) == 200


# What the function sees.


async def test_the_platforms_credential_never_reaches_a_function(site: Site) -> None:
    """Wherever the host has looked at it, and wherever it is one of the host's."""
    for token, at in ((ALL, AT), (ONE, AT), (OTHER, "/spaces/demo/functions/page")):
        answer = await site.ask("POST", f"{at}/async-invoke", token, headers={"X-Other": "kept"})
        assert answer.status_code == 202
        assert b"x-other\0kept" in site.stored
        assert b"authorization" not in site.stored
        assert token.encode() not in site.stored


async def test_a_function_that_looks_itself_sees_what_is_not_ours(site: Site) -> None:
    """Where nobody needs a token: in an open space, and a public function."""
    for text, at in ((GUARDED, "/spaces/demo/functions/page"), ("[spaces.other]\ntokens = ['env:OTHER']", AT)):
        site.configure(text)
        for value, seen in (
            ("Bearer of-somebody-else", True), ("Basic YTpi", True), ("Bearer", True), (f"Bearer {OTHER}", False),
            (f"bearer  {OTHER}", False),
        ):  # fmt: skip
            answer = await site.ask("POST", f"{at}/async-invoke", None, headers={"Authorization": value})
            assert answer.status_code == 202, answer.text
            assert (b"authorization\0" + value.encode() in site.stored) == seen
            assert OTHER.encode() not in site.stored


@pytest.mark.parametrize(
    "value",
    [f"Token {OTHER}", OTHER, f"Bearer\t{OTHER}", f"Basic x, Bearer {OTHER}", f"Basic x,Bearer {OTHER}",
     f"Bearer {COMMA}", f"Bearer x, Bearer {COMMA}", f'Custom token="{OTHER}"', f"Custom token={OTHER};a=b",
     " ".join(map(str, range(1000)))],
)  # fmt: skip
async def test_a_token_of_ours_is_kept_back_wherever_it_stands(site: Site, value: str) -> None:
    """In whatever way it was written: nobody but the host is to see it."""
    text = "[spaces.other]\ntokens = ['env:OTHER', 'env:COMMA']"
    for configured, at in ((f"{GUARDED}\n{text.replace('other', 'third')}", "/spaces/demo/functions/page"), (text, AT)):
        site.configure(configured)
        answer = await site.ask("POST", f"{at}/async-invoke", None, headers={"Authorization": value})
        assert answer.status_code == 202, answer.text
        assert b"authorization" not in site.stored


async def test_two_credentials_are_none(site: Site) -> None:
    """Which of them was meant is not guessed, and neither reaches a function."""
    twice = [("Authorization", "Bearer of-somebody-else"), ("Authorization", f"Bearer {OTHER}")]

    assert (await site.edge.client.post(SUBMIT, headers=twice)).status_code == 401
    assert (await site.edge.client.post("/spaces/demo/functions/page/async-invoke", headers=twice)).status_code == 202
    assert b"authorization" not in site.stored
