"""The host processes below one `spaces serve --processes N`, and connections of which each is known to be one's."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import PATIENCE, Running, alive, descendants, eventually

TRIES = 400  # connections: that many all with one of two members is nothing that ever happens


def members(host: Running) -> set[int]:
    """The pids of the host processes that live."""
    return {pid for pid in descendants(host.process.pid) if b"runtime.member" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Client:
    """One connection, kept: all its calls are one member's."""

    def __init__(self, host: Running) -> None:
        self._host = host
        self._http = http.client.HTTPConnection(host.url.removeprefix("http://"), timeout=PATIENCE)
        try:
            self.ask("GET", "/healthz")
            self.member = owner(self._http.sock)
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status of an answer, and its body: of JSON the value."""
        data = None if body is None else body if isinstance(body, (bytes, str)) else json.dumps(body)
        if data is not None and not isinstance(body, str):
            headers.setdefault("Content-Type", "application/json")
        self._http.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = self._http.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in (answer.getheader("Content-Type") or "") else text

    def call(self, function: str, rest: str = "") -> Any:
        """What a function answers, which must be 200."""
        status, value = self.ask("GET", self._host.path(function, rest))
        assert status == 200, value
        return value

    def submit(self, function: str) -> str:
        """Submit a call; its label."""
        self._http.request("POST", self._host.path(function).replace("/invoke", "/async-invoke"), b"")
        answer = self._http.getresponse()
        text = answer.read()
        assert answer.status == 202, text
        return str(answer.getheader("X-Call-Id"))

    def state(self, function: str) -> dict[str, Any]:
        """What is said of a function."""
        space, name = function.split("/")
        shown: dict[str, Any] = self.ask("GET", f"/spaces/{space}/functions/{name}")[1]
        return shown

    def close(self) -> None:
        """Hang up."""
        self._http.close()


@contextmanager
def one_to_each(host: Running) -> Iterator[dict[int, Client]]:
    """A connection to each member that takes any."""
    found: dict[int, Client] = {}
    wanted = members(host)
    try:
        for _ in range(TRIES):
            client = Client(host)
            if found.setdefault(client.member, client) is not client:
                client.close()
            if found.keys() >= wanted:
                break
        assert found.keys() >= wanted, f"connections go to {set(found)} of {wanted} only"
        yield found
    finally:
        for client in found.values():
            client.close()


def owner(sock: socket.socket) -> int:
    """The process that has the other end of a connection on this machine."""
    (_, ours), (_, theirs) = sock.getsockname(), sock.getpeername()
    wanted = f":{theirs:04X}", f":{ours:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted[0]) and fields[2].endswith(wanted[1]):
            return _holder(f"socket:[{fields[9]}]")
    raise AssertionError("the connection is gone")


def _holder(name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and b"runtime.member" in _command(int(entry.name)):
            for handle in _handles(entry / "fd"):
                if handle == name:
                    return int(entry.name)
    raise AssertionError("nobody has the connection")


def _handles(folder: Path) -> Iterator[str]:
    try:
        for handle in os.listdir(folder):
            try:
                yield os.readlink(folder / handle)
            except OSError:
                continue
    except OSError:
        return


def replaced(host: Running, pid: int, count: int = 2) -> None:
    """Wait for the end of a member, and for another that takes connections in its place."""
    eventually(lambda: not alive(pid), f"the end of {pid}; the log:\n{host.log}")
    eventually(lambda: len(members(host)) == count, f"{count} members; the log:\n{host.log}")
    with one_to_each(host):
        pass
