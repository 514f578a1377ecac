"""Cognite's dialect: functions called, looked up and scheduled as Cognite Functions are, for its SDK as it is.

Mounted by `app.py`, asks `host.py`. docs/reference/dialects/cognite.md says what is supported, and what differs.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from ...calls import Headers
from ...errors import HostError
from ...host import Host
from .calls import Calls
from .door import Door
from .functions import Functions
from .schedules import Schedules
from .sessions import Sessions

NAME = "cognite"
JSON = (b"content-type", b"application/json")
REPEATED = ("missing", "duplicated")  # details that this dialect's clients look for


def owns(path: str) -> bool:
    """Whatever is below /api/."""
    return path.startswith("/api/")


def routes(host: Host) -> list[BaseRoute]:
    """Everything below /api/v1/projects/{project}, and token/inspect."""
    door = Door(host)
    sessions = Sessions(door)
    parts = (sessions, Schedules(door, sessions), Functions(door), Calls(door, sessions))
    return [route for part in parts for route in part.routes()]


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """An error as the SDK reads it: always with a code and a message, or it raises KeyError itself."""
    told: dict[str, Any] = {"code": error.status, "message": error.message or error.code}
    told |= {key: error.details[key] for key in REPEATED if key in error.details}
    body = msgspec.json.encode({"error": told})
    fields = {"X-Request-ID": secrets.token_hex(8), **error.headers}
    headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
    return error.status, [JSON, (b"content-length", b"%d" % len(body)), *headers], body
