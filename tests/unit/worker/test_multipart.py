"""multipart/form-data bodies."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.worker.faults import Refused
from runtime.worker.multipart import UploadedFile, form

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8)
# Contents full of what delimiters are made of.
NEAR_MISSES = st.lists(
    st.sampled_from([b"\r\n", b"--", b"b", b"bo", b"\r", b"\n", b"-", b"\r\n--b", b"\r\n--bo-", b" ", b"\0\xff"])
).map(b"".join)
CONTENTS = st.binary(max_size=60) | NEAR_MISSES
FIELDS = st.tuples(NAMES, st.none(), st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")))
FILES = st.tuples(NAMES, NAMES, CONTENTS)


def quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def part(name: str, filename: str | None, content: bytes, content_type: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{quoted(name)}"'
    if filename is not None:
        head += f'; filename="{quoted(filename)}"'
    if content_type:
        head += f"\r\nContent-Type: {content_type}"
    return head.encode() + b"\r\n\r\n" + content


def assemble(boundary: bytes, parts: list[bytes]) -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + one + b"\r\n" for one in parts) + b"--" + boundary + b"--\r\n"


def parse(boundary: bytes, body: bytes) -> dict[str, Any]:
    return form(body, b"multipart/form-data; boundary=" + boundary)


def refused(body: bytes, content_type: bytes = b"multipart/form-data; boundary=bo") -> str:
    with pytest.raises(Refused) as error:
        form(body, content_type)
    assert (error.value.status, error.value.code) == (400, "bad_multipart")
    return error.value.message


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@settings(deadline=None)
@given(st.lists(FIELDS | FILES, max_size=8), st.sampled_from([b"", b"preamble\r\n", b"\r\n"]))
def test_round_trip(parts: list[tuple[str, str | None, bytes]], preamble: bytes) -> None:
    """Whatever parts are sent come back: names, filenames and contents, in order."""
    delimiters = (b"\r\n--bo--", b"\r\n--bo\r\n", b"\r\n--bo ", b"\r\n--bo\t")
    assume(not any(mark in b"\r\n" + content + b"\r\n" for _, _, content in parts for mark in delimiters))
    body = assemble(b"bo", [part(*one) for one in parts])
    found = parse(b"bo", preamble + body + b"epilogue")
    sent: dict[str, list[Any]] = {}
    for name, filename, content in parts:
        sent.setdefault(name, []).append(content.decode() if filename is None else (filename, content))
    received = {
        name: [(one.filename, one.content) if isinstance(one, UploadedFile) else one for one in as_list(value)]
        for name, value in found.items()
    }
    assert received == sent


@settings(deadline=None)
@given(st.lists(FILES, min_size=1, max_size=4), st.integers(1, 200))
def test_truncated_is_refused(parts: list[tuple[str, str, bytes]], cut: int) -> None:
    """A body cut anywhere before its closing boundary is complete is refused, never read half."""
    delimiter = b"Xx3kboundary"
    body = assemble(delimiter, [part(*one) for one in parts]).removesuffix(b"--\r\n")
    with pytest.raises(Refused) as error:
        parse(delimiter, body[: max(0, len(body) - cut)])
    assert error.value.code == "bad_multipart"


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"--bo", b"\r\n", b"--", b"a", b": ", b"Content-Disposition: form-data"])))
def test_any_body_is_parsed_or_refused(pieces: list[bytes]) -> None:
    """No body does anything else than parse or be refused."""
    try:
        found = parse(b"bo", b"".join(pieces))
    except Refused as error:
        found, code = None, error.code
    assert isinstance(found, dict) or code == "bad_multipart"


def test_file() -> None:
    """A file has a name, a content type, its bytes and their number; its repr does not show them."""
    body = assemble(b"bo", [part("up", "a b.txt", b"caf\xe9", "text/plain; charset=latin-1")])
    file = parse(b"bo", body)["up"]
    assert isinstance(file, UploadedFile)
    assert (file.name, file.filename, file.content_type) == ("up", "a b.txt", "text/plain; charset=latin-1")
    assert (file.content, file.size, type(file.content)) == (b"caf\xe9", 4, bytes)
    assert file.text() == "café"
    assert file.text("cp1251") == "cafй"
    assert "caf" not in repr(file)


def test_file_without_choice() -> None:
    """A file field left empty by a browser is a file without name and content."""
    file = parse(b"bo", assemble(b"bo", [part("up", "", b"")]))["up"]
    assert (file.filename, file.size, file.content_type) == ("", 0, "application/octet-stream")


def test_extended_filename() -> None:
    """A filename in the extended notation is decoded and wins."""
    head = b'Content-Disposition: form-data; name="f"; filename="x"; filename*=UTF-8\'\'na%C3%AFve.txt\r\n\r\n'
    assert parse(b"bo", assemble(b"bo", [head]))["f"].filename == "naïve.txt"


def test_field_charset() -> None:
    """A field's own charset is used; text that is not in it is refused."""
    body = assemble(b"bo", [part("a", None, b"\xe9", "text/plain; charset=latin-1")])
    assert parse(b"bo", body) == {"a": "é"}
    assert "'a'" in refused(assemble(b"bo", [part("a", None, b"\xe9")]))


@pytest.mark.parametrize(
    "head", ["content-disposition:form-data;name=a", "X: y\r\nCONTENT-DISPOSITION: Form-Data ; name=a"]
)
def test_header_spellings(head: str) -> None:
    """Header names in any case, unquoted parameters and further headers are fine."""
    assert parse(b"bo", assemble(b"bo", [head.encode() + b"\r\n\r\nv"])) == {"a": "v"}


def test_boundary_spellings() -> None:
    """A quoted boundary, padding after a delimiter, and content that begins like one are fine."""
    body = b'--a b\t \r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--a b-not\r\n--a bc\r\n--a b--'
    assert form(body, b'multipart/form-data; boundary="a b"') == {"x": "1\r\n--a b-not\r\n--a bc"}


def test_empty_forms() -> None:
    """A form may have no parts at all, and a part no content, with or without the line break before it."""
    assert parse(b"bo", b"--bo--") == {}
    assert parse(b"bo", b"\r\n--bo--\r\n") == {}
    assert parse(b"bo", b'--bo\r\nContent-Disposition: form-data; name="x"\r\n\r\n--bo--') == {"x": ""}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "closing boundary"),
        (b"hello", "closing boundary"),
        (b"--bo", "closing boundary"),
        (b"--bo\r\n", "headers"),
        (b"--bo\r\nContent-Disposition: form-data; name=a\r\n\r\nv", "closing boundary"),
        (b"--bo\nContent-Disposition: form-data; name=a\n\nv\n--bo--", "closing boundary"),
        (b"--bo\r\n\r\nv\r\n--bo--", "Content-Disposition"),
        (b"--bo\r\nX: y\r\n\r\nv\r\n--bo--", "Content-Disposition"),
        (b"--bo\r\nContent-Disposition: form-data\r\n\r\nv\r\n--bo--", "Content-Disposition"),
        (b"--bo\r\nContent-Disposition: attachment; name=a\r\n\r\nv\r\n--bo--", "Content-Disposition"),
        (b"--bo\r\nX: " + b"y" * 20_000 + b"\r\n\r\nv\r\n--bo--", "headers"),
    ],
)
def test_malformed(body: bytes, word: str) -> None:
    """A malformed body is refused with what is wrong."""
    assert word in refused(body)


def test_no_boundary() -> None:
    """Without a boundary there is no telling the parts."""
    assert "boundary" in refused(b"x", b"multipart/form-data")


def test_too_many_parts() -> None:
    """A body of absurdly many parts is refused."""
    assert "10000" in refused(assemble(b"bo", [part("a", None, b"")] * 10_001))


def test_large_file_takes_one_copy() -> None:
    """A large file costs one copy of itself and no more."""
    size = 20_000_000
    body = assemble(b"bo", [part("up", "big", b"\r\n--" * (size // 4)), part("a", None, b"1")])
    tracemalloc.start()
    try:
        found = parse(b"bo", body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["up"].size == size
    assert found["a"] == "1"
    assert peak < 1.1 * size
