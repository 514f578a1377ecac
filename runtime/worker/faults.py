"""What can be wrong with a call or with an answer, as the worker sees it.

Raised by `context`, `body`, `jsons` and `answer`; the worker's loop turns each into an envelope with
`answer.refusal(fault.status, fault.code, fault.message, fault.details)`.
"""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """The call cannot be given to the handler."""

    def __init__(self, status: int, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}


class NotEncodable(Exception):
    """What the handler returned cannot be made an HTTP answer."""

    status = 500
    code = "not_encodable"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = {}


class TooLarge(Exception):
    """What the handler returned is larger than the function's `max_response`."""

    status = 500
    code = "response_too_large"

    def __init__(self, size: int, limit: int) -> None:
        self.message = f"the answer has {size} bytes; max_response is {limit}"
        super().__init__(self.message)
        self.details = {"size": size, "max_response": limit}
