"""HTTP/2 in the clear and over TLS, HTTP/3, and what both engines do with a certificate."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx2
import pytest
import trustme

from tests.acceptance.conftest import PATIENCE, Running, Site, error_of, eventually

MIB = 1024 * 1024
INVOKE = "/spaces/demo/functions/echo/invoke"
ECHO = """
    def handle(function_call_info):
        info = function_call_info
        return {
            "method": info.method, "path": info.path, "query": info.query.multi_items(),
            "headers": info.headers.multi_items(), "body": info.body.decode("latin-1"),
        }
    """
STEPS = """
    import asyncio, pathlib

    async def handle(data):
        folder = pathlib.Path(data["folder"])
        try:
            yield "first"
            while not (folder / "second").exists():
                await asyncio.sleep(0.005)
            yield "second"
        finally:
            (folder / "stopped").touch()
    """
FOREVER = """
    def handle(data):
        while True:
            yield b"x" * 60_000
    """
BREAKS = """
    def handle(data):
        yield "some"
        raise ValueError("in the middle")
    """
SIZES = """
    import hashlib

    def handle(data, function_call_info):
        body = function_call_info.body
        return body or b"0123456789abcdef" * (int(data["size"]) // 16)
    """
SETTINGS = """
    [spaces.demo.functions.sizes]
    max_body = "20 MiB"
    max_response = "20 MiB"
    [spaces.demo.functions.forever]
    max_workers = 1
    """


def write_functions(site: Site) -> None:
    """The functions that these tests call."""
    for name, text in (
        ("echo", ECHO), ("steps", STEPS), ("forever", FOREVER), ("breaks", BREAKS), ("sizes", SIZES),
    ):  # fmt: skip
        site.write(f"demo/{name}.py", text)


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Running:
    """A host on hypercorn, which speaks HTTP/2 in the clear."""
    write_functions(shared_site)
    shared_site.write("spaces.toml", SETTINGS)
    return shared_site.start(engine="hypercorn")


@pytest.fixture
def client(host: Running) -> Iterator[httpx2.Client]:
    """A client that speaks HTTP/2 from the first byte, without asking."""
    with httpx2.Client(base_url=host.url, http1=False, http2=True, timeout=PATIENCE, trust_env=False) as client:
        yield client


def test_a_call(client: httpx2.Client, host: Running) -> None:
    """Everything is as over HTTP/1.1: method, path, query, headers, body."""
    answer = client.put(f"{INVOKE}/a%2Fb//c/?x=1&x=2", content=b"body", headers=[("X-Many", "1"), ("X-Many", "2")])
    found = answer.json()
    headers = [(name, value) for name, value in found["headers"] if name in ("x-many", "host", "x-forwarded-host")]

    assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    assert (found["method"], found["path"], found["body"]) == ("PUT", "/a/b//c/", "body")
    assert found["query"] == [["x", "1"], ["x", "2"]]
    authority = host.url.removeprefix("http://")
    assert sorted(headers) == [("host", authority), ("x-forwarded-host", authority), ("x-many", "1"), ("x-many", "2")]
    assert answer.headers["x-invoked"] == "true"
    assert answer.headers["x-call-id"]
    assert "connection" not in answer.headers


def test_crumbs_of_a_cookie(client: httpx2.Client) -> None:
    """HTTP/2 lets a client send a cookie in pieces; the function sees one header (RFC 9113 section 8.2.3)."""
    answer = client.get(INVOKE, headers=[("Cookie", "a=1"), ("Cookie", "b=2")])

    assert [value for name, value in answer.json()["headers"] if name == "cookie"] == ["a=1; b=2"]


def test_a_body_without_a_length(client: httpx2.Client) -> None:
    """A body need not be announced."""
    answer = client.post(INVOKE, content=iter([b"one ", b"two"]))

    assert answer.json()["body"] == "one two"


def test_head_and_errors(client: httpx2.Client) -> None:
    """HEAD has no body; errors have the envelope."""
    head, missing = client.head(INVOKE), client.get("/spaces/demo/functions/none/invoke")

    assert (head.status_code, head.content) == (200, b"")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")


@pytest.mark.parametrize("rest", ["/%zz", "/%00", "/%ff"])
def test_malformed_paths(client: httpx2.Client, rest: str) -> None:
    """A malformed path costs its own request only."""
    assert (
        client.get(httpx2.URL(client.base_url).copy_with(raw_path=INVOKE.encode() + rest.encode())).status_code == 400
    )
    assert client.get(INVOKE).status_code == 200


def test_large_bodies(client: httpx2.Client) -> None:
    """Bodies beyond the flow control windows arrive whole, both ways."""
    body = bytes(range(256)) * (16 * MIB // 256)
    back = client.post("/spaces/demo/functions/sizes/invoke", content=body)

    assert back.content == body


def test_a_body_that_is_too_large(client: httpx2.Client) -> None:
    """413 with the envelope, and the connection's other requests go on."""
    large = client.post(INVOKE, content=b"x" * (7 * MIB))
    unannounced = client.post(INVOKE, content=iter([b"x" * MIB] * 7))
    unknown = client.post("/spaces/demo/functions/none/invoke", content=b"x" * MIB)

    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    assert (unannounced.status_code, unknown.status_code) == (413, 404)
    assert client.get(INVOKE).status_code == 200


def test_chunks_arrive_as_they_are_made(client: httpx2.Client, tmp_path: Path) -> None:
    """A stream's first chunk is with the client before the second is made."""
    with client.stream("GET", "/spaces/demo/functions/steps/invoke", params={"folder": str(tmp_path)}) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        (tmp_path / "second").touch()
        rest = b"".join(chunks)

    assert (first, rest) == (b"first", b"second")


class Raw:
    """One raw connection of HTTP/2: `events` until a condition holds, and what no client library lets one do."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((str(parts.hostname), parts.port), PATIENCE)
        self.http = h2.connection.H2Connection()
        self.http.initiate_connection()
        self.authority = parts.netloc
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.http.data_to_send())

    def get(self, path: str) -> int:
        """Send one request; its stream."""
        stream = self.http.get_next_available_stream_id()
        headers = [(":method", "GET"), (":scheme", "http"), (":authority", self.authority), (":path", path)]
        self.http.send_headers(stream, headers, end_stream=True)
        self.flush()
        return stream

    def until(self, kind: type[h2.events.Event], stream: int) -> list[h2.events.Event]:
        """What happens until there is an event of this kind on this stream."""
        seen: list[h2.events.Event] = []
        while not any(isinstance(event, kind) and getattr(event, "stream_id", None) == stream for event in seen):
            data = self.socket.recv(65536)
            assert data, f"closed before {kind.__name__}"
            seen += self.http.receive_data(data)
            self.flush()
        return seen

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def raw(host: Running) -> Iterator[Raw]:
    """A raw connection to the host."""
    connection = Raw(host.url)
    yield connection
    connection.close()


def test_a_client_that_leaves(raw: Raw, tmp_path: Path) -> None:
    """Resetting one stream stops its generator; the connection's other requests go on."""
    stream = raw.get(f"/spaces/demo/functions/steps/invoke?folder={tmp_path}")
    raw.until(h2.events.DataReceived, stream)
    raw.http.reset_stream(stream, error_code=h2.errors.ErrorCodes.CANCEL)
    raw.flush()
    eventually((tmp_path / "stopped").exists, "the generator has ended")
    after = raw.get(INVOKE)

    assert raw.until(h2.events.StreamEnded, after)


def test_a_stream_that_breaks(raw: Raw) -> None:
    """What was made before is sent, then the stream is reset; the connection's other requests go on."""
    stream = raw.get("/spaces/demo/functions/breaks/invoke")
    seen = raw.until(h2.events.StreamReset, stream)
    after = raw.get(INVOKE)

    assert b"".join(event.data for event in seen if isinstance(event, h2.events.DataReceived)) == b"some"
    assert raw.until(h2.events.StreamEnded, after)


def test_a_stream_that_breaks_for_a_client_library(client: httpx2.Client) -> None:
    """A client library says that the answer is not whole."""
    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("/spaces/demo/functions/breaks/invoke")


@pytest.mark.parametrize("path", ["/spaces/demo/functions/none/invoke", "/\xff"])
def test_a_refused_upload_that_goes_on(raw: Raw, path: str) -> None:
    """What comes of a body after its answer is not missed; the connection's other requests go on."""
    stream = raw.http.get_next_available_stream_id()
    fields = {":method": "POST", ":scheme": "http", ":authority": raw.authority, ":path": path}
    raw.http.send_headers(stream, [(name, value.encode("latin-1")) for name, value in fields.items()])
    raw.flush()
    if path.isascii():
        raw.until(h2.events.StreamEnded, stream)
    else:
        raw.until(h2.events.StreamReset, stream)
    for _ in range(2 if path.isascii() else 0):
        raw.http.send_data(stream, b"x" * 1000)
        raw.flush()
    after = raw.get(INVOKE)

    assert raw.until(h2.events.StreamEnded, after)


def test_a_refused_upload_in_many_pieces(raw: Raw) -> None:
    """More at once than waits for an application, which is answered without reading any."""
    stream = raw.http.get_next_available_stream_id()
    fields = {":method": "POST", ":scheme": "http", ":authority": raw.authority, ":path": INVOKE + "/%zz"}
    raw.http.send_headers(stream, list(fields.items()))
    for _ in range(40):
        raw.http.send_data(stream, b"x")
    raw.flush()
    raw.until(h2.events.StreamEnded, stream)
    after = raw.get(INVOKE)

    assert raw.until(h2.events.StreamEnded, after)


@pytest.mark.parametrize("size", [60_000, 5 * MIB])
def test_a_client_that_goes_in_the_middle_of_an_answer(site: Site, size: int) -> None:
    """Nothing waits for it any more: the host can end at once."""
    write_functions(site)
    host = site.start(engine="hypercorn")
    raw = Raw(host.url)
    raw.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    stream = raw.get(f"/spaces/demo/functions/sizes/invoke?size={size}")
    raw.until(h2.events.ResponseReceived, stream)
    raw.close()

    assert host.stop() == 0


@pytest.mark.anyio
async def test_streams_do_not_block_each_other(host: Running) -> None:
    """On one connection, many calls go on beside a stream that nobody reads."""
    async with httpx2.AsyncClient(
        base_url=host.url, http1=False, http2=True, timeout=PATIENCE, trust_env=False
    ) as client:
        async with client.stream("GET", "/spaces/demo/functions/forever/invoke") as unread:
            answers: list[httpx2.Response] = []

            async def call(number: int) -> None:
                answers.append(await client.post(f"{INVOKE}/{number}", content=b"x" * number))

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(call, number)
            assert unread.status_code == 200
        assert sorted(len(answer.json()["body"]) for answer in answers) == list(range(40))
    eventually(lambda: host.status("demo/forever")["busy"] == 0, "the stream has ended")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("option", ["--http2", "--http2-prior-knowledge"])
def test_curl_speaks_http2(host: Running, option: str) -> None:
    """Both by upgrading and at once."""
    answer = subprocess.run(
        ["curl", "-sS", option, "--write-out", "\n%{http_version}", f"{host.url}{INVOKE}/x?a=b"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "not support" in answer.stderr or "doesn't support" in answer.stderr:
        pytest.skip("this curl has no HTTP/2")
    body, _, version = answer.stdout.rpartition("\n")

    assert json.loads(body)["path"] == "/x"
    assert version == "2"
    assert "upgrade" not in {name for name, _ in json.loads(body)["headers"]}


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the certificates here."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """What a client needs to believe them."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def start_tls(site: Site, authority: trustme.CA, engine: str, settings: str = "") -> Running:
    """A host with a certificate for 127.0.0.1."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(site.root / "key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(site.root / "cert.pem"), append=number > 0)
    write_functions(site)
    site.write("spaces.toml", f'[server]\ncertfile = "cert.pem"\nkeyfile = "key.pem"\n{settings}')
    return site.start(engine=engine)


def test_tls(site: Site, engine: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """HTTPS on both engines; the function is told; HTTP/2 where the client offers it and hypercorn serves."""
    host = start_tls(site, authority, engine)
    with httpx2.Client(base_url=host.url, http2=True, verify=trusting, timeout=PATIENCE, trust_env=False) as client:
        answer = client.get(INVOKE)
    with httpx2.Client(base_url=host.url, verify=trusting, timeout=PATIENCE, trust_env=False) as client:
        plain = client.get(INVOKE)
        whole = client.post("/spaces/demo/functions/sizes/invoke", content=b"x" * 5 * MIB)

    assert host.url.startswith("https://")
    assert answer.http_version == ("HTTP/2" if engine == "hypercorn" else "HTTP/1.1")
    assert plain.http_version == "HTTP/1.1"
    assert dict(answer.json()["headers"])["x-forwarded-proto"] == "https"
    assert whole.content == b"x" * 5 * MIB
    assert host.stop() == 0


def test_http_to_a_tls_port(site: Site, engine: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """A client that forgets the s costs its own connection only, and no line in the log."""
    host = start_tls(site, authority, engine)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(host.url.replace("https", "http") + "/healthz", trust_env=False, timeout=PATIENCE)
    with httpx2.Client(base_url=host.url, verify=trusting, timeout=PATIENCE, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200
    host.stop()

    assert not [line for line in host.lines if json.loads(line)["level"] not in ("info", "warning")]


# HTTP/3.


async def over_http3(url: str, path: str, body: bytes, certificate: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of the answer to one POST over HTTP/3."""
    client = pytest.importorskip("aioquic.asyncio.client", reason="aioquic is not installed")
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration

    class Client(QuicConnectionProtocol):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.http = H3Connection(self._quic)
            self.headers: dict[str, str] = {}
            self.body = b""
            self.ended = asyncio.Event()

        def quic_event_received(self, event: Any) -> None:
            for found in self.http.handle_event(event):
                if isinstance(found, HeadersReceived):
                    self.headers |= {name.decode(): value.decode() for name, value in found.headers}
                if isinstance(found, DataReceived):
                    self.body += found.data
                if isinstance(found, (HeadersReceived, DataReceived)) and found.stream_ended:
                    self.ended.set()

    parts = urlsplit(url)
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN)
    configuration.load_verify_locations(cadata=certificate)
    async with client.connect(
        str(parts.hostname), int(parts.port or 0), configuration=configuration, create_protocol=Client
    ) as connection:
        stream = connection._quic.get_next_available_stream_id()
        connection.http.send_headers(
            stream,
            [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", parts.netloc.encode()),
             (b":path", path.encode())],
        )  # fmt: skip
        connection.http.send_data(stream, body, end_stream=True)
        connection.transmit()
        await asyncio.wait_for(connection.ended.wait(), PATIENCE)
        return connection.headers, connection.body


def test_http3(site: Site, authority: trustme.CA) -> None:
    """With `http3 = true` a client of HTTP/3 is served on the same port."""
    pytest.importorskip("aioquic", reason="aioquic is not installed")
    host = start_tls(site, authority, "hypercorn", "http3 = true")
    headers, body = asyncio.run(over_http3(host.url, f"{INVOKE}/h3?a=b", b"body", authority.cert_pem.bytes()))

    assert headers[":status"] == "200"
    assert headers["x-invoked"] == "true"
    assert (json.loads(body)["path"], json.loads(body)["body"]) == ("/h3", "body")
    assert host.stop() == 0
