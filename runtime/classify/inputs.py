"""What a function takes: its fields, and how the data of a call or a sample become values of them.

Called by `serving.py` for a prediction and by `samples.py` for each sample; images are read by `images.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .images import Vector, read_image
from .refusals import Refused

LONGEST_TEXT = 50_000  # characters; what follows is not looked at

Value = str | float | Vector | None
Row = dict[str, Value]  # by the keys of the fields; missing values may be left out

_LIMIT = 1e100  # numbers beyond it count as this: their squares can still be added up


class Field(NamedTuple):
    """One value of the data. The key stays when the name changes; "" is that of the data as a whole."""

    key: str
    name: str
    kind: str  # Text, Number or Image


class Inputs:
    """The fields of one function."""

    def __init__(self, function: Mapping[str, Any]) -> None:
        self.whole: str = function["input"]
        if self.whole == "Tabular":
            self.fields = [
                Field(_bare(field["id"]), field["name"], field["type"]) for field in function.get("fields", ())
            ]
        else:
            self.fields = [Field("", "data", self.whole)]
        self._named = {field.name: field for field in reversed(self.fields)}
        self._keyed = {field.key: field for field in self.fields}

    def read(self, data: Any) -> Row:
        """The values in `data`; Refused, naming the field, where one is not of the field's type."""
        if self.whole != "Tabular":
            return {"": _read(self.fields[0], data, "data")}
        if not isinstance(data, Mapping):
            raise Refused("invalid_data", "data is to be an object with a value for each field")
        found: dict[Field, Any] = {}
        for key, value in data.items():
            named, keyed = self._named.get(key), self._keyed.get(_bare(key))
            if named is not None:
                found[named] = value
            elif keyed is not None:
                found.setdefault(keyed, value)
        return {
            field.key: _read(field, value, f"the field {field.name!r}")
            for field, value in found.items()
            if value is not None
        }


def _bare(key: str) -> str:
    return key.removeprefix("field_")


def _read(field: Field, value: Any, what: str) -> Value:
    if field.kind == "Image":
        return read_image(value, what)
    if field.kind == "Number":
        return _number(value, what)
    if not isinstance(value, str):
        raise Refused("invalid_data", f"{what} is to be a text (a JSON string)")
    return value[:LONGEST_TEXT]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("invalid_data", f"{what} is to be a number")
    if value != value:
        raise Refused("invalid_data", f"{what} is not a number (NaN)")
    return float(min(max(value, -_LIMIT), _LIMIT))
