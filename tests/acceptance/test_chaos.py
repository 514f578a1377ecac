"""A host killed with SIGKILL at random moments under load: every 202 ends in one outcome, which arrives.

KILLS (default 4) is how often; `make chaos` makes it 20.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import Running, Site, eventually

KILLS = int(os.environ.get("KILLS", "4"))
CLIENTS = 4
FINAL = {"succeeded", "failed", "cancelled"}
PATIENCE = 120.0  # seconds for the last callback: those that failed wait for their next attempt

HANDLER = """
    import os, random, time

    def handle(data, function_call_info):
        with open(os.environ["RUNS"] + "/" + {name!r}, "a") as runs:
            runs.write(f"{{function_call_info.call_id}}\\n")
        time.sleep(random.choice((0, 0, 0, 0.002, 0.05)))
        if random.random() < 0.1:
            raise ValueError("bad luck")
        return data
"""


class Receiver:
    """Takes callbacks, and answers every third of them, by chance, with an error or not at all."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[str, bytes]]] = defaultdict(list)  # label → (status, body) of what was taken
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                luck = random.random()
                if luck < 0.1 or len(body) < int(self.headers["Content-Length"]):  # the host was killed while it sent
                    self.close_connection = True
                    return
                if luck >= 0.3:
                    receiver.seen[self.headers["X-Call-Id"]].append((self.headers["X-Function-Status"], body))
                self.send_response(503 if luck < 0.3 else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/callback?secret=1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Load:
    """Clients that submit calls to whichever host there is, and keep what was answered 202."""

    def __init__(self, callback: str) -> None:
        self.accepted: dict[str, str] = {}  # label → function
        self.url = ""
        self._callback = callback
        self._over = threading.Event()

    def client(self, number: int) -> None:
        chance = random.Random(number)
        with httpx2.Client(timeout=5, trust_env=False) as http:
            while not self._over.is_set():
                self._submit(http, chance.choice(("once", "again", "streamed")))
                time.sleep(0.002)

    def end(self) -> None:
        self._over.set()

    def _submit(self, http: httpx2.Client, name: str) -> None:
        try:
            answer = http.post(
                f"{self.url}/spaces/chaos/functions/{name}/async-invoke/some/path?a=b",
                json={"number": len(self.accepted)},
                headers={"X-Callback-Url": self._callback},
            )
        except httpx2.TransportError:
            return
        assert answer.status_code in (202, 503), answer.text
        if answer.status_code == 202:
            self.accepted[answer.headers["X-Call-Id"]] = name


@pytest.fixture
def chaos(site: Site) -> Site:
    """Three functions: one runs at most once, one may run again, one answers in pieces."""
    runs = site.root / "runs"
    runs.mkdir()
    site.write(
        "spaces.toml",
        f"""
        [defaults]
        max_workers = 4
        callback_attempts = 50
        callback_max_wait = "2s"
        env = {{ RUNS = "{runs}" }}
        [spaces.chaos.functions.again]
        idempotent = true
        """,
    )
    for name in ("once", "again", "streamed"):
        site.write(f"chaos/{name}.py", HANDLER.format(name=name))
    streamed = site.root / "functions/chaos/streamed.py"
    streamed.write_text(streamed.read_text().replace("return data", "yield 'some'\n    yield 'thing'"))
    return site


def runs_of(site: Site, name: str) -> Counter[str]:
    """How often each call was run."""
    file = site.root / "runs" / name
    return Counter(file.read_text().split()) if file.exists() else Counter()


def killed(site: Site, load: Load, host: Running) -> Running:
    """SIGKILL after a random while in which some calls were accepted; another host on the same root."""
    enough = len(load.accepted) + random.randrange(5, 150)
    eventually(lambda: len(load.accepted) >= enough, "some accepted calls")
    host.stop(signal.SIGKILL)
    after = site.start(engine="uvicorn")
    load.url = after.url
    return after


def entry_of(host: Running, label: str, name: str) -> dict[str, Any]:
    """What is known of a call."""
    answer = host.client.get(f"/spaces/chaos/functions/{name}/calls/{label}")
    assert answer.status_code == 200, (label, answer.text)
    entry: dict[str, Any] = answer.json()
    return entry


@pytest.mark.timeout(60 * 60 if KILLS > 10 else 300)
def test_what_was_accepted_is_run_and_delivered_whatever_happens_to_the_host(chaos: Site) -> None:
    """Exactly one outcome each, delivered at least once and always the same; at most one run where that is promised."""
    receiver = Receiver()
    load = Load(receiver.url)
    host = chaos.start(engine="uvicorn")
    load.url = host.url
    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            ends = [clients.submit(load.client, number) for number in range(CLIENTS)]
            try:
                for _ in range(KILLS):
                    host = killed(chaos, load, host)
            finally:
                load.end()
            for end in ends:
                end.result()
        check(chaos, host, load, receiver)
    finally:
        receiver.close()


def check(site: Site, host: Running, load: Load, receiver: Receiver) -> None:
    """What the guarantees say of every call that was answered 202."""
    entries = {}
    missing = dict(load.accepted)

    def settle() -> bool:
        for label, name in list(missing.items()):
            entry = entry_of(host, label, name)
            if entry["status"] in FINAL and entry["callback"]["state"] not in ("waiting", "pending"):
                entries[label] = entry
                del missing[label]
        return not missing

    eventually(settle, "an outcome, and the end of its delivery, for every call", PATIENCE)
    assert len(load.accepted) >= 5 * KILLS
    for label, entry in entries.items():
        assert entry["callback"]["state"] == "delivered", entry
        assert receiver.seen[label], entry
        assert len(set(receiver.seen[label])) == 1, (entry, receiver.seen[label])
        assert receiver.seen[label][0][0] == str(entry["result"]["status"])
    for name in ("once", "streamed"):
        assert not [id for id, count in runs_of(site, name).items() if count > 1], f"{name} ran twice"
    for label, name in load.accepted.items():
        interrupted = entries[label]["result"]["error"] == "interrupted"
        assert interrupted or runs_of(site, name)[label], f"{label} has an outcome and never ran"
