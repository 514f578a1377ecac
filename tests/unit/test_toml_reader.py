"""The kinds of values: durations, sizes, numbers, methods, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import toml_reader

BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
READERS: dict[str, Callable[[Any], Any]] = {
    "duration": toml_reader.duration,
    "size": toml_reader.size,
    "integer": lambda raw: toml_reader.integer(1, raw),
    "boolean": toml_reader.boolean,
    "string": toml_reader.string,
    "table": toml_reader.table_of,
    "methods": toml_reader.methods,
    "choice": lambda raw: toml_reader.choice(("auto", "never"), raw),
}


@settings(deadline=None)
@given(st.integers(1, 10**6), st.sampled_from(sorted(MILLISECONDS)), st.sampled_from(["", " "]))
def test_a_duration_with_a_unit_is_exact(count: int, unit: str, space: str) -> None:
    """A whole number of any unit comes out as the float nearest to it in seconds."""
    text = f"{count}{space}{unit}"
    if count * MILLISECONDS[unit] > 366 * 86_400_000:
        with pytest.raises(ValueError, match="at most 366 days"):
            toml_reader.duration(text)
    else:
        assert toml_reader.duration(text) == count * MILLISECONDS[unit] / 1000


@settings(deadline=None)
@given(st.decimals("0.001", "30000000", places=3))
def test_a_duration_may_have_decimals(seconds: Decimal) -> None:
    """A decimal number of seconds reads the same with the unit, in milliseconds, and as a TOML number."""
    assert toml_reader.duration(f"{seconds:f}s") == float(seconds)
    assert toml_reader.duration(f"{seconds * 1000:f}ms") == float(seconds)
    assert toml_reader.duration(float(seconds)) == float(seconds)


@pytest.mark.parametrize(
    "raw",
    [
        *(
            "",
            "10",
            "s",
            "10 sec",
            "1m30s",
            "-1s",
            "1e3s",
            "0s",
            ".5s",
            "1.s",
            "１s",
            "10s\n",
            "9" * 5000 + "s",
        ),
        *(0, -1, 0.0, float("nan"), float("inf"), float("-inf"), 10**400, True, None, [], {}),
    ],
)
def test_what_is_no_duration(raw: Any) -> None:
    """Neither other strings, nor numbers that are not positive and finite, nor other types."""
    with pytest.raises(ValueError, match=r"duration|more than 0 and at most 366 days"):
        toml_reader.duration(raw)


@pytest.mark.parametrize("raw", [0, 0.0, "0s", "0ms"])
def test_zero_where_it_means_something(raw: Any) -> None:
    """Zero is a duration only where the key allows it."""
    assert toml_reader.duration(raw, zero=True) == 0
    with pytest.raises(ValueError, match="more than 0"):
        toml_reader.duration(raw)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(BYTES)), st.sampled_from(["", " "]))
def test_a_size_is_a_whole_number_of_its_unit(count: int, unit: str, space: str) -> None:
    """Units are powers of 1000, with an i of 1024, in any case; a bare number is bytes."""
    for text in (f"{count}{space}{unit}", f"{count}{space}{unit.lower()}"):
        assert toml_reader.size(text) == count * BYTES[unit]
    assert toml_reader.size(count) == count


@pytest.mark.parametrize(("text", "size"), [("1.5GiB", 3 * 2**29), ("0.1KiB", 102), ("1.0001KB", 1000), ("0B", 0)])
def test_a_size_may_have_decimals(text: str, size: int) -> None:
    """A part of a byte is left off."""
    assert toml_reader.size(text) == size


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "6",
        "6M",
        "6Mi",
        "MiB",
        "-1B",
        "1e3B",
        "1iB",
        "6 megs",
        "9999999TiB",
        -1,
        2**63,
        1.5,
        True,
        None,
        [],
    ],
)
def test_what_is_no_size(raw: Any) -> None:
    """Neither a string without its unit, nor a negative or unrepresentable number, nor another type."""
    with pytest.raises(ValueError, match=r"size|at least 0 bytes"):
        toml_reader.size(raw)


def test_a_size_below_the_least_is_refused() -> None:
    """512 is bytes, where somebody meant MiB."""
    with pytest.raises(ValueError, match="at least 1048576 bytes and less than 2\\^63, not 512"):
        toml_reader.size(512, least=2**20)


@pytest.mark.parametrize("raw", [0, 2**31, -5, 1.0, "1", True])
def test_what_is_no_whole_number_from_one_up(raw: Any) -> None:
    """The bounds hold, and neither a float, a string nor a boolean is taken for a whole number."""
    with pytest.raises(ValueError, match="must be"):
        toml_reader.integer(1, raw)
    assert (toml_reader.integer(1, 1), toml_reader.integer(1, 2**31 - 1)) == (1, 2**31 - 1)


def test_methods_are_put_in_upper_case() -> None:
    """A list of HTTP tokens becomes a set, each once."""
    assert toml_reader.methods(["get", "POST", "Post", "X-PURGE"]) == {"GET", "POST", "X-PURGE"}


@pytest.mark.parametrize("raw", [[], "GET", ["GET POST"], [""], ["GET\n"], ["É"], [1], {}])
def test_what_is_no_list_of_methods(raw: Any) -> None:
    """Empty lists, strings, and strings that are no tokens are refused."""
    with pytest.raises(ValueError, match="HTTP method"):
        toml_reader.methods(raw)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@settings(deadline=None)
@given(raw=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5) | st.times())
def test_a_reader_gives_a_value_or_a_reason(reader: Callable[[Any], Any], raw: Any) -> None:
    """No raw value makes a reader fail in another way, and what it says of one is a single line."""
    reason = ""
    try:
        reader(raw)
    except ValueError as error:
        reason = str(error)
    assert reason.isprintable()


def test_a_long_value_is_shown_in_part() -> None:
    """A message stays readable whatever the file holds."""
    assert len(toml_reader.shown("x" * 10_000)) == 120
