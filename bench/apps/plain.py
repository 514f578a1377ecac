"""The function that we are measured with: the same answer as the peers', nothing imported."""

from __future__ import annotations


def handle(data):
    return {"sum": data["a"] + data["b"]}
