"""multipart/form-data (RFC 7578): a body cut into fields and uploaded files, by `bytes.find` only.

Called by `body`. Memory: one copy of each part's content beside the body itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from .faults import Refused
from .multi import merged, parameters

_MOST_PARTS = 10_000
_MOST_HEADER_BYTES = 16 * 1024


class UploadedFile:
    """A file of a form. The name is what the client said, path and all: do not open it as it is."""

    __slots__ = ("content", "content_type", "filename", "name")

    def __init__(self, name: str, filename: str, content_type: str, content: bytes) -> None:
        self.name = name
        self.filename = filename
        self.content_type = content_type
        self.content = content

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.content)

    def text(self, encoding: str = "") -> str:
        """The content as text, by the given encoding, the part's charset, or UTF-8."""
        return self.content.decode(encoding or parameters(self.content_type).get("charset") or "utf-8")

    def __repr__(self) -> str:
        return f"<file {self.filename!r} of field {self.name!r}: {self.content_type}, {self.size} bytes>"


def form(body: bytes, content_type: bytes) -> dict[str, Any]:
    """Fields as text, files as `UploadedFile`, a repeated name as a list; `Refused` where malformed."""
    boundary = parameters(content_type.decode("latin-1")).get("boundary")
    if not boundary:
        raise _malformed("the content type has no boundary")
    return merged(_part(head, content) for head, content in _parts(body, boundary.encode("latin-1")))


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The header block and the content of each part."""
    mark = b"\r\n--" + boundary
    at = _after(body, len(mark) - 2) if body.startswith(mark[2:]) else -1
    if at < 0:
        _, at = _next_mark(body, mark, 0)
    count = 0
    while at:
        count += 1
        if count > _MOST_PARTS:
            raise _malformed(f"it has more than {_MOST_PARTS} parts")
        # The blank line may begin at once (no headers), so the search starts at the line end before it.
        start = body.find(b"\r\n\r\n", at - 2, at + _MOST_HEADER_BYTES)
        if start < 0:
            raise _malformed("a part's headers do not end")
        end, following = _next_mark(body, mark, start + 2)
        yield body[at:start], body[start + 4 : end]
        at = following


def _next_mark(body: bytes, mark: bytes, start: int) -> tuple[int, int]:
    """Where the next delimiter begins and where the part after it does, 0 when it was the closing one."""
    at = body.find(mark, start)
    while at >= 0:
        following = _after(body, at + len(mark))
        if following >= 0:
            return at, following
        at = body.find(mark, at + 2)
    raise _malformed("the closing boundary is missing")


def _after(body: bytes, at: int) -> int:
    """After boundary text that ends at `at`: where a part starts, 0 for the end, -1 if it was no boundary."""
    if body[at : at + 2] == b"--":
        return 0
    line_end = body.find(b"\r\n", at, at + 256)
    if line_end < 0 or body[at:line_end].strip(b" \t"):
        return -1
    return line_end + 2


def _part(head: bytes, content: bytes) -> tuple[str, str | UploadedFile]:
    disposition = content_type = ""
    for line in _text(head).split("\r\n"):
        name, _, value = line.partition(":")
        name = name.strip().lower()
        if name == "content-disposition":
            disposition = value
        elif name == "content-type":
            content_type = value.strip()
    found = parameters(disposition)
    if disposition.partition(";")[0].strip().lower() != "form-data" or "name" not in found:
        raise _malformed("a part has no `Content-Disposition: form-data` with a name")
    name = found["name"]
    filename = _extended(found["filename*"]) if "filename*" in found else found.get("filename")
    if filename is not None:
        return name, UploadedFile(name, filename, content_type or "application/octet-stream", content)
    charset = parameters(content_type).get("charset") or "utf-8"
    try:
        return name, content.decode(charset)
    except (LookupError, ValueError):
        raise _malformed(f"field {name[:100]!r} is not {charset[:40]} text") from None


def _text(head: bytes) -> str:
    # Browsers write names in UTF-8; what is not that is taken byte by byte.
    try:
        return head.decode("utf-8")
    except UnicodeDecodeError:
        return head.decode("latin-1")


def _extended(value: str) -> str:
    """The text of an RFC 8187 value: `UTF-8''na%C3%AFve.txt`."""
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2]
    try:
        return unquote(encoded, charset or "utf-8", "replace")
    except (LookupError, ValueError):
        return encoded


def _malformed(reason: str) -> Refused:
    return Refused(400, "bad_multipart", f"the body is not valid multipart/form-data: {reason}")
