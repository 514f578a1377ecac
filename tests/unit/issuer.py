"""An outside issuer of tokens on this machine: its discovery document, its keys, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "spaces"
# Made once: RSA keys take a while.
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
STRANGER: Any = ec.generate_private_key(ec.SECP256R1())


def public(algorithm: str, kid: str | None) -> dict[str, Any]:
    """The public half of a key as a JWK."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    found: dict[str, Any] = kinds[algorithm].to_jwk(PRIVATE[algorithm].public_key(), as_dict=True)
    return found | ({"kid": kid} if kid else {}) | {"use": "sig"}


class LocalIssuer:
    """What it publishes, and tokens that it signs."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[dict[str, Any]] = [public(algorithm, algorithm) for algorithm in PRIVATE]
        self.asked: list[str] = []
        self.status = 200
        self.body: bytes | None = None  # in place of what it publishes
        self.claimed: str | None = None  # what its discovery document says that it is

    def answer(self, path: str) -> tuple[int, bytes]:
        """The document at this path."""
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            found: Any = {"issuer": self.claimed or self.url, "jwks_uri": f"{self.url}/keys"}
        else:
            found = {"keys": self.keys}
        return self.status, json.dumps(found).encode() if self.body is None else self.body

    def token(self, algorithm: str = "RS256", *, key: Any = None, kid: str | None = "", **claims: Any) -> str:
        """A token, good unless the claims say otherwise; None removes a claim, and the key's id."""
        now = int(time.time())
        whole = {"iss": self.url, "aud": AUDIENCE, "sub": "svc-a", "iat": now, "exp": now + 600, **claims}
        named = algorithm if kid == "" else kid
        return jwt.encode(
            {name: value for name, value in whole.items() if value is not None},
            key or PRIVATE[algorithm],
            algorithm=algorithm,
            headers={"kid": named} if named else None,
        )


@contextmanager
def local_issuer() -> Iterator[LocalIssuer]:
    """An issuer that answers at a free port of this machine."""
    issuer = LocalIssuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = issuer.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield issuer
        server.shutdown()
        serving.join()
