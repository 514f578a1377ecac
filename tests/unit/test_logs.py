"""The host's log: JSON lines that parse, a console that reads well, and nobody who waits for either."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from queue import Queue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import logs
from runtime.logs import ConsoleFormatter, DroppingHandler, JsonFormatter, logging_to

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CLOCK = r"\d\d:\d\d:\d\d"
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """The loggers as they were, after each test."""
    names = ["", "spaces.output", *logs.QUIET]
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Stream(io.StringIO):
    """What is written to, a terminal or not."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


def record(message: str, *args: Any, level: int = logging.INFO, name: str = "spaces.test", **fields: Any) -> Any:
    made = logging.LogRecord(name, level, __file__, 1, message, args, None)
    vars(made).update(fields)
    return made


def boom() -> Any:
    try:
        raise ValueError("boom")
    except ValueError:
        return sys.exc_info()


def test_a_line_is_one_json_object() -> None:
    """With time, level, logger and message, and the fields that its record has."""
    formatter = JsonFormatter()
    formatter.converter = time.gmtime
    moment = datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=UTC).timestamp()
    line = formatter.format(
        record("%s of %s", 1, "two", created=moment, msecs=6.9, function="demo/stock", status=200, seconds=0.5, other=1)
    )

    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.006Z",
        "level": "info",
        "logger": "spaces.test",
        "message": "1 of two",
        "function": "demo/stock",
        "status": 200,
        "seconds": 0.5,
    }


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_makes_one_json_line(message: str, path: str, stack: str) -> None:
    """Line ends and quotes included."""
    line = JsonFormatter().format(record("%s", message, path=path, stack=stack))
    parsed = json.loads(line)

    assert not {"\n", "\r"} & set(line)
    assert (parsed["message"], parsed["path"], parsed["stack"]) == (message, path, stack)


def test_what_is_no_text_makes_a_json_line_too() -> None:
    """The name of a file need not be UTF-8."""
    line = JsonFormatter().format(record("%s is new", os.fsdecode(b"caf\xe9.py")))

    assert json.loads(line.encode())["message"].endswith(".py is new")


def test_an_exception_is_in_its_line() -> None:
    """As `stack`, whole."""
    line = JsonFormatter().format(record("it failed", level=logging.ERROR, exc_info=boom()))
    parsed = json.loads(line)

    assert parsed["stack"].startswith("Traceback")
    assert parsed["stack"].endswith("ValueError: boom")
    assert "\n" not in line


def test_what_has_no_json_form_is_written_as_text() -> None:
    """A field may be anything."""
    assert json.loads(JsonFormatter().format(record("it", path=Stream)))["path"] == str(Stream)


def test_a_console_line_is_time_and_message() -> None:
    """Nothing else, and no colour unless told."""
    line = ConsoleFormatter(False).format(record("hello %s", "you"))

    assert re.fullmatch(rf"{CLOCK} hello you", line)


def test_output_names_its_function_on_every_line() -> None:
    """Each line of what a handler printed, the empty ones too."""
    text = ConsoleFormatter(False).format(record("a\n\nb", name="spaces.output", function="demo/stock"))
    empty = ConsoleFormatter(False).format(record("", name="spaces.output", function="demo/stock"))

    assert [re.sub(f"^{CLOCK} ", "", line) for line in text.splitlines()] == [
        "demo/stock | a",
        "demo/stock | ",
        "demo/stock | b",
    ]
    assert re.fullmatch(rf"{CLOCK} demo/stock \| ", empty)


@pytest.mark.parametrize("fields", [{"stack": "File here\n"}, {"exc_info": boom()}])
def test_a_stack_stands_below_its_line(fields: dict[str, Any]) -> None:
    """A traceback, or where a process was stuck."""
    first, *below = ConsoleFormatter(False).format(record("it failed", **fields)).splitlines()

    assert re.fullmatch(rf"{CLOCK} it failed", first)
    assert below == ["File here"] if "stack" in fields else below[-1] == "ValueError: boom"


@pytest.mark.parametrize(
    ("fields", "colour"),
    [
        ({"status": 200}, "32"),
        ({"status": 404}, "33"),
        ({"status": 502}, "31"),
        ({"level": logging.WARNING}, "33"),
        ({"level": logging.ERROR}, "31"),
        ({"level": logging.ERROR, "status": 200}, "32"),
    ],
)
def test_colours_tell_good_from_bad(fields: dict[str, Any], colour: str) -> None:
    """A call's by its status, others by their level."""
    assert f"\x1b[{colour}mit\x1b[0m" in ConsoleFormatter(True).format(record("it", **fields))
    assert "\x1b" not in ConsoleFormatter(False).format(record("it", **fields))


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_only_a_terminal_is_coloured(
    terminal: bool, environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one that cannot, or whose user does not want it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal)
    with logging_to(stream, console=True):
        logging.getLogger("spaces.test").error("it")

    assert ("\x1b[" in stream.getvalue()) is coloured


def test_json_lines_are_never_coloured() -> None:
    """Not on a terminal either; their time is UTC."""
    stream = Stream(terminal=True)
    with logging_to(stream, console=False):
        logging.getLogger("spaces.test").error("it")
    told = datetime.fromisoformat(json.loads(stream.getvalue())["time"])

    assert abs(datetime.now(UTC) - told).total_seconds() < PATIENCE


def test_what_is_queued_at_the_end_is_written() -> None:
    """In order; and nothing after the scope is."""
    stream = Stream()
    with logging_to(stream, console=False):
        for number in range(1000):
            logging.getLogger("spaces.test").info("%d", number)
    logging.getLogger("spaces.test").error("too late")

    assert [json.loads(line)["message"] for line in stream.lines] == [str(number) for number in range(1000)]


def test_levels_of_the_host_and_of_handlers_are_apart() -> None:
    """`level` is for the first, `output` for the others; libraries are quiet."""
    stream = Stream()
    with logging_to(stream, console=False, level="WARNING", output="DEBUG"):
        for name in ("spaces.host", "spaces.output", "uvicorn.error", "hypercorn.error"):
            logging.getLogger(name).debug("debug of %s", name)
            logging.getLogger(name).info("info of %s", name)
            logging.getLogger(name).critical("end of %s", name)
    messages = [json.loads(line)["message"] for line in stream.lines]

    assert messages == [
        "end of spaces.host",
        "debug of spaces.output",
        "info of spaces.output",
        "end of spaces.output",
        "end of uvicorn.error",
        "end of hypercorn.error",
    ]


class Stuck(Stream):
    """A pipe that nobody reads, until somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.read = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.read.wait(PATIENCE)
        return super().write(text)


def test_lines_that_come_faster_than_they_can_be_written_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who logs never waits."""
    monkeypatch.setattr(logs, "QUEUE", 10)
    stream = Stuck()
    log = logging.getLogger("spaces.test")
    with logging_to(stream, console=False):
        log.info("first")
        assert stream.reached.wait(PATIENCE)
        for number in range(25):
            log.info("%d", number)
        stream.read.set()
        drain(stream, 11)
    messages = [json.loads(line)["message"] for line in stream.lines]

    assert messages[:11] == ["first", *map(str, range(10))]
    assert messages[11:] == ["15 log lines were dropped: they came faster than they could be written"]


def drain(stream: Stream, count: int) -> None:
    """Until so many lines have been written."""
    written = threading.Event()
    while not written.wait(0.001):
        if len(stream.lines) >= count:
            written.set()


def test_the_end_of_a_log_that_is_full_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the scope fails for nobody."""
    monkeypatch.setattr(logs, "QUEUE", 3)
    stream = Stuck()
    log = logging.getLogger("spaces.test")
    with logging_to(stream, console=False):
        log.info("first")
        assert stream.reached.wait(PATIENCE)
        for number in range(5):
            log.info("%d", number)
        threading.Timer(0.05, stream.read.set).start()

    assert len(stream.lines) == 5


def test_dropping_is_counted_by_the_handler() -> None:
    """And what fits goes through as it is."""
    queue: Queue[Any] = Queue(1)
    handler = DroppingHandler(queue)
    first = record("first")
    for each in (first, record("second"), record("third")):
        handler.handle(each)

    assert queue.get_nowait() is first
    assert handler.dropped == 2
