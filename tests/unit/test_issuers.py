"""Tokens of an outside issuer: checked with the keys that a real one, on this machine, publishes."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator

import anyio
import jwt
import pytest

from runtime.credentials import Issuer
from runtime.errors import IssuerUnreachable
from runtime.issuers import FRESH, LARGEST, PAUSE, USABLE, OutsideIssuer
from tests.unit.issuer import AUDIENCE, PRIVATE, STRANGER, LocalIssuer, local_issuer, public

pytestmark = pytest.mark.anyio

NOW = int(time.time())


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with local_issuer() as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ours(issuer: LocalIssuer, clock: Clock) -> OutsideIssuer:
    """The host's side of it."""
    return OutsideIssuer(Issuer(issuer.url, AUDIENCE), clock=clock)


@pytest.mark.parametrize("algorithm", list(PRIVATE))
async def test_a_good_token(ours: OutsideIssuer, issuer: LocalIssuer, algorithm: str) -> None:
    """With each kind of key; the keys are found by discovery, once."""
    for _ in range(3):
        claims = await ours.claims(issuer.token(algorithm))
        assert claims is not None
        assert claims["sub"] == "svc-a"

    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_the_keys_where_they_are_said_to_be(issuer: LocalIssuer) -> None:
    """Without discovery."""
    ours = OutsideIssuer(Issuer(issuer.url, AUDIENCE, f"{issuer.url}/jwks"))

    assert await ours.claims(issuer.token()) is not None
    assert issuer.asked == ["/jwks"]


@pytest.mark.parametrize("extra", [{"aud": [AUDIENCE, "others"]}, {"sub": None, "client_id": "svc"}])
async def test_what_is_good_too(ours: OutsideIssuer, issuer: LocalIssuer, extra: dict[str, object]) -> None:
    """Several audiences; no subject."""
    assert await ours.claims(issuer.token(**extra)) is not None


async def test_the_clock_of_the_issuer_may_be_a_little_behind(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """By less than half a minute."""
    assert await ours.claims(issuer.token(exp=int(time.time()) - 10)) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": "others"}, {"aud": None}, {"iss": "https://other.example"}, {"iss": None}, {"exp": NOW - 60},
        {"exp": None}, {"nbf": NOW + 600}, {"iat": NOW + 600}, {"sub": 5},
        {"algorithm": "ES256", "key": STRANGER}, {"algorithm": "ES256", "kid": "RS256"},
        {"algorithm": "HS256", "key": b"k" * 32, "kid": "RS256"}, {"algorithm": "RS512", "key": PRIVATE["RS256"]},
    ],
)  # fmt: skip
async def test_what_is_refused(ours: OutsideIssuer, issuer: LocalIssuer, wrong: dict[str, object]) -> None:
    """For others, of others, expired, of the future, signed by a stranger or in another way."""
    assert await ours.claims(issuer.token(**wrong)) is None  # type: ignore[arg-type]


async def test_a_public_key_is_no_shared_secret(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """Not even where the issuer publishes one that would do for both."""
    issuer.keys.append({"kty": "oct", "k": urlsafe_b64encode(b"k" * 32).decode(), "kid": "oct", "alg": "HS256"})

    assert await ours.claims(issuer.token("HS256", key=b"k" * 32, kid="oct")) is None


async def test_a_key_for_something_else(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """One that is for encryption, or for another algorithm, checks nothing."""
    issuer.keys = [public("RS256", "a") | {"use": "enc"}, public("RS256", "b") | {"alg": "PS256"}]

    assert await ours.claims(issuer.token(kid="a")) is None
    assert await ours.claims(issuer.token(kid="b")) is None


async def test_a_single_key_needs_no_name(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """Neither in the token nor in the set. Which of several is meant is not guessed."""
    issuer.keys = [public("RS256", None), public("ES256", None)]
    assert await ours.claims(issuer.token(kid=None)) is not None
    assert await ours.claims(issuer.token("RS512", key=PRIVATE["RS256"], kid=None)) is not None

    other = OutsideIssuer(ours.issuer)
    issuer.keys = [public("RS256", "a"), public("RS256", "b")]
    assert await other.claims(issuer.token(kid=None)) is None


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "..", "é.é.é", "eyJ9.eyJ9.x", f"{'W' * 9000}.{'W' * 9000}.x"])
async def test_what_is_no_token(ours: OutsideIssuer, issuer: LocalIssuer, text: str) -> None:
    """The issuer is not asked about it."""
    assert await ours.claims(text) is None
    assert not ours.names(text)
    assert issuer.asked == []


async def test_nesting_is_no_way_in(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """Neither in the head nor in the claims."""
    deep = urlsafe_b64encode(b"[" * 8000).rstrip(b"=").decode()
    head, body, signature = issuer.token().split(".")

    assert await ours.claims(f"{deep}.{body}.{signature}") is None
    assert await ours.claims(f"{head}.{deep}.{signature}") is None


async def test_a_token_of_ours_is_recognised(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """By what it says, also when it has expired."""
    assert ours.names(issuer.token(exp=NOW - 600))
    assert not ours.names(issuer.token(aud="others"))
    assert not ours.names(jwt.encode({"iss": issuer.url}, b"k" * 32))


async def test_keys_that_change(ours: OutsideIssuer, issuer: LocalIssuer, clock: Clock) -> None:
    """A new one is fetched when a token names it, but not for each token of a stranger."""
    assert await ours.claims(issuer.token()) is not None
    issuer.keys = [public("RS256", "new")]
    assert await ours.claims(issuer.token(kid="new")) is None  # it was asked just now
    clock.now += PAUSE + 1

    for kid in ("new", "strange", "stranger"):
        assert (await ours.claims(issuer.token(kid=kid)) is not None) == (kid == "new")
    assert issuer.asked.count("/keys") == 2


async def test_a_key_that_is_withdrawn(ours: OutsideIssuer, issuer: LocalIssuer, clock: Clock) -> None:
    """It is good for as long as the keys are fresh."""
    token = issuer.token()
    assert await ours.claims(token) is not None
    issuer.keys = [public("ES256", "ES256")]
    assert await ours.claims(token) is not None
    clock.now += FRESH + 1

    assert await ours.claims(token) is None


async def test_an_issuer_that_fails(
    ours: OutsideIssuer, issuer: LocalIssuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Without keys nothing can be told. With keys they serve for a day, and it is asked again each half minute."""
    issuer.status = 503
    for _ in range(3):
        with pytest.raises(IssuerUnreachable):
            await ours.claims(issuer.token())
    assert len(issuer.asked) == 1
    assert "/.well-known/openid-configuration answers 503" in caplog.text
    issuer.status, clock.now = 200, clock.now + PAUSE + 1
    assert await ours.claims(issuer.token()) is not None

    issuer.status, clock.now = 503, clock.now + FRESH + 1
    for _ in range(3):
        assert await ours.claims(issuer.token()) is not None
    assert len(issuer.asked) == 4
    clock.now += USABLE
    with pytest.raises(IssuerUnreachable):
        await ours.claims(issuer.token())


async def test_an_issuer_that_is_somebody_else(
    ours: OutsideIssuer, issuer: LocalIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its discovery document must be its own."""
    issuer.claimed = "https://evil.example"

    with pytest.raises(IssuerUnreachable):
        await ours.claims(issuer.token())
    assert "its discovery document is that of 'https://evil.example'" in caplog.text


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<html>Sign in</html>", "does not answer a JSON object"),
        (b"[]", "does not answer a JSON object"),
        (b'{"keys": ' + b"[" * 100_000, "does not answer a JSON object"),
        (b'{"keys": ["\xff"]}', "cannot be fetched"),
        (b'{"keys": 5}', "has no list of keys"),
        (b"{}", "has no list of keys"),
        (b" " * (LARGEST + 1), "answers more than"),
    ],
    ids=["html", "list", "deep", "bytes", "number", "empty", "large"],
)
async def test_an_issuer_that_answers_something_else(
    issuer: LocalIssuer, clock: Clock, caplog: pytest.LogCaptureFixture, body: bytes, problem: str
) -> None:
    """It cannot be told whether a token is good; once the keys are there again, it can."""
    ours = OutsideIssuer(Issuer(issuer.url, AUDIENCE, f"{issuer.url}/keys"), clock=clock)
    issuer.body = body
    with pytest.raises(IssuerUnreachable):
        await ours.claims(issuer.token())
    issuer.body, clock.now = None, clock.now + PAUSE + 1

    assert problem in caplog.text
    assert await ours.claims(issuer.token()) is not None


async def test_an_issuer_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody listens."""
    with local_issuer() as issuer:
        pass
    with pytest.raises(IssuerUnreachable):
        await OutsideIssuer(Issuer(issuer.url, AUDIENCE)).claims(issuer.token())
    assert "cannot be fetched: ConnectError" in caplog.text


async def test_many_at_once_ask_once(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """They wait for the same answer."""
    found = []

    async def check() -> None:
        found.append(await ours.claims(issuer.token()))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(check)

    assert len(found) == 20
    assert None not in found
    assert issuer.asked.count("/keys") == 1


async def test_rubbish_for_keys(ours: OutsideIssuer, issuer: LocalIssuer) -> None:
    """Keys that cannot be read are passed over."""
    issuer.keys = [{"kty": "RSA", "kid": "a"}, {"kid": "b"}, json.loads('{"kty": 5}'), public("RS256", "RS256")]

    assert await ours.claims(issuer.token(kid="a")) is None
    assert await ours.claims(issuer.token()) is not None
