"""Logistic regression, and how strongly to regularise it: by cross-validation, which also says how good it will be.

Called by `learning.py`. Everything here is the same at each run: shuffled always alike, and one thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from .features import Matrix

Classes = np.ndarray[Any, Any]  # the class of each row
Indexes = np.ndarray[Any, np.dtype[np.intp]]

STRENGTHS = (1.0, 10.0, 100.0)  # C: the inverse of regularisation
USUAL_STRENGTH = 10.0  # where there are too few samples to find out

MOST_FOLDS, FEWEST_FOLDS = 5, 3
MOST_VALIDATED = 2000  # samples; more take long and hardly say more
FEWEST_VALIDATED = 500
VALIDATED_WORK = 30_000  # samples times classes
MANY_WEIGHTS = 1_000_000  # columns times classes: each fold takes seconds

_LEAST_CONFIDENCE = 1e-6


class Score(NamedTuple):
    """How well a strength did on rows that were not learned from."""

    loss: float  # mean of -log confidence in the right class; every class counts the same
    accuracy: float  # share of the rows


def fit(matrix: Matrix, classes: Classes, strength: float) -> LogisticRegression:
    """Learn to tell the classes apart, rare ones as well as frequent ones."""
    # Of the solvers the fastest here by far, with sparse matrices most of all.
    regression = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cg", tol=1e-4, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could have gone on: good enough is good enough
        return regression.fit(matrix, classes)


def scores(matrix: Matrix, classes: Classes) -> dict[float, Score]:
    """What each strength achieves; of a large set a part is tried. Empty where there are too few of the classes."""
    rows = _drawn(classes)
    matrix, classes = matrix[rows], classes[rows]
    counts = np.sort(np.unique(classes, return_counts=True)[1])
    most = MOST_FOLDS if matrix.shape[1] * len(counts) <= MANY_WEIGHTS else FEWEST_FOLDS
    folds = min(most, int(counts[-2])) if len(counts) > 1 else 0
    if folds < FEWEST_FOLDS:
        return {}
    return {strength: _score(matrix, classes, strength, folds) for strength in STRENGTHS}


def choose(tried: Sequence[dict[float, Score]]) -> tuple[float, float | None]:
    """The strength that did best in all of these, and the accuracy it had; None where nothing was tried."""
    tried = [found for found in tried if found]
    if not tried:
        return USUAL_STRENGTH, None
    strength = min(STRENGTHS, key=lambda strength: sum(found[strength].loss for found in tried))
    return strength, float(np.mean([found[strength].accuracy for found in tried]))


def _drawn(classes: Classes) -> Indexes:
    """Which rows to validate with: shuffled, those of a class together."""
    most = max(FEWEST_VALIDATED, min(MOST_VALIDATED, VALIDATED_WORK // len(np.unique(classes))))
    order = np.random.default_rng(0).permutation(len(classes))[:most]
    return order[np.argsort(classes[order], kind="stable")]


def _score(matrix: Matrix, classes: Classes, strength: float, folds: int) -> Score:
    """The rows of each class are dealt out in turn, so every fold has its share of it."""
    names, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    right, confidence = np.zeros(len(classes)), np.zeros(len(classes))
    for held in _folds(len(classes), folds):
        fitted = fit(matrix[~held], classes[~held], strength)
        found = np.zeros((held.sum(), len(names)))
        found[:, np.searchsorted(names, fitted.classes_)] = fitted.predict_proba(matrix[held])
        right[held] = found.argmax(axis=1) == numbers[held]
        confidence[held] = found[np.arange(len(found)), numbers[held]]
    losses = -np.log(confidence.clip(_LEAST_CONFIDENCE))
    return Score(float(np.average(losses, weights=1 / counts[numbers])), float(right.mean()))


def _folds(count: int, folds: int) -> Iterator[Classes]:
    """Masks of the rows held back."""
    for fold in range(folds):
        yield np.arange(count) % folds == fold
