"""What systemd hears, at the end of its socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from runtime.systemd import tell_ready, watched

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
Listen = Callable[[str], socket.socket]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Systemd's end, at this address."""
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(variable, raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)

        def bound(address: str) -> socket.socket:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            sock.bind(address.replace("@", "\0", 1))
            return sock

        yield bound


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, listen: Listen, tmp_path: Path) -> socket.socket:
    """Systemd's end, at each kind of address."""
    return listen(str(tmp_path / "notify") if request.param == "path" else f"@spaces-{os.getpid()}-{time.time_ns()}")


def waiting(heard: socket.socket) -> int:
    """How much there was to hear until now."""
    heard.setblocking(False)
    count = 0
    while True:
        try:
            heard.recv(100)
        except BlockingIOError:
            return count
        count += 1


def test_it_hears_that_we_serve(heard: socket.socket) -> None:
    """Once."""
    tell_ready()

    assert heard.recv(100) == b"READY=1"


async def test_it_hears_that_we_live(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the work goes on, whose value is handed on; not after."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    async def work() -> list[bytes]:
        return [await anyio.to_thread.run_sync(heard.recv, 100) for _ in range(5)]

    assert await watched(work) == [b"WATCHDOG=1"] * 5
    waiting(heard)
    await anyio.sleep(0.1)
    assert waiting(heard) == 0


async def test_it_hears_nothing_while_the_event_loop_hangs(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so ends us."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def work() -> None:
        await anyio.to_thread.run_sync(heard.recv, 100)
        waiting(heard)
        time.sleep(0.1)
        assert waiting(heard) == 0

    await watched(work)


@pytest.mark.parametrize(
    ("variable", "value"), [("WATCHDOG_USEC", "soon"), ("WATCHDOG_USEC", "0"), ("WATCHDOG_PID", "1")]
)
async def test_who_is_not_watched_tells_nothing(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Where the variables are meant for another process, too."""
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv(variable, value)

    async def work() -> int:
        await anyio.sleep(0.1)
        return waiting(heard)

    assert await watched(work) == 0


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1", ""])
def test_one_that_is_not_there_stops_nobody(listen: Listen, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """At most it is logged."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    tell_ready()


async def test_errors_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a group of them."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await watched(work)


async def test_it_hears_that_we_live_although_no_more_files_can_be_opened(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has as many connections as it may is not one that hangs."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")

    async def serve() -> None:
        def full(*_: object) -> socket.socket:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", full)
            for _ in range(waiting(heard) + 5):
                heard.setblocking(True)
                await anyio.to_thread.run_sync(heard.recv, 100)

    await watched(serve)
