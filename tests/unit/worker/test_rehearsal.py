"""Calls to nobody."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from runtime.worker import loop, rehearsal, wire
from runtime.worker.handler import Handler


def test_it_leaves_a_worker_as_it_was() -> None:
    """Its own handler is not called by it, and serves the calls after it."""
    seen: list[object] = []
    worker = loop.unconnected(Handler(rehearsal.SPEC, lambda data: seen.append(data)))
    open_before = os.listdir("/proc/self/fd")

    rehearsal.rehearse(worker)

    assert seen == []
    assert os.listdir("/proc/self/fd") == open_before
    host, channel = socket.socketpair()
    calls, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, calls:
        worker.connect(channel.detach(), queue.detach())
        calls.send(rehearsal.CALL)
        calls.shutdown(socket.SHUT_WR)
        worker.serve_queue()
        [(kind, _, stream, payload)] = wire.Reader().feed(host.recv(65536))
    worker.let_go()
    assert (kind, stream, wire.parse_result(payload)[0]) == (wire.RESULT, 1, 200)
    assert seen == [{"some": ["json", 1, None]}]


def test_without_room_for_sockets() -> None:
    """It says so, and nothing is lost."""
    handler = Handler(rehearsal.SPEC, lambda data: data)
    worker = loop.unconnected(handler)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            rehearsal.rehearse(worker)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    worker.let_go()
    assert worker.handler is handler
