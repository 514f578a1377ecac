"""The token endpoint, at the addresses at which the vendors' clients look for it: OAuth 2.0 client credentials.

Mounted by `app.py`, asks the host's authority. RFC 6749 says how tokens are asked for, RFC 7009 how they are revoked.
Neither an id nor a secret is ever repeated in an answer or a log.
"""

from __future__ import annotations

import base64
import logging
from typing import Any
from urllib.parse import parse_qsl, unquote

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..calls import Headers
from ..errors import BadRequest, HostError, InvalidClient
from ..host import Host
from ..payload import read_json, read_whole

NAME = "oauth"

TOKEN = ("/oauth2/token", "/oauth/token", "/connect/token", "/nyckel.com/connect/token")
REVOKE = ("/oauth2/revoke",)
LARGEST = 64 * 1024  # bytes of a request
MOST_FIELDS = 50
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
CHALLENGE = (b"www-authenticate", b'Basic realm="spaces"')

log = logging.getLogger("spaces.server")


def owns(path: str) -> bool:
    """Its own addresses."""
    return path in TOKEN or path in REVOKE


def routes(host: Host) -> list[BaseRoute]:
    """Tokens issued, and taken back."""

    async def token(request: Request) -> Response:
        fields = await _fields(request)
        kind = fields.get("grant_type")
        if not kind:
            raise _problem("invalid_request", "grant_type is missing")
        if kind != "client_credentials":
            raise _problem("unsupported_grant_type", "grant_type must be client_credentials")
        id, secret = _client(fields, request.headers.get("authorization"))
        return _json(host.authority.issue(id, secret, fields.get("scope")))

    async def revoke(request: Request) -> Response:
        fields = await _fields(request)
        if not fields.get("token"):
            raise _problem("invalid_request", "token is missing")
        try:
            # Who has the token may end it: there is no use in asking for the client's secret as well.
            await anyio.to_thread.run_sync(host.authority.revoke, fields["token"])
        except OSError as error:
            log.error("a revoked token cannot be written down in the state folder: %s", error.strerror)
            raise _unwritten() from None
        return _json({})

    return [
        *(Route(path, token, methods=["POST"]) for path in TOKEN),
        *(Route(path, revoke, methods=["POST"]) for path in REVOKE),
    ]


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """An error as RFC 6749 section 5.2 words it; `message` is for clients that look there."""
    if isinstance(error, InvalidClient):
        code = "invalid_client"
    elif error.status < 500:
        code = error.details.get("error", "invalid_request")
    else:
        code = "temporarily_unavailable" if error.status == 503 else "server_error"
    body = msgspec.json.encode({"error": code, "error_description": error.message, "message": error.message})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers | NO_STORE).items()]
    if code == "invalid_client":
        headers.append(CHALLENGE)
    return error.status, headers, body


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form, or of a JSON object; what is sent twice is refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        found: dict[str, Any] = await read_json(request, dict[str, Any], LARGEST, "the limit here")
        if not all(isinstance(value, str) for value in found.values()):
            raise _problem("invalid_request", "the fields of the body must be strings")
        return found
    body = await read_whole(request, LARGEST, "the limit here")
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS, separator="&"
        )
    except ValueError:
        raise _problem("invalid_request", "the body must be a form, application/x-www-form-urlencoded") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _problem("invalid_request", "a field is there twice")
    return fields


def _client(fields: dict[str, str], authorization: str | None) -> tuple[str, str]:
    """Id and secret, of the body or of HTTP Basic (RFC 6749 section 2.3.1)."""
    id, secret = fields.get("client_id", ""), fields.get("client_secret", "")
    scheme, _, packed = (authorization or "").partition(" ")
    if not secret and scheme.lower() == "basic":
        try:
            text = base64.b64decode(packed.strip(), validate=True).decode()
        except ValueError:
            raise InvalidClient("the Authorization header is no HTTP Basic") from None
        # Percent-encoded, as the RFC has it. A "+" is left alone: most clients send secrets as they are.
        id, _, secret = (unquote(part) for part in text.partition(":"))
    if not id or not secret:
        raise InvalidClient("client_id and client_secret are missing")
    return id, secret


def _problem(code: str, message: str) -> BadRequest:
    return BadRequest(message, details={"error": code})


def _unwritten() -> HostError:
    error = HostError("the token could not be revoked for good; try again")
    error.status = 503
    return error


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=NO_STORE)
