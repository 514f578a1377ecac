"""Which addresses callbacks may go to, and a client for HTTP that connects to those and to no others.

`callbacks` posts with it. Names are resolved here, once: the address that was checked is the one connected to.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import anyio
import anyio.to_thread
import httpcore2
import httpx2
import msgspec

CONNECT_SECONDS = 5.0  # for one address, TLS not included
TOTAL_SECONDS = 30.0  # for one POST, the resolving of the name included
MAX_ANSWER = 64 * 1024  # bytes of an answer's body that are read; nobody needs them
MAX_CONNECTIONS = 100
IDLE_SECONDS = 2.0  # less than servers keep a connection: one that they close under a POST costs an attempt
MAX_POOLS = 16
RETRY_AFTER = b"retry-after"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = list[tuple[bytes, bytes]]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_HTTP_ERRORS = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# What no name and no broad network opens: a pattern must name the address, or a network within one of these.
_SPECIAL = {
    "metadata": _networks(
        "169.254.169.254/32", "fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"
    ),
    "link-local": _networks("169.254.0.0/16", "fe80::/10"),
    "multicast": _networks("224.0.0.0/4", "ff00::/8"),
    "unspecified": _networks("0.0.0.0/8", "::/128"),
}
_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only part of IPv6 that is the internet
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Global by the register, and yet not simply the internet: 6to4, Teredo, and what is kept for documents.
_NOT_PUBLIC = _networks("2002::/16", "2001::/32", "3fff::/20", "192.88.99.0/24")


class Policy(msgspec.Struct, frozen=True):
    """Where callbacks may go: to what `hosts` lists and nowhere else; if it is empty, to public addresses.

    `hosts` are patterns: a name, `*.` and a name, an address or a network, each with or without `:PORT`.
    `loopback`: without `hosts`, loopback is allowed too.
    """

    hosts: tuple[str, ...] = ()
    loopback: bool = False

    def may_resolve(self, host: str, port: int) -> bool:
        """Whether some address of this host could be allowed."""
        patterns = self._patterns(port)
        return not self.hosts or any(each.network is not None or each.names(host) for each in patterns)

    def refusal(self, host: str, port: int, address: str) -> str | None:
        """Why this address of a host must not be connected to; None: it may be."""
        faces = _faces(ipaddress.ip_address(address))
        patterns = self._patterns(port)
        networks = [each.network for each in patterns if each.network is not None]
        closed = next((kind for face in faces for kind in _special_kinds(face, networks)), None)
        if closed:
            return f"{host} has a {closed} address, which callback_hosts does not name"
        if self.hosts:
            named = any(each.names(host) for each in patterns)
            inside = any(face in network for face in faces for network in networks)
            return None if named or inside else f"{host} is not in callback_hosts"
        if all(map(_is_public, faces)) or (self.loopback and all(face.is_loopback for face in faces)):
            return None
        return f"{host} has a {_kind(faces)} address, and callback_hosts is not set"

    def _patterns(self, port: int) -> list[_Pattern]:
        return [each for each in map(_pattern, self.hosts) if each.port in (None, port)]


class _Pattern(NamedTuple):
    network: IPNetwork | None
    name: str
    port: int | None

    def names(self, host: str) -> bool:
        """Whether the host's name is the pattern's."""
        if self.network is not None:
            return False
        name = host.lower().rstrip(".")
        return name.endswith(self.name[1:]) if self.name.startswith("*.") else name == self.name


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> _Pattern:
    """One of `callback_hosts`; a text that is no pattern matches nothing."""
    bracketed = re.fullmatch(r"\[(.*)\](?::(\d+))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    number = None if port is None else int(port) if re.fullmatch(r"\d{1,5}", port) else -1
    try:
        return _Pattern(ipaddress.ip_network(host, strict=False), "", number)
    except ValueError:
        return _Pattern(None, host.lower().rstrip("."), number)


def _faces(address: IPAddress) -> list[IPAddress]:
    """The address, and after it the IPv4 address that it leads to, where it holds one."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]  # to the kernel it is that address
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return [address, ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    inner = address.sixtofour or (address.teredo and address.teredo[1])
    return [address, inner] if inner else [address]


def _special_kinds(face: IPAddress, networks: Iterable[IPNetwork]) -> Iterator[str]:
    """The kinds of special address that this is, unless a network names it."""
    found = [(kind, each) for kind, members in _SPECIAL.items() for each in members if face in each]
    if not any(face in network and _within(network, each) for network in networks for _, each in found):
        yield from (kind for kind, _ in found)


def _within(network: IPNetwork, other: IPNetwork) -> bool:
    return network.prefixlen >= other.prefixlen and network.network_address in other


def _is_public(face: IPAddress) -> bool:
    if any(face in network for network in _NOT_PUBLIC):
        return False
    return face in _NAT64 or (face.is_global and (face.version == 4 or face in _UNICAST))


def _kind(faces: list[IPAddress]) -> str:
    """What to call an address that is not public."""
    if any(face.is_loopback for face in faces):
        return "loopback"
    return "private" if any(face.is_private and not face.is_reserved for face in faces) else "reserved"


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them, the preferred first; OSError: there are none."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # a name
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Refused(Exception):
    """The policy allows no address of the host. Its text may be shown."""


class Unresolved(Exception):
    """The host's name has no address now."""


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """TCP connections to addresses that a policy allows. TLS, above it, goes by the host's own name."""

    def __init__(self, policy: Policy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first allowed address that takes the connection."""
        addresses = await self._allowed(host, port)
        for address in addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                pass  # the next one may answer
        return await self._sockets.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def _allowed(self, host: str, port: int) -> list[str]:
        """The host's allowed addresses, at least one."""
        if not self._policy.may_resolve(host, port):
            raise Refused(f"{host} is not in callback_hosts")
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Unresolved from error
        if not addresses:
            raise Unresolved
        refusals = {address: self._policy.refusal(host, port, address) for address in addresses}
        allowed = [address for address, refusal in refusals.items() if refusal is None]
        if not allowed:
            raise Refused(next(filter(None, refusals.values())))
        return allowed


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends a request by the policy in its extensions, and reads the answer as far as it is wanted.

    Connections are kept for a moment and used again, within one policy: whoever finds a connection in its
    pool asked for the same host and port under the same rules as the one for whom it was checked and made.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._pools: dict[Policy, httpcore2.AsyncConnectionPool] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer's status and Retry-After, once it has arrived whole or is longer than MAX_ANSWER."""
        url = request.url
        pool = await self._pool(request.extensions["policy"])
        answer = await pool.handle_async_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,  # `target` among them stands in for the URL's own
            )
        )
        await _read(answer)
        # Not the others, lest the client keep cookies, or unpack a body that is not there.
        wanted = [(name, value) for name, value in answer.headers if name.lower() == RETRY_AFTER]
        return httpx2.Response(answer.status, headers=wanted)

    async def aclose(self) -> None:
        """Close every connection."""
        while self._pools:
            await self._pools.popitem()[1].aclose()

    async def _pool(self, policy: Policy) -> httpcore2.AsyncConnectionPool:
        if policy in self._pools:
            return self._pools[policy]
        if len(self._pools) >= MAX_POOLS:
            await self._close_idle()  # settings have changed many times
        if self._tls is None:  # it reads files
            self._tls = await anyio.to_thread.run_sync(httpcore2.default_ssl_context)
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=CheckedBackend(policy, self._resolve),
        )
        return self._pools.setdefault(policy, pool)

    async def _close_idle(self) -> None:
        for policy, pool in list(self._pools.items()):
            if all(connection.is_idle() for connection in pool.connections):
                self._pools.pop(policy, None)  # another request may be at this, too
                await pool.aclose()


async def _read(answer: httpcore2.Response) -> None:
    """Read an answer to its end, or to the bound and no further; then its connection is closed."""
    size = 0
    try:
        async with aclosing(answer.aiter_stream()) as parts:
            async for part in parts:
                size += len(part)
                if size > MAX_ANSWER:
                    return
    finally:
        await answer.aclose()


class Answer(msgspec.Struct, frozen=True):
    """What became of a POST: a status, or 0 and the trouble, in words that name no more than the host.

    `hopeless`: it must not, or cannot, be sent at all. `retry_after`: that header of the answer.
    """

    status: int = 0
    retry_after: str = ""
    trouble: str = ""
    hopeless: bool = False


class Client:
    """Posts to addresses that a policy allows, at most MAX_CONNECTIONS at once; the others wait their turn.

    It follows no redirect, keeps no cookie, and goes by no proxy or netrc of the environment.
    """

    def __init__(self, resolve: Resolve = resolve) -> None:
        self._places = anyio.Semaphore(MAX_CONNECTIONS)
        self._client = httpx2.AsyncClient(transport=CheckedTransport(resolve), trust_env=False, follow_redirects=False)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def post(self, origin: str, target: bytes, headers: Headers, body: bytes, policy: Policy) -> Answer:
        """POST a body to a target (path and query) at an origin; Host and Content-Length are added.

        The URL that httpx2 gets is the origin alone, so that nothing it logs or raises has the query in it.
        """
        url = httpx2.URL(origin)
        framing = [(b"Host", url.netloc), (b"Content-Length", b"%d" % len(body))]
        timeout = httpx2.Timeout(TOTAL_SECONDS, connect=CONNECT_SECONDS)
        extensions = {"policy": policy, "target": target, "timeout": timeout.as_dict()}
        stream = httpx2.ByteStream(body)
        request = httpx2.Request("POST", url, headers=framing + headers, stream=stream, extensions=extensions)
        async with self._places:
            try:
                with anyio.fail_after(TOTAL_SECONDS):
                    response = await self._client.send(request)
            except (Refused, httpcore2.LocalProtocolError) as error:
                return Answer(trouble=_trouble(error, url.host), hopeless=True)
            except (Unresolved, OSError, *_HTTP_ERRORS) as error:
                return Answer(trouble=_trouble(error, url.host))
        return Answer(response.status_code, response.headers.get(RETRY_AFTER.decode(), ""))


def _trouble(error: Exception, host: str) -> str:
    """An exception in words. Those of protocol errors are not used: they may repeat what the receiver sent."""
    match error:
        case Refused():
            return str(error)
        case Unresolved():
            return f"the name {host} could not be resolved"
        case httpcore2.ConnectTimeout():
            return f"no connection to {host} within {CONNECT_SECONDS:g} s"
        case TimeoutError() | httpcore2.TimeoutException():
            return f"no whole answer from {host} within {TOTAL_SECONDS:g} s"
        case httpcore2.ConnectError():
            return f"no connection to {host}: {_cause(error)}"
        case httpcore2.LocalProtocolError():
            return "the headers of this answer cannot be sent in a request"
        case httpcore2.ProtocolError():
            return f"{host} ended the connection without a whole answer, or did not speak HTTP"
    return f"the connection to {host} was lost: {_cause(error)}"


def _cause(error: BaseException) -> str:
    """The system's or the TLS library's words for what is behind an error."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            return f"TLS: {found.reason or 'it failed'}"
        if isinstance(found, OSError) and found.errno:
            return os.strerror(found.errno)
        found = found.__cause__ or found.__context__
    return "it was closed"
