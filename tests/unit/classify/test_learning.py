"""Models of a few samples, and how large the confidences are."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.classify import regression
from runtime.classify.inputs import Inputs, Row
from runtime.classify.learning import Annotation, Learned, learn
from runtime.classify.refusals import Refused

TEXT = Inputs({"input": "Text"}).fields
TABLE = Inputs(
    {
        "input": "Tabular",
        "fields": [{"id": "n", "name": "n", "type": "Number"}, {"id": "t", "name": "t", "type": "Text"}],
    }
)
FRUIT = ["an apple a day", "apple pie", "apples and pears", "a green apple", "apple juice"]
CARS = ["a fast car", "the car stopped", "cars and lorries", "wash the car", "car keys"]


def texts(*groups: tuple[list[str], Annotation]) -> list[tuple[Row, Annotation]]:
    return [({"": text}, annotation) for group, annotation in groups for text in group]


def trained(
    samples: list[tuple[Row, Annotation]], labels: str, output: str = "Classification", fields: Any = TEXT
) -> Learned:
    return learn(output, fields, samples, labels.split(), lambda fraction, message: None)


def test_five_samples_of_each_are_enough_to_begin_with() -> None:
    """The confidences of all labels, the best first, sum to 1; the accuracy is estimated."""
    learned = trained(texts((FRUIT, "fruit"), (CARS, "car")), "car fruit")

    found = learned.model.confidences({"": "my apple tree"})

    assert list(found) == ["fruit", "car"]
    assert found["fruit"] > 0.7
    assert sum(found.values()) == pytest.approx(1)
    assert learned.samples == 10
    assert learned.accuracy is not None
    assert learned.accuracy >= 0.8


def test_two_samples_of_two_labels_are_the_least() -> None:
    """Nothing can be said of the accuracy then."""
    learned = trained(texts((FRUIT[:2], "fruit"), (CARS[:2], "car")), "car fruit")

    assert learned.accuracy is None
    assert next(iter(learned.model.confidences({"": "apple"}))) == "fruit"


def test_labels_with_too_few_samples_have_no_confidence() -> None:
    """And those that were not asked for are not there."""
    samples = texts((FRUIT, "fruit"), (CARS, "car"), (["boat"], "boat"), (["deleted"] * 3, "gone"))

    learned = trained(samples, "boat car fruit new")

    assert learned.model.learned == ["car", "fruit"]
    assert learned.samples == 10
    assert list(learned.model.confidences({"": "boat"}).items())[2:] == [("boat", 0.0), ("new", 0.0)]


@pytest.mark.parametrize(
    ("output", "samples"),
    [
        ("Classification", []),
        ("Classification", texts((FRUIT, "fruit"))),
        ("Classification", texts((FRUIT, "fruit"), (["car"], "car"))),
        ("Tags", []),
        ("Tags", texts((FRUIT, {"fruit": True}))),
        ("Tags", texts((FRUIT, {"fruit": True, "car": False}), (CARS, {"other": True}))),
    ],
)
def test_too_few_samples_are_refused(output: str, samples: list[tuple[Row, Annotation]]) -> None:
    """The message says what is missing."""
    with pytest.raises(Refused, match="there must be at least") as refused:
        trained(samples, "car fruit", output)

    assert refused.value.code == "not_trained"


def test_tags_are_independent() -> None:
    """Any number of them is present; samples that do not speak of a tag say nothing about it."""
    samples = texts(
        (FRUIT, {"fruit": True, "car": False}),
        (CARS, {"fruit": False, "car": True}),
        (["an apple in the car", "a car full of apples"], {"fruit": True, "car": True}),
        (["nothing at all", "something else"], {"fruit": False, "car": False}),
        (["loud", "a loud car", "a loud apple"], {"loud": True}),
        (["quiet", "a quiet car", "a quiet apple"], {"loud": False}),
    )

    model = trained(samples, "car fruit loud unused", "Tags").model

    found = model.confidences({"": "quiet apples and a car"})
    assert {label for label, share in found.items() if share >= 0.5} == {"car", "fruit"}
    neither = model.confidences({"": "nothing else"})
    assert max(neither["car"], neither["fruit"]) < 0.5
    assert model.confidences({"": "loud"})["loud"] > 0.5
    assert model.confidences({"": "apples"})["unused"] == 0


def test_one_tag_is_enough() -> None:
    """Present in one sample, absent from another."""
    model = trained(texts((["yes"], {"good": True}), (["no"], {"good": False})), "good", "Tags").model

    assert model.confidences({"": "yes"})["good"] > 0.5 > model.confidences({"": "no"})["good"]


def test_the_same_samples_give_the_same_model() -> None:
    """To the last bit."""
    samples = texts((FRUIT, "fruit"), (CARS, "car"))

    one, other = (pickle.dumps(trained(samples, "car fruit").model) for _ in range(2))

    assert one == other


def test_rare_labels_are_found() -> None:
    """Five of one against two hundred of another."""
    chance = random.Random(1)
    samples = texts(([f"{chance.choice(CARS)} {number}" for number in range(200)], "car"), (FRUIT, "fruit"))

    model = trained(samples, "car fruit").model

    assert model.confidences({"": "apple"})["fruit"] > 0.5


def test_a_range_of_a_number_is_learned() -> None:
    """What is neither low nor high."""
    chance = random.Random(1)
    numbers = [chance.gauss(0, 1) for _ in range(300)]
    samples: list[tuple[Row, Annotation]] = [({"n": x}, "in" if abs(x) < 0.6 else "out") for x in numbers]

    model = trained(samples, "in out", fields=TABLE.fields).model

    assert [next(iter(model.confidences({"n": x}))) for x in (-2.0, 0.1, 2.0)] == ["out", "in", "out"]


def test_missing_values_may_tell_something() -> None:
    """And never stand in the way."""
    samples: list[tuple[Row, Annotation]] = [({"n": 1.0, "t": "x"}, "full"), ({"t": "x"}, "empty"), ({}, "empty")]

    model = trained(samples * 3, "empty full", fields=TABLE.fields).model

    assert next(iter(model.confidences({"n": 1.0}))) == "full"
    assert next(iter(model.confidences({}))) == "empty"


@pytest.mark.parametrize("values", [["", ""], ["!!", "??"], ["same", "same"]])
def test_samples_without_any_difference_give_no_preference(values: list[str]) -> None:
    """There is nothing to learn, and nothing breaks."""
    found = trained(texts((values, "a"), (values, "b")), "a b").model.confidences({"": "x"})

    assert found["a"] == pytest.approx(0.5, abs=0.01)


EXTREMES = st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1e-320, -1e-320, 0.1, 1e100, -1e100, 3.0])
ROWS = st.fixed_dictionaries({}, optional={"n": EXTREMES, "t": st.text(max_size=8)})


@settings(max_examples=60)
@given(st.lists(st.tuples(ROWS, st.sampled_from("abc")), min_size=9, max_size=30), ROWS)
def test_any_values_give_sound_confidences(samples: list[tuple[Row, Annotation]], row: Row) -> None:
    """Sums of 1, no NaN, whatever the numbers and texts."""
    try:
        found = trained(samples, "a b c", fields=TABLE.fields).model.confidences(row)
    except Refused:
        return

    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_of_many_samples_a_part_is_validated() -> None:
    """In folds that all have their share of each class, as far as there is one."""
    chance = np.random.default_rng(2)
    classes = chance.choice(["a", "b", "c"], 5000, p=[0.6, 0.3999, 0.0001])
    matrix = np.column_stack([classes == "a", classes == "b"]) + chance.normal(0, 0.1, (5000, 2))

    found = regression.scores(matrix, classes)

    assert {*found} == {*regression.STRENGTHS}
    assert all(score.accuracy > 0.99 for score in found.values())
