"""Clients that hold a connection and do nothing with it: each is cut off in its time, and nobody else notices.

The times are a minute or so; a host that is started here has shorter ones.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.connection import Answer, Connection

SHORT = """
import sys
from runtime import cli, engines, request, stragglers
engines.KEEP_ALIVE = 1.0
request.BODY_PAUSE = stragglers.UNTAKEN = 0.5
sys.exit(cli.main())
"""
ECHO = """
    def handle(function_call_info):
        return {"size": len(function_call_info.body)}
    """
FOREVER = """
    def handle():
        while True:
            yield bytes(60_000)
    """
PATIENT = "[defaults]\ntimeout = '5m'\n"  # a call is not what ends first
HEAD = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Iterator[Running]:
    """A host with little patience."""
    shared_site.write("spaces.toml", PATIENT)
    shared_site.write("demo/echo.py", ECHO)
    shared_site.write("demo/forever.py", FOREVER)
    options = "serve", str(shared_site.root), "--bind", "127.0.0.1:0", "--engine", each_engine
    process = subprocess.Popen([sys.executable, "-c", SHORT, *options], stderr=subprocess.PIPE, text=True)
    running = Running(process, shared_site.root)
    yield running
    running.stop()


def is_cut(connection: Connection, *, sending: bytes = b"") -> bool:
    """Whether the host has closed it; if not, send it something more."""
    poll = select.poll()
    poll.register(connection.socket, select.POLLRDHUP)
    if poll.poll(0):
        return True
    try:
        connection.send(sending)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("head", ["", HEAD])
def test_a_head_that_never_comes(host: Running, head: str) -> None:
    """Neither of a connection's first request nor of a later one; nothing, or a byte now and then."""
    with Connection(host.url) as first, Connection(host.url) as later:
        later.request("/healthz")
        assert later.answer().status == 200
        for connection in (first, later):
            connection.send(head)

        eventually(lambda: is_cut(first, sending=b"x" if head else b""), "the first is cut")
        eventually(lambda: is_cut(later, sending=b"x" if head else b""), "the later one is cut")
    assert host.call("demo/echo").status_code == 200


@pytest.mark.parametrize("drop", [b"", b"x"])
@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come(host: Running, framing: str, drop: bytes) -> None:
    """It is refused in words, whether it stops or only drips; its function does not hear of it."""
    chunk = b"1\r\n" + drop + b"\r\n" if "chunked" in framing and drop else drop
    with Connection(host.url) as connection:
        connection.request(host.path("demo/echo"), framing, method="POST")
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)

        def answered() -> bool:
            if poll.poll(0):
                return True
            connection.send(chunk)
            return False

        eventually(answered, "an answer")
        answer = connection.answer()

    assert (answer.status, answer.get("x-invoked"), code(answer)) == (408, None, "body_too_slow")


def code(answer: Answer) -> str:
    """The code of an error."""
    found: str = json.loads(answer.body)["error"]["code"]
    return found


def test_a_long_body_that_goes_on_coming(host: Running) -> None:
    """It may take as long as it takes: this one takes four times what it may pause."""
    pieces = [bytes(1000)] * 20
    with Connection(host.url) as connection:
        connection.request(host.path("demo/echo"), "Content-Length: 20000", method="POST")
        for piece in pieces:
            connection.send(piece)
            select.select([connection.socket], [], [], 0.1)
        answer = connection.answer()

    assert (answer.status, answer.body) == (200, b'{"size":20000}')


def test_an_answer_that_nobody_takes(host: Running) -> None:
    """Its connection is closed, and with it the call ends."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/forever"))
        eventually(lambda: host.status("demo/forever")["busy"] == 1, "the stream has begun")

        eventually(lambda: host.status("demo/forever")["busy"] == 0, "the stream has ended")
        eventually(lambda: is_cut(connection), "its connection is closed")


def test_a_client_that_takes_little(host: Running) -> None:
    """It keeps its connection: a slow reader is not one that has gone."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/forever"))
        for _ in range(30):
            assert connection.socket.recv(65536)
            select.select([], [], [], 0.1)

    eventually(lambda: host.status("demo/forever")["busy"] == 0, "the stream has ended")


def test_the_kernel_keeps_little_for_a_client(host: Running) -> None:
    """What the client's kernel does not take stays with the function: a megabyte or so, not four."""
    seen = [0]

    def still() -> bool:
        seen.append(unsent(connection))
        return len(seen) > 20 and seen[-20:] == [seen[-1]] * 20

    with Connection(host.url) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.request(host.path("demo/forever"))
        assert connection.head().status == 200
        eventually(still, "no more is sent")

    assert 0 < max(seen) < 2_000_000


def unsent(connection: Connection) -> int:
    """Bytes that the kernel has for a client."""
    port = f":{connection.socket.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return max((int(row[4].partition(":")[0], 16) for row in rows if row[2].endswith(port)), default=0)
