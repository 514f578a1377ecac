"""One call as its client sees it: a result, chunks, an end; in every state, somebody who waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.calls import Call, Result
from runtime.errors import FunctionTimeout, WorkerDied
from runtime.exchange import CROWD, GRANT, Exchange, held
from runtime.worker import wire

pytestmark = pytest.mark.anyio

WHOLE = Result(200, b"", b"body", True, False, 0.0)
HEAD = Result(200, b"", b"", False, False, 0.0)
PATIENCE = 10.0  # seconds in which what must happen at once has happened


class Link:
    """The channel that a call runs on: what was written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    @property
    def credit(self) -> list[int]:
        """The amounts granted."""
        frames = wire.Reader().feed(b"".join(self.written))
        assert {(kind, stream) for kind, _, stream, _ in frames} <= {(wire.CREDIT, 5)}
        return [wire.parse_u32(payload) for _, _, _, payload in frames]


class Made:
    """An exchange, its link, and who left it."""

    def __init__(self) -> None:
        self.left: list[Exchange] = []
        self.link = Link()
        call = Call(id=1, label="1", space="demo", name="stock")
        self.exchange = Exchange(call, 10.0, asyncio.get_running_loop(), self.left.append)
        self.exchange.stream, self.exchange.channel = 5, self.link


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """What a test leaves unread is no crowd to the next one."""
    yield
    held.add(-held.size)


async def soon_after(act: Callable[[], object], waiting: Awaitable[object]) -> object:
    """What `waiting` gives when `act` is done while it waits."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    assert not task.done()
    act()
    with anyio.fail_after(PATIENCE):
        return await task


async def collect(exchange: Exchange) -> list[bytes]:
    return [chunk async for chunk in exchange.chunks()]


async def test_a_result_that_is_there_is_given_at_once() -> None:
    """To `soon` as to `result`."""
    exchange = Made().exchange
    exchange.answered(WHOLE)

    assert await exchange.soon() is WHOLE
    assert await exchange.result() is WHOLE


async def test_a_result_that_comes_later_is_waited_for() -> None:
    """By `soon` as by `result`."""
    for wait in (Exchange.soon, Exchange.result):
        exchange = Made().exchange

        assert await soon_after(lambda: exchange.answered(WHOLE), wait(exchange)) is WHOLE  # noqa: B023


async def test_soon_gives_none_when_it_takes_longer_than_a_moment() -> None:
    """And `result` goes on waiting."""
    exchange = Made().exchange

    assert await soon_after(exchange.is_late, exchange.soon()) is None
    assert exchange.late
    task = asyncio.ensure_future(exchange.result())
    await asyncio.sleep(0)
    exchange.is_late()
    assert await soon_after(lambda: exchange.answered(WHOLE), task) is WHOLE


async def test_an_error_reaches_who_waits_and_who_asks_later() -> None:
    """Whether the worker still has the call or not."""
    for over in (True, False):
        exchange = Made().exchange

        with pytest.raises(FunctionTimeout, match="late"):
            await soon_after(lambda: exchange.failed(FunctionTimeout("late"), over=over), exchange.result())  # noqa: B023
        with pytest.raises(FunctionTimeout, match="late"):
            await exchange.soon()
        assert (exchange.status, exchange.over) == (504, over)


async def test_the_first_error_and_the_first_status_stand() -> None:
    """What becomes of the worker afterwards does not change what the client was told."""
    exchange = Made().exchange
    exchange.failed(FunctionTimeout("late"), over=False)
    exchange.failed(WorkerDied("killed"))

    assert (exchange.status, exchange.over) == (504, True)
    with pytest.raises(FunctionTimeout, match="late"):
        await exchange.soon()


async def test_chunks_come_in_order_and_end() -> None:
    """Those that were there before anybody asked, and those that come later."""
    exchange = Made().exchange
    exchange.answered(HEAD)
    exchange.chunk_received(b"a")
    exchange.chunk_received(b"b")

    def rest() -> None:
        exchange.chunk_received(b"c")
        exchange.ended()

    assert not exchange.over
    assert await exchange.result() is HEAD
    assert await soon_after(rest, collect(exchange)) == [b"a", b"b", b"c"]
    assert exchange.over
    assert exchange.unread == 0


async def test_each_chunk_and_the_end_wake_who_waits_for_them() -> None:
    """Alone."""
    exchange = Made().exchange
    exchange.answered(HEAD)
    chunks = exchange.chunks()

    assert await soon_after(lambda: exchange.chunk_received(b"a"), anext(chunks)) == b"a"
    assert await soon_after(exchange.ended, anext(chunks, None)) is None


async def test_a_new_exchange_has_no_worker_and_no_end() -> None:
    """What the pool goes by."""
    made = Made()
    exchange = made.exchange

    assert (exchange.call.id, exchange.timeout) == (1, 10.0)
    assert (exchange.started_at, exchange.status, exchange.unread) == (0.0, 0, 0)
    assert not any((exchange.late, exchange.overdue, exchange.retried, exchange.over, exchange.left))
    assert not exchange.streaming
    exchange.answered(HEAD)
    assert exchange.streaming


async def test_a_stream_that_is_over_before_anybody_reads_is_read_whole() -> None:
    """The END takes nothing away."""
    exchange = Made().exchange
    exchange.answered(HEAD)
    exchange.chunk_received(b"a")
    exchange.ended()

    assert await collect(exchange) == [b"a"]
    assert exchange.over


@pytest.mark.parametrize("over", [True, False])
async def test_a_stream_cut_short_gives_what_had_come_and_then_its_error(over: bool) -> None:
    """In this order, also when the error is there before anybody reads."""
    exchange = Made().exchange
    exchange.answered(HEAD)
    exchange.chunk_received(b"a")
    exchange.failed(WorkerDied("killed"), over=over)
    chunks = exchange.chunks()

    assert await anext(chunks) == b"a"
    with pytest.raises(WorkerDied, match="killed"):
        await anext(chunks)
    assert exchange.status == 200, "what was sent stays what was sent"


async def test_an_error_ends_the_wait_for_the_next_chunk() -> None:
    """Nobody hangs on a stream whose worker is gone."""
    exchange = Made().exchange
    exchange.answered(HEAD)

    with pytest.raises(WorkerDied):
        await soon_after(lambda: exchange.failed(WorkerDied()), collect(exchange))


async def test_leaving_before_the_end_is_told_once() -> None:
    """To whoever made it; leaving after the end is nothing to tell."""
    early, late = Made(), Made()
    with early.exchange:
        pass
    with late.exchange:
        late.exchange.answered(WHOLE)

    assert early.left == [early.exchange]
    assert early.exchange.left
    assert late.left == []
    assert not late.exchange.left


async def test_leaving_a_stream_and_a_call_that_timed_out_is_told_while_a_worker_has_it() -> None:
    """A head, or an error that is not the worker's last word, leaves the call under way."""
    stream, overdue = Made(), Made()
    with stream.exchange:
        stream.exchange.answered(HEAD)
    with overdue.exchange:
        overdue.exchange.failed(FunctionTimeout(), over=False)

    assert stream.left == [stream.exchange]
    assert overdue.left == [overdue.exchange]


async def test_an_exception_within_leaves_too() -> None:
    """A client's handler that is cancelled has left."""
    made = Made()
    with pytest.raises(KeyError), made.exchange:
        raise KeyError

    assert made.left == [made.exchange]


async def test_leaving_lets_go_of_the_result() -> None:
    """A list of deadlines may hold the exchange for long: not its body, too."""
    made = Made()
    with made.exchange:
        made.exchange.answered(WHOLE)

    assert made.exchange._result is None


async def test_an_answer_after_the_deadline_changes_no_status() -> None:
    """The client was told 504, and that is what is counted."""
    exchange = Made().exchange
    exchange.failed(FunctionTimeout(), over=False)
    exchange.answered(WHOLE)

    assert (exchange.status, exchange.over) == (504, True)


async def test_what_comes_for_a_client_that_left_is_dropped() -> None:
    """And it takes no memory."""
    made = Made()
    with made.exchange:
        made.exchange.answered(HEAD)
        made.exchange.chunk_received(b"x")
    for _ in range(20):
        made.exchange.chunk_received(b"x" * wire.PIECE)

    assert made.exchange.unread == 0


async def test_chunks_after_an_error_are_dropped() -> None:
    """The client has been told that there is nothing more."""
    made = Made()
    made.exchange.answered(HEAD)
    made.exchange.failed(FunctionTimeout(), over=False)
    for _ in range(20):
        made.exchange.chunk_received(b"x" * wire.PIECE)

    assert made.exchange.unread == 0


async def test_a_chunk_before_the_result_is_against_the_rules() -> None:
    """There is no stream yet."""
    with pytest.raises(wire.ProtocolError):
        Made().exchange.chunk_received(b"a")


async def test_an_end_before_the_result_is_against_the_rules() -> None:
    """Whoever waits for the result would wait for ever."""
    with pytest.raises(wire.ProtocolError):
        Made().exchange.ended()


async def test_an_end_before_the_result_of_a_cancelled_call_is_its_end() -> None:
    """Nobody waits for its result: the client has left, or has been told why not."""
    left, overdue = Made(), Made()
    with left.exchange:
        pass
    overdue.exchange.failed(FunctionTimeout(), over=False)
    for made in (left, overdue):
        made.exchange.ended()

        assert made.exchange.over


async def test_more_than_the_window_is_against_the_rules() -> None:
    """A piece more than the window, which a worker that has a byte of credit left may send, is not."""
    exchange = Made().exchange
    exchange.answered(HEAD)
    exchange.chunk_received(bytes(wire.WINDOW))
    exchange.chunk_received(bytes(wire.PIECE))

    with pytest.raises(wire.ProtocolError):
        exchange.chunk_received(b"x")


async def test_credit_is_granted_for_what_was_taken() -> None:
    """In amounts of at least GRANT, all of it in the end, and none for what is unread."""
    made = Made()
    made.exchange.answered(HEAD)
    chunks = made.exchange.chunks()
    for _ in range(3):
        made.exchange.chunk_received(bytes(GRANT // 2))
    await anext(chunks)
    await anext(chunks)

    assert made.link.credit == []
    await anext(chunks)
    assert made.link.credit == [GRANT]


async def test_a_crowd_of_slow_clients_is_granted_little() -> None:
    """While much is unread in all, no more is granted until a call is down to the small window; then as before."""
    made = Made()
    made.exchange.answered(HEAD)
    chunks = made.exchange.chunks()
    for _ in range(4):
        made.exchange.chunk_received(bytes(wire.WINDOW // 4))
    await anext(chunks)
    held.add(CROWD)
    assert (held.window, held.flags) == (wire.SMALL_WINDOW, wire.CROWDED)
    for _ in range(3):
        await anext(chunks)
    assert made.link.credit == []
    made.exchange.chunk_received(b"x")
    await anext(chunks)
    assert made.link.credit == [wire.SMALL_WINDOW]
    held.add(-CROWD)
    made.exchange.chunk_received(b"x")
    await anext(chunks)

    assert sum(made.link.credit) == wire.WINDOW + 1, "as much as was taken"
    await chunks.aclose()  # type: ignore[attr-defined]


async def test_what_a_client_leaves_unread_is_not_held_any_more() -> None:
    """Whether its call is over or not."""
    before = held.size
    for end in (True, False):
        made = Made()
        with made.exchange:
            made.exchange.answered(HEAD)
            made.exchange.chunk_received(bytes(1000))
            assert held.size == before + 1000
            if end:
                made.exchange.ended()

        assert held.size == before


@given(st.lists(st.integers(1, wire.PIECE), min_size=1, max_size=40))
def test_a_worker_that_keeps_to_its_credit_is_never_refused_nor_stuck(sizes: list[int]) -> None:
    """Whatever the sizes of its chunks: the window is always granted anew."""

    async def stream() -> None:
        made = Made()
        made.exchange.answered(HEAD)
        chunks = made.exchange.chunks()
        credit, granted, todo, unread = wire.WINDOW, 0, list(sizes), 0
        while todo or unread:
            if todo and credit > 0:
                size = todo.pop(0)
                made.exchange.chunk_received(bytes(size))
                credit, unread = credit - size, unread + 1
                continue
            assert unread, "no credit, and nothing that could be taken to get more"
            task = asyncio.ensure_future(anext(chunks))
            assert len(await task) > 0
            unread -= 1
            credit += sum(made.link.credit) - granted
            granted = sum(made.link.credit)
        await chunks.aclose()  # type: ignore[attr-defined]
        with made.exchange:
            pass

        assert granted <= sum(sizes)

    asyncio.run(stream())


async def test_no_credit_is_granted_after_the_end() -> None:
    """The worker has forgotten the call."""
    made = Made()
    made.exchange.answered(HEAD)
    made.exchange.chunk_received(bytes(GRANT))
    made.exchange.chunk_received(bytes(GRANT))
    made.exchange.ended()
    await collect(made.exchange)

    assert made.link.credit == []


async def test_progress_is_when_a_chunk_came_or_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the deadline of a stream counts from."""
    now = 100.0
    monkeypatch.setattr("runtime.exchange.monotonic", lambda: now)
    exchange = Made().exchange
    assert (exchange.accepted_at, exchange.progress_at, exchange.deadline) == (100.0, 100.0, 110.0)
    now = 101.0
    exchange.answered(HEAD)
    assert exchange.progress_at == 101.0
    now = 102.0
    exchange.chunk_received(b"a")
    exchange.chunk_received(b"b")
    assert exchange.progress_at == 102.0
    now = 103.0
    chunks = exchange.chunks()
    await anext(chunks)
    assert exchange.progress_at == 102.0, "the first is not taken before the second is asked for"
    await anext(chunks)
    assert exchange.progress_at == 103.0
    assert exchange.seconds() == 3.0
