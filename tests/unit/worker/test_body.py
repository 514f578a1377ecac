"""What a handler gets as `data`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import socket
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict
from urllib.parse import urlencode

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker import jsons
from runtime.worker.body import UploadedFile, decoder
from runtime.worker.context import CallInfo, Refused

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=bo"


class Address(msgspec.Struct):
    zip: int
    tags: list[str] = []


class Person(msgspec.Struct):
    name: str
    address: Address | None = None
    born: dt.date | None = None


MaybePerson = Optional[Person]  # noqa: UP045 - the older of the two spellings of a union


class Search(msgspec.Struct, rename="camel"):
    max_price: float = 0.0
    colour_names: list[str] = []
    only_new: bool = False
    sizes: set[int] | None = None
    kind: str | list[str] = "x"


@dataclasses.dataclass
class Data:
    n: int
    who: list[Address] = dataclasses.field(default_factory=list)


class Typed(TypedDict, total=False):
    n: int


class Named(NamedTuple):
    a: int
    b: str = "b"


class Zip(pydantic.BaseModel):
    zip: int


class Model(pydantic.BaseModel):
    name: str
    address: Zip | None = None
    tags: list[str] = pydantic.Field(default=[], alias="tag")
    born: dt.date | None = None
    at_least: Annotated[int, pydantic.Field(ge=3)] = 3


@pydantic.dataclasses.dataclass
class PydanticData:
    n: int
    who: list[Zip] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class AroundModel:
    model: Zip


class Upload(msgspec.Struct):
    title: str
    file: bytes
    n: int = 0


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0


class Outer(msgspec.Struct):
    inner: Strict


class Custom:
    pass


@pytest.fixture(params=[msgspec, None], ids=["msgspec", "stdlib"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(jsons, "MSGSPEC", request.param)
    return request.param


def call(body: bytes | str = b"", content_type: str | None = None, query: str = "", **headers: str) -> CallInfo:
    pairs = [("host", "h")]
    if content_type is not None:
        pairs.append(("content-type", content_type))
    pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
    raw = "\0".join(part for pair in pairs for part in pair).encode("latin-1")
    body = body.encode() if isinstance(body, str) else body
    return CallInfo(1, 2, "s", "f", "POST", b"", query.encode(), raw, body, 0.0, 1, 10_000)


def data(annotation: Any, *request: Any, **headers: str) -> Any:
    return decoder(annotation)(call(*request, **headers))


def plain(*request: Any, **headers: str) -> Any:
    return data(Any, *request, **headers)


def refused(annotation: Any, *request: Any) -> Refused:
    decode = decoder(annotation)
    with pytest.raises(Refused) as error:
        decode(call(*request))
    return error.value


# -- by content type ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("", None, ""), {}),
        (("", None, "a=1&b=&a=2&c+d=%20"), {"a": ["1", "2"], "b": "", "c d": " "}),
        (("", JSON, "a=1"), {"a": "1"}),
        (('{"a": 1}', JSON, "b=2"), {"a": 1}),
        (('{"a": 1}', "Application/JSON; charset=utf-8"), {"a": 1}),
        (("[1]", "application/vnd.api+json"), [1]),
        (("\ufeff[1]", JSON), [1]),
        (("a=1&b=x+y&a=2&c", FORM), {"a": ["1", "2"], "b": "x y", "c": ""}),
        (('{"a": 1}', FORM), {"a": 1}),
        (("[1, 2]", FORM + "; charset=utf-8"), [1, 2]),
        (('\r\n\t {"a": 1}', FORM), {"a": 1}),
        (("\ufeff[1]", FORM), [1]),
        (("a={&[=1", FORM), {"a": "{", "[": "1"}),
        (("12", FORM), {"12": ""}),
        (("héllo", "text/plain"), "héllo"),
        ((b"h\xe9", "text/csv; charset=latin-1"), "hé"),
        (('{"a": 1}', "text/plain"), '{"a": 1}'),
        (('{"a": 1}', None), {"a": 1}),
        (("12", None), 12),
        (("hello", None), b"hello"),
        (("{", ""), b"{"),
        ((b"\xff", "application/octet-stream"), b"\xff"),
        (("<a/>", "application/xml"), b"<a/>"),
        (("x", "multipart/mixed; boundary=x"), b"x"),
    ],
)
def test_by_content_type(request_: Any, expected: Any) -> None:
    """Without an annotation the content type decides, and no body means the query."""
    assert plain(*request_) == expected


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (("{", JSON), "bad_json"),
        ((" ", JSON), "bad_json"),
        (("NaN", "x/y+json"), "bad_json"),
        (('{"a=1', FORM), "bad_json"),
        ((" [1, 2", FORM), "bad_json"),
        ((b"\xff", "text/plain"), "bad_charset"),
        (("x", "text/plain; charset=nope"), "bad_charset"),
        (("x", MULTIPART), "bad_multipart"),
    ],
)
def test_bad_bodies(request_: Any, code: str) -> None:
    """A body that is not what its content type says is refused."""
    error = refused(Any, *request_)
    assert (error.status, error.code) == (400, code)


def test_empty_annotations_mean_plain() -> None:
    """No annotation, Any and object are the same."""

    def handle(data, other: object): ...  # type: ignore[no-untyped-def]

    import inspect

    empty = inspect.signature(handle).parameters["data"].annotation
    assert decoder(empty) is decoder(Any) is decoder(object) is decoder(Any | None)


def test_multipart() -> None:
    """A form with a file becomes a dict of text and file."""
    body = (
        b'--bo\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--bo\r\nContent-Disposition: form-data; name="f"; filename="x.bin"\r\n\r\n\xff\r\n--bo--'
    )
    found = plain(body, MULTIPART)
    assert found["a"] == "1"
    assert isinstance(found["f"], UploadedFile)
    assert found["f"].content == b"\xff"


def test_compressed() -> None:
    """A compressed body is inflated before anything else; one that holds nothing counts as none."""
    squeezed = gzip.compress(b'{"a":1}')
    assert plain(squeezed, JSON, content_encoding="gzip") == {"a": 1}
    assert data(bytes, squeezed, JSON, content_encoding="gzip") == b'{"a":1}'
    assert data(dict, squeezed, JSON, content_encoding="gzip") == {"a": 1}
    assert plain(gzip.compress(b""), JSON, "q=1", content_encoding="gzip") == {"q": "1"}


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text() | st.lists(st.text(), min_size=2)))
def test_forms_round_trip(fields: dict[str, Any]) -> None:
    """What is urlencoded comes back the same from a body as from a query."""
    fields = {name.encode("utf-8", "replace").decode(): value for name, value in fields.items()}
    encoded = urlencode(fields, doseq=True, errors="replace")
    fields = {
        name: [one.encode("utf-8", "replace").decode() for one in value]
        if isinstance(value, list)
        else value.encode("utf-8", "replace").decode()
        for name, value in fields.items()
    }
    assert plain("", None, encoded) == fields
    if encoded:
        assert plain(encoded, FORM) == fields


# -- bytes, str and other builtins ----------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [JSON, FORM, MULTIPART, "text/plain", None])
def test_bytes_are_the_body(content_type: str | None) -> None:
    """`data: bytes` is the body whatever its type."""
    assert data(bytes, b"[1]\xff", content_type) == b"[1]\xff"
    assert data(bytes, b"", content_type, "a=1") == b""
    assert data(bytes | None, b"[1]", content_type) == b"[1]"


@pytest.mark.usefixtures("engine")
def test_str_is_the_text() -> None:
    """`data: str` is the text of the body, decoded where it is a JSON string."""
    assert data(str, "a=1", FORM) == "a=1"
    assert data(str, '"x"', "text/plain") == '"x"'
    assert data(str, '"x"', None) == '"x"'
    assert data(str, '"x"', JSON) == "x"
    assert data(str, "", None, "a=1") == ""
    assert data(str | None, "null", JSON) is None
    assert refused(str, "[1]", JSON).details["expected"] == "str"
    assert refused(str, b"\xff", "text/plain").code == "bad_charset"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (dict, "{}", {}),
        (dict[str, Any], '{"a": 1}', {"a": 1}),
        (Mapping[str, Any], '{"a": 1}', {"a": 1}),
        (dict[str, object], '{"a": 1}', {"a": 1}),
        (list, "[1]", [1]),
        (list[Any], "[1]", [1]),
        (int, "3", 3),
        (float, "3", 3.0),
        (float, "3.5", 3.5),
        (bool, "true", True),
        (None, "null", None),
        (dict | list, "[1]", [1]),
        (dict[str, Any] | None, "null", None),
    ],
)
def test_builtins(annotation: Any, text: str, expected: Any) -> None:
    """Builtin annotations work with and without msgspec."""
    found = data(annotation, text, JSON)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("annotation", "text", "expected", "got"),
    [
        (dict, "[]", "object", "array"),
        (list, '"x"', "array", "str"),
        (int, "true", "int", "bool"),
        (int, "1.5", "int", "float"),
        (int, '"3"', "int", "str"),
        (bool, "1", "bool", "int"),
        (float, "null", "float", "null"),
        (dict | list, "3", "object | array", "int"),
    ],
)
def test_builtins_that_do_not_fit(annotation: Any, text: str, expected: str, got: str) -> None:
    """Other JSON than annotated is 422 and says what was expected."""
    error = refused(annotation, text, JSON)
    message = f"Expected `{expected}`, got `{got}`"
    assert (error.status, error.code, error.message) == (422, "invalid_data", f"`data`: {message}")
    assert error.details == {
        "field": "",
        "expected": expected,
        "errors": [{"field": "", "message": message}],
    }


@pytest.mark.usefixtures("engine")
def test_builtins_from_text() -> None:
    """Text stands for a number or a boolean where the annotation wants one."""
    assert data(int, "3", "text/plain") == 3
    assert data(float, "3.5", "text/plain") == 3.5
    assert data(bool, "True", "text/plain") is True
    assert refused(int, "x", "text/plain").code == "invalid_data"
    assert refused(bool, "2", "text/plain").code == "invalid_data"


@pytest.mark.usefixtures("engine")
def test_bytes_in_a_union() -> None:
    """A union with bytes takes a body that is not JSON."""
    assert data(dict | bytes, "x", "image/png") == b"x"
    assert data(dict | bytes, "x", None) == b"x"
    assert data(dict | bytes, "{}", None) == {}
    assert refused(dict, "x", "image/png").details["expected"] == "object"


# -- structured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (Person, '{"name": "a", "born": "2020-01-02"}', Person("a", born=dt.date(2020, 1, 2))),
        (MaybePerson, "null", None),
        (list[Person], '[{"name": "a", "address": {"zip": 1}}]', [Person("a", Address(1))]),
        (Data, '{"n": 1, "who": [{"zip": 2}]}', Data(1, [Address(2)])),
        (Typed, '{"n": 1, "x": 2}', {"n": 1}),
        (Named, '[1, "x"]', Named(1, "x")),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (set[int], "[1, 1]", {1}),
        (Literal["a", "b"], '"b"', "b"),
        (dt.datetime, '"2020-01-02T03:04:05Z"', dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (Annotated[int, msgspec.Meta(ge=3)], "3", 3),
        (dict[str, object] | None, '{"a": [1]}', {"a": [1]}),
    ],
)
def test_structured(annotation: Any, text: str, expected: Any) -> None:
    """Annotated types come out as such, with or without a content type, a byte order mark or compression."""
    assert data(annotation, text, JSON) == expected
    assert data(annotation, text, None) == expected
    assert data(annotation, "\ufeff" + text, JSON) == expected
    assert data(annotation, gzip.compress(text.encode()), JSON, content_encoding="gzip") == expected


@pytest.mark.parametrize(
    ("annotation", "text", "field", "expected"),
    [
        (Person, '{"name": "a", "address": {"zip": "x"}}', "address.zip", "int"),
        (Person, '{"address": {"zip": 1}}', "name", "a value"),
        (Person, '{"name": "a", "address": {}}', "address.zip", "a value"),
        (Person, "[]", "", "object"),
        (list[Person], '[{"name": "a"}, {}]', "[1].name", "a value"),
        (Person, '{"name": "a", "address": {"zip": 1, "tags": ["a", 2]}}', "address.tags[1]", "str"),
        (dict[str, int], '{"a": "x"}', "[...]", "int"),
        (dict[int, int], '{"a": 1}', "", "int"),
        (Annotated[int, msgspec.Meta(ge=3)], "1", "", "int >= 3"),
        (Literal["a"], '"b"', "", "Invalid enum value 'b'"),
        (Model, '{"name": "a", "address": {"zip": "x"}}', "address.zip", "a valid integer, unable"),
        (Model, "{}", "name", "a value"),
        (list[Zip], '[{"zip": 1}, {}]', "[1].zip", "a value"),
        (Model, '{"name": "a", "at_least": 1}', "at_least", "greater than or equal to 3"),
        (PydanticData, '{"n": 1, "who": [{}]}', "who[0].zip", "a value"),
    ],
)
def test_structured_that_do_not_fit(annotation: Any, text: str, field: str, expected: str) -> None:
    """A mismatch is 422 and names the field and what was expected there."""
    error = refused(annotation, text, JSON)
    assert (error.status, error.code) == (422, "invalid_data")
    assert error.details["field"] == error.details["errors"][0]["field"] == field
    assert error.details["expected"].startswith(expected)
    assert error.message.startswith(f"`{field or 'data'}`: ")


def test_unknown_field() -> None:
    """A field that a strict Struct does not have is named."""
    error = refused(Outer, '{"inner": {"zz": 1}}', JSON)
    assert (error.details["field"], error.details["expected"]) == ("inner.zz", "no such field")


@pytest.mark.parametrize("annotation", [Person, Model, dict[str, int], PydanticData])
@pytest.mark.parametrize(
    "text", ["{", "", '{"n": NaN}', '{"x": Infinity}', b"\xff", '{"name": "\\ud800"}', "{" * 100_000]
)
def test_structured_from_what_is_not_json(annotation: Any, text: str | bytes) -> None:
    """What is not JSON is 400 for annotated handlers too, with the position."""
    error = refused(annotation, text or " ", JSON)
    assert (error.status, error.code) == (400, "bad_json")
    assert refused(annotation, text or " ", None).code == "bad_json"


def test_structured_nested_too_deeply() -> None:
    """Nesting without end is 400, also where the annotation would pass over it."""
    text = '{"name": "a", "x": ' + "[" * 100_000
    assert refused(Person, text, JSON).code == refused(Model, text, JSON).code == "bad_json"


def test_all_errors_are_listed() -> None:
    """Where the validator finds several mismatches all are listed, the first one in the message."""
    error = refused(Model, '{"address": {"zip": "x"}}', JSON)
    assert [one["field"] for one in error.details["errors"]] == ["name", "address.zip"]
    assert "name" in error.message


def test_errors_are_bounded() -> None:
    """What a refusal quotes of the data, and how many errors it lists, does not grow with the data."""
    assert len(refused(Literal["a"], f'"{"x" * 100_000}"', JSON).message) < 1000
    assert len(refused(dict[str, int], '{"a": "x"}', JSON).details["errors"]) == 1
    assert len(refused(list[Zip], "[" + "3," * 1000 + "3]", JSON).details["errors"]) == 50


def test_lenient_query_and_form() -> None:
    """Query and form text becomes numbers, booleans and dates, and single values lists, where annotated."""
    expected = Search(2.5, ["red"], True, {1}, "k")
    text = "maxPrice=2.5&colourNames=red&onlyNew=true&sizes=1&kind=k"
    assert data(Search, "", None, text) == expected
    assert data(Search, text, FORM) == expected
    assert data(Search, "", None, "colourNames=red&colourNames=blue") == Search(colour_names=["red", "blue"])
    assert data(dict[str, list[int]], "", None, "a=1&b=2&b=3") == {"a": [1], "b": [2, 3]}
    assert data(dict[str, int], "", None, "a=1") == {"a": 1}
    assert data(Search | None, "", None, "sizes=1") == Search(sizes={1})
    assert refused(Search, "", None, "maxPrice=x").details["field"] == "maxPrice"
    assert refused(Search, "", None, "maxPrice=1&maxPrice=2").details["expected"] == "float"


def test_json_is_not_lenient() -> None:
    """A number in quotes is no number in JSON, also when curl says that it is a form."""
    assert refused(dict[str, int], '{"a": "1"}', JSON).code == "invalid_data"
    assert refused(dict[str, int], '{"a": "1"}', FORM).code == "invalid_data"
    assert data(dict[str, int], '{"a": 1}', FORM) == {"a": 1}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("annotation", [Any, dict, dict[str, str]])
def test_json_of_curl_that_is_not_valid(annotation: Any) -> None:
    """What curl sends as a form, and begins as JSON does, is refused as JSON: with the place of the mistake."""
    assert refused(annotation, '{"a": "b",}', FORM).details == refused(annotation, '{"a": "b",}', JSON).details
    assert refused(annotation, ' {"a": "b"', FORM).details["position"] == 10
    assert refused(annotation, "{a=1", FORM).code == "bad_json"


def test_optional_without_anything_sent() -> None:
    """A handler that takes None gets None when neither body nor query came and nothing else fits."""
    assert data(MaybePerson, "", None, "") is None
    assert data(int | None, "", None, "") is None
    assert data(Search | None, "", None, "") == Search()
    assert data(dict | None, "", None, "") == {}
    assert refused(MaybePerson, "", None, "x=1").code == "invalid_data"
    assert refused(Person, "", None, "").details["field"] == "name"


def test_upload_into_a_struct() -> None:
    """A file goes into a field of bytes, and stays a file where anything may stand."""
    body = (
        b'--bo\r\nContent-Disposition: form-data; name="title"\r\n\r\nt\r\n'
        b'--bo\r\nContent-Disposition: form-data; name="n"\r\n\r\n3\r\n'
        b'--bo\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n\xff\r\n--bo--'
    )
    assert data(Upload, body, MULTIPART) == Upload("t", b"\xff", 3)
    assert data(dict[str, Any], body, MULTIPART)["file"].filename == "x"
    assert refused(Person, body, MULTIPART).details["field"] == "name"


# -- pydantic -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (Model, '{"name": "a", "tag": ["x"]}', Model(name="a", tag=["x"])),
        (list[Zip], '[{"zip": 1}]', [Zip(zip=1)]),
        (Zip | None, "null", None),
        (PydanticData, '{"n": 1, "who": [{"zip": 2}]}', PydanticData(1, [Zip(zip=2)])),
        (AroundModel, '{"model": {"zip": 2}}', AroundModel(Zip(zip=2))),
        (dict[str, Zip], '{"NaN": {"zip": 1}}', {"NaN": Zip(zip=1)}),
    ],
)
def test_pydantic(annotation: Any, text: str, expected: Any) -> None:
    """Types of pydantic's, and types that contain some, go through pydantic, msgspec or not."""
    assert data(annotation, text, JSON) == expected
    assert data(annotation, "\ufeff" + text, JSON) == expected


@pytest.mark.usefixtures("engine")
def test_pydantic_from_a_query() -> None:
    """Query text is converted, and a single value becomes a list where the model has one."""
    found = data(Model, "", None, "name=a&tag=x&born=2020-01-02&at_least=4")
    assert found == Model(name="a", tag=["x"], born=dt.date(2020, 1, 2), at_least=4)
    assert data(Model, "name=a", FORM) == Model(name="a")
    assert refused(Model, "", None, "name=a&at_least=x").details["field"] == "at_least"


def test_structured_without_msgspec_but_with_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without msgspec, pydantic checks dataclasses and typed builtins, if it can be imported."""
    monkeypatch.setattr(jsons, "MSGSPEC", None)
    assert data(dict[str, int], '{"a": 1}', JSON) == {"a": 1}
    assert data(Named, '[1, "x"]', JSON) == Named(1, "x")
    assert refused(dict[str, int], '{"a": "x"}', JSON).details["field"] == "a"


def test_structured_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without msgspec and pydantic a structured annotation fails at load, and says what to install."""
    monkeypatch.setattr(jsons, "MSGSPEC", None)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for annotation in (Data, dict[str, int], list[int], Typed, Literal["a"]):
        with pytest.raises(TypeError, match="install msgspec or pydantic in the function's environment"):
            decoder(annotation)


# -- at load --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class WithSocket:
    s: socket.socket


class WithCustom(pydantic.BaseModel, arbitrary_types_allowed=True):
    c: Custom


@pytest.mark.parametrize(
    ("annotation", "word"),
    [
        (Custom, "Custom"),
        (list[Custom], "Custom"),
        (Custom | None, "Custom"),
        (WithSocket, "socket"),
        (dict[str, WithSocket], "socket"),
        (Person | Address, "Person"),
        (Custom | int, "Custom"),
        ("Missing", "Missing"),
        (list["Missing"], "Missing"),  # type: ignore[name-defined]  # noqa: F821
        (complex, "complex"),
        (list[Zip | Custom], "Custom"),
    ],
)
def test_annotations_that_cannot_be_checked(annotation: Any, word: str) -> None:
    """An annotation that says nothing about its data is an error when the handler is loaded."""
    with pytest.raises(TypeError, match=word):
        decoder(annotation)


def test_recursive_types() -> None:
    """A type that contains itself is fine."""
    found = data(Tree, '{"kids": [{"kids": []}]}', JSON)
    assert found == Tree([Tree([])])
    assert refused(Tree, '{"kids": [{"kids": [3]}]}', JSON).details["field"] == "kids[0].kids[0]"


@dataclasses.dataclass
class Tree:
    kids: list[Tree]
