"""One raw HTTP/1.1 connection: for what no client library would send, and for what it would hide."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

PATIENCE = 20.0


class Answer(NamedTuple):
    """One answer as it came over the wire; `whole` is false when the connection ended within it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool = True

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.headers if found == name]

    def get(self, name: str) -> str | None:
        """The only value of a header; None when it is absent."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Connection:
    """`send` bytes, read `answer`s; a scope."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.authority = parts.netloc
        self.socket = socket.create_connection((str(parts.hostname), parts.port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, whatever is under way."""
        self._file.close()
        self.socket.close()

    def send(self, *parts: bytes | str) -> None:
        """Send these bytes, and text in latin-1, in one go."""
        self.socket.sendall(b"".join(part.encode("latin-1") if isinstance(part, str) else part for part in parts))

    def request(self, target: bytes | str, *lines: str, method: str = "GET", body: bytes = b"") -> None:
        """Send one request; `lines` are header lines. A body is announced unless a line does it."""
        raw = target.encode("latin-1") if isinstance(target, str) else target
        head = [f"Host: {self.authority}", *lines]
        if body and not any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in lines):
            head.append(f"Content-Length: {len(body)}")
        text = "".join(f"{line}\r\n" for line in head)
        self.send(f"{method} ", raw, f" HTTP/1.1\r\n{text}\r\n", body)

    def answer(self, method: str = "GET") -> Answer:
        """Read one final or informational answer."""
        line = self._file.readline()
        assert line, "the connection was closed without an answer"
        status = int(line.split(b" ", 2)[1])
        headers = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
            headers.append((name.lower(), value.strip()))
        answer = Answer(status, headers, b"")
        if method == "HEAD" or status < 200 or status in (204, 304):
            return answer
        if answer.get("transfer-encoding") == "chunked":
            return self._chunked(answer)
        length = answer.get("content-length")
        body = self._file.read() if length is None else self._file.read(int(length))
        return answer._replace(body=body, whole=length is None or len(body) == int(length))

    def _chunked(self, answer: Answer) -> Answer:
        body = b""
        while True:
            chunk = self.chunk()
            if chunk is None:
                return answer._replace(body=body, whole=False)
            if not chunk:
                return answer._replace(body=body)
            body += chunk

    def head(self) -> Answer:
        """Read the head of an answer; its body is read with `chunk`."""
        return self.answer(method="HEAD")

    def chunk(self) -> bytes | None:
        """Read one chunk of a chunked body: empty at its proper end, None when it was cut."""
        line = self._file.readline()
        if not line:
            return None
        size = int(line, 16)
        data = self._file.read(size + 2)
        return data[:-2] if len(data) == size + 2 else None

    def at_end(self) -> bool:
        """Wait for the other side to close; False when it sends something instead."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True
