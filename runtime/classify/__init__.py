"""Functions that are trained on samples instead of written: they train themselves, keep their models, and predict.

Runs inside a worker process: the `handler.py` that `runtime/classify/source.py` words calls `serve`. Needs the extra
`classify` (scikit-learn, Pillow; numpy comes with them) and nothing else of ours. Importing this package imports none
of the three, so the host may import `runtime.classify.source`.

**The function**, a dict that JSON can say:

    {"name": "Colours", "input": "Text" | "Tabular" | "Image", "output": "Classification" | "Tags",
     "fields": [{"id": "field_8qk3…", "name": "age", "type": "Text" | "Number" | "Image"}, …]}     # Tabular only

**Predict**: any method, path `/`. The body is the data: for Text a JSON string (or text/plain); for Image a data URI
(`data:image/jpg;base64,…`) as JSON string, or the file itself as body or as part `data` or `file` of a multipart form;
for Tabular an object, its keys names of fields or their ids, with or without `field_`. Unknown keys do not matter;
absent and null values are missing ones. Addresses are never fetched.
The query's `modelId` chooses among the kept models; absent or empty, it is the one that `handler.py` names.

    200 {"red": 0.91, "blue": 0.09}     # every label of the training, the best first

For Classification the confidences sum to 1; for Tags each label has one of its own, and from 0.5 it is present. A label
that had too few samples to be learned has 0.

**Train**: POST, path `/train`, with

    {"samples": "export-5f0c.jsonl", "labels": ["red", "blue"]}

`samples` is a file in the folder of the models, its name or its path, ending in `.jsonl`; no other file is ever read.
The host writes it before the call and removes it when the call has ended. Each line is one annotated sample:

    {"id": "sample_…", "data": "…", "annotation": "red"}                               # Classification
    {"id": "sample_…", "data": "…", "annotation": {"red": true, "blue": false}}        # Tags; others are unknown

`data` is as in predict. Samples without an annotation, of labels that are not among `labels`, or with data that cannot
be read (`skipped`) do not count. The answer comes when the model is on disk, complete:

    200 {"modelId": "model_7nqx2v…", "labels": ["red", "blue"], "samples": 42, "skipped": 0,
         "accuracy": 0.93, "seconds": 1.2}

`labels` are those that were learned. `accuracy` is cross-validated, null where there are too few samples for that. The
model's id is made of what it was trained on: a call that is repeated gives the same model and not another one, so it
does no harm. The newest `keep` models stay. Predictions use the new model once the host has written `handler.py` anew,
with its id; before that by `modelId`.

**Refusals** are ordinary answers: `{"error": {"status": …, "code": …, "message": …}}`, with the status 400 unless it
says otherwise here.

| code | |
|---|---|
| `not_trained` | predict: there is no model yet; train: too few samples, the message says what is missing |
| `unknown_model` | no kept model has this id |
| `outdated_model` | the model was made by another version of scikit-learn, or is damaged: train again |
| `invalid_data` | the data are not of the function's input: a string for a Number, no image, … |
| `bad_samples` | train: no such file, not below the models' folder, or not of this form |
| `not_found` (404), `method_not_allowed` (405) | another path; /train without POST |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

#: A body and its status, as a handler may return them.
Answered = tuple[dict[str, Any], int]


def serve(function: Mapping[str, Any], models: str, model: str = "", keep: int = 5) -> Callable[[Any, Any], Answered]:
    """The `handle` of a trained function; `model`, if there is one, is loaded now, so that all workers share it."""
    # Read by OpenBLAS and OpenMP when they are loaded. With threads of theirs the process could not be forked safely,
    # and workers are many: each is to take one core. Not on import of this package: the host imports it too.
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    from .serving import Trained

    trained = Trained(function, models, keep)
    trained.load(model)

    def handle(data: Any, function_call_info: Any) -> Answered:
        return trained.answer(data, function_call_info)

    return handle
