"""The plain function, but that the process ends under one call of ten thousand: for `soak`."""

from __future__ import annotations

import os
import random


def handle(data):
    if random.random() < 0.0001:
        os._exit(3)
    return {"sum": data["a"] + data["b"]}
