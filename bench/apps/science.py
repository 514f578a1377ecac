"""A function with heavy imports: for the numbers on cold start and memory."""

from __future__ import annotations

import numpy
import pandas  # noqa: F401  (imported to weigh)
import sklearn.linear_model  # noqa: F401  (imported to weigh)


def handle(data):
    return {"sum": int(numpy.add(data["a"], data["b"]))}
