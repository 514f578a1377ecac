"""Which calls are asked for: a list's filters, read from its query.

Used by `calls.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from ...calls import TRIGGERS, Status
from ...errors import BadRequest
from ...journal import Query
from ...toml_reader import duration
from .moments import read_moment

MOST = 500  # calls in one answer
YES = ("1", "true", "yes")
NO = ("0", "false", "no")


def read(parameters: QueryParams, path: Mapping[str, Any]) -> Query:
    """The query; BadRequest names what is not understood, so that no filter is passed over."""
    fields: dict[str, Any] = {}
    filters = FILTERS if path else {**FILTERS, **PLACES}
    for key in parameters:
        if key not in filters:
            raise BadRequest(f"there is no filter `{key}`; there are {', '.join(sorted(filters))}")
        field, reader = filters[key]
        values = parameters.getlist(key)
        if len(values) > 1 and key != "status":
            raise BadRequest(f"`{key}` is there twice")
        fields[field] = reader(",".join(values))
    return Query(**{**fields, **{field: path[field] for field in ("space", "name") if field in path}})


def _statuses(text: str) -> tuple[Status, ...]:
    try:
        return tuple(Status(word.strip()) for word in text.split(",") if word.strip())
    except ValueError:
        raise BadRequest(f"status must be among {', '.join(Status)}") from None


def _trigger(text: str) -> str:
    if text not in TRIGGERS:
        raise BadRequest(f"trigger must be one of {', '.join(TRIGGERS)}")
    return text


def _moment(text: str) -> float:
    """A point in time, or how long ago it was."""
    try:
        return time.time() - duration(text, zero=True)
    except ValueError:
        pass
    try:
        return read_moment(text, "since and until")
    except BadRequest as error:
        raise BadRequest(f"{error.message}, or how long ago: 15m") from None


def _flag(text: str) -> bool:
    if text.lower() not in (*YES, *NO):
        raise BadRequest("dead_letters must be 1 or 0")
    return text.lower() in YES


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MOST):
        raise BadRequest(f"limit must be 1 to {MOST}")
    return int(text)


def _cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise BadRequest("cursor must be the `next` of an earlier answer")
    return int(text)


FILTERS: dict[str, tuple[str, Any]] = {
    "status": ("statuses", _statuses),
    "trigger": ("trigger", _trigger),
    "idempotency_key": ("idempotency_key", str),
    "since": ("since", _moment),
    "until": ("until", _moment),
    "dead_letters": ("dead_letters", _flag),
    "limit": ("limit", _limit),
    "cursor": ("before", _cursor),
}
PLACES: dict[str, tuple[str, Any]] = {"space": ("space", str), "function": ("name", str)}
