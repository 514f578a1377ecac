"""A trained function in a folder of its own, called as the worker's loop calls it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.classify import serve
from runtime.worker.multi import Query

TEXTS = {"input": "Text", "output": "Classification"}


class Info:
    """What of `function_call_info` is looked at."""

    def __init__(self, path: str, method: str, query: str) -> None:
        self.path, self.method = path, method
        self.query = Query([tuple(pair.split("=")) for pair in query.split("&")] if query else [])
        self.said: list[tuple[float, str]] = []

    def progress(self, fraction: float, message: str = "") -> None:
        """As a worker's: refuses what is no fraction."""
        assert 0 <= fraction <= 1
        self.said.append((fraction, message))


class Function:
    """A trained function, made anew whenever its `handler.py` would be written anew."""

    def __init__(self, models: Path, function: dict[str, Any], keep: int = 5) -> None:
        self.models, self.function, self.keep = models, function, keep
        self.info = Info("/", "POST", "")
        self.use("")

    def use(self, model: str) -> None:
        """As if the host had written a new `handler.py`."""
        self.handle = serve(self.function, str(self.models), model, self.keep)

    def call(self, data: Any, path: str = "/", method: str = "POST", query: str = "") -> tuple[Any, int]:
        """One call."""
        self.info = Info(path, method, query)
        body, status = self.handle(data, self.info)
        json.dumps(body, allow_nan=False)
        return body, status

    def export(self, samples: list[tuple[Any, Any]], name: str = "export.jsonl") -> str:
        """Write samples as the host does: its name."""
        lines = [json.dumps({"id": f"sample_{i}", "data": d, "annotation": a}) for i, (d, a) in enumerate(samples)]
        (self.models / name).write_text("\n".join(lines) + "\n")
        return name

    def train(self, samples: list[tuple[Any, Any]], labels: list[str]) -> dict[str, Any]:
        """Train, and use the model from then on: what training answered."""
        answer, status = self.call({"samples": self.export(samples), "labels": labels}, "/train")
        assert status == 200, answer
        self.use(answer["modelId"])
        return answer

    def error(self, *arguments: Any, **more: Any) -> str:
        """The code of the error that a call gets, with the status it says."""
        body, status = self.call(*arguments, **more)
        assert body["error"]["status"] == status >= 400
        assert body["error"]["message"]
        return str(body["error"]["code"])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` sets these; here they are taken back."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Function]:
    """Make a trained function, by what differs from a text classification."""

    def make(keep: int = 5, **differences: Any) -> Function:
        return Function(tmp_path, {**TEXTS, **differences}, keep)

    return make


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def data_uri(content: bytes, kind: str = "image/jpg") -> str:
    """As clients send images."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
