"""Who may do what: the one place where a credential is looked at.

Made by `host.py`, asked by the dialects through it. What may be done is in the configuration (`credentials.py`), and is
looked up at each use, so that taking something out of spaces.toml ends it. `tokens`, `revocations` and `issuers` tell
whose a token is.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from .config import Config
from .credentials import SCOPES, Client, Grant, Token, digest_of
from .errors import BadRequest, ConfigError, Forbidden, InvalidClient, RecordsError, Unauthorized
from .issuers import OutsideIssuer
from .revocations import Revocations
from .tokens import Tokens

OPERATOR_LIFE = 60  # seconds that a token of the command line is good: it makes one for each request
LONGEST = 16 * 1024  # characters of a credential that is looked at

ALL = Grant()
OWN = Grant(frozenset({"invoke", "read"}))  # what a function may do in its own space
MISSING = {"WWW-Authenticate": "Bearer"}
WRONG = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
LACKING = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}

Grants = tuple[tuple[str | None, Grant], ...]  # the space (None: every one), and what may be done there
NOTHING: Grants = ()

log = logging.getLogger("spaces.server")

__all__ = ["SCOPES", "Access", "Authority", "IssuedToken"]


class IssuedToken(msgspec.Struct, frozen=True):
    """What the token endpoint answers. `expires_in`: seconds."""

    access_token: str
    expires_in: int
    scope: str
    token_type: str = "Bearer"


class Access(msgspec.Struct, frozen=True):
    """Who asks, and what they may do. `subject` is empty for somebody who gave no credential."""

    subject: str
    grants: Grants
    is_open: Callable[[str], bool]

    def may(self, scope: str, space: str, name: str | None = None) -> bool:
        """Whether this may be done to the function; without a name, to every one of the space."""
        return self.is_open(space) or any(
            place in (None, space) and grant.allows(scope, name) for place, grant in self.grants
        )

    def everywhere(self, scope: str) -> bool:
        """Whether this may be done in every space, and to the host as a whole."""
        return any(place is None and grant.allows(scope, None) for place, grant in self.grants)

    def spaces(self, scope: str, names: Iterable[str]) -> list[str]:
        """Those of these spaces in which this may be done at least to some function."""
        return [name for name in names if self.is_open(name) or self._somewhere(scope, name)]

    def require(self, scope: str, space: str | None, name: str | None = None) -> None:
        """Nothing, if this may be done there (without a space: everywhere); else Unauthorized or Forbidden."""
        if not (self.everywhere(scope) if space is None else self.may(scope, space, name)):
            raise self.refusal(scope, space, name)

    def refusal(self, scope: str, space: str | None, name: str | None = None) -> Unauthorized | Forbidden:
        """Why this may not be done there: 401 for who has no token yet, 403 for who has one that is not for this."""
        if not self.subject:
            return _missing()
        place = "the whole host" if space is None else space if name is None else f"{space}/{name}"
        message = f"Unauthorized: this token does not have the scope `{scope}` for {place}"
        return Forbidden(message, headers=LACKING)

    def _somewhere(self, scope: str, space: str) -> bool:
        return any(place in (None, space) and scope in grant.scopes for place, grant in self.grants)


class Authority:
    """Tells what a credential is good for, and issues tokens.

    Guarantee: where the configuration guards a space, nothing is granted there without a credential that it names.
    """

    def __init__(self, config: Callable[[], Config], *, open: Callable[[], bool]) -> None:
        """`open`: nobody but this machine reaches the host, or whoever started it wants it open."""
        self._config = config
        self._open = open
        self._tokens = Tokens(lambda: config().server)
        self._revocations = Revocations(lambda: config().server.state)
        self._issuer: OutsideIssuer | None = None
        self._table = _Table(config())

    def prepare(self) -> None:
        """Make the key, where there is none yet, and import what is needed. Blocks; ConfigError."""
        self._tokens.prepare()

    # Who may.

    def is_open(self, space: str) -> bool:
        """Whether nobody needs a token in this space."""
        table = self._current()
        return not table.server_guarded and space not in table.guarded and self._open()

    async def identify(self, credential: str | None) -> Access:
        """Who asks; Unauthorized where a credential is wrong, or is missing and nothing here does without one."""
        table = self._current()
        is_open = self._open() and not table.server_guarded
        if is_open and not table.guarded:
            return Access("anybody", ((None, ALL),), self.is_open)
        if credential is not None:
            return await self._known(credential)
        if not is_open:
            raise _missing()
        return Access("", (), self.is_open)

    async def authorize(self, scope: str, space: str | None, name: str | None, credential: str | None) -> Access:
        """Whether who asks may do this there (without a space: everywhere). Unauthorized, Forbidden.

        A function that is `public` may be invoked by anybody. What is done to calls that others have made must be
        asked of `identify` and `Access.require`, which know no such thing.
        """
        if space is not None:
            if self.is_open(space):
                return Access("anybody", (), self.is_open)
            if scope == "invoke" and name is not None and self.is_public(space, name):
                return Access("anybody", ((space, Grant(frozenset({scope}), frozenset({name}))),), self.is_open)
        if credential is None and space is not None:
            raise _missing()
        access = await self.identify(credential)
        access.require(scope, space, name)
        return access

    def admits_at_once(self, space: str, name: str, credential: str | None) -> bool:
        """Whether a token of spaces.toml lets this function be invoked; False where there is more to look into."""
        if credential is None or len(credential) > LONGEST or self.is_public(space, name):
            return False
        grants = self._current().static(digest_of(credential))
        return any(place in (None, space) and grant.allows("invoke", name) for place, grant in grants)

    def is_public(self, space: str, name: str) -> bool:
        """Whether anybody may invoke this function."""
        return self._config().settings(space, name).public

    def is_ours(self, credential: str) -> bool:
        """Whether this is a token for the host, expired or not: it must not reach a handler."""
        if len(credential) > LONGEST:
            return False
        table = self._current()
        if table.static(digest_of(credential)) or self._tokens.signed(credential):
            return True
        outside = self._outside()
        return outside is not None and outside.names(credential)

    async def _known(self, credential: str) -> Access:
        """Whose this credential is; Unauthorized when it is nobody's."""
        subject, grants = await self._find(credential) if len(credential) <= LONGEST else ("", NOTHING)
        if not grants:
            message = "Unauthenticated: this token is not known here, or no longer good"
            raise Unauthorized(message, headers=WRONG)
        return Access(subject, grants, self.is_open)

    async def _find(self, credential: str) -> tuple[str, Grants]:
        table = self._current()
        if found := table.static(digest := digest_of(credential)):
            return f"token {digest.hex()[:16]}", found  # one token's holder is not another's
        claims = self._tokens.read(credential)
        if claims is not None:
            return claims["sub"], self._granted(table, claims)
        outside = self._outside()
        claims = await outside.claims(credential) if outside is not None else None
        if claims is None:
            return "", ()
        named = [each for each in map(claims.get, ("sub", "client_id", "azp")) if each and isinstance(each, str)]
        return next(iter(named), ""), _narrowed(table.subject(named), _words(claims.get("scope")))

    def _granted(self, table: _Table, claims: dict[str, Any]) -> Grants:
        """What a token that we have signed is good for now."""
        subject = claims["sub"]
        if claims["use"] == "operator":
            return ((None, ALL),)
        if claims["use"] == "function":
            return ((subject.partition("/")[0], OWN),)
        if self._is_revoked(claims):
            return ()
        marks = [(space, client) for space, client in table.clients if client.id == subject]
        mark = claims.get("mark", "")
        held = [(s, c.grant) for s, c in marks if hmac.compare_digest(self._tokens.mark(c.digest), mark)]
        return _narrowed(tuple(held), _words(claims.get("scope")))

    def _is_revoked(self, claims: dict[str, Any]) -> bool:
        try:
            return self._revocations.has(claims)
        except OSError as error:  # then no token can be trusted that could have been given back
            log.error("the list of revoked tokens in the state folder cannot be read: %s", error.strerror)
            raise RecordsError("whether this token was revoked cannot be told now") from None

    # Tokens.

    def issue(self, client_id: str, client_secret: str, scope: str | None) -> IssuedToken:
        """A token for a client (RFC 6749 section 4.4), narrowed to those of our scopes that it asks for.

        InvalidClient; BadRequest where the client has none of them. In a host that is open to all, any client gets one.
        """
        table, digest = self._current(), digest_of(client_secret)
        held = [c.grant for _, c in table.clients if hmac.compare_digest(c.digest, digest) and c.id == client_id]
        if not held and (table.server_guarded or table.guarded or not self._open()):
            raise InvalidClient
        has = frozenset[str]().union(*(grant.scopes for grant in held)) if held else frozenset(SCOPES)
        scopes = has & (_words(scope) or has)
        if not scopes:
            message = f"this client may not do any of that; it may {', '.join(_ordered(has))}"
            raise BadRequest(message, details={"error": "invalid_scope"})
        words, life = " ".join(_ordered(scopes)), max(1, int(self._config().server.token_life))
        claims = {"sub": client_id, "jti": secrets.token_hex(16), "scope": words}
        if held:
            claims["mark"] = self._tokens.mark(digest)
        return IssuedToken(self._tokens.sign("client", claims, life), life, words)

    def revoke(self, token: str) -> None:
        """End a token that `issue` gave, for every host on this state folder, also after a restart. Blocks; OSError.

        Any other is left alone: those of spaces.toml end when they are taken out there.
        """
        claims = self._tokens.read(token) if len(token) <= LONGEST else None
        if claims is not None and claims["use"] == "client":
            self._revocations.add(claims)

    def function_token(self, space: str, name: str) -> str:
        """What a function's own calls carry: it may invoke and read in its own space, while the key is the same."""
        return self._tokens.sign("function", {"sub": f"{space}/{name}"}, None)

    def operator_token(self) -> str:
        """What the command line's requests carry: everything, for a minute."""
        return self._tokens.sign("operator", {"sub": "operator"}, OPERATOR_LIFE)

    def seal(self, text: str) -> str:
        """What only hosts with this key can say of a text: so they know again what they have handed out."""
        return self._tokens.mark(digest_of(f"sealed\0{text}"))

    # What is configured.

    def _current(self) -> _Table:
        config = self._config()
        if self._table.config is not config:
            self._table = _Table(config)
        return self._table

    def _outside(self) -> OutsideIssuer | None:
        wanted = self._config().server.issuer
        if wanted is None:
            self._issuer = None
        elif self._issuer is None or self._issuer.issuer != wanted:
            self._issuer = OutsideIssuer(wanted)
        return self._issuer


class _Table:
    """What one configuration grants, so that it can be looked up."""

    def __init__(self, config: Config) -> None:
        server = config.server
        self.config = config
        self.server_guarded = server.is_guarded
        self.tokens: list[tuple[str | None, Token]] = [(None, token) for token in server.tokens]
        self.clients: list[tuple[str, Client]] = []
        self.subjects: list[tuple[str, str, Grant]] = []
        guarded = set()
        for name, space in config.spaces.items():
            self.tokens += [(name, token) for token in space.tokens]
            self.clients += [(name, client) for client in space.clients]
            self.subjects += [(name, each.subject, each.grant) for each in space.subjects]
            if space.is_guarded:
                guarded.add(name)
        self.guarded = frozenset(guarded)

    def static(self, digest: bytes) -> Grants:
        """What the token with this digest is good for; it takes as long whether or not there is one."""
        return tuple((space, token.grant) for space, token in self.tokens if hmac.compare_digest(token.digest, digest))

    def subject(self, named: list[str]) -> Grants:
        """What these names of one subject are good for."""
        return tuple((space, grant) for space, subject, grant in self.subjects if subject in named)


def operator_token(config: Config) -> str | None:
    """A token of the command line for a host with this configuration; None where its key cannot be read."""
    tokens = Tokens(lambda: config.server)
    try:
        return tokens.sign("operator", {"sub": "operator"}, OPERATOR_LIFE) if tokens.has_key else None
    except ConfigError:
        return None


def is_guarded(config: Config) -> bool:
    """Whether anything here needs a credential."""
    table = _Table(config)
    return table.server_guarded or bool(table.guarded)


def _missing() -> Unauthorized:
    return Unauthorized("No token provided: send it as `Authorization: Bearer TOKEN`", headers=MISSING)


def _words(scope: Any) -> frozenset[str]:
    """Those scopes of ours that are named; others are another vendor's, and mean nothing here."""
    return frozenset(scope.split()) & frozenset(SCOPES) if isinstance(scope, str) else frozenset()


def _narrowed(grants: Grants, scopes: frozenset[str]) -> Grants:
    """The grants, as far as these scopes go; all of it where none is named."""
    if not scopes:
        return grants
    kept = ((space, Grant(grant.scopes & scopes, grant.functions)) for space, grant in grants)
    return tuple((space, grant) for space, grant in kept if grant.scopes)


def _ordered(scopes: Iterable[str]) -> list[str]:
    return sorted(scopes, key=SCOPES.index)
