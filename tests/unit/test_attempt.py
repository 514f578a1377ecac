"""One attempt at a call, to its outcome; when there is another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import attempt
from runtime.attempt import Cut, Postponed, Standstills, next_attempt
from runtime.calls import Call, Outcome, Result, Status
from runtime.errors import (
    Cancelled,
    Draining,
    FunctionTimeout,
    HostError,
    LoadFailed,
    NoFreeWorker,
    NotFound,
    Overloaded,
    StartFailed,
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


@pytest.mark.parametrize("error", [StartFailed("no descriptors"), LoadFailed("killed", retryable=True)])
async def test_a_call_for_which_no_process_can_be_had(error: HostError) -> None:
    """Was not begun, and goes back to the front of its queue."""
    with pytest.raises(Postponed) as raised:
        await outcome_of(lambda exchange: exchange.failed(error))
    assert (raised.value.error, raised.value.seconds) == (error, 0.0)


async def test_a_file_that_is_at_fault() -> None:
    """Is an outcome at once: it would be no other later."""
    outcome = await outcome_of(lambda exchange: exchange.failed(LoadFailed("SyntaxError")))
    assert (outcome.code, outcome.error_code, outcome.invoked) == (503, "load_failed", False)


def in_a_worker(exchange: Exchange, *, ready: bool = True) -> None:
    """Have it run in a process that has started, or is about to."""
    exchange.channel = Nowhere()
    exchange.channel.owner = SimpleNamespace(is_ready=ready)  # type: ignore[attr-defined]


async def play_on(standstills: Standstills, *plays: Callable[[Exchange], None]) -> Outcome:
    """What another attempt comes to where these standstills are known."""
    loop = asyncio.get_running_loop()
    exchange = Exchange(CALL, 60.0, loop, lambda _: None)
    for play in plays:
        loop.call_soon(play, exchange)
    return await attempt.run(exchange, CALL, SETTINGS, Nobody(), standstills=standstills)


KEY = (CALL.space, CALL.name)


async def test_a_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call at a time finds out, ever more rarely; after STUCK_AFTER it fails."""
    now = [1000.0]
    monkeypatch.setattr(attempt, "monotonic", lambda: now[0])
    standstills = Standstills()
    assert standstills.places(KEY, 4) == 4
    waits = []
    while now[0] < 1000 + attempt.STUCK_AFTER:
        with pytest.raises(Postponed):
            await play_on(standstills, lambda exchange: exchange.failed(StartFailed()))
        before = now[0]
        while standstills.places(KEY, 4) == 0:
            now[0] += 0.25
        waits.append(now[0] - before)
        assert standstills.places(KEY, 4) == 1
    assert waits[:3] == [attempt.BACK_SOON] * 3
    assert waits[:-1] == sorted(waits[:-1])
    assert max(waits) == attempt.SELDOM
    outcome = await play_on(standstills, lambda exchange: exchange.failed(StartFailed("no descriptors")))
    assert (outcome.error_code, outcome.invoked) == ("start_failed", False)
    assert standstills.places(KEY, 4) == 0
    now[0] += attempt.BACK_SOON
    assert standstills.places(KEY, 4) == 1
    outcome = await play_on(standstills, lambda exchange: exchange.failed(LoadFailed("killed", retryable=True)))
    assert (outcome.error_code, outcome.invoked) == ("load_failed", False)
    assert standstills.places(("demo", "other"), 4) == 4
    assert standstills.places(KEY, 0) == 0


@pytest.mark.parametrize(
    "end",
    [
        lambda exchange: exchange.answered(answer(200, b"")),
        lambda exchange: exchange.failed(WorkerDied()),
        lambda exchange: exchange.failed(LoadFailed("SyntaxError")),
    ],
)
async def test_the_end_of_a_standstill(end: Callable[[Exchange], None]) -> None:
    """Whatever came of it: a process was to be had."""
    standstills = Standstills()
    assert standstills.begin(KEY)
    await play_on(standstills, in_a_worker, end)
    assert standstills.places(KEY, 4) == 4


async def test_a_call_that_is_cancelled_in_a_standstill() -> None:
    """Says nothing of it."""
    standstills = Standstills()
    standstills.begin(KEY)
    await play_on(standstills, lambda exchange: exchange.failed(Cancelled()))
    assert standstills.places(KEY, 4) == 0


async def test_a_standstill_ends_with_a_call_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not wait for its end; nor is one remembered for which nobody waits."""
    now = [1000.0]
    monkeypatch.setattr(attempt, "monotonic", lambda: now[0])
    standstills = Standstills()
    exchange = Exchange(CALL, 60.0, asyncio.get_running_loop(), lambda _: None)
    runs = [SimpleNamespace(key=KEY, exchange=exchange), SimpleNamespace(key=KEY, exchange=None)]

    def places_after(seconds: float, *waiting: tuple[str, str]) -> int:
        now[0] += seconds
        standstills.look(runs, waiting)
        return standstills.places(KEY, 4)

    standstills.begin(KEY)
    assert places_after(attempt.BACK_SOON, KEY) == 1
    in_a_worker(exchange, ready=False)
    assert places_after(0, KEY) == 1
    in_a_worker(exchange)
    assert places_after(0, KEY) == 4

    standstills.begin(KEY)
    assert places_after(0, KEY) == 0  # it may be one that began before
    exchange.channel = None
    assert places_after(attempt.BACK_SOON) == 1
    assert places_after(attempt.SELDOM) == 1  # one waits for a process for so long
    runs.clear()
    assert places_after(0, KEY) == 1
    assert places_after(0) == 4


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
