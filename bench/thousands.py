"""What is done with a folder of many functions: edited, listed, called at random. Used by `many`."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bench import load
from bench.client import APPS, BODY, Client
from bench.poller import PATIENCE, Poller
from bench.reload import at_version, save
from bench.servers import Server, Unavailable

BENCH, HELPER = "bench", "shared.py"
SOURCE = """import shared


def handle(data):
    return {{"sum": shared.VERSION + data["b"]}}


NUMBER = {number}
"""
CALLED = 1_000  # functions at most, when they are called at random
LISTED = 20
SETTLES = 0.5  # seconds between two edits
NONE = float("nan")


@dataclass(frozen=True)
class Seen:
    """The figures of one folder; nan where there is nothing to measure."""

    reload: float = NONE
    helper: float = NONE
    helper_all: float = NONE
    listing: float = NONE
    called: int = 0
    random_rate: float = NONE
    failed: int = 0
    processes: int = 0
    metrics: float = NONE
    label_sets: int = 0

    def cells(self) -> list[str]:
        """As `many` shows them."""
        edits = [shown(each) for each in (self.reload, self.helper, self.helper_all)]
        listing = [shown(self.listing, 1)]
        if not self.called:
            return [*edits, *listing, "", "", "", "", "", ""]
        crowd = [f"{self.called:,}", shown(self.random_rate), str(self.failed), f"{self.processes:,}"]
        return [*edits, *listing, *crowd, shown(self.metrics, 1), f"{self.label_sets:,}"]


def shown(figure: float, digits: int = 0) -> str:
    return "" if figure != figure else f"{figure:,.{digits}f}"


def helper(version: int) -> str:
    return f"VERSION = {version}\n"


def address(space: str, name: str) -> str:
    return f"/spaces/{space}/functions/{name}/invoke"


def edited(server: Server, root: Path, edits: int) -> Seen:
    """One function is edited, then the helper of its space, again and again; then the space is listed."""
    load.check(server)
    folder, source = root / "functions" / BENCH, (APPS / "plain.py").read_text()
    save(folder / "add.py", at_version(0, source), in_place=True)
    wait_for_zero(server)
    poller, times = Poller(server), []
    for version in range(1, edits + 1):
        pause(poller)
        saved = time.perf_counter()
        save(folder / "add.py", at_version(version, source), in_place=bool(version % 2))
        times.append(poller.until(version, saved))
    save(folder / "add.py", source, in_place=True)
    first, last = edit_helper(server, folder, edits) if (folder / HELPER).exists() else (NONE, NONE)
    return Seen(statistics.median(times), first, last, listed(server, f"/spaces/{BENCH}/functions"))


def wait_for_zero(server: Server) -> None:
    """Until version 0 answers instead of the source as it was: a poller knows versions only."""
    deadline = time.monotonic() + PATIENCE
    while (poller := Poller(server)).poll():
        if time.monotonic() > deadline:
            raise Unavailable(f"the first edit is not served: {poller.failures}")
        poller.client.close()
        time.sleep(0.01)
    poller.client.close()


def pause(poller: Poller) -> None:
    """A moment of calls between two edits, of no fixed length."""
    end = time.perf_counter() + SETTLES * random.uniform(0.8, 1.2)
    while time.perf_counter() < end:
        poller.poll()


def edit_helper(server: Server, folder: Path, edits: int) -> tuple[float, float]:
    """Medians in ms until one function serves it, alone loaded, and until the last one does, when all are."""
    names = sorted(file.stem for file in folder.glob("function_*.py"))
    alone = polling(server, names[:1])
    one = [saved_helper(folder, version, alone) for version in range(1, edits + 1)]
    pollers = alone + polling(server, names[1:])
    every = [saved_helper(folder, version, pollers) for version in range(edits + 1, 2 * edits + 1)]
    for poller in pollers:
        poller.client.close()
    server.path = address(BENCH, "add")
    return statistics.median(one), statistics.median(every)


def polling(server: Server, names: list[str]) -> list[Poller]:
    """A poller for each of these functions, which are loaded by it."""
    pollers = []
    for name in names:
        server.path = address(BENCH, name)
        pollers.append(Poller(server))
        pollers[-1].poll()
        if pollers[-1].failures:
            raise Unavailable(f"{name}, which imports a helper, failed: {pollers[-1].failures[0]}")
    return pollers


def saved_helper(folder: Path, version: int, pollers: list[Poller]) -> float:
    """Milliseconds from saving the helper until the last of these functions serves it."""
    pause(pollers[0])
    saved = time.perf_counter()
    save(folder / HELPER, helper(version), in_place=bool(version % 2))
    return max(poller.until(version, saved) for poller in pollers)


def listed(server: Server, path: str) -> float:
    """The median in ms of a few GETs."""
    client, times = Client(server.url), []
    for _ in range(LISTED):
        started = time.perf_counter()
        status, body = client.call(path, b"", "GET")
        times.append((time.perf_counter() - started) * 1000)
        if status != 200:
            raise Unavailable(f"{path} was answered {status} {body[:200]!r}")
    client.close()
    return statistics.median(times)


def some(root: Path) -> list[str]:
    """The addresses of up to CALLED functions, of all spaces alike."""
    files = sorted((root / "functions").glob("*/function_*.py"))
    chosen = random.Random(1).sample(files, min(CALLED, len(files)))
    return [address(file.parent.name, file.stem) for file in chosen]


def call_each(server: Server, paths: list[str]) -> None:
    client = Client(server.url)
    for path in paths:
        status, answer = client.call(path, BODY)
        if status != 200:
            raise Unavailable(f"{path} was answered {status} {answer[:200]!r}")
    client.close()


def at_random(server: Server, root: Path, seen: Seen, seconds: float) -> Seen:
    """Calls of some of the functions at random, then what /metrics has to say of it."""
    paths = some(root)
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as file:
        file.write("\n".join(paths) + "\n")
        file.flush()
        load.run(server, load.WARM_UP, BENCH_PATHS=file.name)
        found = load.run(server, seconds, BENCH_PATHS=file.name)
    processes = len(server.tree())
    client = Client(server.url)
    _, body = client.call("/metrics", b"", "GET")
    client.close()
    label_sets = sum(b"{" in line for line in body.splitlines() if not line.startswith(b"#"))
    return replace(
        seen,
        called=len(paths),
        random_rate=found.rate,
        failed=found.errors,
        processes=processes,
        metrics=listed(server, "/metrics"),
        label_sets=label_sets,
    )
