"""The core vocabulary: a call, its result, what is kept of it, and the ids all are known by.

Every dialect turns its own HTTP shape into a `Call` (to run it now) or a `Submission` (to have it run), and
a `Result` or an `Entry` back; everything between speaks only these.
"""

from __future__ import annotations

import hashlib
import time
from enum import StrEnum
from typing import Any

import msgspec

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z: call ids count milliseconds from here
MAX_HEAD = 80 * 1024  # bytes of path, query and headers together
MAX_METHOD = 255  # bytes
SEQUENCE_BITS = 11  # 42 bits of milliseconds and these make 53, the integers JSON clients can hold

Headers = list[tuple[bytes, bytes]]

# What calls come by: the dialects, `http` being our own, and what calls without being asked.
TRIGGERS = ("http", "kernel", "cognite", "nyckel", "schedule", "rerun", "training")


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request to run a function.

    `path` is what follows the function's address, as it came, percent-encoded, empty or with a leading
    slash; `query` is without its question mark; `headers` is name, value, name, value, … joined by NUL,
    names in lower case; `body` is in the pieces it came in. `label` is the id that the client sees.
    `timeout`, in seconds, stands in for the function's own. `schedule_id` and `scheduled_time` (seconds
    since the epoch) are 0 unless a schedule made the call.
    """

    id: int
    label: str
    space: str
    name: str
    method: bytes = b"POST"
    path: bytes = b""
    query: bytes = b""
    headers: bytes = b""
    body: tuple[bytes, ...] = ()
    attempt: int = 1
    timeout: float | None = None
    schedule_id: int = 0
    scheduled_time: float = 0.0

    @property
    def head_size(self) -> int:
        """Bytes of path, query and headers together."""
        return len(self.path) + len(self.query) + len(self.headers)


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a function answered. With `complete` false, `body` is empty and the rest arrives in chunks.

    `failed`: the handler raised, and `body` is the error envelope. `handler_seconds`: time in the handler.
    """

    status: int
    headers: bytes
    body: bytes
    complete: bool
    failed: bool
    handler_seconds: float


class Status(StrEnum):
    """Where a submitted call is. It moves one way only, but for a retry, which is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the call."""
        return self not in (Status.QUEUED, Status.RUNNING)


class CallbackState(StrEnum):
    """What has become of a call's callback."""

    NONE = "none"  # there is no URL, or the call was cancelled
    WAITING = "waiting"  # for the call to end
    PENDING = "pending"  # the outcome is to be delivered, now or again later
    DELIVERED = "delivered"
    DEAD = "dead"  # given up: a dead letter


class Submission(msgspec.Struct, frozen=True):
    """A call to be recorded and run, and what its caller wants besides.

    `trigger`: one of TRIGGERS. `run_at`: seconds since the epoch; None is now. Calls of higher
    `priority` (-100 to 100) start first.
    """

    call: Call
    trigger: str = "http"
    callback_url: str | None = None
    idempotency_key: str | None = None
    run_at: float | None = None
    priority: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """How a submitted call ended: an HTTP response. `headers` as in `Call`.

    `invoked`: the function's own code made it; otherwise `error_code` says what went wrong in the host, and
    `body` is the error envelope. `seconds`: from its last start to its end.
    """

    code: int
    headers: bytes
    body: bytes
    invoked: bool
    seconds: float
    error_code: str | None = None

    @property
    def status(self) -> Status:
        """Succeeded, where the function answered with a status below 400."""
        return Status.SUCCEEDED if self.invoked and self.code < 400 else Status.FAILED


class Entry(msgspec.Struct, frozen=True):
    """What the journal holds of one call, without its request and its answer. Times in seconds since the epoch.

    `run_at`: when it may start (again). `attempt`: how often it was started. `code` to `seconds` are those of
    its outcome, once it has one. `callback_url` may hold a secret: log neither its query nor its path.
    """

    id: int
    label: str
    space: str
    name: str
    status: Status
    trigger: str
    priority: int
    idempotency_key: str | None
    schedule_id: int
    scheduled_time: float
    attempt: int
    accepted_at: float
    run_at: float
    started_at: float | None
    finished_at: float | None
    code: int | None
    error_code: str | None
    seconds: float | None
    progress: float | None
    progress_message: str
    callback: CallbackState
    callback_url: str | None
    callback_attempts: int
    callback_at: float | None
    callback_error: str | None


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a call. `number` grows within the call; `at` in seconds since the epoch.

    `kind` and its `data`: `state` {"status": …}; `log` {"level": …, "text": …};
    `progress` {"fraction": …, "message": …}.
    """

    number: int
    at: float
    kind: str
    data: dict[str, Any]


class Delivery(msgspec.Struct, frozen=True):
    """An outcome on its way to its callback URL. `attempt`: 1 for the first."""

    entry: Entry
    outcome: Outcome
    attempt: int


class CallIds:
    """Positive integers below 2**53, each larger than the one before, also when the clock jumps back.

    `first` is where the sequence of each millisecond begins: another one on each host, so that two of them seldom
    give out the same id.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._last = 0

    def next(self) -> int:
        """An id that was never given out by this object."""
        now = (int(time.time() * 1000) - EPOCH_MS) << SEQUENCE_BITS
        self._last = max(self._last + 1, now + self._first)
        return self._last


def function_id(space: str, name: str) -> int:
    """A function's number: the same on every host and after every restart, positive and below 2**53."""
    digest = hashlib.blake2b(f"{space}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> SEQUENCE_BITS) or 1
