"""Calls per second of one host process on one core, of one and of several on all; what a call costs in CPU time.

wrk shares one of the cores, so the rate of several is what is left beside it.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.client import APPS
from bench.load import WARM_UP, Load
from bench.report import Check, Options, Report
from bench.servers import SERVER_CORE, Server, Unavailable, write_root

NEEDS: list[str] = []
ENGINES = ("uvicorn", "hypercorn")
FLOOR, AIM = 1.2, 1.7  # times one core: where the load shares the cores, and where it has one of its own
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Setup:
    """How the host is run."""

    processes: int
    cores: int


ONE = Setup(1, 1)
Target = tuple[str, Setup]


@dataclass(frozen=True)
class Seen:
    """One run: what wrk saw, and the CPU time of a call."""

    load: Load
    microseconds: float  # of all processes of the host and its functions

    @property
    def rate(self) -> float:
        return self.load.rate


def run(options: Options) -> Report:
    every = os.sched_getaffinity(1)  # not ours: this process is pinned
    setups = [Setup(1, 1), *(Setup(count, len(every)) for count in sorted({1, 2, len(every)}))]
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {"add": (APPS / "plain.py").read_text()})
        targets = {
            (engine, setup): functools.partial(start, root, engine, setup) for engine in ENGINES for setup in setups
        }
        seen, failed = interleave(targets, options)
    report = Report(
        "cores",
        "Several host processes",
        [
            "engine",
            "processes",
            "cores",
            "req/s",
            "of one core",
            "CPU us a call",
            "of one",
            "p50 ms",
            "p99 ms",
            "errors",
        ],
        failed=failed,
        note=f"This machine has {len(every)} cores; wrk is on one of them. `of one core`: of one process on one core, "
        "beside which wrk has the other to itself.",
    )
    report.rows = [row(engine, setup, found, seen.get((engine, ONE), [])) for (engine, setup), found in seen.items()]
    report.checks = checks(seen)
    return report


def start(root: Path, engine: str, setup: Setup) -> Server:
    """Our host."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(1)) if setup.cores > 1 else [SERVER_CORE]))
    spaces = ["serve", root, "--bind", "127.0.0.1:0", "--engine", engine, "--processes", str(setup.processes)]
    command = [shutil.which("taskset") or "taskset", "-c", cores, Path(sys.prefix) / "bin" / "spaces", *spaces]
    return Server(command, path="/spaces/bench/functions/add/invoke", cwd=root)


def interleave(
    targets: dict[Target, Callable[[], Server]], options: Options
) -> tuple[dict[Target, list[Seen]], dict[str, str]]:
    """All in turn, as `load.interleave` does; those that cannot be measured are left out with the reason."""
    seen: dict[Target, list[Seen]] = {target: [] for target in targets}
    failed: dict[str, str] = {}
    for number in range(options.rounds):
        for target, starting in targets.items():
            name = f"engine {target[0]}, {target[1].processes} on {target[1].cores} cores"
            if name in failed:
                continue
            try:
                seen[target].append(measure(starting, options.seconds))
            except (Unavailable, OSError) as problem:
                failed[name] = str(problem)
                print(f"  ! {name}: not measured: {problem}", file=sys.stderr)
                continue
            print(f"  round {number + 1}/{options.rounds}  {name:<40} {seen[target][-1].rate:>9,.0f} req/s", flush=True)
    return {target: found for target, found in seen.items() if found}, failed


def measure(starting: Callable[[], Server], seconds: float) -> Seen:
    """A fresh host, checked and warmed up, then loaded."""
    with starting() as server:
        load.check(server)
        load.run(server, WARM_UP)
        before = cpu_seconds(server)
        found = load.run(server, seconds)
        spent = cpu_seconds(server) - before
    return Seen(found, spent / max(1, found.requests) * 1e6)


def cpu_seconds(server: Server) -> float:
    """Of every process that lives below the server, up to now."""
    total = 0
    for pid in server.tree():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def row(engine: str, setup: Setup, found: list[Seen], one: list[Seen]) -> list[str]:
    return [
        engine,
        str(setup.processes),
        str(setup.cores),
        f"{statistics.median(each.rate for each in found):,.0f}",
        f"{times(found, one, lambda each: each.rate):.2f}",
        f"{statistics.median(each.microseconds for each in found):.0f}",
        f"{times(found, one, lambda each: each.microseconds):.2f}",
        f"{statistics.median(each.load.p50_ms for each in found):.2f}",
        f"{statistics.median(each.load.p99_ms for each in found):.2f}",
        f"{sum(each.load.errors for each in found)}",
    ]


def times(found: list[Seen], one: list[Seen], figure: Callable[[Seen], float]) -> float:
    """The median over the rounds of the ratio to one process within each round."""
    ratios = [figure(a) / figure(b) for a, b in zip(found, one, strict=False)]
    return statistics.median(ratios) if ratios else float("nan")


def checks(seen: dict[Target, list[Seen]]) -> list[Check]:
    found = []
    for engine in ENGINES:
        several = [setup for name, setup in seen if name == engine and setup.processes == 2]
        if several and (engine, ONE) in seen:
            more = times(seen[engine, several[0]], seen[engine, ONE], lambda each: each.rate)
            name = f"engine {engine}, 2 processes on {several[0].cores} cores / 1 on one"
            found.append(Check(name, more, "x", FLOOR, AIM, at_most=False))
    errors = sum(each.load.errors for runs in seen.values() for each in runs)
    return [*found, Check("failed requests", errors, "", 0, 0)]
