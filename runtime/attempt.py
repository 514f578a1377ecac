"""One attempt at a submitted call: from the call to its outcome, and what is to follow from that.

Used by `dispatcher.py`, for which it runs an exchange to its end. Nothing here knows the journal.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic

import anyio
import msgspec

from .calls import Call, Outcome, Result
from .clock import retry_after
from .errors import (
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
Word = Callable[[HostError], HostError]

JSON = b"content-type\0application/json"


class Postponed(Exception):
    """The call was not begun, and is to be tried again in `seconds`: that is no attempt."""

    def __init__(self, seconds: float, error: HostError) -> None:
        super().__init__(error.message)
        self.seconds, self.error = seconds, error


class Cut(Exception):
    """The host is ending, and the call with it."""


async def run(
    exchange: Exchange, call: Call, settings: FunctionSettings, follower: Follower, word: Word = lambda error: error
) -> Outcome:
    """The whole answer of a call under way. Postponed when it was never begun; Cut when the host is ending.

    `word` makes an error fit to be shown to whoever submitted the call.
    """
    started = monotonic()
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
        late = FunctionTimeout(f"`{call.space}/{call.name}` did not end within {limit:g} s")
        return failure(late, monotonic() - started)
    except Draining as error:
        raise Cut from error
    except (CapacityError, StillLoading, NotFound) as error:  # NotFound: removed while it waited for a worker
        raise Postponed(BACK_SOON, error) from error
    except HostError as error:
        return failure(word(error), monotonic() - started)
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
