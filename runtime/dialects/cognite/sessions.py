"""Sessions: the nonce that the SDK asks for before each call. And who the caller is, which it asks after a refusal.

A nonce is kept nowhere: it says until when it is good, and is sealed for who asked for it. So it outlives a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute

from ...authority import Access
from ...errors import BadRequest
from .door import BASE, Door, NotOffered, Shape

LIFE = 300  # seconds in which a nonce is to be used
DEFAULT_PROJECT = "spaces"  # what is told to who asks for projects, where every name is one
ACTIONS = {"READ": "read", "WRITE": "deploy", "RUN": "invoke"}


class Wanted(Shape, frozen=True):
    """How a session is to be had. What client and secret are good for is not asked: the bearer token counts."""

    token_exchange: bool | None = None
    oneshot_token_exchange: bool | None = None
    client_id: str | None = None
    client_secret: str | None = None

    @property
    def type(self) -> str:
        """Its name; BadRequest for none or several."""
        ways = {
            "TOKEN_EXCHANGE": bool(self.token_exchange),
            "ONESHOT_TOKEN_EXCHANGE": bool(self.oneshot_token_exchange),
            "CLIENT_CREDENTIALS": self.client_id is not None and self.client_secret is not None,
        }
        found = [way for way, chosen in ways.items() if chosen]
        if len(found) != 1:
            raise BadRequest("a session needs one of tokenExchange, oneshotTokenExchange, clientId with clientSecret")
        return found[0]


class SessionBody(Shape, frozen=True):
    """Of POST sessions."""

    items: list[Wanted]


class Created(Shape, frozen=True):
    """A session that was asked for."""

    id: int
    status: str
    nonce: str
    type: str
    client_id: str | None = None


class Sessions:
    """Gives out nonces, and knows them again.

    Guarantee: where functions are guarded, nobody calls with a nonce that is too old or was somebody else's.
    """

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> list[BaseRoute]:
        """Where they are had."""
        route = self._door.route
        return [
            route("/api/v1/token/inspect", "GET", self._inspect),
            route(f"{BASE}/sessions", "POST", self._create),
            route(f"{BASE}/sessions", "GET", self._not_kept),
            route(f"{BASE}/sessions/byids", "POST", self._not_kept),
            route(f"{BASE}/sessions/revoke", "POST", self._not_kept),
        ]

    def check(self, nonce: str | None, subject: str, *, needed: bool) -> int:
        """The number of the session that this nonce is of, which the subject was given; BadRequest.

        Where it is not `needed`, any nonce will do, or none: it is a session of its own.
        """
        number, _, rest = (nonce or "").partition("-")
        expiry, _, seal = rest.partition("-")
        if all(part.isascii() and part.isdigit() and len(part) <= 16 for part in (number, expiry)):
            genuine = hmac.compare_digest(seal.encode("utf-8", "replace"), self._seal(number, expiry, subject).encode())
            if genuine and int(expiry) >= time.time():
                return int(number)
        if needed:
            problem = "the nonce is not known here, or has expired" if nonce else "the nonce is missing"
            raise BadRequest(f"{problem}: get one by POST sessions, and use it within {LIFE // 60} minutes")
        return self._door.host.ids.next()

    def _seal(self, number: str, expiry: str, subject: str) -> str:
        return self._door.host.authority.seal(f"cognite session\0{number}\0{expiry}\0{subject}")

    async def _create(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        body = await self._door.read(request, SessionBody)
        if len(body.items) != 1:
            raise BadRequest("one session can be created at a time: `items` must have one item")
        wanted = body.items[0]
        number, expiry = str(self._door.host.ids.next()), str(int(time.time()) + LIFE)
        nonce = f"{number}-{expiry}-{self._seal(number, expiry, access.subject)}"
        return 201, {"items": [Created(int(number), "READY", nonce, wanted.type, wanted.client_id)]}

    async def _not_kept(self, request: Request) -> tuple[int, Any]:
        await self._door.access(request)
        raise NotOffered("sessions are not kept here, and can be neither listed nor revoked: they end by themselves")

    async def _inspect(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        projects = self._door.projects or (DEFAULT_PROJECT,)
        return 200, {
            "subject": access.subject or "anybody",
            "projects": [{"projectUrlName": name, "groups": []} for name in projects],
            "capabilities": self._capabilities(access, projects),
        }

    def _capabilities(self, access: Access, projects: tuple[str, ...]) -> list[dict[str, Any]]:
        """What may be done at least to some function."""
        spaces = self._door.host.registry.spaces
        actions = [action for action, scope in ACTIONS.items() if access.spaces(scope, spaces)]
        within = {"projects": list(projects)}
        rights = {"functionsAcl": actions, "sessionsAcl": ["CREATE"]}
        return [
            {name: {"actions": granted, "scope": {"all": {}}}, "projectScope": within}
            for name, granted in rights.items()
            if granted
        ]


def key_of(subject: str, nonce: str) -> str:
    """What makes two requests with a nonce the same; whoever reads it does not know the nonce."""
    digest = hashlib.blake2b(f"{subject}\0{nonce}".encode(), digest_size=16)
    return f"cognite:{digest.hexdigest()}"
