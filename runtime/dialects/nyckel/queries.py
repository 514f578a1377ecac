"""What the query of a request asks for: flags, numbers, times, pages.

Used by the endpoints of the dialect. An empty value is an absent one: clients send `modelId=` and `includeMetadata=`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request

from ...errors import BadRequest

FLAGS = {"true": True, "1": True, "false": False, "0": False}
MOST_COUNT = 1000  # in one page
_NUMBER = re.compile(r"[0-9]{1,9}")


def flag(query: QueryParams, name: str, default: bool) -> bool:
    """true, false, 1 or 0, in any case."""
    found = optional_flag(query, name)
    return default if found is None else found


def optional_flag(query: QueryParams, name: str) -> bool | None:
    """The same; None where there is none."""
    text = query.get(name, "")
    if not text:
        return None
    if text.lower() not in FLAGS:
        raise BadRequest(f"{name} must be true or false")
    return FLAGS[text.lower()]


def number(query: QueryParams, name: str, least: int, default: int | None = None) -> int | None:
    """A whole number of at least so much."""
    text = query.get(name, "")
    if not text:
        return default
    if _NUMBER.fullmatch(text) is None or int(text) < least:
        raise BadRequest(f"{name} must be a whole number of at least {least}")
    return int(text)


def moment(query: QueryParams, name: str) -> float | None:
    """A time as ISO 8601, in UTC where it names no zone, as seconds since the epoch."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(f"{name} must be a time such as 2026-01-31T12:00:00Z") from None


def text(query: QueryParams, name: str) -> str | None:
    """Any text."""
    return query.get(name) or None


def bounds(query: QueryParams) -> tuple[int, int]:
    """Where the page starts and how much it may hold: `startIndex`, and `count` or `batchSize`."""
    start = number(query, "startIndex", 0, 0)
    count = number(query, "count", 1) or number(query, "batchSize", 1) or MOST_COUNT
    return start or 0, min(count, MOST_COUNT)


def link(request: Request, changes: Mapping[str, int]) -> dict[str, str]:
    """The header that tells where the next page is: a path without the mount's name, as the SDK wants it."""
    path: str = request.scope["path"]
    path = path[path.index("/v") :] if not path.startswith("/v") else path
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in changes]
    query = urlencode([*kept, *((key, str(value)) for key, value in changes.items())])
    return {"Link": f'<{path}?{query}>; rel="next"'}
