"""What functions return, read as labels: every form, whatever is none, and what clients are shown of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.dialects.nyckel import verdicts
from runtime.dialects.nyckel.verdicts import NoLabel
from runtime.lessons import Label, Profile, ids

ONE = Profile(7, "demo", "mood", "demo/mood", "Text", "Classification")
MANY = Profile(7, "demo", "mood", "demo/mood", "Text", "Tags")


def read(value: Any, profile: Profile = ONE) -> list[tuple[str, float]]:
    return list(verdicts.read(json.dumps(value).encode(), profile))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", [("red", 1.0)]),
        (["red", 0.5], [("red", 0.5)]),
        (["red", 1], [("red", 1.0)]),
        ({"red": 0.25, "blue": 0.75}, [("blue", 0.75), ("red", 0.25)]),
        ([["red", 0.25], ["blue", 0.75]], [("blue", 0.75), ("red", 0.25)]),
        ({"labelName": "red", "confidence": 0.5}, [("red", 0.5)]),
        ([{"labelName": "red", "confidence": 0.5}, {"labelName": "blue"}], [("blue", 1.0), ("red", 0.5)]),
        ({"red": 1.0000000001}, [("red", 1.0)]),
        ({"red": -1e-9}, [("red", 0.0)]),
    ],
)
def test_a_label_can_be_returned_in_many_ways(value: Any, expected: list[tuple[str, float]]) -> None:
    assert read(value) == read(value, MANY) == expected


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, "", {}, [], ["red", "blue"], ["red"], ["red", True], {"red": "x"}, {"red": 1.5}, {"red": -0.5},
     {"red": None}, {"labelName": 3}, [["red"]], [[]], "x" * 501, {"answer": "red", "confidence": 0.5}],
)  # fmt: skip
def test_whatever_else_is_returned_is_told(value: Any) -> None:
    with pytest.raises(NoLabel, match=r"`demo/mood` did not answer with a label, but with .*returns \"red\"") as raised:
        read(value)
    assert raised.value.status == 500


def test_tags_may_be_several_or_none() -> None:
    assert read(["red", "blue"], MANY) == [("red", 1.0), ("blue", 1.0)]
    assert read([], MANY) == read({}, MANY) == []
    with pytest.raises(NoLabel, match="a list such as"):
        read([3], MANY)


def test_the_same_label_twice_counts_with_its_best() -> None:
    assert read([["red", 0.25], ["red", 0.5]]) == [("red", 0.5)]


def test_a_trained_function_knows_only_the_labels_that_there_are() -> None:
    labels = (Label(1, "label_a", "doggo", former="dog"), Label(2, "label_b", "cat"))
    trained = Profile(7, "trained", "x", "x", "Text", "Classification", created=True, labels=labels)

    assert read({"dog": 0.5, "gone": 0.4, "cat": 0.1}, trained) == [("doggo", 0.5), ("cat", 0.1)]
    assert verdicts.label_id(trained, "doggo") == "label_a"


def test_an_answer_has_what_was_asked_for() -> None:
    known = Profile(
        7, "demo", "mood", "demo/mood", "Text", "Classification",
        labels=(Label(1, "label_a", "red", metadata={"hex": "f00"}),),
    )  # fmt: skip
    verdict = (("red", 0.75), ("blue", 0.25))
    red = {"labelName": "red", "labelId": "label_a", "confidence": 0.75}
    blue = {"labelName": "blue", "labelId": ids.label_id(7, "blue"), "confidence": 0.25}

    assert verdicts.classification(verdict, known, None, False) == red
    assert verdicts.classification(verdict, known, 1, False) == {**red, "labelConfidences": [red]}
    with_metadata = {**red, "labelMetadata": {"hex": "f00"}}
    assert verdicts.classification(verdict, known, 5, True) == {
        **with_metadata, "labelConfidences": [with_metadata, blue]
    }  # fmt: skip
    assert verdicts.tags(verdict, known, None, False) == [red]
    assert verdicts.tags(verdict, known, 2, False) == [red, blue]


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6,
))  # fmt: skip
def test_whatever_is_returned_is_a_verdict_or_refused(value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return
    for profile in (ONE, MANY):
        try:
            verdict = verdicts.read(text, profile)
        except NoLabel:
            continue
        assert all(0 <= confidence <= 1 for _, confidence in verdict)
        assert [c for _, c in verdict] == sorted((c for _, c in verdict), reverse=True)
        assert verdict or profile is MANY
