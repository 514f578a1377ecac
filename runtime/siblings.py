"""What host processes that serve the same tell each other, besides what they count: commits, written files, states.

Made by `host.py` where it is given a link. Each is the others' bell of the journal.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from .background import Background
from .link import Link, Reply
from .status import FunctionStatus
from .tasks import Tasks
from .training import Training

JOURNAL = "journal"  # something was committed
WRITTEN = "written"  # a question: to take up a file of a trained function
TAUGHT = "taught"  # a question: to read anew what a function was taught
NOTE = "note"  # a question: to note the invocations that wait to be samples
STATES = "states"  # a question: how these functions do
PATIENCE = 2.0  # seconds for them to do so

_decode_ids = msgspec.msgpack.Decoder(list[int]).decode
_decode_states = msgspec.msgpack.Decoder(list[FunctionStatus]).decode


class Siblings:
    """The other processes, as one of them sees them."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def listen(
        self,
        tasks: Tasks,
        take_up: Callable[[Path], Awaitable[None]],
        states: Callable[[Collection[int]], Sequence[FunctionStatus]],
        training: Training,
        background: Background | None,
    ) -> None:
        """Do from now on what they tell, tell them how functions do, and have them hear of what is taught here."""
        self._do(WRITTEN, lambda payload: take_up(Path(os.fsdecode(payload))), tasks)
        self._do(NOTE, lambda _: training.captures.flush(), tasks)
        self.answer(TAUGHT, partial(_outdated, training))
        self.answer(STATES, lambda payload: msgspec.msgpack.encode(states(set(_decode_ids(payload)))))
        training.lessons.tell = self._have_read
        training.captures.tell = self._have_noted
        if background is not None:
            self._link.subscribe(JOURNAL, background.heard)

    def ring(self, payload: bytes) -> None:
        """Tell them of a commit."""
        self._link.publish(JOURNAL, payload)

    async def states(self, ids: Sequence[int]) -> Mapping[int, Sequence[FunctionStatus]]:
        """How these functions do with those of them that have called any, by the function's number."""
        found: dict[int, list[FunctionStatus]] = defaultdict(list)
        for payload in await self.ask(STATES, msgspec.msgpack.encode(ids)):
            for state in _decode_states(payload):
                found[state.id].append(state)
        return found

    async def ask(self, topic: str, payload: bytes) -> list[bytes]:
        """What they answer to this; of one that is too slow, nothing."""
        return await self._link.gather(topic, PATIENCE, payload)

    def answer(self, topic: str, say: Callable[[bytes], bytes]) -> None:
        """Have `say` called when one of them asks."""
        self._link.answer_later(topic, lambda payload, reply: reply(say(payload)))

    async def have_written(self, path: Path) -> None:
        """Have them take up this file; when this returns they have, unless one is too slow."""
        await self.ask(WRITTEN, bytes(path))

    async def _have_read(self, number: int) -> None:
        await self.ask(TAUGHT, str(number).encode())

    async def _have_noted(self) -> None:
        await self.ask(NOTE, b"")

    def _do(self, topic: str, work: Callable[[bytes], Awaitable[None]], tasks: Tasks) -> None:
        """Have this done when one of them asks, and answer when it is done."""

        async def done(payload: bytes, reply: Reply) -> None:
            try:
                await work(payload)
            finally:  # whoever asks is not to wait for what has failed
                reply(b"")

        self._link.answer_later(topic, lambda payload, reply: tasks.start_soon(done, payload, reply))


def _outdated(training: Training, payload: bytes) -> bytes:
    training.lessons.outdate(int(payload))
    return b""
