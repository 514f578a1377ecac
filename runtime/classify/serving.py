"""Answers the calls of one trained function: predict with a kept model, train a new one.

`Trained` is made by `serve` in `__init__.py`, whose docstring says what goes in and out. Reads samples, has them
learned, keeps models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import Answered, samples
from .images import LENGTH
from .inputs import Inputs, Row, Value
from .kept import Kept, model_id
from .learning import NEEDED, Model, learn
from .refusals import Refused


class Trained:
    """One trained function in one worker."""

    def __init__(self, function: Mapping[str, Any], models: str, keep: int) -> None:
        self._inputs = Inputs(function)
        self._output: str = function["output"]
        self._folder = Path(models)
        self._kept = Kept(self._folder, keep)
        self._model = ""

    def load(self, model: str) -> None:
        """Answer with this model from now on. One that cannot be used is told to those who call."""
        self._model = model
        if model:
            with suppress(Refused):
                self._rehearse(self._kept.get(model))

    def answer(self, data: Any, info: Any) -> Answered:
        """What `handle` returns."""
        try:
            if info.path == "/":
                return self._predict(data, info.query.get("modelId")), 200
            if info.path != "/train":
                raise Refused("not_found", f"a trained function answers at / and /train, not at {info.path}", 404)
            if info.method != "POST":
                raise Refused("method_not_allowed", "training is asked for by POST", 405)
            return self._train(data, info), 200
        except Refused as refused:
            return refused.answer()

    def _predict(self, data: Any, wanted: str | None) -> dict[str, float]:
        name = wanted or self._model
        if not name:
            raise Refused("not_trained", f"there is no model yet: {NEEDED[self._output]}")
        model = self._kept.get(name)
        return model.confidences(self._inputs.read(data))

    def _train(self, data: Any, info: Any) -> dict[str, Any]:
        started = time.monotonic()
        given, labels = _request(data)
        info.progress(0.0, "reading samples")
        export = samples.read(samples.locate(self._folder, given), self._inputs, self._output)
        name = model_id(export.digest, self._output, json.dumps(self._inputs.fields), json.dumps(labels))
        about = self._kept.about(name)
        if about is not None:  # the call is repeated
            self._kept.freshen(name)
            return about
        learned = learn(self._output, self._inputs.fields, export.samples, labels, info.progress)
        info.progress(0.9, "storing")
        about = {
            "modelId": name,
            "labels": learned.model.learned,
            "samples": learned.samples,
            "skipped": export.skipped,
            "accuracy": learned.accuracy,
            "seconds": round(time.monotonic() - started, 3),
        }
        self._kept.put(name, learned.model, about, spare=self._model)
        return about

    def _rehearse(self, model: Model) -> None:
        """Have all that a prediction needs imported and looked up here, where every worker will share it."""
        examples: dict[str, Value] = {"Text": "text", "Number": 0.0, "Image": np.zeros(LENGTH, np.float32)}
        row: Row = {field.key: examples[field.kind] for field in self._inputs.fields}
        model.confidences(row)


def _request(data: Any) -> tuple[Any, list[str]]:
    if not isinstance(data, dict):
        raise Refused("bad_samples", 'training takes an object: {"samples": "….jsonl", "labels": […]}')
    labels = data.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Refused("bad_samples", "`labels` is to be a list of texts")
    return data.get("samples"), sorted({*labels})
