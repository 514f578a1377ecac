"""Ten thousand functions on disk in a hundred spaces: start, memory, and the speed of one of them.

The peer is our own host with only that one function: nobody else's server holds ten thousand.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from pathlib import Path

from bench import load
from bench.client import APPS
from bench.report import Check, Options, Report
from bench.servers import Unavailable, spaces, write_root

NEEDS = ()
SPACES, EACH = 100, 100


def run(options: Options) -> Report:
    columns = ["functions on disk", "start s", "host RSS MiB", "whole tree PSS MiB", "req/s of one"]
    report = Report("many", "Ten thousand functions", columns)
    source = (APPS / "plain.py").read_text()
    with tempfile.TemporaryDirectory() as folder:
        one = write_root(Path(folder, "one"), {"add": source})
        many = write_root(Path(folder, "many"), {"add": source})
        fill(many, source)
        targets = {"1": functools.partial(spaces, one), f"{SPACES * EACH:,}": functools.partial(spaces, many)}
        started = {}
        for name, start in targets.items():
            try:
                started[name] = starting(start, options.rounds)
            except (Unavailable, OSError) as problem:
                report.failed[f"{name} functions"] = str(problem)
        if report.failed:
            return report
        seen, report.failed = load.interleave(targets, options.rounds, options.seconds)
    if report.failed:
        return report
    for name, (seconds, rss, pss) in started.items():
        rate = statistics.median(one.rate for one in seen[name])
        report.rows.append([name, f"{seconds:.2f}", f"{rss:.0f}", f"{pss:.0f}", f"{rate:,.0f}"])
    (single, crowd), (_, (seconds, rss, _)) = seen.values(), started.values()
    report.checks = [
        Check("start to listening", seconds, "s", 5, 2),
        Check("host RSS", rss, "MiB", 250, 150),
        Check(
            "speed of one / of a host with only that one",
            load.ratio(crowd, single),
            "x",
            0.9,
            1,
            at_most=False,
        ),
    ]
    return report


def fill(root: Path, source: str) -> None:
    """The other functions, each its own file and no two alike; the space `bench` has one of them already."""
    for space in range(SPACES):
        folder = root / "functions" / ("bench" if not space else f"space-{space}")
        folder.mkdir(exist_ok=True)
        for number in range(EACH - (not space)):
            (folder / f"function_{number}.py").write_text(f"{source}\n\nNUMBER = {space * EACH + number}\n")


def starting(start, rounds: int) -> tuple[float, float, float]:
    """Medians of seconds to listening, and of the memory once it has answered a call."""
    readings = []
    for _ in range(rounds):
        with start() as server:
            load.check(server)
            readings.append((server.seconds_to_listening, server.rss(), server.pss()))
    return tuple(statistics.median(reading) for reading in zip(*readings, strict=True))
