"""One attempt at a submitted call: from the call to its outcome, and what is to follow from that.

Used by `dispatcher.py`, for which it runs an exchange to its end, and knows what cannot be started just now. Nothing
here knows the journal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable
from time import monotonic
from typing import Protocol

import anyio
import msgspec

from .calls import Call, Outcome, Result
from .clock import retry_after
from .errors import (
    Cancelled,
    CapacityError,
    Draining,
    FunctionError,
    FunctionTimeout,
    HostError,
    Interrupted,
    NoFreeWorker,
    NotFound,
    StillLoading,
    envelope,
)
from .exchange import Exchange, Follower
from .settings import FunctionSettings, Retry

BACK_SOON = 1.0  # seconds until a call that found no place is tried again
SELDOM = 10.0  # seconds at most until it is tried again whether anything of a function can be started
STUCK_AFTER = 600.0  # seconds in which nothing of a function can be started: from then on its calls fail
Word = Callable[[HostError], HostError]
Key = tuple[str, str]

JSON = b"content-type\0application/json"


class Postponed(Exception):
    """The call was not begun, and is to be tried again in `seconds`: that is no attempt."""

    def __init__(self, seconds: float, error: HostError) -> None:
        super().__init__(error.message)
        self.seconds, self.error = seconds, error


class Cut(Exception):
    """The host is ending, and the call with it."""


class Started(Protocol):
    """A call that was given to its function."""

    @property
    def key(self) -> Key: ...

    @property
    def exchange(self) -> Exchange | None: ...


class Standstills:
    """The functions of which nothing can be started just now: there are no processes to be had, or no descriptors.

    Guarantee: one call at a time finds out whether it goes on, ever more rarely, while the others wait in their order.
    After STUCK_AFTER those that find out fail; no faster than BACK_SOON, as another host may be able to run the others.
    """

    def __init__(self) -> None:
        self._stuck: dict[Key, tuple[float, float]] = {}  # since when, and until when nothing is tried

    def places(self, key: Key, most: int) -> int:
        """How many calls of the function may run, of which there are `most` otherwise."""
        if key not in self._stuck:
            return most
        return min(most, 1) if monotonic() >= self._stuck[key][1] else 0

    def begin(self, key: Key) -> bool:
        """Another of its calls could not be started; whether to go on waiting for better times."""
        now = monotonic()
        since, _ = self._stuck.get(key, (now, now))
        hopeful = now - since < STUCK_AFTER
        wait = min(SELDOM, max(BACK_SOON, (now - since) / 2)) if hopeful else BACK_SOON
        self._stuck[key] = since, now + wait
        return hopeful

    def end(self, key: Key) -> None:
        """One of its calls was begun."""
        self._stuck.pop(key, None)

    def look(self, running: Iterable[Started], waiting: Container[Key]) -> None:
        """Forget the functions of which a call is under way, however long it takes, and those that nobody waits for."""
        if not self._stuck:
            return
        going: dict[Key, bool] = {}  # and whether one surely is
        for run in running:
            going[run.key] = going.get(run.key, False) or _is_under_way(run.exchange)
        now = monotonic()
        for key, (_, until) in tuple(self._stuck.items()):
            is_over = now >= until + SELDOM and key not in waiting and key not in going
            if is_over or (now >= until and going.get(key)):
                del self._stuck[key]


def _is_under_way(exchange: Exchange | None) -> bool:
    """Whether a process has it that has surely started."""
    worker = getattr(exchange.channel, "owner", None) if exchange is not None else None
    return worker is not None and bool(worker.is_ready)


async def run(
    exchange: Exchange,
    call: Call,
    settings: FunctionSettings,
    follower: Follower,
    word: Word = lambda error: error,
    standstills: Standstills | None = None,
) -> Outcome:
    """The whole answer of a call under way. Postponed when it was never begun; Cut when the host is ending.

    `word` makes an error fit to be shown to whoever submitted the call; `standstills` are told how it went.
    """
    started = monotonic()
    standstills, key = standstills or Standstills(), (call.space, call.name)
    exchange.follower = follower
    limit = limit_of(call, settings)
    try:
        with exchange:
            result = await exchange.soon()
            if result is None or not result.complete:  # most calls are over by now, and need no timer
                with anyio.fail_after(limit + started - monotonic()):
                    result = await exchange.result()
                    body = await _whole(exchange, result, settings.max_response)
            else:
                body = result.body
    except TimeoutError as error:
        if exchange.channel is None:
            raise Postponed(BACK_SOON, NoFreeWorker()) from error
        standstills.end(key)
        late = FunctionTimeout(f"`{call.space}/{call.name}` did not end within {limit:g} s")
        return failure(late, monotonic() - started)
    except Draining as error:
        raise Cut from error
    except (CapacityError, StillLoading, NotFound) as error:  # NotFound: removed while it waited for a worker
        raise Postponed(BACK_SOON, error) from error
    except HostError as error:
        if exchange.channel is None and error.retryable:
            if standstills.begin(key):
                raise Postponed(0.0, error) from error
        elif not isinstance(error, Cancelled):
            standstills.end(key)
        return failure(word(error), monotonic() - started)
    standstills.end(key)
    return Outcome(result.status, result.headers, body, invoked=True, seconds=monotonic() - started)


async def _whole(exchange: Exchange, result: Result, limit: int) -> bytes:
    if result.complete:
        return result.body
    pieces, size = [], 0
    async for chunk in exchange.chunks():
        size += len(chunk)
        if size > limit:
            raise FunctionError(f"the answer is longer than the {limit} bytes allowed here (`max_response`)")
        pieces.append(chunk)
    return b"".join(pieces)


def failure(error: HostError, seconds: float = 0.0) -> Outcome:
    """The outcome of a call that the function's own code did not answer: the error envelope."""
    body = envelope(error)
    return Outcome(error.status, JSON, body, invoked=False, seconds=seconds, error_code=error.code)


def interrupted() -> Outcome:
    """Of a call whose host ended while it was running."""
    return failure(Interrupted())


def next_attempt(retry: Retry, outcome: Outcome, attempt: int, now: float) -> float | None:
    """When to run the call again, in seconds since the epoch; None for never.

    Exponential backoff with full jitter; a Retry-After of the answer counts instead, from `min_wait` to `max_wait`.
    """
    if attempt >= retry.attempts or outcome.code not in retry.codes:
        return None
    asked = retry_after(_header(outcome.headers, b"retry-after"), now)
    if asked is not None:
        return now + min(max(asked, retry.min_wait), max(retry.max_wait, retry.min_wait))
    most = min(retry.max_wait, retry.min_wait * 2.0 ** min(attempt - 1, 60))
    return now + random.uniform(0, most)


def limit_of(call: Call, settings: FunctionSettings) -> float:
    """Seconds that one attempt may take: the call's own limit, or its function's `async_timeout`."""
    return settings.async_timeout if call.timeout is None else call.timeout


def fit(call: Call, attempt: int, settings: FunctionSettings) -> Call:
    """The call as its worker is to see it."""
    return msgspec.structs.replace(call, attempt=attempt, timeout=limit_of(call, settings))


def _header(headers: bytes, name: bytes) -> str:
    parts = headers.split(b"\0")
    values = (value for key, value in zip(parts[::2], parts[1::2], strict=False) if key == name)
    return next(values, b"").decode("latin-1")
