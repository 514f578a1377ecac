"""Names with several values: the query and the headers of a call, and how both are read from raw bytes.

Used by `context` (the handler's view), `body` and `multipart` (forms, content types).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus


class MultiDict(Mapping[str, str]):
    """A mapping from each name to its first value that keeps all values, in the order in which they came."""

    __slots__ = ("_lists", "_pairs")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        lists: dict[str, list[str]] = {}
        for name, value in pairs:
            lists.setdefault(name, []).append(value)
        self._lists = lists

    def __getitem__(self, name: str) -> str:
        return self._lists[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._lists

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)

    def get(self, name: str, default: Any = None, type: Callable[[str], Any] | None = None) -> Any:
        """The first value, made a `type` if one is given; the default where there is none that can be."""
        found = self.getlist(name)
        if not found:
            return default
        if type is None:
            return found[0]
        try:
            return type(found[0])
        except (TypeError, ValueError):
            return default

    def getlist(self, name: str) -> list[str]:
        """All values of one name; empty when there is none."""
        return list(self._lists.get(name, ()))

    getall = getlist

    def multi_items(self) -> list[tuple[str, str]]:
        """Every pair, repeated names included, in the order in which they came."""
        return list(self._pairs)

    def to_dict(self, flat: bool = True) -> dict[str, Any]:
        """A plain dict of first values, or of lists of all values when not flat."""
        if flat:
            return dict(self)
        return {name: list(values) for name, values in self._lists.items()}


class Query(MultiDict):
    """The query of a call."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Query({self._pairs!r})"


class Headers(MultiDict):
    """The headers of a call: names are found in any case and listed in lower case."""

    __slots__ = ()

    def __getitem__(self, name: str) -> str:
        return self._lists[name.lower()][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._lists

    def getlist(self, name: str) -> list[str]:
        """All values of one name; empty when there is none."""
        return list(self._lists.get(name.lower(), ()))

    getall = getlist

    def __repr__(self) -> str:
        # Values are left out: they carry credentials, and a repr ends up in logs.
        return f"Headers({list(self._lists)!r})"


def header_pairs(raw: bytes) -> list[tuple[str, str]]:
    """The pairs of a header block in its wire form, `name NUL value NUL name NUL value`."""
    if not raw:
        return []
    fields = raw.decode("latin-1").split("\0")
    if b" \0" in raw or b"\t\0" in raw:  # not every HTTP parser removes the blanks after a value
        fields = [field.strip(" \t") for field in fields]
    return list(zip(fields[::2], fields[1::2], strict=False))


def first_header(raw: bytes, name: bytes) -> bytes:
    """The first value of a header (lower-case name) in a wire block, empty when absent."""
    at = raw.find(name + b"\0")
    while at >= 0:
        # An even number of separators before it: the find is a name, not a value that looks like one.
        if (at == 0 or raw[at - 1] == 0) and not raw.count(b"\0", 0, at) & 1:
            start = at + len(name) + 1
            end = raw.find(b"\0", start)
            return raw[start:] if end < 0 else raw[start:end]
        at = raw.find(name + b"\0", at + 1)
    return b""


def query_pairs(raw: bytes) -> list[tuple[str, str]]:
    """The pairs of a query or an urlencoded form: blank values kept, `+` is a space, bad UTF-8 replaced."""
    text = raw.decode("utf-8", "replace")
    escaped = "%" in text or "+" in text
    pairs = []
    for field in text.split("&"):
        if not field:
            continue
        name, _, value = field.partition("=")
        pairs.append((unquote_plus(name), unquote_plus(value)) if escaped else (name, value))
    return pairs


def merged(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """One dict of all pairs: a name's only value as it is, the values of a repeated name as a list."""
    result: dict[str, Any] = {}
    repeated: set[str] = set()
    for name, value in pairs:
        if name in repeated:
            result[name].append(value)
        elif name in result:
            result[name] = [result[name], value]
            repeated.add(name)
        else:
            result[name] = value
    return result


def parameters(value: str) -> dict[str, str]:
    """The parameters after the first `;` of a header value, names in lower case, quoted strings unquoted."""
    found: dict[str, str] = {}
    at = value.find(";")
    while at >= 0:
        equals = value.find("=", at)
        if equals < 0:
            break
        name = value[at + 1 : equals].rpartition(";")[2].strip().lower()
        start = equals + 1
        while value[start : start + 1] in (" ", "\t"):
            start += 1
        if value[start : start + 1] == '"':
            text, at = _quoted(value, start + 1)
        else:
            at = value.find(";", start)
            text = (value[start:] if at < 0 else value[start:at]).strip()
        found.setdefault(name, text)
    return found


def _quoted(value: str, start: int) -> tuple[str, int]:
    """A quoted string's content from its first character on, and where the next `;` is."""
    end = value.find('"', start)
    while end > 0 and _escaped(value, start, end):
        end = value.find('"', end + 1)
    if end < 0:
        return value[start:], -1
    # Only \" and \\ are escapes: a lone backslash belongs to a Windows path.
    text = value[start:end].replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\")
    return text, value.find(";", end)


def _escaped(value: str, start: int, quote: int) -> bool:
    run = quote
    while run > start and value[run - 1] == "\\":
        run -= 1
    return bool((quote - run) & 1)


def charset_of(content_type: bytes) -> str:
    """The charset that a content type names, `utf-8` where it names none."""
    if b"charset" not in content_type.lower():
        return "utf-8"
    return parameters(content_type.decode("latin-1")).get("charset") or "utf-8"
