"""Error envelopes and tracebacks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from time import monotonic
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


class Shy(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no")


class Classless(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no")


class Undecided(Exception):
    def __bool__(self) -> bool:
        raise SystemExit("no")


class Words(str):
    def __len__(self) -> int:
        raise RuntimeError("no")

    __eq__ = __getitem__ = encode = __len__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Wordy(Exception):
    def __str__(self) -> str:
        return Words("é" * 10_000)


class Anonymous(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("no")


Nameless: Any = Anonymous("Nameless", (Exception,), {})


def name_of(kind: type) -> str:
    """The name that a class was given, whatever it says of itself."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("error", "info"),
    [
        (Unprintable(), "(its text cannot be shown"),
        (Leaving(), "(its text cannot be shown"),
        (Huge(), "ééé"),
        (Evil("x"), "x"),
        (Shy("x"), "x"),
        (Classless("x"), "x"),
        (Undecided("x"), "x"),
        (Nameless("x"), "x"),
        (Wordy(), "ééé"),
        (ValueError("\ud800"), "\\ud800"),
        (ValueError(), ""),
        (ValueError("a", object), "('a', <class 'object'>)"),
        (SystemExit(3), "3"),
        (KeyboardInterrupt(), ""),
        (ExceptionGroup("g", [ValueError("a")]), "g (1 sub-exception)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec"),
    ],
    ids=lambda value: name_of(type(value)),
)
def test_odd_exceptions(handle: Any, error: BaseException, info: str, debug: bool) -> None:
    """No exception, whatever it does when it is printed, breaks its envelope, and none is huge."""
    found = failed(handle, error, debug)
    assert found["details"]["exception_info"].startswith(info)
    assert len(found["details"]["exception_info"]) <= 4096
    assert found["message"].startswith(f"{name_of(type(error))} at line 10")
    assert len(found["details"].get("traceback", "")) < 40_000
    assert "handler.py" in found["details"].get("traceback", "handler.py")


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


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
@pytest.mark.parametrize("inside", [False, True])
def test_long_chains(link: str, inside: bool) -> None:
    """Of thousands of chained exceptions the last are told, soon, and they stay as they were; in a group, too."""
    error: BaseException = ValueError("0")
    chain = [error]
    for number in range(20_000):
        error = ValueError(str(number + 1))
        setattr(error, link, chain[-1])
        chain.append(error)
    raised = BaseExceptionGroup("a group", [error]) if inside else error
    started = monotonic()
    try:
        raise raised
    except BaseException as error:  # as long as it is handled, whatever else is raised has its chain, too
        text = traceback_text(error)
    taken = monotonic() - started

    assert taken < 2  # and not ten
    assert text.startswith("(the exceptions before the last 50 are left out)\n")
    assert "ValueError: 20000\n" in text
    assert "ValueError: 19951\n" in text
    assert "ValueError: 19950\n" not in text
    assert all(getattr(later, link) is earlier for earlier, later in pairwise(chain))
    assert {each.__suppress_context__ for each in chain[1:]} == {link == "__cause__"}


def test_a_chain_that_is_told_whole() -> None:
    """Fifty exceptions, a ring of them, and causes that were cut off by `from None`."""
    error: BaseException = ValueError("0")
    for number in range(49):
        outer = ValueError(str(number + 1))
        outer.__context__ = error
        error = outer
    text = traceback_text(error)
    assert text.startswith("ValueError: 0\n")
    assert text.endswith("ValueError: 49\n")

    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert "left out" not in traceback_text(first)

    error.__suppress_context__ = True
    assert traceback_text(error) == "ValueError: 49\n"


def test_what_cannot_be_looked_at_at_all(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in wording an exception, its call has an answer."""

    def refuse(*_: object) -> Any:
        raise ZeroDivisionError

    error = raised(handle, ValueError("x"))
    monkeypatch.setattr("runtime.worker.failures._where", refuse)
    found = envelope(failure(error, "/handler.py", True))
    assert (found["status"], found["code"]) == (500, "function_error")
    assert found["message"] == "the function raised an exception that cannot be looked at"
    assert found["details"] == {"exception_type": "", "exception_info": "", "exception_line_number": None}


@pytest.mark.parametrize("debug", [False, True])
def test_long_names_and_lines(tmp_path: Path, debug: bool) -> None:
    """A class with a name of megabytes, raised by a line of megabytes, makes an answer of kilobytes."""
    file = tmp_path / "handler.py"
    file.write_text(f"def handle(data):\n    raise type('N' * 5_000_000, (Exception,), {{}})({'1' * 1_000_000!r})\n")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    error = raised(names["handle"], None)

    answer = failure(error, str(file), debug)

    assert len(answer.body) < 50_000
    assert envelope(answer)["details"]["exception_type"] == "N" * 253 + "..."
    assert len(traceback_text(error)) < 40_000
    assert len(failure(NotEncodable("n" * 1_000_000), "/handler.py", debug).body) < 5000


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
