"""What all tests share: asyncio under anyio, and hypothesis that does not mind a loaded machine."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The only one that the host runs on."""
    return "asyncio"
