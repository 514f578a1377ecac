"""One TOML file while it is read: typed values out, and every problem kept, with its line.

`config` says which keys there are; this knows none of them, only the kinds of values. A reader of one kind
takes the raw value and raises ValueError, worded for the user, when it is wrong.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError
from runtime.toml_lines import KEY, KeyLines, KeyPath

Readers = Mapping[str, Callable[[Any], Any]]

_LONGEST = 366 * 86400.0  # far below where the timers of operating systems overflow
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NAME_RULE = "a name is 1 to 63 of the characters A-Z a-z 0-9 _ -"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE_RULE = "an environment variable's name is letters, digits and _, and begins with no digit"
_METHOD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?"
_DURATION = re.compile(_NUMBER + "(ms|s|m|h)")
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_SIZE = re.compile(_NUMBER + "(?:([KMGT])(I?))?B", re.IGNORECASE)
_ERROR_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Document:
    """A TOML file, parsed into `content`; empty without the file, ConfigError when it is no TOML."""

    def __init__(self, file: Path, *, environ: Mapping[str, str], homes: Mapping[str, str]) -> None:
        """`homes` tells, in words, where a key belongs, to be said where it stands elsewhere."""
        self.file = file
        self.root = Path(os.path.abspath(file.parent))
        self.environ = environ
        self._homes = homes
        self._problems: list[tuple[float, str]] = []
        self.content, self._text = _parse(file)

    def problem(self, path: KeyPath, message: str) -> None:
        """Keep what is wrong with the key or table at `path`."""
        line = self._lines.line(path)
        self._problems.append((line, f"{self.file}:{line}: {message}"))

    def note(self, message: str) -> None:
        """Keep what is wrong elsewhere than in the file."""
        self._problems.append((math.inf, message))

    def refuse_problems(self) -> None:
        """Raise ConfigError with all problems, in the order of their lines, if there are any."""
        if self._problems:
            self._problems.sort(key=lambda problem: problem[0])
            raise refusal([text for _, text in self._problems])

    def values(self, path: KeyPath, table: Mapping[str, Any], readers: Readers) -> dict[str, Any]:
        """The values that are right; each other key of the table becomes a problem."""
        values = {}
        for key, raw in table.items():
            if key not in readers:
                self.problem((*path, key), self._unknown(path, key, raw, readers))
                continue
            try:
                values[key] = readers[key](raw)
            except ValueError as error:
                self.problem((*path, key), f"`{key}` {within(path)}: {error}")
        return values

    def named(self, path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tables below a table whose keys are names of the user's choice."""
        for name, raw in table.items():
            try:
                if not _NAME.fullmatch(name):
                    raise ValueError(_NAME_RULE)
                yield name, table_of(raw)
            except ValueError as error:
                self.problem((*path, name), f"{shown(name)} {within(path)}: {error}")

    def variables(self, path: tuple[str, ...], raw: Any) -> dict[str, str]:
        """The strings of a table, where "env:VAR" and "file:PATH" stand for what is there."""
        for_environment = path[-1] == "env"
        pattern, rule = (_VARIABLE, _VARIABLE_RULE) if for_environment else (_NAME, _NAME_RULE)
        found = {}
        for name, value in table_of(raw).items():
            try:
                if not pattern.fullmatch(name):
                    raise ValueError(rule)
                found[name] = self.variable(value)
                if for_environment and "\0" in found[name]:
                    raise ValueError("an environment variable cannot hold a NUL character")
            except ValueError as error:
                self.problem((*path, name), f"{shown(name)} {within(path)}: {error}")
        return found

    def variable(self, raw: Any) -> str:
        """A string, or what "env:VAR" and "file:PATH" stand for.

        No message here may repeat `raw`, which can be a secret, unless it only refers to one.
        """
        text = string(raw)
        scheme, _, target = text.partition(":")
        if scheme == "file":
            return _file_content(self.path(target))
        if scheme != "env":
            return text
        if not target:
            raise ValueError('"env:" must be followed by the name of an environment variable')
        if target not in self.environ:
            raise ValueError(f"the environment variable {shown(target)} is not set")
        value = self.environ[target]
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"the environment variable {shown(target)} is not UTF-8 text")
        return value

    def path(self, raw: Any) -> Path:
        """A path; a relative one starts at the file's folder."""
        text = string(raw)
        if not text or "\0" in text:
            raise ValueError("must be a path")
        return Path(os.path.abspath(self.root / text))

    def existing_file(self, raw: Any) -> Path:
        """The path of a file that is there."""
        path = self.path(raw)
        if not os.path.isfile(path):
            raise ValueError(f"there is no file {shown(str(path))}")
        return path

    @cached_property
    def _lines(self) -> KeyLines:
        return KeyLines(self._text)

    def _unknown(self, path: KeyPath, key: str, raw: Any, readers: Readers) -> str:
        what = f"unknown key `{key}`" if _NAME.fullmatch(key) else f"unknown key {shown(key)}"
        return f"{what} {within(path)}; {self._hint(path, key, raw, readers)}"

    def _hint(self, path: KeyPath, key: str, raw: Any, readers: Readers) -> str:
        near = difflib.get_close_matches(key.lower(), readers, 1)
        if isinstance(raw, dict) and "functions" in readers and near != ["functions"] and _NAME.fullmatch(key):
            return f"did you mean {within((*path, 'functions', key)).removeprefix('in ')}?"
        if home := self._homes.get(key):
            return f"it belongs in {home}"
        if near:
            return f"did you mean `{near[0]}`?"
        return "the keys here are " + ", ".join(f"`{known}`" for known in readers)


def refusal(problems: list[str]) -> ConfigError:
    """The error that tells all of them."""
    return ConfigError("\n".join(problems), details={"problems": problems})


def within(path: KeyPath) -> str:
    """Where a key stands, in words; which element of a list is left to the line."""
    return f"in [{'.'.join(part for part in path if isinstance(part, str))}]" if path else "at the top level"


def shown(value: object) -> str:
    """A harmless value as it may stand in a message: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def table_of(raw: Any) -> dict[str, Any]:
    """A table."""
    if not isinstance(raw, dict):
        raise ValueError(f"must be a table, not {_kind(raw)}")
    return raw


def string(raw: Any) -> str:
    """Any string."""
    if not isinstance(raw, str):
        raise ValueError(f"must be a string in quotes, not {_kind(raw)}")
    return raw


def boolean(raw: Any) -> bool:
    """true or false."""
    if not isinstance(raw, bool):
        raise ValueError(f"must be true or false, not {_kind(raw)}")
    return raw


def choice(options: tuple[str, ...], raw: Any) -> str:
    """One of these strings."""
    if raw not in options:
        given = shown(raw) if isinstance(raw, str) else _kind(raw)
        allowed = " or ".join(f'"{option}"' for option in options)
        raise ValueError(f"must be {allowed}, not {given}")
    return str(raw)


def integer(least: int, raw: Any) -> int:
    """A whole number from `least` up."""
    if isinstance(raw, bool) or not isinstance(raw, int):
        given = f"the string {shown(raw)}" if isinstance(raw, str) else _kind(raw)
        raise ValueError(f"must be a whole number, not {given}")
    if not least <= raw < 2**31:
        raise ValueError(f"must be {least} to {2**31 - 1}, not {shown(raw)}")
    return raw


def duration(raw: Any, *, zero: bool = False) -> float:
    """Seconds: a number of them, or "500ms", "10s", "2m", "1.5h"."""
    seconds: float
    if isinstance(raw, str):
        found = _DURATION.fullmatch(raw)
        if found is None:
            raise ValueError(f'{shown(raw)} is no duration; use a number of seconds or "500ms", "10s", "2m", "1h"')
        seconds = float(Fraction(found[1]) * _SECONDS[found[2]])
    elif isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f'must be a duration such as 10, "500ms" or "2m", not {_kind(raw)}')
    elif abs(raw) > _LONGEST:  # float() would overflow
        seconds = math.inf
    else:
        seconds = float(raw)
    if not (0 <= seconds <= _LONGEST) or (seconds == 0 and not zero):
        least = "0 to" if zero else "more than 0 and at most"
        raise ValueError(f"must be {least} 366 days, not {shown(raw)}")
    return seconds


def size(raw: Any, *, least: int = 0) -> int:
    """Bytes: a number of them, or "64KiB", "6MiB", "6MB", "1.5GiB"; what is not whole is rounded down."""
    if isinstance(raw, str):
        found = _SIZE.fullmatch(raw)
        if found is None:
            raise ValueError(f'{shown(raw)} is no size; use a number of bytes or "64KiB", "6MiB", "6MB", "1GiB"')
        power = " KMGT".index((found[2] or " ").upper())
        size = int(Fraction(found[1]) * (1024 if found[3] else 1000) ** power)
    elif isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError(f'must be a size such as 65536, "64KiB" or "6MiB", not {_kind(raw)}')
    else:
        size = raw
    if not least <= size < 2**63:
        raise ValueError(f"must be at least {least} bytes and less than 2^63, not {shown(raw)}")
    return size


def methods(raw: Any) -> frozenset[str]:
    """HTTP methods, in upper case."""
    if not isinstance(raw, list) or not raw:
        raise ValueError('must be a list of HTTP methods such as ["GET", "POST"], or "any"')
    for method in raw:
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise ValueError(f"{shown(method) if isinstance(method, str) else _kind(method)} is no HTTP method")
    return frozenset(method.upper() for method in raw)


def strings(what: str, raw: Any) -> list[str]:
    """A list of strings; `what` says of which, with an example."""
    if not isinstance(raw, list) or not all(isinstance(each, str) for each in raw):
        raise ValueError(f"must be a list of {what}")
    return raw


def status_codes(raw: Any) -> frozenset[int]:
    """HTTP statuses that tell of a failure."""
    if not isinstance(raw, list):
        raise ValueError(f"must be a list of statuses such as [429, 503], not {_kind(raw)}")
    for code in raw:
        if isinstance(code, bool) or not isinstance(code, int) or not 400 <= code <= 599:
            raise ValueError(f"{shown(code) if isinstance(code, int) else _kind(code)} is no status from 400 to 599")
    return frozenset(raw)


def optional(word: str, reader: Callable[[Any], Any], raw: Any) -> Any:
    """None for this word, which takes back what an outer table has set; else what `reader` reads."""
    return None if raw == word else reader(raw)


def _kind(raw: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(raw), "a date or time")


def _file_content(path: Path) -> str:
    try:
        content = path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"cannot read {shown(str(path))}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{shown(str(path))} is not UTF-8 text") from None
    return re.sub(r"\r?\n\Z", "", content)


def _parse(file: Path) -> tuple[dict[str, Any], str]:
    """The file's content, parsed and as text."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        raise refusal([f"{file}:1: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise refusal([f"{file}:{line}: not UTF-8 text"]) from None
    try:
        return tomllib.loads(text), text
    except RecursionError:
        raise refusal([f"{file}:1: nested too deeply"]) from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of thousands of digits
        raise refusal([_syntax_problem(file, text, str(error))]) from None


def _syntax_problem(file: Path, text: str, message: str) -> str:
    """tomllib's words, with the place that they end in put before them."""
    line = 1
    if found := _ERROR_PLACE.search(message):
        message = message[: found.start()]
        line = int(found[1] or text.count("\n") + 1)
    key, sign, _ = text.split("\n")[line - 1].partition("=")
    if message == "Cannot overwrite a value" and sign and KEY.fullmatch(key.strip()):
        message += f": is `{key.strip()}` there twice?"
    return f"{file}:{line}: {message[:1].lower()}{message[1:]}"
