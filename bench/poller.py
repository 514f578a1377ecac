"""A client that calls a function again and again while its file is edited; used by `reload`."""

from __future__ import annotations

import json
import time

from bench.client import BODY, Client
from bench.servers import Server, Unavailable

PATIENCE = 20
# The edited function answers its version plus `b`.
B = json.loads(BODY)["b"]


class Poller:
    """Notes every answer that is missing, wrong, or older than one before it."""

    def __init__(self, server: Server):
        self.client, self.path = Client(server.url, timeout=PATIENCE), server.path
        self.version = self.calls = 0
        self.failures: list[str] = []

    def poll(self) -> int:
        self.calls += 1
        try:
            status, answer = self.client.call(self.path)
            version = json.loads(answer)["sum"] - B if status == 200 else None
        except (OSError, ValueError, KeyError) as problem:
            status, answer, version = 0, str(problem).encode(), None
        if version is None or version < self.version:
            self.failures.append(f"{status} {answer[:120]!r}")
            time.sleep(0.001)
        else:
            self.version = version
        return self.version

    def until(self, version: int, saved: float) -> float:
        """Milliseconds from the saving until this version has answered."""
        while self.poll() != version:
            if time.perf_counter() > saved + PATIENCE:
                raise Unavailable(f"version {version} not served in {PATIENCE} s; last: {self.failures[-1:]}")
        return (time.perf_counter() - saved) * 1000
