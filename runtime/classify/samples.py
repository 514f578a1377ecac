"""The file of annotated samples that the host writes before it asks for a training.

Called by `serving.py`, with a path that came with a call: from anybody who may invoke the function.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .inputs import Inputs, Row
from .learning import Annotation
from .refusals import Refused


class Export(NamedTuple):
    """What is in the file: rows with their annotations, how many could not be read, and a digest of the whole."""

    samples: list[tuple[Row, Annotation]]
    skipped: int
    digest: str


def locate(models: Path, given: Any) -> Path:
    """The file meant, by name or path. Refused, without looking whether it is there, unless it is in `models`."""
    if not isinstance(given, str) or not given.endswith(".jsonl"):
        raise Refused("bad_samples", "`samples` is to be the name of a .jsonl file in the folder of the models")
    try:
        path = Path(os.path.realpath(models / given))  # a symbolic link counts as what it leads to
    except ValueError:  # no file can have such a name
        path = models
    if path.parent != Path(os.path.realpath(models)):
        raise Refused("bad_samples", "`samples` is not a file in the folder of the models")
    return path


def read(path: Path, inputs: Inputs, output: str) -> Export:
    """All annotated samples. One sample at a time is read: an image is much larger than its measures."""
    digest = hashlib.sha256()
    samples: list[tuple[Row, Annotation]] = []
    skipped = 0
    for number, line in enumerate(_lines(path), 1):
        digest.update(line)
        sample = _sample(line, number)
        annotation = _annotation(sample.get("annotation"), output, number)
        if annotation is None:
            continue
        try:
            samples.append((inputs.read(sample.get("data")), annotation))
        except Refused:
            skipped += 1
    return Export(samples, skipped, digest.hexdigest())


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise Refused("bad_samples", f"{path.name} cannot be read: {error.strerror}") from None


def _sample(line: bytes, number: int) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError):
        sample = None
    if not isinstance(sample, dict):
        raise Refused("bad_samples", f"line {number} is no JSON object")
    return sample


def _annotation(given: Any, output: str, number: int) -> Annotation | None:
    if given is None:
        return None
    if output == "Classification" and isinstance(given, str):
        return given
    if output == "Tags" and isinstance(given, dict) and all(isinstance(present, bool) for present in given.values()):
        return given
    form = "a label" if output == "Classification" else "an object of labels, each true or false"
    raise Refused("bad_samples", f"line {number}: the annotation is to be {form}")
