"""HTTP/3 with clients that do what none should: at most it costs them their own stream or connection.

All connections of HTTP/3 go through one task of the host, which must not end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from unittest.mock import AsyncMock, MagicMock

import pytest

from tests.acceptance.test_http2_crowds import AT, Http3, Short, over_http3, short  # noqa: F401 - a fixture

pytest.importorskip("aioquic", reason="aioquic is not installed")

Wrong = Callable[[Http3], Awaitable[None]]
NOWHERE = "/spaces/demo/functions/none/invoke"
PIECE = b"x" * 1000


def begin(client: Http3, **fields: str) -> int:
    """A POST whose body does not come yet: its stream."""
    stream: int = client.connection._quic.get_next_available_stream_id()
    names = {"method": "POST", "scheme": "https", "authority": "127.0.0.1", "path": f"{AT}/echo/invoke", **fields}
    client.connection.http.send_headers(
        stream, [(f":{name}".encode(), names[name].encode("latin-1")) for name in names]
    )
    client.connection.transmit()
    return stream


def go_on(client: Http3, stream: int, *, end: bool = False) -> None:
    """Send more of its body."""
    client.connection.http.send_data(stream, PIECE, end_stream=end)
    client.connection.transmit()


async def more_after_the_answer(client: Http3) -> None:
    """Refused before its end, it goes on after a pause."""
    stream = begin(client, path=NOWHERE)
    await client.whole(stream)
    go_on(client, stream)
    go_on(client, stream, end=True)


async def more_after_stop_sending(client: Http3) -> None:
    """It wants no answer, and its request goes on."""
    stream = begin(client)
    go_on(client, stream)
    client.connection._quic.stop_stream(stream, 0x010C)
    client.connection.transmit()
    for _ in range(3):
        await client.connection.ping()
        go_on(client, stream)
    go_on(client, stream, end=True)


async def much_at_once(client: Http3) -> None:
    """More pieces in a datagram than wait for an application, which is answered without reading any."""
    stream: int = client.connection._quic.get_next_available_stream_id()
    fields = {":method": "POST", ":scheme": "https", ":authority": "127.0.0.1", ":path": NOWHERE}
    client.connection.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields.items()])
    for _ in range(40):
        client.connection.http.send_data(stream, b"x", end_stream=False)
    client.connection.transmit()
    await client.whole(stream)


async def a_path_of_bytes(client: Http3) -> None:
    """Which is not ASCII."""
    go_on(client, begin(client, path="/\xff"), end=True)


async def a_method_of_bytes(client: Http3) -> None:
    """Which is not ASCII."""
    go_on(client, begin(client, method="G\xffT"), end=True)


async def a_connect(client: Http3) -> None:
    """That is no WebSocket."""
    go_on(client, begin(client, method="CONNECT"), end=True)


@pytest.mark.parametrize(
    "wrong",
    [more_after_the_answer, more_after_stop_sending, much_at_once, a_path_of_bytes, a_method_of_bytes, a_connect],
)
def test_others_go_on(short: Short, wrong: Wrong) -> None:  # noqa: F811 - the fixture
    """Whatever one client does, another one is answered, over a connection that was there and over a new one."""
    host, certificate = short.start(600.0, http3=True), short.authority.cert_pem.bytes()

    async def beside() -> list[bytes]:
        async with over_http3(host, certificate) as other:
            async with over_http3(host, certificate) as client:
                await wrong(client)
                with suppress(ConnectionError):
                    await client.connection.ping()
            old = await other.whole(other.get("/healthz"))
        async with over_http3(host, certificate) as new:
            return [old[1], (await new.whole(new.get("/healthz")))[1]]

    answers = asyncio.run(beside())

    assert answers == [b"ok\n", b"ok\n"]
    assert wrong is a_connect or "Traceback" not in host.log


@pytest.mark.parametrize(
    "wrong", [more_after_the_answer, more_after_stop_sending, much_at_once, a_path_of_bytes, a_method_of_bytes]
)
def test_the_connection_goes_on(short: Short, wrong: Wrong) -> None:  # noqa: F811 - the fixture
    """A stream that goes wrong costs its connection's other streams nothing."""
    host = short.start(600.0, http3=True)

    async def go() -> bytes:
        async with over_http3(host, short.authority.cert_pem.bytes()) as client:
            await wrong(client)
            return (await client.whole(client.get("/healthz")))[1]

    assert asyncio.run(go()) == b"ok\n"


def test_trailers(short: Short) -> None:  # noqa: F811 - the fixture
    """A request may end with them; they are not the function's."""
    host = short.start(600.0, http3=True)

    async def go() -> tuple[dict[str, str], bytes]:
        async with over_http3(host, short.authority.cert_pem.bytes()) as client:
            stream = begin(client)
            go_on(client, stream)
            client.connection.http.send_headers(stream, [(b"checksum", b"1")], end_stream=True)
            client.connection.transmit()
            return await client.whole(stream)

    head, body = asyncio.run(go())

    assert (head[":status"], body) == ("200", PIECE)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["a datagram", "a timer"])
async def test_what_nobody_foresaw(where: str) -> None:
    """It is logged, and ends nothing but its connection."""
    from aioquic.quic.events import PingAcknowledged

    from runtime.http3 import INTERNAL_ERROR, Quic

    quic = Quic.__new__(Quic)
    quic.config, quic.context = MagicMock(), MagicMock(time=lambda: 0.0, sleep=AsyncMock())
    quic.config.log.exception, quic.send, quic.task_group = AsyncMock(), AsyncMock(), MagicMock()
    connection = MagicMock(task=AsyncMock(), h3=MagicMock(handle=AsyncMock(side_effect=ZeroDivisionError)))
    connection.quic.next_event.side_effect = [PingAcknowledged(uid=1), None]
    connection.quic.datagrams_to_send.return_value = [(b"close", ("::1", 1))]
    connection.quic.get_timer.return_value = None
    if where == "a timer":
        await quic._handle_timer(0.0, connection)
    else:
        await quic._handle_events(connection, ("::1", 1))

    assert connection.quic.close.call_args.kwargs["error_code"] == INTERNAL_ERROR
    assert quic.config.log.exception.await_count == 1
    assert quic.send.await_count == 1  # it is told so


@pytest.mark.anyio
async def test_a_datagram_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot even be given to a connection is logged, and the next one is handled."""
    from hypercorn.events import RawData
    from hypercorn.protocol.quic import QuicProtocol

    from runtime.http3 import Quic

    quic = Quic.__new__(Quic)
    quic.config = MagicMock()
    quic.config.log.exception = AsyncMock()
    monkeypatch.setattr(QuicProtocol, "handle", AsyncMock(side_effect=AssertionError))
    await quic.handle(RawData(b"x", ("::1", 1)))

    assert quic.config.log.exception.await_count == 1


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["answered", "forgotten"])
async def test_a_body_that_its_application_does_not_read(end: str) -> None:
    """Nobody waits to give it more of it, once it has ended or its client has gone."""
    from hypercorn.protocol.events import StreamClosed
    from hypercorn.protocol.http_stream import HTTPStream

    from runtime.http3 import Http3

    http = Http3(*[MagicMock() for _ in range(7)], MagicMock(), AsyncMock())
    unread: asyncio.Queue[object] = asyncio.Queue(1)
    http.streams[4] = stream = HTTPStream.__new__(HTTPStream)
    stream.__dict__.update(closed=True, app_put=unread.put)
    unread.put_nowait("the first piece")
    waiting = asyncio.create_task(unread.put("the second"))
    await asyncio.sleep(0)
    await (http.stream_send(StreamClosed(4)) if end == "answered" else http._forget(4))
    async with asyncio.timeout(5):
        await waiting

    assert 4 not in http.streams


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("window", "room_for_all", "is_reset"),
    [(65_536, 2**30, True), (10 * 1024 * 1024, 2**30, False), (65_536, 1000, False), (1000, 1000, True)],
)
async def test_the_patience_of_http3(
    monkeypatch: pytest.MonkeyPatch, window: int, room_for_all: int, is_reset: bool
) -> None:
    """As long as the client's window asks for; a stream for which others left no room outlasts them."""
    from runtime import http3, stragglers

    monkeypatch.setattr(stragglers, "UNTAKEN", 0.01)
    monkeypatch.setattr(stragglers, "SLOWEST", 10 * 1024 * 1024)
    sender = MagicMock(_buffer=bytes(http3.UNTAKEN + 1), _buffer_start=0, highest_offset=1000)
    quic = MagicMock(_remote_max_data_used=1000, _remote_max_data=room_for_all)
    quic._streams = {4: MagicMock(sender=sender, max_stream_data_remote=window)}
    http = http3.Http3(*[MagicMock() for _ in range(7)], quic, AsyncMock())
    http.streams[4] = AsyncMock(app_put=None)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await http._room(4)

    assert quic.reset_stream.called is is_reset


@pytest.mark.anyio
async def test_trailers_after_the_answer() -> None:
    """They do not take it back from a client who has not all of it yet."""
    from aioquic.h3.events import HeadersReceived

    from runtime.http3 import Http3

    quic = MagicMock()
    http = Http3(*[MagicMock() for _ in range(7)], quic, AsyncMock())
    await http._create_stream(HeadersReceived(headers=[(b"checksum", b"1")], stream_id=4, stream_ended=True))

    assert not quic.reset_stream.called
