"""A function that imports torch: for the numbers on cold start, where torch is installed."""

from __future__ import annotations

import torch


def handle(data):
    return {"sum": int(torch.tensor([data["a"], data["b"]]).sum())}
