"""Millions of calls with reloads and crashes mixed in: memory, open files and processes must not grow.

The file is edited every second; one call of ten thousand ends its process. What the host holds is read when nothing
runs and all workers have idled out: after a warm-up, and ten times more. Only run when it is asked for by name.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.client import APPS, Client
from bench.reload import save
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root

NEEDS = ()
SLICE = 10  # seconds of load at most between two looks at how many calls it were; wrk takes whole ones
WARM_UP = 0.05  # of the calls: before this a host grows because it is young
LOOKS = 10
EDIT_EVERY = 1.0
PATIENCE = 60.0
OURS = "status 3"  # how the host words what apps/crashing.py does
DIED = re.compile(rb'^spaces_worker_deaths_total\{[^}]*reason="([^"]*)"[^}]*\} ([0-9.e+]+)', re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """What the host holds while nothing runs."""

    calls: int
    rss: float
    pss: float
    files: int
    processes: int

    def cells(self) -> list[str]:
        return [f"{self.calls:,}", f"{self.rss:.1f}", f"{self.pss:.1f}", str(self.files), str(self.processes)]


@dataclass
class Tally:
    """What came of the calls so far."""

    calls: int = 0
    failed: int = 0
    edits: int = 0
    seconds: float = 0.0


def run(options: Options) -> Report:
    columns = ["at", "calls", "host RSS MiB", "whole tree PSS MiB", "open files", "processes"]
    report = Report("soak", f"{options.calls:,} calls with reloads and crashes", columns)
    with tempfile.TemporaryDirectory() as folder:
        source = (APPS / "crashing.py").read_text()
        root = write_root(Path(folder), {"add": source}, {"idle_timeout": "1s"})
        try:
            with spaces(root) as server:
                soak(report, server, root / "functions" / "bench" / "add.py", options)
        except (Unavailable, OSError) as problem:
            report.failed["soak"] = str(problem)
    return report


def soak(report: Report, server: Server, file: Path, options: Options) -> None:
    tally, readings = Tally(), list[Reading]()
    for share in (WARM_UP, *((number + 1) / LOOKS for number in range(LOOKS))):
        goal = int(options.calls * share)
        with edited(file, tally):
            while tally.calls < goal:
                rush(server, tally, goal)
        readings.append(rested(server, tally.calls))
        report.rows.append([f"{share:.0%}", *readings[-1].cells()])
        print("  " + "  ".join(report.rows[-1]), flush=True)
    deaths = died(server)
    crashes = sum(count for reason, count in deaths.items() if reason.endswith(OURS))
    other = sum(deaths.values()) - crashes
    report.note = (
        f"{tally.calls:,} calls in {tally.seconds:,.0f} s under load, {tally.edits:,} edits, {crashes:,} processes "
        f"ended by a call, {tally.failed:,} calls failed. Read with all workers idled out."
    )
    report.checks = checks(readings, tally, crashes, other)


def rush(server: Server, tally: Tally, goal: int) -> None:
    """A slice of load, shorter when the goal is near."""
    rate = tally.calls / tally.seconds if tally.seconds else float("inf")
    seconds = max(1, min(SLICE, round((goal - tally.calls) / rate)))
    seen = load.run(server, seconds)
    tally.calls += seen.requests
    tally.failed += seen.errors
    tally.seconds += seconds
    if not seen.requests:
        raise Unavailable("nothing was answered any more")


@contextmanager
def edited(file: Path, tally: Tally) -> Iterator[None]:
    """While it is entered, the file is saved every second with another last line."""
    ended, source = threading.Event(), file.read_text().partition("\n# edit ")[0]

    def edit() -> None:
        while not ended.wait(EDIT_EVERY):
            tally.edits += 1
            save(file, f"{source}\n# edit {tally.edits}\n", in_place=bool(tally.edits % 2))

    thread = threading.Thread(target=edit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def rested(server: Server, calls: int) -> Reading:
    """A reading once no worker is left, and the processes have been the same for two seconds."""
    client, deadline = Client(server.url), time.monotonic() + PATIENCE
    address, before, since = server.path.removesuffix("/invoke"), [], time.monotonic()
    while time.monotonic() < since + 2.0:
        if time.monotonic() > deadline:
            raise Unavailable(f"the host does not come to rest: {client.get(address)}")
        now = server.tree()
        if now != before or client.get(address)["workers"]:
            before, since = now, time.monotonic()
        time.sleep(0.1)
    client.close()
    time.sleep(0.2)  # so that this client's own connection is not counted
    return Reading(calls, server.rss(), server.pss(), server.open_files(), len(server.tree()))


def died(server: Server) -> dict[str, int]:
    """How many workers did not end as told, by reason."""
    client = Client(server.url)
    _, body = client.call("/metrics", b"", "GET")
    client.close()
    return {reason.decode(): int(float(count)) for reason, count in DIED.findall(body)}


def checks(readings: list[Reading], tally: Tally, crashes: int, other: int) -> list[Check]:
    start, middle, end = readings[0], readings[len(readings) // 2], readings[-1]
    # A call that ends its process is answered 502, and no other one may suffer from it.
    beside = tally.failed - crashes
    return [
        Check("calls that failed without ending their process", max(0, beside), "", 0, 0),
        Check("processes that ended otherwise", other, "", 0, 0),
        Check("host RSS, end / start", end.rss / start.rss, "x", 1.15, 1.03),
        # What is young grows; what leaks goes on.
        Check("host RSS, end / middle", end.rss / middle.rss, "x", 1.07, 1.015),
        Check("whole tree PSS, end / start", end.pss / start.pss, "x", 1.15, 1.03),
        Check("open files, end - start", end.files - start.files, "", 4, 0),
        Check("processes, end - start", end.processes - start.processes, "", 0, 0),
    ]
