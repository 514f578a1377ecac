"""A host process's line to its supervisor, and through it to its siblings: news, questions, and words in between.

`Link` is held by a member (`member.py`, `host.py`), `Relay` by the supervisor. Nobody waits for a sibling: what a
slow one cannot take is dropped, and what it does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Literal, cast

import anyio
import msgspec

from .share import Share

BUFFERED = 4 * 1024 * 1024  # bytes that wait for a slow reader; beyond them news and answers are dropped
WAITING = 10_000  # frames that have been read and wait to be heard; beyond them, or BUFFERED bytes, news are dropped
OPEN_QUESTIONS = 64  # of one member that not all have answered yet; beyond them the oldest counts as answered
DOOR_PATIENCE = 5.0  # seconds for the supervisor to take in a socket
PRELOAD_SIZE = 64 * 1024  # bytes of a preload list
ASK, HERE = "there?", "here"  # the words by which a supervisor knows that a member's event loop goes round
TURN = 0.002  # seconds
LENGTH = 4  # bytes before each frame, which say how long it is

Reply = Callable[[bytes], None]
Kind = Literal["news", "question", "part", "answer", "done", "word"]


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What goes over the line. `asker` and `number` name a question; an answer without a payload is none.

    A `part` is of an answer of which more follows.
    """

    kind: Kind
    topic: str
    payload: bytes | None = b""
    number: int = 0
    asker: int = 0


class Line(asyncio.Protocol):
    """One end of a stream of frames. `on_frame` is called for each in order, `on_end` once.

    Guarantee: that takes no longer in a turn of the event loop than TURN and one frame, so that many hold up nobody.
    Whether somebody is there is heard at once, before what waits.
    """

    def __init__(self, on_frame: Callable[[Frame], None], on_end: Callable[[], None]) -> None:
        self._on_frame, self._on_end = on_frame, on_end
        self._received = bytearray()
        self._frames: deque[tuple[Frame | None, int]] = deque()  # not delivered yet, with sizes; None is the end
        self._waiting = 0  # bytes of them
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Frame)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None

    async def open(self, sock: socket.socket) -> None:
        """Begin, on a socket that is this line's from now on."""
        sock.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, frame: Frame) -> bool:
        """Send a frame; False where it is dropped, since the other end has gone or reads too slowly for it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if not _is_vital(frame) and transport.get_write_buffer_size() > BUFFERED:
            return False
        data = self._encoder.encode(frame)
        transport.write(len(data).to_bytes(LENGTH, "big") + data)
        return True

    def close(self) -> None:
        """End it; what was sent is still written."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are of no such class

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= LENGTH:
            end = start + LENGTH + int.from_bytes(received[start : start + LENGTH], "big")
            if len(received) < end:
                break
            frame = self._decoder.decode(memoryview(received)[start + LENGTH : end])
            self._sort(frame, end - start)
            start = end
        del received[:start]

    def connection_lost(self, error: Exception | None) -> None:
        self._queue(None, 0)

    def _sort(self, frame: Frame, size: int) -> None:
        """What may not wait, and what may not stay."""
        if frame.kind == "word" and frame.topic in (ASK, HERE):
            self._loop.call_soon(self._on_frame, frame)
        elif frame.kind != "news" or (len(self._frames) < WAITING and self._waiting < BUFFERED):
            self._queue(frame, size)

    def _queue(self, frame: Frame | None, size: int) -> None:
        self._frames.append((frame, size))
        self._waiting += size
        if len(self._frames) == 1:
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        until = monotonic() + TURN
        try:
            while self._frames:
                frame, size = self._frames.popleft()
                self._waiting -= size
                self._on_end() if frame is None else self._on_frame(frame)
                if monotonic() >= until:
                    break
        finally:  # what is raised there must not end the line
            if self._frames:
                self._loop.call_soon(self._deliver)


def _is_vital(frame: Frame) -> bool:
    """Whether somebody waits for it; these are small."""
    return frame.kind in ("word", "done") or frame.payload is None


class Question:
    """What was asked, and what has come back so far."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.done = anyio.Event()


class Link:
    """One member's end. Within its scope news and questions come in; the supervisor's words go to `on_word`.

    Guarantee: no method waits for a sibling, but for `gather`, which does so within its timeout.
    """

    def __init__(self, share: Share, line: socket.socket, doors: socket.socket) -> None:
        self.share = share
        self.on_word: Callable[[str], None] = lambda word: None
        self._sock, self._doors = line, doors
        self._heard: dict[str, list[Callable[[bytes], None]]] = {}
        self._answers: dict[str, Callable[[bytes, Reply], None]] = {}
        self._parts: dict[str, Callable[[], Iterator[bytes]]] = {}
        self._questions: dict[int, Question] = {}
        self._numbers = itertools.count(1)
        self._line: Line | None = None

    async def __aenter__(self) -> Link:
        self._doors.settimeout(DOOR_PATIENCE)
        self._line = Line(self._take, self._lost)
        await self._line.open(self._sock)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.close()
        self._doors.close()

    def attach_base(self, sock: socket.socket, preload: tuple[str, ...]) -> None:
        """Hand the supervisor the end of a socketpair that the base zygote for this list is to have; OSError."""
        socket.send_fds(self._doors, [msgspec.json.encode(preload)], [sock.fileno()])

    def say(self, word: str, payload: bytes = b"") -> None:
        """Tell the supervisor itself something."""
        self._send(Frame("word", word, payload))

    def publish(self, topic: str, payload: bytes) -> None:
        """Tell every sibling, in order, as far as they can take it."""
        self._send(Frame("news", topic, payload))

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Have `heard` called with what siblings publish from now on."""
        self._heard.setdefault(topic, []).append(heard)

    def answer(self, topic: str, say: Callable[[], bytes]) -> None:
        """Have `say` called when a sibling asks."""
        self.answer_later(topic, lambda _, reply: reply(say()))

    def answer_later(self, topic: str, take: Callable[[bytes, Reply], None]) -> None:
        """Have `take` called when a sibling asks, with what it asks; it is to call the second argument, once."""
        self._answers[topic] = take

    def answer_in_parts(self, topic: str, say: Callable[[], Iterator[bytes]]) -> None:
        """Have `say` called when a sibling asks; each part of its answer is made in a turn of the loop of its own."""
        self._parts[topic] = say

    async def gather(self, topic: str, timeout: float, payload: bytes = b"") -> list[bytes]:
        """What each sibling answers, in its parts; those that do not within the timeout are left out."""
        number = next(self._numbers)
        question = self._questions[number] = Question()
        try:
            if self._send(Frame("question", topic, payload, number)):
                with anyio.move_on_after(timeout):
                    await question.done.wait()
        finally:
            del self._questions[number]
        return question.answers

    def _send(self, frame: Frame) -> bool:
        return self._line is not None and self._line.send(frame)

    def _take(self, frame: Frame) -> None:
        if frame.topic == ASK and frame.kind == "word":
            self.say(HERE)
        elif frame.kind == "word":
            self.on_word(frame.topic)
        elif frame.kind == "news":
            for heard in self._heard.get(frame.topic, ()):
                heard(frame.payload or b"")
        elif frame.kind == "question":
            self._reply(frame)
        elif question := self._questions.get(frame.number):
            if frame.kind == "done":
                question.done.set()
            elif frame.payload is not None:
                question.answers.append(frame.payload)

    def _reply(self, question: Frame) -> None:
        def reply(payload: bytes | None) -> None:
            self._send(Frame("answer", question.topic, payload, question.number, question.asker))

        say, take = self._parts.get(question.topic), self._answers.get(question.topic)
        try:
            if say is not None:
                asyncio.get_running_loop().call_soon(self._tell_parts, question, say())
            elif take is not None:
                take(question.payload or b"", reply)
            else:
                reply(None)
        except BaseException:  # whoever asks is not to wait for it
            reply(None)
            raise

    def _tell_parts(self, question: Frame, parts: Iterator[bytes]) -> None:
        """The next one; behind the last one, or where it cannot be made, that there are no more."""
        part = None
        try:
            part = next(parts, None)
        finally:
            kind: Kind = "answer" if part is None else "part"
            self._send(Frame(kind, question.topic, part, question.number, question.asker))
        if part is not None:
            asyncio.get_running_loop().call_soon(self._tell_parts, question, parts)

    def _lost(self) -> None:
        for question in self._questions.values():
            question.done.set()
        self.on_word("lost")


class Relay:
    """The supervisor's end of all lines: passes on what members tell and ask each other.

    `on_word` is told what one of them says to the supervisor: its number, the word, and what goes with it.
    """

    def __init__(self, on_word: Callable[[int, str, bytes], None]) -> None:
        self._on_word = on_word
        self._lines: dict[int, Line] = {}
        self._open: dict[tuple[int, int], set[int]] = {}  # asker and question: who has still to answer

    async def join(self, member: int, sock: socket.socket) -> None:
        """A member is there from now on, until its end of the line closes."""
        line = Line(lambda frame: self._take(member, frame), lambda: self._leave(member))
        self._lines[member] = line
        await line.open(sock)

    def say(self, member: int, word: str) -> None:
        """Tell one member something."""
        if line := self._lines.get(member):
            line.send(Frame("word", word))

    def close(self) -> None:
        """Hang up."""
        for line in self._lines.values():
            line.close()

    def _take(self, member: int, frame: Frame) -> None:
        if frame.kind == "word":
            self._on_word(member, frame.topic, frame.payload or b"")
        elif frame.kind == "news":
            self._pass_on(member, frame)
        elif frame.kind == "question":
            self._ask(member, msgspec.structs.replace(frame, asker=member))
        elif frame.kind in ("answer", "part"):
            if frame.payload is not None and (line := self._lines.get(frame.asker)):
                line.send(frame)
            if frame.kind == "answer":
                self._answered((frame.asker, frame.number), member)

    def _pass_on(self, member: int, frame: Frame) -> set[int]:
        """To all others; who they are."""
        return {other for other, line in self._lines.items() if other != member and line.send(frame)}

    def _ask(self, member: int, frame: Frame) -> None:
        stale = [key for key in self._open if key[0] == member][: -OPEN_QUESTIONS or None]
        for key in stale:
            del self._open[key]
        key = member, frame.number
        self._open[key] = self._pass_on(member, frame)
        self._answered(key, member)

    def _answered(self, key: tuple[int, int], member: int) -> None:
        """One less to wait for."""
        missing = self._open.get(key)
        if missing is None:
            return
        missing.discard(member)
        if not missing:
            del self._open[key]
            if line := self._lines.get(key[0]):
                line.send(Frame("done", "", number=key[1]))

    def _leave(self, member: int) -> None:
        self._lines.pop(member, None)
        for key in [key for key in self._open if key[0] == member]:
            del self._open[key]
        for key in list(self._open):
            self._answered(key, member)
