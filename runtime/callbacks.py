"""Delivers a finished call to its callback URL, once a call of `deliver`, and says what is to become of it.

The dispatcher calls it; what may be connected to, and the connection, are `addresses`'.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

from runtime import __version__, callback_rules
from runtime.calls import Delivery, Entry, Outcome
from runtime.clock import retry_after
from runtime.errors import BadRequest

if TYPE_CHECKING:
    from runtime.addresses import Answer, Client, Headers, Resolve

MIN_WAIT = 1.0  # seconds between two attempts
GROWTH = 3.0  # the wait of the next attempt, at most, to that of the one before
MAX_RETRY_AFTER = 3600.0  # a receiver that asks for more is asked again anyway
RETRIED = frozenset({408, 425, 429})  # and 500 and above

_ORIGIN = re.compile(r"(https?)://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]*))?(?=[/?]|$)", re.IGNORECASE)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)

# About a connection, made anew for the request, or the server's own; and below, what only the host may say.
_DROPPED = frozenset(
    b"connection content-length date expect host keep-alive proxy-authenticate proxy-authorization proxy-connection"
    b" server te trailer transfer-encoding upgrade".split()
)
_OURS = frozenset(
    b"user-agent webhook-id webhook-signature webhook-timestamp x-call-id x-callback-attempt x-duration-seconds"
    b" x-function-name x-function-status x-invoked".split()
)

logger = logging.getLogger("spaces.callbacks")


class CallbackSettings(Protocol):
    """What callbacks need of a function's settings."""

    @property
    def callback_hosts(self) -> tuple[str, ...]: ...
    @property
    def callback_secrets(self) -> tuple[str, ...]: ...
    @property
    def callback_attempts(self) -> int: ...
    @property
    def callback_max_wait(self) -> float: ...


class Delivered(msgspec.Struct, frozen=True):
    """The receiver has it: it answered with a 2xx status."""


class Again(msgspec.Struct, frozen=True):
    """Not delivered; try again at `at` (seconds since the epoch)."""

    at: float
    error: str


class Dead(msgspec.Struct, frozen=True):
    """Not delivered, and not to be tried again by itself."""

    error: str


class Target(msgspec.Struct, frozen=True):
    """A callback URL in two: `origin` (scheme, host, port) may be logged; `path`, with the query, may not."""

    origin: str
    path: bytes


def check_url(text: str | bytes) -> str:
    """A callback URL without its fragment, otherwise byte for byte as it came; BadRequest says what is wrong with it.

    Its host, and where that leads, are looked at when a callback is sent.
    """
    try:
        url = callback_rules.url(text if isinstance(text, str) else text.decode("latin-1"))
        split_url(url)
    except ValueError as error:
        raise BadRequest(f"X-Callback-Url: {error}") from None
    return url


def split_url(url: str) -> Target:
    """The parts of a URL without a fragment; ValueError, which never repeats it, for what has no proper host."""
    found = _ORIGIN.match(url)
    if found is None or not _is_host(found[2].removesuffix(".")):
        raise ValueError("the host of a callback URL is a name, an IPv4 address, or an IPv6 address in brackets")
    scheme, host, port, path = found[1].lower(), found[2].lower().removesuffix("."), found[3], url[found.end() :]
    origin = f"{scheme}://{host}:{int(port)}" if port else f"{scheme}://{host}"
    return Target(origin, path.encode() if path.startswith("/") else b"/" + path.encode())


def _is_host(host: str) -> bool:
    labels = host.split(".")
    try:
        if host.startswith("["):
            return bool(ipaddress.IPv6Address(host[1:-1]))
        if _NUMERIC.fullmatch(labels[-1]):  # "127.1" and "0x7f.1" are addresses to some, names to others: neither here
            return bool(ipaddress.IPv4Address(host))
    except ValueError:
        return False
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels))


class Callbacks:
    """Delivers callbacks, any number at once. An async context manager; `deliver` is for use within it.

    `loopback_allowed`: whether a function without `callback_hosts` may call this machine, asked at each delivery.
    """

    def __init__(
        self,
        *,
        loopback_allowed: Callable[[], bool],
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
        resolve: Resolve | None = None,
    ) -> None:
        self._loopback_allowed = loopback_allowed
        self._clock = clock
        self._random = random
        self._resolve = resolve
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        # Not at the top: the HTTP client takes a tenth of a second to import, and most commands deliver nothing.
        from runtime import addresses

        self._client = addresses.Client(self._resolve or addresses.resolve)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def deliver(self, delivery: Delivery, settings: CallbackSettings) -> Delivered | Again | Dead:
        """One attempt. At least once is all that can be had: a receiver may have it though its answer was lost."""
        entry = delivery.entry
        try:
            target = split_url(callback_rules.url(entry.callback_url or ""))
        except ValueError as error:
            return Dead(str(error))
        answer = await self._post(target, delivery, settings)
        end = self._judge(answer, delivery.attempt, settings)
        _log(end, target.origin, entry)
        return end

    async def _post(self, target: Target, delivery: Delivery, settings: CallbackSettings) -> Answer:
        from runtime.addresses import Policy

        assert self._client is not None, "deliver() is for use within `async with`"
        body = delivery.outcome.body
        headers = _headers(delivery)
        if settings.callback_secrets:
            headers += _signature(settings.callback_secrets, delivery.entry.id, int(self._clock()), body)
        policy = Policy(settings.callback_hosts, self._loopback_allowed())
        return await self._client.post(target.origin, target.path, headers, body, policy)

    def _judge(self, answer: Answer, attempt: int, settings: CallbackSettings) -> Delivered | Again | Dead:
        if 200 <= answer.status < 300:
            return Delivered()
        error = answer.trouble or f"the receiver answered {answer.status}"
        if answer.hopeless or (answer.status and answer.status < 500 and answer.status not in RETRIED):
            return Dead(error)
        if attempt >= settings.callback_attempts:
            return Dead(f"{error}; attempt {attempt} was the last")
        now = self._clock()
        wait = asked_wait(answer.retry_after, now)
        return Again(now + (self._backoff(attempt, settings.callback_max_wait) if wait is None else wait), error)

    def _backoff(self, attempt: int, most: float) -> float:
        """Anything up to a bound that grows with each attempt, so that those who failed together do not return so."""
        bound = min(max(most, MIN_WAIT), MIN_WAIT * GROWTH ** min(attempt, 20))
        return MIN_WAIT + self._random() * (bound - MIN_WAIT)


def asked_wait(text: str, now: float) -> float | None:
    """The seconds that a receiver's Retry-After asks for, within bounds; None where it asks for nothing."""
    asked = retry_after(text, now)
    return None if asked is None else min(max(asked, MIN_WAIT), MAX_RETRY_AFTER)


def _log(end: Delivered | Again | Dead, origin: str, entry: Entry) -> None:
    error = "delivered" if isinstance(end, Delivered) else end.error
    level = {Delivered: logging.DEBUG, Again: logging.INFO, Dead: logging.WARNING}[type(end)]
    extra = {"call_id": entry.label, "function": f"{entry.space}/{entry.name}"}
    logger.log(level, "callback of call %s to %s: %s", entry.label, origin, error, extra=extra)


def _headers(delivery: Delivery) -> Headers:
    """The function's own headers, several of a name kept, and then what the host has to say."""
    entry, outcome = delivery.entry, delivery.outcome
    ours = {
        b"X-Function-Status": b"%d" % outcome.code,
        b"X-Function-Name": entry.name.encode(),
        b"X-Call-Id": entry.label.encode(),
        b"X-Duration-Seconds": b"%.6f" % outcome.seconds,
        b"X-Callback-Attempt": b"%d" % delivery.attempt,
        b"User-Agent": f"spaces/{__version__}".encode(),
    }
    if outcome.invoked:
        ours[b"X-Invoked"] = b"true"
    return [*_own_headers(outcome), *ours.items()]


def _own_headers(outcome: Outcome) -> Iterator[tuple[bytes, bytes]]:
    parts = outcome.headers.split(b"\0") if outcome.headers else []
    pairs = [(name.lower(), value) for name, value in zip(parts[::2], parts[1::2], strict=True)]
    named = {each.strip().lower() for name, value in pairs if name == b"connection" for each in value.split(b",")}
    for name, value in pairs:
        if name not in _DROPPED and name not in _OURS and name not in named:
            yield name, value


def _signature(secrets: tuple[str, ...], id: int, now: int, body: bytes) -> Headers:
    """The headers of Standard Webhooks: one signature for each secret, so that a receiver may know either.

    Its library signs text alone, and a body is bytes; so the scheme, one HMAC, is written out here.
    """
    name, moment = f"msg_{id}".encode(), b"%d" % now  # the name is that of the message: the same at each attempt
    signed = b"%b.%b.%b" % (name, moment, body)
    keys = [base64.b64decode(secret.removeprefix(callback_rules.SECRET_PREFIX)) for secret in secrets]
    signatures = b" ".join(b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256")) for key in keys)
    return [(b"webhook-id", name), (b"webhook-timestamp", moment), (b"webhook-signature", signatures)]
