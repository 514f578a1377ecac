"""Requests as no good client sends them, for whichever dialect: `test_bad_clients_*.py` send and judge them.

A test says which Places its dialect has, each with a good request, and how it words errors. `spoilt` makes bad requests
of the good ones; `judge` holds an answer to what every dialect promises: never a 500, and errors in its own words.
They go to a real host without a server between, so that also what an HTTP library would not let through gets there.
In an async test take them as an argument, `@given(sent=spoilt(PLACES))`: what is drawn within it is drawn too late.
"""

from __future__ import annotations

import gzip
import json
import textwrap
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import anyio
from hypothesis import strategies as st

from runtime.app import App
from runtime.config import load
from runtime.host import Host

PATIENCE = 60.0  # seconds for one answer
PIECE = 256 * 1024  # bytes of a body that come at once
DEPTHS = (100, 1000, 5000, 100_000, 10_000_000)  # the last: 10 MB of brackets
BOMB = 200_000_000  # zeros, in 200 KB

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
CHARSETS = ("utf-16", "utf-32", "latin-1", "iso-8859-1", "cp1252", "x-nonsense", "", '"utf-8', "\x7f", "u" * 5000)
KINDS = (
    "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/cbor",
    "multipart/form-data; boundary=", "multipart/form-data; boundary=x", "application/octet-stream", "", ";", "/",
    "application/json; charset", "application/json; charset=utf-8; charset=utf-16",
)  # fmt: skip
CODINGS = ("gzip", "deflate", "br", "zstd", "gzip, gzip", "gzip," * 40, "identity, gzip", "x-gzip", "chunked", "\xff")
MALFORMED = (
    b"", b" ", b"{", b"}", b"[", b'{"', b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,}', b"{'a': 1}", b"nul", b"NaN",
    b"-Infinity", b"1e999", b"[1,]", b'"', b'"\\ud800"', b'"\\u12"', b'"\x01"', b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}", b"\x80", b'{"a":"\xff"}', b"{} {}", b"{}\x00", b"\x00", b"a=1&b=2",
    b"--x\r\n\r\n", b"1" * 5000, b"<a/>",
)  # fmt: skip
WORDS = (
    "", " ", "0", "-1", "+1", "1.5", "1e3", "01", "9" * 15, "9" * 16, "9" * 400, "nan", "inf", "true", "null", "[]",
    "{}", "..", ".", "../..", "a/b", "\0", "a\0b", "\n", "\r\nX-Evil: 1", "é", "\u2028", "😀", "\ud7ff", "%", "%zz",
    "*", "'; DROP TABLE calls; --", "${x}", "١٢", "x" * 3000, "5m", "-5m", "1h30m", "99999999999h", "2026-13-01",
    "2026-01-02T03:04:05Z", "0000-00-00T00:00:00Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00",
)  # fmt: skip
WAYS = ("malformed", "cut", "other", "spoilt", "missing", "added", "doubled", "nested", "coded")  # to spoil a body
NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308, 1e-320)


class Place(NamedTuple):
    """An address of a dialect, and a good request there. `{}` in the path is where the client puts what is in `names`.

    `parameters`: what the query may have. A `body` of bytes is sent as it is, of anything else as JSON.
    """

    method: str
    path: str
    body: Any = None
    names: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}


class Sent(NamedTuple):
    """A request; `target` is what stands in its first line."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def __repr__(self) -> str:
        return f"{self.method} {self.target[:200]} {self.headers!r:.300} {self.body[:200]!r} ({len(self.body)} bytes)"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)


# Making them.


def words() -> st.SearchStrategy[str]:
    """Text where a name or a value is expected."""
    return st.sampled_from(WORDS) | st.text(max_size=30)


def values() -> st.SearchStrategy[Any]:
    """Anything that JSON can say, and some that only Python's says."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS) | words()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words(), inner, max_size=4), max_leaves=8
    )


@cache
def nested(size: int, shape: str) -> bytes:
    """So many bytes of brackets in brackets."""
    opening, closing = {"lists": (b"[", b"]"), "objects": (b'{"a":', b"}"), "open": (b'[{"a":', b"")}[shape]
    depth = size // len(opening + closing)
    return opening * depth + closing * depth


@cache
def bomb(size: int = BOMB, *, layers: int = 1) -> bytes:
    """Zeros in gzip, in gzip, …: small, until somebody unpacks it."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1_000_000)
    packed = b"".join(packer.compress(zeros) for _ in range(size // len(zeros))) + packer.flush()
    for _ in range(layers - 1):
        packed = gzip.compress(packed)
    return packed


def json_of(value: Any) -> bytes:
    """As Python writes it, NaN and lone surrogates and all."""
    return json.dumps(value).encode()


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value something stands, as paths of keys."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        found += places_of(part, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """The value with something else at a path."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], other)
    return copy


@st.composite
def bodies(draw: st.DrawFn, good: Any) -> bytes:
    """A body instead of a good one: malformed, of other types, doubled, nested, in another charset."""
    if isinstance(good, bytes):
        return draw(st.sampled_from(MALFORMED) | st.binary(max_size=200) | st.just(good[: len(good) // 2]))
    text = json_of(good)
    how = draw(st.sampled_from(WAYS))
    if how == "malformed":
        return draw(st.sampled_from(MALFORMED) | st.binary(max_size=200))
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if how == "other":
        return json_of(draw(values()))
    if how == "nested":
        return _nested(draw, good)
    if how == "coded":
        return text.decode().encode(draw(st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-7"))))
    if not isinstance(good, dict) or not good:
        return json_of(draw(values()))
    if how == "doubled":
        key = draw(st.sampled_from(sorted(good)))
        again = b"%s:%s," % (json_of(key), json_of(draw(values())))
        return b"{" + again * draw(st.integers(1, 3)) + text[1:]
    if how == "missing":
        gone = draw(st.sets(st.sampled_from(sorted(good)), min_size=1))
        return json_of({key: value for key, value in good.items() if key not in gone})
    if how == "added":
        return json_of({**good, **draw(st.dictionaries(words(), values(), min_size=1, max_size=3))})
    return json_of(replaced(good, draw(st.sampled_from(places_of(good))), draw(values())))


def _nested(draw: st.DrawFn, good: Any) -> bytes:
    """Ten megabytes of brackets, or fewer: as a whole, within the good body, or as text within it."""
    deep = nested(draw(st.sampled_from(DEPTHS)), draw(st.sampled_from(("lists", "objects", "open"))))
    if not isinstance(good, dict) or not good or draw(st.booleans()):
        return deep
    key = draw(st.sampled_from(sorted(good)))
    marked = json_of({**good, key: "@here@"})
    as_text = draw(st.booleans())
    return marked.replace(b'"@here@"', json_of(deep.decode()) if as_text else deep)


def _packed(draw: st.DrawFn, body: bytes) -> tuple[bytes, bytes]:
    """A Content-Encoding and a body that is not, or should not be, in it."""
    coding = draw(st.sampled_from(CODINGS)).encode("latin-1")
    packed = draw(
        st.sampled_from(
            (bomb(), bomb(layers=2), body, gzip.compress(body), gzip.compress(body)[:-5], gzip.compress(body) + b"x",
             zlib.compress(body), b"\x1f\x8b", b"\x1f\x8b" + bytes(50), gzip.compress(b"") * 2000)
        )
    )  # fmt: skip
    return coding, packed


@st.composite
def spoilt(draw: st.DrawFn, places: Sequence[Place]) -> Sent:
    """A request to one of these places, with one or two things wrong with it."""
    place = draw(st.sampled_from(list(places)))
    possible = ["query", "headers", "method"] + ["names"] * bool(place.names)
    possible = ["body", "body", "coding", "kind", *possible] if place.body is not None else [*possible, "query", "body"]
    wrong = draw(st.sets(st.sampled_from(possible), min_size=1, max_size=2))
    method = draw(st.sampled_from(METHODS)) if "method" in wrong else place.method
    body = place.body if isinstance(place.body, bytes) else b"" if place.body is None else json_of(place.body)
    headers = {"host": "edge", **({"content-type": "application/json"} if place.body is not None else {})}
    headers |= {name.lower(): value for name, value in place.headers.items()}
    if "body" in wrong:
        body = draw(bodies(place.body if place.body is not None else {"a": 1}))
        headers.setdefault("content-type", "application/json")
    if "kind" in wrong:
        kinds = [*KINDS, *(f"application/json; charset={charset}" for charset in CHARSETS)]
        headers["content-type"] = draw(st.sampled_from(kinds))
    raw = {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
    if "coding" in wrong or ("body" in wrong and draw(st.integers(0, 9)) == 0):
        raw[b"content-encoding"], body = _packed(draw, body)
    raw[b"content-length"] = b"%d" % len(body)
    if "headers" in wrong:
        raw |= _odd_headers(draw)
    target = _path(draw, place, spoil="names" in wrong) + (_query(draw, place) if "query" in wrong else "")
    return Sent(method, target, tuple(raw.items()), body)


def _odd_headers(draw: st.DrawFn) -> dict[bytes, bytes]:
    names = st.sampled_from(
        (b"content-length", b"accept", b"x-call-id", b"x-request-id", b"cookie", b"range", b"expect",
         b"x-forwarded-for", b"x-stainless-retry-count", b"x-stainless-read-timeout", b"if-none-match", b"te",
         b"connection", b"host")
    )  # fmt: skip
    odd = st.sampled_from([word.encode() for word in WORDS if word.isprintable()]) | st.binary(max_size=20)
    return draw(st.dictionaries(names, odd, max_size=3))


def _path(draw: st.DrawFn, place: Place, *, spoil: bool) -> str:
    path = place.path
    for name in place.names:
        value = draw(words()) if spoil else name
        path = path.replace("{}", _escaped(value), 1)
    return path


def _query(draw: st.DrawFn, place: Place) -> str:
    names = st.sampled_from(place.parameters) if place.parameters else st.just("limit")
    pairs = draw(st.lists(st.tuples(names | words(), words()), max_size=4))
    text = "&".join(f"{_escaped(name)}={_escaped(value)}" for name, value in pairs)
    return "?" + text + draw(st.sampled_from(("", "", "&", "&=", "&%", "&%zz=%ff", "&a&a&a", ";")))


def _escaped(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


# Sending and judging them.


@asynccontextmanager
async def serving(root: Path, files: Mapping[str, str], toml: str = "") -> AsyncIterator[App]:
    """The application over a real host of these files (`space/name.py`), open to all, as on loopback."""
    for path, text in files.items():
        target = root / "functions" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
    (root / "spaces.toml").write_text(textwrap.dedent(toml))
    host = Host(load(root, environ={}), watch=False, durable=True)
    host.bound_to_loopback = True
    async with host:
        yield App(host)
        host.stopping = True


async def answer_to(app: App, sent: Sent) -> Answer:
    """What the application answers to a request that came in pieces."""
    path, _, query = sent.target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": sent.method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": list(sent.headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    pieces = [sent.body[at : at + PIECE] for at in range(0, len(sent.body), PIECE)]
    ended, over = False, anyio.Event()
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal ended
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": True}
        if not ended:
            ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        told.append(dict(message))
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            over.set()

    with anyio.fail_after(PATIENCE):
        await app(scope, receive, send)  # type: ignore[arg-type]
    assert over.is_set(), f"no whole answer to {sent}"
    start, *rest = told
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(message.get("body", b"") for message in rest))


def judge(sent: Sent, answer: Answer, is_error: Callable[[Answer], bool]) -> None:
    """What no bad request may bring about: an error of the host's, or one in another tongue."""
    assert answer.status < 500, f"{sent}\n{answer}"
    if answer.status >= 400 and sent.method != "HEAD":
        assert is_error(answer), f"{sent}\n{answer}"
    assert b"Traceback" not in answer.body, f"{sent}\n{answer}"
