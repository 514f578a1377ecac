"""What ends a server."""

from __future__ import annotations

import signal

import pytest

from runtime.server import endings


@pytest.mark.parametrize(("disposition", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminal_that_closes_ends_it(disposition: signal.Handlers, ends: bool) -> None:
    """In good order, unless it was started with nohup."""
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        assert (signal.SIGHUP in endings()) is ends
    finally:
        signal.signal(signal.SIGHUP, before)
