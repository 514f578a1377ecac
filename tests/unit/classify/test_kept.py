"""Models on disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.classify.headers import is_current
from runtime.classify.inputs import Inputs
from runtime.classify.kept import MOST_LOADED, Kept, model_id
from runtime.classify.learning import Model, learn
from runtime.classify.refusals import Refused

MODEL = learn(
    "Classification",
    Inputs({"input": "Text"}).fields,
    [({"": word}, label) for word, label in (("yes", "a"), ("yes!", "a"), ("no", "b"), ("no!", "b"))],
    ["a", "b"],
    lambda fraction, message: None,
).model


def put(kept: Kept, *names: str, spare: str = "") -> None:
    """Each a second newer than the one before."""
    for name in names:
        kept.put(name, MODEL, {"modelId": name}, spare)


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def ids(count: int) -> list[str]:
    return [model_id(str(number)) for number in range(count)]


def age(folder: Path, *order: str) -> None:
    """The files last changed in this order."""
    for second, name in enumerate(order):
        os.utime(folder / f"{name}.model", (1000 + second, 1000 + second))


def edit_header(path: Path, **changes: Any) -> None:
    line, _, content = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(line), **changes}).encode() + b"\n" + content)


def test_ids_are_made_of_what_a_model_is_made_of() -> None:
    """The same for the same, of the form that clients expect."""
    assert re.fullmatch(r"model_[0-9a-z]{16}", model_id("a", "b"))
    assert model_id("a", "b") == model_id("a", "b")
    assert len({model_id("a", "b"), model_id("ab"), model_id("a", "b", ""), model_id("b", "a")}) == 4


def test_a_model_comes_back_in_another_process(tmp_path: Path) -> None:
    """With what was noted of it."""
    (name,) = ids(1)
    put(Kept(tmp_path, 5), name)

    kept = Kept(tmp_path, 5)

    assert kept.get(name).confidences({"": "yes"}) == MODEL.confidences({"": "yes"})
    assert kept.about(name) == {"modelId": name}
    assert is_current(str(tmp_path), name)
    assert not is_current(str(tmp_path), "model_0000000000000000")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["", "model_0000000000000000", "../x", "model_../../../../etc", "a\0b", "é" * 300])
def test_unknown_models_are_refused(tmp_path: Path, name: str) -> None:
    """No path is ever made of what is no id."""
    with pytest.raises(Refused) as refused:
        Kept(tmp_path, 5).get(name)

    assert refused.value.code == "unknown_model"
    assert Kept(tmp_path, 5).about(name) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    """And the one that is spared; what was trained on again is new."""
    kept = Kept(tmp_path, 2)
    one, two, three, four = ids(4)
    put(kept, one)
    put(kept, two)
    age(tmp_path, one, two)
    put(kept, three)
    assert names(tmp_path) == sorted([two, three])

    age(tmp_path, two, three)
    kept.freshen(two)
    put(kept, four, spare="")
    assert names(tmp_path) == sorted([two, four])

    age(tmp_path, two, four)
    put(kept, one, spare=two)
    assert names(tmp_path) == sorted([one, two, four])


def test_what_was_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    """Unless somebody may still be writing it."""
    (name,) = ids(1)
    (tmp_path / "old.partial").touch()
    (tmp_path / "new.partial").touch()
    (tmp_path / "export.jsonl").touch()
    os.utime(tmp_path / "old.partial", (0, 0))

    put(Kept(tmp_path, 5), name)

    assert {path.name for path in tmp_path.iterdir()} == {"new.partial", "export.jsonl", f"{name}.model"}


@pytest.mark.parametrize("what", ["cut", "flipped", "empty", "no header", "list", "format", "sklearn", "class"])
def test_what_cannot_be_used_is_to_be_trained_again(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, or of another version: nothing of it is unpickled."""
    (name,) = ids(1)
    put(Kept(tmp_path, 5), name)
    path = tmp_path / f"{name}.model"
    content = path.read_bytes()
    match what:
        case "cut":
            path.write_bytes(content[:-10])
        case "flipped":
            path.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
        case "empty":
            path.write_bytes(b"")
        case "no header":
            path.write_bytes(content.partition(b"\n")[2])
        case "list":
            path.write_bytes(b"[]\n")
        case "format":
            edit_header(path, format=0)
        case "sklearn":
            edit_header(path, sklearn="0.24.0")
        case _:
            monkeypatch.delattr("runtime.classify.features.Terms")

    assert is_current(str(tmp_path), name) == (what in ("cut", "flipped", "class"))  # a look at the first line
    with pytest.raises(Refused, match="train again") as refused:
        Kept(tmp_path, 5).get(name)

    assert refused.value.code == "outdated_model"
    assert Kept(tmp_path, 5).about(name) is None


def test_few_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used last; these are answered from memory."""
    kept = Kept(tmp_path, 9)
    several = ids(MOST_LOADED + 1)
    put(kept, *several)
    for name in several:
        kept.get(name)
        assert isinstance(kept.get(several[-1]), Model)
    for name in several:
        (tmp_path / f"{name}.model").unlink()

    assert isinstance(kept.get(several[-1]), Model)
    with pytest.raises(Refused):
        kept.get(several[0])
