"""The real command as a subprocess, on a root of its own, with real clients."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

PATIENCE = 20.0  # seconds: far more than anything here takes, also on a loaded machine
URL = re.compile(r"https?://[^\s\"]+:\d+")


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until `condition` gives something true, and return it."""
    give_up = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {patience:g} s: {what}")
        time.sleep(0.01)


class Running:
    """A host that serves a root: its address, its log, its process, a client."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self.process = process
        self.root = root
        self.lines: list[str] = []
        self._listening: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        url = self._listening.get(timeout=PATIENCE)
        assert url, f"it did not start:\n{self.log}"
        self.url = url
        self.client = httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if "listening on" in line and (found := URL.search(line)):
                self._listening.put(found[0])
        self._listening.put(None)

    @property
    def log(self) -> str:
        """Everything it has written to stderr."""
        return "\n".join(self.lines)

    def logged(self, text: str) -> str:
        """Wait for a log line that contains `text`, and return it."""
        found: str = eventually(
            lambda: next((line for line in self.lines if text in line), None), f"{text!r} in the log:\n{self.log}"
        )
        return found

    def path(self, function: str, rest: str = "") -> str:
        """The address of a function: `space/name`, and what follows."""
        space, name = function.split("/")
        return f"/spaces/{space}/functions/{name}/invoke{rest}"

    def call(self, function: str, rest: str = "", method: str = "GET", **arguments: Any) -> httpx2.Response:
        """One call."""
        return self.client.request(method, self.path(function, rest), **arguments)

    def status(self, function: str) -> dict[str, Any]:
        """What GET /spaces/{space}/functions/{name} says."""
        space, name = function.split("/")
        answer = self.client.get(f"/spaces/{space}/functions/{name}")
        assert answer.status_code == 200, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def descendants(self) -> set[int]:
        """The pids of every process below the host, now."""
        return descendants(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=PATIENCE)
        self._reader.join(timeout=PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def descendants(pid: int) -> set[int]:
    """The pids of every process below this one that is not a zombie."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Site:
    """A root to be served: its files, and hosts on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: list[Running] = []
        (root / "functions").mkdir()

    def write(self, path: str, text: str) -> Path:
        """Write a file below the root, `functions/` for short for what is in a space; indentation is removed."""
        target = self.root / (path if path == "spaces.toml" else f"functions/{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
        return target

    def start(
        self, command: str = "serve", *options: str, engine: str | None = None, env: dict[str, str] | None = None
    ) -> Running:
        """`spaces COMMAND` on this root and a free port; it is stopped after the test."""
        chosen = ("--engine", engine) if engine else ()
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", command, str(self.root), "--bind", "127.0.0.1:0", *chosen, *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        return self.adopt(Running(process, self.root))

    def adopt(self, running: Running) -> Running:
        """A host on this root that was started in another way; it is stopped after the test, too."""
        self._running.append(running)
        return running

    def stop(self) -> None:
        """Stop every host that the test started and did not stop."""
        for running in self._running:
            if running.process.poll() is None or not running.process.stderr.closed:  # type: ignore[union-attr]
                running.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An empty root; its hosts are stopped after the test."""
    root = tmp_path / "root"
    root.mkdir()
    site = Site(root)
    yield site
    site.stop()


@pytest.fixture(params=["hypercorn", "uvicorn"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    name: str = request.param
    return name


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error envelope of an answer."""
    error: dict[str, Any] = json.loads(answer.content)["error"]
    return error


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A root that all tests of a module share, for what they do not change; its hosts are stopped after them."""
    root = tmp_path_factory.mktemp("shared") / "root"
    root.mkdir()
    site = Site(root)
    yield site
    site.stop()


@pytest.fixture(scope="module", params=["hypercorn", "uvicorn"])
def each_engine(request: pytest.FixtureRequest, shared_site: Site) -> Iterator[str]:
    """Each engine in turn, for a host that all tests of a module share and that ends before the next one begins.

    Two hosts on one state folder would share its journal, and run each other's calls.
    """
    name: str = request.param
    yield name
    shared_site.stop()
