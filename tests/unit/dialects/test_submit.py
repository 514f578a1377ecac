"""Submit: what is refused before 202, and what the journal is given of what is not."""

from __future__ import annotations

import time

import pytest

from runtime.dialects.spaces import submit
from runtime.errors import Draining, JournalError, Overloaded
from tests.unit.dialects.standin import AT, SUBMIT, edge

pytestmark = pytest.mark.anyio


async def test_a_submitted_call_is_the_request_as_it_came() -> None:
    """Path, query, headers and body; those headers too that say what its caller wants besides."""
    async with edge() as site:
        headers = {"X-Own": "1", "X-Callback-Url": "http://a.example/cb?k=1&j=2", "Cookie": "a=b"}
        answer = await site.client.post(f"{SUBMIT}/a%20b//c/?x=1&x=2", content=b"body", headers=headers)
        call = site.last.call
        fields = dict(zip(call.headers.split(b"\0")[::2], call.headers.split(b"\0")[1::2], strict=True))

    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["content-length"] == "0"
    assert answer.headers["x-call-id"] == str(call.id) == call.label
    assert answer.headers["location"] == f"{AT}/calls/{call.id}"
    assert "x-invoked" not in answer.headers
    assert "date" in answer.headers
    assert (call.space, call.name, call.method) == ("demo", "work", b"POST")
    assert (call.path, call.query, b"".join(call.body)) == (b"/a%20b//c/", b"x=1&x=2", b"body")
    assert fields[b"x-own"] == b"1"
    assert fields[b"cookie"] == b"a=b"
    assert fields[b"x-callback-url"] == b"http://a.example/cb?k=1&j=2"
    assert fields[b"x-call-id"] == str(call.id).encode()
    assert b"connection" not in fields


async def test_nothing_is_asked_for_by_default() -> None:
    """Now, once, without a callback, in order."""
    async with edge() as site:
        await site.accepted()
        submission = site.last

    assert (submission.trigger, submission.priority) == ("http", 0)
    assert (submission.callback_url, submission.idempotency_key, submission.run_at) == (None, None, None)


async def test_the_callers_own_id_is_its_label() -> None:
    """X-Call-Id says it again; the address has the number."""
    async with edge() as site:
        answer = await site.client.post(SUBMIT, headers={"X-Call-Id": "order-7"})
        call = site.last.call

    assert call.label == "order-7"
    assert answer.headers["x-call-id"] == "order-7"
    assert answer.headers["location"] == f"{AT}/calls/{call.id}"


async def test_wishes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callback, key, priority, and a time in any of its forms."""
    monkeypatch.setattr(submit, "FARTHEST", 1e9)
    async with edge() as site:
        await site.accepted(
            **{"X-Callback-Url": "https://a.example:8443/cb?k=1#part", "Idempotency-Key": "k-1", "X-Priority": "-5"}
        )
        first = site.last
        delays = []
        for text in ("90", "1.5m", "90s", "0"):
            now = time.time()
            await site.accepted(**{"X-Delay": text})
            delays.append(round(site.last.run_at - now))  # type: ignore[operator]
        moments = []
        for text in ("1800000000", "1800000000.5", "2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00"):
            await site.accepted(**{"X-Run-At": text})
            moments.append(site.last.run_at)

    assert first.callback_url == "https://a.example:8443/cb?k=1"
    assert (first.idempotency_key, first.priority) == ("k-1", -5)
    assert delays == [90, 90, 90, 0]
    assert moments == [1_800_000_000.0, 1_800_000_000.5, 1_800_000_000.0, 1_800_000_000.0]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Callback-Url", "/relative"),
        ("X-Callback-Url", "ftp://a.example/"),
        ("X-Callback-Url", "http://"),
        ("X-Callback-Url", "http://user:pass@a.example/"),
        ("X-Callback-Url", "http://a.example/a b"),
        ("X-Callback-Url", "http://a.example:0/"),
        ("X-Callback-Url", "http://a.example:99999/"),
        ("X-Callback-Url", "http://a.example/" + "x" * 2048),
        ("X-Callback-Url", ""),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "a b"),
        ("Idempotency-Key", "x" * 256),
        ("X-Delay", "soon"),
        ("X-Delay", "-1"),
        ("X-Delay", "9999h"),
        ("X-Run-At", "tomorrow"),
        ("X-Run-At", "2027-01-15T08:00:00"),
        ("X-Run-At", "2999-01-15T08:00:00Z"),
        ("X-Run-At", "9999-12-31T23:59:59-14:00"),
        ("X-Priority", "101"),
        ("X-Priority", "high"),
        ("X-Priority", "1.5"),
        ("X-Call-Id", "with space"),
    ],
)
async def test_a_malformed_wish_is_refused(header: str, value: str) -> None:
    """With 400, the header's name in its message, and nothing recorded."""
    async with edge() as site:
        answer = await site.client.post(SUBMIT, headers={header: value})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_request"
    assert header in answer.json()["error"]["message"]
    assert site.journal.submissions == {}


@pytest.mark.parametrize("header", ["X-Callback-Url", "Idempotency-Key", "X-Delay", "X-Run-At", "X-Priority"])
async def test_a_wish_may_be_there_once(header: str) -> None:
    """Two, and nobody knows which is meant."""
    async with edge() as site:
        answer = await site.client.post(SUBMIT, headers=[(header, "http://a.example/"), (header, "http://b.example/")])

    assert answer.status_code == 400
    assert f"{header} is there twice" in answer.text


async def test_delay_and_time_exclude_each_other() -> None:
    """Each says when."""
    async with edge() as site:
        answer = await site.client.post(SUBMIT, headers={"X-Delay": "1", "X-Run-At": "1800000000"})

    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("url", "hosts", "loopback", "status"),
    [
        ("http://a.example/", (), False, 202),
        ("http://127.0.0.1:9/", (), False, 400),
        ("http://127.0.0.1:9/", (), True, 202),
        ("http://[::1]/", (), True, 202),
        ("http://10.0.0.1/", (), True, 400),
        ("http://169.254.169.254/latest", (), True, 400),
        ("http://a.example/", ("b.example",), False, 400),
        ("http://a.b.example/", ("*.b.example",), False, 202),
        ("https://b.example/", ("b.example:443",), False, 202),
        ("http://b.example/", ("b.example:443",), False, 400),
        ("http://10.0.0.1/", ("10.0.0.0/8",), False, 202),
        ("http://localhost:9/", (), False, 202),
    ],
)
async def test_a_callback_that_could_never_be_delivered_is_refused(
    url: str, hosts: tuple[str, ...], loopback: bool, status: int
) -> None:
    """By its host and its address; where a name leads is looked at later."""
    async with edge(callback_hosts=hosts) as site:
        site.host.bound_to_loopback = loopback
        answer = await site.client.post(SUBMIT, headers={"X-Callback-Url": url})

    assert answer.status_code == status, answer.text


async def test_a_callback_can_be_required() -> None:
    """By the function's `require_callback`."""
    async with edge(require_callback=True) as site:
        without = await site.client.post(SUBMIT)
        await site.accepted(**{"X-Callback-Url": "http://a.example/"})

    assert without.status_code == 400
    assert "require_callback" in without.text


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_only_post_submits(method: str) -> None:
    """Any other method is answered 405."""
    async with edge() as site:
        answer = await site.client.request(method, SUBMIT)

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_function_without_post_takes_no_submissions() -> None:
    """`methods` holds here as well; there is then no method to allow."""
    async with edge(methods=frozenset({"GET"})) as site:
        answer = await site.client.post(SUBMIT)
        get = await site.client.get(SUBMIT)

    assert (answer.status_code, answer.headers["allow"]) == (405, "")
    assert "`demo/work` only GET" in answer.text
    assert get.status_code == 405


async def test_what_does_not_fit_is_refused() -> None:
    """Unknown functions, deep and malformed paths, large bodies and heads; never with 202."""
    async with edge(max_path_levels=1, async_max_body=10) as site:
        refused = {
            "function": await site.client.post("/spaces/demo/functions/nosuch/async-invoke"),
            "space": await site.client.post("/spaces/nosuch/functions/work/async-invoke"),
            "deep": await site.client.post(f"{SUBMIT}/1/2"),
            "reserved": await site.client.post(f"{SUBMIT}/__/health"),
            "large": await site.client.post(SUBMIT, content=b"x" * 11),
            "head": await site.client.post(SUBMIT, headers={"X-Long": "x" * 90_000}),
        }
        fits = await site.client.post(f"{SUBMIT}/1", content=b"x" * 10)

    statuses = {name: answer.status_code for name, answer in refused.items()}
    assert statuses == {"function": 404, "space": 404, "deep": 404, "reserved": 404, "large": 413, "head": 431}
    assert "async_max_body" in refused["large"].text
    assert fits.status_code == 202
    assert len(site.journal.submissions) == 1


@pytest.mark.parametrize(("error", "status"), [(Overloaded, 429), (Draining, 503), (JournalError, 503)])
async def test_what_the_host_refuses_is_not_accepted(error: type[Exception], status: int) -> None:
    """With the error's status, and when to come again."""
    async with edge() as site:
        site.host.refusal = error()  # type: ignore[assignment]
        answer = await site.client.post(SUBMIT)

    assert answer.status_code == status
    assert answer.headers["retry-after"]


async def test_a_key_gives_the_same_call_again() -> None:
    """With its id and its address, also when the second request has an id of its own; another request is 422."""
    async with edge() as site:
        first = await site.client.post(SUBMIT, content=b"a", headers={"Idempotency-Key": "k", "X-Call-Id": "one"})
        second = await site.client.post(SUBMIT, content=b"a", headers={"Idempotency-Key": "k", "X-Call-Id": "two"})
        other = await site.client.post(SUBMIT, content=b"b", headers={"Idempotency-Key": "k"})

    assert second.status_code == 202
    assert second.headers["location"] == first.headers["location"]
    assert second.headers["x-call-id"] == "one"
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_an_encoded_address_is_the_same_address() -> None:
    """Of space and function."""
    async with edge() as site:
        answer = await site.client.post("/spaces/%64emo/functions/wor%6b/async-invoke")

    assert answer.status_code == 202
