"""Error envelopes: what a client is told when a handler raised, or when its call was refused.

Used by the worker's loops, through `answer`. Nothing that an exception does when looked at can break these.
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from types import FrameType, TracebackType
from typing import Any

from . import jsons
from .faults import NotEncodable, TooLarge
from .head import JSON, NONE_GIVEN, Answer, whole

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_MOST_TEXT = 4096
_MOST_TRACEBACK = 32 * 1024


def failure(error: BaseException, handler_file: str, debug: bool) -> Answer:
    """The answer to a call whose handler raised: 500, with the line of the handler file where it happened."""
    if isinstance(error, (NotEncodable, TooLarge)):
        return refusal(error.status, error.code, error.message, error.details)
    kind, text = type(error).__name__, _text_of(error)
    frame, line = _where(error.__traceback__, handler_file)
    message = kind if line is None else f"{kind} at line {line}"
    details: dict[str, Any] = {
        "exception_type": kind,
        "exception_info": text,
        "exception_line_number": line,
    }
    if debug:
        details["exception_line_code"] = _code(frame, line)
        details["traceback"] = traceback_text(error)
    return refusal(500, "function_error", f"{message}: {text}" if text else message, details)


def refusal(status: int, code: str, message: str, details: dict[str, Any]) -> Answer:
    """The answer that says why there is no other."""
    body = to_json({"error": {"status": status, "code": code, "message": message, "details": details}})
    return whole(status, NONE_GIVEN, JSON, body, sys.maxsize)


def to_json(value: Any) -> bytes:
    """The value as compact JSON."""
    return jsons.dumps(value)


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, without our own frames, and without its middle when it is long."""
    if isinstance(error, (NotEncodable, TooLarge)):
        return f"{type(error).__name__}: {error.message}\n"
    try:
        report = traceback.TracebackException(type(error), error, error.__traceback__)
        _without_ours(report)
        text = "".join(report.format())
    except BaseException:  # the exception is the user's, and so is all that it does when it is printed
        text = f"{type(error).__name__}: {_text_of(error)}\n"
    if len(text) > _MOST_TRACEBACK:
        half = _MOST_TRACEBACK // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return _sound(text)


def _without_ours(report: traceback.TracebackException | None) -> None:
    if report is None:
        return
    report.stack[:] = [entry for entry in report.stack if not entry.filename.startswith(_OURS)]
    for inner in (report.__cause__, report.__context__, *(report.exceptions or ())):
        _without_ours(inner)


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # a `__str__` of the user's
        return "(its text cannot be shown: str() of it raises)"
    return _sound(text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + "...")


def _sound(text: str) -> str:
    """The text, lone surrogates escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _where(trace: TracebackType | None, handler_file: str) -> tuple[FrameType | None, int | None]:
    """The innermost frame within the handler file, else the innermost that is not ours, and its line."""
    within: tuple[FrameType | None, int | None] = (None, None)
    innermost = within
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file == handler_file:
            within = trace.tb_frame, trace.tb_lineno
        elif not file.startswith(_OURS):
            innermost = trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
    return innermost if within[0] is None else within


def _code(frame: FrameType | None, line: int | None) -> str:
    if frame is None or line is None:
        return ""
    return _sound(linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip())
