"""App without an engine: what it sends for results, errors and pages, message by message."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import errors
from runtime.app import App
from runtime.authority import Authority
from runtime.calls import Call, CallIds, Result
from runtime.config import Config, FunctionSettings, ServerSettings
from runtime.errors import (
    ConfigError,
    FunctionRefused,
    HostError,
    JournalError,
    LoadFailed,
    NotFound,
    Overloaded,
    WorkerDied,
)
from runtime.exchange import Exchange
from runtime.host import Host
from runtime.registry import Function, Registry

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
INVOKE = "/spaces/demo/functions/stock/invoke"
GONE = {"type": "http.disconnect"}
SPECIAL = (FunctionRefused, ConfigError, JournalError, LoadFailed)
ANSWERS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, HostError) and error not in SPECIAL
]

Message = dict[str, Any]


class FakeHost:
    """A host with one function, whose calls end as the test says."""

    def __init__(self) -> None:
        function = Function(
            id=1, space="demo", name="stock", path=Path("/root/functions/demo/stock.py"), line=1, kind="sync",
            takes=("data",), digest="", settings=FunctionSettings(max_body=100),
        )  # fmt: skip
        self.registry = Registry(("demo",), {("demo", "stock"): function})
        self.ids = CallIds()
        root = Path("/root")
        self.config = Config(root, root / "spaces.toml", root / "functions", ServerSettings(), FunctionSettings(), {})
        self.authority = Authority(lambda: self.config, open=lambda: True)
        self.received: Counter[str] = Counter()
        self.debug = False
        self.draining = False
        self.siblings = None
        self.calls: list[Call] = []
        self.left: list[Exchange] = []
        self.outcome: Callable[[Exchange], object] = lambda exchange: exchange.answered(
            Result(200, b"content-type\0text/plain\0x-own\0yes", b"body", True, False, 0.1)
        )

    def lookup(self, space: str, name: str) -> Function:
        return self.registry.lookup(space, name)

    def invoke(self, call: Call) -> Exchange:
        self.calls.append(call)
        exchange = Exchange(call, 10.0, asyncio.get_running_loop(), self.left.append)
        self.outcome(exchange)
        return exchange

    worded, authorize, identify = Host.worded, Host.authorize, Host.identify

    def describe(self, error: LoadFailed) -> dict[str, Any]:
        return {"message": error.message, **error.details, "file": "described"}

    async def statuses(self, functions: Sequence[Function]) -> list[dict[str, str]]:
        return [{"name": function.name} for function in functions]

    async def metrics(self) -> bytes:
        return b"metric 1\n"

    def fail(self, error: BaseException) -> None:
        """Raise this for every call."""

        def outcome(_: Exchange) -> None:
            raise error

        self.outcome = outcome


class Answer:
    """What the application sent for one request."""

    def __init__(self, sent: list[Message], unread: int) -> None:
        self.sent = sent
        self.unread = unread  # messages of the client that nobody took
        starts = [message for message in sent if message["type"] == "http.response.start"]
        assert len(starts) <= 1
        self.status = starts[0]["status"] if starts else None
        self.fields: list[tuple[bytes, bytes]] = list(starts[0]["headers"]) if starts else []
        self.headers = dict(self.fields)
        bodies = [message for message in sent if message["type"] == "http.response.body"]
        self.body = b"".join(message.get("body", b"") for message in bodies)
        self.whole = bool(bodies) and not bodies[-1].get("more_body", False)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class Client:
    """Makes requests of an application around a FakeHost."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.log_calls = False

    async def request(
        self,
        path: str = INVOKE,
        *,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        sends: Sequence[Message] = (),
        **scope: Any,
    ) -> Answer:
        """One request; when all that the client `sends` is taken, it waits for its answer."""
        sent: list[Message] = []
        waiting = list(sends)

        async def receive() -> Message:
            if not waiting:
                await anyio.sleep_forever()
            return waiting.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        app = App(self.host, log_calls=self.log_calls)  # type: ignore[arg-type]
        whole: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": list(headers),
            "client": ("127.0.0.1", 1234),
            "scheme": "http",
            **scope,
        }
        with anyio.fail_after(PATIENCE):
            await app(whole, receive, send)
        return Answer(sent, len(waiting))


@pytest.fixture
def client(anyio_backend: str) -> Client:
    return Client()


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


def with_length(length: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % length)]


# Calls.


async def test_a_result_is_sent_as_it_is(client: Client) -> None:
    """The function's headers first, then ours."""
    answer = await client.request()

    assert (answer.status, answer.body, answer.whole) == (200, b"body", True)
    assert answer.fields[:2] == [(b"content-type", b"text/plain"), (b"x-own", b"yes")]
    assert [name for name, _ in answer.fields[2:]] == [b"date", b"x-invoked", b"x-call-id", b"x-duration-seconds"]
    assert answer.headers[b"x-invoked"] == b"true"
    assert answer.headers[b"x-call-id"] == b"%d" % client.host.calls[0].id
    assert len(answer.sent) == 2


async def test_a_head_request_gets_no_body(client: Client) -> None:
    """Of a result, of a stream, of an error."""
    assert (await client.request(method="HEAD")).body == b""
    client.host.outcome = lambda exchange: exchange.answered(Result(200, b"", b"", False, False, 0.0))
    stream = await client.request(method="HEAD")
    assert (stream.status, stream.body, stream.whole) == (200, b"", True)
    client.host.fail(Overloaded())
    error = await client.request(method="HEAD")
    assert (error.status, error.body, error.whole) == (429, b"", True)
    assert int(error.headers[b"content-length"]) > 0


async def test_a_stream_is_sent_as_it_comes(client: Client) -> None:
    """A message each."""

    def stream(exchange: Exchange) -> None:
        exchange.answered(Result(200, b"", b"", False, False, 0.0))
        exchange.chunk_received(b"one")
        exchange.chunk_received(b"two")
        exchange.ended()

    client.host.outcome = stream
    answer = await client.request()

    assert [message.get("body") for message in answer.sent[1:]] == [b"one", b"two", b""]
    assert answer.whole


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: error.__name__)
async def test_an_error_is_an_envelope_with_its_status(client: Client, error: type[HostError]) -> None:
    """And its code, its message, its details, its headers; and it says that no function made it."""
    client.host.fail(error("why", details={"field": "x"}, headers={"X-Extra": "1"}))
    answer = await client.request()

    assert answer.status == error.status
    assert answer.error == {"status": error.status, "code": error.code, "message": "why", "details": {"field": "x"}}
    assert answer.headers[b"content-type"] == b"application/json"
    assert answer.headers[b"content-length"] == b"%d" % len(answer.body)
    assert answer.headers[b"x-extra"] == b"1"
    assert {b"date", b"x-call-id"} <= answer.headers.keys()
    assert b"x-invoked" not in answer.headers
    assert answer.whole


async def test_a_refusal_has_the_workers_status_and_code(client: Client) -> None:
    """As the function's process put it."""
    client.host.outcome = lambda exchange: exchange.failed(FunctionRefused(415, "unsupported_encoding", "no", {}))
    answer = await client.request()

    assert answer.error == {"status": 415, "code": "unsupported_encoding", "message": "no"}


async def test_who_should_come_again_is_told_when(client: Client) -> None:
    """With any 503 and 429; an error's own header goes before."""
    for error in (errors.StartFailed(), Overloaded()):
        client.host.fail(error)
        assert (await client.request()).headers[b"retry-after"] == b"1"
    client.host.fail(errors.Draining(headers={"Retry-After": "9"}))
    assert (await client.request()).headers[b"retry-after"] == b"9"
    client.host.fail(WorkerDied())
    assert b"retry-after" not in (await client.request()).headers


@pytest.mark.parametrize("debug", [False, True])
async def test_a_function_that_cannot_be_loaded_is_described(client: Client, debug: bool) -> None:
    """As its status would; with a traceback only where errors are to be seen."""
    client.host.debug = debug
    client.host.fail(LoadFailed("no module", details={"file": "/root/x.py", "line": 3, "traceback": "frames"}))
    error = (await client.request()).error

    assert (error["status"], error["code"]) == (503, "load_failed")
    assert error["message"] == "the function cannot be loaded: no module"
    assert error["details"]["file"] == "described"
    assert error["details"]["line"] == 3
    assert ("traceback" in error["details"]) is debug


async def test_a_bug_of_ours_is_a_500_that_tells_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback."""
    client.host.fail(ZeroDivisionError("secret"))
    answer = await client.request()

    assert answer.error == {
        "status": 500,
        "code": "internal_error",
        "message": "Something in the host went wrong.",
    }
    assert b"secret" not in answer.body
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("error", [WorkerDied("killed"), ZeroDivisionError("bug")])
async def test_after_the_head_an_answer_is_cut(
    client: Client, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no second status and no end; the log says why."""

    def stream(exchange: Exchange) -> None:
        exchange.answered(Result(200, b"", b"", False, False, 0.0))
        exchange.chunk_received(b"one")
        exchange.failed(error)  # type: ignore[arg-type]

    error.status = 502  # type: ignore[attr-defined]
    client.host.outcome = stream
    answer = await client.request()

    assert (answer.status, answer.body, answer.whole) == (200, b"one", False)
    assert [vars(record)["call_id"].encode() for record in caplog.records] == [answer.headers[b"x-call-id"]]


async def test_a_page_that_fails_after_its_head_is_cut(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any answer."""

    async def fail(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise NotFound

    monkeypatch.setattr("starlette.routing.Router.__call__", fail)
    answer = await client.request("/healthz")

    assert (answer.status, answer.whole) == (200, False)


async def test_a_late_result_is_waited_for(client: Client) -> None:
    """While the client stays."""

    def outcome(exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(exchange.is_late))
        loop.call_later(0.01, exchange.answered, Result(200, b"", b"late", True, False, 0.0))

    client.host.outcome = outcome
    answer = await client.request()

    assert (answer.body, answer.whole) == (b"late", True)


async def test_a_late_error_is_sent(client: Client) -> None:
    """It is an error like any other."""

    def outcome(exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(exchange.is_late))
        loop.call_later(0.01, exchange.failed, errors.FunctionTimeout("late"))

    client.host.outcome = outcome

    assert (await client.request()).error["code"] == "timeout"


async def test_a_client_that_leaves_while_it_waits_has_left_the_call(client: Client) -> None:
    """Nothing is sent to it."""

    def outcome(exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(exchange.is_late))

    client.host.outcome = outcome
    answer = await client.request(sends=[GONE])

    assert answer.sent == []
    assert len(client.host.left) == 1


async def test_a_client_that_leaves_a_stream_has_left_the_call(client: Client) -> None:
    """Its end is not waited for."""
    client.host.outcome = lambda exchange: exchange.answered(Result(200, b"", b"", False, False, 0.0))
    answer = await client.request(sends=[GONE])

    assert (answer.status, answer.whole) == (200, False)
    assert len(client.host.left) == 1


async def test_a_client_that_leaves_within_its_request_is_not_called_for(client: Client) -> None:
    """The function never sees a part of a body."""
    answer = await client.request(method="POST", headers=with_length(9), sends=[body(b"part", more=True), GONE])

    assert (answer.sent, client.host.calls) == ([], [])


# Requests that are refused before they are read.


async def test_a_body_that_is_read_is_answered_at_once(client: Client) -> None:
    """In two messages."""
    client.host.fail(Overloaded())
    answer = await client.request(method="POST", headers=with_length(4), sends=[body(b"body")])

    assert [message["type"] for message in answer.sent] == ["http.response.start", "http.response.body"]


async def test_a_client_may_finish_what_it_sends_to_read_why_it_was_refused(client: Client) -> None:
    """The answer is there before the rest is taken in, and its end after."""
    sends = [body(b"x" * 60, more=True), body(b"x" * 60, more=True), body(b"x" * 60)]
    answer = await client.request(method="POST", headers=with_length(180), sends=sends)

    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert (answer.unread, answer.whole) == (0, True)
    assert [message.get("more_body") for message in answer.sent] == [None, True, None]
    assert client.host.calls == []


async def test_a_client_that_goes_on_for_too_long_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that says nothing more."""
    monkeypatch.setattr("runtime.app.LINGER_STEP", 0.01)
    silent = await client.request(method="POST", headers=with_length(180))
    monkeypatch.setattr("runtime.app.LINGER", 0.0)
    endless = await client.request(method="POST", headers=with_length(180), sends=[body(b"x", more=True)] * 1000)

    assert (silent.status, silent.whole) == (413, True)
    assert (endless.status, endless.whole) == (413, True)


async def test_a_client_that_is_gone_is_not_waited_for(client: Client) -> None:
    """There is nobody to read it."""
    assert (await client.request("/nowhere", sends=[GONE])).status == 404


# Ids.


async def test_a_clients_own_id_is_kept(client: Client) -> None:
    """In the answer, and for the function."""
    answer = await client.request(headers=[(b"x-call-id", b"my-id.1")])

    assert answer.headers[b"x-call-id"] == b"my-id.1"
    assert client.host.calls[0].label == "my-id.1"


@pytest.mark.parametrize("path", [INVOKE, "/nowhere", "/healthz", "/spaces", "/spaces/demo/functions/nothing/invoke"])
async def test_every_answer_has_an_id_and_a_date(client: Client, path: str) -> None:
    """The client's own, where there is one; each only once."""
    for headers in ([], [(b"x-call-id", b"mine")]):
        answer = await client.request(path, headers=headers, sends=[body()])
        names = [name for name, _ in answer.fields]

        assert (names.count(b"x-call-id"), names.count(b"date")) == (1, 1)
        assert answer.headers[b"x-call-id"] == b"mine" or (not headers and answer.headers[b"x-call-id"].isdigit())


@pytest.mark.parametrize("label", [b"", b"a b", b"x" * 129, b"\xff", b"a\r\nb"])
async def test_a_malformed_id_is_refused_and_not_repeated(client: Client, label: bytes) -> None:
    """The answer has one of ours."""
    answer = await client.request(headers=[(b"x-call-id", label)], sends=[body()])

    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert answer.headers[b"x-call-id"].isdigit()
    assert client.host.calls == []


# Addresses.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/", "there is nothing at /: what is served is at /spaces"),
        ("/healthz/", "there is nothing at /healthz/"),
        ("/spaces/", "there is nothing at /spaces/"),
        ("/spaces/demo/functions/stock/invoked", "there is nothing at /spaces/demo/functions/stock/invoked"),
        ("/spaces/nowhere/functions", "there is no space `nowhere` here"),
        ("/spaces/nowhere/functions/stock/invoke", "there is no space `nowhere` here"),
        ("/spaces/demo/functions/stok/invoke", "there is no function `stok` in space `demo`"),
        ("/spaces/demo/functions/stok", "there is no function `stok` in space `demo`"),
    ],
)
async def test_what_is_not_there_is_a_404_that_says_what(client: Client, path: str, message: str) -> None:
    """In the envelope of every error."""
    answer = await client.request(path, sends=[body()])

    assert (answer.status, answer.error["message"]) == (404, message)


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/spaces", "/spaces/demo/functions/stock"])
async def test_pages_can_only_be_read(client: Client, path: str) -> None:
    """Other methods are told which there are."""
    answer = await client.request(path, method="POST", sends=[body()])

    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers[b"allow"] == b"GET, HEAD"


async def test_a_method_that_no_route_takes_is_told_all_that_are_taken(client: Client) -> None:
    """Also where each has a route of its own."""
    answer = await client.request("/v1/functions", method="DELETE", sends=[body()])

    assert (answer.status, answer.headers[b"allow"]) == (405, b"GET, HEAD, POST")


async def test_the_address_may_be_whole(client: Client) -> None:
    """As a proxy's clients write it in a request line."""
    path = f"http://example.com{INVOKE}/a%20b"
    await client.request(path)
    page = await client.request("http://example.com/healthz")
    root = await client.request("http://example.com", sends=[body()])

    assert client.host.calls[0].path == b"/a%20b"
    assert page.status == 200
    assert root.error["message"].startswith("there is nothing at /:")
    broken = await client.request("http://[example.com/healthz", sends=[body()])
    assert (broken.status, broken.error["message"]) == (400, "the host in the address is malformed")


async def test_the_pages_of_a_host(client: Client) -> None:
    """Alive, ready, and counted."""
    assert (await client.request("/healthz")).body == b"ok\n"
    assert (await client.request("/readyz")).body == b"ready\n"
    metrics = await client.request("/metrics")
    assert (metrics.body, metrics.headers[b"content-type"]) == (
        b"metric 1\n",
        b"text/plain; version=0.0.4; charset=utf-8",
    )
    assert json.loads((await client.request("/spaces")).body) == {"spaces": [{"name": "demo", "functions": 1}]}
    functions = await client.request("/spaces/demo/functions")
    assert json.loads(functions.body) == {"functions": [{"name": "stock"}]}
    assert json.loads((await client.request("/spaces/demo/functions/stock")).body) == {"name": "stock"}


async def test_a_host_that_drains_is_alive_and_not_ready(client: Client) -> None:
    """A balancer sends it nothing more."""
    client.host.draining = True
    answer = await client.request("/readyz", sends=[body()])

    assert (answer.status, answer.error["code"]) == (503, "draining")
    assert (await client.request("/healthz")).status == 200


# What is no request.


async def test_lifespan_is_answered(client: Client) -> None:
    """Whatever the engine, it may start and stop."""
    sent: list[Message] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(events)

    async def send(message: Message) -> None:
        sent.append(message)

    await App(client.host)({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]

    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_a_websocket_is_closed(client: Client) -> None:
    """There are none here."""
    answer = await client.request(type="websocket")

    assert [message["type"] for message in answer.sent] == ["websocket.close"]


# The line a call.


async def test_a_line_is_logged_for_each_call(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """With method, path, status, time and the id that the client sees."""
    caplog.set_level(logging.INFO)
    client.log_calls = True
    answer = await client.request(method="PUT")
    (record,) = caplog.records
    fields = vars(record)

    assert record.getMessage().startswith(f"PUT {INVOKE} 200 ")
    assert (fields["method"], fields["path"], fields["status"]) == ("PUT", INVOKE, 200)
    assert fields["call_id"].encode() == answer.headers[b"x-call-id"]
    assert fields["seconds"] >= 0


async def test_a_line_is_logged_for_each_page(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """With the id in its answer, although it is no call."""
    caplog.set_level(logging.INFO)
    client.log_calls = True
    answer = await client.request("/healthz")
    (record,) = caplog.records

    assert vars(record)["call_id"].encode() == answer.headers[b"x-call-id"]


async def test_the_line_of_a_call_without_an_answer_says_so(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Its client had left."""
    caplog.set_level(logging.INFO)
    client.log_calls = True
    await client.request(method="POST", headers=with_length(9), sends=[GONE])
    (record,) = caplog.records

    assert "(client left)" in record.getMessage()
    assert vars(record)["status"] == 0


async def test_no_line_is_logged_unless_told(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """In production a proxy does that."""
    caplog.set_level(logging.DEBUG)
    await client.request()

    assert caplog.records == []


@pytest.mark.parametrize("debug", [False, True])
async def test_what_is_wrong_with_the_journal_is_for_those_who_see_the_log(client: Client, debug: bool) -> None:
    """And for who develops: it names files of this machine."""
    client.host.debug = debug
    client.host.fail(JournalError("/srv/.spaces/journal.db is full"))
    error = (await client.request()).error
    assert ("/srv" in error["message"]) is debug
    assert error["code"] == "journal_error"
