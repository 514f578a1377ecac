"""Calls in the background: how fast they are accepted, started and worked off, and what a long history costs.

The peer is our own synchronous call on the same engine, in the same rounds. The journal is on the disk that
holds the temporary folder; `fsync` is what one sync of it takes, which says how much of a figure is the disk.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import load
from bench.client import APPS, BODY, Client
from bench.history import fill
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root

NEEDS = ()
ENGINES = ("uvicorn", "hypercorn")
DRAINED = 20_000  # calls
HISTORY = 1_000_000
STARTS = 200
SETTINGS: dict[str, object] = {"max_queued": 10_000_000, "keep_calls": 10_000_000}
STARTED = "import time\ndef handle(data):\n    return {'started': time.time()}\n"


def run(options: Options) -> Report:
    report = Report("durable", "Calls in the background", ["what", "engine", "figure", "unit", "against"])
    with tempfile.TemporaryDirectory() as folder:
        report.rows.append(["one sync of the disk", "", f"{sync(Path(folder)):.2f}", "ms", ""])
        for engine in ENGINES:
            accept(report, options, Path(folder, engine), engine)
        starts(report, Path(folder, "starts"), options)
        drain(report, Path(folder, "drain"), options)
        history(report, Path(folder, "history"), options)
    return report


def sync(folder: Path) -> float:
    """Milliseconds of one write of 4 KiB with its sync; the median."""
    times = []
    with open(folder / "sync", "wb", buffering=0) as file:
        for _ in range(100):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


@contextmanager
def fresh(folder: Path, engine: str, path: str) -> Iterator[Server]:
    """A host on a root of its own, with an empty journal."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        started = {"add": (APPS / "plain.py").read_text(), "when": STARTED}
        with spaces(write_root(Path(root), started, SETTINGS), engine=engine) as server:
            server.path = path
            yield server


def address(name: str, what: str) -> str:
    return f"/spaces/bench/functions/{name}/{what}"


def accept(report: Report, options: Options, folder: Path, engine: str) -> None:
    """Accepted a second: calls that are run as they come, and calls that are to run later; beside synchronous ones."""
    folder.mkdir()
    seen: dict[str, list[load.Load]] = {"sync": [], "run": [], "later": []}
    for _ in range(options.rounds):
        for what, loads in seen.items():
            path = address("add", "invoke" if what == "sync" else "async-invoke")
            with fresh(folder, engine, path) as server:
                delay = "3600" if what == "later" else ""
                load.run(server, load.WARM_UP, BENCH_DELAY=delay)
                loads.append(load.run(server, options.seconds, BENCH_DELAY=delay))
    rates = {what: statistics.median(each.rate for each in loads) for what, loads in seen.items()}
    names = {"sync": "synchronous calls", "run": "accepted, and run meanwhile", "later": "accepted, to run later"}
    for what, name in names.items():
        against = "" if what == "sync" else f"{load.ratio(seen[what], seen['sync']):.2f} x sync"
        report.rows.append([name, engine, f"{rates[what]:,.0f}", "calls/s", against])
    times = load.ratio(seen["later"], seen["sync"])
    report.checks.append(Check(f"durable accept / sync, {engine}", times, "x", 0.5, 1, at_most=False))
    errors = sum(each.errors for loads in seen.values() for each in loads)
    report.checks.append(Check(f"failed requests, {engine}", errors, "", 0, 0))


def starts(report: Report, folder: Path, options: Options) -> None:
    """From sending a submission to the first line of the handler, one at a time, on an idle warm host."""
    folder.mkdir()
    times = []
    with fresh(folder, "uvicorn", address("when", "async-invoke")) as server:
        client = Client(server.url)
        client.call(address("when", "invoke"))
        for _ in range(max(20, STARTS * options.rounds // 3)):
            before = time.time()
            status, headers, _ = client.exchange(server.path)
            if status != 202:
                raise Unavailable(f"a submission was answered {status}")
            result = client.get(headers[b"location"].decode() + "/result?wait=10s")
            times.append((result["started"] - before) * 1000)
    p50 = statistics.median(times)
    report.rows.append(["submitted to handler started, p50", "uvicorn", f"{p50:.2f}", "ms", f"{len(times)} calls"])
    report.checks.append(Check("accepted to handler started, p50", p50, "ms", 10, 3))


def drain(report: Report, folder: Path, options: Options) -> None:
    """How fast a queue of trivial calls is worked off: all are due at one moment."""
    folder.mkdir()
    count = DRAINED if options.rounds > 1 else DRAINED // 10
    with fresh(folder, "uvicorn", address("add", "async-invoke")) as server:
        client = Client(server.url)
        client.call(address("add", "invoke"))
        due = time.time() + 4 + count / 1000
        for _ in range(count):
            status, _, _ = client.exchange(server.path, {"X-Run-At": f"{due:.3f}"})
            if status != 202:
                raise Unavailable(f"a submission was answered {status}")
        if time.time() > due:
            raise Unavailable("the queue was due before it was full")
        while waiting(client):
            time.sleep(0.02)
        seconds = time.time() - due
    report.rows.append([f"a queue of {count:,} is worked off", "uvicorn", f"{count / seconds:,.0f}", "calls/s", ""])


def waiting(client: Client) -> float:
    """How many submitted calls are not over."""
    _, _, body = client.exchange("/metrics", method="GET", body=b"")
    lines = [line for line in body.decode().splitlines() if line.startswith("spaces_submitted_calls{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def history(report: Report, folder: Path, options: Options) -> None:
    """Accepting and listing with a long history, beside an empty one: a request to the one, a request to the other."""
    folder.mkdir()
    count = HISTORY if options.rounds > 1 else HISTORY // 50
    roots = {"empty": filled(folder / "empty", 0), f"{count:,} calls": filled(folder / "full", count)}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(spaces(root, engine="uvicorn")) for name, root in roots.items()}
        found = look({name: Client(server.url) for name, server in servers.items()}, options)
    for what, medians in found.items():
        for name, median in medians.items():
            report.rows.append([f"{what}, p50, journal: {name}", "uvicorn", f"{median:.2f}", "ms", ""])
        empty, full = medians.values()
        report.checks.append(Check(f"{what}: {count:,} in the journal / empty", full / empty, "x", 1.5, 1.1))


def filled(folder: Path, count: int) -> Path:
    """A root whose journal has one finished call, and so many older ones like it."""
    root = write_root(folder, {"add": (APPS / "plain.py").read_text()}, SETTINGS)
    with spaces(root, engine="uvicorn") as server:
        client = Client(server.url)
        client.call(address("add", "async-invoke"))
        while waiting(client):
            time.sleep(0.02)
    fill(root / ".spaces/journal.db", count)
    return root


def look(clients: dict[str, Client], options: Options) -> dict[str, dict[str, float]]:
    """Medians in ms, of clients that wait for each answer, in turn."""
    paths = {"list": ("GET", address("add", "calls?limit=50")), "accept": ("POST", address("add", "async-invoke"))}
    for client in clients.values():  # so that both have a page to list
        for _ in range(50):
            timed(client, *paths["accept"])
    found = {}
    for what, (method, path) in paths.items():
        times: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(max(100, 100 * options.rounds)):
            for name, client in clients.items():
                times[name].append(timed(client, method, path))
        found[what] = {name: statistics.median(each) for name, each in times.items()}
    return found


def timed(client: Client, method: str, path: str) -> float:
    """Milliseconds of one request."""
    started = time.perf_counter()
    status, _, body = client.exchange(path, method=method, body=BODY if method == "POST" else b"")
    if status >= 300:
        raise Unavailable(f"{path} was answered {status} {body[:200]!r}")
    return (time.perf_counter() - started) * 1000
