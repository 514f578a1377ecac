"""The first line of a model's file: which versions made it, what is in it. Standard library only: the host may ask.

Written and checked by `kept.py`. The host asks `is_current` after a start, to train anew what was made by an older
scikit-learn.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FORMAT = 1  # to be raised when older models cannot be used any more
SUFFIX = ".model"


@cache
def here() -> dict[str, Any]:
    """What a model must have been made by to be used here."""
    try:
        return {"format": FORMAT, "sklearn": version("scikit-learn")}
    except PackageNotFoundError:
        return {"format": FORMAT, "sklearn": None}


def parse(line: bytes) -> dict[str, Any]:
    """The header in this line; empty where it is none."""
    try:
        header = json.loads(line)
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def fits(header: dict[str, Any]) -> bool:
    """Whether such a model can be used here."""
    return {key: header.get(key) for key in here()} == here()


def is_current(models: str, model: str) -> bool:
    """Whether the model is in this folder, and can be used by the scikit-learn that is installed."""
    try:
        with (Path(models) / f"{model}{SUFFIX}").open("rb") as file:
            return fits(parse(file.readline(1_000_000)))
    except (OSError, ValueError):
        return False
