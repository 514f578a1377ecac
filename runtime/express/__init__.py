"""The express way of a call: a whole request in hand, a whole answer a moment later, and nothing of ASGI in between.

The engines' protocols (`uvicorn.py`, `hypercorn.py`) try it for every request, and go the ordinary way (`app.py`)
where it says None: for whatever is no plain call, or may have to wait before it is one. Asks `host.py`, as the
ordinary way does (`dialects/spaces/invoke.py`); what a client sees is the same on both.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Generator, Iterable
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import unquote

from starlette.types import Message, Receive, Scope, Send

from ..calls import MAX_HEAD, Call, Headers, Result, Submission
from ..clock import date_header
from ..dialects import spaces
from ..dialects.spaces.invoke import finish
from ..dialects.spaces.submit import check_method, location, read_wishes
from ..errors import CallerError, HostError
from ..exchange import Exchange
from ..host import Host
from ..journal import IdTaken, Receipt
from ..request import CALL_ID, Address, bearer, check_address, check_path, read_headers

METHODS = frozenset({"DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"})  # an answer to HEAD is a case of its own
BEGUN = "spaces.begun"  # in the state of a scope: a call that has begun on the express way
KNOWN_ADDRESSES, LONGEST_KNOWN = 1024, 256  # and bytes of one
LONGEST = 65535  # bytes of a target; uvicorn reads no longer one
KNOWN_HEADS, LARGEST_KNOWN = 256, 512  # of answers, and bytes of the headers of one
NO_BODY = (204, 304)
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nlocation: %s\r\ndate: %s\r\nx-call-id: %s\r\n\r\n"
OURS = b"date: %s\r\nx-invoked: true\r\nx-call-id: %s\r\nx-duration-seconds: %.6f\r\n\r\n"


Found = tuple[Any, Address]  # an endpoint of the dialect, and the function
Recording = Coroutine[Any, Any, bytes]
Request = tuple[spaces.Submit, Address, Scope, bytes]  # to have a call recorded

log = logging.getLogger("spaces.call")


class Express:
    """Begins calls and words their answers, for a protocol that does the reading and writing."""

    def __init__(self, host: Host, *, log_calls: bool = False) -> None:
        self.open = True  # or else every request goes the ordinary way
        self._host = host
        self._log_calls = log_calls
        self._functions = spaces.Functions(host)
        self._found: dict[bytes, Found | None] = {}
        self._heads: dict[tuple[int, bytes], tuple[bytes, int] | None] = {}
        self._recording: set[asyncio.Task[bytes]] = set()

    def begin(
        self, method: str, target: bytes, headers: Headers, body: bytes, scheme: str, client: tuple[str, int] | None
    ) -> Exchange | Arriving | Recording | None:
        """Run the call that this request asks for, or have it recorded; None where it is to go the ordinary way.

        Whoever begins a call must leave the exchange, as after any `Host.invoke`, or await the recording, which gives
        its whole answer; of one that is arriving already, it may be awaited or be told. Raises HostError.
        """
        path, _, query = target.partition(b"?")
        found = self._at(path) if len(target) <= LONGEST and b"#" not in target else None
        if found is None or method not in METHODS or not self.open:
            return None
        endpoint, (space, name, rest) = found
        scope: Scope = {"headers": headers, "http_version": "1.1", "client": client, "scheme": scheme}
        if isinstance(endpoint, spaces.Submit):
            scope.update(method=method, query_string=query)
            request = endpoint, found[1], scope, body
            return self._take_in(request) or self.record(request)
        host = self._host
        number = host.ids.next()
        try:
            blob, length, label, authorization = read_headers(scope, number)
            function = host.lookup(space, name)
            check_address(function, method, rest)
        except CallerError:  # to be worded as such
            return None
        if length != len(body) or length > function.settings.max_body or not self._admits(space, name, authorization):
            return None
        pieces = (body,) if body else ()
        call = Call(number, label.decode(), space, name, method.encode(), rest, query, blob, pieces)
        host.received[spaces.NAME] += 1
        return host.invoke(call)

    def _at(self, path: bytes) -> Found | None:
        """Who answers requests for this path, and of which function, if it is such an address."""
        try:
            return self._found[path]
        except KeyError:
            pass
        found = self._functions.at(path) if path.isascii() else None
        if len(path) > LONGEST_KNOWN:
            return found
        if len(self._found) >= KNOWN_ADDRESSES:
            self._found.clear()
        self._found[path] = found
        return found

    def _admits(self, space: str, name: str, authorization: bytes | None) -> bool:
        """Whether the call may pass, as far as can be told at once, and has no Authorization for the function."""
        authority = self._host.authority
        if authority.is_open(space):
            return authorization is None
        return authorization is not None and authority.admits_at_once(space, name, bearer(authorization))

    def _take_in(self, request: Request) -> Arriving | None:
        """Have a call recorded without a task; None where there is more to look into."""
        _, (space, name, path), scope, body = request
        host, query = self._host, scope["query_string"]
        number = host.ids.next()
        try:
            headers, length, label, authorization = read_headers(scope, number)
            function = host.lookup(space, name)
            check_method(function, scope["method"])
            check_path(function, path)
            wishes = read_wishes(scope["headers"], function.settings)
        except CallerError:
            return None
        if length != len(body) or length > function.settings.async_max_body or "callback_url" in wishes:
            return None
        if len(path) + len(query) + len(headers) > MAX_HEAD or not self._admits(space, name, authorization):
            return None
        pieces = (body,) if body else ()
        call = Call(number, label.decode(), space, name, b"POST", path, query, headers, pieces)
        arriving = Arriving(self, call, request)
        return arriving if host.take_in(Submission(call, **wishes), function, arriving) else None

    def accepted(self, call: Call, receipt: Receipt, seconds: float) -> bytes:
        """The answer to a call that has been recorded."""
        if not receipt.repeated:
            self._host.received[spaces.NAME] += 1
        if self._log_calls:
            log_call("POST", path_of(call, "async-invoke"), receipt.label, 202, seconds)
        where = location(call.space, call.name, receipt.id).encode()
        return ACCEPTED % (where, date_header()[1], receipt.label.encode())

    def not_accepted(self, call: Call, error: HostError, seconds: float) -> bytes:
        """The answer to a call that could not be recorded."""
        return self._refusal(error, "POST", path_of(call, "async-invoke"), call.label, seconds)

    async def record(self, request: Request) -> bytes:
        """The answer to a call that is to be recorded."""
        submit, address, scope, body = request
        scope["path"] = _written(*address, "async-invoke")
        began = monotonic()

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            headers = await submit.record(address, scope, receive)
        except Exception as error:
            if not isinstance(error, HostError):
                log.exception("%s %s failed in the host", scope["method"], scope["path"])
                error = HostError()
            label = (scope.get("call_id") or _label(scope["headers"], self._host)).decode()
            return self._refusal(error, scope["method"], scope["path"], label, monotonic() - began)
        if self._log_calls:
            log_call(scope["method"], scope["path"], scope["call_id"].decode(), 202, monotonic() - began)
        return b"".join((_status_line(202), _fields(headers), b"\r\n"))

    def record_later(self, request: Request, on_answer: Callable[[bytes], None]) -> None:
        """Have `on_answer` called with the answer to a call that is to be recorded."""
        task = asyncio.get_running_loop().create_task(self.record(request))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        task.add_done_callback(lambda task: None if task.cancelled() else on_answer(task.result()))

    def answer(self, exchange: Exchange, result: Result) -> bytes | None:
        """A whole answer as it is written; None for one that is to go the ordinary way: see `Begun`."""
        key = result.status, result.headers
        try:
            known = self._heads[key]
        except KeyError:
            known = plain_head(*key)
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()
            if len(result.headers) < LARGEST_KNOWN:
                self._heads[key] = known
        if known is None or known[1] != len(result.body) or not result.complete:
            return None
        call, seconds = exchange.call, exchange.seconds()
        if self._log_calls:
            log_call(call.method.decode(), path_of(call), call.label, result.status, seconds)
        ours = OURS % (date_header()[1], call.label.encode(), seconds)
        return b"".join((known[0], ours, result.body))

    def failure(self, error: HostError, exchange: Exchange) -> bytes:
        """The answer to a call that has ended in this error."""
        call = exchange.call
        return self._refusal(error, call.method.decode(), path_of(call), call.label, exchange.seconds())

    def abandoned(self, exchange: Exchange) -> None:
        """The client has left before its answer."""
        if self._log_calls:
            call = exchange.call
            log_call(call.method.decode(), path_of(call), call.label, 0, exchange.seconds())

    def refusal(self, error: HostError, method: str, target: bytes, headers: Headers) -> bytes:
        """The answer to a call that could not even begin."""
        path = unquote(target.partition(b"?")[0].decode("ascii"))
        return self._refusal(error, method, path, _label(headers, self._host).decode(), 0.0)

    def _refusal(self, error: HostError, method: str, path: str, label: str, seconds: float) -> bytes:
        status, headers, body = spaces.to_error(self._host.worded(error), self._host.debug)
        if self._log_calls:
            log_call(method, path, label, status, seconds)
        fields = _fields([*headers, date_header(), (b"x-call-id", label.encode())])
        return b"".join((_status_line(status), fields, b"\r\n", body))


class Arriving:
    """A plain call on its way into the journal: its whole answer is handed to `on_answer`, or awaited. See `Told`."""

    __slots__ = ("_began", "_call", "_express", "_request", "on_answer")

    def __init__(self, express: Express, call: Call, request: Request) -> None:
        self._express, self._call, self._request = express, call, request
        self._began = monotonic()
        self.on_answer: Callable[[bytes], None]

    def __await__(self) -> Generator[Any, None, bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.on_answer = lambda answer: None if future.done() else future.set_result(answer)
        return (yield from future)

    def cancelled(self) -> bool:
        """It is recorded, also when the client has gone."""
        return False

    def set_result(self, receipt: Receipt) -> None:
        self.on_answer(self._express.accepted(self._call, receipt, monotonic() - self._began))

    def set_exception(self, error: Exception) -> None:
        if isinstance(error, IdTaken):  # by another host, in the same millisecond
            self._express.record_later(self._request, self.on_answer)
            return
        error = error if isinstance(error, HostError) else HostError()
        self.on_answer(self._express.not_accepted(self._call, error, monotonic() - self._began))


class Begun:
    """A call that has turned out to be more than a plain one: what is left to do for it on the ordinary way."""

    def __init__(self, exchange: Exchange) -> None:
        self.accepted_at = exchange.accepted_at
        self._exchange = exchange
        self._taken = False

    def __del__(self) -> None:
        """Nobody will answer it: the engine refused its request after all, or was ended before."""
        if not self._taken:
            self._exchange.__exit__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it, as an ASGI application; the exchange is left at the end."""
        self._taken = True
        exchange, call = self._exchange, self._exchange.call
        label = call.label.encode()
        scope.update(call_id=label, body_read=True)
        with exchange:
            await finish(exchange, call.method.decode(), label, scope, receive, send)


def closing(answer: bytes) -> bytes:
    """The same answer, as the last one on its connection."""
    return answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


def plain_head(status: int, headers: bytes) -> tuple[bytes, int] | None:
    """The first bytes of an answer, and its announced length; None for one that is not as plain as that."""
    parts = headers.split(b"\0")
    names, values = parts[::2], parts[1::2]
    if not 200 <= status < 600 or status in NO_BODY or names.count(b"content-length") != 1:
        return None
    if b"connection" in names or b"transfer-encoding" in names or any(map(CONTROL.search, values)):
        return None
    length = values[names.index(b"content-length")]
    pairs = zip(names, values, strict=True)
    return (_status_line(status) + _fields(pairs), int(length)) if length.isdigit() else None


def _status_line(status: int) -> bytes:
    """RFC 9112 section 4; the phrase may be empty."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase.encode())


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """RFC 9112 section 5."""
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])


def _label(headers: Headers, host: Host) -> bytes:
    """The id of a request in its answer: the client's own where it is well-formed."""
    theirs = next((value for name, value in headers if name == b"x-call-id"), b"")
    return theirs if CALL_ID.fullmatch(theirs) else b"%d" % host.ids.next()


def path_of(call: Call, how: str = "invoke") -> str:
    """The address that was called, decoded."""
    return _written(call.space, call.name, call.path, how)


def _written(space: str, name: str, path: bytes, how: str) -> str:
    return f"/spaces/{space}/functions/{name}/{how}{unquote(path.decode('ascii'))}"


def log_call(method: str, path: str, label: str, status: int, seconds: float) -> None:
    """A line in the log of calls. Status 0: its client left."""
    log.info(
        "%s %s %s %.1f ms", method, path, status or "(client left)", seconds * 1000,
        extra={"method": method, "path": path, "call_id": label, "status": status, "seconds": round(seconds, 6)},
    )  # fmt: skip
