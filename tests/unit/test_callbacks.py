"""Callbacks: what is sent, what becomes of it by the answer, and what is never said of a URL."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from runtime import __version__, addresses, callbacks
from runtime.callbacks import Again, Callbacks, Dead, Delivered, asked_wait, check_url, split_url
from runtime.calls import CallbackState, Delivery, Entry, Outcome, Status
from runtime.errors import BadRequest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "callbacks.md"
PATIENCE = 20.0
NOW = 1_800_000_000.0
OLD = "whsec_" + base64.b64encode(b"old" * 10).decode()
NEW = "whsec_" + base64.b64encode(b"new" * 10).decode()

Headers = list[tuple[str, str]]


class Settings:
    """What callbacks ask of a function's settings."""

    callback_max_wait = 300.0

    def __init__(self, hosts: tuple[str, ...] = (), secrets: tuple[str, ...] = (), attempts: int = 8) -> None:
        self.callback_hosts = hosts
        self.callback_secrets = secrets
        self.callback_attempts = attempts


class Receiver:
    """An HTTP server on loopback that keeps what it got and answers as it is told, the last answer for ever."""

    def __init__(self, *answers: int, headers: Headers | None = None) -> None:
        self.answers = list(answers or (204,))
        self.headers = headers or []
        self.got: list[tuple[bytes, Headers, bytes]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cb?k=1&j=2"

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            connection = h11.Connection(h11.SERVER)
            while await self._one(connection, stream):
                connection.start_next_cycle()

    async def _one(self, connection: h11.Connection, stream: anyio.abc.SocketStream) -> bool:
        target, headers, body = b"", [], b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return False
            elif isinstance(event, h11.Request):
                target = event.target
                headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers.raw_items()]
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        self.got.append((target, headers, body))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = h11.Response(status_code=status, headers=[("content-length", "0"), *self.headers])
        await stream.send(connection.send(answer) + connection.send(h11.EndOfMessage()))
        return True

    def header(self, name: str, at: int = -1) -> str:
        """The one value of a header of a request; "" if there is none."""
        found = [value for each, value in self.got[at][1] if each.lower() == name.lower()]
        assert len(found) <= 1
        return found[0] if found else ""


@asynccontextmanager
async def receiving(*answers: int, headers: Headers | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(*answers, headers=headers)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, receiver.serve)
        receiver.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(PATIENCE):
            yield receiver
        tasks.cancel_scope.cancel()


def delivery(url: str | None, *, attempt: int = 1, outcome: Outcome | None = None, **fields: Any) -> Delivery:
    """An outcome, 200 unless it is given, on its way to a URL."""
    values: dict[str, Any] = dict.fromkeys(Entry.__struct_fields__)
    values |= {
        "id": 4711, "label": "my-label", "space": "demo", "name": "stock", "status": Status.SUCCEEDED,
        "callback": CallbackState.PENDING, "callback_url": url, **fields,
    }  # fmt: skip
    return Delivery(Entry(**values), outcome or answer(), attempt)


def answer(code: int = 200, headers: bytes = b"", body: bytes = b"hello", *, invoked: bool = True) -> Outcome:
    return Outcome(code=code, headers=headers, body=body, invoked=invoked, seconds=1.5)


def joined(*pairs: tuple[str, str]) -> bytes:
    return b"\0".join(part.encode("latin-1") for pair in pairs for part in pair)


def making(**options: Any) -> Callbacks:
    options.setdefault("clock", lambda: NOW)
    return Callbacks(loopback_allowed=lambda: True, **options)


async def send(what: Delivery, settings: Settings | None = None, **options: Any) -> Delivered | Again | Dead:
    async with making(**options) as sender:
        return await sender.deliver(what, settings or Settings())


# What is sent


@pytest.mark.anyio
async def test_what_arrives() -> None:
    """A POST to the URL as it is, with the function's headers and body, and what the host says of the call."""
    async with receiving() as receiver:
        outcome = answer(201, joined(("content-type", "text/plain"), ("x-own", "1"), ("x-own", "2")), b"a\0b\xff")
        end = await send(delivery(receiver.url, attempt=3, outcome=outcome))
    target, headers, body = receiver.got[0]

    assert end == Delivered()
    assert target == b"/cb?k=1&j=2"
    assert body == b"a\0b\xff"
    assert headers == [
        ("Host", f"127.0.0.1:{receiver.port}"),
        ("Content-Length", "4"),
        ("content-type", "text/plain"),
        ("x-own", "1"),
        ("x-own", "2"),
        ("X-Function-Status", "201"),
        ("X-Function-Name", "stock"),
        ("X-Call-Id", "my-label"),
        ("X-Duration-Seconds", "1.500000"),
        ("X-Callback-Attempt", "3"),
        ("User-Agent", f"spaces/{__version__}"),
        ("X-Invoked", "true"),
    ]


@pytest.mark.anyio
async def test_what_the_host_made_does_not_say_that_the_function_was_invoked() -> None:
    """As in an answer: X-Invoked tells the function's own 503 from the host's."""
    async with receiving() as receiver:
        await send(delivery(receiver.url, outcome=answer(503, joined(("x-invoked", "true")), b"{}", invoked=False)))

    assert receiver.header("X-Function-Status") == "503"
    assert receiver.header("X-Invoked") == ""


@pytest.mark.anyio
@pytest.mark.parametrize("name", sorted(callbacks._OURS - {b"x-invoked"}))
async def test_a_function_cannot_speak_for_the_host(name: bytes) -> None:
    """Nor sign, where nothing is signed."""
    async with receiving() as receiver:
        await send(delivery(receiver.url, outcome=answer(headers=joined((name.decode().title(), "forged")))))

    assert receiver.header(name.decode()) != "forged"


@pytest.mark.anyio
async def test_headers_about_the_connection_stay_behind() -> None:
    """And those that Connection names; what is the function's own is kept, whatever it means."""
    left = [(name.decode(), "x") for name in callbacks._DROPPED - {b"connection"}]
    kept = [("authorization", "Bearer t"), ("set-cookie", "a=b"), ("content-encoding", "gzip"), ("x-odd", "\xfc")]
    headers = joined(*left, ("connection", "close, X-Named"), ("x-named", "1"), *kept)
    async with receiving() as receiver:
        end = await send(delivery(receiver.url, outcome=answer(headers=headers)))
    found = dict(receiver.got[0][1])

    assert end == Delivered()
    assert found.items() >= dict(kept).items()
    assert not {name.lower() for name in found} & {"x-named", "connection", "date", "server", "transfer-encoding"}
    assert found["Host"].startswith("127.0.0.1")
    assert found["Content-Length"] == "5"


@pytest.mark.anyio
async def test_an_empty_body_is_sent_as_such() -> None:
    """With its length."""
    async with receiving() as receiver:
        await send(delivery(receiver.url, outcome=answer(204, body=b"")))

    assert receiver.header("Content-Length") == "0"
    assert receiver.got[0][2] == b""


# Signatures


def verify(receiver: Receiver, secret: str) -> None:
    """What a receiver does, with the library of Standard Webhooks."""
    _, headers, body = receiver.got[-1]
    Webhook(secret).verify(body, dict(headers), json_parse=False)


@pytest.mark.anyio
async def test_the_library_of_standard_webhooks_verifies_the_signature() -> None:
    """By the real clock, which it looks at."""
    async with receiving() as receiver, Callbacks(loopback_allowed=lambda: True) as sender:
        outcome = answer(body='{"price": "12 €"}'.encode())
        await sender.deliver(delivery(receiver.url, outcome=outcome), Settings(secrets=(NEW,)))
        verify(receiver, NEW)

        with pytest.raises(WebhookVerificationError):
            verify(receiver, OLD)


@pytest.mark.anyio
async def test_while_secrets_change_a_receiver_may_know_either() -> None:
    """There is a signature by each, that of the first one first."""
    async with receiving() as receiver, Callbacks(loopback_allowed=lambda: True) as sender:
        await sender.deliver(delivery(receiver.url), Settings(secrets=(NEW, OLD)))
        verify(receiver, OLD)
        verify(receiver, NEW)

    assert receiver.header("webhook-signature").count("v1,") == 2


@pytest.mark.anyio
async def test_bytes_are_signed_as_they_are() -> None:
    """By the scheme: an HMAC over id, time and body. The library, which wants text, cannot do it."""
    body = bytes(range(256))
    async with receiving() as receiver:
        await send(delivery(receiver.url, outcome=answer(body=body)), Settings(secrets=(NEW,)))
    head = f"{receiver.header('webhook-id')}.{receiver.header('webhook-timestamp')}."
    expected = base64.b64encode(hmac.new(b"new" * 10, head.encode() + body, hashlib.sha256).digest()).decode()

    assert receiver.header("webhook-signature") == f"v1,{expected}"
    assert receiver.header("webhook-timestamp") == f"{NOW:.0f}"


@pytest.mark.anyio
async def test_each_attempt_has_the_same_id_and_the_time_of_its_own() -> None:
    """A receiver knows by the id that it has seen the message before; two calls of one label differ."""
    clock = NOW
    async with receiving() as receiver, making(clock=lambda: clock) as sender:
        for attempt, id in ((1, 4711), (2, 4711), (1, 4712)):
            clock += 10
            await sender.deliver(delivery(receiver.url, attempt=attempt, id=id), Settings(secrets=(NEW,)))
    ids = [receiver.header("webhook-id", at) for at in range(3)]
    times = [float(receiver.header("webhook-timestamp", at)) - NOW for at in range(3)]

    assert ids[0] == ids[1] != ids[2]
    assert times == [10, 20, 30]


@pytest.mark.anyio
async def test_without_a_secret_nothing_is_signed() -> None:
    """None of the three headers is there."""
    async with receiving() as receiver:
        await send(delivery(receiver.url))

    assert not [name for name, _ in receiver.got[0][1] if name.startswith("webhook-")]


@pytest.mark.anyio
async def test_the_receiver_of_the_docs_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes what is signed, once, and refuses the rest; what is told for binary bodies is right too."""
    receiver, by_hand = (found[1] for found in re.finditer(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
    monkeypatch.setenv("HOOK_SECRET", NEW)
    code: dict[str, Any] = {"__name__": "receiver"}
    exec(receiver + by_hand, code)
    code["Receiver"].log_message = lambda *_: None
    with code["ThreadingHTTPServer"](("127.0.0.1", 0), code["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        async with Callbacks(loopback_allowed=lambda: True) as sender:
            secrets = [(OLD, NEW), (NEW,), (OLD,), ()]
            ends = [await sender.deliver(delivery(url), Settings(secrets=each)) for each in secrets]
        await anyio.to_thread.run_sync(server.shutdown)
        thread.join()
    headers = {name.decode(): value.decode() for name, value in callbacks._signature((OLD, NEW), 1, 1, b"\xff")}

    assert ends == [Delivered(), Delivered(), *[Dead("the receiver answered 401")] * 2]
    assert capsys.readouterr().out.splitlines() == ["200 my-label b'hello'"]
    assert code["is_signed"](NEW, headers, b"\xff")
    assert not code["is_signed"](NEW, headers, b"\xfe")


# What becomes of it


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 202, 204, 205, 206, 299])
async def test_any_2xx_is_delivered(status: int) -> None:
    """Whatever the function itself had answered."""
    async with receiving(status) as receiver:
        end = await send(delivery(receiver.url, outcome=answer(500)))

    assert end == Delivered()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_these_are_tried_again(status: int) -> None:
    """The receiver may be able to take it later."""
    async with receiving(status) as receiver:
        end = await send(delivery(receiver.url), random=lambda: 0.5)

    assert end == Again(NOW + 2.0, f"the receiver answered {status}")


@pytest.mark.anyio
@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 413, 431])
async def test_these_are_not(status: int) -> None:
    """A redirect, or a refusal, would be the same the next time."""
    async with receiving(status, headers=[("location", "/elsewhere"), ("retry-after", "1")]) as receiver:
        end = await send(delivery(receiver.url))

    assert end == Dead(f"the receiver answered {status}")
    assert len(receiver.got) == 1


@pytest.mark.anyio
async def test_the_last_attempt_leaves_a_dead_letter() -> None:
    """What went wrong with it is noted."""
    async with receiving(503) as receiver, making() as sender:
        settings = Settings(attempts=3)
        ends = [await sender.deliver(delivery(receiver.url, attempt=each), settings) for each in (1, 2, 3, 4)]

    assert [type(end) for end in ends] == [Again, Again, Dead, Dead]
    assert ends[2] == Dead("the receiver answered 503; attempt 3 was the last")


@pytest.mark.anyio
async def test_a_refused_address_is_dead_at_once() -> None:
    """It says why."""
    async with receiving() as receiver, Callbacks(loopback_allowed=lambda: False) as sender:
        end = await sender.deliver(delivery(receiver.url), Settings())

    assert end == Dead("127.0.0.1 has a loopback address, and callback_hosts is not set")
    assert receiver.got == []


@pytest.mark.anyio
async def test_callback_hosts_allow_and_refuse() -> None:
    """What they list is allowed on any host, and nothing else then."""
    async with receiving() as receiver, Callbacks(loopback_allowed=lambda: False) as sender:
        allowed = await sender.deliver(delivery(receiver.url), Settings(hosts=("127.0.0.0/8",)))
        refused = await sender.deliver(delivery(receiver.url), Settings(hosts=("hooks.example.com",)))

    assert allowed == Delivered()
    assert refused == Dead("127.0.0.1 is not in callback_hosts")


@pytest.mark.anyio
async def test_whether_loopback_is_allowed_is_asked_each_time() -> None:
    """The host may not be bound yet when this is made."""
    bound = False
    async with receiving() as receiver, Callbacks(loopback_allowed=lambda: bound) as sender:
        before = await sender.deliver(delivery(receiver.url), Settings())
        bound = True
        after = await sender.deliver(delivery(receiver.url), Settings())

    assert isinstance(before, Dead)
    assert after == Delivered()


@pytest.mark.anyio
@pytest.mark.parametrize("url", [None, "", "nonsense", "ftp://h/", "http://u:p@h/", "http://a..b/", "http://1.2/"])
async def test_what_is_no_url_is_dead(url: str | None) -> None:
    """It should not have got so far; it is not repeated."""
    end = await send(delivery(url))

    assert isinstance(end, Dead)
    assert not url or url not in end.error


@pytest.mark.anyio
async def test_a_name_that_cannot_be_resolved_is_tried_again() -> None:
    """The name server may be down."""

    async def fail(host: str, port: int) -> list[str]:
        raise OSError("no name server")

    end = await send(delivery("http://hooks.example.com/cb?k=1"), resolve=fail)

    assert isinstance(end, Again)
    assert end.error == "the name hooks.example.com could not be resolved"


@pytest.mark.anyio
async def test_many_at_once_share_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are connections; each arrives once."""
    monkeypatch.setattr(addresses, "MAX_CONNECTIONS", 20)
    async with receiving() as receiver, making() as sender, anyio.create_task_group() as tasks:
        for number in range(50):
            outcome = answer(body=b"%d" % number)
            tasks.start_soon(sender.deliver, delivery(receiver.url, outcome=outcome), Settings())

    assert sorted(int(body) for _, _, body in receiver.got) == list(range(50))


# When it is tried again


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("attempt", "random", "wait"),
    [(1, 0.0, 1.0), (1, 1.0, 3.0), (2, 1.0, 9.0), (3, 0.5, 14.0), (4, 1.0, 81.0), (7, 1.0, 300.0), (9999, 1.0, 300.0)],
)
async def test_waits_grow_and_are_spread(attempt: int, random: float, wait: float) -> None:
    """Anything between the least wait and a bound that triples, up to five minutes."""
    async with receiving(503) as receiver:
        settings = Settings(attempts=10_000)
        end = await send(delivery(receiver.url, attempt=attempt), settings, random=lambda: random)

    assert end == Again(NOW + wait, "the receiver answered 503")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("120", 120.0),
        (formatdate(NOW + 60, usegmt=True), 60.0),
        (time.asctime(time.gmtime(NOW + 60)), 60.0),
        ("0", 1.0),
        ("soon", 3.0),
    ],
)
async def test_a_receiver_says_when(text: str, wait: float) -> None:
    """In seconds or as a date, in place of the growing wait; what cannot be read says nothing."""
    async with receiving(429, headers=[("retry-after", text)]) as receiver:
        end = await send(delivery(receiver.url), random=lambda: 1.0)

    assert end == Again(NOW + wait, "the receiver answered 429")


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9]{1,20}") | st.datetimes().map(lambda each: each.ctime()))
@example("9" * 5000)
@example("Sun, 06 Nov 99999 08:49:37 GMT")
@example("Sun, 06 Nov 99999999999999999999 08:49:37 GMT")
@example("Sun, 06 Nov 1994 08:49:37 +9999")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_receiver_delays_for_long(text: str) -> None:
    """Whatever it writes: a second at the least, an hour at the most."""
    wait = asked_wait(text, NOW)

    assert wait is None or callbacks.MIN_WAIT <= wait <= callbacks.MAX_RETRY_AFTER


# URLs


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://127.0.0.1:8872/cb?k=1&j=2", "http://127.0.0.1:8872", b"/cb?k=1&j=2"),
        ("https://hooks.example.com", "https://hooks.example.com", b"/"),
        ("https://hooks.example.com?k=%2f&&=", "https://hooks.example.com", b"/?k=%2f&&="),
        ("HTTPS://Hooks.Example.com.:0443/A%2Fb//../c;d@e:f", "https://hooks.example.com:443", b"/A%2Fb//../c;d@e:f"),
        ("http://[::1]:80/", "http://[::1]:80", b"/"),
        ("http://a_b.example:/", "http://a_b.example", b"/"),
        ("http://localhost/?u=http://x@y/", "http://localhost", b"/?u=http://x@y/"),
    ],
)
def test_a_url_is_kept_byte_for_byte(url: str, origin: str, path: bytes) -> None:
    """Its path and query are sent as they came."""
    assert check_url(url) == url
    assert check_url(url.encode()) == url
    assert split_url(url).origin == origin
    assert split_url(url).path == path


def test_the_fragment_is_dropped() -> None:
    """It is the caller's own business."""
    assert check_url("https://h.example/a?b=c#d?e#f") == "https://h.example/a?b=c"


@pytest.mark.parametrize(
    "url",
    [
        b"", b"/cb", b"//h/cb", b"h.example/cb", b"ftp://h/", b"javascript:alert(1)", b"http:", b"http://", b"http:///cb",
        b"http:h/", b"http://?q", b"http://:80/", b"http://u@h/", b"http://u:p@h/", b"http://h:p@/", b"http://h:0/",
        b"http://h:65536/", b"http://h:x/", b"http://h:-1/", b"http://a b/", b"http://h/a b", b"http://h/\r\nX: y",
        b"http://h/\n", b"http://h/\0", b" http://h/", b"http://h/ ", b"http://h\\@evil/", b"http://[::1/", b"http://::1/",
        b"http://[1.2.3.4]/", b"http://[::1%25eth0]/", b"http://[::1]x/", b"http://1.2.3/", b"http://2130706433/",
        b"http://0x7f.1/", b"http://0x7f000001/", b"http://256.1.1.1/", b"http://010.0.0.1/", b"http://a..b/",
        b"http://.a/", b"http://-a/", b"http://h%41/", b"http://" + b"a" * 64 + b".example/", "http://bücher.example/".encode(),
        b"http://h/\xff", b"http://" + b"a." * 130 + b"example/", b"http://h/" + b"a" * 2048, b"http://h/a, http://h/b",
    ],
)  # fmt: skip
def test_a_bad_url_is_refused(url: bytes) -> None:
    """And the refusal does not repeat it: it may hold a secret."""
    with pytest.raises(BadRequest) as caught:
        check_url(url)

    assert caught.value.message.startswith("X-Callback-Url: ")
    assert len(url) < 8 or url.decode("latin-1") not in caught.value.message


NEARLY = st.text("htps:/@[]?#.%\\ 0a\n", max_size=30).map("http://".__add__)


@given(NEARLY | st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_url_or_is_refused(text: str | bytes) -> None:
    """What is accepted can be sent: printable, with a host."""
    try:
        url = check_url(text)
    except BadRequest:
        return
    target = split_url(url)

    assert url.isascii()
    assert url.isprintable()
    assert target.path.startswith(b"/")
    assert url.endswith(target.path.decode().removeprefix("/"))


# What is never said


@pytest.mark.anyio
async def test_neither_path_nor_query_is_logged_or_noted(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever becomes of it, at any level, by us or by a library; the host and the call are named."""
    caplog.set_level(logging.DEBUG)
    async with receiving(204, 503, 404, 302) as receiver, making() as sender:
        url = f"http://127.0.0.1:{receiver.port}/SECRET-path?key=SECRET"
        urls = [url, url, url, url, "http://127.0.0.1:1/SECRET", "http://h:1:2/SECRET"]
        ends = [await sender.deliver(delivery(each), Settings()) for each in urls]
    messages = [record.getMessage() for record in caplog.records if record.name == "spaces.callbacks"]
    all_messages = [record.getMessage() for record in caplog.records]

    assert messages[0] == f"callback of call my-label to http://127.0.0.1:{receiver.port}: delivered"
    assert len(messages) == 5
    assert not [each for each in all_messages if "SECRET" in each]
    assert not [end for end in ends if "SECRET" in repr(end)]


@pytest.mark.anyio
async def test_how_loud_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A dead letter is a warning; deliveries are a matter of course. Call and function are in the record's fields."""
    caplog.set_level(logging.DEBUG, "spaces.callbacks")
    async with receiving(204, 503, 404) as receiver, making() as sender:
        for _ in range(3):
            await sender.deliver(delivery(receiver.url), Settings())
    records = [record for record in caplog.records if record.name == "spaces.callbacks"]

    assert [record.levelno for record in records] == [logging.DEBUG, logging.INFO, logging.WARNING]
    assert {(record.call_id, record.function) for record in records} == {("my-label", "demo/stock")}  # type: ignore[attr-defined]


# The end


@pytest.mark.anyio
async def test_a_cancelled_delivery_leaves_nothing_behind() -> None:
    """It says nothing, since it does not know; the next one works."""
    arrived = anyio.Event()

    async def never(host: str, port: int) -> list[str]:
        arrived.set()
        await anyio.sleep_forever()
        raise AssertionError

    ended = []
    async with making(resolve=never) as sender, anyio.create_task_group() as tasks:

        async def one() -> None:
            ended.append(await sender.deliver(delivery("http://hooks.example.com/"), Settings()))

        tasks.start_soon(one)
        with anyio.fail_after(PATIENCE):
            await arrived.wait()
        tasks.cancel_scope.cancel()

    assert ended == []


@pytest.mark.anyio
async def test_it_can_be_entered_again() -> None:
    """Each time with a client of its own."""
    sender = making()
    async with receiving() as receiver:
        async with sender:
            first = await sender.deliver(delivery(receiver.url), Settings())
        async with sender:
            second = await sender.deliver(delivery(receiver.url), Settings())

    assert first == second == Delivered()
