"""Load on a server: `wrk` on its own core, rounds interleaved (A B C … A B C …), ratios within a round."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.client import SUM, Client
from bench.servers import LOAD_CORE, Server, Unavailable

SCRIPT = Path(__file__).with_name("post.lua")
CONNECTIONS = 32
WARM_UP = 1.0


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    requests: int


def check(server: Server) -> None:
    """Refuses a server whose answer is wrong, or is not made from the request."""
    client = Client(server.url)
    for body, expected in ((b'{"a":1,"b":2}', {"sum": 3}), (b'{"a":1234567,"b":87654321}', SUM)):
        status, answer = client.call(server.path, body)
        if status != 200 or json.loads(answer) != expected:
            raise Unavailable(f"answered {status} {answer[:300]!r} to {body!r}")
    client.close()


def run(server: Server, seconds: float, core: int = LOAD_CORE, **variables: str) -> Load:
    """One run of wrk: one thread on one core, 32 connections, the request of post.lua, which reads `variables`.

    `BENCH_DELAY` is sent as X-Delay; `BENCH_PATHS` is a file of paths, each request goes to any one of them.
    """
    if not shutil.which("wrk"):
        raise Unavailable("wrk is not installed (package wrk)")
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s"]
    done = subprocess.run(
        [*command, "-s", str(SCRIPT), server.url + server.path], capture_output=True, text=True, check=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    seen = json.loads(line.removeprefix("RESULT "))
    return Load(
        rate=seen["requests"] / seen["microseconds"] * 1e6,
        p50_ms=seen["p50_us"] / 1000,
        p99_ms=seen["p99_us"] / 1000,
        errors=seen["not_2xx"] + seen["socket_errors"],
        requests=seen["requests"],
    )


def measure(start: Callable[[], Server], seconds: float) -> Load:
    """A fresh server, checked and warmed up, then loaded."""
    with start() as server:
        check(server)
        run(server, WARM_UP)
        seen = run(server, seconds)
    if seen.errors:
        print(f"  ! {seen.errors} requests failed", file=sys.stderr)
    return seen


def interleave(
    targets: Mapping[str, Callable[[], Server]], rounds: int, seconds: float
) -> tuple[dict[str, list[Load]], dict[str, str]]:
    """All targets in turn, `rounds` times; those that cannot be measured are left out with the reason."""
    seen: dict[str, list[Load]] = {name: [] for name in targets}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name, start in targets.items():
            if name in failed:
                continue
            try:
                seen[name].append(measure(start, seconds))
            except (Unavailable, OSError) as problem:
                failed[name] = str(problem)
                print(f"  ! {name}: not measured: {problem}", file=sys.stderr)
                continue
            print(f"  round {number + 1}/{rounds}  {name:<40} {seen[name][-1].rate:>9,.0f} req/s", flush=True)
    return {name: loads for name, loads in seen.items() if name not in failed}, failed


def ratio(ours: list[Load], theirs: list[Load]) -> float:
    """The median over the rounds of the ratio within each round."""
    return statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
