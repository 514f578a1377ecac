"""Rows of values as a matrix that a linear classifier learns from.

Used by `learning.py`; a fitted `Features` is part of the model and stored with it. Every part of the matrix is scaled
so that a row has about the length 1 in it. So texts, numbers and images weigh the same, and one strength of
regularisation suits them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from .images import PARTS, Vector
from .inputs import Field, Row, Value

Matrix = Any  # a dense array or a sparse one in rows; scipy has no name for both

MOST_TERMS = 50_000  # for the words, and for the parts of words
MANY = 1000  # samples; from then on a term must be in two of them
BINS = 8
BINNED_FROM = 40  # samples; with fewer the bins of a number would be guesses

_FARTHEST = 5.0  # standard deviations: one wild number must not outweigh all the rest
_EQUAL = 1e-9  # numbers that differ by less, measured by their mean, differ by rounding


class Part(Protocol):
    """Some columns of the matrix, made of the values of one field."""

    def fit(self, values: Sequence[Value]) -> bool:
        """Learn how; False when the values have nothing to be told apart by."""

    def matrix(self, values: Sequence[Value]) -> Matrix:
        """A row for each value, also for values that were not there to be learned from."""


class Terms:
    """Words and pairs of them, or parts of words, by how telling they are (TF-IDF)."""

    def __init__(self, weight: float, **options: Any) -> None:
        self._weight = weight
        self._options = {"sublinear_tf": True, "max_features": MOST_TERMS, "dtype": np.float32, **options}

    def fit(self, values: Sequence[Value]) -> bool:
        texts = _texts(values)
        self._vectorizer = TfidfVectorizer(**self._options, min_df=2 if len(texts) >= MANY else 1)
        try:
            self._vectorizer.fit(texts)
        except ValueError:  # no terms at all, or none in two samples
            return False
        return True

    def matrix(self, values: Sequence[Value]) -> Matrix:
        return self._vectorizer.transform(_texts(values)) * np.float32(self._weight)


class Number:
    """A number, whether it is missing, and, where there are enough samples, about how large it is among the others."""

    def fit(self, values: Sequence[Value]) -> bool:
        known = _known(values)
        if not len(known):
            return False
        self._mean, spread = float(known.mean()), float(known.std())
        self._scale = spread if spread > _EQUAL * abs(self._mean) else 1.0
        edges = np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]) if len(known) >= BINNED_FROM else []
        self._edges = np.unique(np.asarray(edges, np.float64))
        return True

    def matrix(self, values: Sequence[Value]) -> Matrix:
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        missing = np.isnan(numbers)
        with np.errstate(over="ignore"):  # of what it makes infinite, the limit is taken
            scaled = np.clip((numbers - self._mean) / self._scale, -_FARTHEST, _FARTHEST)
        # Which edges it is beyond. So a class may be a range of the number, and not only an end of it.
        beyond = (numbers[:, None] > self._edges) - 0.5
        beyond /= max(1.0, np.sqrt(len(self._edges)) / 2)
        found = np.column_stack([np.where(missing, 0, scaled), missing, np.where(missing[:, None], 0, beyond)])
        return found.astype(np.float32)


class Measures:
    """One kind of what was measured of images: centred, and as long as all else."""

    def __init__(self, part: slice) -> None:
        self._part = part

    def fit(self, values: Sequence[Value]) -> bool:
        vectors = self._vectors(values)
        if not vectors:
            return False
        self._mean = np.mean(vectors, axis=0)
        self._scale = float(np.sqrt(np.mean(np.sum((vectors - self._mean) ** 2, axis=1)))) or 1.0
        return True

    def matrix(self, values: Sequence[Value]) -> Matrix:
        found = np.zeros((len(values), len(self._mean)), np.float32)
        present = [index for index, value in enumerate(values) if value is not None]
        if present:
            found[present] = (np.array(self._vectors(values)) - self._mean) / self._scale
        return found

    def _vectors(self, values: Sequence[Value]) -> list[Vector]:
        return [value[self._part] for value in values if isinstance(value, np.ndarray)]


_PARTS: dict[str, Callable[[], list[Part]]] = {
    "Text": lambda: [
        Terms(0.5, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", strip_accents="unicode"),
        Terms(1.0, analyzer="char_wb", ngram_range=(2, 5)),
    ],
    "Number": lambda: [Number()],
    "Image": lambda: [Measures(part) for part in PARTS],
}


class Features:
    """The parts of all fields side by side."""

    def __init__(self, fields: Sequence[Field], rows: Sequence[Row]) -> None:
        self._parts = [
            (field.key, part)
            for field in fields
            for part in _PARTS[field.kind]()
            if part.fit([row.get(field.key) for row in rows])
        ]

    def matrix(self, rows: Sequence[Row]) -> Matrix:
        """A row for each row of values; of no columns but a 0 where nothing could be told apart."""
        parts = [part.matrix([row.get(key) for row in rows]) for key, part in self._parts]
        if not parts:
            return np.zeros((len(rows), 1), np.float32)
        if any(sparse.issparse(part) for part in parts):
            return sparse.hstack(parts, format="csr", dtype=np.float32)
        return np.hstack(parts)


def _texts(values: Sequence[Value]) -> list[str]:
    return [value if isinstance(value, str) else "" for value in values]


def _known(values: Sequence[Value]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([value for value in values if value is not None], np.float64)
