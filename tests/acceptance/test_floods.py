"""Many connections at once: more than may be open, more than are accepted in a moment, and those that break off."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.connection import Connection

FILES = 200
LIMITED = f"""
import importlib.util, resource, sys
from runtime import cli, openfiles
openfiles.LOOK_EVERY = 0.05
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
find = importlib.util.find_spec
importlib.util.find_spec = cli.find_spec = lambda name: None if name == sys.argv[1] else find(name)
del sys.argv[1]
sys.exit(cli.main())
"""
ECHO = """
    def handle(function_call_info):
        return {"size": len(function_call_info.body)}
    """


@pytest.fixture(params=[("hypercorn", "-"), ("hypercorn", "uvloop"), ("uvicorn", "-")])
def limited(request: pytest.FixtureRequest, site: Site) -> Iterator[Running]:
    """A host that may have few files open; on each event loop, as each does something else when there are too many."""
    site.write("demo/echo.py", ECHO)
    engine, hidden = request.param
    options = "serve", str(site.root), "--bind", "127.0.0.1:0", "--engine", engine
    process = subprocess.Popen([sys.executable, "-c", LIMITED, hidden, *options], stderr=subprocess.PIPE, text=True)
    running = Running(process, site.root)
    yield running
    running.stop()


def connecting(host: Running, scope: ExitStack) -> socket.socket:
    """A connection that is being made."""
    parts = urlsplit(host.url)
    sock = scope.enter_context(socket.socket())
    sock.setblocking(False)
    sock.connect_ex((str(parts.hostname), parts.port))
    return sock


def open_files(host: Running) -> int:
    return len(os.listdir(f"/proc/{host.process.pid}/fd"))


def test_more_connections_than_files(limited: Running) -> None:
    """Those that are there are served, it is said once what to do, and all is well when they have gone."""
    assert limited.call("demo/echo").status_code == 200  # on a connection that is kept
    with ExitStack() as scope:
        for _ in range(2 * FILES):
            connecting(limited, scope)
        limited.logged("ulimit -n")
        beside = limited.call("demo/echo")
    eventually(lambda: open_files(limited) < FILES / 2, "their connections are closed")
    with Connection(limited.url) as another:
        another.request(limited.path("demo/echo"))
        after = another.answer()
    limited.stop()

    assert (beside.status_code, after.status) == (200, 200)
    assert [line for line in map(json.loads, limited.lines) if line["level"] == "error"] == [
        json.loads(limited.logged("ulimit -n"))
    ]


def test_more_connections_than_are_accepted_in_a_moment(site: Site, engine: str) -> None:
    """The kernel has room for them until the host gets round to it."""
    host = site.start(engine=engine)
    with ExitStack() as scope:
        scope.callback(host.process.send_signal, signal.SIGCONT)
        host.process.send_signal(signal.SIGSTOP)
        poll = select.poll()
        for _ in range(500):
            poll.register(connecting(host, scope), select.POLLOUT)
        eventually(lambda: len(poll.poll(0)) == 500, "all are connected")

    assert host.client.get("/healthz").status_code == 200


def test_bodies_that_break_off(site: Site, engine: str) -> None:
    """Their connections are forgotten at once, without a word, and their function does not hear of them."""
    site.write("demo/echo.py", ECHO)
    host = site.start(engine=engine)
    host.call("demo/echo")
    before = open_files(host)
    for _ in range(100):
        with Connection(host.url) as connection:
            connection.request(host.path("demo/echo"), "Content-Length: 100000", method="POST")
            connection.send("x" * 5000)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: open_files(host) < before + 50, "all are closed")
    answer = host.call("demo/echo")
    host.stop()

    assert answer.json() == {"size": 0}
    assert not [line for line in host.lines if json.loads(line)["level"] != "info"]
