"""The query, the headers, and how both are read."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.multi import (
    Headers,
    Query,
    charset_of,
    first_header,
    header_pairs,
    merged,
    parameters,
    query_pairs,
)

NAMES = st.text(st.sampled_from("abc-"), min_size=1, max_size=4)
VALUES = st.one_of(st.sampled_from(["a", "b-c", "content-type", ""]), st.text("xyz;= ", max_size=6))
TOKENS = st.text("abcXYZ019-_.", min_size=1, max_size=8)


def wire(pairs: list[tuple[str, str]]) -> bytes:
    return "\0".join(part for pair in pairs for part in pair).encode("latin-1")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_query_round_trip(pairs: list[tuple[str, str]]) -> None:
    """Whatever is urlencoded is read back the same, repeated names and blank values included."""
    assert query_pairs(urlencode(pairs, errors="replace").encode()) == [
        (name.encode("utf-8", "replace").decode(), value.encode("utf-8", "replace").decode()) for name, value in pairs
    ]


@settings(deadline=None)
@given(st.text("ab=&+%2f;é", max_size=30))
def test_query_agrees_with_the_standard_library(raw: str) -> None:
    """Odd queries are read as `urllib.parse` reads them."""
    assert query_pairs(raw.encode()) == parse_qsl(raw, keep_blank_values=True)


def test_query_values() -> None:
    """The first value is found by name, all of them by `getlist`, and the document's order is kept."""
    query = Query(query_pairs(b"b=1&a=&b=2&c+d=x%20y+z"))
    assert query["b"] == "1"
    assert query.get("b", type=int) == 1
    assert query.get("c d", 7, type=int) == 7
    assert query.get("nope") is None
    assert query.getlist("b") == query.getall("b") == ["1", "2"]
    assert query.getlist("nope") == []
    assert query.multi_items() == [("b", "1"), ("a", ""), ("b", "2"), ("c d", "x y z")]
    assert dict(query) == query.to_dict() == {"b": "1", "a": "", "c d": "x y z"}
    assert query.to_dict(flat=False) == {"b": ["1", "2"], "a": [""], "c d": ["x y z"]}
    assert query == {"b": "1", "a": "", "c d": "x y z"}
    assert len(query) == 3
    assert "a" in query
    assert "B" not in query
    with pytest.raises(KeyError):
        query["nope"]


def test_lists_are_copies() -> None:
    """Changing a list that was handed out does not change the query."""
    query = Query([("a", "1")])
    query.getlist("a").append("2")
    query.multi_items().clear()
    query.to_dict(flat=False)["a"].append("3")
    assert query.getlist("a") == ["1"]
    assert query.multi_items() == [("a", "1")]


def test_headers_in_any_case() -> None:
    """Header names are found in any case, values are kept apart, latin-1 comes through."""
    headers = Headers(header_pairs(b"host\0h:1\0x-a\0\xe9\0x-a\0two\0x-empty\0"))
    assert headers["X-A"] == headers["x-a"] == headers.get("X-a") == "é"
    assert headers.getlist("X-A") == headers.getall("X-A") == ["é", "two"]
    assert headers["X-Empty"] == ""
    assert "HOST" in headers
    assert 3 not in headers
    assert list(headers) == ["host", "x-a", "x-empty"]


def test_headers_repr_hides_values() -> None:
    """The repr of headers names them and shows no value."""
    shown = repr(Headers([("authorization", "Bearer secret")]))
    assert "authorization" in shown
    assert "secret" not in shown


def test_no_headers() -> None:
    """An empty block has no headers."""
    assert header_pairs(b"") == []
    assert first_header(b"", b"a") == b""


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), NAMES)
def test_first_header_finds_names_only(pairs: list[tuple[str, str]], name: str) -> None:
    """The quick look-up agrees with parsing the block, also where values look like names."""
    expected = next((value for found, value in pairs if found == name), "")
    assert first_header(wire(pairs), name.encode()) == expected.encode()


def test_first_header_is_not_fooled_by_a_value() -> None:
    """A value that is a header's name, or a name that ends like it, is not that header."""
    raw = b"x-a\0content-type\0x-content-type\0wrong\0content-type\0text/plain\0z\0y"
    assert first_header(raw, b"content-type") == b"text/plain"


def test_merged_keeps_repeated_values() -> None:
    """A name's only value stands alone, repeated ones in a list, whatever they are."""
    assert merged([("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")]) == {"a": ["1", "3", "4"], "b": "2"}
    assert merged([("a", ["x"]), ("a", "y")]) == {"a": [["x"], "y"]}


@settings(deadline=None)
@given(st.dictionaries(TOKENS.map(str.lower), TOKENS))
def test_parameters_of_tokens(pairs: dict[str, str]) -> None:
    """Unquoted parameters are read back."""
    assert parameters("a/b" + "".join(f" ; {name}={value}" for name, value in pairs.items())) == pairs


@settings(deadline=None)
@given(st.dictionaries(TOKENS.map(str.lower), st.text(st.characters(exclude_categories=["Cc", "Cs"]))))
def test_parameters_in_quotes(pairs: dict[str, str]) -> None:
    """Quoted parameters are read back whatever they contain: quotes, backslashes, semicolons."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in pairs.items()}
    assert parameters("a/b" + "".join(f'; {name}="{value}"' for name, value in quoted.items())) == pairs


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text/plain", {}),
        ("text/plain;", {}),
        ("text/plain; x", {}),
        ("text/plain; x; A=b", {"a": "b"}),
        ("text/plain;a=1;a=2", {"a": "1"}),
        ('text/plain;a="unclosed', {"a": "unclosed"}),
        ('x; filename="C:\\dir\\f.txt"; b=c', {"filename": "C:\\dir\\f.txt", "b": "c"}),
        ("x; a=; b= c ", {"a": "", "b": "c"}),
    ],
)
def test_odd_parameters(value: str, expected: dict[str, str]) -> None:
    """Parameters that are not quite right are read sensibly."""
    assert parameters(value) == expected


@settings(deadline=None)
@given(st.text('ab;="\\ ', max_size=30))
def test_parameters_always_end(value: str) -> None:
    """No header value makes the parser fail or run for ever."""
    assert isinstance(parameters(value), dict)


def test_charset() -> None:
    """The charset is the content type's, UTF-8 where it says nothing."""
    assert charset_of(b"text/plain; Charset=ISO-8859-1") == "ISO-8859-1"
    assert charset_of(b'text/plain; charset="utf-16"') == "utf-16"
    assert charset_of(b"text/plain") == charset_of(b"") == charset_of(b"text/plain; charset=") == "utf-8"


def test_blanks_around_header_values_are_no_part_of_them() -> None:
    """Also where the HTTP parser has left them there."""
    assert header_pairs(b"a\0one \0b\0in the middle\t\0c\0") == [("a", "one"), ("b", "in the middle"), ("c", "")]
