"""A bad client's day at Kernel's addresses: whatever comes, the answer is Kernel's, and never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings

from runtime.app import App
from tests.contract.bad_clients import Answer, Place, Sent, answer_to, json_of, judge, serving, spoilt

pytestmark = pytest.mark.anyio

CREATE = {
    "app_name": "demo", "action_name": "work", "version": "latest", "payload": '{"n": 1}', "async": True,
    "async_timeout_seconds": 60,
}  # fmt: skip
LIST = ("app_name", "action_name", "version", "deployment_id", "status", "since", "query", "limit", "offset")
PLACES = [
    Place("POST", "/invocations", CREATE),
    Place("POST", "/invocations", {**CREATE, "async": False}, headers={"x-stainless-retry-count": "1"}),
    Place("PATCH", "/invocations/{}", {"status": "failed", "output": '{"error": "stop"}'}, names=("ENDED",)),
    Place("GET", "/invocations/{}", names=("ENDED",)),
    Place("GET", "/invocations/{}/events", names=("ENDED",), parameters=("since",)),
    Place("GET", "/invocations/{}/browsers", names=("ENDED",)),
    Place("DELETE", "/invocations/{}/browsers", names=("ENDED",), headers={"content-type": "application/json"}),
    Place("GET", "/invocations", parameters=LIST),
    Place("GET", "/apps", parameters=("app_name", "version", "query", "limit", "offset")),
    Place("POST", "/deployments", b"--x--", headers={"content-type": "multipart/form-data; boundary=x"}),
    Place("GET", "/browsers/{}", names=("b",)),
]


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """A host with one function, and one call that has ended."""
    root = tmp_path_factory.mktemp("kernel")
    async with serving(root, {"demo/work.py": "def handle(data):\n    print('working')\n    return data\n"}) as app:
        yield app


@pytest.fixture(scope="module")
async def ended(app: App) -> str:
    """The id of an invocation that is over."""
    body = json_of({**CREATE, "async": False})
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    answer = await answer_to(app, Sent("POST", "/invocations", headers, body))
    assert answer.json()["status"] == "succeeded", answer
    id: str = answer.json()["id"]
    return id


def is_error(answer: Answer) -> bool:
    """Whether it is as section 4.9 of the contract has it."""
    body = answer.json()
    required = isinstance(body, dict) and body.keys() <= {"code", "message", "details", "inner_error"}
    return (
        required
        and all(isinstance(body[key], str) and body[key] for key in ("code", "message"))
        and answer.headers["content-type"] == "application/json"
        and answer.status in (400, 401, 403, 404, 405, 429)
    )


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(sent=spoilt(PLACES))
async def test_whatever_comes_is_answered_in_kernels_words(app: App, ended: str, sent: Sent) -> None:
    """Malformed, of other types, nested, packed, doubled, in another charset, by another method."""
    sent = sent._replace(target=sent.target.replace("/ENDED", f"/{ended}"))

    judge(sent, await answer_to(app, sent), is_error)
