"""A trained function as its callers see it: predict, train, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.classify.source import generated
from tests.unit.classify.conftest import Function, data_uri, encoded
from tests.unit.classify.test_images import picture

Make = Callable[..., Function]
SAMPLES = [(f"{word} {end}", label) for word, label in (("yes", "good"), ("no", "bad")) for end in "abcdef"]
LABELS = ["bad", "good"]


def test_it_trains_and_then_predicts(make: Make) -> None:
    """Every label with its confidence, the best first."""
    function = make()

    trained = function.train([*SAMPLES, (3, "bad"), ("maybe", None)], [*LABELS, "unused"])

    assert trained["samples"] == 12
    assert trained["skipped"] == 1
    assert trained["labels"] == LABELS
    assert trained["accuracy"] == 1
    assert trained["seconds"] >= 0
    found, status = function.call("yes please")
    assert status == 200
    assert list(found) == ["good", "bad", "unused"]
    assert found["good"] > 0.6


def test_progress_is_told(make: Make) -> None:
    """It only grows."""
    function = make()
    function.call({"samples": function.export(SAMPLES), "labels": LABELS}, "/train")

    fractions = [fraction for fraction, _ in function.info.said]

    assert len(fractions) >= 3
    assert fractions == sorted(fractions)


def test_a_function_without_a_model_says_what_is_missing(make: Make) -> None:
    """Before the first training."""
    function = make()

    body, status = function.call("yes")

    assert status == 400
    assert body["error"]["code"] == "not_trained"
    assert "2 labels with at least 2 annotated samples each" in body["error"]["message"]


def test_a_training_that_is_repeated_gives_the_same_model(make: Make) -> None:
    """At once, and no other model has to go for it."""
    function = make(keep=2)
    first = function.train(SAMPLES, LABELS)
    written = (function.models / f"{first['modelId']}.model").stat()

    again = [function.train(SAMPLES, LABELS[::-1]) for _ in range(3)]

    assert again == [first] * 3
    assert (function.models / f"{first['modelId']}.model").stat().st_ino == written.st_ino


@pytest.mark.parametrize("change", ["samples", "labels"])
def test_other_samples_or_labels_give_another_model(make: Make, change: str) -> None:
    """Kept beside the first."""
    function = make()
    first = function.train(SAMPLES, LABELS)["modelId"]

    samples, labels = (SAMPLES[:-1], LABELS) if change == "samples" else (SAMPLES, [*LABELS, "x"])
    second = function.train(samples, labels)["modelId"]

    assert first != second
    by_first, by_second = (function.call("yes", query=f"modelId={one}")[0] for one in (first, second))
    assert by_first != by_second == function.call("yes", query="modelId=")[0] == function.call("yes")[0]


def test_a_new_model_is_used_when_the_host_says_so(make: Make) -> None:
    """Until then the old one answers; it stays, whatever else is trained."""
    function = make(keep=1)
    old = function.train(SAMPLES, LABELS)["modelId"]

    for count in (1, 2, 3):
        function.call({"samples": function.export(SAMPLES[:-count]), "labels": LABELS}, "/train")

    assert function.call("yes")[0] == function.call("yes", query=f"modelId={old}")[0]
    function.use(old)
    assert function.call("yes")[1] == 200


def test_renamed_fields_and_missing_ones_do_not_need_a_training(make: Make) -> None:
    """The model knows them by their ids."""
    fields = [{"id": f"field_{name}", "name": name, "type": "Number"} for name in "xy"]
    function = make(input="Tabular", fields=fields)
    function.train([({"x": n, "field_y": 0}, "low" if n < 10 else "high") for n in range(20)], ["low", "high"])
    before = function.call({"x": 3})[0]

    renamed = make(input="Tabular", fields=[{**fields[0], "name": "width"}, {**fields[1], "id": "field_z"}])
    renamed.use(next(function.models.glob("*.model")).stem)

    assert next(iter(before)) == "low"
    assert renamed.call({"width": 3, "y": 7})[0] == before


def test_images_are_learned(make: Make) -> None:
    """Sent in a sample as in a call."""
    function = make(input="Image")
    turned = [(data_uri(encoded(picture().rotate(angle), "JPEG")), str(angle)) for angle in (0, 180) for _ in "12"]
    function.train(turned, ["0", "180"])

    assert next(iter(function.call(encoded(picture().rotate(180)))[0])) == "180"
    assert next(iter(function.call(data_uri(encoded(picture(300, 200))))[0])) == "0"


def test_tags(make: Make) -> None:
    """From a half on, one is present."""
    function = make(output="Tags")
    function.train([(text, {"good": label == "good", "any": True}) for text, label in SAMPLES], ["good", "any"])

    found, status = function.call("yes")

    assert status == 200
    assert found["good"] > 0.5 > function.call("no")[0]["good"]
    assert found["any"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        ({"data": 3}, "invalid_data", 400),
        ({"data": {}}, "invalid_data", 400),
        ({"data": b"yes"}, "invalid_data", 400),
        ({"data": "yes", "query": "modelId=model_0000000000000000"}, "unknown_model", 400),
        ({"data": "yes", "query": "modelId=../x"}, "unknown_model", 400),
        ({"data": "yes", "path": "/other"}, "not_found", 404),
        ({"data": {}, "path": "/train", "method": "GET"}, "method_not_allowed", 405),
    ],
)
def test_refusals(make: Make, arguments: dict[str, Any], code: str, status: int) -> None:
    """Each with a code, and a message for people."""
    function = make()
    function.train(SAMPLES, LABELS)

    assert function.error(**arguments) == code
    assert function.call(**arguments)[1] == status


@pytest.mark.parametrize("data", [None, [], "x", {}, {"labels": []}, {"samples": "export.jsonl", "labels": [1]}])
def test_a_training_without_samples_or_labels_is_refused(make: Make, data: Any) -> None:
    """Nothing is read."""
    assert make().error(data, "/train") == "bad_samples"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "export.txt", "absent.jsonl", "a\0.jsonl", "folder.jsonl", "\ud800.jsonl", "x" * 5000),
        *("../outside.jsonl", "folder/inside.jsonl", "link.jsonl", "/etc/passwd", "x" * 5000 + ".jsonl", 3, ["x"]),
        "{models}/../outside.jsonl",
    ],
)
def test_no_other_file_is_read(make: Make, tmp_path: Path, name: Any) -> None:
    """Whoever may invoke the function may ask for a training."""
    models = tmp_path / "models"
    (models / "folder.jsonl").mkdir(parents=True)
    (models / "folder").mkdir()
    good = make().export(SAMPLES)
    for place in (tmp_path / "outside.jsonl", models / "folder" / "inside.jsonl", models / "export.txt"):
        place.write_bytes((tmp_path / good).read_bytes())
    (models / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    function = Function(models, make().function)
    if isinstance(name, str):
        name = name.replace("{models}", str(models))

    assert function.error({"samples": name, "labels": LABELS}, "/train") == "bad_samples"
    assert list(models.glob("*.model")) == []


def test_a_whole_path_into_the_folder_will_do(make: Make) -> None:
    """As well as the name."""
    function = make()
    path = function.models / function.export(SAMPLES)

    assert function.call({"samples": str(path), "labels": LABELS}, "/train")[1] == 200


@pytest.mark.parametrize("line", ["", "x", "[]", "3", '{"data": "x", "annotation": 3}', '{"annotation": {"a": true}}'])
def test_a_damaged_export_is_refused(make: Make, line: str) -> None:
    """With the number of the line."""
    function = make()
    (function.models / "bad.jsonl").write_text(f'{{"data": "yes", "annotation": "good"}}\n{line}\n')

    body, _ = function.call({"samples": "bad.jsonl", "labels": LABELS}, "/train")

    assert body["error"]["code"] == "bad_samples"
    assert "line 2" in body["error"]["message"]


def test_too_few_samples_leave_the_old_model(make: Make) -> None:
    """A training that is refused changes nothing."""
    function = make()
    function.train(SAMPLES, LABELS)

    assert function.error({"samples": function.export(SAMPLES[:7]), "labels": LABELS}, "/train") == "not_trained"
    assert function.call("yes")[1] == 200


def test_a_model_that_is_damaged_or_gone_does_not_keep_the_file_from_loading(make: Make) -> None:
    """Those who call are told, and a training helps."""
    function = make()
    name = function.train(SAMPLES, LABELS)["modelId"]
    path = function.models / f"{name}.model"
    path.write_bytes(path.read_bytes()[:-1])

    function.use(name)

    assert function.error("yes") == "outdated_model"
    assert function.train(SAMPLES, LABELS)["modelId"] == name
    assert function.call("yes")[1] == 200
    path.unlink()
    function.use(name)
    assert function.error("yes") == "unknown_model"


SCRIPT = """
import os, sys
from runtime.worker import process
runpy = __import__("runpy").run_path(sys.argv[1])
before = {*sys.modules}
if os.fork() == 0:
    class Info:
        path, query = "/", {}
    found, status = runpy["handle"]("yes please", Info)
    print(status, max(found, key=found.get), process.threads(), sorted({*sys.modules} - before), flush=True)
    os._exit(0)
os.wait()
print(process.threads())
"""


def test_a_worker_can_be_forked_of_it(make: Make, tmp_path: Path) -> None:
    """The generated file leaves no threads and no sockets behind, and what a prediction needs is loaded by then."""
    function = make()
    name = function.train(SAMPLES, LABELS)["modelId"]
    handler = tmp_path / "handler.py"
    handler.write_text(generated(function.function, str(tmp_path), name))
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in threads}

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(handler)], capture_output=True, text=True, check=True, env=environment
    )

    assert done.stderr == ""
    assert done.stdout == "200 good 1 []\n1\n"


def test_labels_may_be_called_anything(make: Make) -> None:
    """Among them what the host would take for parts of an answer, were it alone."""
    function = make()
    labels = ["status_code", "body"]
    function.train([(text, labels[label == "good"]) for text, label in SAMPLES], labels)

    body, status = function.call("yes")

    assert status == 200
    assert {*body} == {*labels}
    assert json.loads(json.dumps(body)) == body
