"""Answers sent as they are made: chunks, events, clients that leave, clients that do not read, streams that break."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import Running, Site, error_of, eventually
from tests.acceptance.connection import Connection

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

KINDS = """
    def text(data):
        yield "one, "
        yield "two, grüße"

    def binary(data):
        yield b"\\x00\\xff"
        yield bytearray(b"ab")

    def lines(data):
        yield {"n": 1}
        yield [2]
        yield None

    def events(data):
        yield {"event": "tick", "data": {"n": 1}, "id": 7, "retry": 1000}
        yield {"data": "two\\nlines"}
        yield {"comment": "still here", "data": ""}

    def empty(data):
        return
        yield

    def head(data):
        yield {"status_code": 202, "headers": {"X-Kind": "head", "Content-Type": "text/csv"}}
        yield "a,b\\n"
        yield "1,2\\n"

    def wrapped(data):
        return {"status_code": 203, "headers": [("X-Kind", "wrapped")], "body": (text for text in ("x", "y"))}

    def pair(data):
        return (str(n) for n in range(3)), 201

    def iterator(data):
        return map(str, range(3))

    def large(data):
        for number in range(2000):
            yield b"%04d" % number * 1024

    def empty_chunks(data):
        yield ""
        yield "a"
        yield b""
        yield "b"

    def breaks(data):
        yield "some"
        raise ValueError("in the middle")

    def refuses(data):
        raise ValueError("at once")
        yield "some"

    def unfit(data):
        yield "some"
        yield object()

    def bad_head(data):
        yield {"status_code": 700}
        yield "x"

    def handle(data):
        return globals()[data["kind"]](data)
    """
ASYNC_KINDS = """
    import asyncio

    async def text(data):
        yield "one, "
        await asyncio.sleep(0)
        yield "two, grüße"

    async def large(data):
        for number in range(2000):
            yield b"%04d" % number * 1024

    async def events(data):
        yield {"event": "tick", "data": {"n": 1}, "id": 7, "retry": 1000}
        yield {"data": "two\\nlines"}
        yield {"comment": "still here", "data": ""}

    async def breaks(data):
        yield "some"
        raise ValueError("in the middle")

    async def refuses(data):
        raise ValueError("at once")
        yield "some"

    async def handle(data):
        async for item in globals()[data["kind"]](data):
            yield item
    """
# Waits for files that the test makes, and leaves files for the test to find.
STEPS = """
    import pathlib, time

    def handle(data):
        folder = pathlib.Path(data["folder"])
        (folder / "started").touch()
        try:
            while not (folder / "first").exists():
                time.sleep(0.005)
            yield "first"
            while not (folder / "second").exists():
                time.sleep(0.005)
            yield "second"
            while True:
                time.sleep(0.005)
                yield "more"
        finally:
            (folder / "stopped").touch()
    """
ASYNC_STEPS = STEPS.replace("import pathlib, time", "import asyncio, pathlib")
ASYNC_STEPS = ASYNC_STEPS.replace("time.sleep", "await asyncio.sleep").replace("def handle", "async def handle")
FOREVER = """
    def handle(data):
        while True:
            yield b"x" * 60_000
    """
QUEUED = """
    import pathlib, time

    def handle(data):
        folder = pathlib.Path(data["folder"])
        (folder / f"ran_{data['name']}").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return data["name"]
    """
PAGE = """
    PAGE = '''<!doctype html><title>waiting</title><script>
    const source = new EventSource("ticker"), seen = [];
    source.addEventListener("tick", event => seen.push(`${event.lastEventId}:${JSON.parse(event.data).n}`));
    source.onmessage = event => { if (event.data === "bye") { source.close(); document.title = seen.join(" "); } };
    </script>'''

    def handle(function_call_info):
        if function_call_info.path != "/ticker":
            return {"status_code": 200, "headers": {"Content-Type": "text/html; charset=utf-8"}, "body": PAGE}
        assert "text/event-stream" in function_call_info.headers["accept"]
        return ticker()

    def ticker():
        for n in range(3):
            yield {"event": "tick", "id": n, "data": {"n": n * 10}}
        yield "bye"
    """
SETTINGS = """
    [server]
    access_log = true
    [spaces.demo.functions.forever]
    max_workers = 2
    timeout = "60s"
    [spaces.demo.functions.queued]
    max_workers = 1
    timeout = "60s"
    [spaces.demo.functions.steps]
    timeout = "60s"
    [spaces.demo.functions.steps_async]
    timeout = "60s"
    """


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Running:
    """A host with functions that stream."""
    shared_site.write("spaces.toml", SETTINGS)
    for name, text in (
        ("kinds", KINDS), ("kinds_async", ASYNC_KINDS), ("steps", STEPS), ("steps_async", ASYNC_STEPS),
        ("forever", FOREVER), ("queued", QUEUED), ("page", PAGE),
    ):  # fmt: skip
        shared_site.write(f"demo/{name}.py", text)
    return shared_site.start(engine=each_engine)


def kind(host: Running, name: str, function: str = "demo/kinds", **headers: str) -> httpx2.Response:
    """The answer to one kind of stream."""
    return host.call(function, f"?kind={name}", headers=headers)


EVENTS = 'event: tick\nid: 7\nretry: 1000\ndata: {"n":1}\n\ndata: two\ndata: lines\n\n: still here\ndata: \n\n'


@pytest.mark.parametrize(
    ("name", "content_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", "one, two, grüße".encode()),
        ("binary", "application/octet-stream", b"\x00\xffab"),
        ("lines", "application/x-ndjson", b'{"n":1}\n[2]\nnull\n'),
        ("events", "text/event-stream; charset=utf-8", EVENTS.encode()),
        ("empty", "text/plain; charset=utf-8", b""),
        ("iterator", "text/plain; charset=utf-8", b"012"),
        ("empty_chunks", "text/plain; charset=utf-8", b"ab"),
    ],
)
def test_items_decide_the_type(host: Running, name: str, content_type: str, body: bytes) -> None:
    """Text, bytes, values and events are streamed as what they are."""
    answer = kind(host, name)

    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, content_type, body)
    assert answer.headers["x-invoked"] == "true"
    assert "content-length" not in answer.headers


def test_async_generators(host: Running) -> None:
    """An async generator streams the same way."""
    assert kind(host, "text", "demo/kinds_async").text == "one, two, grüße"
    assert kind(host, "events", "demo/kinds_async").text == EVENTS


def test_a_status_and_headers_of_its_own(host: Running) -> None:
    """As a first item, or around the generator."""
    head, wrapped, pair = kind(host, "head"), kind(host, "wrapped"), kind(host, "pair")

    assert (head.status_code, head.text, head.headers["x-kind"]) == (202, "a,b\n1,2\n", "head")
    assert head.headers["content-type"] == "text/csv"
    assert (wrapped.status_code, wrapped.text, wrapped.headers["x-kind"]) == (203, "xy", "wrapped")
    assert (pair.status_code, pair.text) == (201, "012")


def test_a_client_that_asks_for_events(host: Running) -> None:
    """`Accept: text/event-stream` makes each item the data of an event; caches are told to stay out."""
    answer = kind(host, "lines", Accept="text/event-stream")

    assert answer.text == 'data: {"n":1}\n\ndata: [2]\n\ndata: null\n\n'
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("function", ["demo/kinds", "demo/kinds_async"])
def test_a_long_stream_is_whole(host: Running, function: str) -> None:
    """Every chunk arrives, in order, also when there are more than fit into any buffer."""
    expected = b"".join(b"%04d" % number * 1024 for number in range(2000))

    assert kind(host, "large", function).content == expected


def test_the_connection_goes_on_after_a_stream(host: Running) -> None:
    """A stream has an end that both sides know."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/kinds", "?kind=text"))
        first = connection.answer()
        connection.request(host.path("demo/kinds", "?kind=lines"))
        second = connection.answer()

    assert (first.body, second.body) == ("one, two, grüße".encode(), b'{"n":1}\n[2]\nnull\n')
    assert first.get("transfer-encoding") == "chunked"


def test_head_of_a_stream(host: Running, tmp_path: Path) -> None:
    """HEAD gets the head; the generator is stopped, and the connection goes on."""
    (tmp_path / "first").touch()
    (tmp_path / "second").touch()
    with Connection(host.url) as connection:
        connection.request(host.path("demo/steps", f"?folder={tmp_path}"), method="HEAD")
        head = connection.answer("HEAD")
        connection.request("/healthz")
        after = connection.answer()

    assert (head.status, head.get("content-type"), after.status) == (200, "text/plain; charset=utf-8", 200)
    eventually((tmp_path / "stopped").exists, "the generator has ended")


def test_a_stream_over_http_1_0(host: Running, each_engine: str) -> None:
    """A client of HTTP/1.0 reads to the end of the connection. Uvicorn chunks in any case."""
    with Connection(host.url) as connection:
        connection.send(f"GET {host.path('demo/kinds', '?kind=text')} HTTP/1.0\r\n\r\n")
        answer = connection.answer()

        assert answer.body == "one, two, grüße".encode()
        assert (answer.get("transfer-encoding") is None) == (each_engine == "hypercorn")
        assert connection.at_end()


@pytest.mark.parametrize("function", ["demo/steps", "demo/steps_async"])
def test_chunks_arrive_as_they_are_made(host: Running, tmp_path: Path, function: str) -> None:
    """The first is with the client before the second is made; leaving then stops the generator."""
    with Connection(host.url) as connection:
        connection.request(host.path(function, f"?folder={tmp_path}"))
        eventually((tmp_path / "started").exists, "the generator has started")
        (tmp_path / "first").touch()
        head = connection.head()
        first = connection.chunk()
        (tmp_path / "second").touch()
        second = connection.chunk()
        more = connection.chunk()
        assert not (tmp_path / "stopped").exists()

    assert (head.status, first, second, more) == (200, b"first", b"second", b"more")
    eventually((tmp_path / "stopped").exists, "the generator has ended")
    eventually(lambda: host.status(function)["busy"] == 0, "its worker is free")
    assert host.status(function)["workers"] > 0


@pytest.mark.parametrize("function", ["demo/steps", "demo/steps_async"])
def test_a_client_that_leaves_before_the_first_chunk(host: Running, tmp_path: Path, function: str) -> None:
    """The generator is stopped: at once where it awaits, at its next yield where it does not."""
    with Connection(host.url) as connection:
        connection.request(host.path(function, f"/leaves?folder={tmp_path}"))
        eventually((tmp_path / "started").exists, "the generator has started")
    host.logged(f"{host.path(function, '/leaves')} (client left)")
    if function == "demo/steps":
        (tmp_path / "second").touch()
        (tmp_path / "first").touch()

    eventually((tmp_path / "stopped").exists, "the generator has ended")
    eventually(lambda: host.status(function)["busy"] == 0, "its worker is free")


def test_a_client_that_leaves_while_an_async_generator_waits(host: Running, tmp_path: Path) -> None:
    """It need not yield again: its await is cancelled."""
    (tmp_path / "first").touch()
    with Connection(host.url) as connection:
        connection.request(host.path("demo/steps_async", f"?folder={tmp_path}"))
        connection.head()
        assert connection.chunk() == b"first"

    eventually((tmp_path / "stopped").exists, "the generator has ended")


def test_a_queued_call_whose_client_leaves_is_never_run(host: Running, tmp_path: Path) -> None:
    """It leaves the queue with its client; those before and behind it are run."""
    target = host.path("demo/queued", f"?folder={tmp_path}&name=")
    with Connection(host.url) as running, Connection(host.url) as behind:
        running.request(f"{target}first")
        eventually((tmp_path / "ran_first").exists, "the first call runs")
        with Connection(host.url) as leaving:
            leaving.request(f"{target}second")
            eventually(lambda: host.status("demo/queued")["waiting"] == 1, "the second call waits")
            behind.request(f"{target}third")
            eventually(lambda: host.status("demo/queued")["waiting"] == 2, "the third call waits")
        eventually(lambda: host.status("demo/queued")["waiting"] == 1, "the second call has left")
        (tmp_path / "go").touch()
        first, third = running.answer(), behind.answer()

    assert (first.body, third.body) == (b"first", b"third")
    assert not (tmp_path / "ran_second").exists()


# Streams that break.


@pytest.mark.parametrize("function", ["demo/kinds", "demo/kinds_async"])
def test_an_exception_before_the_first_item(host: Running, function: str) -> None:
    """Nothing was sent yet: a proper 500."""
    answer = kind(host, "refuses", function)

    assert (answer.status_code, answer.headers["x-invoked"]) == (500, "true")
    assert "at once" in error_of(answer)["message"]


@pytest.mark.parametrize("name", ["breaks", "unfit"])
def test_an_exception_in_the_middle(host: Running, name: str) -> None:
    """The client sees that the answer is not whole; the log says why; the worker goes on."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/kinds", f"?kind={name}"))
        answer = connection.answer()

    assert (answer.status, answer.body, answer.whole) == (200, b"some", False)
    assert host.logged("in the middle" if name == "breaks" else "no JSON form")
    with pytest.raises(httpx2.RemoteProtocolError):
        kind(host, name)
    assert kind(host, "text").text == "one, two, grüße"


def test_an_exception_in_the_middle_of_an_async_generator(host: Running) -> None:
    """The same for async generators."""
    with pytest.raises(httpx2.RemoteProtocolError):
        kind(host, "breaks", "demo/kinds_async")

    assert kind(host, "text", "demo/kinds_async").text == "one, two, grüße"


def test_a_head_that_cannot_be_sent(host: Running) -> None:
    """A status out of range in the first item is a 500, not a broken stream."""
    answer = kind(host, "bad_head")

    assert (answer.status_code, error_of(answer)["code"]) == (500, "not_encodable")


# Slow readers.


def test_a_client_that_does_not_read(host: Running) -> None:
    """It holds up its own stream, and neither other calls nor the host's memory."""
    with Connection(host.url) as connection:
        connection.request(host.path("demo/forever"))
        assert connection.head().status == 200
        before = resident(host)
        for _ in range(50):
            assert kind(host, "text").status_code == 200
        with host.client.stream("GET", host.path("demo/forever")) as other:
            pieces = other.iter_raw(60_000)
            assert sum(len(next(pieces)) for _ in range(200)) == 12_000_000
        assert resident(host) - before < 20_000_000

    eventually(lambda: host.status("demo/forever")["busy"] == 0, "both streams have ended")


def resident(host: Running) -> int:
    """The host's resident set, in bytes."""
    return int(Path(f"/proc/{host.process.pid}/statm").read_text().split()[1]) * 4096


def test_many_streams_at_once(host: Running, tmp_path: Path) -> None:
    """Streams of an async function run side by side in one worker."""
    clients = [Connection(host.url) for _ in range(20)]
    try:
        for client in clients:
            client.request(host.path("demo/steps_async", f"?folder={tmp_path}"))
        (tmp_path / "first").touch()
        heads = [client.head().status for client in clients]
        firsts = [client.chunk() for client in clients]
    finally:
        for client in clients:
            client.close()

    assert heads == [200] * 20
    assert firsts == [b"first"] * 20
    eventually(lambda: host.status("demo/steps_async")["busy"] == 0, "all have ended")


# Browsers.


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt-get install chromium)")
def test_a_browsers_event_source(host: Running, tmp_path: Path) -> None:
    """A page's EventSource gets the events, with their names, ids and data."""
    page = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom",
            host.url + host.path("demo/page", "/"),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert "<title>0:0 1:10 2:20</title>" in page.stdout, page.stderr
