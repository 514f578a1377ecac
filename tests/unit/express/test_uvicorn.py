"""Uvicorn's protocol with the express way, on a connection that is not one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from runtime.calls import Call, Result
from runtime.errors import FunctionError, HostError, Overloaded
from runtime.exchange import Exchange
from runtime.express.uvicorn import protocol

REQUEST = b"POST /a HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi"
PLAIN = Result(200, b"content-length\x003", b"one", True, False, 0.0)


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = self.paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class FakeExpress:
    """Says of each call what it is; a call whose answer is a stream goes on elsewhere."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.asked: list[tuple[Any, ...]] = []
        self.left: list[Exchange] = []
        self.refuses: HostError | None = None
        self.takes = True
        self.records = False
        self.written = asyncio.Event()  # to the journal

    def begin(self, *request: Any) -> Any:
        self.asked.append(request)
        if self.records:
            return self.recorded()
        if self.refuses:
            raise self.refuses
        if not self.takes:
            return None
        exchange = Exchange(Call(1, "1", "a", "b"), 60, asyncio.get_running_loop(), self.left.append)
        self.exchanges.append(exchange)
        return exchange

    async def recorded(self) -> bytes:
        await self.written.wait()
        return b"recorded\r\n"

    def answer(self, exchange: Exchange, result: Result) -> bytes | None:
        return result.body + b"\r\n" if result.complete else None

    def failure(self, error: HostError, exchange: Exchange) -> bytes:
        return error.code.encode() + b","

    def refusal(self, error: HostError, *_: object) -> bytes:
        return error.code.encode() + b","

    def abandoned(self, exchange: Exchange) -> None:
        pass


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The ordinary way."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"ordinary"})


class Client:
    """A protocol, what it is connected to, and what it asks."""

    def __init__(self) -> None:
        self.express, self.transport, self.state = FakeExpress(), FakeTransport(), ServerState()
        config = uvicorn.Config(application, ws="none", lifespan="off", log_config=None)
        config.load()
        self.protocol: Any = protocol(self.express)(config, self.state, {})  # type: ignore[arg-type]
        self.protocol.connection_made(self.transport)

    async def written(self, data: bytes) -> None:
        """Wait until this has been written."""
        async with asyncio.timeout(20):
            while data not in self.transport.written:
                await asyncio.sleep(0)


@pytest.fixture
async def client() -> Client:
    return Client()


pytestmark = pytest.mark.anyio


async def test_without_a_task(client: Client) -> None:
    tasks = asyncio.all_tasks()
    client.protocol.data_received(REQUEST)
    client.express.exchanges[0].answered(PLAIN)

    assert client.transport.written == b"one\r\n"
    assert asyncio.all_tasks() == tasks
    assert client.state.total_requests == 1


async def test_the_next_ones_wait_for_their_turn(client: Client) -> None:
    """Those that came in meanwhile go the ordinary way; then the express way is open again."""
    client.protocol.data_received(REQUEST + REQUEST)
    await asyncio.sleep(0)
    assert client.transport.written == b""

    client.express.exchanges[0].answered(PLAIN)
    await client.written(b"ordinary")
    client.protocol.data_received(REQUEST)
    client.express.exchanges[1].answered(PLAIN)

    assert client.transport.written.startswith(b"one\r\nHTTP/1.1 200 OK")
    assert client.transport.written.endswith(b"ordinaryone\r\n")


async def test_reading_goes_on_when_all_that_came_has_its_answer(client: Client) -> None:
    """Not at each answer: or a client could have as many requests wait here as it can send."""
    client.protocol.data_received(REQUEST * 4)
    await asyncio.sleep(0)
    assert client.transport.paused
    client.express.exchanges[0].answered(PLAIN)
    waiting = len(client.protocol.pipeline)
    assert (client.transport.paused, waiting) == (True, 2)
    await client.written(b"ordinaryHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nordinaryHTTP")

    assert not client.transport.paused


@pytest.mark.parametrize("request_line", [b"POST http://host HTTP/1.1", b"POST /\xff HTTP/1.1", b"GARBAGE"])
async def test_what_cannot_be_read(client: Client, request_line: bytes) -> None:
    """Is answered 400, also where it is not whole."""
    client.express.takes = False
    client.protocol.data_received(REQUEST.replace(b"POST /a HTTP/1.1", request_line)[:-1])

    assert client.transport.written.startswith(b"HTTP/1.1 400")


async def test_a_request_that_is_not_whole_goes_the_ordinary_way(client: Client) -> None:
    client.protocol.data_received(REQUEST[:-1])
    await client.written(b"ordinary")

    assert client.express.exchanges == []


async def test_what_express_does_not_take_goes_the_ordinary_way(client: Client) -> None:
    client.express.takes = False
    client.protocol.data_received(REQUEST)

    await client.written(b"ordinary")


@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Content-Length: 2", b"hi"), (b"Transfer-Encoding: chunked", b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n")],
)
async def test_an_upgrade_is_not_taken_up(client: Client, framing: bytes, body: bytes) -> None:
    """RFC 9110 section 7.8: what asks for one is an ordinary request, with its body, and so is what follows."""
    head = b"POST /a?b HTTP/1.1\r\nConnection: Upgrade, X-A\r\nX-A: b\r\nUpgrade: h2c\r\n" + framing + b"\r\n\r\n"
    client.protocol.data_received(head + body)
    client.express.exchanges[0].answered(PLAIN)
    client.protocol.data_received(REQUEST)
    client.express.exchanges[1].answered(PLAIN)

    name, _, value = framing.lower().partition(b": ")
    headers = [(b"connection", b"Upgrade, X-A"), (b"x-a", b"b"), (name, value)]
    assert client.express.asked[0][:4] == ("POST", b"/a?b", headers, b"hi")
    assert client.express.asked[1][3] == b"hi"
    assert client.transport.written == b"one\r\none\r\n"


async def test_many_upgrades_in_one_piece(client: Client) -> None:
    """Each is answered, and the rest of the piece is not copied for each."""
    client.express.takes = False
    number = 2000
    client.protocol.data_received(REQUEST.replace(b"Host", b"Upgrade: tls\r\nConnection: upgrade\r\nHost") * number)
    assert len(client.protocol.pipeline) == number - 1


@pytest.mark.parametrize("at", range(1, 90, 4))
async def test_an_upgrade_in_pieces(client: Client, at: int) -> None:
    """Cut anywhere: what is not whole goes the ordinary way, as any request, and so does what waits behind it."""
    whole = REQUEST.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost")
    assert len(whole) > 90
    client.protocol.data_received(whole[:at])
    client.protocol.data_received(whole[at:] + REQUEST)
    assert len(client.protocol.pipeline) == 1
    for exchange in client.express.exchanges:
        exchange.answered(PLAIN)
    await client.written(b"ordinary")

    assert b" 400 " not in client.transport.written


@pytest.mark.parametrize("last", [b"1.1\r\nConnection: close", b"1.0"])
async def test_an_upgrade_in_the_last_request(client: Client, last: bytes) -> None:
    """Its body is read like that of any other, and what follows it is for nobody."""
    whole = REQUEST.replace(b"1.1\r\n", last + b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")
    client.protocol.data_received(whole + REQUEST)
    cycle = client.protocol.cycle
    assert (bytes(cycle.body), cycle.more_body, cycle.keep_alive) == (b"hi", False, False)
    await client.written(b"ordinary")

    assert client.transport.closing
    assert not client.protocol.pipeline


async def test_an_upgrade_to_what_cannot_be_read(client: Client) -> None:
    """Its body is wrong: 400, as without the upgrade."""
    wrong = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\nno chunk"
    client.express.takes = False
    client.protocol.data_received(wrong)

    assert client.transport.written.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("lines", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
async def test_what_follows_a_connect(client: Client, lines: bytes) -> None:
    """Would be the tunnel's: it is no request."""
    client.express.takes = False
    client.protocol.data_received(b"CONNECT /a HTTP/1.1\r\n" + lines + b"\r\n" + REQUEST)
    await client.written(b"ordinary")

    assert len(client.express.asked) == 1
    assert not client.protocol.pipeline


async def test_errors(client: Client) -> None:
    client.protocol.data_received(REQUEST)
    client.express.exchanges[0].failed(FunctionError("it fell"))
    await client.written(b",")
    client.express.refuses = Overloaded("too many")
    client.protocol.data_received(REQUEST)

    assert client.transport.written == f"{FunctionError.code},{Overloaded.code},".encode()


async def test_a_call_that_is_recorded(client: Client) -> None:
    """It is answered when it is, and the connection serves on; a client that leaves does not stop it."""
    client.express.records = True
    client.protocol.data_received(REQUEST)
    tasks = set(client.state.tasks)
    assert len(tasks) == 1
    client.express.written.set()
    await client.written(b"recorded\r\n")
    client.express.written.clear()
    client.protocol.data_received(REQUEST)
    [task] = client.state.tasks
    client.protocol.connection_lost(None)
    client.express.written.set()
    await task

    assert client.transport.written == b"recorded\r\n"


async def test_a_client_that_leaves(client: Client) -> None:
    client.protocol.data_received(REQUEST)
    exchange = client.express.exchanges[0]
    client.protocol.connection_lost(None)
    exchange.answered(PLAIN)

    assert client.express.left == [exchange]
    assert client.transport.written == b""


@pytest.mark.parametrize("failing", ["answer", "failure"])
async def test_an_answer_that_cannot_be_made(
    client: Client, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Costs its own connection, and not the worker that told of it, nor whoever is told next."""

    def fall(*_: object) -> bytes:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(client.express, failing, fall)
    client.protocol.data_received(REQUEST)
    exchange = client.express.exchanges[0]
    if failing == "answer":
        exchange.answered(PLAIN)
    else:
        exchange.failed(FunctionError("it fell"))
    async with asyncio.timeout(20):
        while not client.transport.closing:
            await asyncio.sleep(0)

    assert "a call could not be answered" in caplog.text
    assert client.transport.written == b""


async def test_a_server_that_ends(client: Client) -> None:
    """A connection with a call is closed after its answer, one without at once."""
    client.protocol.data_received(REQUEST)
    client.protocol.shutdown()
    assert not client.transport.closing

    client.express.exchanges[0].answered(PLAIN)

    assert client.transport.written == b"one\r\nconnection: close\r\n"
    assert client.transport.closing


async def test_an_idle_connection_is_closed(client: Client) -> None:
    """Only when it has been idle for as long as that."""
    client.protocol.timeout_keep_alive = 0.01
    client.protocol.data_received(REQUEST)
    client.express.exchanges[0].answered(PLAIN)
    client.protocol.timeout_keep_alive_handler()
    assert not client.transport.closing

    async with asyncio.timeout(20):
        while not client.transport.closing:
            await asyncio.sleep(0.001)


async def test_a_connection_with_a_call_is_not_idle(client: Client) -> None:
    client.protocol.data_received(REQUEST)
    client.express.exchanges[0].answered(PLAIN)
    client.protocol.data_received(REQUEST)
    client.protocol.timeout_keep_alive = 0
    client.protocol.timeout_keep_alive_handler()

    assert not client.transport.closing
