"""A thousand clients that hold a connection and do little: what each costs, and what a bystander's calls notice.

Three kinds, for `overload`: idle keep-alive connections, slow readers of a stream that never ends, and watchers of
the events of a submitted call that runs on.
"""

from __future__ import annotations

import json
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from urllib.parse import urlsplit

from bench import load
from bench.client import APPS, BODY, Client
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, configure, spaces, write_root

CLIENTS, FEW = 1000, 50
SPARE_FILES = 1000
STREAM = """import asyncio


async def handle(data):
    while True:
        yield bytes(16384)
        await asyncio.sleep(0)
"""
LONG = "import asyncio\n\n\nasync def handle(data):\n    await asyncio.sleep(3600)\n"
SIP = 4096  # bytes that a slow reader takes a second
SMALL_BUFFER = 16384  # bytes that its kernel takes for it
PATIENCE = 60.0


class Crowd:
    """Many open connections. `lost` says how many the server has closed."""

    def __init__(self, server: Server, request: bytes, *, buffer: int | None = None):
        parts = urlsplit(server.url)
        self.address, self.request, self.buffer = (parts.hostname, parts.port), request, buffer
        self.sockets: list[socket.socket] = []

    def join(self, count: int, answered: Callable[[bytes], bool]) -> None:
        """So many connections, each with the request sent and the beginning of its answer read."""
        for _ in range(count):
            sock = socket.socket()
            if self.buffer:  # before connecting: it is what the server is told
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
            sock.settimeout(PATIENCE)
            sock.connect(self.address)
            self.sockets.append(sock)
            sock.sendall(self.request)
            received = b""
            while not answered(received):
                more = sock.recv(SIP)
                if not more:
                    raise Unavailable(f"a client of the crowd was left with {received[:200]!r}")
                received += more
            if not received.startswith(b"HTTP/1.1 200"):
                raise Unavailable(f"a client of the crowd was answered {received[:200]!r}")
            sock.setblocking(False)

    def sip(self) -> None:
        """Each reads a little, if something is there."""
        for sock in self.sockets:
            try:
                sock.recv(SIP)
            except OSError:
                continue

    def lost(self) -> int:
        count = 0
        for sock in self.sockets:
            try:
                count += not sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                count += 1
        return count

    def leave(self) -> None:
        for sock in self.sockets:
            sock.close()


def measure(report: Report, engine: str, options: Options) -> None:
    """Each kind on a host of its own, with `engine`."""
    count = FEW if options.brief else CLIENTS
    allow_open_files(count + SPARE_FILES)
    for what, hold, memory in (
        ("idle connections", idle, (64, 24)),
        ("slow readers of a stream", slow, (512, 192)),
        ("streams of a call's events", events, (96, 48)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            sources = {"add": (APPS / "plain.py").read_text(), "stream": STREAM, "long": LONG}
            root = write_root(Path(folder), sources)
            configure(root, {"server": {"drain_timeout": "1s"}, "spaces.bench.functions.stream": roomy(count)})
            with spaces(root, engine=engine) as server:
                load.check(server)
                one(report, server, engine, f"{count:,} {what}", hold, count, options, memory)


def roomy(count: int) -> dict[str, object]:
    """All streams in one worker, and nobody is late."""
    return {"concurrency": count, "max_workers": 1, "timeout": "10m"}


def allow_open_files(count: int) -> None:
    """For this process and the servers that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Unavailable(f"only {hard} files may be open, {count} are needed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def one(
    report: Report,
    server: Server,
    engine: str,
    what: str,
    hold: Callable[[Server], tuple[Crowd, Callable[[bytes], bool]]],
    count: int,
    options: Options,
    memory: tuple[float, float],
) -> None:
    """A bystander's speed alone, beside the crowd, and alone again; the host's memory before and with the crowd."""
    seconds = options.seconds / 2
    load.run(server, load.WARM_UP)
    crowd, answered = hold(server)
    alone = [load.run(server, seconds)]
    try:
        crowd.join(1, answered)  # what only the first one costs: a worker, a subscription
        time.sleep(0.5)
        before = server.rss()
        crowd.join(count - 1, answered)
        time.sleep(1.0)
        each = (server.rss() - before) * 1024 / (count - 1)
        with Sipping(crowd):
            beside = load.run(server, seconds)
        lost = crowd.lost()
    finally:
        crowd.leave()
    time.sleep(2.0)
    alone.append(load.run(server, seconds))
    times = beside.rate / mean(one.rate for one in alone)
    report.rows.append([f"{what}: the host's memory for each", engine, f"{each:.1f}", "KiB", ""])
    report.rows.append(
        [f"{what}: another function meanwhile", engine, f"{beside.rate:,.0f}", "calls/s", f"{times:.2f} x alone"]
    )
    floor, aim = memory
    failed = beside.errors + sum(one.errors for one in alone)
    report.checks += [
        Check(f"{what}: memory for each, {engine}", each, "KiB", floor, aim),
        Check(f"{what}: another function / alone, {engine}", times, "x", 0.8, 0.95, at_most=False),
        Check(f"{what}: cut off, or failed beside them, {engine}", lost + failed, "", 0, 0),
    ]


class Sipping:
    """While it is entered, each of a crowd reads a little every second."""

    def __init__(self, crowd: Crowd):
        self.crowd, self.ended = crowd, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.wait(1.0):
            self.crowd.sip()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()


def idle(server: Server) -> tuple[Crowd, Callable[[bytes], bool]]:
    """Each has made one call and keeps its connection."""
    return Crowd(server, request("POST", server.path, BODY)), lambda answer: answer.endswith(b"}")


def slow(server: Server) -> tuple[Crowd, Callable[[bytes], bool]]:
    """Each reads 4 KiB a second of a stream that could go at any speed."""
    path = server.path.replace("/add/", "/stream/")
    return Crowd(server, request("POST", path, BODY), buffer=SMALL_BUFFER), lambda answer: len(answer) > SIP


def events(server: Server) -> tuple[Crowd, Callable[[bytes], bool]]:
    """Each follows the events of one call, which runs for an hour."""
    client = Client(server.url)
    status, headers, body = client.exchange(server.path.replace("/add/invoke", "/long/async-invoke"))
    if status != 202:
        raise Unavailable(f"a submission was answered {status} {body[:200]!r}")
    call = headers[b"location"].decode()
    deadline = time.monotonic() + PATIENCE
    while (state := json.dumps(client.get(call))).find('"running"') < 0:
        if time.monotonic() > deadline:
            raise Unavailable(f"the call does not run: {state[:300]}")
        time.sleep(0.05)
    client.close()
    return Crowd(server, request("GET", f"{call}/events")), lambda answer: b"event: state" in answer


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
