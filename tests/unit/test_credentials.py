"""What spaces.toml may say of tokens, clients, subjects and the issuer, and that it tells nothing of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runtime import config
from runtime.config import Config
from runtime.credentials import Grant, Issuer, Key, digest_of, issuer_url
from runtime.errors import ConfigError

SECRET = "s3cret-s3cret-s3cret"
ENVIRON = {
    "TOKEN": SECRET,
    "OTHER": "another-token-of-ours",
    "SHORT": "fifteen-letters",
    "KEY": "k" * 32,
    "GAP": "a b" * 9,
}
EVERYTHING = """
[server]
tokens = ["env:TOKEN"]
token_key = "env:KEY"
token_life = "10m"
issuer = { url = "https://id.example", audience = "spaces", jwks = "http://127.0.0.1:9/keys" }
[spaces.demo]
tokens = ["env:TOKEN", { token = "file:token", scopes = ["invoke"], functions = ["stock", "later"] }]
clients = [{ id = "ci", secret = "env:OTHER", scopes = ["invoke", "read"] }]
subjects = ["svc-a", { subject = "svc-b", scopes = ["invoke"] }]
"""


def loaded(root: Path, text: str) -> Config:
    (root / "functions").mkdir(exist_ok=True)
    (root / "spaces.toml").write_text(text)
    return config.load(root, environ=ENVIRON)


def problem(root: Path, text: str) -> str:
    """What is wrong with it; it must not repeat a secret."""
    with pytest.raises(ConfigError) as caught:
        loaded(root, text)
    assert not [value for value in ENVIRON.values() if value in caught.value.message]
    return caught.value.message.removeprefix(f"{root}/")


def test_all_of_it(tmp_path: Path) -> None:
    """Each kind of entry, in short and in long."""
    (tmp_path / "token").write_text("a-token-in-a-file\n")

    found = loaded(tmp_path, EVERYTHING)

    space = found.spaces["demo"]
    assert [token.digest for token in found.server.tokens] == [digest_of(SECRET)]
    assert found.server.token_key == Key(hashlib.sha256(b"spaces token key\0" + b"k" * 32).digest())
    assert found.server.token_life == 600
    assert found.server.issuer == Issuer("https://id.example", "spaces", "http://127.0.0.1:9/keys")
    assert [(token.digest, token.grant) for token in space.tokens] == [
        (digest_of(SECRET), Grant()),
        (digest_of("a-token-in-a-file"), Grant(frozenset({"invoke"}), frozenset({"stock", "later"}))),
    ]
    assert [(client.id, client.digest) for client in space.clients] == [("ci", digest_of("another-token-of-ours"))]
    assert space.clients[0].grant == Grant(frozenset({"invoke", "read"}))
    assert [(each.subject, each.grant.scopes) for each in space.subjects] == [
        ("svc-a", Grant().scopes), ("svc-b", frozenset({"invoke"})),
    ]  # fmt: skip


def test_nothing_is_kept_in_clear(tmp_path: Path) -> None:
    """Neither a secret nor its digest is in what the configuration prints of itself."""
    (tmp_path / "token").write_text("a-token-in-a-file\n")

    shown = repr(loaded(tmp_path, EVERYTHING))

    for secret in (SECRET, "another-token-of-ours", "a-token-in-a-file", "k" * 32):
        assert secret not in shown
        assert digest_of(secret).hex() not in shown
        assert repr(digest_of(secret)) not in shown


def test_a_digest_may_stand_in_the_file(tmp_path: Path) -> None:
    """`sha256:` and the digits that sha256sum prints."""
    digits = hashlib.sha256(SECRET.encode()).hexdigest()

    found = loaded(tmp_path, f'[spaces.demo]\ntokens = ["sha256:{digits.upper()}"]')

    assert found.spaces["demo"].tokens[0].digest == digest_of(SECRET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[server]\ntokens = ["in-clear-in-the-file"]', "spaces.toml:2: `tokens` in [server]: a token does not belong"),
        ('[server]\ntokens = ["in-clear-in-the-file"]', 'into this file; write "env:NAME" or "file:PATH"'),
        ('[server]\ntokens = ["env:NONE"]', "the environment variable 'NONE' is not set"),
        ('[server]\ntokens = ["env:SHORT"]', "'env:SHORT' is too short for a token: it must have 16 characters"),
        ('[server]\ntokens = ["env:GAP"]', "'env:GAP' has characters that a token cannot have"),
        ('[server]\ntokens = ["sha256:12"]', "64 hexadecimal digits"),
        ('[server]\ntokens = "env:TOKEN"', "must be a list of tokens"),
        ("[server]\ntokens = [1]", "must be a string in quotes"),
        ('[server]\ntoken_key = "env:TOKEN"', "too short for a key: it must have 32"),
        ('[server]\ntoken_key = "it stands here, it stands here, it stands"', "a key does not belong into this file"),
        ('[server]\nissuer = { url = "https://id.example" }', "toml:2: `audience` is missing in [server.issuer]"),
        ('[server]\nissuer = { url = "http://id.example", audience = "s" }', "must begin with https://"),
        ('[server]\nissuer = { url = "id.example", audience = "s" }', "is no URL"),
        ('[server]\nissuer = { url = "https://id.example", audience = "" }', "must be a name"),
        ('[spaces.demo]\ntokens = [{ tokken = "env:TOKEN" }]', "did you mean `token`?"),
        ('[spaces.demo]\ntokens = [{ scopes = ["invoke"] }]', "`token` is missing"),
        ('[spaces.demo]\ntokens = [{ token = "env:TOKEN", scopes = ["run"] }]', "'run' is no scope; there are invoke,"),
        ('[spaces.demo]\ntokens = [{ token = "env:TOKEN", scopes = [] }]', "must name at least one of"),
        ('[spaces.demo]\ntokens = [{ token = "env:TOKEN", functions = [] }]', "leave it out to allow all"),
        ('[spaces.demo]\ntokens = [{ token = "env:TOKEN", functions = ["a/b"] }]', "is no function's name"),
        ('[spaces.demo]\nclients = ["ci"]', "must be a table"),
        ('[spaces.demo]\nclients = [{ id = "ci" }]', "`secret` is missing in [spaces.demo.clients]"),
        ('[spaces.demo]\nclients = [{ id = "ci", secret = "in-clear-in-the-file" }]', "a secret does not belong into"),
        ('[spaces.demo]\nsubjects = [""]', "must be a name"),
        ('[spaces.demo]\nsubjects = [{ scopes = ["invoke"] }]', "`subject` is missing"),
        ('[defaults]\ntokens = ["env:TOKEN"]', "it belongs in [server] or [spaces.NAME]"),
        ('[defaults]\npublic = "yes"', "must be true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, message: str) -> None:
    """Each mistake has its line and its words."""
    assert message in problem(tmp_path, text)


def test_a_literal_token_is_not_repeated(tmp_path: Path) -> None:
    """It is a secret, although it should not be there."""
    assert "in-clear" not in problem(tmp_path, '[server]\ntokens = ["in-clear-in-the-file"]')


def test_public_is_inherited(tmp_path: Path) -> None:
    """As any other setting of a function."""
    found = loaded(tmp_path, "[spaces.demo]\npublic = true\n[spaces.demo.functions.kept]\npublic = false")

    assert found.settings("demo", "any").public
    assert not found.settings("demo", "kept").public
    assert not found.settings("other", "any").public


@pytest.mark.parametrize(
    "url", ["https://id.example/realms/a", "http://localhost:8080", "http://[::1]:1/x", "https://h:8443/"]
)
def test_issuer_urls(url: str) -> None:
    """TLS everywhere but on this machine."""
    assert issuer_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1.example",
        "https://u:p@h",
        "ftp://h",
        "https://",
        "https://h:99999",
        "https://h/#a",
        "https://h/ a",
        5,
    ],
)
def test_what_is_no_issuer_url(url: object) -> None:
    """Nor would it be safe to ask there."""
    with pytest.raises(ValueError):
        issuer_url(url)
