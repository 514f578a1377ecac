"""Channel and CallQueue over real sockets, with the worker's end in the test's own hands."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.calls import Call, Result
from runtime.channel import CallQueue, Channel
from runtime.errors import FunctionRefused, HostError, ProtocolViolation, WorkerDied
from runtime.exchange import Exchange
from runtime.worker import wire

pytestmark = pytest.mark.anyio

PATIENCE = 10.0  # seconds in which what must happen has happened
WHOLE = wire.result_frame(1, 200, 7, b"a\0b", b"hello")
HEAD = wire.result_frame(1, 200, 0, b"", flags=0)
REFUSAL = b'{"status": 422, "code": "invalid_data", "message": "unfit", "details": {"field": "x"}}'


class Owner:
    """What a channel tells the worker it belongs to, noted."""

    def __init__(self) -> None:
        self.is_ready = 0
        self.over: list[tuple[Exchange, Result | None]] = []
        self.ends: list[HostError | None] = []
        self.said: list[tuple[Exchange | None, int, str]] = []
        self.channel: Channel | None = None

    def ready(self) -> None:
        self.is_ready += 1

    def released(self, exchange: Exchange, result: Result | None) -> None:
        self.over.append((exchange, result))

    def broken(self, error: HostError | None) -> None:
        self.ends.append(error)
        assert self.channel is not None
        self.channel.close()

    def printed(self, exchange: Exchange | None, level: int, text: str) -> None:
        self.said.append((exchange, level, text))


class Line:
    """A channel, its owner, and the worker's end of its sockets."""

    def __init__(self, queued: bool) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.queue = CallQueue() if queued else None
        self.taker = self.queue.theirs.dup() if self.queue is not None else None  # the worker's end of the queue
        self.owner = Owner()
        self.channel = Channel(ours, self.owner, asyncio.get_running_loop(), self.queue)
        self.owner.channel = self.channel
        self.made = 0
        self._reader = wire.Reader()

    def exchange(self, **fields: Any) -> Exchange:
        """A call's exchange, not started yet."""
        self.made += 1
        call = Call(id=self.made, label=str(self.made), space="demo", name="stock", **fields)
        return Exchange(call, 10.0, asyncio.get_running_loop(), lambda _: None)

    def start(self, **fields: Any) -> Exchange:
        """A call under way; the first has stream 1."""
        exchange = self.exchange(**fields)
        assert self.channel.start(exchange, 99.5)
        return exchange

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """The frames that have arrived at the worker's end of the channel."""
        try:
            return self._reader.feed(self.peer.recv(1024 * 1024))
        except BlockingIOError:
            return []

    async def read_frames(self, count: int) -> list[tuple[int, int, int, bytes]]:
        """So many frames, once they are there."""
        frames: list[tuple[int, int, int, bytes]] = []
        with anyio.fail_after(PATIENCE):
            while len(frames) < count:
                frames += self.read()
                await asyncio.sleep(0)
        assert len(frames) == count
        return frames

    def take(self) -> tuple[int, wire.CallFrame] | None:
        """Take a call out of the queue, as the worker does."""
        assert self.taker is not None
        try:
            packet = self.taker.recv(256 * 1024, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        ((kind, _, stream, payload),) = wire.Reader().feed(packet)
        assert kind == wire.CALL
        return stream, wire.parse_call(payload)

    async def send(self, *frames: bytes) -> None:
        """From the worker; returns once the host has taken it in."""
        self.peer.send(b"".join(frames))
        await turn()

    def close(self) -> None:
        self.channel.close()
        self.peer.close()
        if self.taker is not None:
            self.taker.close()


async def turn() -> None:
    """Let the loop look at its sockets."""
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def a_line(*, queued: bool = False) -> AsyncIterator[Line]:
    line = Line(queued)
    try:
        yield line
    finally:
        line.close()


@pytest.fixture
async def line(anyio_backend: str) -> AsyncIterator[Line]:
    """To an async worker: calls travel on the channel."""
    async with a_line() as line:
        yield line


@pytest.fixture
async def queued(anyio_backend: str) -> AsyncIterator[Line]:
    """To a sync worker: calls travel in a queue of their own."""
    async with a_line(queued=True) as line:
        yield line


# Calls out.


async def test_a_call_reaches_an_async_worker_on_its_channel(line: Line) -> None:
    """With every field of it."""
    fields = {"method": b"PUT", "path": b"/a%20b", "query": b"q=1", "headers": b"host\0here", "attempt": 2}
    exchange = line.start(body=(b"one", b"two"), **fields)

    ((kind, flags, stream, payload),) = line.read()
    parsed = wire.parse_call(payload)
    assert (kind, flags, stream) == (wire.CALL, 0, exchange.stream)
    assert parsed == wire.CallFrame(1, 99.5, 2, "PUT", b"/a%20b", b"q=1", b"host\0here", 6, b"onetwo")
    assert line.channel.exchanges == {exchange.stream: exchange}
    assert exchange.channel is line.channel


async def test_a_call_reaches_a_sync_worker_in_its_queue(queued: Line) -> None:
    """And nothing of it goes over the channel."""
    exchange = queued.start(body=(b"one",))

    taken = queued.take()
    assert taken is not None
    assert (taken[0], taken[1].body) == (exchange.stream, b"one")
    assert queued.take() is None
    assert queued.read() == []


@pytest.mark.parametrize("start", [0, 2**32 - 3])
async def test_streams_are_not_zero_and_differ(queued: Line, start: int) -> None:
    """Also where their number starts again."""
    queued.channel._last_stream = start
    streams = [queued.start().stream for _ in range(5)]

    assert 0 not in streams
    assert len(set(streams)) == 5
    assert max(streams) < 2**32


async def test_the_longest_inline_body_travels_in_its_call(line: Line) -> None:
    """One byte more and it follows in BODY frames."""
    line.start(body=(b"x" * (wire.INLINE - 1), b"x"))
    ((_, _, _, payload),) = await line.read_frames(1)
    assert wire.parse_call(payload).body == b"x" * wire.INLINE

    line.start(body=(b"y" * wire.INLINE, b"y"))
    (_, _, _, payload), *bodies = await line.read_frames(3)
    parsed = wire.parse_call(payload)
    assert (parsed.body_length, parsed.body) == (wire.INLINE + 1, b"")
    assert [(kind, stream, data) for kind, _, stream, data in bodies] == [
        (wire.BODY, 2, b"y" * wire.INLINE),
        (wire.BODY, 2, b"y"),
    ]


@pytest.mark.parametrize("is_queued", [False, True])
async def test_a_long_body_arrives_whole_however_little_the_socket_takes(is_queued: bool) -> None:
    """And what is written after it comes after it."""
    async with a_line(queued=is_queued) as line:
        line.channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        pieces = tuple(bytes([number]) * 70_001 for number in range(12))
        exchange = line.start(body=pieces)
        line.channel.cancel(exchange)
        assert line.channel._unsent, "this test is about partial writes"

        frames: list[Any] = []
        with anyio.fail_after(PATIENCE):
            while not frames or frames[-1][0] != wire.CANCEL:
                frames += line.read()
                await asyncio.sleep(0)

        bodies = frames[:-1] if is_queued else frames[1:-1]
        assert {(kind, stream) for kind, _, stream, _ in bodies} == {(wire.BODY, 1)}
        assert max(len(data) for _, _, _, data in bodies) <= wire.PIECE
        assert b"".join(data for _, _, _, data in bodies) == b"".join(pieces)
        assert not line.channel._unsent
        assert asyncio.get_running_loop().remove_writer(line.channel._sock) is False, "it is no longer watched"


async def test_the_pieces_of_a_long_body_are_not_copied(line: Line) -> None:
    """What waits to be sent are views of what the client sent."""
    body = bytes(4 * 1024 * 1024)
    line.start(body=(body,))

    held = [view.obj for view in line.channel._unsent]
    assert sum(each is body for each in held) > 50
    assert sum(len(each) for each in held if each is not body) < 2 * wire.PIECE


async def test_a_call_that_its_queue_has_no_room_for_is_not_started(queued: Line) -> None:
    """It is the caller's to keep, and it fits once the worker has taken some."""
    body = (bytes(wire.INLINE),)
    while queued.channel.start(kept := queued.exchange(body=body), 1.0):
        pass
    started = len(queued.channel.exchanges)

    assert started > 0
    assert kept not in queued.channel.exchanges.values()
    assert kept.channel is None
    assert queued.take() is not None
    assert queued.channel.start(kept, 1.0)


async def test_a_queue_that_the_worker_has_shut_has_no_room(queued: Line) -> None:
    """A handler may do as it likes with its descriptors: the call goes elsewhere."""
    assert queued.taker is not None
    queued.taker.shutdown(socket.SHUT_RDWR)

    assert not queued.channel.start(queued.exchange(), 1.0)
    assert queued.channel.take_back() == []


async def test_a_body_for_a_worker_that_has_gone_is_dropped(line: Line) -> None:
    """No exception comes out of sending, now or later; the end is found by reading."""
    line.start(body=(bytes(8 * 1024 * 1024),))
    assert line.channel._unsent
    line.peer.close()
    line.channel.cancel(line.start())
    line.channel._writable()
    assert not line.channel._unsent
    await turn()

    assert line.owner.ends == [None]
    line.channel.close()
    line.channel.write(b"more")
    assert not line.channel._unsent


async def test_a_frame_for_a_worker_that_has_gone_is_dropped(line: Line) -> None:
    """Nothing is raised, and nothing is kept."""
    line.peer.close()
    line.channel.write(b"frame")

    assert not line.channel._unsent
    await turn()
    assert line.owner.ends == [None]


async def test_a_call_for_a_worker_that_has_gone_is_not_begun(line: Line) -> None:
    """It is another worker's to begin."""
    line.peer.close()
    exchange = line.exchange()

    assert not line.channel.start(exchange, 1.0)
    assert exchange.channel is None
    assert not line.channel.exchanges


async def test_a_frame_that_the_socket_takes_nothing_of_waits(line: Line) -> None:
    """It is sent when there is room again."""
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += line.channel._sock.send(bytes(65536))
    line.channel.ping()
    assert len(line.channel._unsent) == 1

    received = b""
    with anyio.fail_after(PATIENCE):
        while len(received) < filled + wire.PREFIX_SIZE:
            with suppress(BlockingIOError):
                received += line.peer.recv(1024 * 1024)
            await asyncio.sleep(0)
    assert received[filled:] == wire.frame(wire.PING, 0)


# Answers in.


async def test_a_whole_result_is_given_and_ends_the_call(line: Line) -> None:
    """Its place in the worker is free."""
    exchange = line.start()
    await line.send(WHOLE)

    result = await exchange.result()
    assert result == Result(200, b"a\0b", b"hello", True, False, 7e-6)
    assert line.owner.over == [(exchange, result)]
    assert line.channel.exchanges == {}
    assert exchange.over


async def test_a_failed_result_is_a_result(line: Line) -> None:
    """With the mark that the handler raised."""
    exchange = line.start()
    await line.send(wire.result_frame(1, 500, 0, b"", b"{}", wire.LAST | wire.FAILED))

    result = await exchange.result()
    assert (result.status, result.failed, result.complete) == (500, True, True)


async def test_a_stream_is_given_as_it_comes(line: Line) -> None:
    """The head first; its place is free at its END and not before."""
    exchange = line.start()
    await line.send(HEAD)
    assert not (await exchange.result()).complete
    chunks = exchange.chunks()
    for data in (b"one", b"two"):
        await line.send(wire.frame(wire.CHUNK, 1, data))

        assert await anext(chunks) == data
    assert line.owner.over == []

    await line.send(wire.frame(wire.END, 1))
    assert await anext(chunks, None) is None
    assert line.owner.over == [(exchange, None)]
    assert line.channel.exchanges == {}


async def test_frames_that_arrive_together_are_all_taken(line: Line) -> None:
    """Of several calls, in one piece."""
    exchanges = [line.start() for _ in range(3)]
    await line.send(*(wire.result_frame(stream, 200, 0, b"", b"%d" % stream) for stream in (3, 1, 2)))

    assert [(await exchange.result()).body for exchange in exchanges] == [b"1", b"2", b"3"]


async def test_what_a_client_takes_is_credited(line: Line) -> None:
    """With as much as it took, in CREDIT frames of its stream."""
    exchange = line.start()
    line.read()
    await line.send(HEAD, *(wire.frame(wire.CHUNK, 1, bytes(wire.PIECE)) for _ in range(4)))
    chunks = exchange.chunks()
    for _ in range(3):
        await anext(chunks)

    assert [(kind, stream, wire.parse_u32(data)) for kind, _, stream, data in line.read()] == [
        (wire.CREDIT, 1, wire.PIECE),
        (wire.CREDIT, 1, wire.PIECE),
    ]


async def test_a_client_that_takes_nothing_is_credited_nothing(line: Line) -> None:
    """So what the host holds for it is bounded."""
    line.start()
    line.read()
    await line.send(HEAD, *(wire.frame(wire.CHUNK, 1, bytes(wire.PIECE)) for _ in range(4)))

    assert line.read() == []


async def test_an_error_before_the_answer_is_a_refusal(line: Line) -> None:
    """With the worker's status, code, message and details."""
    exchange = line.start()
    await line.send(wire.frame(wire.ERROR, 1, REFUSAL))

    with pytest.raises(FunctionRefused, match="unfit") as caught:
        await exchange.result()
    error = caught.value
    assert (error.status, error.code, error.details) == (422, "invalid_data", {"field": "x"})
    assert line.owner.over == [(exchange, None)]
    assert line.channel.exchanges == {}


async def test_an_error_within_a_stream_cuts_it(line: Line) -> None:
    """With the envelope that the handler's exception makes."""
    exchange = line.start()
    said = b'{"error": {"status": 500, "message": "boom"}}'
    await line.send(HEAD, wire.frame(wire.CHUNK, 1, b"a"), wire.frame(wire.ERROR, 1, said))
    chunks = exchange.chunks()

    assert await anext(chunks) == b"a"
    with pytest.raises(WorkerDied) as caught:
        await anext(chunks)
    assert caught.value.details == {"status": 500, "message": "boom"}
    assert line.owner.over == [(exchange, None)]


async def test_output_names_its_call_where_there_is_one(line: Line) -> None:
    """A line may come when its call is over, or from a thread that has none; any bytes are text."""
    exchange = line.start()
    await line.send(
        wire.frame(wire.LOG, 1, b"\x14hello"),
        wire.frame(wire.LOG, 9, b"\x28bad \xff"),
        wire.frame(wire.LOG, 0, b""),
    )

    assert line.owner.said == [(exchange, 20, "hello"), (None, 40, "bad \N{REPLACEMENT CHARACTER}"), (None, 0, "")]


async def test_ready_and_pong_are_told(line: Line) -> None:
    """The first to the owner; the second is counted."""
    line.channel.ping()
    assert [(kind, stream) for kind, _, stream, _ in line.read()] == [(wire.PING, 0)]
    await line.send(wire.frame(wire.READY, 0, wire.READY_HEAD.pack(wire.VERSION, 1)), wire.frame(wire.PONG, 0))

    assert line.owner.is_ready == 1
    assert line.channel.pongs == 1


@pytest.mark.parametrize("last", [0, 2**32 - 3], ids=["first", "around"])
async def test_what_was_sent_behind_an_unanswered_ping_was_not_begun(line: Line, last: int) -> None:
    """Nor anything after it; also where the numbers of calls begin again. What was answered was."""
    line.channel.last_stream = last
    begun = [line.start() for _ in range(2)]
    line.channel.ping()
    unheard = [line.start() for _ in range(2)]
    line.channel.ping()
    unheard.append(line.start())

    assert line.channel.unbegun() == unheard
    assert list(line.channel.exchanges.values()) == begun
    assert line.channel.unbegun() == []


async def test_a_worker_that_answers_has_begun_what_was_sent_before(line: Line) -> None:
    """With each PONG, up to the next PING."""
    line.start()
    line.channel.ping()
    line.start()
    line.channel.ping()
    last = line.start()
    await line.send(wire.frame(wire.PONG, 0))
    assert line.channel.unbegun() == [last]
    await line.send(wire.frame(wire.PONG, 0))
    line.start()

    assert line.channel.unbegun() == []


async def test_progress_is_told_to_whoever_follows(line: Line) -> None:
    """Where nobody does, or the call is over, it is no mistake of the worker."""
    followed, alone = line.start(), line.start()
    told: list[tuple[float, str]] = []

    class Follower:
        def progressed(self, fraction: float, message: str) -> None:
            told.append((fraction, message))

        def printed(self, level: int, text: str) -> None:
            """Nothing is."""

    followed.follower = Follower()
    for exchange, fraction in ((followed, 0.25), (alone, 0.5)):
        await line.send(wire.progress_frame(exchange.stream, fraction, "so far"))
    await line.send(wire.progress_frame(7, 0.75, "of none"))

    assert told == [(0.25, "so far")]
    assert line.owner.ends == []


async def test_a_stream_that_nobody_will_read_is_cancelled_at_its_head(line: Line) -> None:
    """The client left before it was known to be one."""
    with line.start():
        pass
    line.read()
    await line.send(HEAD)

    assert [(kind, stream) for kind, _, stream, _ in line.read()] == [(wire.CANCEL, 1)]


# What breaks the rules.

CHUNKS = [wire.frame(wire.CHUNK, 1, bytes(wire.PIECE)) for _ in range(wire.WINDOW // wire.PIECE + 2)]


def headed(headers: bytes) -> bytes:
    return wire.result_frame(1, 200, 0, headers)


def refusing(payload: bytes, *before: bytes) -> list[bytes]:
    return [*before, wire.frame(wire.ERROR, 1, payload)]


VIOLATIONS: dict[str, list[bytes]] = {
    **{f"kind {kind}": [wire.frame(kind, 1)] for kind in (wire.CALL, wire.BODY, wire.CANCEL, wire.CREDIT, wire.PING)},
    **{
        f"kind {kind} of no call": [wire.frame(kind, 2, WHOLE[wire.PREFIX_SIZE :])]
        for kind in (wire.RESULT, wire.CHUNK, wire.END, wire.ERROR)
    },
    "an unknown kind": [wire.frame(99, 1)],
    "a payload without bounds": [wire.PREFIX.pack(wire.MAX_PAYLOAD + 1, wire.LOG, 0, 0, 1)],
    "a short RESULT": [wire.frame(wire.RESULT, 1, b"\xc8")],
    "a RESULT with a status that is none": [wire.result_frame(1, 199, 0, b"")],
    "a RESULT shorter than its headers": [wire.frame(wire.RESULT, 1, wire.RESULT_HEAD.pack(200, 0, 9) + b"a\0b")],
    "a RESULT with part of a body": [wire.result_frame(1, 200, 0, b"", b"part", flags=0)],
    "a second RESULT": [HEAD, HEAD],
    "a whole RESULT after a head": [HEAD, WHOLE],
    "a RESULT after the whole": [WHOLE, WHOLE],
    "a name without a value": [headed(b"name")],
    "an empty name": [headed(b"\0value")],
    "a name with a space": [headed(b"a b\0value")],
    "a name in upper case": [headed(b"Name\0value")],
    "a line break in a value": [headed(b"name\0a\r\nset-cookie: b")],
    "a line feed in a value": [headed(b"name\0a\nb")],
    "a line feed at the end": [headed(b"name\0a\n")],
    "a second name without a value": [headed(b"a\0b\0c")],
    "a separator at the end": [headed(b"a\0b\0")],
    "a CHUNK before its RESULT": [wire.frame(wire.CHUNK, 1, b"a")],
    "an END before its RESULT": [wire.frame(wire.END, 1)],
    "a CHUNK after the END": [HEAD, wire.frame(wire.END, 1), wire.frame(wire.CHUNK, 1, b"a")],
    "more than the window": [HEAD, *CHUNKS],
    "an ERROR that is not JSON": refusing(b"{"),
    "an ERROR that is no object": refusing(b"[]"),
    "an ERROR without a status": refusing(b'{"code": "c", "message": "m", "details": {}}'),
    "an ERROR without a message": refusing(b'{"status": 422, "code": "c", "details": {}}'),
    "an ERROR with a message that is no text": refusing(REFUSAL.replace(b'"unfit"', b"5")),
    "an ERROR with a code that is no text": refusing(REFUSAL.replace(b'"invalid_data"', b"null")),
    "an ERROR with details that are no object": refusing(REFUSAL.replace(b'{"field": "x"}', b"[1]")),
    "an ERROR with a status that is no number": refusing(REFUSAL.replace(b"422", b'"no"')),
    "an ERROR with a status that is no error": refusing(REFUSAL.replace(b"422", b"200")),
    "an ERROR with a status that is none": refusing(REFUSAL.replace(b"422", b"1000")),
    "an ERROR with a status beyond all bounds": refusing(REFUSAL.replace(b"422", b"1e400")),
    "an ERROR within a stream without an envelope": refusing(REFUSAL, HEAD),
    "an ERROR within a stream that is not JSON": refusing(b"\xff", HEAD),
    "an ERROR within a stream with another envelope": refusing(b'{"error": 5}', HEAD),
}


@pytest.mark.parametrize("frames", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_frame_that_breaks_the_rules_ends_its_worker_alone(frames: list[bytes]) -> None:
    """The owner is told once which rule it was; another worker's channel goes on."""
    async with a_line() as line, a_line() as other:
        line.start()
        spared = other.start()
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(line.peer, b"".join(frames))
        await other.send(WHOLE)

        (error,) = line.owner.ends
        assert isinstance(error, ProtocolViolation)
        assert (await spared.result()).body == b"hello"
        assert other.owner.ends == []


@pytest.mark.parametrize(
    "headers", [b"", b"a\0", b"a\0b", b"set-cookie\0a=b\0set-cookie\0c=\xff d", b"!#$%&'*+-.^_`|~09az\0x"]
)
async def test_headers_within_the_rules_pass_as_they_are(line: Line, headers: bytes) -> None:
    """Names in lower case, values of any bytes but CR, LF and NUL."""
    exchange = line.start()
    await line.send(headed(headers))

    assert (await exchange.result()).headers == headers


@given(st.lists(st.binary(max_size=60) | st.binary(max_size=30).map(lambda data: HEAD + data), max_size=4))
def test_whatever_a_worker_sends_the_host_goes_on(pieces: list[bytes]) -> None:
    """Random bytes end the channel with a ProtocolViolation, or wait for more; nothing else comes out."""

    async def hear() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with a_line() as line:
            line.start()
            line.read()
            for piece in pieces:
                try:
                    await line.send(piece)
                except OSError:
                    assert line.owner.ends
            assert all(isinstance(error, ProtocolViolation) for error in line.owner.ends)

    failures: list[Any] = []
    asyncio.run(hear())
    assert failures == []


# Ends.


async def test_the_end_of_a_worker_is_told_after_what_it_said(line: Line) -> None:
    """Its last answer counts."""
    exchange = line.start()
    line.peer.send(WHOLE)
    line.peer.close()
    await turn()

    assert (await exchange.result()).body == b"hello"
    assert line.owner.ends == [None]


async def test_drain_takes_in_everything_that_a_dead_worker_said(line: Line) -> None:
    """Also more than one read gives, and before the loop has looked."""
    exchange = line.start()
    line.read()
    body = b"".join(bytes([number]) * wire.PIECE for number in range(3))
    chunks = [wire.frame(wire.CHUNK, 1, body[at : at + wire.PIECE]) for at in range(0, len(body), wire.PIECE)]
    line.peer.setblocking(True)
    line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(body))
    line.peer.sendall(b"".join((HEAD, *chunks, wire.frame(wire.END, 1))))
    line.peer.close()
    line.channel.drain()

    assert exchange.over
    assert line.owner.ends == [None], "it stops at the end of what was said"
    assert b"".join([chunk async for chunk in exchange.chunks()]) == body


async def test_drain_of_a_worker_that_lives_takes_in_what_is_there(line: Line) -> None:
    """It does not wait for more."""
    exchange = line.start()
    line.peer.send(WHOLE)
    line.channel.drain()

    assert exchange.over
    assert line.owner.ends == []


@pytest.mark.parametrize("is_queued", [False, True])
async def test_closing_ends_the_worker(is_queued: bool) -> None:
    """Its sockets come to an end, once; what was not sent is dropped."""
    async with a_line(queued=is_queued) as line:
        line.channel.close()
        line.channel.close()

        assert line.peer.recv(1) == b""
        if line.taker is not None:
            assert line.taker.recv(1) == b""
        assert line.channel.take_back() == []


async def test_closing_lets_go_of_what_was_not_sent(line: Line) -> None:
    """A body of a call that is over takes no memory, and the loop no longer looks at the socket."""
    line.start(body=(bytes(8 * 1024 * 1024),))
    assert line.channel._unsent
    number, loop = line.channel._sock.fileno(), asyncio.get_running_loop()
    line.channel.close()

    assert not line.channel._unsent
    assert not loop.remove_reader(number)
    assert not loop.remove_writer(number)


# Taking back.


async def test_what_the_worker_has_not_taken_is_ours_again_and_what_it_has_is_not(queued: Line) -> None:
    """In the order in which it was given."""
    exchanges = [queued.start() for _ in range(5)]
    assert queued.take() is not None
    assert queued.take() is not None

    assert queued.channel.take_back() == exchanges[2:]
    assert list(queued.channel.exchanges.values()) == exchanges[:2]
    assert queued.take() is None
    assert [exchange.channel for exchange in exchanges] == [queued.channel] * 2 + [None] * 3
    assert queued.channel.take_back() == []


async def test_a_call_taken_back_can_be_given_again(queued: Line) -> None:
    """To the same worker or to another, under a stream of its own."""
    first, second = queued.start(), queued.start()
    assert queued.channel.take_back() == [first, second]
    assert queued.channel.start(second, 1.0)
    taken = queued.take()

    assert taken is not None
    assert taken[1].call_id == second.call.id
    await queued.send(wire.result_frame(taken[0], 200, 0, b"", b"second"))
    assert (await second.result()).body == b"second"
    assert not first.over


async def test_calls_on_the_channel_of_an_async_worker_cannot_be_taken_back(line: Line) -> None:
    """It may have begun them all."""
    exchange = line.start()

    assert line.channel.take_back() == []
    assert list(line.channel.exchanges.values()) == [exchange]


def test_between_worker_and_host_each_call_goes_to_exactly_one() -> None:
    """However the two race for them."""
    queue = CallQueue()
    taken: list[int] = []
    returned: list[int] = []

    def work() -> None:
        while packet := queue_end.recv(256 * 1024):
            taken.append(wire.PREFIX.unpack_from(packet)[4])

    queue_end = queue.theirs.dup()
    worker = threading.Thread(target=work)
    worker.start()
    pushed: list[int] = []
    for stream in range(1, 300_000):
        call = wire.call_frame(stream, 1, 0.0, 1, b"GET", b"", b"", b"", 0, b"")
        if queue.push(call):
            pushed.append(stream)
        if stream % 7 == 0:
            returned += queue.take_back()
        if stream >= 3000 and taken and returned:
            break
    returned += queue.take_back()
    queue.close()
    worker.join(PATIENCE)
    queue_end.close()

    assert taken
    assert returned
    assert sorted(taken + returned) == pushed
    assert taken == sorted(taken)
    assert returned == sorted(returned)
