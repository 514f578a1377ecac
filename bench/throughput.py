"""Calls per second: both our engines beside the peers, each on one core, wrk on the other."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import load, peers
from bench.client import APPS
from bench.load import Load
from bench.report import Check, Options, Report
from bench.servers import Server, spaces, write_root

UVICORN, HYPERCORN = "spaces, engine uvicorn", "spaces, engine hypercorn"
WORKERD, FRAMEWORK = "workerd, JavaScript", "functions-framework, async"
NEEDS = sorted({peer.environment for peer in peers.PEERS.values()})
BARE = ("bare ASGI, hypercorn (asyncio)", "bare ASGI, hypercorn (uvloop)")


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {"add": (APPS / "plain.py").read_text()})
        targets: dict[str, Callable[[], Server]] = {name: peer.start for name, peer in peers.PEERS.items()}
        for name, engine in ((UVICORN, "uvicorn"), (HYPERCORN, "hypercorn")):
            targets[name] = functools.partial(spaces, root, engine=engine)
        seen, failed = load.interleave(targets, options.rounds, options.seconds)
    report = Report(
        "throughput",
        "Throughput",
        ["server", "version", "runs user code in", "req/s", "p50 ms", "p99 ms", "errors", "ours/it"],
        failed=failed,
        note="`ours/it`: the engine that serves with the same HTTP library (engine uvicorn for all others), "
        "divided by this one.",
    )
    report.rows = [row(name, seen) for name in sorted(seen, key=lambda name: -rate(seen[name]))]
    report.checks = checks(seen)
    return report


def rate(loads: list[Load]) -> float:
    return statistics.median(load.rate for load in loads)


def row(name: str, seen: dict[str, list[Load]]) -> list[str]:
    peer, loads = peers.PEERS.get(name), seen[name]
    ours = HYPERCORN if "hypercorn" in name or name.startswith("Knative") else UVICORN
    return [
        name,
        peers.version(peer) if peer else "this tree",
        peer.runs_in if peer else "its own process",
        f"{rate(loads):,.0f}",
        f"{statistics.median(one.p50_ms for one in loads):.2f}",
        f"{statistics.median(one.p99_ms for one in loads):.2f}",
        f"{sum(one.errors for one in loads)}",
        f"{load.ratio(seen[ours], loads):.2f}" if peer and ours in seen else "",
    ]


def checks(seen: dict[str, list[Load]]) -> list[Check]:
    found = []
    if UVICORN in seen and FRAMEWORK in seen:
        times = load.ratio(seen[UVICORN], seen[FRAMEWORK])
        found.append(Check("engine uvicorn / functions-framework async", times, "x", 2, 2, at_most=False))
    if UVICORN in seen and WORKERD in seen:
        times = load.ratio(seen[UVICORN], seen[WORKERD])
        found.append(Check("engine uvicorn / workerd", times, "x", 0.7, 1.1, at_most=False))
    for bare in BARE:  # as it is installed, and on the faster loop that we use where it is there
        if HYPERCORN in seen and bare in seen:
            times = load.ratio(seen[HYPERCORN], seen[bare])
            found.append(Check(f"engine hypercorn / {bare}", times, "x", 0.85, 0.97, at_most=False))
    if UVICORN in seen or HYPERCORN in seen:
        errors = sum(one.errors for name in (UVICORN, HYPERCORN) for one in seen.get(name, []))
        found.append(Check("our failed requests", errors, "", 0, 0))
    return found
