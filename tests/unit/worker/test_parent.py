"""A zygote's side of a control socket."""

from __future__ import annotations

import errno
import json
import os
import socket
from struct import pack
from typing import Any

import pytest

from runtime.worker import parent
from runtime.worker.parent import Seat, kill_by, receive


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


def test_a_host_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """After PATIENCE, as others wait for their zygote meanwhile: its control socket is shut, and it hears so."""
    monkeypatch.setattr(parent, "PATIENCE", pack("ll", 0, 1000))
    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, control:
        seat = Seat(control)
        for number in range(10_000):
            seat.send({"op": "exited", "pid": number, "code": 0})
        host.setblocking(False)
        heard = 0
        while host.recv(1000):
            heard += 1

        assert 0 < heard < 10_000
        assert receive(control) == (None, [])


@pytest.mark.parametrize("said", [b"{}", b"[]", b"1", b"none", b"\xff", b"[" * 60_000, b'{"op": "fork"'])
def test_what_is_no_message_is_the_end_of_who_sent_it(said: bytes) -> None:
    """An import may write to whatever it finds open. What came beside it is closed."""
    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    with host, control:
        host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
        socket.send_fds(host, [said], [writing])
        os.close(writing)
        os.set_blocking(reading, False)

        assert receive(control) == (None, [])
        assert os.read(reading, 1) == b"", "somebody can still write to it"
    os.close(reading)


def test_a_child_that_has_just_ended_need_not_be_killed() -> None:
    """Its host leaves at the same moment: the zygote goes on, for the others."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    kill_by(pidfd)
    os.close(pidfd)
