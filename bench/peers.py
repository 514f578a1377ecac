"""The peers: each in an environment of its own below bench/.peers, started as its documentation says.

`PEERS` maps a peer's name to how it is started; `install` makes the environments that the chosen peers need.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from bench.client import APPS
from bench.servers import Server, Unavailable, free_port

HOME = Path(__file__).parent / ".peers"
TREE = Path(__file__).parent.parent


def ours(*names: str) -> list[str]:
    """Requirements at the versions that we run with ourselves, so that a ratio does not compare releases."""
    return [f"{name}=={version}" for name in names if (version := version_here(name))]


def version_here(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environments() -> dict[str, list[str]]:
    """What is installed into each Python environment."""
    fast = ["uvloop", "httptools"]
    return {
        # With watchdog 7.1 its `--debug` never reloads: the watcher floods its own event queue.
        "functions-framework": ["functions-framework>=3.10", "watchdog<7"],
        "functions-framework-fast": ["functions-framework>=3.10", *fast],
        "knative": ["func-python==0.8.1"],
        "bare": [
            *ours("hypercorn", "h11", "uvicorn", "uvloop", "httptools"),
            "hypercorn",
            "uvicorn",
            *fast,
            "watchfiles",
        ],
        # What we need ourselves is named as well, so that the environment is renewed when it changes.
        "science": ["-e", f"{TREE}[fast]", *needed_here(), "numpy", "pandas", "scikit-learn"],
    }


def needed_here() -> list[str]:
    """The dependencies that our own pyproject.toml names."""
    return tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["dependencies"]


@dataclass(frozen=True)
class Peer:
    """One way of serving; `{bin}`, `{apps}`, `{port}` and `{workerd}` are filled in when it starts."""

    environment: str
    package: str
    command: str
    runs_in: str = "the server"
    env: dict[str, str] = field(default_factory=dict)

    def start(self, apps: Path = APPS, *flags: str, **env: str) -> Server:
        """This peer as a server on a free port; `apps` is the folder with its code."""
        port = free_port()
        known = {"bin": HOME / self.environment / "bin", "apps": apps, "port": port, "workerd": workerd()}
        command = [*(word.format(**known) for word in self.command.split()), *flags]
        filled = {key: value.format(**known) for key, value in {**self.env, **env}.items()}
        return Server(command, port=port, cwd=apps, env={"PYTHONDONTWRITEBYTECODE": "1", **filled})


FRAMEWORK = "{bin}/functions-framework --target handle --host 127.0.0.1 --port {port} --source {apps}/"
UVICORN = "{bin}/uvicorn --port {port} --loop uvloop --http httptools --no-access-log --log-level warning asgi:app"
HYPERCORN = "{bin}/hypercorn --bind 127.0.0.1:{port} asgi:app --worker-class "
WORKERD = "{workerd} serve {apps}/workerd.capnp --socket-addr http=127.0.0.1:{port}"
KNATIVE = {"LISTEN_ADDRESS": "127.0.0.1:{port}"}
SYNC, ASYNC = FRAMEWORK + "flask_function.py", FRAMEWORK + "async_function.py --asgi"
FRAME = "functions-framework"
PEERS = {
    "bare ASGI, uvicorn (httptools, uvloop)": Peer("bare", "uvicorn", UVICORN),
    "bare ASGI, hypercorn (asyncio)": Peer("bare", "hypercorn", HYPERCORN + "asyncio"),
    "bare ASGI, hypercorn (uvloop)": Peer("bare", "hypercorn", HYPERCORN + "uvloop"),
    "workerd, JavaScript": Peer("workerd", "workerd", WORKERD, "a V8 isolate"),
    "functions-framework, sync": Peer(FRAME, FRAME, SYNC),
    "functions-framework, async": Peer(FRAME, FRAME, ASYNC),
    "functions-framework, async (+ httptools, uvloop)": Peer(FRAME + "-fast", FRAME, ASYNC),
    "Knative func-python": Peer("knative", "func-python", "{bin}/python {apps}/knative.py", env=KNATIVE),
}


def workerd() -> Path:
    """The program in the npm package for this platform (the package's own command starts it through node)."""
    found = sorted((HOME / "workerd").glob("node_modules/@cloudflare/workerd-*/bin/workerd"))
    return found[0] if found else HOME / "workerd" / "bin" / "workerd"


def install(*names: str) -> None:
    """Makes the named environments where they are missing or asked for something else; tells what it does."""
    for name in names:
        wanted = ["workerd"] if name == "workerd" else environments()[name]
        marker = HOME / name / "installed.json"
        if marker.exists() and json.loads(marker.read_text()) == wanted:
            continue
        print(f"installing {name}: {' '.join(wanted)}", flush=True)
        make(name, wanted)
        marker.write_text(json.dumps(wanted))


def make(name: str, wanted: list[str]) -> None:
    folder = HOME / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "workerd":
        if not shutil.which("npm"):
            raise Unavailable("npm is not installed: it brings workerd")
        command = [
            "npm",
            "install",
            "--prefix",
            folder,
            "--no-save",
            "--ignore-scripts",
            "--loglevel",
            "error",
        ]
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet"]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{name} could not be installed: {done.stderr.strip()[-600:]}")


def version(peer: Peer) -> str:
    """The release of a peer that is installed, for the record."""
    if peer.package == "workerd":
        manifest = HOME / "workerd" / "node_modules" / "workerd" / "package.json"
        return json.loads(manifest.read_text())["version"] if manifest.exists() else "?"
    pattern = f"lib/python*/site-packages/{peer.package.replace('-', '_')}-*.dist-info"
    found = sorted((HOME / peer.environment).glob(pattern))
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else "?"
