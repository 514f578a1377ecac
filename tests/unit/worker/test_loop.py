"""The sync worker's end of the channel: what is sent while something else is being sent, and what a child may send."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.worker import wire
from runtime.worker.loop import SyncWorker

ROOT = Path(__file__).parents[3]


class Sockets:
    """A worker, and the host's ends of its sockets."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        self.queue, their_queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = SyncWorker(theirs, their_queue, None)  # type: ignore[arg-type]

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        return wire.Reader().feed(self.channel.recv(65536))


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    for each in (made.channel, made.queue, made.worker.sock, made.worker.queue):
        each.close()


def test_a_line_is_sent_at_once(sockets: Sockets) -> None:
    """With its level and the call it belongs to; levels above 255 are that."""
    sockets.worker._log(3, 20, b"text")
    sockets.worker._log(3, 1000, b"more")

    assert sockets.frames() == [(wire.LOG, 0, 3, b"\x14text"), (wire.LOG, 0, 3, b"\xffmore")]


def test_a_line_printed_in_the_middle_of_sending_comes_after_it(sockets: Sockets) -> None:
    """A signal handler may print while its thread is sending: that neither waits for itself nor cuts the frame."""
    worker = sockets.worker

    class Interrupted:
        def sendall(self, data: bytes) -> None:
            worker.sock = ours  # once
            worker._log(1, 20, b"from a signal handler")
            ours.sendall(data)

    ours, worker.sock = worker.sock, Interrupted()  # type: ignore[assignment]
    worker._send(wire.frame(wire.END, 7))

    assert sockets.frames() == [(wire.END, 0, 7, b""), (wire.LOG, 0, 1, b"\x14from a signal handler")]


FORKS = """
import os, socket, threading
from runtime.worker.loop import SyncWorker
ours, theirs = socket.socketpair()
queue, their_queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
worker = SyncWorker(theirs, their_queue, None)
taken, release = threading.Event(), threading.Event()

def hold():
    with worker._send_lock:
        taken.set()
        release.wait()

threading.Thread(target=hold).start()
taken.wait()
if os.fork() == 0:
    worker.let_go()
    worker._send(b"from the child")
    os._exit(7)
status = os.waitstatus_to_exitcode(os.wait()[1])
release.set()
theirs.close()
print(status, ours.recv(100))
"""


def test_a_forked_child_sends_nothing() -> None:
    """It ends instead; also when another thread was sending as it was forked."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]  # Python 3.12 warns of such forks
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("0 b''\n", "")


def test_nobody_to_send_to(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is gone, or the handler closed the channel: the process ends."""
    ended: list[Any] = []
    monkeypatch.setattr("runtime.worker.loop._exit", ended.append)
    sockets.worker.sock.close()

    sockets.worker._send(b"anything")

    assert ended == [0]
