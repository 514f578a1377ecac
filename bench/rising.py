"""Latency as the load rises: requests come at a fixed rate, whatever the server does, more of them step by step.

Ours on both engines, functions-framework and workerd, each fresh, on one core. A server is left where it serves
less than it is offered: from there on, a latency says only how long the load has lasted.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import load, openloop, peers
from bench.client import APPS
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root
from bench.throughput import FRAMEWORK, HYPERCORN, UVICORN, WORKERD

FAST_FRAMEWORK = "functions-framework, async (+ httptools, uvloop)"
BESIDE = (FRAMEWORK, FAST_FRAMEWORK, WORKERD)
NEEDS = sorted({peers.PEERS[name].environment for name in BESIDE})
RATES = (500, 1000, 2000, 3000, 4000, 5000, 6000, 8000, 10000, 12000, 14000, 16000, 18000, 20000)
QUICK_RATES = (500, 2000, 8000)
KEEPS_UP = 0.97  # of what it is offered, or the server has had enough
BOUND = 10.0  # ms: the highest load with a p99 within it is a server's figure
LIGHT = 1000  # a second: the load at which a server has time for each request
SHARES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Step:
    """One load on one server, in one round."""

    rate: int
    served: float
    ms: tuple[float, ...]  # by SHARES
    errors: int
    saturated: bool


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {"add": (APPS / "plain.py").read_text()})
        targets: dict[str, Callable[[], Server]] = {
            UVICORN: functools.partial(spaces, root, engine="uvicorn"),
            HYPERCORN: functools.partial(spaces, root, engine="hypercorn"),
            **{name: peers.PEERS[name].start for name in BESIDE},
        }
        seen, failed = rounds(targets, options)
    columns = ["server", "offered/s", "served/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "errors"]
    report = Report("rising", "Latency as the load rises", columns, failed=failed)
    curves = {name: [middle(steps) for steps in by_rate(found)] for name, found in seen.items()}
    for name, curve in curves.items():
        report.rows += [row(name, step) for step in curve]
        report.series[name] = [[step.rate, step.served, *step.ms] for step in curve]
    report.checks = checks(curves)
    report.note = (
        f"Open loop on {openloop.CONNECTIONS} connections: a latency counts from the moment at which the request was "
        f"due. A server is left once it has twice served less than {KEEPS_UP:.0%} of what it was offered."
    )
    if saturated := sorted({step.rate for found in seen.values() for step in found if step.saturated}):
        report.note += f" The client itself was at its limit in some runs at {saturated[0]:,}/s and above."
    return report


def rounds(targets: dict[str, Callable[[], Server]], options: Options) -> tuple[dict[str, list[Step]], dict[str, str]]:
    """All servers in turn, so many times; those that cannot be measured are left out with the reason."""
    seen: dict[str, list[Step]] = {name: [] for name in targets}
    failed: dict[str, str] = {}
    for number in range(options.rounds):
        for name, start in targets.items():
            if name in failed:
                continue
            try:
                found = climb(start, options)
            except (Unavailable, OSError) as problem:
                failed[name] = str(problem)
                print(f"  ! {name}: not measured: {problem}", file=sys.stderr)
                continue
            seen[name] += found
            top = max((step.served for step in found), default=0)
            print(f"  round {number + 1}/{options.rounds}  {name:<50} up to {top:>7,.0f} req/s", flush=True)
    return {name: found for name, found in seen.items() if name not in failed}, failed


def climb(start: Callable[[], Server], options: Options) -> list[Step]:
    """A fresh server, warmed up, under one load after the other until it does not keep up."""
    found: list[Step] = []
    with start() as server:
        load.check(server)
        load.run(server, load.WARM_UP)
        for rate in QUICK_RATES if options.brief else RATES:
            offered = openloop.offer(server.url, server.path, rate, options.seconds * 3 / 8)
            ms = tuple(openloop.percentile(offered.answers, share) for share in SHARES)
            saturated = offered.client_busy > openloop.SATURATED
            found.append(Step(rate, offered.served(), ms, offered.errors(), saturated))
            if all(not keeps_up(step) for step in found[-2:]):
                break
            time.sleep(0.2)
    return found


def keeps_up(step: Step) -> bool:
    return step.served >= KEEPS_UP * step.rate


def by_rate(found: list[Step]) -> list[list[Step]]:
    """The rounds of each load, for those loads that every round has come to."""
    loads = sorted({step.rate for step in found})
    steps = [[step for step in found if step.rate == rate] for rate in loads]
    return [each for each in steps if len(each) == len(steps[0])]


def middle(steps: list[Step]) -> Step:
    """The median of each figure over the rounds; errors are added up."""
    ms = tuple(statistics.median(step.ms[place] for step in steps) for place in range(len(SHARES)))
    served = statistics.median(step.served for step in steps)
    errors, saturated = sum(step.errors for step in steps), any(step.saturated for step in steps)
    return Step(steps[0].rate, served, ms, errors, saturated)


def row(name: str, step: Step) -> list[str]:
    figures = [f"{each:,.2f}" for each in step.ms]
    return [name, f"{step.rate:,}", f"{step.served:,.0f}", *figures, str(step.errors)]


def bounded(curve: list[Step]) -> int:
    """The highest load that is served with a p99 within BOUND; 0 when there is none."""
    return max((step.rate for step in curve if keeps_up(step) and step.ms[2] <= BOUND), default=0)


def checks(curves: dict[str, list[Step]]) -> list[Check]:
    found = []
    if UVICORN in curves:
        light = [step for step in curves[UVICORN] if step.rate <= LIGHT][-1]
        found.append(Check(f"engine uvicorn, p50 at {light.rate:,}/s", light.ms[0], "ms", 2, 1))
    # What the throughput is held to, under a load that does not wait for the server.
    for name, floor, aim in ((FRAMEWORK, 2, 2), (WORKERD, 0.7, 1.1)):
        if UVICORN in curves and name in curves and (theirs := bounded(curves[name])):
            label = f"load with p99 <= {BOUND:g} ms: engine uvicorn / {name}"
            found.append(Check(label, bounded(curves[UVICORN]) / theirs, "x", floor, aim, at_most=False))
    ours = [step for name in (UVICORN, HYPERCORN) for step in curves.get(name, [])]
    if ours:
        found.append(Check("our failed requests", sum(step.errors for step in ours), "", 0, 0))
    return found
