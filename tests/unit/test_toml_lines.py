"""KeyLines: the line of every key, whatever stands between the keys."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.toml_lines import KeyLines, KeyPath

SCALARS = [
    "1",
    "-0.5e3",
    "true",
    "0xff_ff",
    "1979-05-27 07:32:00Z",
    "07:32:00",
    '""',
    '"# no comment"',
    r'"a \" = \\"',
    "'[no.table]'",
    "'C:\\'",
    '"""one line"""',
    '"""\nk1 = 2\n[k2]\n# \\""" {\n"""',
    '"""ends in quotes"""""',
    '"""" begins with one"""',
    "'''\nk1 = 2\n'k2' = '\n[[k3]]\n'''",
    "'''ends in quotes'''''",
    '"""\\\n   k1 = 1 \\\\"""',
]
GAPS = ["", "\n", "\r\n", "\n\n", "  # k1 = 1\n", "\n\t# [k2]\n \n"]


class Writer:
    """Writes a TOML document from drawn choices, noting the line of each key as it writes it."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self.names = 0

    def pick(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def line(self) -> int:
        return self.text.count("\n") + 1

    def name(self) -> str:
        """A new key, the same as in the decoys of SCALARS where the number is small."""
        self.names += 1
        return f"k{self.names}" + self.pick(["", "", "-_", " ", ".x", "'", '"', "]", "=", "#", "é", "\n"])

    def key(self, name: str) -> str:
        """The name in one of the ways of writing a key."""
        escaped = '"' + "".join(f"\\u{ord(character):04x}" for character in name) + '"'
        ways = [escaped]
        if not set(name) & set("'\n"):
            ways.append(f"'{name}'")
        if not set(name) & set('"\n'):
            ways.append(f'"{name}"')
        if name.isascii() and name.replace("-", "").replace("_", "").isalnum():
            ways += [name] * 3
        return self.pick(ways)

    def dot(self) -> str:
        return self.pick([".", " . ", ".\t"])

    def value(self, path: KeyPath, depth: int = 0) -> None:
        kind = self.pick(["scalar", "scalar", "array", "inline"] if depth < 3 else ["scalar"])
        if kind == "array":
            self.array(path, depth)
        elif kind == "inline":
            self.inline(path, depth)
        else:
            self.text += self.pick(SCALARS)

    def array(self, path: KeyPath, depth: int) -> None:
        self.text += "["
        count = self.draw(st.integers(0, 3))
        for index in range(count):
            self.text += self.pick(GAPS)
            self.lines[(*path, index)] = self.line()
            self.value((*path, index), depth + 1)
            self.text += self.pick(GAPS) + ("," if index < count - 1 else self.pick(["", ","]))
        self.text += self.pick(GAPS) + "]"

    def inline(self, path: KeyPath, depth: int) -> None:
        self.text += "{ "
        for index in range(self.draw(st.integers(0, 3))):
            self.text += ", " if index else ""
            self.pair(path, depth + 1)
        self.text += " }"

    def pair(self, table: KeyPath, depth: int = 0) -> None:
        names = [self.name() for _ in range(self.pick([1, 1, 2, 3]))]
        for count in range(1, len(names) + 1):
            self.lines[(*table, *names[:count])] = self.line()
        self.text += self.dot().join(self.key(name) for name in names) + self.pick([" = ", "=", "\t="])
        self.value((*table, *names), depth)

    def body(self, table: KeyPath) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            self.text += self.pick(["", "  "])
            self.pair(table)
            self.text += self.pick(GAPS[1:])

    def tables(self) -> None:
        """A table, one below it whose header comes first or last; an array of tables, with tables below."""
        outer, inner, array = self.name(), self.name(), self.name()
        headers = [(outer,), (outer, inner)]
        for path in self.draw(st.permutations(headers)):
            self.lines.setdefault((outer,), self.line())
            self.lines[path] = self.line()
            self.text += "[" + self.dot().join(self.key(part) for part in path) + "]" + self.pick(GAPS[1:])
            self.body(path)
        for index in range(self.draw(st.integers(0, 2))):
            self.lines.setdefault((array,), self.line())
            self.lines[(array, index)] = self.line()
            self.text += f"[[ {self.key(array)} ]]" + self.pick(GAPS[1:])
            self.body((array, index))
            self.lines[(array, index, inner)] = self.line()
            self.text += f"[{self.key(array)}.{self.key(inner)}]" + self.pick(GAPS[1:])
            self.body((array, index, inner))


@st.composite
def documents(draw: Any) -> Writer:
    """A document and the lines of its keys."""
    writer = Writer(draw)
    writer.text += writer.pick(GAPS)
    writer.body(())
    for _ in range(draw(st.integers(0, 2))):
        writer.tables()
    return writer


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """The path of everything in a parsed document."""
    if isinstance(value, dict):
        return {path}.union(*(paths(inner, (*path, key)) for key, inner in value.items()))
    if isinstance(value, list):
        return {path}.union(*(paths(inner, (*path, index)) for index, inner in enumerate(value)))
    return {path}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_every_key_of_any_document_has_its_line(writer: Writer) -> None:
    """Every path that tomllib finds is known, no other is, and each is on the line where it was written."""
    assert paths(tomllib.loads(writer.text)) - {()} == set(writer.lines)
    assert KeyLines(writer.text).lines == writer.lines


@settings(deadline=None)
@given(st.text(alphabet="ab.=[]{},\"'\\#\n \t1", max_size=60))
def test_text_that_is_no_toml_does_no_harm(text: str) -> None:
    """Any text at all is scanned to an end, and a path always has a line of the text."""
    assert 1 <= KeyLines(text).line(("a", "b")) <= text.count("\n") + 1


def test_a_key_inside_a_multi_line_string_is_no_key() -> None:
    """What looks like the key within a string before it is passed over."""
    text = 'note = """\ntimeout = 1\n"""\ntimeout = 2\n'
    assert KeyLines(text).line(("timeout",)) == 4


def test_a_table_is_where_its_own_header_is() -> None:
    """A header counts more than an earlier mention of the table in another header."""
    text = "[a.b.c]\nx = 1\n[a.b]\n[a]\n"
    lines = KeyLines(text)
    assert [lines.line(path) for path in [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "x")]] == [
        4,
        3,
        1,
        2,
    ]


@pytest.mark.parametrize(("path", "line"), [(("a", "missing"), 2), (("a", "x", "y", "z"), 3), (("b",), 1)])
def test_what_is_not_there_is_where_the_table_is(path: KeyPath, line: int) -> None:
    """The innermost known table around a path stands in for it; without one, the first line."""
    assert KeyLines("\n[a]\nx = {}\n").line(path) == line


def test_only_line_feeds_begin_lines() -> None:
    """Other characters that Python counts as line ends do not, just as in tomllib's messages."""
    assert KeyLines("a = '\x85\u2028'\r\nb = 1").line(("b",)) == 2


def test_deep_nesting_is_followed() -> None:
    """A document as deeply nested as tomllib can parse is scanned to its end."""
    text = "a = " + "[" * 150 + "{ b = 1 }" + "]" * 150 + "\nz = 1"
    tomllib.loads(text)
    assert KeyLines(text).line(("z",)) == 2
