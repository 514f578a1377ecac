"""A bad client's day at Cognite's addresses: whatever comes, the answer is Cognite's, and never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings

from runtime.app import App
from runtime.calls import function_id
from tests.contract.bad_clients import Answer, Place, Sent, answer_to, json_of, judge, serving, spoilt

pytestmark = pytest.mark.anyio

WORK = function_id("demo", "work")
PROJECT = "/api/v1/projects/{}"
FUNCTIONS = f"{PROJECT}/functions"
ONE = f"{FUNCTIONS}/{{}}"
P, F = ("p",), ("p", str(WORK))
RANGE = {"min": 0, "max": 9_000_000_000_000}
SCHEDULE = {
    "name": "n", "cronExpression": "0 0 1 1 *", "functionId": WORK, "data": {"a": 1}, "description": "d",
    "functionExternalId": "demo/work", "nonce": "once",
}  # fmt: skip
CALLS = {
    "filter": {"status": "Completed", "scheduleId": 1, "startTime": RANGE, "endTime": RANGE},
    "limit": 5, "cursor": "99",
}  # fmt: skip
FILTER = {
    "name": "work", "owner": "", "fileId": 1, "status": "Ready", "externalIdPrefix": "demo", "createdTime": RANGE,
    "metadata": {},
}  # fmt: skip
BY_ID = {"items": [{"id": 7}], "ignoreUnknownIds": True}
PLACES = [
    Place("GET", "/api/v1/token/inspect"),
    Place("POST", f"{PROJECT}/sessions", {"items": [{"tokenExchange": True}]}, names=P),
    Place("POST", f"{PROJECT}/sessions", {"items": [{"clientId": "c", "clientSecret": "s"}]}, names=P),
    Place("POST", f"{ONE}/call", {"data": {"x": [1, {"y": None}]}, "nonce": "once"}, names=F),
    Place("POST", f"{ONE}/calls/byids", BY_ID, names=F),
    Place("POST", f"{ONE}/calls/list", CALLS, names=F),
    Place("GET", f"{ONE}/calls", names=F, parameters=("limit", "cursor", "filter")),
    Place("GET", f"{ONE}/calls/{{}}", names=(*F, "ENDED")),
    Place("GET", f"{ONE}/calls/{{}}/response", names=(*F, "ENDED")),
    Place("GET", f"{ONE}/calls/{{}}/logs", names=(*F, "ENDED")),
    Place("POST", f"{FUNCTIONS}/byids", {"items": [{"externalId": "demo/work"}, {"id": 1}]}, names=P),
    Place("POST", f"{FUNCTIONS}/list", {"filter": FILTER, "limit": 5}, names=P),
    Place("GET", FUNCTIONS, names=P, parameters=("limit",)),
    Place("GET", ONE, names=F),
    Place("GET", f"{FUNCTIONS}/limits", names=P),
    Place("POST", f"{FUNCTIONS}/status", names=P),
    Place("POST", f"{FUNCTIONS}/schedules", {"items": [SCHEDULE]}, names=P),
    Place("POST", f"{FUNCTIONS}/schedules/list", {"filter": {"functionId": WORK, "createdTime": RANGE}}, names=P),
    Place("POST", f"{FUNCTIONS}/schedules/byids", BY_ID, names=P),
    Place("POST", f"{FUNCTIONS}/schedules/delete", BY_ID, names=P),
    Place("GET", f"{FUNCTIONS}/schedules/{{}}/input_data", names=(*P, "1")),
]
STATUSES = (400, 401, 404, 405, 413, 415, 429)
NOT_OFFERED = 501


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """A host with one function, and one call that has ended."""
    root = tmp_path_factory.mktemp("cognite")
    async with serving(root, {"demo/work.py": "def handle(data):\n    print('working')\n    return data\n"}) as app:
        yield app


@pytest.fixture(scope="module")
async def ended(app: App) -> str:
    """The id of a call."""
    body = json_of({"data": {"n": 1}})
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    answer = await answer_to(app, Sent("POST", f"/api/v1/projects/p/functions/{WORK}/call", headers, body))
    return str(answer.json()["id"])


def is_error(answer: Answer) -> bool:
    """Whether it is as section 4 of the contract has it, with an id to ask about it by."""
    body = answer.json()
    error = body["error"]
    return (
        body.keys() == {"error"}
        and error.keys() <= {"code", "message", "missing", "duplicated"}
        and error["code"] == answer.status
        and isinstance(error["message"], str)
        and error["message"] != ""
        and bool(answer.headers["x-request-id"])
        and answer.headers["content-type"] == "application/json"
        and answer.status in STATUSES
    )


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(sent=spoilt(PLACES))
async def test_whatever_comes_is_answered_in_cognites_words(app: App, ended: str, sent: Sent) -> None:
    """Malformed, of other types, nested, packed, doubled, in another charset, by another method."""
    sent = sent._replace(target=sent.target.replace("/ENDED", f"/{ended}"))
    answer = await answer_to(app, sent)
    if answer.status == NOT_OFFERED:  # an honest answer to what another method or path asks for
        assert sent.method in ("GET", "HEAD", "POST")
        return

    judge(sent, answer, is_error)
