"""What a request's head says, read from the ASGI scope: what could be taken for something else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import BadRequest
from runtime.request import read_headers


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request with these headers."""
    return {"headers": headers, "http_version": "2", "client": ("127.0.0.1", 1), "scheme": "http"}


@pytest.mark.parametrize("name", [b"x-a", b"cookie", b"authorization", b"x-forwarded-for", b"host"])
def test_a_nul_would_begin_another_header(name: bytes) -> None:
    """HTTP/2 and HTTP/3 can carry one, and the function's headers are separated by it."""
    with pytest.raises(BadRequest, match="NUL"):
        read_headers(scope((name, b"a\0x-forwarded-proto\0https")), 1)
