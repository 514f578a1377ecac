"""Benches: one small script per published number, the peers measured beside us (`python -m bench`)."""

from __future__ import annotations
