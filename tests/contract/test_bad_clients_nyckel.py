"""A bad client's day at Nyckel's addresses: whatever comes, the answer is Nyckel's, and never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings

from runtime.app import App
from runtime.calls import function_id
from runtime.lessons import ids
from tests.contract.bad_clients import Answer, Place, Sent, answer_to, json_of, judge, serving, spoilt

pytestmark = pytest.mark.anyio

FORM = b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n\x89PNG\r\n\x1a\n\r\n--x--\r\n'
PIXEL = "data:image/jpg;base64,/9j/4AAQSkZJRg=="
FILES = {f"demo/{name}.py": 'def handle(data):\n    return {"good": 0.9, "bad": 0.1}\n' for name in ("text", "image")}
FILES["demo/table.py"] = 'def handle(data):\n    return ["good", "bad"]\n'
TOML = """
[spaces.demo.functions.image]
input = "Image"
[spaces.demo.functions.table]
input = "Tabular"
output = "Tags"
"""
TEXT, IMAGE, TABLE = (
    f"/v1/functions/{ids.function_text(function_id('demo', name))}" for name in ("text", "image", "table")
)
ASKS = ("labelCount", "includeMetadata", "modelId", "capture", "externalId")
FILTERS = (
    "externalId", "startIndex", "count", "batchSize", "annotated", "predicted", "annotationLabelId", "upTo",
    "predictionLabelId", "predictionAndAnnotationAgree", "origin", "searchText", "sampleIds", "sampleIds[]",
    "sampleSetId", "createdBefore", "createdAfter", "sortBy", "sortOrder", "includeData",
)  # fmt: skip
SAMPLE = {
    "data": "hello", "externalId": "1", "annotation": {"labelName": "Nice"}, "sampleSets": [{"sampleSetId": "a"}],
    "metadata": {"a": 1},
}  # fmt: skip
PLACES = [
    Place("POST", f"{TEXT}/invoke", {"data": "x", "externalId": "1", "metadata": {"a": [1]}}, parameters=ASKS),
    Place("POST", f"{IMAGE}/invoke", {"data": PIXEL}, parameters=ASKS),
    Place("POST", f"{IMAGE}/invoke", FORM, headers={"content-type": "multipart/form-data; boundary=x"}),
    Place("POST", f"/nyckel.com{TABLE.replace('/v1', '/v0.9')}/invoke", {"data": {"age": 3}}, parameters=ASKS),
    Place("POST", "/v1/functions/{}/invoke", {"data": "x"}, names=("function_0000000000000001",)),
    Place("GET", "/v1/functions", parameters=("startIndex", "count")),
    Place("POST", "/v1/functions", {"name": "new", "input": "Text", "output": "Classification", "projectId": "p"}),
    Place("GET", TEXT),
    Place("PUT", TEXT, {"name": "other"}),
    Place("DELETE", TEXT),
    Place("GET", f"{TEXT}/summary"),
    Place("GET", f"{TEXT}/metrics"),
    Place("GET", "/v0.9/projects"),
    Place("POST", "/v0.9/projects", {"name": "mine"}),
    Place("GET", f"{TEXT}/labels", parameters=("startIndex", "count", "batchSize")),
    Place("POST", f"{TEXT}/labels", {"name": "Nice", "description": None, "metadata": {"a": "b"}}),
    Place("GET", f"{TEXT}/labels/{{}}", names=("label_1",)),
    Place("PUT", f"{TEXT}/labels/{{}}", {"name": "Nicer"}, names=("label_1",)),
    Place("DELETE", f"{TEXT}/labels/{{}}", names=("label_1",)),
    Place("POST", f"{TABLE}/fields", {"name": "age", "type": "Number"}),
    Place("PUT", f"{TABLE}/fields/{{}}", {"name": "years"}, names=("field_1",)),
    Place("DELETE", f"{TABLE}/fields/{{}}", names=("field_1",)),
    Place("GET", f"{TEXT}/samples", parameters=FILTERS),
    Place("POST", f"{TEXT}/samples", SAMPLE),
    Place("POST", f"{TABLE}/samples", {"data": {"age": 3}, "annotation": [{"labelName": "a", "present": True}]}),
    Place("DELETE", f"{TEXT}/samples", parameters=("externalId",)),
    Place("GET", f"{TEXT}/samples/{{}}", names=("sample_1",)),
    Place("DELETE", f"{TEXT}/samples/{{}}", names=("sample_1",)),
    Place("PUT", f"{TEXT}/samples/{{}}/annotation", {"labelName": "Nice"}, names=("sample_1",)),
    Place("DELETE", f"{TEXT}/samples/{{}}/annotation", names=("sample_1",)),
]


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """A host with a function of each input."""
    async with serving(tmp_path_factory.mktemp("nyckel"), FILES, TOML) as app:
        yield app


def is_error(answer: Answer) -> bool:
    """Whether it is as section 3.3 of the contract has it."""
    body = answer.json()
    return (
        isinstance(body, dict)
        and isinstance(body.get("message"), str)
        and body["message"] != ""
        and body.keys() <= {"message", "id", "existingSampleId"}
        and answer.headers["content-type"] == "application/json"
        and answer.status in (400, 404, 405, 409, 413, 415)
    )


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(sent=spoilt(PLACES))
async def test_whatever_comes_is_answered_in_nyckels_words(app: App, sent: Sent) -> None:
    """Malformed, of other types, nested, packed, doubled, in another charset, by another method."""
    answer = await answer_to(app, sent)

    judge(sent, answer, is_error)
    assert answer.status >= 400 or answer.status == 200 or sent.method in ("OPTIONS",), answer


async def test_the_good_requests_are_good(app: App) -> None:
    """Or else the test above would show nothing."""
    for place in PLACES[:4]:
        body = place.body if isinstance(place.body, bytes) else json_of(place.body)
        headers = {"content-type": "application/json", **place.headers, "content-length": str(len(body))}
        raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
        answer = await answer_to(app, Sent(place.method, place.path, raw, body))
        assert answer.status == 200, answer
