"""Bad load: ten times what a function can serve, and a thousand clients that hold a connection and do little.

The function takes 5 ms a call in at most two workers. The load is open loop, so refusals do not slow it down.
What a thousand connections cost is measured by `crowds`.
"""

from __future__ import annotations

import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from bench import crowds, openloop
from bench.client import Client
from bench.openloop import Answer, Offered, percentile
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root

NEEDS = ()
HANDLER = "import time\ndef handle(data):\n    time.sleep(0.005)\n    return {'sum': data['a'] + data['b']}\n"
TAKES = 5.0  # ms
WORKERS, WAITING = 2, 20
BOUND = (WAITING / WORKERS + 1) * TAKES  # ms: those before it in the queue, and itself
TIMES, LASTS = 10, 60
WINDOW = 0.1  # seconds: full speed is seen in pieces of this length
WATCHED = 3.0  # seconds after the end
OK, REFUSED = 200, 429


def run(options: Options) -> Report:
    report = Report("overload", "Bad load", ["what", "engine", "figure", "unit", "against"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"max_workers": WORKERS, "max_waiting": WAITING}
            root = write_root(Path(folder), {"add": HANDLER}, settings)
            with spaces(root) as server:
                burst(report, server, 3 if options.brief else LASTS)
    except (Unavailable, OSError) as problem:
        report.failed["overload"] = str(problem)
    for engine in ("uvicorn", "hypercorn"):
        try:
            crowds.measure(report, engine, options)
        except (Unavailable, OSError) as problem:
            report.failed[f"crowds, engine {engine}"] = str(problem)
    return report


def burst(report: Report, server: Server, seconds: float) -> None:
    """Full speed, then ten times as much for so long, then full speed again."""
    pace(server, 1.0)
    alone, before = pace(server, 2.0), server.pss()
    full = len(alone) / 2.0
    with Watch(server, every=max(1.0, seconds / 12)) as watch:
        offered = openloop.offer(server.url, server.path, TIMES * full, seconds)
    after = pace(server, WATCHED)
    time.sleep(0.5)
    grown = server.pss() - before
    accepted, refused = offered.of(OK), offered.of(REFUSED)
    if not accepted or not refused:
        raise Unavailable(f"of {len(offered.answers):,} calls, {len(accepted):,} answered, {len(refused):,} refused")
    again = recovered(after, full)
    report.series = timeline(alone, offered, after)
    other = len(offered.answers) - len(accepted) - len(refused)
    tell(report, full, offered, seconds)
    rows(report, [("memory after it, more than before", grown, "MiB", f"{before:.1f} MiB; {watch.peak:.1f} at most"),
                  ("full speed again after", again, "s", "")])  # fmt: skip
    served = len(accepted) / seconds / full
    report.checks += [
        Check("accepted under 10 x overload, p99", percentile(accepted, 0.99), "ms", 2 * BOUND, 1.5 * BOUND),
        Check("refused under 10 x overload, p99", percentile(refused, 0.99), "ms", 50, 10),
        Check("served under 10 x overload / at full speed", served, "x", 0.8, 0.95, at_most=False),
        Check("neither answered nor refused", other, "", 0, 0),
        Check("memory after the overload, more than before", grown, "MiB", 10, 2),
        Check("full speed again after", again, "s", 1, 0.2),
    ]


def tell(report: Report, full: float, offered: Offered, seconds: float) -> None:
    accepted, refused = offered.of(OK), offered.of(REFUSED)
    share = len(refused) / len(offered.answers)
    rows(
        report,
        [
            ("full speed: two workers, 5 ms a call", full, "calls/s", ""),
            (f"offered for {seconds:g} s", offered.rate, "calls/s", f"{offered.rate / full:.0f} x full speed"),
            ("accepted meanwhile", len(accepted) / seconds, "calls/s", f"{len(accepted) / seconds / full:.2f} x"),
            ("accepted: p50", percentile(accepted, 0.5), "ms", f"a full queue takes {BOUND:.0f} ms"),
            ("accepted: p99", percentile(accepted, 0.99), "ms", ""),
            ("accepted: slowest", percentile(accepted, 1), "ms", ""),
            ("refused with 429", len(refused) / seconds, "calls/s", f"{share:.0%} of all"),
            ("refused: p50", percentile(refused, 0.5), "ms", ""),
            ("refused: p99", percentile(refused, 0.99), "ms", ""),
        ],
    )


def rows(report: Report, found: list[tuple[str, float, str, str]]) -> None:
    for what, figure, unit, against in found:
        shown = f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"
        report.rows.append([what, "uvicorn", shown, unit, against])


def pace(server: Server, seconds: float) -> list[Answer]:
    """Calls on as many connections as there are workers, one after the other: full speed, and nothing waits."""
    answers: list[Answer] = []
    began = time.perf_counter()

    def call() -> None:
        client = Client(server.url)
        while (due := time.perf_counter() - began) < seconds:
            status, _ = client.call(server.path)
            answers.append(Answer(due, (time.perf_counter() - began - due) * 1000, status))
        client.close()

    threads = [threading.Thread(target=call) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def recovered(after: list[Answer], full: float) -> float:
    """Seconds until the end of the first window in which calls are answered at full speed, or nearly."""
    for number in range(int(WATCHED / WINDOW)):
        begin, end = number * WINDOW, (number + 1) * WINDOW
        good = sum(begin <= each.due + each.ms / 1000 < end for each in after if each.status == OK)
        if good >= 0.9 * full * WINDOW:
            return round(end, 3)
    raise Unavailable(f"not at full speed within {WATCHED:g} s of the end of the overload")


def timeline(alone: list[Answer], offered: Offered, after: list[Answer]) -> dict[str, list[list[float]]]:
    """By time since the overload began: answers a second and p99 in ms, of what was accepted and what refused."""
    length = max(0.5, offered.seconds / 60)
    moved = [(each.due - 2.0, each) for each in alone]
    moved += [(each.due, each) for each in offered.answers]
    moved += [(each.due + offered.seconds, each) for each in after]
    found: dict[str, list[list[float]]] = {"accepted": [], "refused": [], "overload": [[0.0, offered.seconds]]}
    edges = [-2.0 + length * number for number in range(int((offered.seconds + 2.0 + WATCHED) / length) + 1)]
    for begin, end in pairwise(edges):
        for name, status in (("accepted", OK), ("refused", REFUSED)):
            here = [each for due, each in moved if begin <= due < end and each.status == status]
            if here:
                found[name].append([begin + length / 2, len(here) / length, percentile(here, 0.99)])
    return found


class Watch:
    """Reads the memory of the whole tree now and then, seldom enough not to show in a p99; a context manager."""

    def __init__(self, server: Server, every: float):
        self.server, self.every, self.readings = server, every, [server.pss()]
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.read)

    def read(self) -> None:
        while not self.ended.wait(self.every):
            self.readings.append(self.server.pss())

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    @property
    def peak(self) -> float:
        return max(self.readings)
