"""`spaces serve` as a service that systemd watches."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, Site, alive, eventually

SEES = """
    import os
    def handle(data):
        return [name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))]
    """


@pytest.mark.parametrize("processes", ["1", "2"])
def test_systemd_hears_that_it_serves_and_lives(site: Site, tmp_path: Path, processes: str) -> None:
    """When it takes calls, and from then on; functions know nothing of it. What it does is said when it is aborted."""
    site.write("d/sees.py", SEES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE)
        systemd.bind(address := str(tmp_path / "notify"))
        host = site.start("serve", "--processes", processes, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"})
        heard = set()
        while len(heard) < 2:
            heard.add(systemd.recv(100))
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        assert host.call("d/sees").json() == []
        everything = host.descendants()

        host.process.send_signal(signal.SIGABRT)
        host.process.wait(PATIENCE)

    assert host.process.returncode == -signal.SIGABRT
    eventually(lambda: not any(map(alive, everything)), f"the end of everything\n{host.log}")
    assert "Fatal Python error: Aborted" in host.log
