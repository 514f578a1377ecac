"""From saving a file to its new code answering, alone and under load, and what failed meanwhile.

A client polls as fast as answers come, from the moment of saving until the new answer. Saves alternate
between writing in place and renaming over. Beside it: the peers' reloading development servers, same edits.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench.client import APPS
from bench.peers import PEERS
from bench.poller import Poller
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root

NEEDS = ("functions-framework", "bare", "workerd")
CLIENTS = 4
# Each peer with the flag that makes it reload, and the file that is edited.
RELOADING = {
    "functions-framework --debug": ("functions-framework, sync", "--debug", "flask_function.py"),
    "uvicorn --reload": ("bare ASGI, uvicorn (httptools, uvloop)", "--reload", "asgi.py"),
    "workerd --watch": ("workerd, JavaScript", "--watch", "workerd.js"),
}


def run(options: Options) -> Report:
    columns = ["server", "p50 ms", "worst ms", "edits", "calls meanwhile", "failed"]
    report = Report("reload", "Save to new code serving", columns)
    for clients, label in ((0, "spaces"), (CLIENTS, f"spaces, under load of {CLIENTS} clients")):
        try:
            times, pollers = ours(clients, options.edits)
        except (Unavailable, OSError) as problem:
            report.failed[label] = str(problem)
            continue
        report.rows.append(row(label, times, pollers))
        failures = [failure for poller in pollers for failure in poller.failures]
        load = "under load" if clients else "alone"
        report.checks.append(Check(f"save to serving, {load}, p50", statistics.median(times), "ms", 150, 50))
        report.checks.append(Check(f"failed requests, {load}", len(failures), "", 0, 0))
        report.note += f"\nFirst failure {load}: {failures[0]}" if failures else ""
    for label, (peer, flag, file) in RELOADING.items():
        try:
            report.rows.append(row(label, *theirs(peer, flag, file, max(3, options.edits // 4))))
        except (Unavailable, OSError) as problem:
            report.note += f"\nNot measured: {label}: {problem}"
    return report


def ours(clients: int, edits: int) -> tuple[list[float], list[Poller]]:
    with tempfile.TemporaryDirectory() as folder:
        source = (APPS / "plain.py").read_text()
        root = write_root(Path(folder), {"add": at_version(0, source)})
        with spaces(root) as server:
            return edit(server, root / "functions" / "bench" / "add.py", source, clients, edits)


def theirs(name: str, flag: str, file: str, edits: int) -> tuple[list[float], list[Poller]]:
    with tempfile.TemporaryDirectory() as folder:
        apps = Path(folder)
        for app in APPS.glob("*.*"):
            (apps / app.name).write_text(app.read_text())
        source = (apps / file).read_text()
        (apps / file).write_text(at_version(0, source))
        with PEERS[name].start(apps, flag) as server:
            return edit(server, apps / file, source, 0, edits)


def at_version(version: int, source: str) -> str:
    """The source with its first summand made the version: the answer tells which one was served."""
    return source.replace('data["a"]', str(version)).replace("data.a", str(version))


def edit(server: Server, file: Path, source: str, clients: int, edits: int) -> tuple[list[float], list[Poller]]:
    """Saves version after version while pollers call; the first poller tells when each is served."""
    pollers = [Poller(server) for _ in range(1 + clients)]
    done = threading.Event()
    threads = [threading.Thread(target=hammer, args=(poller, done)) for poller in pollers[1:]]
    for thread in threads:
        thread.start()
    times = []
    try:
        for version in range(1, edits + 1):
            pause = time.perf_counter() + random.uniform(0.3, 0.6)
            while time.perf_counter() < pause:
                pollers[0].poll()
            saved = time.perf_counter()
            save(file, at_version(version, source), in_place=bool(version % 2))
            times.append(pollers[0].until(version, saved))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return times, pollers


def save(file: Path, text: str, *, in_place: bool) -> None:
    if in_place:
        file.write_text(text)
        return
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text)
    beside.replace(file)


def hammer(poller: Poller, done: threading.Event) -> None:
    while not done.is_set():
        poller.poll()


def row(label: str, times: list[float], pollers: list[Poller]) -> list[str]:
    calls, failed = sum(p.calls for p in pollers), sum(len(p.failures) for p in pollers)
    return [
        label,
        f"{statistics.median(times):.0f}",
        f"{max(times):.0f}",
        str(len(times)),
        f"{calls:,}",
        str(failed),
    ]
