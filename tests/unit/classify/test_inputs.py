"""The data of a call as values of the function's fields."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.classify.inputs import LONGEST_TEXT, Inputs
from runtime.classify.refusals import Refused
from tests.unit.classify.conftest import data_uri, encoded
from tests.unit.classify.test_images import picture

FIELDS = [
    {"id": "field_aaa", "name": "age", "type": "Number"},
    {"id": "bbb", "name": "note", "type": "Text"},
    {"id": "field_ccc", "name": "photo", "type": "Image"},
    {"id": "field_ddd", "name": "aaa", "type": "Number"},
]
TABLE = Inputs({"input": "Tabular", "fields": FIELDS})


@pytest.mark.parametrize(
    ("data", "row"),
    [
        ({"age": 3, "note": "x"}, {"aaa": 3.0, "bbb": "x"}),
        ({"field_aaa": 3, "field_bbb": "x"}, {"aaa": 3.0, "bbb": "x"}),
        ({"bbb": "x", "ddd": 1}, {"bbb": "x", "ddd": 1.0}),
        ({"aaa": 4}, {"ddd": 4.0}),  # the name of one, the id of another: the name
        ({"age": 1, "field_aaa": 2}, {"aaa": 1.0}),
        ({"field_aaa": 2, "age": 1}, {"aaa": 1.0}),
        ({"age": None, "colour": "red"}, {}),
        ({"age": 10**400}, {"aaa": 1e100}),
        ({}, {}),
    ],
)
def test_a_table_is_read_by_names_and_ids(data: dict[str, Any], row: dict[str, Any]) -> None:
    """With or without the prefix; what is unknown or null is left out."""
    assert TABLE.read(data) == row


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("x", "an object"),
        ([], "an object"),
        ({"age": "3"}, "'age' is to be a number"),
        ({"age": True}, "'age' is to be a number"),
        ({"age": float("nan")}, "'age' is not a number"),
        ({"note": 3}, "'note' is to be a text"),
        ({"photo": "x"}, "'photo' is no data URI"),
        ({"photo": b"x"}, "'photo' is no image"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: Any, complaint: str) -> None:
    """A string for a number is not converted: it would not be counted as the same sample."""
    with pytest.raises(Refused, match=complaint):
        TABLE.read(data)


def test_text_and_images_are_one_value() -> None:
    """Of a text, the beginning counts."""
    assert Inputs({"input": "Text"}).read("x" * 60_000) == {"": "x" * LONGEST_TEXT}
    assert len(Inputs({"input": "Image"}).read(data_uri(encoded(picture())))[""]) > 1000
    with pytest.raises(Refused, match="data is to be a text"):
        Inputs({"input": "Text"}).read({})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["age", "note", "photo"]) | st.text(), inner),
)


@given(st.sampled_from([TABLE, Inputs({"input": "Text"}), Inputs({"input": "Image"})]), JSON)
def test_any_json_is_read_or_refused(inputs: Inputs, data: Any) -> None:
    """Nothing else comes out, whatever is sent."""
    with contextlib.suppress(Refused):
        inputs.read(data)
