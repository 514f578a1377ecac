"""What spaces.toml says about who may call: tokens, clients, the outside issuer and its subjects.

`config` reads the tables with it, `authority` asks the structs. Of a secret only the SHA-256 digest is kept, and no
message and no repr repeats one.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec

from runtime import toml_reader as toml

SCOPES = ("invoke", "read", "deploy")

_SHORTEST = 16  # characters of a token: below that it could be guessed
_SHORTEST_KEY = 32  # characters of a key: who has one token could look for it without asking us
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Grant(msgspec.Struct, frozen=True):
    """What may be done: these scopes, on these functions (None: on all)."""

    scopes: frozenset[str] = frozenset(SCOPES)
    functions: frozenset[str] | None = None

    def allows(self, scope: str, name: str | None) -> bool:
        """Whether this may be done to the function; without a name, to every one."""
        return scope in self.scopes and (self.functions is None or name in self.functions)


class _Secretive:
    """A struct whose repr shows nothing: digests of secrets are nobody's business either."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("", "***")]


class Token(_Secretive, msgspec.Struct, frozen=True):
    """A bearer token, known by its digest."""

    digest: bytes
    grant: Grant = Grant()


class Client(_Secretive, msgspec.Struct, frozen=True):
    """A client of the token endpoint (RFC 6749 section 4.4); its secret is known by its digest."""

    id: str
    digest: bytes
    grant: Grant = Grant()


class Subject(msgspec.Struct, frozen=True):
    """Whom a token of the outside issuer may name."""

    subject: str
    grant: Grant = Grant()


class Key(_Secretive, msgspec.Struct, frozen=True):
    """The key that issued tokens are signed with: 32 bytes made of what is configured."""

    value: bytes


class Issuer(msgspec.Struct, frozen=True):
    """An outside issuer of tokens. `jwks`: where its keys are; None: its discovery document tells."""

    url: str
    audience: str
    jwks: str | None = None


def digest_of(secret: str) -> bytes:
    """What is kept of a secret, and what one that is presented is compared by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def server_tokens(document: toml.Document, raw: Any) -> tuple[Token, ...]:
    """The tokens of [server], which are good for everything."""
    return tuple(Token(_secret(document, each, "a token")) for each in _list(raw, 'tokens such as ["env:NAME"]'))


def tokens(document: toml.Document, at: tuple[str, ...], raw: Any) -> tuple[Token, ...]:
    """The tokens of a space: "env:NAME", or a table that says what the token is good for."""
    readers: toml.Readers = {"token": partial(_secret, document, what="a token"), **_GRANT}
    found = []
    for number, each in enumerate(_list(raw, 'tokens such as ["env:NAME"]')):
        if isinstance(each, dict):
            values = _table(document, (*at, "tokens", number), each, readers, "token")
            if "token" in values:
                found.append(Token(values["token"], _grant(values)))
        else:
            found.append(Token(_secret(document, each, "a token")))
    return tuple(found)


def clients(document: toml.Document, at: tuple[str, ...], raw: Any) -> tuple[Client, ...]:
    """The clients of a space that may fetch tokens for it."""
    readers: toml.Readers = {"id": _name, "secret": partial(_secret, document, what="a secret"), **_GRANT}
    found = []
    for number, each in enumerate(_list(raw, 'clients such as [{ id = "ci", secret = "env:NAME" }]')):
        values = _table(document, (*at, "clients", number), toml.table_of(each), readers, "id", "secret")
        if {"id", "secret"} <= values.keys():
            found.append(Client(values["id"], values["secret"], _grant(values)))
    return tuple(found)


def subjects(document: toml.Document, at: tuple[str, ...], raw: Any) -> tuple[Subject, ...]:
    """Who may do what in a space with a token of the outside issuer."""
    readers: toml.Readers = {"subject": _name, **_GRANT}
    found = []
    for number, each in enumerate(_list(raw, 'names such as ["svc-a"]')):
        if isinstance(each, dict):
            values = _table(document, (*at, "subjects", number), each, readers, "subject")
            if "subject" in values:
                found.append(Subject(values["subject"], _grant(values)))
        else:
            found.append(Subject(_name(each)))
    return tuple(found)


def issuer(document: toml.Document, raw: Any) -> Issuer | None:
    """The outside issuer; None where the document has a problem with it."""
    readers: toml.Readers = {"url": issuer_url, "audience": _name, "jwks": issuer_url}
    values = _table(document, ("server", "issuer"), toml.table_of(raw), readers, "url", "audience")
    return Issuer(**values) if {"url", "audience"} <= values.keys() else None


def issuer_url(raw: Any) -> str:
    """An https URL; on this machine http will do. ValueError."""
    text = toml.string(raw)
    try:
        parts = urlsplit(text)
        sound = bool(parts.hostname) and parts.port != 0 and not parts.username and not parts.fragment
    except ValueError:
        sound = False
    if not sound or not _VISIBLE.fullmatch(text):
        raise ValueError(f"{toml.shown(text)} is no URL such as https://id.example.com")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError(f"{toml.shown(text)} must begin with https://: who answers there decides who may call")
    return text


def token_key(document: toml.Document, raw: Any) -> Key:
    """The key that issued tokens are signed with."""
    value = _referred(document, raw, "a key", _SHORTEST_KEY)
    return Key(hashlib.sha256(b"spaces token key\0" + value.encode()).digest())


def _secret(document: toml.Document, raw: Any, what: str) -> bytes:
    """The digest of a token or a client's secret."""
    if isinstance(raw, str) and raw.startswith("sha256:"):
        digits = raw.removeprefix("sha256:")
        if not _HEX.fullmatch(digits):
            raise ValueError('"sha256:" must be followed by the 64 hexadecimal digits of a digest')
        return bytes.fromhex(digits)
    return digest_of(_referred(document, raw, what, _SHORTEST))


def _referred(document: toml.Document, raw: Any, what: str, shortest: int) -> str:
    """The secret that "env:NAME" or "file:PATH" stands for."""
    text = toml.string(raw)
    if not text.startswith(("env:", "file:")):
        raise ValueError(f'{what} does not belong into this file; write "env:NAME" or "file:PATH" for where it is')
    value = document.variable(text)
    if len(value) < shortest:
        raise ValueError(f"{toml.shown(text)} is too short for {what}: it must have {shortest} characters or more")
    if not _VISIBLE.fullmatch(value):
        raise ValueError(f"{toml.shown(text)} has characters that {what} cannot have: only visible ASCII")
    return value


def _table(
    document: toml.Document, at: tuple[str | int, ...], table: dict[str, Any], readers: toml.Readers, *needed: str
) -> dict[str, Any]:
    """The values of a table of the file, in which some keys must be there."""
    for key in needed:
        if key not in table:
            document.problem(at, f"`{key}` is missing {toml.within(at)}")
    return document.values(at, table, readers)


def _list(raw: Any, what: str) -> list[Any]:
    if not isinstance(raw, list):
        raise ValueError(f"must be a list of {what}")
    return raw


def _name(raw: Any) -> str:
    text = toml.string(raw)
    if not text or len(text) > 255 or not text.isprintable():
        raise ValueError("must be a name of 1 to 255 printable characters")
    return text


def _scopes(raw: Any) -> frozenset[str]:
    words = toml.strings('scopes such as ["invoke", "read"]', raw)
    for word in words:
        if word not in SCOPES:
            raise ValueError(f"{toml.shown(word)} is no scope; there are {', '.join(SCOPES)}")
    if not words:
        raise ValueError(f"must name at least one of {', '.join(SCOPES)}")
    return frozenset(words)


def _functions(raw: Any) -> frozenset[str]:
    names = toml.strings('functions such as ["stock"]', raw)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{toml.shown(name)} is no function's name")
    if not names:
        raise ValueError("must name at least one function; leave it out to allow all")
    return frozenset(names)


_GRANT: toml.Readers = {"scopes": _scopes, "functions": _functions}


def _grant(values: dict[str, Any]) -> Grant:
    return Grant(**{key: values[key] for key in _GRANT if key in values})
