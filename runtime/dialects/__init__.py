"""HTTP in several tongues over one host: each module here translates one vendor's shape to calls and back."""

from __future__ import annotations
