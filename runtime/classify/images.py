"""An image as numbers that a linear classifier can tell things by: shapes, colours, and what is where.

Called by `inputs.py` with what came over the wire, which is not to be trusted. Pillow decodes, numpy measures.
"""

from __future__ import annotations

import binascii
import io
import itertools
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .refusals import Refused

Vector = np.ndarray[Any, Any]  # of float32

#: Decoders of Pillow's that need no other program, and are in wide use. `image/jpg` and the like are not looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MOST_PIXELS = 50_000_000  # a phone's photograph; 200 MB when decoded with transparency

WORKING_SIDE = 256
SIDE = 64  # pixels: what the shapes are read from
CELL = 8
ANGLES = 9
HUES, SHADES, COARSE = 12, 8, 4
THUMBNAIL = 8

_BLOCKS = (SIDE // CELL - 1) ** 2
_ENDS = np.cumsum((_BLOCKS * 4 * ANGLES, HUES + 2 * SHADES + COARSE**3, THUMBNAIL**2 * 3)).tolist()
LENGTH: int = _ENDS[-1]
#: Where in a vector the shapes, the colours and the thumbnail are.
PARTS = tuple(slice(start, end) for start, end in itertools.pairwise((0, *_ENDS)))

_DATA_URI = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_FAINT = 0.1  # contours weaker than this are not made as strong as others
#: What Pillow's decoders raise for broken files.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, zlib.error),
)


def read_image(value: Any, what: str) -> Vector:
    """The features of a data URI, the bytes of a file, or a form with the file. Refused, naming `what`, otherwise."""
    if isinstance(value, Mapping):
        value = value.get("data", value.get("file"))
    value = getattr(value, "content", value)  # an uploaded file of a form
    content = value if isinstance(value, bytes) else _content(value, what)
    return features(_decoded(content, what))


def features(image: Image.Image) -> Vector:
    """A vector, of the same length for every RGB image: shapes, shares of colours, a thumbnail; see PARTS."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32) / 255
    parts = (_shapes(small.mean(axis=2)), _colours(small), thumbnail.ravel())
    return np.concatenate(parts).astype(np.float32)


def _content(value: Any, what: str) -> bytes:
    if not isinstance(value, str):
        raise Refused("invalid_data", f"{what} is to be an image: a data URI, data:image/jpeg;base64,…")
    head = _DATA_URI.match(value)
    if head is None:
        raise Refused("invalid_data", f"{what} is no data URI of an image: data:image/jpeg;base64,…")
    try:
        return binascii.a2b_base64("".join(value[head.end() :].split()).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refused("invalid_data", f"{what} is no valid base64: {error}") from None


def _decoded(content: bytes, what: str) -> Image.Image:
    """The first picture of the file, small, upright, on white where it is transparent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are refused here anyway
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height <= MOST_PIXELS:
                return _small(image)
    except Image.DecompressionBombError:
        pass
    except UnidentifiedImageError:  # its text has an address in memory
        raise Refused(
            "invalid_data", f"{what} is no image of a kind that is known here: {', '.join(FORMATS)}"
        ) from None
    except _UNREADABLE as error:
        raise Refused("invalid_data", f"{what} is no image that can be read: {error}") from None
    raise Refused("invalid_data", f"{what} is an image of more than {MOST_PIXELS:,} pixels")


def _small(image: Image.Image) -> Image.Image:
    """The picture in red, green and blue, no side longer than WORKING_SIDE."""
    image.draft("RGB", (WORKING_SIDE, WORKING_SIDE))  # a large JPEG is decoded at a fraction of its size
    if image.mode.startswith("I"):  # 16 bits a pixel, which would all become white
        image = image.point(lambda shade: shade * (1 / 256)).convert("L")
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE))
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _shapes(gray: Vector) -> Vector:
    """Histograms of oriented gradients: how much contour of each direction is in each cell, by its surroundings."""
    down, right = np.gradient(gray)
    strength = np.hypot(down, right)
    place = np.arctan2(down, right) % np.pi * (ANGLES / np.pi)
    lower = np.floor(place)
    share = place - lower  # a direction between two bins counts for both
    first = lower.astype(np.intp) % ANGLES
    planes = np.zeros((ANGLES, *gray.shape), np.float32)
    rows, columns = np.indices(gray.shape)
    planes[first, rows, columns] += strength * (1 - share)
    planes[(first + 1) % ANGLES, rows, columns] += strength * share
    count = SIDE // CELL
    cells = planes.reshape(ANGLES, count, CELL, count, CELL).sum(axis=(2, 4))
    # Blocks of four cells, each normalised: light and contrast of the picture do not matter.
    blocks = np.stack([cells[:, y : y + count - 1, x : x + count - 1] for y in (0, 1) for x in (0, 1)])
    blocks /= np.sqrt((blocks**2).sum(axis=(0, 1)) + _FAINT**2)
    shapes: Vector = np.minimum(blocks, 0.3)
    return shapes.ravel()


def _colours(small: Vector) -> Vector:
    """What share of the picture has which hue, saturation, brightness, and which colour by and large."""
    pixels = small.reshape(-1, 3)
    brightest, darkest = pixels.max(axis=1), pixels.min(axis=1)
    spread = brightest - darkest
    saturation = spread / np.maximum(brightest, 1e-6)
    red, green, blue = pixels.T
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) % (2 * np.pi) / (2 * np.pi)
    coarse = np.minimum(pixels * COARSE, COARSE - 1).astype(np.intp) @ COARSE ** np.arange(3)
    parts = (
        np.histogram(hue, HUES, (0, 1), weights=spread)[0],  # of grey pixels the hue is noise
        np.histogram(saturation, SHADES, (0, 1))[0],
        np.histogram(brightest, SHADES, (0, 1))[0],
        np.bincount(coarse, minlength=COARSE**3),
    )
    shares: Vector = np.sqrt(np.concatenate(parts) / len(pixels))
    return shares
