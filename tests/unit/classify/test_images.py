"""Images of any kind as vectors, and what is refused."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from runtime.classify.images import LENGTH, MOST_PIXELS, PARTS, read_image
from runtime.classify.refusals import Refused
from runtime.worker.multipart import UploadedFile
from tests.unit.classify.conftest import data_uri, encoded


def picture(width: int = 90, height: int = 60) -> Image.Image:
    """Something without any symmetry."""
    image = Image.new("RGB", (width, height), "white")
    drawing = ImageDraw.Draw(image)
    drawing.rectangle((5, 5, width // 2, height // 3), "red")
    drawing.ellipse((width // 2, height // 2, width - 8, height - 4), "blue")
    drawing.line((0, height, width // 3, height // 2), "black", 4)
    return image


def distance(one: Any, other: Any) -> float:
    return float(np.linalg.norm(read_image(one, "it") - read_image(other, "it")))


FAR = distance(encoded(picture()), encoded(picture().rotate(90, expand=True)))


def png(width: int, height: int) -> bytes:
    """The smallest file that claims this size: its pixels are missing."""
    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    chunks = b"".join(
        len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_the_format_hardly_matters(form: str) -> None:
    """One picture gives about one vector."""
    assert distance(encoded(picture(), form), encoded(picture())) < FAR / 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_pixels_is_read(mode: str) -> None:
    """Among them those with 16 bits, which stay grey."""
    gray = Image.linear_gradient("L")
    image = gray.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(gray, np.uint16) * 257)

    assert distance(encoded(image), encoded(gray)) < FAR / (1 if mode == "1" else 4)


def test_sizes_do_not_matter() -> None:
    """Tiny or huge, the vector has one length, and looks alike."""
    assert len(read_image(encoded(Image.new("L", (1, 1))), "it")) == LENGTH == PARTS[-1].stop
    assert distance(encoded(picture(900, 600), "JPEG"), encoded(picture().resize((900, 600)), "JPEG")) < FAR


def test_transparency_is_white() -> None:
    """What shines through is not the colour that happens to be stored there."""
    clear = Image.new("RGBA", (50, 50), (255, 0, 0, 0))

    assert distance(encoded(clear), encoded(Image.new("RGB", (50, 50), "white"))) < 0.01


def test_a_photograph_is_turned_upright() -> None:
    """Cameras note which way is up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture().rotate(90, expand=True)

    turned = encoded(lying, "JPEG", quality=95, exif=exif)

    assert distance(turned, encoded(picture())) < FAR / 2


@pytest.mark.parametrize(
    "given",
    [
        data_uri(encoded(picture(), "JPEG"), "image/jpg"),
        data_uri(encoded(picture(), "JPEG"), "image/svg+xml;name=a.svg"),
        data_uri(encoded(picture()), ""),
        data_uri(encoded(picture())).replace("/", "/\n"),
        encoded(picture()),
        {"file": UploadedFile("file", "a.png", "image/png", encoded(picture()))},
        {"data": data_uri(encoded(picture())), "file": 1},
    ],
)
def test_the_ways_to_send_one(given: Any) -> None:
    """Whatever kind of image it claims to be, its bytes decide."""
    if isinstance(given, str):
        given = given.replace("data:image/\n", "data:image/")

    assert read_image(given, "it").dtype == np.float32


@pytest.mark.parametrize(
    "given",
    [
        *(None, 1, "", {}, [], "https://example.com/a.png", "/etc/passwd", "data:,x", "data:text/plain;base64,eA=="),
        *("data:image/png;base64,", "data:image/png;base64,####", "data:image/png;base64,é", b"", b"GIF89a"),
        *(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", png(9, 9), encoded(picture())[:200]),
    ],
)
def test_what_is_no_image_is_refused(given: Any) -> None:
    """Nothing is fetched or opened, and no decoder is asked that runs programs."""
    with pytest.raises(Refused, match="the picture is") as refused:
        read_image(given, "the picture")

    assert refused.value.code == "invalid_data"
    assert " at 0x" not in refused.value.message


@pytest.mark.parametrize("size", [(MOST_PIXELS // 1000 + 1, 1000), (40_000, 40_000)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    """A small file that would be gigabytes costs nothing."""
    tracemalloc.start()
    with pytest.raises(Refused, match="more than 50,000,000 pixels"):
        read_image(png(*size), "it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 5_000_000


FILES = [encoded(picture(20, 20), form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")]


@settings(max_examples=300)
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6)), max_size=5))
def test_a_damaged_file_is_read_or_refused(content: bytes, damage: list[tuple[int, bytes]]) -> None:
    """Whatever the decoders make of it, nothing else comes out."""
    for place, other in damage:
        place %= len(content)
        content = content[:place] + other + content[place + len(other) :]
    try:
        assert np.isfinite(read_image(content, "it")).all()
    except Refused:
        pass


def test_vectors_are_made_of_their_parts() -> None:
    """The parts follow each other."""
    assert [one.stop == other.start for one, other in itertools.pairwise(PARTS)] == [True, True]
