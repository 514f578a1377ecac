"""What members of one host tell and ask each other."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
import pytest

from runtime import link as module
from runtime import settings
from runtime.link import Link, Relay, Reply
from runtime.share import Share

pytestmark = pytest.mark.anyio

FOREVER = 20.0


class Family:
    """A relay with links to it, as a supervisor and its members have them."""

    def __init__(self) -> None:
        self.words: list[tuple[int, str, bytes]] = []
        self.relay = Relay(lambda *word: self.words.append(word))
        self.links: list[Link] = []
        self.doors: list[socket.socket] = []


@asynccontextmanager
async def family(count: int) -> AsyncIterator[Family]:
    """So many members, whose numbers are 0 and so on."""
    async with AsyncExitStack() as scopes:
        made = Family()
        for number in range(count):
            ours, theirs = socket.socketpair()
            door, their_door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            scopes.enter_context(door)
            made.doors.append(door)
            await made.relay.join(number, ours)
            made.links.append(await scopes.enter_async_context(Link(Share(number, count), theirs, their_door)))
        yield made
        made.relay.close()


async def until(condition: object) -> None:
    """Let the others run until it holds."""
    assert callable(condition)
    with anyio.fail_after(FOREVER):
        while not condition():
            await anyio.sleep(0.001)


async def test_news_reach_every_sibling_in_order() -> None:
    """And not who published them, nor who follows something else."""
    heard: list[list[bytes]] = [[], [], []]
    async with family(3) as all_of_them:
        for link, list_ in zip(all_of_them.links, heard, strict=True):
            link.subscribe("news", list_.append)
            link.subscribe("other", lambda _: pytest.fail("not published"))
        for number in range(100):
            all_of_them.links[1].publish("news", b"%d" % number)
        await until(lambda: len(heard[0]) == len(heard[2]) == 100)

    assert heard == [[b"%d" % number for number in range(100)], [], heard[0]]


async def test_a_question_is_answered_by_every_sibling() -> None:
    """With what they are asked; large answers, too, and none where nobody knows the topic."""
    async with family(3) as all_of_them:
        one, two, three = all_of_them.links
        two.answer("size", lambda: b"2" * 3_000_000)
        three.answer_later("size", lambda payload, reply: reply(payload * 2))

        answers = await one.gather("size", FOREVER, b"x")
        nothing = await one.gather("nobody knows", FOREVER)

    assert sorted(answers) == [b"2" * 3_000_000, b"xx"]
    assert nothing == []


async def test_an_answer_may_come_in_parts() -> None:
    """In order; each is made in a turn of its own, and read in one."""
    turns: list[int] = []
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    def say() -> Iterator[bytes]:
        for number in range(100):
            turns.append(turn)
            yield b"%d" % number

    async with family(3) as all_of_them:
        one, two, three = all_of_them.links
        two.answer_in_parts("many", say)
        three.answer("many", lambda: b"whole")
        count()
        with anyio.fail_after(FOREVER):
            answers = await one.gather("many", 1e6)

    assert [answer for answer in answers if answer != b"whole"] == [b"%d" % number for number in range(100)]
    assert len(answers) == 101
    assert len(set(turns)) == 100


async def test_frames_that_come_at_once_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else has something to do has its turn between them, if they take long; the end comes last."""
    monkeypatch.setattr(module, "TURN", 0.0)
    heard: list[str] = []
    ours, theirs = socket.socketpair()

    def hear(frame: module.Frame) -> None:
        heard.append(frame.topic)
        asyncio.get_running_loop().call_soon(heard.append, "other")

    line = module.Line(hear, lambda: heard.append("end"))
    with theirs:
        encode = msgspec.msgpack.encode
        frames = [encode(module.Frame("news", topic)) for topic in ("a", "b", "c")]
        theirs.send(b"".join(len(frame).to_bytes(module.LENGTH, "big") + frame for frame in frames))
        theirs.shutdown(socket.SHUT_WR)
        await line.open(ours)
        await until(lambda: "end" in heard)

    assert heard == ["a", "other", "b", "other", "c", "other", "end"]


async def test_who_is_alone_need_not_wait() -> None:
    """There is nobody to answer."""
    async with family(1) as all_of_them:
        with anyio.fail_after(FOREVER):
            answers = await all_of_them.links[0].gather("anything", 1e6)

    assert answers == []


async def test_who_does_not_answer_in_time_is_left_out() -> None:
    """The others' answers are there; what comes later is nobody's."""
    late: list[Reply] = []
    async with family(3) as all_of_them:
        one, two, three = all_of_them.links
        two.answer("question", lambda: b"two")
        three.answer_later("question", lambda _, reply: late.append(reply))
        answers = await one.gather("question", 0.5)
        late[0](b"too late")
        three.answer("question", lambda: b"three")
        again = await one.gather("question", FOREVER)

    assert answers == [b"two"]
    assert sorted(again) == [b"three", b"two"]


async def test_who_ends_is_not_waited_for() -> None:
    """Before the question or in the middle of it."""
    asked = anyio.Event()
    answers: list[list[bytes]] = []
    async with family(3) as all_of_them, anyio.create_task_group() as tasks:
        one, two, three = all_of_them.links
        two.answer("question", lambda: b"two")
        three.answer_later("question", lambda *_: asked.set())

        async def ask() -> None:
            answers.append(await one.gather("question", 1e6))

        tasks.start_soon(ask)
        await asked.wait()
        await three.__aexit__()
        await until(lambda: answers)
        await ask()

    assert answers == [[b"two"], [b"two"]]


async def test_a_stuck_sibling_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot take is dropped, and the others hear everything."""
    monkeypatch.setattr(module, "BUFFERED", 100_000)
    heard: list[bytes] = []
    async with family(2) as all_of_them:
        stuck, _unread = socket.socketpair()
        with _unread:
            await all_of_them.relay.join(9, stuck)
            all_of_them.links[1].subscribe("news", heard.append)
            for number in range(200):
                all_of_them.links[0].publish("news", b"%d" % number * 10_000)
                await until(lambda number=number: len(heard) == number + 1)
            buffered = all_of_them.relay._lines[9]._transport.get_write_buffer_size()  # type: ignore[union-attr]

    assert len(heard) == 200
    assert buffered < 200_000


async def test_many_open_questions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling that never answers costs no memory without end."""
    monkeypatch.setattr(module, "OPEN_QUESTIONS", 3)
    async with family(2) as all_of_them:
        one, two = all_of_them.links
        two.answer_later("never", lambda *_: None)
        for _ in range(10):
            await one.gather("never", 0.01)
        two.answer("soon", lambda: b"now")
        answers = await one.gather("soon", FOREVER)
        held = len(all_of_them.relay._open)

    assert answers == [b"now"]
    assert held <= 3


async def test_words_are_between_a_member_and_the_supervisor() -> None:
    """Both ways; no sibling hears them."""
    told: list[str] = []
    async with family(2) as all_of_them:
        all_of_them.links[0].on_word = told.append
        all_of_them.links[1].on_word = lambda word: pytest.fail(word)
        all_of_them.links[0].say("ready", b"3")
        all_of_them.relay.say(0, "end")
        all_of_them.relay.say(7, "nobody has this number")
        await until(lambda: told and all_of_them.words)
        all_of_them.links[1].on_word = told.append

    assert all_of_them.words == [(0, "ready", b"3")]
    assert told == ["end"]


async def test_a_member_hears_of_the_supervisors_end() -> None:
    """And who asks then is not kept waiting."""
    told: list[str] = []
    async with family(2) as all_of_them:
        all_of_them.links[1].answer_later("never", lambda *_: None)
        all_of_them.links[0].on_word = told.append
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_of_them.links[0].gather, "never", 1e6)
            await anyio.lowlevel.checkpoint()
            all_of_them.relay.close()
        await until(lambda: told)
        answers = await all_of_them.links[0].gather("never", 1e6)

    assert told == ["lost"]
    assert answers == []


async def test_what_a_subscriber_raises_ends_nothing() -> None:
    """The event loop tells of it, and the next news are heard."""
    heard: list[bytes] = []
    mishaps: list[BaseException] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: mishaps.append(context["exception"]))

    def hear(payload: bytes) -> None:
        heard.append(payload)
        if payload == b"bad":
            raise ValueError("a mistake of ours")

    async with family(2) as all_of_them:
        all_of_them.links[1].subscribe("news", hear)
        for payload in (b"bad", b"good"):
            all_of_them.links[0].publish("news", payload)
        await until(lambda: len(heard) == 2)
    loop.set_exception_handler(handler)

    assert [str(mishap) for mishap in mishaps] == ["a mistake of ours"]


async def test_who_fails_to_answer_is_not_waited_for() -> None:
    """The event loop tells of it."""
    mishaps: list[BaseException] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: mishaps.append(context["exception"]))
    async with family(2) as all_of_them:
        one, two = all_of_them.links
        two.answer("question", lambda: str(1 // 0).encode())
        with anyio.fail_after(FOREVER):
            answers = await one.gather("question", 1e6)
    loop.set_exception_handler(handler)

    assert answers == []
    assert [type(mishap) for mishap in mishaps] == [ZeroDivisionError]


async def test_a_member_tells_its_supervisor_that_it_is_there() -> None:
    """Whatever else it does with words."""
    async with family(1) as all_of_them:
        all_of_them.links[0].on_word = lambda word: pytest.fail(word)
        all_of_them.relay.say(0, module.ASK)
        await until(lambda: all_of_them.words)
        all_of_them.links[0].on_word = lambda word: None

    assert all_of_them.words == [(0, module.HERE, b"")]


async def test_the_longest_list_fits() -> None:
    """Whatever may stand in `preload` can be asked for."""
    name = "\U00020000" * settings._LONGEST_MODULE  # four bytes each
    async with family(1) as all_of_them:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            all_of_them.links[0].attach_base(theirs, (name,) * settings._MOST_MODULES)
            data, [handle], *_ = socket.recv_fds(all_of_them.doors[0], module.PRELOAD_SIZE, 1)
        os.close(handle)

    assert json.loads(data) == [name] * settings._MOST_MODULES


async def test_a_socket_is_handed_over_with_its_list() -> None:
    """The base zygote's end; ours stays open until we close it."""
    async with family(1) as all_of_them:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            all_of_them.links[0].attach_base(theirs, ("numpy", "pandas"))
            data, handles, *_ = socket.recv_fds(all_of_them.doors[0], 1000, 1)
            assert theirs.fileno() >= 0
        os.close(handles[0])

    assert data == b'["numpy","pandas"]'
    assert len(handles) == 1


async def test_whether_a_member_is_there_waits_for_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many came before the question, and however long each takes."""
    monkeypatch.setattr(module, "TURN", 0.0)
    heard: list[bytes] = []
    async with family(1) as all_of_them:
        link = all_of_them.links[0]
        link.subscribe("news", heard.append)
        line = all_of_them.relay._lines[0]
        for _ in range(1000):
            line.send(module.Frame("news", "news", b"x"))
        all_of_them.relay.say(0, module.ASK)
        await until(lambda: all_of_them.words)
        before = len(heard)
        await until(lambda: len(heard) == 1000)

    assert all_of_them.words == [(0, module.HERE, b"")]
    assert before < 500


@pytest.mark.parametrize(("name", "most"), [("WAITING", 10), ("BUFFERED", 1000)])
async def test_news_that_come_faster_than_they_are_heard_are_dropped(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there is no room for; what else is said is not."""
    monkeypatch.setattr(module, "TURN", 0.0)
    monkeypatch.setattr(module, name, most)
    heard: list[str] = []
    ours, theirs = socket.socketpair()
    line = module.Line(lambda frame: heard.append(frame.topic), lambda: heard.append("end"))
    frames = [module.Frame("news", "news", b"x" * 90)] * 100 + [module.Frame("word", "word")]
    encoded = list(map(msgspec.msgpack.encode, frames))
    with theirs:
        theirs.send(b"".join(len(frame).to_bytes(module.LENGTH, "big") + frame for frame in encoded))
        theirs.shutdown(socket.SHUT_WR)
        await line.open(ours)
        await until(lambda: "end" in heard)

    assert 9 <= heard.count("news") <= 11
    assert heard[-2:] == ["word", "end"]


async def test_news_are_heard_again_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard takes none."""
    monkeypatch.setattr(module, "WAITING", 2)
    monkeypatch.setattr(module, "BUFFERED", 200)
    heard: list[bytes] = []
    async with family(2) as all_of_them:
        one, two = all_of_them.links
        two.subscribe("news", heard.append)
        for number in range(20):
            one.publish("news", b"x" * 100)
            await until(lambda number=number: len(heard) == number + 1)

    assert len(heard) == 20


async def test_who_fails_at_a_later_part_is_not_waited_for() -> None:
    """The parts before it are there; the event loop tells of it, once."""
    mishaps: list[BaseException] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: mishaps.append(context["exception"]))

    def say() -> Iterator[bytes]:
        yield b"part"
        raise ValueError("a mistake of ours")

    async with family(2) as all_of_them:
        one, two = all_of_them.links
        two.answer_in_parts("question", say)
        with anyio.fail_after(FOREVER):
            answers = await one.gather("question", 1e6)
    loop.set_exception_handler(handler)

    assert answers == [b"part"]
    assert [str(mishap) for mishap in mishaps] == ["a mistake of ours"]


async def test_that_an_answer_is_over_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where parts of it were: whoever asks is not to wait for more."""
    monkeypatch.setattr(module, "BUFFERED", -1)
    async with family(2) as all_of_them:
        two = all_of_them.links[1]
        sent = two._line.send(module.Frame("answer", "question", None, 1, 0))  # type: ignore[union-attr]
        done = all_of_them.relay._lines[0].send(module.Frame("done", "", number=1))

    assert sent
    assert done
