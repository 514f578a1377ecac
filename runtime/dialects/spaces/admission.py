"""Whether a request may do what it asks for: the credential it carries, and what the host says to that.

Used by the other modules of this dialect; asks `host.py`.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from ...authority import Access, Authority
from ...host import Host
from ...request import bearer

# Where a token may begin and end. A token may itself have any of these but spaces in it, and several headers are joined
# by commas: so each way of cutting is tried.
CUTS = tuple(map(re.compile, (rb",?\s+", rb"[\s,]+", rb'[\s,;="]+')))
MOST_PARTS = 100  # no scheme has as many


def credential(request: Request) -> str | None:
    """The token that a request carries."""
    return bearer(request.headers.get("authorization"))


async def require(host: Host, request: Request, scope: str, space: str, name: str | None = None) -> Access:
    """Who asks, if they may do this there, `public` or not. Unauthorized, Forbidden."""
    access = await whoever(host, request, space)
    access.require(scope, space, name)
    return access


async def whoever(host: Host, request: Request, space: str) -> Access:
    """Who asks something about a space; in one that is open to all it does not matter. Unauthorized."""
    token = credential(request)
    return await host.identify(None if host.authority.is_open(space) else token)


async def admit(host: Host, space: str, name: str, authorization: bytes | None) -> bytes | None:
    """Let a call pass, or raise Unauthorized or Forbidden; its Authorization, where that is for the function to see.

    It is not where the host has looked at it, nor wherever it holds a token of the host's.
    """
    authority = host.authority
    is_open = authority.is_open(space)
    if not is_open:
        await host.authorize("invoke", space, name, bearer(authorization))
    if authorization is None or not (is_open or authority.is_public(space, name)):
        return None
    return None if _holds_ours(authority, authorization) else authorization


def _holds_ours(authority: Authority, authorization: bytes) -> bool:
    """Whether a token of the host's is in it, in whatever way it is written, or it has too many parts to tell."""
    parts = {part for cut in CUTS for part in cut.split(authorization)}
    return len(parts) > MOST_PARTS or any(authority.is_ours(part.decode("latin-1")) for part in parts)
