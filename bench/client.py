"""One keep-alive HTTP/1.1 connection, thin enough that timing a call times the server, not the client."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

BODY = b'{"a":1234567,"b":87654321}'
SUM = {"sum": 88888888}
APPS = Path(__file__).parent / "apps"


class Client:
    """`call` sends and reads one answer; OSError when the connection failed (the next call makes one)."""

    def __init__(self, url: str, timeout: float = 60):
        parts = urlsplit(url)
        self.host, self.port, self.timeout = parts.hostname, parts.port, timeout
        self.socket: socket.socket | None = None
        self.buffer = b""

    def connect(self) -> None:
        self.socket = socket.create_connection((self.host, self.port), self.timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def close(self) -> None:
        if self.socket:
            self.socket.close()
            self.socket = None

    def call(self, path: str, body: bytes = BODY, method: str = "POST") -> tuple[int, bytes]:
        status, _, answer = self.exchange(path, body=body, method=method)
        return status, answer

    def exchange(
        self, path: str, extra: dict[str, str] | None = None, *, body: bytes = BODY, method: str = "POST"
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers (names in lower case) and body."""
        if self.socket is None:
            self.connect()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in (extra or {}).items())
            + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            self.socket.sendall(head.encode() + body)
            return self.read()
        except OSError:
            self.close()
            raise

    def get(self, path: str) -> dict:
        status, body = self.call(path, b"", "GET")
        if status != 200:
            raise OSError(f"GET {path} answered {status}: {body[:200]!r}")
        return json.loads(body)

    def read(self) -> tuple[int, dict[bytes, bytes], bytes]:
        head = self.until(b"\r\n\r\n")
        status, headers = int(head.split(b" ", 2)[1]), {}
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size + 2)[:-2]
            self.until(b"\r\n")
        else:
            body = self.exactly(int(headers.get(b"content-length", 0)))
        if headers.get(b"connection") == b"close":
            self.close()
        return status, headers, body

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self.more()
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.more()
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def more(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += received
