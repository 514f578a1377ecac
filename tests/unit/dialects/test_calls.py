"""Pages of submitted calls: what they show, what they change, what they refuse."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from runtime.calls import CallbackState, Status
from runtime.dialects.spaces.calls import LONGEST_WAIT
from tests.unit.dialects.standin import AT, SUBMIT, answered, edge

pytestmark = pytest.mark.anyio


async def test_a_call_is_shown_whole() -> None:
    """Times in UTC, the callback's URL without its query, nothing that is not there."""
    async with edge() as site:
        number = await site.accepted(**{"X-Callback-Url": "http://a.example/cb?token=secret", "X-Priority": "3"})
        site.journal.change(
            number, accepted_at=1_800_000_000.25, run_at=1_800_000_000.25, status=Status.RUNNING, attempt=1,
            started_at=1_800_000_001.0, progress=0.4, progress_message="reading",
        )  # fmt: skip
        answer = await site.client.get(f"{AT}/calls/{number}")

    assert answer.status_code == 200
    assert answer.json() == {
        "id": number,
        "label": str(number),
        "space": "demo",
        "function": "work",
        "status": "running",
        "trigger": "http",
        "priority": 3,
        "idempotency_key": None,
        "schedule_id": None,
        "scheduled_time": None,
        "accepted_at": "2027-01-15T08:00:00.250Z",
        "run_at": "2027-01-15T08:00:00.250Z",
        "started_at": "2027-01-15T08:00:01.000Z",
        "finished_at": None,
        "attempt": 1,
        "progress": {"fraction": 0.4, "message": "reading"},
        "result": None,
        "callback": {"state": "waiting", "url": "http://a.example/cb", "attempts": 0, "next_at": None, "error": None},
    }
    assert "secret" not in answer.text


async def test_an_ended_call_says_what_it_answered() -> None:
    """Its status, its kind, its length; of a callback that is to be tried again, when."""
    async with edge() as site:
        number = await site.accepted(**{"X-Callback-Url": "http://a.example/cb"})
        site.journal.end(number, answered(201, b"{}"))
        site.journal.change(
            number, callback=CallbackState.PENDING, callback_attempts=2, callback_at=1_800_000_000.0,
            callback_error="connection refused",
        )  # fmt: skip
        shown = (await site.client.get(f"{AT}/calls/{number}")).json()

    assert shown["result"] == {
        "status": 201, "error": None, "seconds": 0.25, "content_type": "application/json", "length": 2,
    }  # fmt: skip
    assert shown["callback"]["next_at"] == "2027-01-15T08:00:00.000Z"
    assert shown["callback"]["error"] == "connection refused"


@pytest.mark.parametrize("suffix", ["", "/result", "/logs", "/events", "/redeliver", "/rerun"])
async def test_a_call_of_another_function_is_not_there(suffix: str) -> None:
    """Nor is one that never was, nor what is no number."""
    method = "POST" if suffix in ("/redeliver", "/rerun") else "GET"
    async with edge() as site:
        site.host.add("other")
        number = await site.accepted()
        places = [
            f"/spaces/demo/functions/other/calls/{number}",
            f"/spaces/other/functions/work/calls/{number}",
            f"{AT}/calls/{number + 1}",
            f"{AT}/calls/x{number}",
            f"{AT}/calls/{'9' * 40}",
        ]
        answers = [await site.client.request(method, place + suffix) for place in places]

    assert [answer.status_code for answer in answers] == [404] * 5
    assert {answer.json()["error"]["code"] for answer in answers} == {"not_found"}


async def test_a_result_is_the_functions_own_answer() -> None:
    """Its status, headers and body; whose it is, and how long it took."""
    async with edge() as site:
        number = int(
            (await site.client.post(SUBMIT, headers={"X-Call-Id": "mine"})).headers["location"].rpartition("/")[2]
        )
        site.journal.end(number, answered(418, b"short and stout"))
        answer = await site.client.get(f"{AT}/calls/{number}/result")

    assert (answer.status_code, answer.content) == (418, b"short and stout")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-own"] == "yes"
    assert answer.headers["x-invoked"] == "true"
    assert answer.headers["x-duration-seconds"] == "0.250000"
    assert answer.headers.get_list("x-call-id") == ["mine"]


async def test_a_failure_of_the_host_is_a_result() -> None:
    """Its envelope, without X-Invoked."""
    async with edge() as site:
        number = await site.accepted()
        site.journal.end(number, answered(504, b'{"error":{}}', invoked=False, error_code="timeout"))
        answer = await site.client.get(f"{AT}/calls/{number}/result")
        shown = (await site.client.get(f"{AT}/calls/{number}")).json()

    assert (answer.status_code, answer.json()) == (504, {"error": {}})
    assert "x-invoked" not in answer.headers
    assert (shown["status"], shown["result"]["error"]) == ("failed", "timeout")


async def test_there_is_no_result_yet() -> None:
    """202, with its state and when to ask again; of a cancelled call never."""
    async with edge() as site:
        number = await site.accepted()
        waiting = await site.client.get(f"{AT}/calls/{number}/result")
        site.journal.change(number, status=Status.CANCELLED)
        never = await site.client.get(f"{AT}/calls/{number}/result?wait=30")

    assert (waiting.status_code, waiting.json()["status"]) == (202, "queued")
    assert waiting.headers["retry-after"] == "1"
    assert (never.status_code, never.json()["error"]["code"]) == (409, "cancelled")


async def test_a_client_may_wait_for_a_result() -> None:
    """It has it as soon as there is one; news that change nothing do not end the wait."""
    async with edge() as site:
        number = await site.accepted()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(site.client.get(f"{AT}/calls/{number}/result?wait=60s"))
            await anyio.wait_all_tasks_blocked()
            site.journal.change(number, status=Status.RUNNING)
            await anyio.wait_all_tasks_blocked()
            assert not asking.done()
            site.journal.end(number, answered())

    assert asking.result().json() == {"ok": True}


async def test_waiting_ends() -> None:
    """In time, and when the host is about to end."""
    async with edge() as site:
        number = await site.accepted()
        soon = await site.client.get(f"{AT}/calls/{number}/result?wait=50ms")
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(site.client.get(f"{AT}/calls/{number}/result?wait={LONGEST_WAIT * 9}"))
            await anyio.wait_all_tasks_blocked()
            site.host.stopping = True
            site.journal.wake()
        bad = await site.client.get(f"{AT}/calls/{number}/result?wait=long")

    assert (soon.status_code, asking.result().status_code, bad.status_code) == (202, 202, 400)


async def test_logs_are_lines() -> None:
    """As JSON by the page, as text all of them; other events are not among them."""
    async with edge() as site:
        number = await site.accepted()
        for line in range(5):
            site.journal.note(number, "log", {"level": 20 if line else 30, "text": f"line {line}"})
            site.journal.note(number, "progress", {"fraction": 0.1, "message": ""})
        first = (await site.client.get(f"{AT}/calls/{number}/logs?limit=3")).json()
        rest = (await site.client.get(f"{AT}/calls/{number}/logs?limit=3&after={first['next']}")).json()
        text = await site.client.get(f"{AT}/calls/{number}/logs", headers={"Accept": "text/plain"})
        bad = [await site.client.get(f"{AT}/calls/{number}/logs?{query}") for query in ("limit=0", "after=x")]

    assert first["logs"][0] == {"number": 2, "at": "2027-01-15T08:00:00.000Z", "level": "warning", "text": "line 0"}
    assert [line["text"] for line in first["logs"] + rest["logs"]] == [f"line {line}" for line in range(5)]
    assert rest["next"] is None
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.splitlines()[:2] == [
        "2027-01-15T08:00:00.000Z warning line 0", "2027-01-15T08:00:00.000Z info line 1",
    ]  # fmt: skip
    assert [answer.status_code for answer in bad] == [400, 400]


async def test_cancelling() -> None:
    """A queued call is cancelled at once, a running one is being stopped, an ended one has ended."""
    async with edge() as site:
        queued, running, ended = [await site.accepted() for _ in range(3)]
        site.journal.change(running, status=Status.RUNNING)
        site.journal.end(ended, answered())
        answers = [await site.client.delete(f"{AT}/calls/{number}") for number in (queued, running, ended, queued)]

    assert [answer.status_code for answer in answers] == [200, 202, 409, 409]
    assert [answer.json()["status"] for answer in answers[:2]] == ["cancelled", "running"]
    assert answers[2].json()["error"]["code"] == "conflict"
    assert answers[2].json()["error"]["details"] == {"status": "succeeded"}


async def test_delivering_again() -> None:
    """Where there is something to deliver, and somebody to deliver it to."""
    async with edge() as site:
        mute, early, ready = [
            await site.accepted(),
            await site.accepted(**{"X-Callback-Url": "http://a.example/"}),
            await site.accepted(**{"X-Callback-Url": "http://a.example/"}),
        ]
        for number in (mute, ready):
            site.journal.end(number, answered())
        answers = [await site.client.post(f"{AT}/calls/{number}/redeliver") for number in (mute, early, ready)]

    assert [answer.status_code for answer in answers] == [409, 409, 202]
    assert "no callback URL" in answers[0].text
    assert "it is queued" in answers[1].text


async def test_running_again() -> None:
    """As a new call, whose id and address are answered."""
    async with edge() as site:
        number = await site.accepted()
        answer = await site.client.post(f"{AT}/calls/{number}/rerun")
        new = int(answer.headers["location"].rpartition("/")[2])
        shown = (await site.client.get(answer.headers["location"])).json()

    assert answer.status_code == 202
    assert new > number
    assert answer.headers.get_list("x-call-id") == [str(new)]
    assert shown["trigger"] == "rerun"


async def test_a_list_is_read_page_by_page() -> None:
    """The newest first; `next` is null on the last page, also when that is full."""
    async with edge() as site:
        numbers = [await site.accepted() for _ in range(6)]
        pages: list[list[int]] = []
        query = "limit=3"
        while query:
            page = (await site.client.get(f"{AT}/calls?{query}")).json()
            pages.append([call["id"] for call in page["calls"]])
            query = f"limit=3&cursor={page['next']}" if page["next"] else ""

    assert pages == [numbers[:2:-1], numbers[2::-1]]


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {"space": "demo", "name": "work", "limit": 51}),
        ("status=failed,cancelled", {"statuses": (Status.FAILED, Status.CANCELLED)}),
        ("status=failed&status=running", {"statuses": (Status.FAILED, Status.RUNNING)}),
        ("trigger=schedule", {"trigger": "schedule"}),
        ("idempotency_key=a%2Bb", {"idempotency_key": "a+b"}),
        ("dead_letters=1", {"dead_letters": True}),
        ("dead_letters=false", {"dead_letters": False}),
        ("since=1800000000&until=2027-01-15T08:00:01.5Z", {"since": 1_800_000_000.0, "until": 1_800_000_001.5}),
        ("since=2027-01-15T09:00:00+01:00", {"since": 1_800_000_000.0}),
        ("cursor=7", {"before": 7}),
    ],
)
async def test_a_list_can_be_filtered(query: str, fields: dict[str, Any]) -> None:
    """What is asked for is what the journal is asked."""
    async with edge() as site:
        answer = await site.client.get(f"{AT}/calls?{query}")
        (asked,) = site.journal.queries

    assert answer.json() == {"calls": [], "next": None}
    assert {name: getattr(asked, name) for name in fields} == fields


@pytest.mark.parametrize(
    "query",
    ["statuss=failed", "status=done", "trigger=x", "since=monday", "limit=0", "limit=501", "limit=x", "cursor=x",
     "dead_letters=maybe", "space=demo", "trigger=http&trigger=rerun"],
)  # fmt: skip
async def test_a_filter_that_is_not_understood_is_refused(query: str) -> None:
    """Rather than to show what was not asked for."""
    async with edge() as site:
        answer = await site.client.get(f"{AT}/calls?{query}")

    assert answer.status_code == 400


async def test_a_time_that_is_none_is_told_what_one_is() -> None:
    """Also how long ago, which only a list takes."""
    async with edge() as site:
        answer = await site.client.get("/calls?since=monday")

    assert answer.json()["error"]["message"] == (
        "since and until must be a time such as 2027-01-31T09:00:00Z, or seconds since 1970, or how long ago: 15m"
    )


async def test_calls_of_a_function_that_is_gone_are_still_there() -> None:
    """One that never was has none."""
    async with edge() as site:
        number = await site.accepted()
        site.host.registry = type(site.host.registry)(("demo",), {})
        listed = await site.client.get(f"{AT}/calls")
        unknown = await site.client.get("/spaces/demo/functions/never/calls")

    assert [call["id"] for call in listed.json()["calls"]] == [number]
    assert unknown.status_code == 404


async def test_calls_of_a_space_that_is_gone_are_still_there() -> None:
    """One that never was has none, other than one in which nothing was called."""
    async with edge() as site:
        quiet, unknown = [await site.client.get(f"/calls?space={name}") for name in ("demo", "dmeo")]
        number = await site.accepted()
        site.host.registry = type(site.host.registry)((), {})
        listed = await site.client.get("/calls?space=demo")

    assert [call["id"] for call in listed.json()["calls"]] == [number]
    assert quiet.json() == {"calls": [], "next": None}
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "there is no space `dmeo` here")


async def test_calls_can_be_found_without_their_function() -> None:
    """All of them, or one by its number."""
    async with edge() as site:
        number = await site.accepted()
        every = (await site.client.get("/calls?space=demo&function=work")).json()
        one = (await site.client.get(f"/calls/{number}")).json()
        unknown = await site.client.get("/calls/1")
        (asked,) = site.journal.queries

    assert every["calls"] == [{**one}]
    assert one["id"] == number
    assert unknown.status_code == 404
    assert (asked.space, asked.name) == ("demo", "work")


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/calls", "POST", "GET, HEAD"),
        (f"{AT}/calls", "DELETE", "GET, HEAD"),
        (f"{AT}/calls/1", "PUT", "DELETE, GET, HEAD"),
        (f"{AT}/calls/1/result", "POST", "GET, HEAD"),
        (f"{AT}/calls/1/rerun", "GET", "POST"),
        (f"{AT}/calls/1/redeliver", "DELETE", "POST"),
    ],
)
async def test_other_methods_are_refused(path: str, method: str, allowed: str) -> None:
    """With those that there are."""
    async with edge() as site:
        answer = await site.client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
