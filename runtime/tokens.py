"""Tokens that the host signs itself, and the key that it signs them with.

Used by `authority.py`, and by `attach.py` for the command line's own. JSON Web Tokens (RFC 7519) with HS256, by PyJWT,
which is imported when the first one is made or read.
"""

from __future__ import annotations

import base64
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .config import ServerSettings
from .credentials import digest_of
from .errors import ConfigError
from .whereabouts import make_folder

ISSUER = "spaces"
USES = ("client", "function", "operator")
SKEW = 30.0  # seconds that the clock of another host with the same key may be ahead
KEY_FILE = "token.key"
REMEMBERED = 1000  # tokens that need not be checked again

_KEY = re.compile(r"[0-9a-f]{64}\n?")

log = logging.getLogger("spaces.server")


class Tokens:
    """Signs and reads tokens.

    The key is the configured `token_key`, else that in the state folder, which is made when it is first needed.
    """

    def __init__(self, settings: Callable[[], ServerSettings]) -> None:
        self._settings = settings
        self._made: bytes | None = None  # the key of the state folder, or in its place
        self._checked: dict[bytes, dict[str, Any]] = {}  # by digest: PyJWT takes as long as a whole call does

    def prepare(self) -> None:
        """Make the key, where there is none yet, and import PyJWT. Blocks; ConfigError."""
        import jwt

        assert jwt
        self._key()

    @property
    def has_key(self) -> bool:
        """Whether there is a key that other processes know too."""
        return self._known_key() is not None

    def sign(self, use: str, claims: dict[str, Any], life: int | None) -> str:
        """A token for this use, good for `life` seconds, None for as long as the key."""
        import jwt

        whole = {"iss": ISSUER, "use": use, **claims}
        if life is not None:
            now = int(time.time())
            whole |= {"iat": now, "exp": now + life}
        return jwt.encode(whole, self._key(), algorithm="HS256")

    def read(self, token: str) -> dict[str, Any] | None:
        """The claims of a token of ours that is good now; None for any other."""
        digest = digest_of(token)
        claims = self._checked.get(digest)
        if claims is None:
            claims = self._check(token)
            if claims is None:
                return None
            if len(self._checked) >= REMEMBERED:
                self._checked.clear()
            self._checked[digest] = claims
        return claims if claims.get("exp", math.inf) > time.time() else None

    def _check(self, token: str) -> dict[str, Any] | None:
        if not self.signed(token):
            return None
        import jwt

        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key(), algorithms=["HS256"], issuer=ISSUER,
                options={"require": ["iss", "sub", "use"], "verify_iat": False},
            )  # fmt: skip
        except jwt.PyJWTError:
            return None
        if claims["use"] not in USES or claims.get("iat", 0) > time.time() + SKEW:
            return None
        return claims

    def signed(self, token: str) -> bool:
        """Whether this key has signed it, whatever it says. Cheap: it is asked of every credential."""
        head, dot, signature = token.rpartition(".")
        if not dot or not token.isascii():
            return False
        key = self._known_key()
        if key is None:
            return False
        expected = base64.urlsafe_b64encode(hmac.digest(key, head.encode(), "sha256")).rstrip(b"=")
        return hmac.compare_digest(expected, signature.encode())

    def mark(self, digest: bytes) -> str:
        """What a client's token says of its secret: it changes with the secret, and tells nothing of it."""
        return hmac.digest(self._key(), b"secret\0" + digest, "sha256").hex()[:32]

    def _known_key(self) -> bytes | None:
        """The key, if there is one already."""
        settings = self._settings()
        if settings.token_key is not None:
            return settings.token_key.value
        if self._made is None:
            self._made = _read(settings.state / KEY_FILE)
        return self._made

    def _key(self) -> bytes:
        key = self._known_key()
        if key is None:
            key = self._made = _make(self._settings().state / KEY_FILE)
        return key


def _read(file: Path) -> bytes | None:
    try:
        text = file.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file}: the key of the tokens cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not _KEY.fullmatch(text):
        raise ConfigError(f"{file}: this is no key. Remove it: another is made, and the tokens issued so far end")
    return bytes.fromhex(text)


def _make(file: Path) -> bytes:
    """A new key in this file; where another host was quicker, that one's."""
    text = secrets.token_hex(32)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        make_folder(file.parent)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "w", encoding="ascii") as written:
                written.write(f"{text}\n")
                written.flush()
                os.fsync(handle)
            with suppress(FileExistsError):
                os.link(draft, file)
        finally:
            draft.unlink()
    except OSError as error:
        log.warning("%s cannot be written (%s): the tokens issued now end with this process", file, error.strerror)
        return bytes.fromhex(text)
    return _read(file) or bytes.fromhex(text)
