"""HTTP/2 and HTTP/3 where clients wait or do not read: events and long polls of calls, streams that nobody takes.

What an unread stream may cost is little, and for so long only as an unread answer over HTTP/1.1 (`test_slow_clients`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h2.errors
import h2.events
import httpx2
import pytest
import trustme

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually
from tests.acceptance.test_http2 import Raw

MIB = 1024 * 1024
SHORT = """
import sys
from runtime import cli, stragglers
stragglers.UNTAKEN = float(sys.argv.pop(1))
stragglers.SLOWEST = 1024 * 1024
sys.exit(cli.main())
"""
COUNTS = """
    import pathlib

    def handle(data):
        made = pathlib.Path(data["file"])
        for number in range(1, 1000):
            yield bytes(60_000)
            made.write_text(str(number))
    """
STEPS = """
    import pathlib, time

    def handle(data):
        print("begun", flush=True)
        while not pathlib.Path(data["file"]).exists():
            time.sleep(0.005)
        return {"done": True}
    """
ECHO = """
    def handle(function_call_info):
        return function_call_info.body
    """
AT = "/spaces/demo/functions"


class Short:
    """A site whose hosts have as much patience as a test says, and speak everything."""

    def __init__(self, site: Site) -> None:
        self.authority = trustme.CA()
        self.site = site
        certificate = self.authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(str(site.root / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(site.root / "cert.pem"))
        site.write("demo/counts.py", COUNTS)
        site.write("demo/steps.py", STEPS)
        site.write("demo/echo.py", ECHO)
        self._running: list[Running] = []

    def start(self, untaken: float = 0.5, *, http3: bool = False) -> Running:
        """With HTTP/3 it speaks TLS, without it HTTP/2 in the clear."""
        tls = 'certfile = "cert.pem"\nkeyfile = "key.pem"\nhttp3 = true\n' if http3 else ""
        self.site.write("spaces.toml", f"[server]\n{tls}[defaults]\ntimeout = '5m'\n")
        options = "serve", str(self.site.root), "--bind", "127.0.0.1:0", "--engine", "hypercorn"
        process = subprocess.Popen(
            [sys.executable, "-c", SHORT, str(untaken), *options], stderr=subprocess.PIPE, text=True
        )
        self._running.append(Running(process, self.site.root))
        return self._running[-1]

    def stop(self) -> None:
        for running in self._running:
            running.stop()


@pytest.fixture
def short(site: Site) -> Iterator[Short]:
    """Its hosts end with the test."""
    short = Short(site)
    yield short
    short.stop()


def at_rest(made: Path) -> int:
    """How many pieces of a stream were made, once it makes no more."""
    seen: list[str] = []

    def resting() -> bool:
        seen.append(made.read_text() if made.exists() else "")
        return len(seen) > 30 and set(seen[-30:]) == {seen[-1]} and seen[-1] != ""

    eventually(resting, "no more is made")
    return int(seen[-1])


def begin(client: httpx2.Client, file: Path) -> str:
    """A submitted call that runs until the file is there: its address."""
    answer = client.post(f"{AT}/steps/async-invoke", json={"file": str(file)})
    assert answer.status_code == 202
    return answer.headers["location"]


# HTTP/2.


def test_an_unread_stream_takes_little_memory(short: Short, tmp_path: Path) -> None:
    """What the client has no window for stays with the function."""
    host, made = short.start(600.0), tmp_path / "made"
    raw = Raw(host.url)
    raw.get(f"{AT}/counts/invoke?file={made}")
    pieces = at_rest(made)
    raw.close()

    assert pieces * 60_000 < 3 * MIB


def test_an_unread_stream_is_reset(short: Short, tmp_path: Path) -> None:
    """In its time; its call ends, and other streams of the connection go on."""
    host = short.start()
    raw = Raw(host.url)
    unread = raw.get(f"{AT}/counts/invoke?file={tmp_path / 'made'}")
    seen = raw.until(h2.events.StreamReset, unread)
    eventually(lambda: host.call("demo/counts", "?file=/dev/null", method="HEAD").status_code == 200, "it is served")
    eventually(lambda: host.status("demo/counts")["busy"] == 0, "its call has ended")
    raw.http.increment_flow_control_window(10 * MIB)
    raw.flush()
    other = raw.get("/healthz")
    after = raw.until(h2.events.StreamEnded, other)
    raw.close()

    [reset] = [event for event in seen if isinstance(event, h2.events.StreamReset)]
    assert reset.error_code == h2.errors.ErrorCodes.CANCEL
    assert b"".join(event.data for event in after if isinstance(event, h2.events.DataReceived)) == b"ok\n"


def test_a_slow_reader_keeps_its_stream(short: Short, tmp_path: Path) -> None:
    """One that takes something now and then is not one that has gone."""
    host = short.start(1.0)
    raw = Raw(host.url)
    stream = raw.get(f"{AT}/counts/invoke?file={tmp_path / 'made'}")
    raw.socket.settimeout(0.2)
    seen: list[h2.events.Event] = []
    for _ in range(20):
        try:
            seen += raw.http.receive_data(raw.socket.recv(65536))
        except TimeoutError:
            raw.http.increment_flow_control_window(1000)
            raw.http.increment_flow_control_window(1000, stream)
        raw.flush()
    raw.close()

    assert not any(isinstance(event, h2.events.StreamReset) for event in seen)


def test_events_and_results_are_waited_for(short: Short, tmp_path: Path) -> None:
    """Over one connection of HTTP/2, each beside the other; both end with the call."""
    host = short.start(600.0)
    with httpx2.Client(base_url=host.url, http1=False, http2=True, timeout=PATIENCE, trust_env=False) as client:
        call = begin(client, tmp_path / "go")
        with client.stream("GET", f"{call}/events") as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if "begun" in line)
            early = client.get(f"{call}/result?wait=50ms")
            (tmp_path / "go").touch()
            result = client.get(f"{call}/result?wait=20s")
            rest = list(lines)

    assert "begun" in first
    assert (answer.http_version, early.status_code) == ("HTTP/2", 202)
    assert (result.status_code, result.json()) == (200, {"done": True})
    assert "event: end" in rest


# HTTP/3.


class Http3:
    """A connection of HTTP/3: what came on each stream."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def get(self, path: str, method: str = "GET", body: bytes = b"") -> int:
        """Send one request; its stream."""
        connection = self.connection
        stream: int = connection._quic.get_next_available_stream_id()
        fields = {":method": method, ":scheme": "https", ":authority": "127.0.0.1", ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        connection.http.send_headers(stream, headers, end_stream=not body)
        if body:
            connection.http.send_data(stream, body, end_stream=True)
        connection.transmit()
        return stream

    async def until(self, condition: Callable[[], Any]) -> None:
        async def held() -> None:
            while not condition():
                self.connection.news.clear()
                await self.connection.news.wait()

        await asyncio.wait_for(held(), PATIENCE)

    def body(self, stream: int) -> bytes:
        """What came of its answer's body."""
        found: bytes = self.connection.bodies.get(stream, b"")
        return found

    async def whole(self, stream: int) -> tuple[dict[str, str], bytes]:
        """The head and the body of an answer, at its end."""
        await self.until(lambda: stream in self.connection.ended)
        return self.connection.heads[stream], self.body(stream)


@asynccontextmanager
async def over_http3(host: Running, certificate: bytes, window: int = 0) -> AsyncIterator[Http3]:
    """A connection; with a `window`, one that never takes more than so many bytes of a stream."""
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import StreamReset

    class Client(QuicConnectionProtocol):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.http = H3Connection(self._quic)
            self.heads: dict[int, dict[str, str]] = {}
            self.bodies: dict[int, bytes] = {}
            self.ended: set[int] = set()
            self.reset: set[int] = set()
            self.news = asyncio.Event()

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, StreamReset):
                self.reset.add(event.stream_id)
            for found in self.http.handle_event(event):
                if isinstance(found, HeadersReceived):
                    self.heads[found.stream_id] = {name.decode(): value.decode() for name, value in found.headers}
                if isinstance(found, DataReceived):
                    self.bodies[found.stream_id] = self.bodies.get(found.stream_id, b"") + found.data
                if isinstance(found, (HeadersReceived, DataReceived)) and found.stream_ended:
                    self.ended.add(found.stream_id)
            self.news.set()

    parts = urlsplit(host.url)
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN)
    configuration.load_verify_locations(cadata=certificate)
    if window:
        configuration.max_stream_data = window
    async with connect(
        str(parts.hostname), int(parts.port or 0), configuration=configuration, create_protocol=Client
    ) as connection:
        if window:
            setattr(connection._quic, "_write_stream_limits", lambda **_: None)  # noqa: B010
        yield Http3(connection)


def test_events_and_results_are_waited_for_over_http3(short: Short, tmp_path: Path) -> None:
    """As over HTTP/2."""
    pytest.importorskip("aioquic", reason="aioquic is not installed")
    host = short.start(600.0, http3=True)

    async def follow() -> tuple[bytes, dict[str, str], bytes]:
        async with over_http3(host, short.authority.cert_pem.bytes()) as client:
            body = json.dumps({"file": str(tmp_path / "go")}).encode()
            accepted, _ = await client.whole(client.get(f"{AT}/steps/async-invoke", "POST", body))
            call = accepted["location"]
            events, result = client.get(f"{call}/events"), client.get(f"{call}/result?wait=20s")
            await client.until(lambda: b"begun" in client.body(events))
            (tmp_path / "go").touch()
            head, body = await client.whole(result)
            return (await client.whole(events))[1], head, body

    told, head, body = asyncio.run(follow())

    assert b"event: end" in told
    assert (head[":status"], json.loads(body)) == ("200", {"done": True})


@pytest.mark.parametrize("untaken", [0.5, 600.0])
def test_an_unread_stream_over_http3(short: Short, tmp_path: Path, untaken: float) -> None:
    """It takes little memory, and is reset in its time; the connection's other streams go on."""
    pytest.importorskip("aioquic", reason="aioquic is not installed")
    host, made = short.start(untaken, http3=True), tmp_path / "made"

    async def read_nothing() -> bytes:
        async with over_http3(host, short.authority.cert_pem.bytes(), 65536) as client:
            unread = client.get(f"{AT}/counts/invoke?file={made}")
            if untaken > PATIENCE:
                await client.until(lambda: len(client.body(unread)) > 60_000)
                await asyncio.to_thread(at_rest, made)
            else:
                await client.until(lambda: unread in client.connection.reset)
            return (await client.whole(client.get("/healthz")))[1]

    answer = asyncio.run(read_nothing())

    assert answer == b"ok\n"
    assert int(made.read_text()) * 60_000 < 3 * MIB
