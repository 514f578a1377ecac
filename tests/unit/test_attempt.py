"""One attempt at a call, to its outcome; when there is another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import attempt
from runtime.attempt import Cut, Postponed, next_attempt
from runtime.calls import Call, Outcome, Result, Status
from runtime.errors import (
    Draining,
    FunctionTimeout,
    HostError,
    NoFreeWorker,
    NotFound,
    Overloaded,
    StillLoading,
    WorkerDied,
)
from runtime.exchange import Exchange
from runtime.settings import FunctionSettings, Retry

pytestmark = pytest.mark.anyio

SETTINGS = FunctionSettings(async_timeout=60.0, max_response=100)
CALL = Call(id=7, label="7", space="demo", name="stock")


class Nobody:
    """A follower that does not care."""

    def printed(self, level: int, text: str) -> None: ...

    def progressed(self, fraction: float, message: str) -> None: ...


class Nowhere:
    """The way to a worker that is not there."""

    def write(self, data: bytes) -> None: ...


async def outcome_of(play: Callable[[Exchange], None], settings: FunctionSettings = SETTINGS) -> Outcome:
    """What an attempt comes to when its worker plays this."""
    loop = asyncio.get_running_loop()
    exchange = Exchange(CALL, 60.0, loop, lambda _: None)
    loop.call_soon(play, exchange)
    return await attempt.run(exchange, CALL, settings, Nobody())


def answer(status: int, body: bytes, *, complete: bool = True) -> Result:
    """What a worker says."""
    return Result(status, b"content-type\0text/plain", body, complete, failed=status == 500, handler_seconds=0.1)


@pytest.mark.parametrize(
    ("status", "ending"), [(200, Status.SUCCEEDED), (302, Status.SUCCEEDED), (404, Status.FAILED), (500, Status.FAILED)]
)
async def test_an_answer(status: int, ending: Status) -> None:
    """Is the outcome as it came, and decides how the call ended."""
    outcome = await outcome_of(lambda exchange: exchange.answered(answer(status, b"hello")))
    assert (outcome.code, outcome.body, outcome.headers) == (status, b"hello", b"content-type\0text/plain")
    assert (outcome.invoked, outcome.error_code, outcome.status) == (True, None, ending)


async def test_a_stream_is_collected() -> None:
    """To its end."""

    def play(exchange: Exchange) -> None:
        exchange.answered(answer(200, b"", complete=False))
        for piece in (b"one ", b"two"):
            exchange.chunk_received(piece)
        exchange.ended()

    assert (await outcome_of(play)).body == b"one two"


async def test_a_stream_that_is_too_long_fails() -> None:
    """At `max_response`."""

    def play(exchange: Exchange) -> None:
        exchange.answered(answer(200, b"", complete=False))
        exchange.chunk_received(bytes(101))

    outcome = await outcome_of(play)
    assert (outcome.code, outcome.invoked) == (500, False)
    assert "max_response" in json.loads(outcome.body)["error"]["message"]


async def test_a_stream_that_never_ends_is_late() -> None:
    """As a whole it has `async_timeout`, however often something comes."""

    def play(exchange: Exchange) -> None:
        exchange.channel = Nowhere()
        exchange.answered(answer(200, b"", complete=False))

    outcome = await outcome_of(play, FunctionSettings(async_timeout=0.01))
    assert (outcome.code, outcome.error_code) == (504, "timeout")


@pytest.mark.parametrize("error", [WorkerDied("gone"), FunctionTimeout("late"), HostError("no")])
async def test_a_failure_in_the_host(error: HostError) -> None:
    """Is an outcome too: the error envelope."""
    outcome = await outcome_of(lambda exchange: exchange.failed(error))
    assert (outcome.code, outcome.error_code, outcome.invoked) == (error.status, error.code, False)
    assert json.loads(outcome.body)["error"]["message"] == error.message
    assert outcome.status is Status.FAILED


@pytest.mark.parametrize("error", [NoFreeWorker(), Overloaded(), StillLoading(), NotFound("removed")])
async def test_a_call_that_was_never_begun(error: HostError) -> None:
    """Was no attempt."""
    with pytest.raises(Postponed) as raised:
        await outcome_of(lambda exchange: exchange.failed(error))
    assert raised.value.error is error


async def test_a_call_that_waits_for_a_worker_until_its_time_is_over() -> None:
    """Was never begun either: whoever looks at the clock first."""
    with pytest.raises(Postponed):
        await outcome_of(Exchange.is_late, FunctionSettings(async_timeout=0.01))


async def test_a_call_that_the_end_of_the_host_cuts() -> None:
    """Is neither failed nor unbegun."""
    with pytest.raises(Cut):
        await outcome_of(lambda exchange: exchange.failed(Draining()))


async def test_the_exchange_is_left_when_the_attempt_is_cancelled() -> None:
    """So that nothing goes on running for nobody."""
    left: list[Exchange] = []
    exchange = Exchange(CALL, 60.0, asyncio.get_running_loop(), left.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt.run, exchange, CALL, SETTINGS, Nobody())
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert left == [exchange]


def outcome(code: int, headers: bytes = b"") -> Outcome:
    """An outcome with this status."""
    return Outcome(code, headers, b"", invoked=True, seconds=0.0)


def test_without_retry_there_is_one_attempt() -> None:
    """Whatever came of it."""
    assert next_attempt(Retry(), outcome(503), 1, 0.0) is None


def test_only_what_is_listed_is_tried_again() -> None:
    """By status code."""
    retry = Retry(attempts=3, codes=frozenset({503}))
    assert next_attempt(retry, outcome(500), 1, 0.0) is None
    assert next_attempt(retry, outcome(503), 1, 0.0) is not None
    assert next_attempt(retry, outcome(503), 2, 0.0) is not None
    assert next_attempt(retry, outcome(503), 3, 0.0) is None


@given(st.integers(1, 2000), st.floats(0.1, 100), st.floats(0.1, 1000))
def test_the_wait_grows_and_is_bounded(number: int, least: float, most: float) -> None:
    """Full jitter below min_wait times two to the power of the attempts, and below max_wait."""
    retry = Retry(attempts=10_000, min_wait=least, max_wait=most)
    at = next_attempt(retry, outcome(503), number, 1000.0)
    assert at is not None
    assert 1000 <= at <= 1000 + min(most, least * 2.0 ** min(number - 1, 60)) + 1e-6


def test_the_answer_may_say_when() -> None:
    """Not below min_wait, not beyond max_wait."""
    retry = Retry(attempts=2, min_wait=5.0, max_wait=60.0)
    for said, wait in ((b"30", 30), (b"1", 5), (b"9999", 60)):
        assert next_attempt(retry, outcome(503, b"x\0y\0retry-after\0" + said), 1, 100.0) == 100 + wait
