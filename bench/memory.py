"""Own memory of a warm worker: (PSS of the whole process tree with N workers - with 1) / (N - 1).

N workers are had by N calls that sleep at the same time. Beside it, by the same sum: a gunicorn worker of
functions-framework. PSS counts a page that n processes share as 1/n in each, so a tree's sum counts it once.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from bench import load
from bench.client import APPS, Client
from bench.peers import HOME, PEERS
from bench.report import Check, Options, Report
from bench.servers import Server, Unavailable, spaces, write_root

NEEDS = ("science", "functions-framework")
WORKERS = 8
BESIDE = 4  # processes of ours: the host, two zygotes, and the spare that one of them forks ahead
PATIENCE = 30.0
SLOW = """

def handle(data, _handle=handle):
    import time

    time.sleep(data.get("sleep", 0))
    return _handle(data)
"""
SLEEP = b'{"a":1234567,"b":87654321,"sleep":0.5}'


def run(options: Options) -> Report:
    columns = ["server", "handler", "1 worker MiB", f"{WORKERS} workers MiB", "each further worker MiB"]
    report = Report("memory", "Memory", columns)
    for name, floor, aim in (("plain", 2, 1), ("science", 6, 4)):
        try:
            one, many = ours(name)
        except (Unavailable, OSError) as problem:
            report.failed[f"spaces, {name}"] = str(problem)
            continue
        report.rows.append(row("spaces", name, one, many))
        report.checks.append(Check(f"a warm worker, {name}", each(one, many), "MiB", floor, aim))
    for mode in ("sync", "async"):
        one, many = framework(mode, 1), framework(mode, WORKERS)
        report.rows.append(row(f"functions-framework, {mode}", "plain", one, many))
    report.note = "PSS of a server with all its processes; a worker of functions-framework is a gunicorn worker."
    return report


def ours(name: str) -> tuple[float, float]:
    """Total MiB with one worker and with all of them, warm."""
    source = (APPS / f"{name}.py").read_text() + SLOW
    with tempfile.TemporaryDirectory() as folder:
        root = write_root(Path(folder), {"add": source}, {"max_workers": WORKERS, "idle_timeout": "60s"})
        with spaces(root, venv=HOME / "science") as server:
            clients = [Client(server.url) for _ in range(WORKERS)]
            for client in clients:
                client.get("/spaces")
            for _ in range(20):
                clients[0].call(server.path)
            one = settled(server, clients[0], 1)
            for _ in range(3):
                at_once(clients, server.path)
            return one, settled(server, clients[0], WORKERS)


def settled(server: Server, client: Client, expected: int) -> float:
    workers = client.get(server.path.removesuffix("/invoke"))["workers"]
    if workers != expected:
        raise Unavailable(f"{workers} workers where {expected} were expected")
    deadline = time.monotonic() + PATIENCE
    while len(server.tree()) != BESIDE + expected:
        if time.monotonic() > deadline:
            raise Unavailable(f"{len(server.tree())} processes where {BESIDE + expected} were expected")
        time.sleep(0.02)
    time.sleep(0.2)  # the newest one may still be at its first steps
    return server.pss()


def at_once(clients: list[Client], path: str) -> None:
    """One sleeping call on each connection, all at the same time; Unavailable when one fails."""
    wrong: list[str] = []

    def call(client: Client) -> None:
        status, answer = client.call(path, SLEEP)
        if status != 200:
            wrong.append(f"{status} {answer[:200]!r}")

    threads = [threading.Thread(target=call, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise Unavailable(f"a sleeping call failed: {wrong[0]}")


def framework(mode: str, workers: int) -> float:
    """Total MiB of functions-framework with so many gunicorn workers, after a second of load."""
    with PEERS[f"functions-framework, {mode}"].start(WORKERS=str(workers)) as server:
        while len(server.tree()) < workers + 1:
            time.sleep(0.1)
        time.sleep(1)
        load.run(server, 1)
        return server.pss()


def each(one: float, many: float) -> float:
    return (many - one) / (WORKERS - 1)


def row(server: str, handler: str, one: float, many: float) -> list[str]:
    return [server, handler, f"{one:.1f}", f"{many:.1f}", f"{each(one, many):.2f}"]
