"""Tokens: signed, read, and refused when anything about them is wrong; the key and its file."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from pathlib import Path

import jwt
import pytest

from runtime.config import ServerSettings
from runtime.credentials import Key
from runtime.errors import ConfigError
from runtime.tokens import REMEMBERED, Tokens

KEY = b"\1" * 32
NOW = int(time.time())
GOOD = {"iss": "spaces", "use": "client", "sub": "ci", "iat": NOW, "exp": NOW + 600}


def tokens(state: Path, key: bytes | None = KEY) -> Tokens:
    settings = ServerSettings(state=state, token_key=Key(key) if key else None)
    return Tokens(lambda: settings)


def signed(claims: dict[str, object], key: bytes = KEY, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key, algorithm=algorithm)


def test_what_is_signed_is_read(tmp_path: Path) -> None:
    """With the life that it was given, or for ever."""
    ours = tokens(tmp_path)

    claims = ours.read(ours.sign("client", {"sub": "ci"}, 60))
    forever = ours.read(ours.sign("function", {"sub": "demo/stock"}, None))

    assert claims is not None
    assert (claims["sub"], claims["use"], claims["exp"] - claims["iat"]) == ("ci", "client", 60)
    assert forever is not None
    assert "exp" not in forever


@pytest.mark.parametrize(
    "token",
    [
        signed({**GOOD, "exp": NOW - 1}),
        signed({**GOOD, "iat": NOW + 3600, "exp": NOW + 7200}),
        signed({**GOOD, "nbf": NOW + 3600}),
        signed({**GOOD, "iss": "others"}),
        signed({**GOOD, "use": "master"}),
        signed({**GOOD, "aud": "others"}),
        signed({key: value for key, value in GOOD.items() if key != "sub"}),
        signed({key: value for key, value in GOOD.items() if key != "use"}),
        signed(GOOD, b"\2" * 32),
        jwt.encode(GOOD, KEY * 2, algorithm="HS512"),
        jwt.encode(GOOD, None, algorithm="none"),
        "", ".", "..", "a.b", "a.b.c", "é.é.é", signed(GOOD)[:-2], signed(GOOD) + "A", "x" + signed(GOOD),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, token: str) -> None:
    """Expired, of the future, of another issuer, with another key or algorithm, without one, cut, or no token."""
    assert tokens(tmp_path).read(token) is None


def test_another_algorithm_is_refused_though_the_key_fits(tmp_path: Path) -> None:
    """The header decides nothing."""
    for algorithm in ("none", "RS256", "HS512"):
        head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=")
        signing = head + b"." + signed(GOOD).split(".")[1].encode()
        signature = base64.urlsafe_b64encode(hmac.digest(KEY, signing, "sha256")).rstrip(b"=")
        token = (signing + b"." + signature).decode()

        assert tokens(tmp_path).signed(token)
        assert tokens(tmp_path).read(token) is None


def test_a_claim_changed_ends_the_signature(tmp_path: Path) -> None:
    """Whatever else is left as it was."""
    head, body, signature = signed(GOOD).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "use": "operator"}).encode()).rstrip(b"=").decode()

    assert tokens(tmp_path).read(f"{head}.{body}.{signature}") is not None
    assert tokens(tmp_path).read(f"{head}.{forged}.{signature}") is None
    assert not tokens(tmp_path).signed(f"{head}.{forged}.{signature}")


def test_an_expired_token_is_still_ours(tmp_path: Path) -> None:
    """It must not reach a handler either."""
    assert tokens(tmp_path).signed(signed({**GOOD, "exp": NOW - 1}))


def test_a_token_that_was_good_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it need not be checked again; and however many there were, none is taken for another."""
    ours = tokens(tmp_path)
    good = [ours.sign("client", {"sub": str(number)}, 60) for number in range(REMEMBERED + 5)]
    for _ in range(2):
        assert [claims["sub"] for claims in map(ours.read, good[-9:]) if claims] == [
            str(number) for number in range(REMEMBERED - 4, REMEMBERED + 5)
        ]
    assert all(map(ours.read, good))

    monkeypatch.setattr(time, "time", lambda: NOW + 3600.0)

    assert not any(map(ours.read, good))


def test_the_key_is_made_once(tmp_path: Path) -> None:
    """In the state folder, for its owner alone; whoever comes later has the same."""
    state = tmp_path / "state"
    first, second = tokens(state, None), tokens(state, None)
    assert not second.has_key

    token = first.sign("client", {"sub": "ci"}, 60)

    assert (state / "token.key").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in state.iterdir() if "token" in file.name] == ["token.key"]
    assert second.has_key
    assert second.read(token) is not None
    assert tokens(state, KEY).read(token) is None


def test_another_host_was_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is taken then."""
    link = os.link

    def slow(source: Path, target: Path) -> None:
        Path(target).write_text("ab" * 32 + "\n")
        link(source, target)

    monkeypatch.setattr(os, "link", slow)
    token = tokens(tmp_path, None).sign("client", {"sub": "ci"}, 60)

    assert tokens(tmp_path, bytes.fromhex("ab" * 32)).read(token) is not None


@pytest.mark.parametrize("text", ["", "ab" * 31, "g" * 64, "é"])
def test_a_damaged_key_is_told(tmp_path: Path, text: str) -> None:
    """It is not replaced unasked: all tokens would end."""
    (tmp_path / "token.key").write_text(text, encoding="latin-1")

    with pytest.raises(ConfigError, match=r"token\.key: this is no key"):
        tokens(tmp_path, None).prepare()


def test_without_a_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens are good as long as the process, and the log says so."""

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    ours = tokens(tmp_path, None)

    assert ours.read(ours.sign("client", {"sub": "ci"}, 60)) is not None
    assert "token.key cannot be written (Permission denied): the tokens issued now end" in caplog.text


def test_a_key_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """It is somebody's, and no reason to make another."""
    (tmp_path / "token.key").mkdir()

    with pytest.raises(ConfigError, match=r"token\.key: the key of the tokens cannot be read: Is a directory"):
        tokens(tmp_path, None).prepare()


def test_a_mark_tells_nothing_of_the_secret(tmp_path: Path) -> None:
    """It depends on the key, so nobody can try secrets against it."""
    one, other = tokens(tmp_path), tokens(tmp_path, b"\2" * 32)

    assert one.mark(b"a") == one.mark(b"a")
    assert len({one.mark(b"a"), one.mark(b"b"), other.mark(b"a")}) == 3
