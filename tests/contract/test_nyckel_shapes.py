"""Exchanges as Nyckel's clients have them on the wire: what they were recorded to send, and what they must get.

The requests are those of the contract; a real host answers. Answers are compared whole.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from runtime.app import App
from runtime.calls import function_id
from runtime.lessons import ids
from tests.contract.bad_clients import Answer, Sent, answer_to, serving

pytestmark = pytest.mark.anyio

FILES = {
    "demo/mood.py": """
        def handle(data):
            return {"good": 0.75, "bad": 0.25}
        """,
    "demo/tagged.py": """
        def handle(data):
            return {"red": 0.9, "blue": 0.6, "green": 0.1}
        """,
    "demo/look.py": """
        def handle(data):
            return data[:40]
        """,
    "demo/table.py": """
        def handle(data):
            return ",".join(sorted(data))
        """,
    "demo/info.py": """
        import json

        def handle(data, function_call_info):
            headers = function_call_info.headers
            return json.dumps([function_call_info.path, dict(function_call_info.query), headers["content-type"],
                               headers.get("nyckel-metadata"), headers.get("authorization")])
        """,
    "demo/wrong.py": """
        def handle(data):
            if data == "raise":
                raise ValueError("no good")
            if data == "refuse":
                return {"error": {"code": "x", "message": "not that"}}, 422
            if data == "busy":
                return {"error": {"code": "x", "message": "later"}}, 503
            if data == "die":
                import os
                os._exit(1)
            if data == "hang":
                import time
                time.sleep(600)
            return {"answer": 42, "for": "you"}
        """,
    "demo/quiet.py": "def handle(data):\n    return 'x'\n",
    "demo/broken.py": "import no_such_module\ndef handle(data):\n    return 'x'\n",
}
TOML = """
[spaces.demo.functions.tagged]
output = "Tags"
[spaces.demo.functions.look]
input = "Image"
[spaces.demo.functions.table]
input = "Tabular"
[spaces.demo.functions.quiet]
capture = false
[spaces.demo.functions.wrong]
timeout = "500ms"
"""
# What the SDK sends with every request (section 2).
HEADERS = {
    "host": "127.0.0.1", "user-agent": "python-requests/2.34.2", "accept-encoding": "gzip, deflate", "accept": "*/*",
    "connection": "keep-alive", "authorization": "Bearer opaque", "nyckel-client-name": "python-sdk",
    "nyckel-client-version": "0.4.23",
}  # fmt: skip


def id_of(name: str) -> str:
    return ids.function_text(function_id("demo", name))


class Client(NamedTuple):
    """Sends what the client sends."""

    app: App

    async def send(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is not bytes goes as the SDK writes JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        fields = {**HEADERS, **headers}
        if body is not None:
            fields = {"content-type": "application/json", "content-length": str(len(data)), **fields}
        return await answer_to(
            self.app, Sent(method, target, tuple((k.encode(), v.encode()) for k, v in fields.items()), data)
        )

    async def invoke(self, name: str, body: Any, query: str = "", version: str = "v1", **headers: str) -> Answer:
        """Ask one of the functions; its id without prefix, as the SDK has it."""
        id = id_of(name).removeprefix("function_")
        return await self.send("POST", f"/{version}/functions/{id}/invoke{query}", body, **headers)

    async def good(self, method: str, target: str, body: Any = None) -> Any:
        """What is answered with 200, as JSON."""
        answer = await self.send(method, target, body)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer
        return answer.json()


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A client of a host with these functions."""
    async with serving(tmp_path_factory.mktemp("nyckel"), FILES, TOML) as app:
        yield Client(app)


# Section 3: invoke.


async def test_the_smallest_answer(client: Client) -> None:
    """`?modelId=` is what the SDK always sends."""
    answer = await client.invoke("mood", {"data": "q1"}, "?modelId=")

    number = function_id("demo", "mood")
    assert (answer.status, answer.json()) == (
        200,
        {
            "labelName": "good", "labelId": ids.label_id(number, "good"), "confidence": 0.75,
            "sampleId": ids.sample_id(number, b'"q1"'),
        },
    )  # fmt: skip


async def test_everything_that_can_be_asked_for(client: Client) -> None:
    """A client in PHP sends `includeMetadata=`; the external id comes back."""
    number = function_id("demo", "mood")
    await client.send("POST", f"/v1/functions/{id_of('mood')}/labels", {"name": "good", "metadata": {"tone": "high"}})
    asked = {"data": "q2", "externalId": "e2", "metadata": {"a": 1}, "unknown": [1]}
    for query, count, metadata in (
        ("?labelCount=5&includeMetadata=1&capture=false", 2, {"labelMetadata": {"tone": "high"}}),
        ("?labelCount=1&includeMetadata=&capture=False&externalId=e2", 1, {}),
    ):
        found = (await client.invoke("mood", asked, query)).json()
        good = {"labelName": "good", "labelId": ids.label_id(number, "good"), "confidence": 0.75, **metadata}
        bad = {"labelName": "bad", "labelId": ids.label_id(number, "bad"), "confidence": 0.25}
        assert found == {**good, "labelConfidences": [good, bad][:count], "externalId": "e2"}


async def test_tags_are_a_list(client: Client) -> None:
    """Those from one half on; with labelCount the best, whether or not they are there."""
    for version in ("v0.9", "v1"):
        found = (await client.invoke("tagged", {"data": "x"}, version=version)).json()
        assert [(each["labelName"], each["confidence"]) for each in found] == [("red", 0.9), ("blue", 0.6)]
        assert all(each["labelId"].startswith("label_") for each in found)
    best = (await client.invoke("tagged", {"data": "x"}, "?labelCount=3")).json()
    assert [each["labelName"] for each in best] == ["red", "blue", "green"]


async def test_an_image_is_handed_on_as_a_data_uri(client: Client) -> None:
    """The SDK spells the type `jpg`; a form is made one."""
    content = b"\xff\xd8\xff\xe0 picture"
    uri = f"data:image/jpg;base64,{b64encode(content).decode()}"
    assert (await client.invoke("look", {"data": uri})).json()["labelName"] == uri[:40]
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--b--\r\n' % content
    answer = await client.invoke("look", form, **{"content-type": "multipart/form-data; boundary=b"})
    assert answer.json()["labelName"].startswith("data:image/jpeg;base64,")


async def test_a_table_is_handed_on_by_name(client: Client) -> None:
    at = f"/v1/functions/{id_of('table')}"
    field = await client.good("POST", f"{at}/fields", {"name": "age", "type": "Number"})
    found = (await client.invoke("table", {"data": {field["id"].removeprefix("field_"): 3, "other": "x"}})).json()

    assert found["labelName"] == "age,other"
    sample = await client.good("GET", f"{at}/samples/{found['sampleId']}")
    assert sample["data"] == {field["id"]: 3}
    refused = await client.invoke("table", {"data": {"age": "Twelve"}})
    assert (refused.status, refused.json()) == (400, {"message": "the field `age` takes a number"})


async def test_what_the_function_sees(client: Client) -> None:
    """A POST to its root with the data as JSON; the model that was asked for, the metadata, and no credential."""
    asked = {"data": "x", "metadata": {"ä": 1}}
    found = (await client.invoke("info", asked, "?modelId=m1&capture=false")).json()["labelName"]

    assert json.loads(found) == ["/", {"modelId": "m1"}, "application/json", '{"\\u00e4": 1}', None]


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        ("wrong", "raise", 500, "no good"),
        ("wrong", "refuse", 400, "not that"),
        ("wrong", "busy", 503, "later"),
        ("wrong", "die", 503, "process"),
        ("wrong", "hang", 503, "did not end within"),
        ("wrong", "other", 500, "did not answer with a label"),
        ("broken", "x", 503, "no_such_module"),
    ],
)
async def test_what_goes_wrong_in_a_function(client: Client, name: str, data: str, status: int, said: str) -> None:
    answer = await client.invoke(name, {"data": data})

    assert answer.status == status, answer
    assert answer.json().keys() == {"message"}
    assert said in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "query", "said"),
    [
        ({}, "", "`data` is missing"),
        ({"data": None}, "", "`data` is missing"),
        ({"data": 3}, "", "must be a string"),
        ({"data": "x"}, "?labelCount=0", "labelCount"),
        ({"data": "x"}, "?capture=perhaps", "capture"),
        ({"data": "x", "externalId": "a"}, "?externalId=b", "they differ"),
        (b"{", "", "not valid JSON"),
        ({"data": "x", "metadata": [1]}, "", "metadata"),
    ],
)
async def test_what_is_wrong_with_a_request(client: Client, body: Any, query: str, said: str) -> None:
    answer = await client.invoke("mood", body, query)

    assert answer.status == 400
    assert said in answer.json()["message"]


async def test_what_is_not_there(client: Client) -> None:
    for target in ("/v1/functions/my_func/invoke", "/v1/functions/function_0000000000000001/invoke", "/v1/nothing"):
        answer = await client.send("POST", target, {"data": "x"})
        assert (answer.status, list(answer.json())) == (404, ["message"])
    answer = await client.send("GET", f"/nyckel.com/v1/functions/{id_of('mood')}/invoke")
    assert (answer.status, list(answer.json()), answer.headers["allow"]) == (405, ["message"], "POST")


async def test_nothing_is_kept_where_nobody_wants_it(client: Client) -> None:
    at = f"/v1/functions/{id_of('quiet')}"
    assert "sampleId" not in (await client.invoke("quiet", {"data": "x"})).json()
    assert "sampleId" not in (await client.invoke("mood", {"data": "never kept"}, "?capture=false")).json()
    await client.send("GET", f"{at}/samples/sample_none")  # what waits is noted by now
    assert await client.good("GET", f"{at}/samples") == []
    assert [label["name"] for label in await client.good("GET", f"{at}/labels")] == ["x"]


# Section 5: what there is to be taught.


async def test_a_function_comes_and_goes(client: Client) -> None:
    made = await client.good("POST", "/v1/functions", {"input": "Text", "output": "Classification", "name": "Mine"})
    assert made == {"id": made["id"], "name": "Mine", "input": "Text", "output": "Classification"}
    at = f"/v1/functions/{made['id'].removeprefix('function_')}"

    assert await client.good("GET", at) == made
    assert await client.good("GET", at.replace("v1", "v0.9")) == {**made, "state": "New"}
    assert made in await client.good("GET", "/v1/functions")
    assert await client.good("PUT", at, {"name": "Yours", "projectId": "p"}) == {
        **made, "name": "Yours", "projectId": "p"
    }  # fmt: skip
    assert (await client.send("PUT", at, {"input": "Image"})).status == 400
    assert await client.good("GET", f"{at}/metrics") == {
        "sampleCount": 0, "predictionCount": 0, "isTraining": False, "annotatedLabelCounts": {},
        "positiveAnnotatedLabelCounts": {},
    }  # fmt: skip
    await client.good("DELETE", at)
    assert (await client.send("GET", at)).status == 404
    for other in ("Search", "Nonsense"):
        refused = await client.send("POST", "/v1/functions", {"input": "Text", "output": other, "name": "x"})
        assert (refused.status, "output" in refused.json()["message"]) == (400, True)


async def test_a_handler_file_is_the_users_own(client: Client) -> None:
    at = f"/v1/functions/{id_of('mood')}"
    for method, body in (("PUT", {"name": "x"}), ("DELETE", None)):
        answer = await client.send(method, at, body)
        assert (answer.status, "handler file" in answer.json()["message"]) == (409, True)
    assert (await client.good("GET", at.replace("v1", "v0.9")))["state"] == "Tuning"


async def test_labels(client: Client) -> None:
    """A name that is taken is answered with the id of who has it: the SDK takes that for a success."""
    at = f"/v1/functions/{id_of('quiet')}/labels"
    made = await client.good("POST", at, {"name": "Nice", "description": None, "metadata": None})
    assert made == {"id": made["id"], "name": "Nice"}
    again = await client.send("POST", at, {"name": "Nice", "description": None, "metadata": None})
    assert (again.status, again.json()["id"]) == (409, made["id"])
    one = f"{at}/{made['id'].removeprefix('label_')}"
    changed = {"name": "Nicer", "description": "d", "metadata": {"a": "b"}}
    assert await client.good("PUT", one, changed) == {"id": made["id"], **changed}
    assert await client.good("GET", one) == {"id": made["id"], **changed}
    await client.good("DELETE", one)
    assert (await client.send("GET", one)).status == 404
    assert (await client.send("POST", at, {"name": "x", "metadata": {"a": 1}})).status == 400


async def test_samples(client: Client) -> None:
    """What is not there is left out, never null; the same data is the same sample."""
    at = f"/v1/functions/{id_of('quiet')}/samples"
    sent = {"data": "hello", "externalId": None, "annotation": {"labelName": "Fine"}, "sampleSets": []}
    made = await client.good("POST", at, sent)
    label = made["annotation"]["labelId"]
    assert made == {"id": ids.sample_id(function_id("demo", "quiet"), b'"hello"'), "data": "hello",
                    "annotation": {"labelId": label}}  # fmt: skip
    again = await client.send("POST", at, {**sent, "externalId": "other"})
    assert (again.status, again.json()["existingSampleId"], list(again.json())) == (
        409, made["id"], ["message", "existingSampleId"]
    )  # fmt: skip
    one = f"{at}/{made['id'].removeprefix('sample_')}"
    assert await client.good("GET", one) == made
    assert await client.good("DELETE", f"{one}/annotation") == {}
    assert await client.good("GET", one) == {"id": made["id"], "data": "hello"}
    assert await client.good("PUT", f"{one}/annotation", {"labelId": label.removeprefix("label_")}) == {
        "labelId": label
    }  # fmt: skip
    await client.good("DELETE", f"/v1/functions/{id_of('quiet')}/labels/{label}")
    assert await client.good("GET", one) == {"id": made["id"], "data": "hello"}
    assert (await client.send("PUT", f"{one}/annotation", {"labelId": label})).status == 400
    assert (await client.send("PUT", f"{one}/annotation", [{"labelName": "Fine"}])).status == 400
    await client.good("DELETE", one)
    assert (await client.send("DELETE", one)).status == 404
    await client.good("POST", at, {"data": "by its own id", "externalId": "mine"})
    await client.good("DELETE", f"{at}?externalId=mine")
    assert (await client.send("DELETE", at)).status == 400


async def test_pages(client: Client) -> None:
    """The next one is told as a path without the mount; the newest come first where that is asked for."""
    at = f"/v1/functions/{id_of('info')}/samples"
    for number in range(3):
        await client.good("POST", at, {"data": f"{number}"})
    wish = "batchSize=2&sortBy=creation&sortOrder=descending"
    answer = await client.send("GET", f"/nyckel.com{at}?{wish}")

    assert [sample["data"] for sample in answer.json()] == ["2", "1"]
    following = answer.headers["link"]
    assert following.startswith(f"<{at}?{wish}&startIndex=2&upTo=")
    assert following.endswith('>; rel="next"')
    target = following[1:].partition(">")[0]
    last = await client.send("GET", f"/nyckel.com{target}")
    assert ([sample["data"] for sample in last.json()], "link" in last.headers) == (["0"], False)


async def test_projects(client: Client) -> None:
    assert await client.good("GET", "/v0.9/projects") == []
    made = await client.good("POST", "/v0.9/projects", {"name": "my_project"})
    assert made["name"] == "my_project"
    assert await client.good("GET", "/v0.9/projects") == [made]
