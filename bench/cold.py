"""From zero workers to the first answer: the function is loaded, its workers have idled out, one call comes.

Timed on a keep-alive connection, nothing subtracted. Beside it: booting a functions-framework process, and
an interpreter that does the same imports, which is what a cold start costs where nothing is forked.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench import load
from bench.client import APPS, Client
from bench.peers import HOME, PEERS
from bench.report import Check, Options, Report
from bench.servers import SERVER_CORE, Server, Unavailable, spaces, write_root

NEEDS = ("science", "functions-framework")
FUNCTIONS = ("plain", "science")
IDLE = "1s"
IMPORTS = {"plain": "pass", "science": "import numpy, pandas, sklearn.linear_model"}


def run(options: Options) -> Report:
    report = Report("cold", "Cold start", ["what", "handler", "p50 ms", "p95 ms", "worst ms", "tries"])
    try:
        ours(report, options)
    except (Unavailable, OSError) as problem:
        report.failed["spaces"] = str(problem)
    tries = max(3, options.tries // 6)
    for async_mode in ("sync", "async"):
        peer = PEERS[f"functions-framework, {async_mode}"]
        report.rows.append(row(f"functions-framework, {async_mode}: boot", "plain", boots(peer.start, tries)))
    for handler, imports in IMPORTS.items():
        report.rows.append(row("a fresh interpreter", handler, interpreters(imports, tries)))
    return report


def ours(report: Report, options: Options) -> None:
    sources = {name: (APPS / f"{name}.py").read_text() for name in FUNCTIONS}
    times: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), sources, {"idle_timeout": IDLE, "min_workers": 0})
        with spaces(root, venv=HOME / "science", function="plain") as server:
            client = Client(server.url)
            for name in FUNCTIONS:
                server.path = path(name, "/invoke")
                first = [call(client, name)]
                load.check(server)
                report.rows.append(row("spaces, first call ever: imports the handler", name, first))
            for _ in range(options.tries):
                wait_idle(client)
                for name in FUNCTIONS:
                    times[name].append(call(client, name))
    for name, floor, aim in (("plain", 3, 1.5), ("science", 8, 4)):
        report.rows.append(row("spaces, from zero workers", name, times[name]))
        p50 = statistics.median(times[name])
        report.checks.append(Check(f"from zero workers, {name}, p50", p50, "ms", floor, aim))


def path(name: str, rest: str = "") -> str:
    return f"/spaces/bench/functions/{name}{rest}"


def call(client: Client, name: str) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    status, answer = client.call(path(name, "/invoke"))
    passed = (time.perf_counter() - started) * 1000
    if status != 200:
        raise Unavailable(f"{name} answered {status}: {answer[:300]!r}")
    return passed


def wait_idle(client: Client) -> None:
    """Until no function has a worker, by the host's own word; then a moment for the processes to be gone."""
    deadline = time.monotonic() + 30
    while any(client.get(path(name))["workers"] for name in FUNCTIONS):
        if time.monotonic() > deadline:
            raise Unavailable("workers did not end when idle")
        time.sleep(0.05)
    time.sleep(0.1)


def boots(start, tries: int) -> list[float]:
    """Milliseconds from starting a peer's process to its first answer."""
    times = []
    for _ in range(tries):
        server: Server
        with start() as server:
            load.check(server)
            times.append((time.perf_counter() - server.started) * 1000)
    return times


def interpreters(imports: str, tries: int) -> list[float]:
    """Milliseconds that a fresh interpreter takes for these imports, files in the page cache."""
    times = []
    python = HOME / "science" / "bin" / "python"
    for _ in range(tries + 1):
        started = time.perf_counter()
        subprocess.run(["taskset", "-c", str(SERVER_CORE), python, "-c", imports], check=True)
        times.append((time.perf_counter() - started) * 1000)
    return times[1:]


def row(what: str, handler: str, times: list[float]) -> list[str]:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    figures = [f"{number:,.2f}" for number in (statistics.median(ordered), p95, ordered[-1])]
    return [what, handler, *figures, str(len(ordered))]
