"""The data of samples and invocations: what each input takes, what it is handed on as, and what is refused."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from runtime.dialects.nyckel import inputs
from runtime.errors import BadRequest, HostError
from runtime.lessons import Field, Profile

TEXT, IMAGE, TABLE = (
    Profile(7, "demo", "x", "demo/x", kind, "Classification") for kind in ("Text", "Image", "Tabular")
)
FIELDS = (Field("field_a", "name", "Text"), Field("field_b", "age", "Number"), Field("field_c", "mug", "Image"))
KNOWN = Profile(7, "demo", "x", "demo/x", "Tabular", "Classification", fields=FIELDS)
PNG = b"\x89PNG\r\n\x1a\nrest"
URI = f"data:image/jpg;base64,{b64encode(PNG).decode()}"


def check(profile: Profile, data: Any, *, strict: bool = True) -> tuple[Any, Any]:
    found = inputs.check(profile, data, strict=strict)
    return found.given, json.loads(found.kept) if found.kept is not None else None


def test_text_and_images_are_strings() -> None:
    assert check(TEXT, "héllo") == ("héllo", "héllo")
    assert check(IMAGE, URI) == (URI, URI)


@pytest.mark.parametrize("data", [3, None, {}, ["x"], True])
def test_nothing_else_is(data: Any) -> None:
    for profile in (TEXT, IMAGE):
        with pytest.raises(BadRequest, match="must be a string"):
            check(profile, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("https://example.com/a.png", "fetches none"),
        ("HTTP://169.254.169.254/", "fetches none"),
        ("hello", "data URI"),
        ("data:text/plain;base64,aGk=", "data URI"),
        ("data:image/png,abc", "data URI"),
        ("data:image/png;base64,a", "not valid Base64"),
        ("data:image/png;base64,a b=", "not valid Base64"),
    ],
)
def test_an_image_is_a_data_uri(data: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check(IMAGE, data)


def test_tables_are_given_by_name_and_kept_by_id() -> None:
    given, kept = check(KNOWN, {"field_a": "Ann", "age": 3.0, "c": URI, "zip": None}, strict=False)

    assert given == {"name": "Ann", "age": 3, "mug": URI, "zip": None}
    assert kept == {"field_a": "Ann", "field_b": 3, "field_c": URI}


def test_the_same_table_is_kept_as_the_same_text() -> None:
    one = inputs.check(KNOWN, {"name": "Ann", "age": 3}, strict=True).kept
    assert one == inputs.check(KNOWN, {"field_b": 3.0, "a": "Ann"}, strict=True).kept


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"age": "Twelve"}, "takes a number"),
        ({"age": True}, "takes a number"),
        ({"age": 10**400}, "takes a number"),
        ({"age": -(10**400)}, "takes a number"),
        ({"name": 3}, "takes a string"),
        ({"mug": "hello"}, "data URI"),
        ({"name": "a", "field_a": "b"}, "twice"),
        ("hello", "must be an object"),
        ([], "must be an object"),
    ],
)
def test_values_are_of_their_fields_type(data: Any, said: str) -> None:
    for strict in (True, False):
        with pytest.raises(BadRequest, match=said):
            check(KNOWN, data, strict=strict)


def test_samples_have_known_fields_and_some_value() -> None:
    with pytest.raises(BadRequest, match="no field `zip`"):
        check(KNOWN, {"zip": 3})
    with pytest.raises(BadRequest, match="no value"):
        check(KNOWN, {"age": None})
    assert check(TABLE, {"zip": 3}, strict=False) == ({"zip": 3}, None)


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    body = b"".join(b"--x\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (h.encode(), c) for h, c in parts)
    return body + b"--x--\r\n", "multipart/form-data; boundary=x"


@pytest.mark.parametrize("name", ["data", "file"])
def test_a_form_has_an_image(name: str) -> None:
    found = inputs._from_form(*form((f'name="{name}"; filename="a.bin"', PNG), ('name="externalId"', b"7")))

    assert found.data == f"data:image/png;base64,{b64encode(PNG).decode()}"
    assert found.externalId == "7"


@pytest.mark.parametrize(
    "parts",
    [
        [('name="data"; filename="a"', b"no image")],
        [('name="data"; filename="a"', PNG), ('name="data"; filename="b"', PNG)],
        [('name="data"; filename="a"', PNG), ('name="externalId"; filename="b"', PNG)],
    ],
)
def test_a_form_without_one_image_is_refused(parts: list[tuple[str, bytes]]) -> None:
    with pytest.raises(BadRequest):
        inputs._from_form(*form(*parts))


def test_a_broken_form_is_refused() -> None:
    with pytest.raises(HostError) as raised:
        inputs._from_form(b"--x\r\n", "multipart/form-data; boundary=x")
    assert raised.value.status == 400


def test_metadata_has_a_bound() -> None:
    assert inputs.metadata_text(None) is None
    assert inputs.metadata_text({"a": "é"}) == '{"a":"é"}'
    with pytest.raises(BadRequest, match="longer than"):
        inputs.metadata_text({"a": "x" * inputs.LONGEST_METADATA})
