"""The authority: whom it knows, what they may do, which tokens it issues and ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import msgspec
import pytest

from runtime import config
from runtime.authority import Access, Authority, is_guarded, operator_token
from runtime.config import Config
from runtime.errors import BadRequest, Forbidden, HostError, InvalidClient, RecordsError, Unauthorized
from tests.unit.issuer import LocalIssuer, local_issuer

pytestmark = pytest.mark.anyio

ADMIN, DEMO, STOCK, SECRET = "admin-token-admin", "demo-token-of-demo", "token-for-stock-only", "secret-of-the-client"
ENVIRON = {"ADMIN": ADMIN, "DEMO": DEMO, "STOCK": STOCK, "SECRET": SECRET, "NEW": "another-secret-of-it"}
SPACES = """
[spaces.demo]
tokens = ["env:DEMO", { token = "env:STOCK", scopes = ["invoke"], functions = ["stock"] }]
clients = [{ id = "ci", secret = "env:SECRET", scopes = ["invoke", "read"] }]
[spaces.demo.functions.page]
public = true
[spaces.shop]
tokens = ["env:STOCK"]
"""
SERVER = '[server]\ntokens = ["env:ADMIN"]\n'


class Site:
    """A root and an authority over it, whose configuration may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open = True
        (root / "functions").mkdir()
        self.write("")

    def write(self, text: str) -> None:
        """Another spaces.toml, taken up."""
        (self.root / "spaces.toml").write_text(text)
        self.config: Config = config.load(self.root, environ=ENVIRON)

    def authority(self) -> Authority:
        """A host's, on this root."""
        return Authority(lambda: self.config, open=lambda: self.open)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def allowed(authority: Authority, token: str | None, *wanted: str) -> list[str]:
    """Which of "scope space/name", "scope space" and "scope" this token is good for; else the status."""
    found = []
    for each in wanted:
        scope, _, place = each.partition(" ")
        space, _, name = place.partition("/")
        try:
            await authority.authorize(scope, space or None, name or None, token)
            found.append("yes")
        except HostError as error:
            challenged = error.headers["WWW-Authenticate"].startswith("Bearer")
            found.append(str(error.status) if challenged else f"{error.status} without a challenge")
    return found


# An open host.


async def test_an_open_host_lets_everybody_do_everything(site: Site) -> None:
    """With any token, or without."""
    authority = site.authority()

    for token in (None, "anything", "a.b.c"):
        assert await allowed(authority, token, "invoke demo/x", "deploy demo", "read") == ["yes"] * 3
        access = await authority.identify(token)
        assert access.everywhere("deploy")
        assert access.spaces("read", ["a", "b"]) == ["a", "b"]
    assert authority.is_open("demo")


async def test_a_host_that_is_not_open_lets_nobody_do_anything(site: Site) -> None:
    """If no token is configured there is none that would do."""
    site.open = False
    authority = site.authority()

    assert await allowed(authority, None, "invoke demo/x", "read") == ["401", "401"]
    assert await allowed(authority, "anything", "invoke demo/x", "read") == ["401", "401"]
    assert not authority.is_open("demo")


# Static tokens.


@pytest.mark.parametrize("is_open", [True, False])
async def test_tokens_of_spaces(site: Site, is_open: bool) -> None:
    """Each is good for what it is configured for; one token may be in two spaces."""
    site.open = is_open
    site.write(SERVER + SPACES)
    authority = site.authority()
    wanted = ("invoke demo/stock", "invoke demo/x", "read demo/stock", "invoke shop/x", "read other", "read")

    assert await allowed(authority, ADMIN, *wanted) == ["yes"] * 6
    assert await allowed(authority, DEMO, *wanted) == ["yes", "yes", "yes", "403", "403", "403"]
    assert await allowed(authority, STOCK, *wanted) == ["yes", "403", "403", "yes", "403", "403"]
    for wrong in ("wrong", DEMO[:-1], DEMO + "x", "", " ", "é", "x" * 20_000):
        assert await allowed(authority, wrong, *wanted) == ["401"] * 6
    assert await allowed(authority, None, *wanted) == ["401"] * 6


async def test_a_space_without_tokens(site: Site) -> None:
    """It is open in an open host, and closed in any other."""
    site.write(SPACES)
    authority = site.authority()

    assert authority.is_open("other")
    assert not authority.is_open("demo")
    assert await allowed(authority, "anything", "invoke other/x", "invoke demo/x", "read") == ["yes", "401", "401"]
    assert await allowed(authority, None, "invoke other/x", "invoke demo/x", "read") == ["yes", "401", "401"]
    site.open = False
    assert await allowed(authority, DEMO, "invoke other/x", "invoke demo/x") == ["403", "yes"]


async def test_who_asks(site: Site) -> None:
    """Before it is known for what: nobody needs a token to be told what is open."""
    site.write(SPACES)
    authority = site.authority()
    names = ["demo", "other", "shop"]

    nobody = await authority.identify(None)
    assert nobody.spaces("read", names) == ["other"]
    assert nobody.may("invoke", "other", "x")
    assert not nobody.may("invoke", "demo", "x")
    with pytest.raises(Unauthorized):
        nobody.require("invoke", "demo", "x")
    assert (await authority.identify(DEMO)).spaces("read", names) == ["demo", "other"]
    stock = await authority.identify(STOCK)
    assert stock.spaces("read", names) == ["other", "shop"]
    assert stock.spaces("invoke", names) == names
    assert not stock.may("invoke", "demo")
    with pytest.raises(Forbidden, match="does not have the scope `read` for demo/stock"):
        stock.require("read", "demo", "stock")
    with pytest.raises(Unauthorized, match="Unauthenticated"):
        await authority.identify("wrong")
    site.write(SERVER + SPACES)
    with pytest.raises(Unauthorized, match="No token provided"):
        await authority.identify(None)


async def test_a_public_function(site: Site) -> None:
    """Anybody may invoke it, and nothing else; what is done to calls is asked otherwise."""
    site.write(SERVER + SPACES)
    authority = site.authority()

    for token in (None, "wrong", STOCK):
        assert (await allowed(authority, token, "invoke demo/page"))[0] == "yes"
        assert (await allowed(authority, token, "read demo/page"))[0] != "yes"
        assert (await allowed(authority, token, "invoke demo"))[0] != "yes"
    assert not (await authority.identify(STOCK)).may("invoke", "demo", "page")


async def test_a_change_of_the_configuration_holds_at_once(site: Site) -> None:
    """For better and for worse."""
    site.write(SPACES)
    authority = site.authority()
    assert await allowed(authority, DEMO, "read demo") == ["yes"]

    site.write(SPACES.replace('"env:DEMO", ', ""))
    assert await allowed(authority, DEMO, "read demo") == ["401"]
    site.write("")
    assert await allowed(authority, DEMO, "read demo") == ["yes"]


async def test_which_tokens_are_ours(site: Site) -> None:
    """Those must not reach a handler, expired or not; all others are none of our business."""
    site.write(SERVER + SPACES)
    authority = site.authority()
    issued = authority.issue("ci", SECRET, None).access_token
    authority.revoke(issued)

    ours = (ADMIN, DEMO, STOCK, issued, authority.function_token("demo", "x"), authority.operator_token())
    assert all(map(authority.is_ours, ours))
    assert not any(
        map(authority.is_ours, ("", "other", SECRET, jwt.encode({"iss": "spaces"}, b"k" * 32), "x" * 20_000))
    )


# Issued tokens.


async def test_a_client_gets_a_token(site: Site) -> None:
    """Good for what the client is, for an hour."""
    site.write(SPACES)
    authority = site.authority()

    issued = authority.issue("ci", SECRET, None)

    assert (issued.token_type, issued.expires_in, issued.scope) == ("Bearer", 3600, "invoke read")
    wanted = ("invoke demo/x", "read demo", "deploy demo", "invoke shop/x")
    assert await allowed(authority, issued.access_token, *wanted) == ["yes", "yes", "403", "403"]
    claims = jwt.decode(issued.access_token, options={"verify_signature": False})
    assert claims["sub"] == "ci"
    assert claims["exp"] - claims["iat"] == 3600
    assert SECRET not in str(claims)


@pytest.mark.parametrize("scope", ["function", "function.invoke function.*", "https://x.example/.default", "", None])
async def test_scopes_of_other_vendors_mean_nothing(site: Site, scope: str | None) -> None:
    """Their clients send them, and want all that there is."""
    site.write(SPACES)
    assert site.authority().issue("ci", SECRET, scope).scope == "invoke read"


async def test_scopes_of_ours_narrow(site: Site) -> None:
    """A token is good for no more than was asked for, nor than the client is."""
    site.write(SPACES)
    authority = site.authority()

    issued = authority.issue("ci", SECRET, "read deploy function")

    assert issued.scope == "read"
    assert await allowed(authority, issued.access_token, "read demo", "invoke demo/x") == ["yes", "403"]
    with pytest.raises(BadRequest) as caught:
        authority.issue("ci", SECRET, "deploy")
    assert caught.value.details["error"] == "invalid_scope"


@pytest.mark.parametrize(("id", "secret"), [("ci", "wrong"), ("other", SECRET), ("ci", ""), ("", SECRET), ("ci", DEMO)])
async def test_who_is_no_client(site: Site, id: str, secret: str) -> None:
    """A wrong id, a wrong secret."""
    site.write(SPACES)
    with pytest.raises(InvalidClient):
        site.authority().issue(id, secret, None)


async def test_in_an_open_host_everybody_is_a_client(site: Site) -> None:
    """And such a token ends when the host is open no more, whatever it names."""
    authority = site.authority()
    issued = authority.issue("ci", "any secret", "function")
    assert await allowed(authority, issued.access_token, "deploy demo") == ["yes"]

    site.write(SPACES)
    assert await allowed(authority, issued.access_token, "invoke demo/x") == ["401"]
    with pytest.raises(InvalidClient):
        authority.issue("any", "any secret", None)
    site.write("")
    site.open = False
    with pytest.raises(InvalidClient):
        authority.issue("any", "any secret", None)


@pytest.mark.parametrize("change", [("env:SECRET", "env:NEW"), ('id = "ci"', 'id = "other"'), ("clients = [{", "# [{")])
async def test_a_client_that_is_gone_takes_its_tokens_along(site: Site, change: tuple[str, str]) -> None:
    """Its secret was changed, it was renamed, it was removed."""
    site.write(SPACES)
    authority = site.authority()
    token = authority.issue("ci", SECRET, None).access_token

    site.write(SPACES.replace(*change))

    assert await allowed(authority, token, "invoke demo/x") == ["401"]


async def test_a_client_of_two_spaces(site: Site) -> None:
    """One secret opens both, another one only its own."""
    site.write(SPACES + 'clients = [{ id = "ci", secret = "env:SECRET", scopes = ["read"] }]\n')
    authority = site.authority()
    token = authority.issue("ci", SECRET, None).access_token
    assert await allowed(authority, token, "invoke demo/x", "read shop/x", "invoke shop/x") == ["yes", "yes", "403"]

    site.write(SPACES + 'clients = [{ id = "ci", secret = "env:NEW" }]\n')
    assert await allowed(authority, token, "invoke demo/x", "read shop/x") == ["yes", "403"]


async def test_a_revoked_token_is_over(site: Site) -> None:
    """For another host on this root too; what is no token of a client is left alone."""
    site.write(SPACES)
    authority, beside = site.authority(), site.authority()
    first, second = (authority.issue("ci", SECRET, None).access_token for _ in range(2))
    assert await allowed(beside, first, "read demo") == ["yes"]

    for token in (first, DEMO, "rubbish", "x" * 20_000, authority.operator_token()):
        authority.revoke(token)

    for each in (authority, beside, site.authority()):
        assert await allowed(each, first, "read demo") == ["401"]
        assert await allowed(each, second, "read demo") == ["yes"]
        assert await allowed(each, DEMO, "read demo") == ["yes"]


async def test_a_list_that_cannot_be_read_lets_nobody_in(site: Site) -> None:
    """A token might be on it; those that cannot be revoked are good."""
    site.write(SPACES)
    authority = site.authority()
    issued = authority.issue("ci", SECRET, None).access_token
    (site.root / ".spaces" / "revoked").touch()

    with pytest.raises(RecordsError, match="revoked"):
        await authority.identify(issued)
    assert await allowed(authority, DEMO, "read demo") == ["yes"]


async def test_a_token_ends_by_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `token_life`."""
    site.write('[server]\ntoken_life = "90s"\n' + SPACES)
    before = time.time() - 100
    authority = site.authority()
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: before)
        issued = authority.issue("ci", SECRET, None)

    assert issued.expires_in == 90
    assert await allowed(authority, issued.access_token, "read demo") == ["401"]


async def test_what_a_function_may(site: Site) -> None:
    """To invoke and read in its own space; the same token for as long as the key is the same."""
    site.write(SERVER + SPACES)
    authority = site.authority()
    token = authority.function_token("demo", "x")

    assert token == site.authority().function_token("demo", "x")
    wanted = ("invoke demo/y", "read demo", "deploy demo", "invoke shop/x", "read")
    assert await allowed(authority, token, *wanted) == ["yes", "yes", "403", "403", "403"]
    (site.root / ".spaces" / "token.key").unlink()
    assert await allowed(site.authority(), token, "read demo") == ["401"]


async def test_what_the_command_line_may(site: Site) -> None:
    """Everything, where it can read the key."""
    site.write(SERVER + SPACES)
    site.open = False
    assert operator_token(site.config) is None
    authority = site.authority()
    authority.prepare()

    token = operator_token(site.config)

    assert token is not None
    assert await allowed(authority, token, "deploy demo", "read", "invoke other/x") == ["yes"] * 3
    assert await allowed(authority, authority.operator_token(), "read") == ["yes"]
    (site.root / ".spaces" / "token.key").write_text("damaged")
    assert operator_token(site.config) is None


async def test_a_configured_key(site: Site) -> None:
    """Hosts that share it know each other's tokens; none is written to the state folder."""
    (site.root / "key").write_text("k" * 32)
    site.write('[server]\ntoken_key = "file:key"\n' + SPACES)
    token = site.authority().issue("ci", SECRET, None).access_token

    assert await allowed(site.authority(), token, "read demo") == ["yes"]
    assert not (site.root / ".spaces" / "token.key").exists()


# Tokens of an outside issuer.


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with local_issuer() as issuer:
        yield issuer


async def test_tokens_of_an_outside_issuer(site: Site, issuer: LocalIssuer) -> None:
    """They may do what the space says of whom they name."""
    site.write(
        f'[server]\nissuer = {{ url = "{issuer.url}", audience = "spaces" }}\n'
        '[spaces.demo]\nsubjects = ["svc-a", { subject = "svc-b", scopes = ["invoke"], functions = ["stock"] }]\n'
    )
    authority = site.authority()
    wanted = ("invoke demo/stock", "invoke demo/x", "read demo/stock", "invoke other/x", "read")

    assert await allowed(authority, issuer.token(), *wanted) == ["yes", "yes", "yes", "403", "403"]
    assert await allowed(authority, issuer.token(sub="svc-b"), *wanted) == ["yes", "403", "403", "403", "403"]
    assert await allowed(authority, issuer.token(sub="u", azp="svc-a"), wanted[1]) == ["yes"]
    assert await allowed(authority, issuer.token(sub=None, client_id="svc-a"), wanted[1]) == ["yes"]
    assert await allowed(authority, issuer.token(scope="openid read"), *wanted[1:3]) == ["403", "yes"]
    for wrong in ({"sub": "svc-c"}, {"sub": None}, {"aud": "others"}, {"exp": int(time.time()) - 60}):
        assert await allowed(authority, issuer.token(**wrong), *wanted) == ["401"] * 5
    assert authority.is_ours(issuer.token(exp=1))
    assert not authority.is_ours(issuer.token(aud="others"))
    assert await allowed(authority, None, *wanted) == ["401"] * 5


async def test_an_issuer_guards_every_space(site: Site) -> None:
    """It is the host's, although a space may have no subjects."""
    site.write('[server]\nissuer = { url = "https://id.example", audience = "spaces" }')

    assert not site.authority().is_open("demo")
    assert is_guarded(site.config)


def test_what_is_guarded(site: Site) -> None:
    """Any of the three ways to know somebody, in any space."""
    assert not is_guarded(site.config)
    for entry in ('tokens = ["env:DEMO"]', 'clients = [{ id = "ci", secret = "env:SECRET" }]', 'subjects = ["svc"]'):
        site.write(f"[spaces.demo]\n{entry}")
        assert is_guarded(site.config)
    site.write("[spaces.demo]\ntokens = []\npublic = true")
    assert not is_guarded(site.config)


def test_an_access_tells_no_secret(site: Site) -> None:
    """Nor does what is issued hold more than the client is to have."""
    site.write(SERVER + SPACES)
    authority = site.authority()
    access = Access("token", (), authority.is_open)

    assert ADMIN not in repr(access)
    assert set(msgspec.to_builtins(authority.issue("ci", SECRET, None))) == {
        "access_token", "token_type", "expires_in", "scope",
    }  # fmt: skip
