"""Spaces: a self-hosted serverless function runtime for Python. Start reading at `runtime/host.py`."""

from __future__ import annotations

__version__ = "0.1.0"
