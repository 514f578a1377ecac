"""A server under measurement: started on its own core, watched for memory, stopped with all its children.

Every bench starts its servers here, ours (`spaces`) and the peers' alike, and pins them alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER_CORE, LOAD_CORE = 0, 1
ANNOUNCED = re.compile(rb"http://127\.0\.0\.1:(\d+)")


class Unavailable(Exception):
    """This server cannot be measured here; the text says why."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A context manager: inside it, the server listens at `.url` and its call path is `.path`.

    With no `port` given, the server is expected to print its address, as `spaces serve` does.
    """

    def __init__(self, command, *, path="/", port=None, cwd=None, env=None):
        self.command, self.path, self.port = [str(word) for word in command], path, port
        self.cwd, self.env = cwd, {**os.environ, **(env or {})}

    def __enter__(self) -> Server:
        if not shutil.which("taskset"):
            raise Unavailable("taskset is not installed (package util-linux)")
        if not Path(self.command[0]).exists():
            raise Unavailable(f"{self.command[0]} does not exist")
        self.log = tempfile.TemporaryFile()
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *self.command],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=self.cwd,
            env=self.env,
            start_new_session=True,
        )
        try:
            self.wait_listening()
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_listening = time.perf_counter() - self.started
        return self

    def wait_listening(self, timeout: float = 60) -> None:
        while time.perf_counter() < self.started + timeout:
            if self.process.poll() is not None:
                raise Unavailable(f"ended with status {self.process.returncode}: {self.last_words()}")
            if self.port is None and (found := ANNOUNCED.search(self.output())):
                self.port = int(found[1])
            if self.port is not None and self.accepts():
                self.url = f"http://127.0.0.1:{self.port}"
                return
            time.sleep(0.002)
        raise Unavailable(f"not listening after {timeout} s: {self.last_words()}")

    def accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def output(self) -> bytes:
        return os.pread(self.log.fileno(), 1 << 20, 0)

    def last_words(self) -> str:
        return " / ".join(self.output().decode(errors="replace").split("\n")[-3:]).strip(" /")[-400:]

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            print(f"  ! did not end within 15 s of SIGTERM: {self.command[0]}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: nobody else's processes
        self.process.wait()
        self.log.close()

    def tree(self) -> list[int]:
        """The server's process and everything that descends from it or lives in its session."""
        parent, session = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parent[int(stat.parent.name)], session[int(stat.parent.name)] = int(fields[1]), int(fields[3])
        found = {pid for pid in session if session[pid] == self.process.pid}
        while more := {pid for pid in parent if parent[pid] in found} - found:
            found |= more
        return sorted(found)

    def pss(self) -> float:
        """MiB of memory of the whole tree, each shared page counted once."""
        return sum(field(pid, "smaps_rollup", "Pss") for pid in self.tree()) / 1024

    def rss(self) -> float:
        """MiB resident in the server's first process alone."""
        return field(self.process.pid, "status", "VmRSS") / 1024

    def open_files(self) -> int:
        """How many files and sockets the server's first process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def field(pid: int, file: str, name: str) -> int:
    """The kB of one line of a /proc file; 0 when the process has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    return 0


def spaces(root: Path, *, engine: str = "uvicorn", venv: Path | None = None, function: str = "add") -> Server:
    """Our own host over a folder, as its users start it."""
    command = Path(venv or sys.prefix) / "bin" / "spaces"
    arguments = ["serve", root, "--bind", "127.0.0.1:0", "--engine", engine]
    return Server([command, *arguments], path=f"/spaces/bench/functions/{function}/invoke", cwd=root)


def write_root(
    root: Path,
    functions: dict[str, str],
    settings: dict[str, object] | None = None,
    server: dict[str, object] | None = None,
) -> Path:
    """A folder that `spaces` can serve: functions by name in the space `bench`, settings as the defaults."""
    folder = root / "functions" / "bench"
    folder.mkdir(parents=True)
    for name, source in functions.items():
        (folder / f"{name}.py").write_text(source)
    return configure(root, {"server": server or {}, "defaults": settings or {}})


def configure(root: Path, tables: dict[str, dict[str, object]]) -> Path:
    """Writes spaces.toml with these tables; the same folder."""
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in values.items())]
    (root / "spaces.toml").write_text("".join(lines))
    return root
