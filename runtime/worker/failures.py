"""Error envelopes: what a client is told when a handler raised, or when its call was refused.

Used by the worker's loops, through `answer`. Nothing that an exception does when looked at can break these.
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from . import jsons
from .faults import NotEncodable, TooLarge
from .head import JSON, NONE_GIVEN, Answer, whole

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_MOST_NAME = 256
_MOST_TEXT = 4096
_MOST_TRACEBACK = 32 * 1024
_MOST_CHAINED = 50
_UNSEEN = "the function raised an exception that cannot be looked at"

# What Python itself goes by: whatever a class of the user's makes of these names, it is not asked.
_name: Any = type.__dict__["__name__"]
_trace: Any = BaseException.__dict__["__traceback__"]
_cause: Any = BaseException.__dict__["__cause__"]
_context: Any = BaseException.__dict__["__context__"]
_suppress: Any = BaseException.__dict__["__suppress_context__"]
_members: Any = BaseExceptionGroup.__dict__["exceptions"]


def failure(error: BaseException, handler_file: str, debug: bool) -> Answer:
    """The answer to a call whose handler raised: 500, with the line of the handler file where it happened."""
    try:
        return _failure(error, handler_file, debug)
    except BaseException:  # the exception is the user's
        details = {"exception_type": "", "exception_info": "", "exception_line_number": None}
        return refusal(500, "function_error", _UNSEEN, details)


def _failure(error: BaseException, handler_file: str, debug: bool) -> Answer:
    fault = _fault(error)
    if fault is not None:
        return refusal(fault.status, fault.code, _cut(fault.message, _MOST_TEXT), fault.details)
    kind, text = _name_of(error), _text_of(error)
    frame, line = _where(_trace.__get__(error), handler_file)
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
    fault = _fault(error)
    if fault is not None:
        return f"{type(fault).__name__}: {_cut(fault.message, _MOST_TEXT)}\n"
    try:
        with _short_chains(error) as cut:
            report = traceback.TracebackException(type(error), error, _trace.__get__(error), compact=True)
            _without_ours(report)
            text = "".join(report.format())
        if cut:
            text = f"(the exceptions before the last {_MOST_CHAINED} are left out)\n{text}"
    except BaseException:  # the exception is the user's, and so is all that it does when it is printed
        frame, line = _where(_trace.__get__(error), "")
        place = f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n' if frame else ""
        text = f"{place}{_name_of(error)}: {_text_of(error)}\n"
    if len(text) > _MOST_TRACEBACK:
        half = _MOST_TRACEBACK // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return _sound(text)


@contextmanager
def _short_chains(error: BaseException) -> Iterator[bool]:
    """Within, a chain of exceptions has only the last of them; whether there is one that had more.

    To word a chain takes a time that grows with its square: whatever Python raises for itself meanwhile is chained to
    the exception that is being handled, and each time the whole chain is looked through for a ring.
    """
    cut = []
    todo, seen = [(error, 1)], {id(error)}
    while todo:
        each, length = todo.pop()
        cause, context, suppressed = _cause.__get__(each), _context.__get__(each), _suppress.__get__(each)
        before = cause if cause is not None or suppressed else context
        if before is not None and length == _MOST_CHAINED:
            cut.append((each, cause, context, suppressed))
            before = None
        members = _members.__get__(each) if issubclass(type(each), BaseExceptionGroup) else ()
        for other, its_length in ((before, length + 1), *((member, 1) for member in members)):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                todo.append((other, its_length))
    try:
        for each, *_ in cut:
            _cause.__set__(each, None)
            _context.__set__(each, None)
        yield bool(cut)
    finally:
        for each, cause, context, suppressed in cut:
            _cause.__set__(each, cause)
            _context.__set__(each, context)
            _suppress.__set__(each, suppressed)


def _without_ours(report: traceback.TracebackException | None) -> None:
    if report is None:
        return
    report.stack[:] = [entry for entry in report.stack if not entry.filename.startswith(_OURS)]
    for inner in (report.__cause__, report.__context__, *(report.exceptions or ())):
        _without_ours(inner)


def _fault(error: BaseException) -> NotEncodable | TooLarge | None:
    """The error, if it is one of ours: by its type, as asking an object for its `__class__` may raise."""
    return error if issubclass(type(error), (NotEncodable, TooLarge)) else None  # type: ignore[return-value]


def _name_of(error: BaseException) -> str:
    return _sound(_cut(str.__str__(_name.__get__(type(error))), _MOST_NAME))


def _text_of(error: BaseException) -> str:
    try:
        text = str.__str__(str(error))
    except BaseException:  # a `__str__` of the user's
        return "(its text cannot be shown: str() of it raises)"
    return _sound(_cut(text, _MOST_TEXT))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


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
    return _sound(_cut(linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip(), _MOST_TEXT))
