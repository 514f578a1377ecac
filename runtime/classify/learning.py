"""Learns from annotated rows to tell labels apart; the model that comes of it answers for other rows.

Called by `serving.py`. The columns are made by `features.py`, their weights found by `regression.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import regression
from .features import Features, Matrix
from .inputs import Field, Row
from .refusals import Refused

Annotation = str | Mapping[str, bool]  # the label, or for Tags which are present and which are not
Column = dict[int, bool]  # by the index of the sample: whether the label is present
Progress = Callable[[float, str], None]
Floats = np.ndarray[Any, Any]

LEAST = 2  # labels, and samples of each
TAGS_TRIED = 10  # of the tags, to find the strength and the accuracy

NEEDED = {
    "Classification": f"there must be at least {LEAST} labels with at least {LEAST} annotated samples each",
    "Tags": "there must be at least one label that is present in one annotated sample and absent from another",
}


class Model:
    """Weights of each label for each column, and how the columns are made. This is what is kept on disk."""

    def __init__(self, labels: Sequence[str], exclusive: bool, features: Features) -> None:
        self.labels = list(labels)
        self.exclusive = exclusive  # one label for a row, as opposed to any number of them
        self.features = features
        self._learned: list[int] = []
        self._weights = self._offsets = np.zeros(0, np.float32)

    @property
    def learned(self) -> list[str]:
        """The labels that it can tell; the confidence of the others is 0."""
        return [self.labels[index] for index in self._learned]

    def adopt(self, learned: Sequence[str], weights: Floats, offsets: Floats) -> None:
        """Take what was learned: for each of these labels a row of weights, and an offset."""
        self._learned = [self.labels.index(label) for label in learned]
        self._weights, self._offsets = np.ascontiguousarray(weights.T, np.float32), offsets.astype(np.float32)

    def confidences(self, row: Row) -> dict[str, float]:
        """Every label with its confidence, the best first."""
        scores = np.asarray(self.features.matrix([row]) @ self._weights + self._offsets, np.float64)[0]
        found = np.zeros(len(self.labels))
        found[self._learned] = _softmax(scores) if self.exclusive else _logistic(scores)
        return {self.labels[index]: float(found[index]) for index in np.argsort(-found, kind="stable")}


class Learned(NamedTuple):
    """A model, of how many samples it was made, and its share of right answers where that could be estimated."""

    model: Model
    samples: int
    accuracy: float | None


def learn(
    output: str,
    fields: Sequence[Field],
    samples: Sequence[tuple[Row, Annotation]],
    labels: Sequence[str],
    progress: Progress,
) -> Learned:
    """A model of these samples; Refused (`not_trained`) where they are too few to tell labels apart."""
    columns = _columns(output, [annotation for _, annotation in samples], labels)
    used = sorted({index for column in columns.values() for index in column})
    rows = [samples[index][0] for index in used]
    progress(0.2, f"measuring {len(rows)} samples")
    features = Features(fields, rows)
    matrix = features.matrix(rows)
    model = Model(labels, output == "Classification", features)
    progress(0.4, "learning")
    if model.exclusive:
        label_of = {index: label for label, column in columns.items() for index in column}
        accuracy = _learn_classes(model, matrix, [label_of[index] for index in used])
    else:
        place = {index: number for number, index in enumerate(used)}
        accuracy = _learn_tags(
            model,
            matrix,
            {label: {place[index]: present for index, present in column.items()} for label, column in columns.items()},
        )
    return Learned(model, len(used), accuracy)


def _learn_classes(model: Model, matrix: Matrix, label_of_row: list[str]) -> float | None:
    classes = np.array([model.labels.index(label) for label in label_of_row])
    strength, accuracy = regression.choose([regression.scores(matrix, classes)])
    fitted = regression.fit(matrix, classes, strength)
    weights, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # it has one score for the two of them
        weights, offsets = np.vstack([0 * weights, weights]), np.hstack([0 * offsets, offsets])
    model.adopt([model.labels[number] for number in fitted.classes_], weights, offsets)
    return accuracy


def _learn_tags(model: Model, matrix: Matrix, columns: Mapping[str, Column]) -> float | None:
    """Each tag by itself, from the samples that speak of it; one strength for all."""
    told = {label: (matrix[[*column]], np.array([*column.values()])) for label, column in columns.items()}
    balanced = sorted(told.values(), key=lambda one: -min(one[1].sum(), (~one[1]).sum()))
    strength, accuracy = regression.choose([regression.scores(*one) for one in balanced[:TAGS_TRIED]])
    fitted = [regression.fit(*one, strength) for one in told.values()]
    model.adopt([*told], np.vstack([one.coef_ for one in fitted]), np.hstack([one.intercept_ for one in fitted]))
    return accuracy


def _columns(output: str, annotations: Sequence[Annotation], labels: Sequence[str]) -> dict[str, Column]:
    """What the annotations say of each label of which they say enough."""
    found: dict[str, Column] = {label: {} for label in labels}
    for index, annotation in enumerate(annotations):
        said = {annotation: True} if isinstance(annotation, str) else annotation
        for label in said.keys() & found.keys():
            found[label][index] = said[label]
    if output == "Tags":
        enough = {label: column for label, column in found.items() if len({*column.values()}) == 2}
    else:
        enough = {label: column for label, column in found.items() if len(column) >= LEAST}
    if len(enough) < (1 if output == "Tags" else LEAST):
        raise Refused("not_trained", f"{NEEDED[output]}; of {len(found)} labels {len(enough)} have enough")
    return enough


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max())
    shares: Floats = powers / powers.sum()
    return shares


def _logistic(scores: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-scores.clip(-500, 500)))
    return shares
