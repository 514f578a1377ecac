"""Calls that are recorded on the express way: which they are, and what is said of them, on a host that is not one."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.calls import MAX_HEAD, CallIds, Submission
from runtime.dialects.spaces.submit import accepted
from runtime.errors import JournalError, NotFound, Overloaded
from runtime.express import Arriving, Express
from runtime.journal import IdTaken, Receipt, Told
from runtime.settings import FunctionSettings

pytestmark = pytest.mark.anyio

TARGET = b"/spaces/demo/functions/stock/async-invoke/a?b=c"
HEADERS = [(b"host", b"here"), (b"content-length", b"2")]


class FakeHost:
    """Takes in what it is given, as long as it is not full."""

    def __init__(self) -> None:
        self.ids, self.received, self.debug = CallIds(), Counter[str](), False
        self.taken: list[tuple[Submission, Told]] = []
        self.submitted: list[Submission] = []
        self.is_full = False
        self.authority = SimpleNamespace(is_open=lambda space: True, is_ours=lambda part: False)

    def lookup(self, space: str, name: str) -> Any:
        if name != "stock":
            raise NotFound("there is no such function")
        return SimpleNamespace(settings=FunctionSettings(async_max_body=4), label="demo/stock")

    def take_in(self, submission: Submission, function: object, told: Told) -> bool:
        if not self.is_full:
            self.taken.append((submission, told))
        return not self.is_full

    async def submit(self, submission: Submission) -> Receipt:
        self.submitted.append(submission)
        return Receipt(7, "7")

    def worded(self, error: Exception) -> Exception:
        return error


def begun(host: FakeHost, *more: tuple[bytes, bytes], target: bytes = TARGET, body: bytes = b"hi") -> Any:
    """What becomes of a request."""
    return Express(host).begin("POST", target, [*HEADERS, *more], body, "http", ("1.2.3.4", 5))  # type: ignore[arg-type]


async def test_a_plain_one_is_answered_when_it_is_recorded() -> None:
    """As the dialect would answer."""
    host, answers = FakeHost(), list[bytes]()
    arriving = begun(host, (b"x-priority", b"5"), (b"idempotency-key", b"k"))
    arriving.on_answer = answers.append
    [(submission, told)] = host.taken
    told.set_result(Receipt(17, "mine"))
    headers = b"".join(b"%s: %s\r\n" % pair for pair in accepted("demo", "stock", Receipt(17, "mine")))
    call = submission.call

    assert isinstance(arriving, Arriving)
    assert not told.cancelled()
    assert (call.space, call.name, call.path, call.query, call.body) == ("demo", "stock", b"/a", b"b=c", (b"hi",))
    assert (submission.priority, submission.idempotency_key, submission.trigger) == (5, "k", "http")
    assert answers == [b"HTTP/1.1 202 Accepted\r\n" + headers + b"\r\n"]
    assert host.received == {"http": 1}


async def test_it_can_be_awaited() -> None:
    """By an engine that has a task for each connection; one that gives up loses nothing."""
    host = FakeHost()
    waiting, leaving = (asyncio.ensure_future(begun(host)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    for _, told in host.taken:
        told.set_result(Receipt(17, "17", repeated=True))

    assert b"calls/17\r\n" in await waiting
    assert leaving.cancelled()
    assert not host.received


async def test_what_could_not_be_recorded() -> None:
    """The client is told."""
    host, answers = FakeHost(), list[bytes]()
    begun(host).on_answer = answers.append
    begun(host).on_answer = answers.append
    host.taken[0][1].set_exception(JournalError("The disk is full."))
    host.taken[1][1].set_exception(RuntimeError("a mistake of ours"))

    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503", b"HTTP/1.1 500"]
    assert b"The disk is full." in answers[0]
    assert b"a mistake" not in answers[1]


async def test_an_id_that_is_taken() -> None:
    """By another host, in the same millisecond: the call is given another one."""
    host = FakeHost()
    answer = asyncio.ensure_future(begun(host))
    await asyncio.sleep(0)
    host.taken[0][1].set_exception(IdTaken())

    assert b"calls/7\r\n" in await answer
    assert [submission.call.body for submission in host.submitted] == [(b"hi",)]


async def test_what_becomes_of_them_is_in_the_log_of_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Where one is kept: each by the id that its client was told, with the address that was called."""
    caplog.set_level(logging.INFO, "spaces.call")
    for log_calls in (False, True):
        host = FakeHost()
        express = Express(host, log_calls=log_calls)  # type: ignore[arg-type]
        for _ in range(2):
            arriving: Any = express.begin("POST", TARGET, HEADERS, b"hi", "http", None)
            arriving.on_answer = lambda answer: None
        host.taken[0][1].set_result(Receipt(17, "mine"))
        host.taken[1][1].set_exception(Overloaded())
        host.is_full = True
        await express.begin("POST", TARGET, HEADERS, b"hi", "http", None)  # type: ignore[misc]

    path, refused = "/spaces/demo/functions/stock/async-invoke/a", host.taken[1][0].call.label
    said = [tuple(vars(record)[name] for name in ("method", "path", "call_id", "status")) for record in caplog.records]
    assert said == [("POST", path, "mine", 202), ("POST", path, refused, 429), ("POST", path, "7", 202)]


async def test_a_mistake_of_ours_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And the client is told no more than that."""
    host = FakeHost()
    host.is_full = True

    async def fail(submission: Submission) -> Receipt:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(host, "submit", fail)
    answer = await begun(host, (b"x-call-id", b"theirs"))

    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-call-id: theirs\r\n" in answer
    assert b"a mistake" not in answer
    assert "POST /spaces/demo/functions/stock/async-invoke/a failed in the host" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "request_",
    [
        {"target": TARGET.replace(b"stock", b"none")},
        {"target": TARGET.replace(b"/a?", b"/%zz?")},
        {"target": TARGET.replace(b"/a?", b"/__/a?")},
        {"more": [(b"x-long", b"x" * MAX_HEAD)]},
        {"body": b"longer than announced"},
        {"more": [(b"x-callback-url", b"https://example.com/")]},
        {"more": [(b"x-priority", b"high")]},
        {"more": [(b"authorization", b"Bearer me")]},
        {"more": [(b"transfer-encoding", b"chunked")]},
        {"is_full": True},
    ],
)  # fmt: skip
async def test_what_there_is_more_to_look_into(request_: dict[str, Any]) -> None:
    """It is for the dialect to find out, or to say what is wrong."""
    host = FakeHost()
    host.is_full = request_.pop("is_full", False)
    recording = begun(host, *request_.pop("more", ()), **request_)
    recording.close()

    assert inspect.iscoroutine(recording)
    assert not host.taken


async def test_a_body_that_is_too_long() -> None:
    """It is for the dialect to refuse it."""
    host = FakeHost()
    headers = [(b"content-length", b"5")]
    recording: Any = Express(host).begin("POST", TARGET, headers, b"hello", "http", None)  # type: ignore[arg-type]
    recording.close()

    assert inspect.iscoroutine(recording)
    assert not host.taken
