"""Addresses: which ones callbacks may go to, and a client that connects to those and to no others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from runtime import addresses
from runtime.addresses import Answer, Client, Policy, resolve

PATIENCE = 20.0
LOOPBACK = Policy(loopback=True)
OK = b"HTTP/1.1 204 No Content\r\n\r\n"

INTERNAL = {
    "loopback": ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
    "private": ["10.0.0.1", "172.16.3.4", "192.168.0.1", "198.18.0.1", "fd12::1", "::ffff:10.1.2.3", "2002:a00:1::"],
    "reserved": ["240.0.0.1", "255.255.255.255", "100.64.0.1", "5f00::1", "64:ff9b:1::1"],
    "metadata": ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "100.100.100.200"],
    "link-local": ["169.254.1.1", "fe80::1", "fe80::1%eth0", "2002:a9fe:101::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"],
}
PUBLIC = ["93.184.216.34", "2606:4700::6810:85e5", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
NEVER_BY_NAME = [each for kind in ("metadata", "link-local", "multicast", "unspecified") for each in INTERNAL[kind]]
ALL_INTERNAL = [each for members in INTERNAL.values() for each in members]


def allows(policy: Policy, address: str, host: str = "hooks.example.com", port: int = 443) -> bool:
    return policy.refusal(host, port, address) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed_where_nothing_is_configured(address: str) -> None:
    """Also when it is an IPv4 address in an IPv6 dress."""
    assert allows(Policy(), address)
    assert allows(LOOPBACK, address)


@pytest.mark.parametrize(
    "address", [*ALL_INTERNAL, "::127.0.0.1", "2001:0:5db8:d822::1", "fec0::1", "3fff::1", "2001:db8::1"]
)
def test_what_is_not_public_is_refused_where_nothing_is_configured(address: str) -> None:
    """Every kind of internal address, and those that hold one."""
    assert not allows(Policy(), address)


@pytest.mark.parametrize(("kind", "address"), [(kind, each) for kind in INTERNAL for each in INTERNAL[kind][:3]])
def test_a_refusal_says_what_kind_of_address_it_was(kind: str, address: str) -> None:
    """And not which: that is for whoever may ask the name server."""
    refusal = Policy().refusal("hooks.example.com", 443, address)

    assert refusal is not None
    assert kind in refusal
    assert address not in refusal.split()


@given(st.ip_addresses(v=4).filter(lambda each: not each.is_global))
def test_no_dress_makes_an_internal_address_public(address: ipaddress.IPv4Address) -> None:
    """IPv4-mapped, IPv4-compatible, 6to4, NAT64 and Teredo forms of an internal IPv4 address."""
    number = int(address)
    dressed = [0xFFFF << 32 | number, number, 0x2002 << 112 | number << 80, 0x64FF9B << 96 | number]
    dressed.append(0x20010000 << 96 | number ^ 0xFFFFFFFF)

    assert not any(allows(Policy(), str(ipaddress.IPv6Address(each))) for each in dressed if each != 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_allowed_to_a_host_bound_to_it(address: str) -> None:
    """With nothing configured; a list of hosts is a list of all that is allowed."""
    assert allows(LOOPBACK, address)
    assert not allows(Policy(("hooks.example.com",), loopback=True), address, host="localhost")


@pytest.mark.parametrize("address", [each for each in ALL_INTERNAL if each not in INTERNAL["loopback"][:4]])
def test_a_host_bound_to_loopback_may_call_no_other_internal_address(address: str) -> None:
    """Loopback is this machine, and that is all."""
    assert not allows(LOOPBACK, address)


@pytest.mark.parametrize(
    ("pattern", "host", "address", "port"),
    [
        ("hooks.example.com", "hooks.example.com", "93.184.216.34", 443),
        ("hooks.example.com", "HOOKS.example.com.", "93.184.216.34", 443),
        ("hooks.example.com.", "hooks.example.com", "10.0.0.1", 443),
        ("hooks.example.com:8443", "hooks.example.com", "127.0.0.1", 8443),
        ("*.example.com", "a.b.example.com", "10.0.0.1", 80),
        ("*.example.com:80", "a.example.com", "10.0.0.1", 80),
        ("10.0.0.0/8", "internal", "10.9.8.7", 80),
        ("10.0.0.0/8:80", "internal", "10.9.8.7", 80),
        ("10.0.0.1/8", "internal", "10.9.8.7", 80),
        ("127.0.0.1", "localhost", "127.0.0.1", 1),
        ("127.0.0.1:9000", "localhost", "::ffff:127.0.0.1", 9000),
        ("::1", "localhost", "::1", 80),
        ("[::1]:80", "localhost", "::1", 80),
        ("[fd00::/8]", "internal", "fd12::3", 80),
        ("10.0.0.0/8", "internal", "64:ff9b::a01:203", 80),
        ("240.0.0.0/4", "odd", "240.0.0.1", 80),
        ("169.254.169.254", "metadata", "169.254.169.254", 80),
        ("169.254.0.0/16", "metadata", "169.254.169.254", 80),
        ("fe80::/64", "near", "fe80::1", 80),
        ("fd00:ec2::254", "metadata", "fd00:ec2::254", 80),
    ],
)
def test_what_a_pattern_allows(pattern: str, host: str, address: str, port: int) -> None:
    """A name with all its addresses, an address or network under any name; with a port, that port."""
    assert Policy((pattern,)).may_resolve(host, port)
    assert Policy(("other.example", pattern)).refusal(host, port, address) is None


@pytest.mark.parametrize(
    ("pattern", "host", "address", "port"),
    [
        ("hooks.example.com", "example.com", "93.184.216.34", 443),
        ("hooks.example.com", "a.hooks.example.com", "93.184.216.34", 443),
        ("*.example.com", "example.com", "93.184.216.34", 443),
        ("*.example.com", "notexample.com", "93.184.216.34", 443),
        ("hooks.example.com:8443", "hooks.example.com", "93.184.216.34", 443),
        ("10.0.0.0/8", "hooks.example.com", "93.184.216.34", 443),
        ("10.0.0.0/8:81", "internal", "10.0.0.1", 80),
        ("[::1]:81", "localhost", "::1", 80),
        ("::1", "localhost", "127.0.0.1", 80),
        ("0.0.0.0/0", "metadata", "169.254.169.254", 80),
        ("::/0", "metadata", "fd00:ec2::254", 80),
        ("fd00::/8", "metadata", "fd00:ec2::254", 80),
        ("64:ff9b::/96", "metadata", "64:ff9b::a9fe:a9fe", 80),
        ("0.0.0.0/0", "any", "0.0.0.0", 80),
        ("no:pattern", "no", "93.184.216.34", 80),
        ("", "hooks.example.com", "93.184.216.34", 80),
    ],
)
def test_what_a_pattern_does_not_allow(pattern: str, host: str, address: str, port: int) -> None:
    """Neighbours of the name, another port, anything that is not listed, metadata by a broad network."""
    assert Policy((pattern,)).refusal(host, port, address) is not None


@pytest.mark.parametrize("address", NEVER_BY_NAME)
def test_a_name_never_opens_link_local_and_metadata_addresses(address: str) -> None:
    """Whoever answers for the name could point it there."""
    assert not allows(Policy(("hooks.example.com", "*.com")), address)


@given(st.text(max_size=30), st.text(max_size=20), st.ip_addresses())
def test_any_text_is_a_pattern_of_something_or_of_nothing(
    pattern: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """It never raises: the settings have been checked, and what got through is not a reason to stop."""
    policy = Policy((pattern,))

    assert policy.refusal(host, 80, str(address)) is None or policy.may_resolve(host, 80) in (True, False)


# The client

Serve = Callable[[anyio.abc.SocketStream], Awaitable[None]]


def to(*addresses: str, asked: list[str] | None = None) -> addresses.Resolve:
    """A name server that has these addresses for every name."""

    async def answer(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        return list(addresses)

    return answer


@asynccontextmanager
async def serving(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A server that handles each connection so; its port."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await serve(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream, OSError):
                pass  # the client has left

    listener = await anyio.create_tcp_listener(local_host=host)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def client(resolve: addresses.Resolve = resolve) -> AsyncIterator[Client]:
    made = Client(resolve)
    try:
        with anyio.fail_after(PATIENCE):
            yield made
    finally:
        await made.aclose()


async def read_request(stream: anyio.abc.ByteReceiveStream) -> bytes:
    """One request without a body."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += await stream.receive()
    return found


def answering(answer: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        while True:
            request = await read_request(stream)
            if seen is not None:
                seen.append(request)
            await stream.send(answer)

    return serve


async def post(port: int, policy: Policy = LOOPBACK, *, by: Client, host: str = "hooks.example.com") -> Answer:
    return await by.post(f"http://{host}:{port}", b"/in?k=1", [(b"X-A", b"1"), (b"X-A", b"2")], b"", policy)


@pytest.mark.anyio
async def test_it_connects_to_the_address_and_asks_for_the_host() -> None:
    """The name is resolved once; the request is for the host's name, target and headers as given."""
    asked: list[str] = []
    seen: list[bytes] = []
    async with serving(answering(OK, seen)) as port, client(to("127.0.0.1", asked=asked)) as by:
        origin = f"http://hooks.example.com:{port}"
        answer = await by.post(origin, b"/a//b?x={y}&z=%zz", [(b"X-A", b"1")], b"", LOOPBACK)

    assert answer == Answer(204)
    assert asked == ["hooks.example.com"]
    assert seen[0].startswith(b"POST /a//b?x={y}&z=%zz HTTP/1.1\r\n")
    assert f"Host: hooks.example.com:{port}\r\n".encode() in seen[0]


@pytest.mark.anyio
async def test_headers_of_one_name_stay_several_and_nothing_is_added() -> None:
    """Host and Content-Length are all that is."""
    seen: list[bytes] = []
    async with serving(answering(OK, seen)) as port, client(to("127.0.0.1")) as by:
        await post(port, by=by)
    names = [line.partition(b":")[0] for line in seen[0].strip().split(b"\r\n")[1:]]

    assert names == [b"Host", b"Content-Length", b"X-A", b"X-A"]


@pytest.mark.anyio
async def test_a_refused_address_is_not_connected_to() -> None:
    """And it is hopeless: the next attempt would be refused as well."""
    seen: list[bytes] = []
    async with serving(answering(OK, seen)) as port, client(to("127.0.0.1")) as by:
        answer = await post(port, Policy(), by=by)

    assert answer.hopeless
    assert answer.trouble == "hooks.example.com has a loopback address, and callback_hosts is not set"
    assert seen == []


@pytest.mark.anyio
async def test_a_host_that_no_pattern_names_is_not_even_resolved() -> None:
    """Resolving would tell somebody's name server."""
    asked: list[str] = []
    async with client(to("127.0.0.1", asked=asked)) as by:
        answer = await post(1, Policy(("other.example.com",)), by=by)

    assert answer.hopeless
    assert asked == []


@pytest.mark.anyio
async def test_of_several_addresses_the_refused_ones_are_left_out() -> None:
    """A name may have an internal address too; it is the others that are connected to."""
    seen: list[bytes] = []
    async with serving(answering(OK, seen)) as port, client(to("169.254.169.254", "10.0.0.1", "127.0.0.1")) as by:
        answer = await post(port, by=by)

    assert answer.status == 204


@pytest.mark.anyio
@pytest.mark.parametrize("found", [("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")])
async def test_when_one_address_does_not_answer_the_next_is_tried(found: tuple[str, str]) -> None:
    """127.0.0.2 is loopback too, and nobody listens there."""
    async with serving(answering(OK)) as port, client(to(*found)) as by:
        answer = await post(port, by=by)

    assert answer.status == 204


@pytest.mark.anyio
async def test_nobody_listens() -> None:
    """The trouble is in the system's words and names the host, not the URL."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with client(to("127.0.0.1")) as by:
            answer = await post(unused.getsockname()[1], by=by)

    assert answer == Answer(trouble="no connection to hooks.example.com: Connection refused")


@pytest.mark.anyio
@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
async def test_a_name_that_cannot_be_resolved_is_trouble_for_now(error: Exception) -> None:
    """A name server may be back soon."""

    async def fail(host: str, port: int) -> list[str]:
        raise error

    async with client(fail) as by:
        answer = await post(80, by=by)

    assert answer == Answer(trouble="the name hooks.example.com could not be resolved")


@pytest.mark.anyio
async def test_a_name_without_addresses_is_not_resolved() -> None:
    """As when the system knows only addresses of another kind."""
    async with client(to()) as by:
        answer = await post(80, by=by)

    assert "could not be resolved" in answer.trouble


@pytest.mark.anyio
async def test_an_address_in_the_url_needs_no_name_server() -> None:
    """The system's own resolving takes it as it is."""
    async with serving(answering(OK)) as port, client() as by:
        answer = await post(port, by=by, host="127.0.0.1")

    assert answer.status == 204


@pytest.mark.anyio
async def test_an_ipv6_address_is_called() -> None:
    """In brackets in the URL and in the Host header."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    seen: list[bytes] = []
    try:
        async with serving(answering(OK, seen), "::1") as port, client() as by:
            answer = await post(port, by=by, host="[::1]")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    assert answer.status == 204
    assert f"Host: [::1]:{port}\r\n".encode() in seen[0]


@pytest.mark.anyio
async def test_a_redirect_is_an_answer() -> None:
    """It is not followed, and no cookie is taken along."""
    moved = b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    seen: list[bytes] = []
    async with serving(answering(moved, seen)) as port, client(to("127.0.0.1")) as by:
        answers = [await post(port, by=by), await post(port, by=by)]

    assert [each.status for each in answers] == [307, 307]
    assert b"cookie" not in b"".join(seen).lower()


@pytest.mark.anyio
async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect to addresses that nobody checked."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(answering(OK)) as port, client(to("127.0.0.1")) as by:
        answer = await post(port, by=by)

    assert answer.status == 204


@pytest.mark.anyio
async def test_a_connection_is_used_again_within_one_policy() -> None:
    """And under another policy it is not: there it would not have been checked."""
    connections = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answering(OK)(stream)

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        first = [await post(port, by=by), await post(port, by=by)]
        count = connections
        other = await post(port, Policy(("127.0.0.0/8",)), by=by)
        refused = await post(port, Policy(), by=by)

    assert [each.status for each in [*first, other]] == [204] * 3
    assert (count, connections) == (1, 2)
    assert refused.hopeless


@pytest.mark.anyio
async def test_a_connection_that_the_receiver_has_closed_is_not_used_again() -> None:
    """A POST that it would never answer would count as an attempt."""
    closed = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        await stream.send(OK)
        await stream.aclose()
        closed.set()

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        first = await post(port, by=by)
        await closed.wait()
        second = await post(port, by=by)

    assert first == second == Answer(204)


@pytest.mark.anyio
async def test_many_changes_of_settings_leave_few_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of settings that nobody has any more are closed, and what is posted still arrives."""
    monkeypatch.setattr(addresses, "MAX_POOLS", 2)
    async with serving(answering(OK)) as port, client(to("127.0.0.1")) as by:
        policies = [Policy(("127.0.0.1", f"host-{number}.example")) for number in range(6)]
        answers = [await post(port, policy, by=by) for policy in policies]

    assert [each.status for each in answers] == [204] * 6


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
        b"POST /in?k=1 HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 3_000_000 + b"\r\n\r\n",
        b"\x16\x03\x01" + bytes(200),
    ],
    ids=["nothing", "half a line", "half a body", "half a chunk", "ssh", "echo", "framing", "megabytes", "binary"],
)
async def test_what_is_not_a_whole_answer_is_trouble(answer: bytes) -> None:
    """And the words for it repeat nothing of what came, which may be the URL."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        await stream.send(answer)

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        found = await post(port, by=by)

    assert found.status == 0
    assert not found.hopeless
    assert "hooks.example.com" in found.trouble
    assert "k=1" not in found.trouble


@pytest.mark.anyio
@pytest.mark.parametrize("head", [b"Content-Length: 1000000000\r\n\r\n", b"Content-Encoding: gzip\r\n\r\n"])
async def test_a_huge_answer_is_not_read(head: bytes) -> None:
    """Its status is taken, the connection closed. Nothing is unpacked, either."""
    left = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\n" + head)
        try:
            while True:
                await stream.send(b"x" * 65536)
        finally:
            left.set()

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        answer = await post(port, by=by)
        await left.wait()

    assert answer == Answer(200)


@pytest.mark.anyio
@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])
async def test_a_receiver_that_never_ends_is_given_up(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far it has got."""
    monkeypatch.setattr(addresses, "TOTAL_SECONDS", 0.5)
    left = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        if beginning:
            await stream.send(beginning)
        try:
            await stream.receive()
        finally:
            left.set()

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        answer = await post(port, by=by)
        await left.wait()

    assert answer == Answer(trouble="no whole answer from hooks.example.com within 0.5 s")


@pytest.mark.anyio
async def test_resolving_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is silent holds nobody up for longer than a receiver."""
    monkeypatch.setattr(addresses, "TOTAL_SECONDS", 0.1)

    async def never(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        raise AssertionError

    async with client(never) as by:
        answer = await post(80, by=by)

    assert "within 0.1 s" in answer.trouble


@pytest.mark.anyio
async def test_a_receiver_need_not_read_the_body() -> None:
    """One that has answered and closed while it was sent has answered."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        await stream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        while await stream.receive():
            pass

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"http://h.example:{port}", b"/", [], bytes(5_000_000), LOOPBACK)

    assert answer.status == 413


@pytest.mark.anyio
async def test_headers_that_http_does_not_allow_are_hopeless() -> None:
    """They will be no better the next time."""
    async with serving(answering(OK)) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"http://h.example:{port}", b"/", [(b"X-A", b"a\nb")], b"", LOOPBACK)

    assert answer.hopeless
    assert "headers" in answer.trouble


@pytest.mark.anyio
async def test_retry_after_is_handed_on() -> None:
    """As it was written."""
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"
    async with serving(answering(busy)) as port, client(to("127.0.0.1")) as by:
        answer = await post(port, by=by)

    assert answer == Answer(503, "120")


@pytest.mark.anyio
async def test_at_most_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever policy they go. The others wait, and arrive."""
    monkeypatch.setattr(addresses, "MAX_CONNECTIONS", 3)
    now = most = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal now, most
        while True:
            await read_request(stream)
            now += 1
            most = max(most, now)
            await anyio.lowlevel.checkpoint()
            now -= 1
            await stream.send(OK)

    answers: list[Answer] = []
    async with serving(serve) as port, client(to("127.0.0.1")) as by:

        async def one(policy: Policy) -> None:
            answers.append(await post(port, policy, by=by))

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(one, Policy(("127.0.0.1", f"{number % 4}.example")))

    assert [each.status for each in answers] == [204] * 40
    assert most <= 3


@pytest.mark.anyio
async def test_a_cancelled_post_lets_go_of_its_connection_and_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one has them."""
    monkeypatch.setattr(addresses, "MAX_CONNECTIONS", 1)
    arrived, left = anyio.Event(), anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await read_request(stream)
        if arrived.is_set():
            await stream.send(OK)
            return
        arrived.set()
        try:
            await stream.receive()
        finally:
            left.set()

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: post(port, by=by))
            await arrived.wait()
            tasks.cancel_scope.cancel()
        await left.wait()
        answer = await post(port, by=by)

    assert answer.status == 204


# TLS


@asynccontextmanager
async def serving_tls(name: str, authority: trustme.CA, names: list[str | None]) -> AsyncIterator[int]:
    """A server with a certificate for `name`; it notes the names that it is asked for."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _, asked, __: names.append(asked)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        from anyio.streams.tls import TLSStream

        try:
            async with await TLSStream.wrap(
                stream, server_side=True, ssl_context=context, standard_compatible=False
            ) as inner:
                await read_request(inner)
                await inner.send(OK)
        except ssl.SSLError:
            pass  # the client did not like the certificate

    async with serving(serve) as port:
        yield port


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """One whose certificates are trusted here."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


@pytest.mark.anyio
async def test_tls_goes_by_the_name_though_the_connection_goes_by_the_address(authority: trustme.CA) -> None:
    """Server name and certificate are those of the URL's host."""
    names: list[str | None] = []
    async with serving_tls("hooks.example.com", authority, names) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"https://hooks.example.com:{port}", b"/", [], b"", LOOPBACK)

    assert answer == Answer(204)
    assert names == ["hooks.example.com"]


@pytest.mark.anyio
async def test_a_certificate_for_another_name_is_refused(authority: trustme.CA) -> None:
    """As when somebody else has the address now."""
    async with serving_tls("other.example.com", authority, []) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"https://hooks.example.com:{port}", b"/in?k=1", [], b"", LOOPBACK)

    assert answer.status == 0
    assert not answer.hopeless
    assert "certificate" in answer.trouble
    assert "k=1" not in answer.trouble


@pytest.mark.anyio
async def test_a_certificate_that_nobody_vouches_for_is_refused(authority: trustme.CA) -> None:
    """One that an unknown authority has issued."""
    async with serving_tls("hooks.example.com", trustme.CA(), []) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"https://hooks.example.com:{port}", b"/", [], b"", LOOPBACK)

    assert "certificate" in answer.trouble


@pytest.mark.anyio
async def test_a_receiver_that_does_not_speak_tls(authority: trustme.CA) -> None:
    """https on a port of plain HTTP."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(serve) as port, client(to("127.0.0.1")) as by:
        answer = await by.post(f"https://hooks.example.com:{port}", b"/", [], b"", LOOPBACK)

    assert answer.status == 0
    assert answer.trouble.startswith("no connection to hooks.example.com: ")


@pytest.mark.anyio
async def test_the_system_resolves_a_name() -> None:
    """The addresses of this machine, each once."""
    found = await resolve("localhost", 80)

    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(found) == len(set(found)) > 0
