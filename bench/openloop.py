"""Load at a fixed rate, whatever the server does: requests are due by the clock, not when an answer has come.

A latency counts from the moment at which its request was due, so that a server that stalls is charged for all
that should have been sent meanwhile (no coordinated omission). Used by `rising` and `overload`.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.client import BODY
from bench.servers import Unavailable

CONNECTIONS = 256
PATIENCE = 5.0  # seconds that what is still under way at the end is waited for
SATURATED = 0.97  # share of its time that the client may be busy before a figure says more about it than the server
UNANSWERED = 0  # the status of what had no answer


@dataclass(frozen=True)
class Answer:
    """One request: seconds from the beginning at which it was due, milliseconds from then to its answer, status."""

    due: float
    ms: float
    status: int


@dataclass(frozen=True)
class Offered:
    """What became of a load that was offered; what had no answer has the time that it waited, a lower bound."""

    rate: float
    seconds: float
    answers: list[Answer]
    client_busy: float

    def of(self, *statuses: int) -> list[Answer]:
        return [answer for answer in self.answers if answer.status in statuses]

    def served(self) -> float:
        """Good answers a second, while the load lasted."""
        return sum(each.due + each.ms / 1000 <= self.seconds for each in self.of(200)) / self.seconds

    def errors(self) -> int:
        """Answers that are not 200; of a load that is too much, those still due at the end are not among them."""
        return sum(answer.status not in (200, UNANSWERED) for answer in self.answers)


def percentile(answers: list[Answer], share: float) -> float:
    """The milliseconds within which this share of them had come."""
    ordered = sorted(answer.ms for answer in answers)
    if not ordered:
        raise Unavailable("nothing was answered")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Connection:
    """A socket with at most one request under way, which was due as the `number`th."""

    __slots__ = ("buffer", "number", "socket")

    def __init__(self, address: tuple[str, int]):
        self.socket = socket.create_connection(address, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer, self.number = b"", -1

    def receive(self) -> int | None:
        """The status, once the answer is whole; 0 when the connection is of no more use."""
        try:
            received = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            return UNANSWERED
        if not received:
            return UNANSWERED
        self.buffer = self.buffer + received if self.buffer else received
        if not whole(self.buffer):
            return None
        status, self.buffer = int(self.buffer[9:12]), b""
        return status


def whole(answer: bytes) -> bool:
    """Whether all of an answer is here."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    if (at := head.find(b"\r\ncontent-length:")) >= 0:
        length = int(head[at + 17 :].partition(b"\r\n")[0])
        return len(answer) >= end + 4 + length
    return answer.endswith(b"\r\n0\r\n\r\n")


class Load:
    """One run: sends what is due on a free connection, notes what comes."""

    def __init__(self, url: str, path: str, rate: float, seconds: float, connections: int):
        parts = urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.rate, self.seconds, self.total = rate, seconds, int(rate * seconds)
        self.request = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.free: list[Connection] = []
        self.answers: list[Answer] = []
        self.sent = 0
        self.idle = 0.0
        for _ in range(connections):
            self.connect()

    def connect(self) -> None:
        connection = Connection(self.address)
        self.connections[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        self.free.append(connection)

    def greet(self) -> None:
        """One request on each connection, before the clock starts: a server has work with new connections."""
        deadline = time.perf_counter() + PATIENCE
        for connection in self.connections.values():
            connection.socket.send(self.request)
        waiting = set(self.connections)
        while waiting:
            if time.perf_counter() > deadline:
                raise Unavailable(f"{len(waiting)} of {len(self.connections)} connections were not answered")
            for handle, _ in self.poll.poll(0.1):
                status = self.connections[handle].receive()
                if status == UNANSWERED:
                    raise Unavailable("a connection was closed before it was used")
                if status is not None:
                    waiting.discard(handle)

    def run(self) -> Offered:
        self.greet()
        gc.collect()
        gc.disable()
        try:
            busy = self.drive()
        finally:
            gc.enable()
            for connection in self.connections.values():
                connection.socket.close()
            self.poll.close()
        return Offered(self.rate, self.seconds, self.answers, busy)

    def drive(self) -> float:
        """Until all that was sent in time is answered, or given up; the share of the time that this was busy."""
        clock, poll, total, interval = time.perf_counter, self.poll.poll, self.total, 1 / self.rate
        self.began = before = clock()
        end = self.began + self.seconds
        while (now := clock()) < end and (self.sent < total or len(self.free) < len(self.connections)):
            until_due = self.began + self.sent * interval - now
            # A poll can sleep whole milliseconds only: what is due sooner is waited for by asking again.
            sleeps = until_due > 0.002
            ready = poll(0.001 if sleeps else 0)
            if sleeps or (not ready and (until_due > 0 or not self.free)):
                self.idle += clock() - now
            for handle, _ in ready:
                self.receive(handle)
            self.send(clock(), interval)
        busy = 1 - self.idle / (clock() - before)
        while len(self.free) < len(self.connections) and clock() < end + PATIENCE:
            for handle, _ in poll(0.1):
                self.receive(handle)
        self.give_up()
        return busy

    def send(self, now: float, interval: float) -> None:
        while self.free and self.sent < self.total and self.began + self.sent * interval <= now:
            connection = self.free.pop()
            connection.number = self.sent
            self.sent += 1
            try:
                connection.socket.send(self.request)
            except OSError:
                self.lose(connection)

    def receive(self, handle: int) -> None:
        connection = self.connections[handle]
        status = connection.receive()
        if status is None:
            return
        if status == UNANSWERED:
            self.lose(connection)
            return
        self.note(connection.number, status)
        connection.number = -1
        self.free.append(connection)

    def note(self, number: int, status: int) -> None:
        due = number / self.rate
        self.answers.append(Answer(due, (time.perf_counter() - self.began - due) * 1000, status))

    def lose(self, connection: Connection) -> None:
        """The server has closed it: what was under way is lost, and another connection takes its place."""
        if connection.number >= 0:
            self.note(connection.number, -1)
        else:
            self.free.remove(connection)
        del self.connections[connection.socket.fileno()]
        connection.socket.close()
        self.connect()

    def give_up(self) -> None:
        """Notes what was not answered, and what was due and could not even be sent."""
        for connection in self.connections.values():
            if connection.number >= 0:
                self.note(connection.number, UNANSWERED)
        for number in range(self.sent, self.total):
            self.note(number, UNANSWERED)


def offer(url: str, path: str, rate: float, seconds: float, connections: int = CONNECTIONS) -> Offered:
    """Offers `rate` requests a second for so long, on so many connections, one at a time on each."""
    return Load(url, path, rate, seconds, connections).run()
