"""A zygote's side of a control socket."""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

import pytest

from runtime.worker import parent
from runtime.worker.parent import Seat


def test_a_host_hears_of_what_could_not_be_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many descriptors are on their way: the message comes without, and the control socket stays."""
    send = parent.send_with

    def no_room(sock: socket.socket, data: Any, fds: Any) -> None:
        if fds:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        send(sock, data, fds)

    monkeypatch.setattr(parent, "send_with", no_room)
    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, control:
        seat = Seat(control)
        seat.send({"op": "forked", "id": 1, "pid": 7}, (0,))
        seat.send({"op": "exited", "pid": 7, "code": 0})

        heard = [socket.recv_fds(host, 1000, 4) for _ in range(2)]

    assert [json.loads(data)["op"] for data, *_ in heard] == ["forked", "exited"]
    assert [fds for _, fds, *_ in heard] == [[], []]


def test_hosts_are_told_apart() -> None:
    """By a number that none ever has again, unless it is one of several sockets of the same."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        numbers = [Seat(ours).host for _ in range(100)]
        assert len(set(numbers)) == 100
        assert Seat(ours, 1, numbers[0]).host == numbers[0]
