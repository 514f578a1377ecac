"""JSON in and out, with msgspec where the function's environment has it and without it to the same result.

`context` and `body` decode with it, `answer` and `streams` encode with it. The standard library's decoder is
the authority on what is valid; msgspec is the fast way to the same value.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import os
import uuid
from collections.abc import Callable, KeysView, Mapping, Sequence, Set, ValuesView
from typing import Any

from .faults import NotEncodable, Refused

MSGSPEC: Any = None
try:
    import msgspec as _msgspec

    MSGSPEC = _msgspec if hasattr(_msgspec, "convert") else None  # older ones cannot do all of this
except ImportError:
    pass

Simple = Callable[[Any], Any]


# -- decoding ------------------------------------------------------------------------------------------


def loads(body: bytes) -> Any:
    """The value of a JSON text in UTF-8; `Refused` (400, `bad_json`) where it is not one. NaN is not JSON."""
    if MSGSPEC is None:
        return _loads_plainly(body)
    try:
        return _fast_decode(body)
    except (ValueError, RecursionError):
        return _loads_plainly(body)


def _loads_plainly(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad("it is not UTF-8", body, error.start) from None
    try:
        value = _decoder.decode(text)
        if "\\ud" in text or "\\uD" in text:
            _encoder.encode(value).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        # Its position counts characters, and the byte order mark is gone.
        lost = 3 if body[:3] == b"\xef\xbb\xbf" else 0
        raise _bad(error.msg, body, lost + len(text[: error.pos].encode("utf-8"))) from None
    except RecursionError:
        raise _bad("it is nested too deeply", body, None) from None
    except UnicodeEncodeError:
        raise _bad("half of a surrogate pair stands alone", body, None) from None
    except ValueError as error:
        raise _bad(str(error).partition(";")[0], body, None) from None


def _bad(reason: str, body: bytes, position: int | None) -> Refused:
    if position is None:
        return Refused(400, "bad_json", f"the body is not valid JSON: {reason}")
    line = body.count(b"\n", 0, position) + 1
    column = position - body.rfind(b"\n", 0, position)
    message = f"the body is not valid JSON: {reason} at byte {position} (line {line}, column {column})"
    return Refused(400, "bad_json", message, {"position": position, "line": line, "column": column})


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is out of range")
    return value


# -- encoding ------------------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """The value as compact JSON, NaN as null; `NotEncodable` says what cannot be encoded, and where it is."""
    try:
        if MSGSPEC is None:
            return _encoder.encode(value).encode("utf-8")
        return _fast_encode(value)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    try:
        return _encoder.encode(_simplified(value, "result")).encode("utf-8")
    except RecursionError:
        raise NotEncodable("the function returned something nested too deeply or containing itself") from None
    except ValueError as error:
        raise NotEncodable(f"the function returned something that has no JSON form: {error}"[:300]) from None


def one_level(value: Any) -> Any:
    """What stands for a value that JSON has no form for; what that contains may need the same again."""
    for kind, simple in _SIMPLE:
        if isinstance(value, kind):
            return simple(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    cls = type(value)
    if hasattr(cls, "__pydantic_serializer__"):
        return value.model_dump(mode="json")
    if hasattr(cls, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in cls.__attrs_attrs__}
    if cls.__module__ == "numpy" and hasattr(cls, "tolist"):
        return value.tolist()
    raise TypeError(f"{describe(value)} has no JSON form")


def describe(value: Any) -> str:
    """A value's type in words, for an error message; never the value."""
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    name = ("an " if name[:1].lower() in "aeio" else "a ") + name
    return name + " (is an `await` missing?)" if hasattr(cls, "__await__") else name


def _simplified(value: Any, place: str) -> Any:
    """The value in dicts, lists and scalars only. For when encoding failed: slow, and exact about where."""
    if value is None or value is True or value is False or type(value) is int:
        return value
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return _checked_text(str.__str__(value), place)
    if isinstance(value, float) and not isinstance(value, enum.Enum):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key, place): _simplified(item, f"{place}[{key!r:.80}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_simplified(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if MSGSPEC is not None and isinstance(value, MSGSPEC.Struct):
        return _simplified_struct(value, place)
    try:
        return _simplified(one_level(value), place)
    except (TypeError, ValueError) as error:
        raise _not_json(value, place, error) from None


def _simplified_struct(value: Any, place: str) -> Any:
    try:
        return _simplified(MSGSPEC.to_builtins(value, enc_hook=one_level, str_keys=True), place)
    except (TypeError, ValueError) as error:
        for name in value.__struct_fields__:
            _simplified(getattr(value, name), f"{place}.{name}")
        raise _not_json(value, place, error) from None


def _key(key: Any, place: str) -> str:
    if isinstance(key, enum.Enum):
        return _key(key.value, place)
    if isinstance(key, str):
        return _checked_text(str.__str__(key), place)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, (int, float)):
        return repr(key + 0)
    try:
        simple = one_level(key)
    except TypeError:
        simple = None
    if not isinstance(simple, str):
        raise NotEncodable(f"the function returned a dict with {describe(key)} as a key, at {place}")
    return simple


def _checked_text(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotEncodable(f"the function returned text with a lone surrogate, at {place}") from None
    return text


def _not_json(value: Any, place: str, error: Exception) -> NotEncodable:
    reason = "" if str(error).endswith(" has no JSON form") else f" ({str(error)[:200]})"
    what = f"the function returned {describe(value)}, which has no JSON form, at {place}"
    return NotEncodable(what + reason)


def _base64(value: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(value).decode("ascii")


def _iso(value: dt.datetime | dt.time) -> str:
    text = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def _iso_duration(value: dt.timedelta) -> str:
    sign = "-" if value < dt.timedelta(0) else ""
    value = abs(value)
    days = f"{value.days}D" if value.days or not value else ""
    if not value.seconds and not value.microseconds:
        return f"{sign}P{days}"
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    return f"{sign}P{days}T{value.seconds}{fraction}S"


_SIMPLE: tuple[tuple[Any, Simple], ...] = (
    (bool, lambda value: "true" if value else "false"),  # only ever asked for the key of a dict
    (enum.Enum, lambda value: value.value),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), _base64),
    ((dt.datetime, dt.time), _iso),
    (dt.date, dt.date.isoformat),
    (dt.timedelta, _iso_duration),
    ((uuid.UUID, decimal.Decimal), str),
    (Mapping, dict),
    ((Sequence, Set, KeysView, ValuesView), list),
    (os.PathLike, os.fspath),
)

_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=one_level
)
_fast_decode: Any = MSGSPEC.json.Decoder().decode if MSGSPEC is not None else None
_fast_encode: Any = MSGSPEC.json.Encoder(enc_hook=one_level).encode if MSGSPEC is not None else None
