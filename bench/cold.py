"""Cold starts: the first call of a function ever, one after all workers have idled out, one after a reload.

Timed on a keep-alive connection, nothing subtracted. Beside it: booting a functions-framework or workerd process,
and an interpreter that does the same imports, which is what a cold start costs where nothing is forked.
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
from bench.servers import SERVER_CORE, Server, Unavailable, configure, spaces, write_root

NEEDS = ("science", "functions-framework", "workerd")
BOOTED = ("functions-framework, sync", "functions-framework, async", "workerd, JavaScript")
IDLE = "1s"
IMPORTS = {
    "plain": "pass",
    "science": "import numpy, pandas, sklearn.linear_model",
    "tensors": "import torch",
}
PRELOAD = {"science": ["numpy", "pandas", "sklearn.linear_model"], "tensors": ["torch"]}
FIRST, ZERO, RELOADED = "first call ever", "from zero workers", "first call after a reload"
# Milliseconds, floor and aim of the p50. What the first call ever takes is mostly its imports: see `checks`.
LIMITS = {
    (ZERO, "plain"): (3, 1.5),
    (ZERO, "science"): (8, 4),
    (RELOADED, "plain"): (8, 3),
    (RELOADED, "science"): (16, 8),
    (FIRST, "plain"): (100, 20),
}
PATIENCE = 60.0

Times = dict[tuple[str, str], list[float]]


def run(options: Options) -> Report:
    report = Report("cold", "Cold start", ["what", "handler", "p50 ms", "p95 ms", "worst ms", "tries"])
    handlers = [name for name in IMPORTS if importable(name)]
    tries = max(3, options.tries // 6)
    try:
        times = ours(handlers, options, tries)
    except (Unavailable, OSError) as problem:
        report.failed["spaces"], times = str(problem), {}
    report.rows += [row(f"spaces, {what}", name, each) for (what, name), each in times.items()]
    for name in [each for each in PRELOAD if each in handlers and times]:
        preloaded(report, name, tries)
    for peer in BOOTED:
        try:
            report.rows.append(row(f"{peer}: boot", "plain", boots(PEERS[peer].start, tries)))
        except (Unavailable, OSError) as problem:
            report.failed[peer] = str(problem)
    fresh = {name: interpreters(IMPORTS[name], tries) for name in handlers}
    report.rows += [row("a fresh interpreter", name, each) for name, each in fresh.items()]
    report.checks = checks(times, fresh)
    report.note += "" if "tensors" in handlers else "torch is not installed beside the others: not measured."
    return report


def importable(name: str) -> bool:
    """Whether the environment has what this handler imports."""
    return not subprocess.run([python(), "-c", IMPORTS[name]], capture_output=True).returncode


def python() -> Path:
    return HOME / "science" / "bin" / "python"


def ours(handlers: list[str], options: Options, tries: int) -> Times:
    """All three kinds of each handler on one host. For the first call ever there are as many copies as tries."""
    sources = {name: (APPS / f"{name}.py").read_text() for name in handlers}
    copies = {f"{name}_{number}": sources[name] for name in handlers for number in range(tries)}
    times: Times = {(what, name): [] for what in (FIRST, ZERO, RELOADED) for name in handlers}
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {**sources, **copies}, {"idle_timeout": IDLE, "min_workers": 0})
        with spaces(root, venv=HOME / "science") as server:
            client = Client(server.url)
            client.get("/spaces")
            for copy in copies:
                times[FIRST, copy.rpartition("_")[0]].append(call(client, copy))
            for name in handlers:
                server.path = path(name, "/invoke")
                load.check(server)
            for _ in range(options.tries):
                wait_idle(client, handlers)
                for name in handlers:
                    times[ZERO, name].append(call(client, name))
            for _ in range(tries):
                for name in handlers:
                    times[RELOADED, name].append(after_reload(client, root, name))
    return times


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


def wait_idle(client: Client, names: list[str]) -> None:
    """Until no function has a worker, by the host's own word; then a moment for the processes to be gone."""
    deadline = time.monotonic() + PATIENCE
    while any(client.get(path(name))["workers"] for name in names):
        if time.monotonic() > deadline:
            raise Unavailable("workers did not end when idle")
        time.sleep(0.05)
    time.sleep(0.1)


def after_reload(client: Client, root: Path, name: str) -> float:
    """Milliseconds of the first call after the host has said that it serves what was saved."""
    call(client, name)
    before = client.get(path(name))["generation"]
    with open(root / "functions" / "bench" / f"{name}.py", "a") as file:
        file.write("# edited\n")
    deadline = time.monotonic() + PATIENCE
    while client.get(path(name))["generation"] == before:
        if time.monotonic() > deadline:
            raise Unavailable(f"{name} was not reloaded")
        time.sleep(0.01)
    time.sleep(0.1)  # the old processes end meanwhile
    return call(client, name)


def preloaded(report: Report, name: str, tries: int) -> None:
    """The first call ever of a function whose imports its space has preloaded; the base process is up before."""
    source = (APPS / f"{name}.py").read_text()
    copies = {f"{name}_{number}": source for number in range(tries)}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {name: source, **copies})
        configure(root, {"spaces.bench": {"preload": PRELOAD[name]}})
        if "preload" in refused(root):
            report.note += "This host has no setting `preload`: not measured. "
            return
        try:
            with spaces(root, venv=HOME / "science", function=name) as server:
                client = Client(server.url)
                call(client, name)
                times = [call(client, copy) for copy in copies]
        except (Unavailable, OSError) as problem:
            report.failed[f"spaces, {name} preloaded"] = str(problem)
            return
    report.rows.append(row(f"spaces, {FIRST}, its imports preloaded", name, times))


def refused(root: Path) -> str:
    """What our own host has against the settings of this folder; nothing, as a rule."""
    command = [HOME / "science" / "bin" / "spaces", "check", root]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    return done.stdout + done.stderr if done.returncode else ""


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
    for _ in range(tries + 1):
        started = time.perf_counter()
        subprocess.run(["taskset", "-c", str(SERVER_CORE), python(), "-c", imports], check=True)
        times.append((time.perf_counter() - started) * 1000)
    return times[1:]


def checks(times: Times, fresh: dict[str, list[float]]) -> list[Check]:
    found = []
    for kind, (floor, aim) in LIMITS.items():
        if kind in times:
            label = f"{kind[0]}, {kind[1]}, p50"
            found.append(Check(label, statistics.median(times[kind]), "ms", floor, aim))
    if (FIRST, "science") in times:
        share = statistics.median(times[FIRST, "science"]) / statistics.median(fresh["science"])
        found.append(Check("first call ever, science / a fresh interpreter", share, "x", 1.5, 1.1))
    return found


def row(what: str, handler: str, times: list[float]) -> list[str]:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    figures = [f"{number:,.2f}" for number in (statistics.median(ordered), p95, ordered[-1])]
    return [what, handler, *figures, str(len(ordered))]
