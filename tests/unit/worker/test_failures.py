"""Error envelopes and tracebacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.worker.answer import Answer, NotEncodable, TooLarge, encode, failure, refusal, to_json, traceback_text
from runtime.worker.context import CallInfo
from runtime.worker.multi import Headers, header_pairs

HANDLER = """\
def handle(data):
    if data == "helper":
        return helped()
    if data == "chain":
        try:
            helped()
        except KeyError as error:
            raise ValueError("outer") from error
    if isinstance(data, BaseException):
        raise data
    return data.json()
"""
HELPER = """\
def helped():
    raise KeyError("inner")
"""


@pytest.fixture
def handle(tmp_path: Path) -> Any:
    """A handler loaded from a file of its own, which calls a helper in another."""
    names: dict[str, Any] = {"FILE": str(tmp_path / "handler.py")}
    for file, source in (("helper.py", HELPER), ("handler.py", HANDLER)):
        (tmp_path / file).write_text(source)
        exec(compile(source, str(tmp_path / file), "exec"), names)
    return names["handle"]


def raised(function: Any, argument: Any) -> BaseException:
    try:
        function(argument)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def envelope(found: Answer) -> dict[str, Any]:
    headers = Headers(header_pairs(found.headers))
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(found.body))
    error: dict[str, Any] = json.loads(found.body)["error"]
    assert error["status"] == found.status
    return error


def failed(handle: Any, argument: Any, debug: bool = False) -> dict[str, Any]:
    return envelope(failure(raised(handle, argument), handle.__globals__["FILE"], debug))


def test_envelope(handle: Any) -> None:
    """The envelope is the contract's: status, message with the line, type, text and line apart."""
    assert failed(handle, ValueError("bad thing")) == {
        "status": 500,
        "code": "function_error",
        "message": "ValueError at line 10: bad thing",
        "details": {
            "exception_type": "ValueError",
            "exception_info": "bad thing",
            "exception_line_number": 10,
        },
    }


def test_line_is_the_handlers(handle: Any) -> None:
    """The line is the innermost one in the handler file, though a helper raised."""
    error = failed(handle, "helper")
    assert error["message"] == "KeyError at line 3: 'inner'"
    error = envelope(failure(raised(handle, "helper"), "/elsewhere.py", False))
    assert error["details"]["exception_line_number"] == 2


def test_debug(handle: Any) -> None:
    """In debug the envelope has the source line and the traceback too."""
    details = failed(handle, "chain", debug=True)["details"]
    assert details["exception_line_code"] == 'raise ValueError("outer") from error'
    assert "KeyError: 'inner'" in details["traceback"]
    assert details["traceback"].endswith("ValueError: outer\n")
    assert "handler.py" in details["traceback"]


def test_no_frames_of_ours(handle: Any) -> None:
    """A traceback shows no frame of ours, whether we called the function or it called us."""
    inside = raised(handle, CallInfo(1, 1, "", "", "", b"", b"", b"", b"{", 0.0, 1, 9))
    around = raised(lambda value: encode(value, False, 9), FailingIterable())
    for error, last in ((inside, "return data.json()"), (around, 'raise RuntimeError("no items")')):
        text = traceback_text(error)
        assert last in text
        assert "/runtime/worker/" not in text


class FailingIterable:
    def __aiter__(self) -> Any:
        raise RuntimeError("no items")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit("no")


class Huge(Exception):
    def __str__(self) -> str:
        return "é" * 1_000_000


class Evil(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("error", "info"),
    [
        (Unprintable(), "(its text cannot be shown"),
        (Leaving(), "(its text cannot be shown"),
        (Huge(), "ééé"),
        (Evil("x"), "x"),
        (ValueError("\ud800"), "\\ud800"),
        (ValueError(), ""),
        (ValueError("a", object), "('a', <class 'object'>)"),
        (SystemExit(3), "3"),
        (KeyboardInterrupt(), ""),
        (ExceptionGroup("g", [ValueError("a")]), "g (1 sub-exception)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_exceptions(handle: Any, error: BaseException, info: str, debug: bool) -> None:
    """No exception, whatever it does when it is printed, breaks its envelope, and none is huge."""
    found = failed(handle, error, debug)
    assert found["details"]["exception_info"].startswith(info)
    assert len(found["details"]["exception_info"]) <= 4096
    assert found["message"].startswith(f"{type(error).__name__} at line 10")
    assert len(found["details"].get("traceback", "")) < 40_000
    assert "handler.py" in found["details"].get("traceback", "handler.py") or isinstance(error, (Evil, Leaving))


def test_without_traceback() -> None:
    """An exception that was never raised has no line."""
    found = envelope(failure(ValueError("x"), "/handler.py", True))
    assert found["message"] == "ValueError: x"
    assert found["details"]["exception_line_number"] is None
    assert found["details"]["exception_line_code"] == ""


def test_deep_recursion() -> None:
    """A stack overflow in a function is reported like any exception."""

    def dive(n: int) -> int:
        return dive(n + 1) + 1

    found = envelope(failure(raised(dive, 0), __file__, True))
    assert found["message"].startswith("RecursionError at line")
    assert "dive" in found["details"]["traceback"]


def test_long_chains() -> None:
    """Thousands of chained exceptions do not break the report."""
    error: BaseException = ValueError("0")
    for number in range(5000):
        outer = ValueError(str(number + 1))
        outer.__cause__ = error
        error = outer
    text = traceback_text(error)
    assert "5000" in text
    assert len(text) < 40_000


def test_faults_of_the_answer() -> None:
    """An answer that cannot be sent has a code of its own and says what is wrong."""
    found = envelope(failure(raised(lambda value: encode(value, False, 9), object()), "/handler.py", False))
    assert (found["status"], found["code"]) == (500, "not_encodable")
    assert "an object" in found["message"]
    found = envelope(failure(TooLarge(10, 9), "/handler.py", False))
    assert (found["status"], found["code"], found["details"]["size"]) == (500, "response_too_large", 10)
    assert traceback_text(NotEncodable("what")) == "NotEncodable: what\n"


def test_refusal() -> None:
    """A refusal is an envelope with what it was given."""
    assert envelope(refusal(422, "invalid_data", "no", {"field": "a"})) == {
        "status": 422,
        "code": "invalid_data",
        "message": "no",
        "details": {"field": "a"},
    }
    assert to_json({"a": 1}) == b'{"a":1}'
