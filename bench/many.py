"""Many functions on disk, in up to a hundred spaces: what grows with what exists, and what with what is used.

The peer is our own host with only one function: nobody else's server holds ten thousand. What is done with them
is in `thousands`.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from pathlib import Path

from bench import load, thousands
from bench.client import APPS
from bench.load import Load
from bench.report import Check, Options, Report
from bench.servers import Unavailable, configure, spaces, write_root
from bench.thousands import Seen

NEEDS = ()
COUNTS, FEW_COUNTS = (10, 100, 1_000, 10_000), (10, 100)
EACH = 100  # in a space, at most
ALONE = "1"
KEPT = 256  # zygotes at most, when functions are called at random
COLUMNS = [
    "functions on disk",
    "start s",
    "host RSS MiB",
    "whole tree PSS MiB",
    "req/s of one",
    "reload ms",
    "helper ms",
    "helper, all ms",
    "list ms",
    "at random",
    "req/s at random",
    "failed",
    "processes",
    "metrics ms",
    "label sets",
]
NOTE = f"""`reload`: from saving one function's file to its new code answering. `helper`: the same for a file that
all functions of a space import ({EACH} at most), when only one of them is loaded; `helper, all`: when all of them are,
until the last serves it. `list`: GET of one space. `at random`: so many functions are called at random, with
`max_workers = 1`, `idle_timeout = "1s"` and `max_zygotes = {KEPT}`, so that a call of one of the others loads it; then
come the host's processes, and `/metrics`."""


def run(options: Options) -> Report:
    report = Report("many", "Ten thousand functions", COLUMNS, note=NOTE.replace("\n", " "))
    counts = FEW_COUNTS if options.brief else COUNTS
    source = (APPS / "plain.py").read_text()
    with tempfile.TemporaryDirectory() as folder:
        roots = {ALONE: write_root(Path(folder, "one"), {"add": source})}
        for count in counts:
            roots[f"{count:,}"] = write_root(Path(folder, str(count)), {"add": source})
            fill(roots[f"{count:,}"], count)
        targets = {name: functools.partial(spaces, root) for name, root in roots.items()}
        found: dict[str, Seen] = {}
        started = {}
        for name, root in roots.items():
            try:
                started[name] = starting(targets[name], options.rounds)
                found[name] = look(root, name, options)
            except (Unavailable, OSError) as problem:
                report.failed[f"{name} functions"] = str(problem)
        if report.failed:
            return report
        rates, report.failed = load.interleave(targets, options.rounds, options.seconds)
        if report.failed:
            return report
        try:
            everything = loaded(roots[f"{counts[-1]:,}"], options)
        except (Unavailable, OSError) as problem:
            report.failed["all loaded"] = str(problem)
            return report
    for name in roots:
        report.rows.append(row(name, started[name], rates[name], found[name]))
    report.note += " " + sentence(everything)
    report.checks = checks(started, rates, found, everything)
    return report


def fill(root: Path, count: int) -> None:
    """The other functions, each its own file and no two alike, with a helper in each space that they import."""
    for space in range(max(1, count // EACH)):
        folder = root / "functions" / (thousands.BENCH if not space else f"space-{space}")
        folder.mkdir(exist_ok=True)
        (folder / thousands.HELPER).write_text(thousands.helper(0))
        for number in range(min(count, EACH) - (not space)):
            (folder / f"function_{number}.py").write_text(thousands.SOURCE.format(number=space * EACH + number))


def starting(start, rounds: int) -> tuple[float, float, float]:
    """Medians of seconds to listening, and of the memory once it has answered a call."""
    readings = []
    for _ in range(rounds):
        with start() as server:
            load.check(server)
            readings.append((server.seconds_to_listening, server.rss(), server.pss()))
    return tuple(statistics.median(reading) for reading in zip(*readings, strict=True))


def look(root: Path, name: str, options: Options) -> Seen:
    """Editing and listing on one host, then calls at random on a host that keeps only some functions loaded."""
    edits = max(3, options.edits // 4)
    with spaces(root) as server:
        seen = thousands.edited(server, root, edits)
    if name == ALONE:
        return seen
    print(f"  {name} functions: edited and listed", flush=True)
    bounded(root, KEPT, "1s")
    with spaces(root) as server:
        seen = thousands.at_random(server, root, seen, options.seconds)
    configure(root, {})
    print(f"  {name} functions: called at random", flush=True)
    return seen


def bounded(root: Path, zygotes: int, idle: str) -> None:
    """At most so many functions loaded, each with one worker; a function is unloaded after ten times `idle`."""
    settings: dict[str, object] = {"max_workers": 1, "idle_timeout": idle, "timeout": "30s"}
    configure(root, {"server": {"max_zygotes": zygotes}, "defaults": settings})


def loaded(root: Path, options: Options) -> Seen:
    """Calls at random of the largest root, where all of the called functions stay loaded."""
    bounded(root, thousands.CALLED, "60s")
    with spaces(root) as server:
        thousands.call_each(server, thousands.some(root))
        return thousands.at_random(server, root, Seen(), options.seconds)


def sentence(seen: Seen) -> str:
    return (
        f"With `max_zygotes = {thousands.CALLED}` and all {seen.called:,} of them loaded before: "
        f"{seen.random_rate:,.0f} req/s at random, {seen.failed} failed, {seen.processes:,} processes; "
        f"`/metrics` then has {seen.label_sets:,} label sets and takes {seen.metrics:.0f} ms."
    )


def row(name: str, started: tuple[float, float, float], loads: list[Load], seen: Seen) -> list[str]:
    seconds, rss, pss = started
    rate = statistics.median(one.rate for one in loads)
    figures = [f"{seconds:.2f}", f"{rss:.0f}", f"{pss:.0f}", f"{rate:,.0f}"]
    return [name, *figures, *seen.cells()]


def checks(started: dict, rates: dict[str, list[Load]], found: dict[str, Seen], everything: Seen) -> list[Check]:
    """The largest root against its floors, and against the smallest one: cost grows with what is used."""
    _, few, *_, most = started
    seconds, rss, _ = started[most]
    speed = load.ratio(rates[most], rates[ALONE])
    failed = sum(one.failed for one in found.values()) + everything.failed
    return [
        Check("start to listening", seconds, "s", 5, 2),
        Check("host RSS", rss, "MiB", 250, 150),
        Check("speed of one / of a host with only that one", speed, "x", 0.9, 1, at_most=False),
        Check(f"reload of one, {most} / {few} on disk", found[most].reload / found[few].reload, "x", 2, 1.2),
        Check("reload of one", found[most].reload, "ms", 150, 50),
        Check("reload of a helper, one function loaded", found[most].helper, "ms", 150, 50),
        Check("reload of a helper, all of a space loaded", found[most].helper_all / 1000, "s", 5, 1),
        Check("list of a space", found[most].listing, "ms", 50, 10),
        Check(f"/metrics, {everything.called:,} functions called", everything.metrics, "ms", 500, 100),
        Check("failed at random", failed, "", 0, 0),
    ]
