"""Ids: reversible where they stand for a number, stable where they are hashes, and never with a second underscore."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.lessons import ids

SHAPE = re.compile(r"(function|label|field|sample)_[0-9a-z]{16}")


@given(number=st.integers(1, ids.LARGEST))
def test_a_functions_id_is_its_number(number: int) -> None:
    text = ids.function_text(number)

    assert SHAPE.fullmatch(text)
    assert ids.function_number(text) == number
    assert ids.function_number(text.removeprefix("function_")) == number


@pytest.mark.parametrize("text", ["", "function_", "0", "-1", "a_b", "A" * 16, "z" * 16, "z" * 17, "function_ 1", "é"])
def test_what_is_no_number_is_no_id(text: str) -> None:
    assert ids.function_number(text) is None


@given(function=st.integers(1, ids.LARGEST), name=st.text())
def test_hashes_are_stable_and_of_one_shape(function: int, name: str) -> None:
    name = name.encode("utf-8", "ignore").decode()
    found = [ids.label_id(function, name), ids.field_id(function, name), ids.sample_id(function, name.encode())]

    assert all(map(SHAPE.fullmatch, found))
    assert found[0] == ids.label_id(function, name) != ids.label_id(function, name, 1)
    assert found[2] != ids.sample_id(function, name.encode() + b"x")


def test_prefixes_may_be_left_out() -> None:
    assert ids.full("label", "abc") == ids.full("label", "label_abc") == "label_abc"
