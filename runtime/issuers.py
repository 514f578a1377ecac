"""Tokens of an outside issuer: JSON Web Tokens that are checked with the keys it publishes (OpenID Connect, JWKS).

Used by `authority.py`. The keys are fetched in a thread, by httpx2; PyJWT checks the signatures, and needs the package
cryptography for these: the extra `oidc`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec

from .credentials import Issuer, issuer_url
from .errors import IssuerUnreachable

if TYPE_CHECKING:
    from jwt import PyJWK

FRESH = 600.0  # seconds after which keys are fetched again: one may have been withdrawn
USABLE = 86400.0  # seconds that keys serve on when they cannot be fetched again
PAUSE = 30.0  # seconds between two attempts to fetch them
TIMEOUT = 5.0  # seconds that one attempt may take
LEEWAY = 30.0  # seconds that the issuer's clock may differ
LARGEST = 1024 * 1024  # bytes of a document of the issuer
# Keys of both sides only: with a shared one (HS256), a published key could be used to sign.
ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}

log = logging.getLogger("spaces.server")

Keys = list[dict[str, Any]]


class OutsideIssuer:
    """The issuer that is configured, and its keys as they were last fetched.

    Guarantee: no token costs more than one request to the issuer, and the issuer gets at most one in `PAUSE` seconds.
    """

    def __init__(
        self,
        issuer: Issuer,
        *,
        fetch: Callable[[Issuer], Keys] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._fetch = fetch or fetch_keys
        self._clock = clock
        self._keys: Keys = []
        self._fetched: float | None = None
        self._tried: float | None = None
        self._turn = anyio.Lock()

    def names(self, token: str) -> bool:
        """Whether the token says that it is of this issuer and for us; nothing of that is checked."""
        import jwt

        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return False
        audience = claims.get("aud")
        ours = audience if isinstance(audience, list) else [audience]
        return bool(claims.get("iss") == self.issuer.url and self.issuer.audience in ours)

    async def claims(self, token: str) -> dict[str, Any] | None:
        """The claims of a token that is good now; None for any other. IssuerUnreachable: it cannot be told."""
        if not self.names(token):
            return None
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        algorithm = str(header.get("alg"))
        if not any(algorithm in known for known in ALGORITHMS.values()):
            return None
        key = await self._key(algorithm, header.get("kid"))
        if key is None:
            return None
        try:
            checked: dict[str, Any] = jwt.decode(
                token, key, algorithms=[algorithm], audience=self.issuer.audience, issuer=self.issuer.url,
                leeway=LEEWAY, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        return checked

    async def _key(self, algorithm: str, kid: Any) -> PyJWK | None:
        """The key that signs so, which may have to be fetched first."""
        found = self._choose(algorithm, kid)
        if found is None or self._age(self._fetched) > FRESH:
            if found is None or not self._turn.locked():  # with a key, nobody waits for somebody else's attempt
                async with self._turn:
                    if self._age(self._tried) > PAUSE:
                        await self._refresh()
            found = self._choose(algorithm, kid)
        if self._age(self._fetched) > USABLE:
            raise IssuerUnreachable
        return found

    def _choose(self, algorithm: str, kid: Any) -> PyJWK | None:
        import jwt

        fitting = [key for key in self._keys if _fits(key, algorithm) and kid in (None, key.get("kid"))]
        if len(fitting) != 1 and kid is None:  # which of several is not to be guessed
            return None
        for key in fitting:
            try:
                return jwt.PyJWK(key, algorithm)
            except jwt.PyJWTError:
                continue
        return None

    async def _refresh(self) -> None:
        self._tried = self._clock()
        problem = f"no answer within {TIMEOUT:g} s"
        with anyio.move_on_after(TIMEOUT):
            try:
                self._keys = await anyio.to_thread.run_sync(self._fetch, self.issuer, abandon_on_cancel=True)
                self._fetched = self._clock()
                return
            except (OSError, ValueError) as error:
                problem = str(error) or type(error).__name__
        log.warning("the keys of the issuer %s cannot be fetched: %s", self.issuer.url, problem)

    def _age(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment


def fetch_keys(issuer: Issuer) -> Keys:
    """The keys that the issuer publishes now. Blocks; OSError and ValueError say why there are none."""
    import httpx2
    import jwt

    assert jwt  # imported here, in a thread, since it takes a while
    try:
        with httpx2.Client(timeout=TIMEOUT) as client:
            where = issuer.jwks or _discovered(_get(client, _discovery(issuer.url)), issuer.url)
            keys = _get(client, where).get("keys")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    if not isinstance(keys, list):
        raise ValueError(f"{where} has no list of keys")
    return [key for key in keys if isinstance(key, dict)]


def _discovery(url: str) -> str:
    return f"{url.rstrip('/')}/.well-known/openid-configuration"


def _discovered(document: dict[str, Any], url: str) -> str:
    """Where the keys are, as the discovery document says."""
    if document.get("issuer") != url:
        raise ValueError(f"its discovery document is that of {str(document.get('issuer'))[:200]!r}")
    return issuer_url(document.get("jwks_uri"))


def _get(client: Any, url: str) -> dict[str, Any]:
    """The JSON object at this address."""
    with client.stream("GET", url, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{url} answers {answer.status_code}")
        body = bytearray()
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > LARGEST:
                raise ValueError(f"{url} answers more than {LARGEST} bytes")
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise ValueError(f"{url} does not answer a JSON object") from None


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    """Whether this is a key for checking signatures of this kind."""
    return (
        algorithm in ALGORITHMS.get(str(key.get("kty")), ())
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and CURVES.get(algorithm, key.get("crv")) == key.get("crv")
    )
