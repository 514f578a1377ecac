"""Errors as Kernel words them.

Used by `__init__.py` for answers, and by `events.py` for what goes wrong after an answer has begun.
"""

from __future__ import annotations

from typing import Any

from ...errors import HostError

CODES = {
    401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 409: "conflict",
    429: "too_many_requests", 501: "not_implemented",
}  # fmt: skip
UNFIT = (413, 415, 422, 431)  # what Kernel answers by 400


def word(error: HostError, *, debug: bool = False) -> tuple[int, dict[str, Any]]:
    """The status and the body. Where Kernel's code says less than ours, ours is told beside it."""
    status = 400 if error.status in UNFIT else error.status
    code = CODES.get(status, "bad_request" if status < 500 else "internal_error")
    worded: dict[str, Any] = {"code": code, "message": error.message}
    if error.code != code:
        worded["inner_error"] = {"code": error.code, "message": error.message}
    if debug and "traceback" in error.details:
        worded["details"] = [{"code": "traceback", "message": str(error.details["traceback"])}]
    return status, worded
