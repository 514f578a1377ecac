"""The line of every key of a TOML document, which `tomllib` does not tell.

`config` asks when it has a problem to report. The scanner only finds where keys and values begin and end;
decoding a quoted key is left to `tomllib`.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Any

KeyPath = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_PART = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_SCALAR = re.compile(
    # Up to two quotes may stand before the closing three of a multi-line string and belong to it.
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|[^\s,\[\]{}#\"'][^,\]}#\n]*",
    re.DOTALL,
)


class KeyLines:
    """Where the keys are in a text that `tomllib` accepts; in any other, up to where it stops making sense.

    `lines` has one entry for each table, key and array element, by its path: `("server", "bind")`,
    `("methods", 0)`. A table that has a header of its own is on the header's line, otherwise on that of the
    first key that mentions it.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._last_element: dict[KeyPath, int] = {}
        try:
            self._document()
        except (_Lost, RecursionError):
            return

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or else of the innermost table around it that the document has; or else 1."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def _document(self) -> None:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: the path of the table that the next keys go to."""
        line = self._line()
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        self._skip(_SPACE)
        path: KeyPath = ()
        keys = self._key()
        for part in keys[:-1]:
            path = self._open((*path, part), line)
        path = (*path, keys[-1])
        if brackets == 2:
            self.lines.setdefault(path, line)
            self._last_element[path] = self._last_element.get(path, -1) + 1
        path = self._open(path, line)
        self.lines[path] = line
        self._skip(_SPACE)
        self._expect("]" * brackets)
        return path

    def _open(self, path: KeyPath, line: int) -> KeyPath:
        """`path`, noted; in an array of tables its last element is meant."""
        self.lines.setdefault(path, line)
        if path in self._last_element:
            path = (*path, self._last_element[path])
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._skip(_SPACE)
        self._expect("=")
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self._at : self._at + 1]
        if opening not in ("[", "{"):
            self._take(_SCALAR)
            return
        closing = "]" if opening == "[" else "}"
        self._at += 1
        self._skip(_BLANK)
        count = 0
        while not self._text.startswith(closing, self._at):
            if opening == "[":
                self.lines[(*path, count)] = self._line()
                self._value((*path, count))
                count += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if not self._text.startswith(closing, self._at):
                self._expect(",")
            self._skip(_BLANK)
        self._at += 1

    def _key(self) -> list[str]:
        raw = self._take(KEY)
        if '"' not in raw and "'" not in raw:
            return [part.strip(" \t") for part in raw.split(".")]
        try:
            decoded: Any = tomllib.loads(f"{raw} = 0")
        except tomllib.TOMLDecodeError:
            raise _Lost from None
        parts = []
        while isinstance(decoded, dict):
            ((part, decoded),) = decoded.items()
            parts.append(part)
        return parts

    def _line(self) -> int:
        return bisect_right(self._breaks, self._at) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Lost
        self._at = found.end()
        return found[0]

    def _expect(self, token: str) -> None:
        if not self._text.startswith(token, self._at):
            raise _Lost
        self._at += len(token)


class _Lost(Exception):
    """The text is not TOML from here on."""
