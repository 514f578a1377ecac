"""Has a call recorded and answers 202: `/spaces/{space}/functions/{name}/async-invoke[/path]`.

Mounted by `__init__.py`, asks `host.py`. Whatever can be refused is refused before the call is recorded.
It reads the ASGI scope itself, as `invoke.py` does, and for the same reason.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from ...callbacks import check_url, split_url
from ...calls import MAX_HEAD, Call, Headers, Submission
from ...clock import date_header
from ...config import FunctionSettings
from ...errors import BadRequest, HeadTooLarge, MethodNotAllowed
from ...host import Host
from ...journal import Receipt
from ...registry import Function
from ...request import Address, check_path, read_body, read_headers, with_authorization
from . import moments
from .admission import admit

WISHES = {
    b"x-callback-url": "X-Callback-Url",
    b"idempotency-key": "Idempotency-Key",
    b"x-delay": "X-Delay",
    b"x-run-at": "X-Run-At",
    b"x-priority": "X-Priority",
}
KEY = re.compile(r"[\x21-\x7e]{1,255}")
PRIORITY = re.compile(r"[+-]?[0-9]{1,3}")
FARTHEST = 366 * 86400.0  # seconds that a call may be submitted ahead
POST_ONLY = {"Allow": "POST"}


class Submit:
    """Accepts calls: an ASGI endpoint for one function and what follows its address.

    Guarantee: when it has answered 202, the call is in the journal.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(self, address: Address, scope: Scope, receive: Receive, send: Send) -> None:
        """Record one call and say so; HostError says why not."""
        headers = await self.record(address, scope, receive)
        scope["answered"] = True
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def record(self, address: Address, scope: Scope, receive: Receive) -> Headers:
        """Record one call; the headers of the 202."""
        space, name, path = address
        number = self._host.ids.next()
        headers, length, label, authorization = read_headers(scope, number)
        scope["call_id"] = label
        authorization = await admit(self._host, space, name, authorization)
        if authorization is not None:
            headers = with_authorization(headers, authorization)
        function = self._host.lookup(space, name)
        check_method(function, scope["method"])
        check_path(function, path)
        query: bytes = scope["query_string"]
        if len(path) + len(query) + len(headers) > MAX_HEAD:
            raise HeadTooLarge
        wishes = read_wishes(scope["headers"], function.settings)
        if "callback_url" in wishes:
            check_target(wishes["callback_url"], function.settings.callback_hosts, self._host.bound_to_loopback)
        body = await read_body(receive, length, function.settings.async_max_body, "async_max_body")
        scope["body_read"] = True
        call = Call(number, label.decode(), space, name, b"POST", path, query, headers, body)
        receipt = await self._host.submit(Submission(call, **wishes))
        scope["call_id"] = receipt.label.encode()
        return accepted(space, name, receipt)


def check_method(function: Function, method: str) -> None:
    """Refuse all but POST, and POST where the function's `methods` exclude it."""
    if method != "POST":
        raise MethodNotAllowed("async-invoke takes POST", headers=POST_ONLY)
    methods = function.settings.methods
    if methods is not None and "POST" not in methods:
        allowed = ", ".join(sorted(methods))
        raise MethodNotAllowed(f"async-invoke takes POST, and `{function.label}` only {allowed}", headers={"Allow": ""})


def read_wishes(headers: Headers, settings: FunctionSettings) -> dict[str, Any]:
    """What the caller wants besides the call, as the fields of its Submission."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in WISHES:
            if name in found:
                raise BadRequest(f"{WISHES[name]} is there twice")
            found[name] = value.strip(b" \t").decode("latin-1")
    if settings.require_callback and b"x-callback-url" not in found:
        raise BadRequest("X-Callback-Url is missing, and this function requires it (`require_callback`)")
    if b"x-delay" in found and b"x-run-at" in found:
        raise BadRequest("X-Delay and X-Run-At are both there")
    wishes: dict[str, Any] = {}
    for name, text in found.items():
        field, read = READERS[name]
        wishes[field] = read(text)
    return wishes


def check_target(url: str, hosts: tuple[str, ...], loopback: bool) -> None:
    """BadRequest for a callback that could never be delivered. Where a name leads is looked at when it is sent."""
    from ...addresses import Policy  # not at the top: it takes a tenth of a second to import

    target = urlsplit(split_url(url).origin)
    host, port = str(target.hostname), target.port or (443 if target.scheme == "https" else 80)
    policy = Policy(hosts, loopback)
    refusal = None if policy.may_resolve(host, port) else f"{host} is not in callback_hosts"
    with suppress(ValueError):  # it is a name
        refusal = refusal or policy.refusal(host, port, str(ip_address(host)))
    if refusal is not None:
        raise BadRequest(f"X-Callback-Url: {refusal}")


def _key(text: str) -> str:
    if KEY.fullmatch(text) is None:
        raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters")
    return text


def _delay(text: str) -> float:
    return time.time() + moments.read_seconds(text, "X-Delay")


def _run_at(text: str) -> float:
    moment = moments.read_moment(text, "X-Run-At")
    if moment > time.time() + FARTHEST:
        raise BadRequest("X-Run-At is more than 366 days ahead")
    return moment


def _priority(text: str) -> int:
    if PRIORITY.fullmatch(text) is None or abs(int(text)) > 100:
        raise BadRequest("X-Priority must be a whole number from -100 to 100")
    return int(text)


READERS: dict[bytes, tuple[str, Callable[[str], Any]]] = {
    b"x-callback-url": ("callback_url", check_url),
    b"idempotency-key": ("idempotency_key", _key),
    b"x-delay": ("run_at", _delay),
    b"x-run-at": ("run_at", _run_at),
    b"x-priority": ("priority", _priority),
}


def accepted(space: str, name: str, receipt: Receipt) -> Headers:
    """What is said of a call that is in the journal."""
    return [
        (b"content-length", b"0"),
        (b"location", location(space, name, receipt.id).encode()),
        date_header(),
        (b"x-call-id", receipt.label.encode()),
    ]


def location(space: str, name: str, id: int) -> str:
    """The address of a call."""
    return f"/spaces/{space}/functions/{name}/calls/{id}"
