"""HTTP in several tongues: each dialect is a module of its own, which no other dialect knows.

`app.py` mounts DIALECTS around one host. To add one, write a module with what stands here, and name it in DIALECTS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from starlette.routing import BaseRoute

from ..calls import Headers
from ..errors import HostError
from ..host import Host
from . import cognite, kernel, nyckel, oauth, spaces


class Dialect(Protocol):
    """One vendor's HTTP shape over our calls. It holds no state."""

    NAME: str

    def owns(self, path: str) -> bool:
        """Whether what goes wrong at this address is told in this dialect, also where there is no such route."""

    def routes(self, host: Host) -> Sequence[BaseRoute]:
        """Its addresses, but for those that it finds without a router."""

    def to_error(self, error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
        """An error as its clients understand it: status, headers, body."""


# The first that owns a path words its errors; the last owns them all.
DIALECTS: tuple[Dialect, ...] = (oauth, kernel, cognite, nyckel, spaces)


def dialect_of(path: str) -> Dialect:
    """The dialect in which errors at this address are told."""
    return next(dialect for dialect in DIALECTS if dialect.owns(path))
