"""What a function answered, read as a value: for dialects that speak of values and not of HTTP answers.

Used by the dialects; reads the `Outcome` that the journal keeps.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec

from .calls import Outcome

_MOST_TEXT = 4096  # characters of what a failure without an envelope is described with


class Answer(msgspec.Struct, frozen=True):
    """`ok`: the function answered with a status below 400. `value`: what it returned, as JSON text.

    Of a failure, `message` says what went wrong, and `kind` is the exception's type or the error's code.
    """

    ok: bool
    value: bytes
    message: str = ""
    kind: str = ""


def read(outcome: Outcome) -> Answer:
    """What came of a call. Text is a JSON string, binary content that in Base64, and no content is null."""
    value = _value(outcome)
    if outcome.invoked and outcome.code < 400:
        return Answer(True, value)
    message, kind = _complaint(outcome, value)
    return Answer(False, value, message, kind)


def _value(outcome: Outcome) -> bytes:
    if not outcome.body:
        return b"null"
    kind = header(outcome, b"content-type").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            msgspec.json.decode(outcome.body)
        except (ValueError, RecursionError):
            pass  # a function may call anything JSON
        else:
            return outcome.body
    try:
        text = outcome.body.decode()
    except UnicodeDecodeError:
        text = b64encode(outcome.body).decode()
    return msgspec.json.encode(text)


def _complaint(outcome: Outcome, value: bytes) -> tuple[str, str]:
    """What an error envelope says; of another answer, its status and its beginning."""
    found: Any = msgspec.json.decode(value)
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        details = error.get("details")
        kind = details.get("exception_type") if isinstance(details, dict) else None
        return error["message"], str(kind or error.get("code") or outcome.error_code or "error")
    text = found if isinstance(found, str) else value.decode()
    return f"the function answered {outcome.code}: {text[:_MOST_TEXT]}", "http_status"


def header(outcome: Outcome, name: bytes) -> str:
    """The value of the first header field of this name, in lower case; empty where there is none."""
    parts = outcome.headers.split(b"\0")
    return next((v for k, v in zip(parts[::2], parts[1::2], strict=False) if k == name), b"").decode("latin-1")
