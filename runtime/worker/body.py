"""What a handler gets as `data`: the body, decoded by its content type and checked against the annotation.

`handler` asks for one decoder per handler when it is loaded; the loop calls it for every call.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from . import jsons, multipart, typed
from .context import CallInfo
from .faults import Refused
from .multi import first_header, merged, query_pairs
from .multipart import UploadedFile as UploadedFile

Decoder = Callable[[CallInfo], Any]

_ANYTHING = (inspect.Parameter.empty, Any, object)
_FORM = b"application/x-www-form-urlencoded"
_BEGINS_AS_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*[{\[]")  # no form does: a client escapes these


def decoder(annotation: Any) -> Decoder:
    """What makes `data` of a call or raises `Refused`; `TypeError` for an annotation past checking."""
    members = _union(annotation)
    if any(member in _ANYTHING for member in members):
        return plain
    wanted = [member for member in members if member is not type(None)]
    if wanted == [bytes]:
        return _body
    if wanted == [str]:
        return _text_of(typed.check(annotation))
    return _checked(typed.check(annotation), nullable=len(wanted) < len(members))


def plain(info: CallInfo) -> Any:
    """The body by its content type; without a body, the query as a dict."""
    headers = info.wire_headers
    if not info.wire_body:
        return _query(info)
    if first_header(headers, b"content-type") == b"application/json" and b"content-encoding\0" not in headers:
        return jsons.loads(info.wire_body)
    content_type, media = _media(info)
    if not info.body:
        return _query(info)
    if _is_json(info.body, media):
        return jsons.loads(info.body)
    return _other(info, content_type, media)


def _other(info: CallInfo, content_type: bytes, media: bytes) -> Any:
    """The body where it does not say that it is JSON."""
    body = info.body
    if media == _FORM:
        return merged(query_pairs(body))
    if media == b"multipart/form-data":
        return multipart.form(body, content_type)
    if media.startswith(b"text/"):
        return info.text
    if media:
        return body
    try:
        return jsons.loads(body)
    except Refused:
        return body


def _query(info: CallInfo) -> dict[str, Any]:
    return merged(query_pairs(info.wire_query)) if info.wire_query else {}


def _media(info: CallInfo) -> tuple[bytes, bytes]:
    content_type = first_header(info.wire_headers, b"content-type")
    return content_type, content_type.partition(b";")[0].strip().lower()


def _says_json(media: bytes) -> bool:
    return media == b"application/json" or media.endswith(b"+json")


def _is_json(body: bytes, media: bytes) -> bool:
    """Whether the body is to be JSON by its content type, or for all that: `curl -d '{"a": 1}'` says it is a form."""
    return _says_json(media) or (media == _FORM and _BEGINS_AS_JSON.match(body) is not None)


# -- annotated -----------------------------------------------------------------------------------------


def _body(info: CallInfo) -> bytes:
    return info.body


def _text_of(check: typed.Check) -> Decoder:
    """For `data: str`: the text of the body, except that a JSON body has to be a JSON string."""

    def data(info: CallInfo) -> Any:
        if info.wire_body and _says_json(_media(info)[1]):
            return check.json(info.body)
        return info.text

    return data


def _checked(check: typed.Check, nullable: bool) -> Decoder:
    def data(info: CallInfo) -> Any:
        body = info.body
        if not body:
            return _from_query(check, info, nullable)
        content_type, media = _media(info)
        if _is_json(body, media):
            return check.json(body)
        if not media:
            return _guessed(check, body)
        value = _other(info, content_type, media)
        return typed.from_form(check, value) if isinstance(value, dict) else check.value(value, lenient=True)

    return data


def _from_query(check: typed.Check, info: CallInfo, nullable: bool) -> Any:
    try:
        return typed.from_form(check, _query(info))
    except Refused:
        if nullable and not info.wire_query:
            return None  # nothing was sent, and the handler takes that
        raise


def _guessed(check: typed.Check, body: bytes) -> Any:
    """What may be JSON or not, as nobody says what it is."""
    try:
        return check.json(body)
    except Refused as refused:
        if refused.code != "bad_json":
            raise
        try:
            return check.value(body, lenient=False)
        except Refused:
            raise refused from None


def _union(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
