"""The models of a function on disk: written as a whole or not at all, the newest few kept, the used ones in memory.

Called by `serving.py`. A file is a line of JSON about the model, and the pickled model. Whoever can write to the
folder can run code in the workers; it belongs to the host alone, and nothing that comes with a call is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from . import headers
from .headers import SUFFIX
from .learning import Model
from .refusals import Refused

MOST_LOADED = 3

_ID = re.compile(r"model_[0-9a-z]{16}")
_PARTIAL = ".partial"
_ABANDONED = 3600.0  # seconds: nobody writes to such a file any more
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
#: What unpickling raises for something that other code has written.
_UNUSABLE = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError, EOFError)


def model_id(*made_of: str) -> str:
    """The id of the model made of this: the same for the same, and for nothing else."""
    number = int.from_bytes(hashlib.sha256(json.dumps([headers.here(), *made_of]).encode()).digest())
    return "model_" + "".join(_ALPHABET[number // 36**place % 36] for place in range(16))


class Kept:
    """The models in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._loaded: dict[str, Model] = {}  # the one used last at the end

    def get(self, name: str) -> Model:
        """A model by its id; Refused when it is not kept, or cannot be used."""
        model = self._loaded.pop(name, None) or _usable(*self._read(name))
        while len(self._loaded) >= MOST_LOADED:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[name] = model
        return model

    def about(self, name: str) -> dict[str, Any] | None:
        """What was noted of a model when it was put here; None unless it is here and can be used."""
        try:
            header, content = self._read(name)
            _usable(header, content)
        except Refused:
            return None
        noted: dict[str, Any] = header["about"]
        return noted

    def put(self, name: str, model: Model, about: dict[str, Any], spare: str) -> None:
        """Keep a model. When this returns it is on disk, and all but the newest few and `spare` are gone."""
        content = pickle.dumps(model, protocol=5)
        header = {**headers.here(), "sha256": _digest(content), "about": about}
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=_PARTIAL, delete=False) as file:
            file.write(json.dumps(header).encode() + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._path(name))
        _sync(self._folder)
        self._prune(spare)

    def freshen(self, name: str) -> None:
        """Make it the newest: what it was made of has been trained on again."""
        os.utime(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def _read(self, name: str) -> tuple[dict[str, Any], bytes]:
        if not _ID.fullmatch(name):
            raise Refused("unknown_model", "a modelId is `model_` and 16 lower-case letters and digits")
        try:
            line, _, content = self._path(name).read_bytes().partition(b"\n")
        except FileNotFoundError:
            raise Refused("unknown_model", f"no model {name} is kept") from None
        return headers.parse(line), content

    def _prune(self, spare: str) -> None:
        """Others may do the same at the same time."""
        ages = [(_changed(path), path) for path in self._folder.glob(f"model_*{SUFFIX}")]
        old = [path for _, path in sorted(ages, reverse=True)[self._keep :] if path.stem != spare]
        abandoned = [path for path in self._folder.glob(f"*{_PARTIAL}") if _changed(path) < time.time() - _ABANDONED]
        for path in (*old, *abandoned):
            path.unlink(missing_ok=True)


def _usable(header: dict[str, Any], content: bytes) -> Model:
    if not headers.fits(header):
        raise Refused("outdated_model", f"the model is not of this scikit-learn ({headers.here()}): train again")
    if header.get("sha256") != _digest(content):
        raise Refused("outdated_model", "the file of the model is damaged: train again")
    try:
        model: Model = pickle.loads(content)
    except _UNUSABLE as error:
        raise Refused("outdated_model", f"the model cannot be used ({error}): train again") from None
    return model


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(folder: Path) -> None:
    """So that the new name in it outlives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
