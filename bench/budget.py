"""Where the microseconds of a call go: the host sampled by py-spy under load, for each of our engines.

A sample counts for the innermost function that `PARTS` knows; its share of the samples, times the CPU time that the
host uses for a call where it shares a core with its worker, is what that part costs. While it is sampled it has a core
to itself: else it would be seen waiting for its turn. What the core did besides is mostly to switch between the two.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import load
from bench.client import APPS
from bench.report import Options, Report
from bench.servers import LOAD_CORE, SERVER_CORE, Server, Unavailable, spaces, write_root

NEEDS: list[str] = []
RATE = 500  # samples a second
FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^():]*)(:\d+)?\)")
PARTS = {
    "loop, waiting": r"epoll_pwait|select",
    "HTTP in": r"(Express|HttpTools|H11)Protocol\.|plain_request|Connection\._|TCPServer\.|StreamReader\w*\.|"
    r"\w*uv_stream_on_read|uv__read",
    "address and headers": r"Express\.(begin|_address)|read_headers|check_\w+|Registry\.|Functions\.|CallIds\.",
    "authorisation": r"Express\._admits|Authority\.",
    "placing": r"Pools?\.(lease|_place|_serve_waiting)|Exchange\.__init__|Host\.invoke|Deadlines\.add",
    "frame out": r"Worker\.start|Channel\.start|CallQueue\.push|call_frame",
    "frame in": r"Channel\._|Reader\.feed|parse_result|Exchange\.(answered|_wake)",
    "metrics and release": r"(Pool|Worker)\.(released|_count|_has_room)|FunctionStats\.|Pace\.|Deadlines\.remove",
    "response": r"Express\.answer|Passage\.|StreamWriter\.|plain_head|date_header",
}  # fmt: skip


def run(options: Options) -> Report:
    report = Report(
        "budget",
        "Where the microseconds go",
        ["part", "uvicorn, us", "hypercorn, us"],
        note="CPU time for each call, both processes on one core. `loop, waiting`: the event loop's own turns, with "
        "what it takes the kernel to say which sockets are ready. `between them`: time of the core that neither "
        "process used.",
    )
    if not spy().exists():
        report.failed["py-spy"] = "not installed: make bench installs it"
        return report
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {"add": (APPS / "plain.py").read_text()})
        seen = {}
        for engine in ("uvicorn", "hypercorn"):
            with functools.partial(spaces, root, engine=engine)() as server:
                seen[engine] = measure(server, options.seconds)
            print(f"  {engine:<12} {sum(seen[engine].values()):.1f} us a call", flush=True)
    parts = list(dict.fromkeys(part for costs in seen.values() for part in costs))
    report.rows = [[part, *(f"{seen[engine].get(part, 0):.1f}" for engine in seen)] for part in parts]
    report.rows.append(["in all", *(f"{sum(costs.values()):.1f}" for costs in seen.values())])
    return report


def measure(server: Server, seconds: float) -> dict[str, float]:
    """Microseconds for each call, by part."""
    load.check(server)
    load.run(server, load.WARM_UP)
    host, worker = server_pid(server), busiest(server, seconds=1)
    before = {pid: cpu_seconds(pid) for pid in (host, worker)}
    calm = load.run(server, seconds)
    spent = {pid: (cpu_seconds(pid) - before[pid]) / calm.requests * 1e6 for pid in before}
    with alone(host):
        found = sampled(server, host, seconds)
    costs = {f"host: {part}": share * spent[host] for part, share in found.items()}
    costs["worker"] = spent[worker]
    costs["between them"] = max(0.0, 1e6 / calm.rate - sum(spent.values()))
    return costs


def server_pid(server: Server) -> int:
    """The host's process: taskset has become it."""
    return int(server.process.pid)


def busiest(server: Server, seconds: float) -> int:
    """The worker that runs the calls."""
    before = {pid: cpu_seconds(pid) for pid in server.tree()}
    load.run(server, seconds)
    used = {pid: cpu_seconds(pid) - before.get(pid, 0) for pid in server.tree() if pid != server_pid(server)}
    return max(used, key=used.__getitem__)


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextlib.contextmanager
def alone(pid: int) -> Iterator[None]:
    """Within this scope the process, with all of its threads, has a core that nobody else here uses."""
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        os.sched_setaffinity(thread, {LOAD_CORE})
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, {SERVER_CORE})


def spy() -> Path:
    return Path(sys.executable).with_name("py-spy")


def sampled(server: Server, pid: int, seconds: float) -> dict[str, float]:
    """Shares of the samples of a process's main thread under load."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples"
        background = threading.Thread(target=load.run, args=(server, seconds + 2), kwargs={"core": SERVER_CORE})
        background.start()
        command = [
            "taskset",
            "-c",
            SERVER_CORE,
            spy(),
            "record",
            "-p",
            pid,
            "-d",
            max(1, int(seconds)),
            "-r",
            RATE,
            "--native",
            "-f",
            "raw",
            "-o",
            file,
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        background.join()
        if done.returncode or not file.exists():
            raise Unavailable(f"py-spy: {done.stderr.strip()[-300:]}")
        return shares(file.read_text().splitlines())


def shares(samples: Iterable[str]) -> dict[str, float]:
    """Which part of the samples each part has. A line is a stack, outermost first, and how often it was seen."""
    patterns = {part: re.compile(pattern) for part, pattern in PARTS.items()}
    found: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    for line in samples:
        stack, _, count = line.rpartition(" ")
        frames = [match["function"] if (match := FRAME.fullmatch(frame)) else frame for frame in stack.split(";")]
        if any(frame.startswith("Thread._bootstrap") for frame in frames):
            continue  # of another thread
        found[part_of(frames, patterns)] += int(count)
    total = sum(found.values())
    return {part: count / total for part, count in found.items() if total}


def part_of(frames: list[str], patterns: dict[str, re.Pattern[str]]) -> str:
    for frame in reversed(frames):
        for part, pattern in patterns.items():
            if pattern.match(frame):
                return part
    return "other"
