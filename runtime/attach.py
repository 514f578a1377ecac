"""A client of a host: of one that serves, or, when none does, of one in this process on the journal on disk.

Used by `commands.py`, which need not know which of the two it is: both speak the HTTP of `app.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec

from .app import App
from .authority import operator_token
from .config import Config
from .errors import HostError
from .host import Host
from .whereabouts import find

CONNECT = 5.0  # seconds
SILENCE = 60.0  # seconds without a byte after which a host is given up: its heartbeats are far more frequent
TIMEOUT = httpx2.Timeout(SILENCE, connect=CONNECT)
NO_LIMITS = httpx2.Limits(max_connections=None)  # each call that is followed has a connection
TRIES = 30  # that many times, a second apart, a stream of events is taken up again before the host is given up


class Bearer(httpx2.Auth):
    """A token for each request, made when it is sent: those of the command line are good for a minute only."""

    def __init__(self, make: Callable[[], str | None]) -> None:
        self._make = make

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """The request with the token, if there is one."""
        if token := self._make():
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


class Client:
    """What commands ask of a host. `live`: it serves, so that calls move on."""

    def __init__(self, http: httpx2.AsyncClient, *, live: bool) -> None:
        self._http = http
        self.live = live

    async def get(self, path: str, parameters: dict[str, Any] | None = None) -> Any:
        """The JSON at this address; HostError says why there is none."""
        return msgspec.json.decode((await self.request("GET", path, parameters)).content)

    async def request(
        self, method: str, path: str, parameters: dict[str, Any] | None = None, *, any_answer: bool = False
    ) -> httpx2.Response:
        """The answer; HostError when there is none, or, unless `any_answer` will do, when it is an error."""
        try:
            answer = await self._http.request(method, path, params=parameters)
        except httpx2.TransportError as error:
            raise HostError(f"{self._http.base_url}: {error or type(error).__name__}") from error
        if answer.is_error and not any_answer:
            raise _refusal(answer)
        return answer

    async def events(self, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What has happened to a call and what happens, kind and data, until its end; lost connections are taken up.

        Of a host that does not serve: what has happened.
        """
        last, tries = "0", 0
        while tries < TRIES:
            try:
                async with self._http.stream("GET", path, headers={"Last-Event-ID": last}) as answer:
                    if answer.is_error:
                        await answer.aread()
                        raise _refusal(answer)
                    async for number, kind, data in _parse(answer.aiter_lines()):
                        last, tries = number or last, 0
                        yield kind, data
                        if kind == "end":
                            return
            except httpx2.TransportError:
                pass
            if not self.live:
                return
            tries += 1
            await anyio.sleep(1)
        raise HostError(f"{self._http.base_url}: the host is gone")


@asynccontextmanager
async def attach(config: Config | None, url: str | None, token: str | None = None) -> AsyncIterator[Client]:
    """A client of the host at `url`; without one, of the host that serves this root, or of the journal on disk.

    It shows `token`. Without one it makes its own, if it can read the key in the state folder; a host at a `url`, which
    may be anybody's, is shown none.
    """
    if url is not None:
        auth = Bearer(lambda: token)
        async with httpx2.AsyncClient(base_url=url, auth=auth, timeout=TIMEOUT, limits=NO_LIMITS) as http:
            yield Client(http, live=True)
        return
    assert config is not None
    known = find(config.server.state)
    if known is not None and known.is_alive:
        async with _nearby(known.url, Bearer(lambda: token or operator_token(config))) as http:
            if await _is_host(http):
                yield Client(http, live=True)
                return
    if not _has_journal(config.server.state):
        raise HostError(
            f"no host serves {config.root}, and there is no journal in {config.server.state}: where they are elsewhere,"
            " the variable SPACES_STATE or --url says so"
        )
    async with Host(config, watch=False, durable=True, dispatch=False) as host:
        transport = httpx2.ASGITransport(App(host))
        host.stopping = True  # nothing moves here: nobody is to wait for news
        auth = Bearer(host.authority.operator_token)  # who can read the journal may as well see what is in it
        async with httpx2.AsyncClient(base_url="http://journal", auth=auth, transport=transport) as http:
            yield Client(http, live=False)


def _has_journal(state: Path) -> bool:
    """Whether there is one on disk; PermissionError where that may not be known."""
    try:
        return any(name.startswith("journal.") for name in os.listdir(state))
    except FileNotFoundError:
        return False


def _nearby(url: str, auth: Bearer) -> httpx2.AsyncClient:
    """A client of a host of this machine: no proxy is between, and the certificate is for another name."""
    return httpx2.AsyncClient(base_url=url, auth=auth, timeout=TIMEOUT, limits=NO_LIMITS, trust_env=False, verify=False)


async def _is_host(http: httpx2.AsyncClient) -> bool:
    """Whether a host answers: where one was killed, nobody does, or a stranger."""
    try:
        answer = await http.get("/healthz", auth=None, timeout=CONNECT)
    except httpx2.TransportError:
        return False
    return answer.status_code == 200 and "x-call-id" in answer.headers


def _refusal(answer: httpx2.Response) -> HostError:
    """The error that an answer is."""
    try:
        error = msgspec.json.decode(answer.content)["error"]
        refusal = HostError(error["message"])
        refusal.code = error["code"]
    except (msgspec.DecodeError, KeyError, TypeError):
        refusal = HostError(f"{answer.url} answers {answer.status_code}; is it a host?")
    refusal.status = answer.status_code
    return refusal


async def _parse(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Server-sent events: number, kind, data."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            if "event" in fields:
                yield fields.get("id", ""), fields["event"], msgspec.json.decode(fields.get("data", "{}"))
            fields = {}
