"""Nyckel's own SDK, unmodified, on the real command: own functions asked, and functions created, taught and trained.

Below `/nyckel.com`, because without that the SDK can list things only on port 5000.
"""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import nyckel
import pytest
import requests
from nyckel import (
    ClassificationAnnotation,
    ClassificationLabel,
    ClassificationPrediction,
    ClassificationPredictionError,
    Credentials,
    ImageClassificationFunction,
    TabularClassificationFunction,
    TabularFunctionField,
    TagsAnnotation,
    TextClassificationFunction,
    TextClassificationSample,
    TextTagsFunction,
    TextTagsSample,
)
from PIL import Image

from runtime.calls import function_id
from runtime.config import FunctionSettings
from runtime.lessons import Captured, Draft, Lessons, ids
from runtime.registry import Function
from tests.acceptance.conftest import Running, Site, eventually

FILES = {
    "demo/mood.py": """
        def handle(data, function_call_info):
            print("asked", function_call_info.headers.get("nyckel-metadata"))
            return {"good": 0.75, "bad": 0.25} if "good" in data else "bad"
        """,
    "demo/tagged.py": """
        def handle(data):
            return [word for word in ("red", "blue") if word in data]
        """,
    "demo/colour.py": """
        import base64, io
        from PIL import Image

        def handle(data):
            picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
            red, green, blue = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))
            return "red" if red > blue else "blue"
        """,
    "demo/fail.py": """
        def handle(data):
            raise ValueError("no good")
        """,
    "demo/sum.py": """
        def handle(data):
            return ["large" if data["a"] + data["b"] > 10 else "small", 0.5]
        """,
    "spaces.toml": """
        [spaces.demo.functions.tagged]
        output = "Tags"
        [spaces.demo.functions.colour]
        input = "Image"
        [spaces.demo.functions.sum]
        input = "Tabular"
        """,
}
TRAINING = 60.0  # seconds: far more than a training of a few samples takes


def id_of(name: str) -> str:
    return ids.function_text(function_id("demo", name))


@pytest.fixture(scope="module")
def host(shared_site: Site, each_engine: str) -> Iterator[Running]:
    """One host on each engine."""
    for path, text in FILES.items():
        shared_site.write(path, text)
    running = shared_site.start(engine=each_engine)
    yield running
    running.stop()


def credentials(host: Running) -> Credentials:
    return Credentials(client_id="anybody", client_secret="anything", server_url=f"{host.url}/nyckel.com")


@pytest.fixture
def known(host: Running) -> Credentials:
    return credentials(host)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK does not wait 15 seconds before it gives up."""

    class Clock:
        time = staticmethod(__import__("time").time)
        sleep = staticmethod(lambda seconds: None)

    monkeypatch.setattr("nyckel.request_utils.time", Clock)


@pytest.fixture
def created() -> Iterator[list[Any]]:
    """What a test creates, which goes after it."""
    found: list[Any] = []
    yield found
    for function in found:
        function.delete()


def wait_until_trained(function: Any) -> None:
    eventually(function.has_trained_model, f"a trained model of {function}", TRAINING)


def test_an_own_function_is_asked_and_its_samples_are_kept(host: Running, known: Credentials) -> None:
    function = TextClassificationFunction(id_of("mood"), known)
    assert function.name == "demo/mood"

    predictions = function.invoke(["a good day", "a long day"])

    assert predictions == [
        ClassificationPrediction(label_name="good", confidence=0.75),
        ClassificationPrediction(label_name="bad", confidence=1.0),
    ]
    eventually(lambda: function.sample_count >= 2, "both samples")
    samples = {sample.data: sample for sample in function.list_samples()}
    assert samples["a good day"].prediction == predictions[0]
    assert {"good", "bad"} <= {label.name for label in function.list_labels()}
    assert function.has_trained_model()
    calls = host.client.get("/calls", params={"space": "demo"}).json()["calls"]
    assert {(call["function"], call["trigger"]) for call in calls} >= {("mood", "nyckel")}


def test_a_sample_of_an_invocation_is_annotated(host: Running, known: Credentials) -> None:
    function = TextClassificationFunction(id_of("mood"), known)
    asked = {"data": "to be annotated", "externalId": "ext-1", "metadata": {"from": "test"}}
    answer = host.client.post(f"/v1/functions/{function.function_id}/invoke", json=asked).json()
    assert answer["externalId"] == "ext-1"
    host.logged("from")
    sample = function.read_sample(answer["sampleId"])
    assert (sample.data, sample.external_id) == ("to be annotated", "ext-1")

    sample.annotation = ClassificationAnnotation(label_name="good")
    function.update_annotation(sample)
    assert function.read_sample(sample.id).annotation == sample.annotation
    sample.annotation = None
    function.update_annotation(sample)
    assert function.read_sample(sample.id).annotation is None
    function.delete_samples([sample.id])
    with pytest.raises(RuntimeError, match="404"):
        function.read_sample(sample.id)


def test_own_functions_of_every_kind(known: Credentials) -> None:
    tags = TextTagsFunction(id_of("tagged"), known)
    assert tags.invoke(["red and blue", "nothing"]) == [
        [ClassificationPrediction("red", 1.0), ClassificationPrediction("blue", 1.0)], []
    ]  # fmt: skip
    colour = ImageClassificationFunction(id_of("colour"), known)
    assert [each.label_name for each in colour.invoke([image("red"), image("blue")])] == ["red", "blue"]
    table = TabularClassificationFunction(id_of("sum"), known)
    assert table.invoke([{"a": 1, "b": 2}, {"a": 9, "b": 2.5}]) == [
        ClassificationPrediction("small", 0.5), ClassificationPrediction("large", 0.5)
    ]  # fmt: skip


def test_an_image_comes_as_a_form_too(host: Running) -> None:
    content = base64.b64decode(image("blue").partition(",")[2])
    for part in ("data", "file"):
        answer = host.client.post(
            f"/v1/functions/{id_of('colour')}/invoke", files={part: ("a.jpg", content)}, data={"externalId": part}
        )
        assert (answer.status_code, answer.json()["labelName"]) == (200, "blue"), answer.text
        assert answer.json()["externalId"] == part


@pytest.mark.usefixtures("hasty")
def test_a_failure_is_told_per_item(known: Credentials) -> None:
    function = TextClassificationFunction(id_of("fail"), known)

    with pytest.warns(RuntimeWarning, match="no good"):
        (error,) = function.invoke(["x"])

    assert isinstance(error, ClassificationPredictionError)
    assert error.status_code == 500
    assert "no good" in error.error


def test_the_short_helper_works_where_its_address_is_patched(
    known: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., requests.Response] = requests.Session.post

    def post(session: requests.Session, url: str, **arguments: Any) -> requests.Response:
        return real(session, url.replace("https://www.nyckel.com", known.server_url), **arguments)

    monkeypatch.setattr(requests.Session, "post", post)
    assert nyckel.invoke(id_of("mood"), "good", known)["labelName"] == "good"


def test_duplicates_are_one_sample(known: Credentials, created: list[Any]) -> None:
    function = TextClassificationFunction.create("Duplicates", known)
    created.append(function)
    first = function.create_samples(["hello", "hello", "goodbye"])

    assert first[0] == first[1] != first[2]
    assert function.create_samples(["goodbye"]) == [first[2]]
    assert function.sample_count == 2
    once = function.create_labels(["Nice"])
    assert function.create_labels(["Nice", " Nice "]) == once * 2


def test_a_text_function_is_trained_and_answers(host: Running, known: Credentials, created: list[Any]) -> None:
    function = TextClassificationFunction.create("Greetings & farewells", known)
    created.append(function)
    assert not function.has_trained_model()
    said = {
        "hello": ["hello", "hello there", "hello friend", "oh hello", "hello hello"],
        "bye": ["bye", "bye now", "good bye", "bye friend", "bye bye"],
    }
    function.create_samples([(text, label) for label, texts in said.items() for text in texts])

    wait_until_trained(function)

    predictions = function.invoke(["hello my dear", "bye my dear"])
    assert [each.label_name for each in predictions] == ["hello", "bye"]
    summary = host.client.get(f"/v1/functions/{function.function_id}/summary").json()
    assert summary["annotatedSampleCount"] == 10
    labels = {label.name: label for label in function.list_labels()}
    labels["bye"].name = "farewell"
    function.update_label(labels["bye"])
    assert function.invoke(["bye my dear"])[0].label_name == "farewell"  # at once, by the model that there is
    wait_until_trained(function)
    assert function.invoke(["bye my dear"])[0].label_name == "farewell"
    named = host.client.post(f"/v1/functions/{function.function_id}/invoke?modelId={summary['modelId']}",
                             json={"data": "bye"})  # fmt: skip
    assert named.json()["labelName"] == "farewell"
    unknown = host.client.post(f"/v1/functions/{function.function_id}/invoke?modelId=model_none", json={"data": "bye"})
    assert unknown.status_code == 400


@pytest.mark.usefixtures("hasty")
def test_an_untrained_function_says_what_is_missing(known: Credentials, created: list[Any]) -> None:
    function = TextClassificationFunction.create("Untrained", known)
    created.append(function)

    with pytest.warns(RuntimeWarning):
        (error,) = function.invoke(["x"])

    assert isinstance(error, ClassificationPredictionError)
    assert error.status_code == 400
    assert "at least 2 labels" in error.error


def test_a_tabular_function_with_an_image_is_trained(known: Credentials, created: list[Any]) -> None:
    function = TabularClassificationFunction.create("Faces", known)
    created.append(function)
    fields = [TabularFunctionField(name="age", type="Number"), TabularFunctionField(name="mug", type="Image")]
    function.create_fields(fields)
    chance = random.Random(3)
    function.create_samples(
        [({"age": chance.randint(0, 9), "mug": image("red")}, "child") for _ in range(4)]
        + [({"age": chance.randint(50, 90), "mug": image("blue")}, "adult") for _ in range(4)]
    )
    wait_until_trained(function)

    assert [each.label_name for each in function.invoke([{"age": 4, "mug": image("red")}, {"age": 70}])] == [
        "child", "adult"
    ]  # fmt: skip
    age = next(field for field in function.list_fields() if field.name == "age")
    function.delete_field(age.id)
    assert not any("age" in sample.data for sample in function.list_samples())


def test_a_tags_function_is_trained(known: Credentials, created: list[Any]) -> None:
    function = TextTagsFunction.create("Toppings", known)
    created.append(function)
    function.create_labels(["cheese", "ham"])
    function.create_samples(
        [
            TextTagsSample(data=f"{text} {number}", annotation=[TagsAnnotation(label) for label in labels])
            for number in range(4)
            for text, labels in (
                ("with cheese", ["cheese"]), ("with ham", ["ham"]), ("with cheese and ham", ["cheese", "ham"])
            )
        ]
    )  # fmt: skip
    wait_until_trained(function)

    (prediction,) = function.invoke(["a pizza with cheese and ham"])
    assert {each.label_name for each in prediction} == {"cheese", "ham"}
    sample = next(one for one in function.list_samples() if one.data == "with ham 0")
    assert sample.annotation == [TagsAnnotation("ham"), TagsAnnotation("cheese", present=False)]


def test_more_than_a_page_is_listed_whole(site: Site) -> None:
    site.write("demo/mood.py", FILES["demo/mood.py"])
    number = function_id("demo", "mood")
    work = Function(
        id=number, space="demo", name="mood", path=Path("/f.py"), line=1, kind="sync", takes=(), digest="",
        settings=FunctionSettings(),
    )  # fmt: skip
    texts = [f'"sample {each}"' for each in range(2005)]
    batch = [Captured(work, Draft(ids.sample_id(number, text.encode()), text)) for text in texts]

    async def fill() -> None:
        lessons = Lessons(site.root / ".spaces")
        await lessons.capture(batch, 10_000, 1 << 30)
        await lessons.close()

    anyio.run(fill)
    function = TextClassificationFunction(id_of("mood"), credentials(site.start()))
    assert [sample.data for sample in function.list_samples()] == [text.strip('"') for text in reversed(texts)]


def test_what_was_taught_survives_the_host(site: Site) -> None:
    site.write("demo/mood.py", FILES["demo/mood.py"])
    first = site.start()
    function = TextClassificationFunction.create("Kept", credentials(first))
    function.create_samples([("hello a", "hi"), ("hello b", "hi"), ("bye a", "bye"), ("bye b", "bye")])
    first.stop()  # most likely before it was trained: the next host does that

    again = TextClassificationFunction(function.function_id, credentials(site.start()))
    wait_until_trained(again)
    assert again.name == "Kept"
    assert again.invoke(["hello c"])[0].label_name == "hi"
    again.delete()
    assert list((site.root / ".spaces").glob("models/*")) == []
    assert not (site.root / ".spaces" / "trained").exists()


def test_a_folder_of_ones_own_with_that_name_wins(site: Site) -> None:
    site.write("trained/own.py", FILES["demo/mood.py"])
    host = site.start()

    answer = host.client.post("/v1/functions", json={"name": "x", "input": "Text", "output": "Classification"})

    assert answer.status_code == 409
    assert "a folder of your own" in answer.json()["message"]
    assert [one["name"] for one in host.client.get("/v1/functions").json()] == ["trained/own"]


TOKENS = """
    [spaces.demo]
    clients = [
        { id = "ci", secret = "env:CI_SECRET", scopes = ["invoke", "read"] },
        { id = "other", secret = "env:OTHER_SECRET", scopes = ["invoke"], functions = ["tagged"] },
    ]
    [spaces.demo.functions.open]
    public = true
    [spaces.trained]
    clients = [{ id = "teacher", secret = "env:TEACHER_SECRET" }]
    """


def test_tokens_are_asked_for(site: Site) -> None:
    for name in ("mood", "tagged"):
        site.write(f"demo/{name}.py", FILES[f"demo/{name}.py"])
    site.write("demo/open.py", FILES["demo/mood.py"])
    site.write("spaces.toml", TOKENS)
    secrets = {name: f"{name.lower()}-0123456789abcdef" for name in ("CI_SECRET", "OTHER_SECRET", "TEACHER_SECRET")}
    host = site.start(env=secrets)

    def known(id: str, name: str) -> Credentials:
        return Credentials(id, secrets.get(name, "wrong-0123456789abcdef"), f"{host.url}/nyckel.com")

    assert not (site.root / ".spaces" / "trained").exists()
    assert "no such folder" not in host.log
    with pytest.raises(ValueError, match="token"):
        TextClassificationFunction(id_of("mood"), known("ci", "WRONG"))
    assert TextClassificationFunction(id_of("mood"), known("ci", "CI_SECRET")).invoke(["good"])[0].label_name == "good"
    with pytest.raises(ValueError, match="404"):  # of that one it hears nothing
        TextClassificationFunction(id_of("mood"), known("other", "OTHER_SECRET"))
    with pytest.raises(ValueError, match="Can't access"):  # it may ask it, and not look at it
        TextClassificationFunction(id_of("tagged"), known("other", "OTHER_SECRET"))
    with pytest.raises(AssertionError, match="scope `deploy`"):
        TextClassificationFunction.create("x", known("ci", "CI_SECRET"))
    taught = TextClassificationFunction.create("x", known("teacher", "TEACHER_SECRET"))
    assert taught.create_labels([ClassificationLabel("a")])
    taught.create_samples([TextClassificationSample(data="x")])
    client: httpx2.Client = host.client
    assert client.post(f"/v1/functions/{id_of('open')}/invoke", json={"data": "good"}).status_code == 200
    assert client.get(f"/v1/functions/{id_of('open')}").status_code == 401
    assert client.post(f"/v1/functions/{id_of('mood')}/invoke", json={"data": "good"}).status_code == 401
    answer = client.post("/v1/functions/function_0000000000000001/invoke", json={"data": "x"})
    assert (answer.status_code, re.sub("[^a-z]", "", answer.json()["message"].lower())[:7]) == (401, "notoken")


def image(colour: str) -> str:
    """A picture as the SDK takes it."""
    picture = io.BytesIO()
    Image.effect_noise((24, 24), random.uniform(1, 9)).convert("RGB").save(picture, "PNG")  # no two are the same
    shade = Image.blend(Image.open(picture), Image.new("RGB", (24, 24), colour), 0.8)
    out = io.BytesIO()
    shade.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
