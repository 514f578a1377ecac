"""Checks of `data` against its annotation: by msgspec, by pydantic, or by type where neither is needed.

`body.decoder` builds one when a handler is loaded. An annotation that cannot be checked is a `TypeError` then
and there; data that do not fit are `Refused` (422, `invalid_data`), naming the field.
"""

from __future__ import annotations

import importlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Protocol

from . import jsons
from .faults import Refused
from .multipart import UploadedFile

_WORDS = {
    dict: "object",
    list: "array",
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bytes",
    type(None): "null",
}
_MOST_ERRORS = 50
_LISTS = (list, set, frozenset, tuple)
_ADVICE = "annotate `data` with a msgspec Struct, dataclass, TypedDict, pydantic model or builtin types"


class Check(Protocol):
    """One annotation, ready to check data against."""

    lists: frozenset[str] | None  # fields that take several values; None: all do

    def json(self, body: bytes) -> Any:
        """The checked value of a JSON text."""

    def value(self, value: Any, *, lenient: bool) -> Any:
        """The checked form of a value; lenient: text may stand for numbers, as in a query or form."""


def check(annotation: Any) -> Check:
    """The check for an annotation; `TypeError` when there can be none."""
    classes = _plain_classes(annotation)
    if classes:
        return _PlainCheck(classes)
    if isinstance(annotation, str):
        raise TypeError(f"the annotation {annotation!r} of `data` does not name a type that can be found")
    if _mentions_pydantic(annotation, set()):
        return _PydanticCheck(sys.modules["pydantic"], annotation)
    if jsons.MSGSPEC is not None:
        return _MsgspecCheck(jsons.MSGSPEC, annotation)
    try:
        return _PydanticCheck(importlib.import_module("pydantic"), annotation)
    except ImportError:
        advice = "install msgspec or pydantic in the function's environment"
        raise TypeError(f"`data: {_named(annotation)}` cannot be checked: {advice}") from None


def from_form(checked: Check, fields: dict[str, Any]) -> Any:
    """The checked form of a query's or form's fields."""
    names = fields if checked.lists is None else checked.lists
    fields = {
        name: [value] if name in names and not isinstance(value, list) else value for name, value in fields.items()
    }
    try:
        return checked.value(fields, lenient=True)
    except Refused:
        bare = {name: _contents(value) for name, value in fields.items()}
        if bare == fields:
            raise
    return checked.value(bare, lenient=True)


def _contents(value: Any) -> Any:
    """Files as their bytes: a field annotated `bytes` is meant to take one."""
    if isinstance(value, list):
        return [_contents(item) for item in value]
    return value.content if isinstance(value, UploadedFile) else value


# -- isinstance ----------------------------------------------------------------------------------------


class _PlainCheck:
    """Builtins as they come out of a JSON decoder, and unions of them."""

    __slots__ = ("_classes", "lists")

    def __init__(self, classes: tuple[type, ...]) -> None:
        self._classes = classes
        self.lists: frozenset[str] | None = frozenset()

    def json(self, body: bytes) -> Any:
        return self.value(jsons.loads(body), lenient=False)

    def value(self, value: Any, *, lenient: bool) -> Any:
        if type(value) in self._classes:
            return value
        if type(value) is int and float in self._classes:
            return float(value)
        if lenient and isinstance(value, str):
            for cls in (int, float, bool):
                if cls in self._classes:
                    try:
                        return _BOOLS[value.lower()] if cls is bool else cls(value)
                    except (KeyError, ValueError):
                        pass
        expected = " | ".join(_WORDS[cls] for cls in self._classes)
        got = _WORDS.get(type(value), type(value).__name__)
        raise mismatch([("", expected, f"Expected `{expected}`, got `{got}`")])


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _plain_classes(annotation: Any) -> tuple[type, ...]:
    """The builtins that an annotation is made of, if it says no more than they do."""
    if annotation is None:
        return (type(None),)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_plain_classes(argument) for argument in arguments]
        return tuple(cls for member in members for cls in member) if all(members) else ()
    if origin is not None and (not arguments or _says_nothing(arguments)):
        annotation = dict if origin is Mapping else origin
    return (annotation,) if isinstance(annotation, type) and annotation in _WORDS else ()


def _says_nothing(arguments: tuple[Any, ...]) -> bool:
    """Whether `[...]` after a type is `[Any]` or `[str, Any]`."""
    return arguments[-1] in (Any, object) and arguments[:-1] in ((), (str,))


# -- msgspec -------------------------------------------------------------------------------------------


class _MsgspecCheck:
    __slots__ = ("_annotation", "_convert", "_decode", "_error", "lists")

    def __init__(self, msgspec: Any, annotation: Any) -> None:
        try:
            info = msgspec.inspect.type_info(annotation)
            self._decode = msgspec.json.Decoder(annotation).decode
        except (TypeError, NameError, AttributeError) as error:
            raise TypeError(f"`data: {_named(annotation)}` cannot be checked: {error}; {_ADVICE}") from None
        custom = _custom_type(msgspec.inspect, info, set())
        if custom is not None:
            reason = f"{_named(custom)} says nothing about its fields"
            raise TypeError(f"`data: {_named(annotation)}` cannot be checked: {reason}; {_ADVICE}")
        self._annotation = annotation
        self._convert = msgspec.convert
        self._error = msgspec.ValidationError
        self.lists = _listed_fields(msgspec.inspect, info)

    def json(self, body: bytes) -> Any:
        try:
            return self._decode(body)
        except self._error as error:
            raise _msgspec_mismatch(str(error)) from None
        except (ValueError, RecursionError):
            # Says what is wrong with it, or gets past a byte order mark.
            return self.value(jsons.loads(body), lenient=False)

    def value(self, value: Any, *, lenient: bool) -> Any:
        try:
            return self._convert(value, self._annotation, strict=not lenient)
        except self._error as error:
            raise _msgspec_mismatch(str(error)) from None


def _custom_type(inspect: Any, info: Any, seen: set[int]) -> Any:
    """A type within an annotation that msgspec would only check with `isinstance`, if there is one."""
    if id(info) in seen:
        return None
    seen.add(id(info))
    if isinstance(info, inspect.CustomType):
        return None if info.cls is object else info.cls
    inner = [field.type for field in getattr(info, "fields", ())]
    inner += getattr(info, "types", ()) or getattr(info, "item_types", ())
    inner += [getattr(info, name) for name in _INNER if hasattr(info, name)]
    return next((cls for part in inner if (cls := _custom_type(inspect, part, seen)) is not None), None)


_INNER = ("item_type", "key_type", "value_type", "type")


def _listed_fields(inspect: Any, info: Any) -> frozenset[str] | None:
    if isinstance(info, inspect.UnionType):
        info = next((part for part in info.types if hasattr(part, "fields")), info)
    if isinstance(info, inspect.DictType):
        return None if _is_array(inspect, info.value_type) else frozenset()
    fields = getattr(info, "fields", ())
    return frozenset(field.encode_name for field in fields if _is_array(inspect, field.type))


def _is_array(inspect: Any, info: Any) -> bool:
    if isinstance(info, inspect.UnionType):
        return all(isinstance(part, inspect.NoneType) or _is_array(inspect, part) for part in info.types)
    if isinstance(info, inspect.Metadata):
        return _is_array(inspect, info.type)
    return isinstance(info, (inspect.CollectionType, inspect.TupleType))


_ABOUT_FIELD = {
    "Object missing required field ": "a value",
    "Object contains unknown field ": "no such field",
}


def _msgspec_mismatch(text: str) -> Refused:
    reason, _, where = text.rpartition(" - at `")
    if not reason:
        reason, where = text, ""
    path = where.removeprefix("key` in `").rstrip("`").removeprefix("$").removeprefix(".")
    words = reason.split("`")
    if words[0] in _ABOUT_FIELD:
        path = f"{path}.{words[1]}" if path else words[1]
        expected = _ABOUT_FIELD[words[0]]
    else:
        expected = reason.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    return mismatch([(path, expected, reason)])


# -- pydantic ------------------------------------------------------------------------------------------


class _PydanticCheck:
    __slots__ = ("_adapter", "_error", "lists")

    def __init__(self, pydantic: Any, annotation: Any) -> None:
        if not hasattr(pydantic, "TypeAdapter"):
            raise TypeError(f"`data: {_named(annotation)}` needs pydantic 2 or newer, not {pydantic.VERSION}")
        try:
            self._adapter = pydantic.TypeAdapter(annotation)
        except (TypeError, RuntimeError, NameError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"`data: {_named(annotation)}` cannot be checked: {reason}; {_ADVICE}") from None
        self._error = pydantic.ValidationError
        self.lists: frozenset[str] | None = _listed_hints(annotation)

    def json(self, body: bytes) -> Any:
        if b"NaN" in body or b"Infinity" in body or body[:1] == b"\xef":
            # Its parser takes the first two, which are not JSON, but not a byte order mark.
            jsons.loads(body)
            body = body.removeprefix(b"\xef\xbb\xbf")
        try:
            return self._adapter.validate_json(body)
        except self._error as error:
            errors = _pydantic_errors(error)
        if errors[0]["type"] == "json_invalid":
            return self.value(jsons.loads(body), lenient=False)
        raise _pydantic_mismatch(errors)

    def value(self, value: Any, *, lenient: bool) -> Any:
        try:
            return self._adapter.validate_python(value)
        except self._error as error:
            errors = _pydantic_errors(error)
        raise _pydantic_mismatch(errors)


def _pydantic_errors(error: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = error.errors(include_url=False, include_input=False, include_context=False)
    return found


def _pydantic_mismatch(errors: list[dict[str, Any]]) -> Refused:
    found = []
    for error in errors:
        path = ""
        for step in error["loc"]:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
        reason = str(error["msg"])
        expected = "a value" if error["type"] == "missing" else reason.removeprefix("Input should be ")
        found.append((path, expected, reason))
    return mismatch(found)


def _mentions_pydantic(annotation: Any, seen: set[int]) -> bool:
    """Whether a type of pydantic's is part of an annotation; where it is not imported, none can be."""
    if "pydantic" not in sys.modules or id(annotation) in seen:
        return False
    seen.add(id(annotation))
    if isinstance(annotation, type):
        bases = annotation.__mro__
        if any(base.__module__.partition(".")[0] == "pydantic" for base in bases):
            return True
        if "__pydantic_validator__" in vars(annotation):
            return True
    inner = [*typing.get_args(annotation), *_hints(annotation).values()]
    return any(_mentions_pydantic(part, seen) for part in inner)


def _hints(cls: Any) -> dict[str, Any]:
    if not isinstance(cls, type) or cls.__module__ == "builtins":
        return {}
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def _listed_hints(annotation: Any) -> frozenset[str]:
    cls = next((part for part in _members(annotation) if isinstance(part, type)), annotation)
    fields = getattr(cls, "model_fields", None)
    if isinstance(fields, dict):
        hints = {field.alias or name: field.annotation for name, field in fields.items()}
    else:
        hints = _hints(cls)
    return frozenset(name for name, hint in hints.items() if all(_is_list(part) for part in _members(hint)))


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union but None; of anything else, itself."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return (annotation,)
    return tuple(part for part in typing.get_args(annotation) if part is not type(None))


def _is_list(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in _LISTS


# -- what did not fit ----------------------------------------------------------------------------------


def mismatch(found: list[tuple[str, str, str]]) -> Refused:
    """The refusal for a list of (field, expected, message), the first of which is named in its message."""
    # Validators quote what they were given, which may be long and many.
    found = [(path[:200], wanted[:500], message[:500]) for path, wanted, message in found[:_MOST_ERRORS]]
    field, expected, reason = found[0]
    errors = [{"field": path, "message": message} for path, _, message in found]
    details = {"field": field, "expected": expected, "errors": errors}
    return Refused(422, "invalid_data", f"`{field or 'data'}`: {reason}", details)


def _named(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
