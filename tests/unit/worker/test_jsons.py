"""JSON with and without msgspec: the same values, the same refusals."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import socket
import types
import uuid
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker import jsons
from runtime.worker.faults import NotEncodable, Refused
from runtime.worker.multi import Query

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
BOTH = pytest.mark.parametrize("engine", [msgspec, None], ids=["msgspec", "stdlib"])


class Colour(enum.Enum):
    RED = "r"
    ONE = 1


class Count(enum.IntEnum):
    TWO = 2


class Pair(NamedTuple):
    a: int
    b: str


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


@dataclasses.dataclass
class Point:
    x: float
    tags: set[str]


@dataclasses.dataclass(slots=True)
class Slotted:
    when: dt.date


class Model(pydantic.BaseModel):
    n: float
    at: dt.datetime


class Attrs:
    """What attrs makes of a class, as far as it matters here."""

    __attrs_attrs__ = (types.SimpleNamespace(name="a"),)

    def __init__(self, a: Any) -> None:
        self.a = a


def with_both(monkeypatch: pytest.MonkeyPatch, function: Any, argument: Any) -> list[Any]:
    results = []
    for engine in (msgspec, None):
        monkeypatch.setattr(jsons, "MSGSPEC", engine)
        try:
            results.append(function(argument))
        except (Refused, NotEncodable) as error:
            results.append((type(error), error.message, error.details))
    return results


# -- decoding -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TREES)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    """A tree of JSON values survives the way out and in, with and without msgspec, in any combination."""
    with pytest.MonkeyPatch.context() as patch:
        texts = with_both(patch, jsons.dumps, value)
        for text in texts:
            assert with_both(patch, jsons.loads, text) == [value, value]
            assert json.loads(text) == value


@settings(deadline=None)
@given(st.text('{}[]",:0123456789.eE-+ntfalsruNI\\ud8\n', max_size=25).map(str.encode) | st.binary(max_size=12))
def test_any_text_is_judged_the_same(text: bytes) -> None:
    """Any bytes are either the same value with and without msgspec, or refused by both in the same words."""
    with pytest.MonkeyPatch.context() as patch:
        first, second = with_both(patch, jsons.loads, text)
    assert first == second
    assert type(first) is type(second)


@BOTH
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b" [1, 2.5, null, true]\n", [1, 2.5, None, True]),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b'"\\ud83d\\ude00"', "😀"),
        (b"1e-999", 0.0),
        (b'"NaN"', "NaN"),
    ],
)
def test_valid(monkeypatch: pytest.MonkeyPatch, engine: Any, text: bytes, value: Any) -> None:
    """Valid JSON is decoded, a byte order mark is passed over."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    assert jsons.loads(text) == value


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"{", b'{"a":}', b"[1,]", b"01", b"1 2", b"nope", b"'a'", b'"\n"', b'"\\x"', b"\xff"),
        *(b"NaN", b"[Infinity]", b"-Infinity", b"1e999", b"9" * 5000, b"9" * 400 + b".0"),
        *(b'"\\ud800"', b'{"\\udc00":1}', b'"\xed\xa0\x80"', "é".encode("latin-1"), '"a"'.encode("utf-16")),
        *(b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_invalid(monkeypatch: pytest.MonkeyPatch, engine: Any, text: bytes) -> None:
    """What is not JSON is refused, NaN and numbers out of range and lone surrogates included."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    with pytest.raises(Refused) as refused:
        jsons.loads(text)
    assert (refused.value.status, refused.value.code) == (400, "bad_json")


@BOTH
@pytest.mark.parametrize(
    ("text", "position", "line", "column"),
    [
        (b'{"a": 1,\n "b" 2}', 14, 2, 6),
        ('{"é": }'.encode(), 7, 1, 8),
        (b"\xef\xbb\xbf[x]", 4, 1, 5),
        (b'["a\xff"]', 3, 1, 4),
    ],
)
def test_position(
    monkeypatch: pytest.MonkeyPatch, engine: Any, text: bytes, position: int, line: int, column: int
) -> None:
    """A refusal says at which byte, line and column."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    with pytest.raises(Refused, match=f"byte {position} \\(line {line}, column {column}\\)") as refused:
        jsons.loads(text)
    assert refused.value.details == {"position": position, "line": line, "column": column}


# -- encoding -------------------------------------------------------------------------------------------


class Custom(pydantic.RootModel[list[int]]):
    pass


@BOTH
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": math.nan, "b": [math.inf, -math.inf]}, {"a": None, "b": [None, None]}),
        ([Colour.RED, Colour.ONE, Count.TWO], ["r", 1, 2]),
        ({Colour.RED: 1, Count.TWO: 2, 3: 3, 1.5: 4}, {"r": 1, "2": 2, "3": 3, "1.5": 4}),
        ({True: 1, None: 2, False: Colour.RED}, {"true": 1, "null": 2, "false": "r"}),
        ({True: 1, "x": True}, {"true": 1, "x": True}),
        ([Pair(1, "x"), (1, 2), {3}, frozenset([4])], [[1, "x"], [1, 2], [3], [4]]),
        ([Text("t"), Number(5), Real(2.5), Real(math.nan)], ["t", 5, 2.5, None]),
        ({Text("k"): 1, Number(5): 2}, {"k": 1, "5": 2}),
        ([b"abc", bytearray(b"x"), memoryview(b"x")], ["YWJj", "eA==", "eA=="]),
        (Point(1.0, {"a"}), {"x": 1.0, "tags": ["a"]}),
        ([Slotted(dt.date(2020, 1, 2))], [{"when": "2020-01-02"}]),
        (
            {"m": Model(n=math.nan, at=dt.datetime(2020, 1, 2, tzinfo=dt.UTC))},
            {"m": {"n": None, "at": "2020-01-02T00:00:00Z"}},
        ),
        (Custom([1, 2]), [1, 2]),
        (Attrs({1}), {"a": [1]}),
        (
            [dt.datetime(2020, 1, 2, 3, 4, 5, 6), dt.datetime(2020, 1, 2, tzinfo=dt.UTC)],
            ["2020-01-02T03:04:05.000006", "2020-01-02T00:00:00Z"],
        ),
        ([dt.time(1, 2), dt.time(1, tzinfo=dt.UTC)], ["01:02:00", "01:00:00Z"]),
        ([dt.timedelta(1, 5.5), dt.timedelta(-1), dt.timedelta(0)], ["P1DT5.5S", "-P1D", "P0D"]),
        ({dt.date(2020, 1, 1): 1, uuid.UUID(int=1): 2}, {"2020-01-01": 1, str(uuid.UUID(int=1)): 2}),
        ([uuid.UUID(int=1), decimal.Decimal("1.10")], [str(uuid.UUID(int=1)), "1.10"]),
        ([collections.deque([1]), range(2), {"a": 1}.keys()], [[1], [0, 1], ["a"]]),
        (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
        ([Query([("a", "1"), ("a", "2")]), pathlib.PurePosixPath("/x")], [{"a": "1"}, "/x"]),
        (2**70, 2**70),
        ("\u2028é😀\x00", "\u2028é😀\x00"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_encoded(monkeypatch: pytest.MonkeyPatch, engine: Any, value: Any, expected: Any) -> None:
    """Values of many types become the same JSON with and without msgspec."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    assert json.loads(jsons.dumps(value)) == expected


@settings(deadline=None)
@given(st.timedeltas())
def test_durations_as_msgspec_has_them(value: dt.timedelta) -> None:
    """Durations are the same text with and without msgspec."""
    assert jsons.one_level(value) == msgspec.json.encode(value).decode().strip('"')


@settings(deadline=None)
@given(st.datetimes(timezones=st.none() | st.just(dt.UTC)) | st.times() | st.dates())
def test_times_as_msgspec_has_them(value: Any) -> None:
    """Dates and times are the same text with and without msgspec."""
    assert jsons.one_level(value) == msgspec.json.encode(value).decode().strip('"')


def test_numpy_by_its_name() -> None:
    """A numpy value is encoded through its `tolist`, without numpy being looked for."""
    array = type("ndarray", (), {"__module__": "numpy", "tolist": lambda self: [[1, 2.5]]})
    assert jsons.dumps({"a": array()}) == b'{"a":[[1,2.5]]}'


def test_struct_with_odd_content() -> None:
    """A Struct keeps its renamed and tagged fields also where something in it needs a second look."""

    class Item(msgspec.Struct, rename="camel", tag="item"):
        some_name: Any

    plain = json.loads(jsons.dumps(Item({"a": 1})))
    assert plain == {"type": "item", "someName": {"a": 1}}
    assert json.loads(jsons.dumps({"x": Item(1), True: 2})) == {"x": plain | {"someName": 1}, "true": 2}


@BOTH
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x": [1, {"y": socket}]}, ["a module", "result['x'][1]['y']"]),
        (object(), ["an object", "at result"]),
        ([Point(1, object())], ["an object", "result[0]['tags']"]),
        ({"a": {(1, 2): 3}}, ["a tuple as a key", "result['a']"]),
        ({"a": complex(1, 2)}, ["a complex", "result['a']"]),
        (["\ud800"], ["surrogate", "result[0]"]),
        ({"\ud800": 1}, ["surrogate", "result"]),
        ({"m": pydantic.create_model("Any_", f=(Any, ...))(f=object())}, ["Any_", "result['m']"]),
        ({"n": 10**5000}, ["digits"]),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_not_encodable(monkeypatch: pytest.MonkeyPatch, engine: Any, value: Any, words: list[str]) -> None:
    """What has no JSON form is named by type and place, in the same words with and without msgspec."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    with pytest.raises(NotEncodable) as error:
        jsons.dumps(value)
    assert all(word in error.value.message for word in words), error.value.message


def test_not_encodable_in_a_struct() -> None:
    """The place of a bad value is found within a Struct too."""

    class Item(msgspec.Struct):
        some: Any

    with pytest.raises(NotEncodable, match=r"an object, .* at result\['i'\].some\[1\]"):
        jsons.dumps({"i": Item([1, object()])})


@BOTH
def test_containing_itself(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    """A list that contains itself is not encodable, and does not run for ever."""
    monkeypatch.setattr(jsons, "MSGSPEC", engine)
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotEncodable, match="itself"):
        jsons.dumps(value)


def test_forgotten_await() -> None:
    """A coroutine among the values is named with its usual cause."""

    async def later() -> None: ...

    coroutine = later()
    with pytest.raises(NotEncodable, match="await"):
        jsons.dumps({"a": coroutine})
    coroutine.close()


def test_without_msgspec_it_is_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag really decides which of the two is used."""
    monkeypatch.setattr(jsons, "_fast_decode", None)
    monkeypatch.setattr(jsons, "_fast_encode", None)
    monkeypatch.setattr(jsons, "MSGSPEC", None)
    assert jsons.loads(b"[1]") == [1]
    assert jsons.dumps([1]) == b"[1]"
