"""An async worker's end of the channel: what the host may conclude from what it hears. Calls: `tests/acceptance`."""

from __future__ import annotations

import asyncio

import pytest

from runtime.worker import wire
from runtime.worker.aloop import AsyncWorker
from runtime.worker.rehearsal import CALL, HANDLER

pytestmark = pytest.mark.anyio


class Slow(asyncio.Transport):
    """A transport whose other end reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 1
        self.sent: list[bytes] = []
        self.is_read = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def write(self, data: object) -> None:
        self.sent.append(bytes(data))  # type: ignore[call-overload]

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.mark.parametrize("together", [True, False])
async def test_what_is_behind_a_ping_is_begun_once_its_pong_is_out(together: bool) -> None:
    """If the process ends before, the host takes it for not begun, and has another one begin it."""
    worker, transport = AsyncWorker(HANDLER, asyncio.get_running_loop()), Slow()
    worker.connection_made(transport)
    ping = wire.frame(wire.PING, 0)
    worker.data_received(ping + CALL if together else ping)
    assert transport.sent == [wire.frame(wire.PONG, 0)]
    assert not transport.is_read
    assert not worker._calls

    transport.unsent = 0
    worker.resume_writing()
    assert transport.is_read
    if not together:
        worker.data_received(CALL)
    assert len(worker._calls) == 1
    for call in worker._calls.values():
        call.cancel()
    await asyncio.sleep(0)


async def test_a_pong_that_is_out_holds_nothing_up() -> None:
    """As it nearly always is."""
    worker, transport = AsyncWorker(HANDLER, asyncio.get_running_loop()), Slow()
    worker.connection_made(transport)
    transport.unsent = 0
    worker.data_received(wire.frame(wire.PING, 0) + CALL)
    assert transport.is_read
    assert len(worker._calls) == 1
    for call in worker._calls.values():
        call.cancel()
    await asyncio.sleep(0)
