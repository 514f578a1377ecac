"""The data of a sample or of an invocation: read from JSON or a form, and checked against the function's `input`.

Used by `invoke` and `samples`. Whatever does not fit is a BadRequest that says where.
"""

from __future__ import annotations

import binascii
import re
import sys
from base64 import b64encode
from typing import Any

import msgspec
from starlette.requests import Request

from ...errors import BadRequest, FunctionRefused
from ...lessons import Field, Profile
from ...payload import read_json, read_whole
from ...registry import Function
from ...worker.faults import Refused
from ...worker.multipart import UploadedFile, form

LONGEST_ID = 1024  # characters of an external id
LONGEST_METADATA = 8 * 1024  # bytes: it is handed on in a header
PARTS = ("data", "file")  # of a form, in which an image may be

_DATA_URI = re.compile(r"data:(image/[A-Za-z0-9.+-]{1,60});base64,")
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


class InvokeInput(msgspec.Struct, frozen=True):
    """The body of an invocation. Unknown members do not matter."""

    data: Any = None
    externalId: str | None = None
    metadata: dict[str, Any] | None = None


class Data(msgspec.Struct, frozen=True):
    """`given`: as the function gets it, tabular data by field name. `kept`: as it is recorded, by field id.

    `kept` is the JSON text, the same for the same data; None where there is nothing to record.
    """

    given: Any
    kept: str | None


async def read_invocation(request: Request, function: Function, profile: Profile) -> InvokeInput:
    """What a function is asked: JSON, or for images a form with the file."""
    limit = function.settings.max_body
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        if profile.input != "Image":
            raise BadRequest(f"a form can be sent to functions of images; this one takes {profile.input}, as JSON")
        asked = _from_form(await read_whole(request, limit), request.headers["content-type"])
    else:
        asked = await read_json(request, InvokeInput, limit)
    if asked.data is None:
        raise BadRequest("`data` is missing")
    check_external_id(asked.externalId)
    return asked


def check(profile: Profile, data: Any, *, strict: bool) -> Data:
    """The data as the function's input says; with `strict`, tabular data has known fields only."""
    if profile.input == "Tabular":
        return _table(profile, data, strict)
    if not isinstance(data, str):
        raise BadRequest(f"`data` must be a string: this function takes {profile.input}")
    if profile.input == "Image":
        check_image(data, "`data`")
    return Data(data, _canonical(data))


def check_image(text: str, where: str) -> None:
    """BadRequest unless this is an image as a data URI. Nothing is fetched: a URL could lead to where only we may."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(f"{where} is a URL, and this host fetches none; send the image as a data URI or as a form")
    found = _DATA_URI.match(text)
    if found is None:
        raise BadRequest(f"{where} must be an image as a data URI: data:image/jpeg;base64,…")
    try:
        binascii.a2b_base64(text[found.end() :], strict_mode=True)
    except ValueError as error:
        raise BadRequest(f"{where} is not valid Base64: {error}") from None


def check_external_id(text: str | None) -> None:
    """BadRequest for an external id that is none."""
    if text is not None and not 0 < len(text) <= LONGEST_ID:
        raise BadRequest(f"externalId must be 1 to {LONGEST_ID} characters")


def metadata_text(metadata: dict[str, Any] | None) -> str | None:
    """The metadata as JSON text."""
    if metadata is None:
        return None
    text = msgspec.json.encode(metadata).decode()
    if len(text) > LONGEST_METADATA:
        raise BadRequest(f"`metadata` is longer than {LONGEST_METADATA} bytes")
    return text


def _from_form(body: bytes, content_type: str) -> InvokeInput:
    try:
        parts = form(body, content_type.encode("latin-1"))
    except Refused as refused:
        raise FunctionRefused(400, refused.code, refused.message, refused.details) from None
    image = next((parts[name] for name in PARTS if name in parts), None)
    external_id = parts.get("externalId") or None
    if not isinstance(external_id, str | None):
        raise BadRequest("the part `externalId` must be one text")
    if isinstance(image, list):
        raise BadRequest("the form has more than one image")
    if isinstance(image, UploadedFile):
        image = f"data:{_kind_of(image)};base64,{b64encode(image.content).decode()}"
    return InvokeInput(image, external_id)


def _kind_of(file: UploadedFile) -> str:
    """The type that the content has; else what the client says."""
    for magic, kind in _MAGIC:
        if file.content.startswith(magic):
            return kind
    if file.content[:4] == b"RIFF" and file.content[8:12] == b"WEBP":
        return "image/webp"
    said = file.content_type.partition(";")[0].strip().lower()
    if _DATA_URI.match(f"data:{said};base64,") is None:
        raise BadRequest("the file is no image that is known here; say in its Content-Type which it is")
    return said


def _table(profile: Profile, data: Any, strict: bool) -> Data:
    if not isinstance(data, dict):
        raise BadRequest("`data` must be an object: this function takes Tabular")
    given: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for key, value in data.items():
        field = profile.fields_by_key.get(key)
        if field is None and strict:
            raise BadRequest(f"there is no field `{key[:100]}`; create it first")
        if field is None:
            given[key] = value
        elif field.id in kept:
            raise BadRequest(f"the field `{field.name}` is there twice")
        elif value is not None:
            given[field.name] = _cell(field, value)
            kept[field.id] = given[field.name]
    if strict and not kept:
        raise BadRequest("`data` has no value")
    return Data(given, _canonical(kept) if kept else None)


def _cell(field: Field, value: Any) -> str | int | float:
    """The value of one field."""
    if field.type == "Number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise BadRequest(f"the field `{field.name}` takes a number")
        return int(value) if float(value).is_integer() and abs(value) < 1 << 53 else value
    if not isinstance(value, str):
        raise BadRequest(f"the field `{field.name}` takes a string")
    if field.type == "Image":
        check_image(value, f"the field `{field.name}`")
    return value


def _canonical(data: Any) -> str:
    return msgspec.json.encode(data, order="deterministic").decode()
