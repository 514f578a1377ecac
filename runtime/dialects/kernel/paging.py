"""Which part of a list is asked for, and the list in parts: a bare array, and headers that say where the next begins.

Used by the other modules here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from ...errors import BadRequest

USUAL, MOST = 20, 100  # items of one answer
FARTHEST = 10**9


class Part(NamedTuple):
    """So many items from one on."""

    offset: int
    limit: int

    @property
    def end(self) -> int:
        """The first item behind it."""
        return self.offset + self.limit


def read(query: QueryParams) -> Part:
    """The part that is asked for; BadRequest."""
    limit = _number(query.get("limit") or str(USUAL))
    offset = _number(query.get("offset") or "0")
    if limit is None or not 1 <= limit <= MOST:
        raise BadRequest(f"limit must be 1 to {MOST}")
    if offset is None:
        raise BadRequest("offset must be a number, 0 or more")
    return Part(offset, limit)


def page(items: Sequence[Any], query: QueryParams) -> Response:
    """The part of these items that is asked for."""
    part = read(query)
    return answer(items[part.offset : part.end], part, more=len(items) > part.end)


def answer(items: Sequence[Any], part: Part, *, more: bool) -> Response:
    """One part of a list. The offset of the next is 0 where there is none, which is how clients know."""
    headers = {
        "X-Has-More": "true" if more else "false",
        "X-Next-Offset": str(part.end if more else 0),
        "X-Limit": str(part.limit),
        "X-Offset": str(part.offset),
    }
    return Response(msgspec.json.encode(items), headers=headers, media_type="application/json")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
