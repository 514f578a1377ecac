"""Compressed request bodies."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.faults import Refused
from runtime.worker.inflate import codings, inflate


def raw_deflate(data: bytes) -> bytes:
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(data) + squeeze.flush()


SQUEEZE = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
LAYERS = st.lists(st.sampled_from(list(SQUEEZE)), max_size=4)


@settings(deadline=None)
@given(st.binary(max_size=3000), LAYERS)
def test_round_trip(data: bytes, layers: list[str]) -> None:
    """What was encoded by a list of codings comes back."""
    body = data
    for layer in layers:
        body = SQUEEZE[layer](body)
    assert inflate(body, layers, 10_000) == data


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_bare_deflate(data: bytes) -> None:
    """Deflate without the zlib wrapping, as some clients send it, comes back too."""
    assert inflate(raw_deflate(data), ["deflate"], 10_000) == data


def test_bare_deflate_that_looks_like_zlib() -> None:
    """A bare stream whose first bytes would do for a zlib header is still read."""
    block = b"x" * 0x9C
    # A stored block whose padding bits make the first byte 0x78; its length makes the second byte fit.
    stored = bytes((0x78, 0x9C, 0x00, 0x63, 0xFF)) + block
    body = stored + raw_deflate(b"end")
    assert inflate(body, ["deflate"], 1000) == block + b"end"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_gzip_of_several_members(pieces: list[bytes]) -> None:
    """A gzip file may be several, one after the other."""
    body = b"".join(gzip.compress(piece) for piece in pieces)
    assert inflate(body + b"\0\0", ["gzip"], 10_000) == b"".join(pieces)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_bound_is_exact(coding: str, size: int, limit: int) -> None:
    """Up to the limit a body passes, one byte more and it is refused."""
    body = SQUEEZE[coding](b"a" * size)
    if size <= limit:
        assert inflate(body, [coding], limit) == b"a" * size
        return
    with pytest.raises(Refused) as refused:
        inflate(body, [coding], limit)
    assert (refused.value.status, refused.value.code) == (413, "body_too_large")


@pytest.mark.parametrize("layers", [["gzip"], ["deflate"], ["gzip", "gzip"]])
def test_a_bomb_is_not_inflated(layers: list[str]) -> None:
    """A small body that would become 100 MB is refused without ever taking the memory."""
    bomb = b"\0" * 100_000_000
    for layer in layers:
        bomb = SQUEEZE[layer](bomb)
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            inflate(bomb, layers, 200_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    assert peak < 2_000_000


def test_a_bomb_of_many_members() -> None:
    """The bound is for all members of a gzip together."""
    with pytest.raises(Refused) as refused:
        inflate(gzip.compress(b"a" * 100) * 11, ["gzip"], 1000)
    assert refused.value.status == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@settings(deadline=None)
@given(cut=st.integers(1, 60))
def test_truncated(coding: str, cut: int) -> None:
    """A body that ends too early is refused as damaged."""
    whole = SQUEEZE[coding](bytes(range(256)))
    with pytest.raises(Refused) as refused:
        inflate(whole[:-cut], [coding], 1000)
    assert (refused.value.status, refused.value.code) == (400, "bad_encoding")


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b"x", mtime=0) + b"tail"),
        ("gzip", gzip.compress(b"x", mtime=0)[:-8] + b"\0" * 8),
        ("gzip", gzip.compress(b"x", mtime=0) + b"\x1f\x8b"),
        ("deflate", b"\xff\xff\xff"),
        ("deflate", zlib.compress(b"x") + b"tail"),
    ],
)
def test_damaged(coding: str, body: bytes) -> None:
    """A body that is not what its coding says is refused."""
    with pytest.raises(Refused) as refused:
        inflate(body, [coding], 1000)
    assert (refused.value.status, refused.value.code) == (400, "bad_encoding")
    assert coding in refused.value.message


@pytest.mark.parametrize("layers", [["br"], ["gzip", "zstd"], ["gzip"] * 6])
def test_unknown(layers: list[str]) -> None:
    """An unknown coding, or an absurd number of them, is refused before anything is inflated."""
    with pytest.raises(Refused) as refused:
        inflate(b"anything", layers, 1000)
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")
    assert layers[-1] in refused.value.message


def test_many_tiny_members_in_linear_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What zlib has to copy grows with the body, not with its square."""
    member = gzip.compress(b"")
    fed = 0
    real = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self.stream = real(wbits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            nonlocal fed
            fed += len(data)
            return self.stream.decompress(data, limit)

        eof = property(lambda self: self.stream.eof)
        unused_data = property(lambda self: self.stream.unused_data)

    monkeypatch.setattr("runtime.worker.inflate.zlib.decompressobj", Counting)
    body = member * 5000
    assert inflate(body, ["gzip"], 10) == b""
    assert fed < 20 * len(body)


def test_codings() -> None:
    """Codings are listed in the order of their application, over several headers, identity left out."""
    assert codings(b"a\0b\0content-encoding\0GZip , identity\0content-encoding\0deflate,\0x\0y") == [
        "gzip",
        "deflate",
    ]
    assert codings(b"x\0content-encoding\0y\0z") == []
    assert codings(b"") == []
