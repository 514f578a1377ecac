"""`spaces serve --processes 2`: one host to whoever calls, and what becomes of it when one of its processes ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import trustme

from runtime.server import endings
from tests.acceptance.conftest import PATIENCE, Running, Site, alive, eventually
from tests.acceptance.hammer import Hammer
from tests.acceptance.members import Client, members, one_to_each, owner, replaced
from tests.acceptance.notes import noted, take_notes

WHO = "import os\ndef handle(data):\n    return os.getpid()\n"
TWICE = ("--processes", "2")


def start(site: Site, engine: str | None = None, **env: str) -> Running:
    """A host of two processes."""
    return site.start("serve", *TWICE, engine=engine, env=env)


def final(host: Running, label: str) -> bool:
    """Whether a submitted call is over."""
    return host.client.get(f"/calls/{label}").json()["status"] in {"succeeded", "failed", "cancelled"}


# What it is to whoever calls.


def test_both_processes_serve(site: Site, engine: str) -> None:
    """One line says where; connections go to both, and each answers calls and says what there is."""
    site.write("d/who.py", WHO)
    host = start(site, engine)

    with one_to_each(host) as clients:
        assert len(clients) == 2
        for client in clients.values():
            client.call("d/who")
            assert client.ask("GET", "/readyz") == (200, "ready\n")
            assert client.ask("GET", "/spaces/d/functions/who")[1]["name"] == "who"
    assert host.log.count("listening on") == 1
    assert host.stop() == 0


def test_one_worker_is_one_for_all(site: Site) -> None:
    """`max_workers = 1`: never two calls at once, whichever process they came by."""
    take_notes(site, "d", "max_workers = 1")
    site.write(
        "d/alone.py",
        """
        import os, time

        def handle(data):
            mark = os.environ["NOTES"] + "/inside"
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            time.sleep(0.005)
            os.unlink(mark)
            return "alone"
        """,
    )
    host = start(site)

    with one_to_each(host) as clients, ThreadPoolExecutor() as threads:
        both = threads.map(lambda client: [client.call("d/alone") for _ in range(40)], clients.values())
        answers = [answer for answers in both for answer in answers]
    assert answers == ["alone"] * 80


def test_a_function_is_imported_once(site: Site) -> None:
    """For both processes, and for one that comes in the place of another; its workers are each one's own."""
    imports = site.root / "imports"
    site.write("spaces.toml", f'[defaults]\nenv = {{ IMPORTS = "{imports}" }}')
    site.write(
        "d/who.py",
        """
        import os

        with open(os.environ["IMPORTS"], "a") as file:
            file.write("x")

        def handle(data):
            return [os.getpid(), os.getppid()]
        """,
    )
    host = start(site)

    with one_to_each(host) as clients:
        answers = [client.call("d/who") for client in clients.values()]
        victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)
    replaced(host, victim)
    with one_to_each(host) as clients:
        answers += [client.call("d/who") for client in clients.values()]
    assert imports.read_text() == "x"
    assert len({zygote for _, zygote in answers}) == 1
    assert len({worker for worker, _ in answers}) == 3


def test_a_submitted_call_is_run_once(site: Site) -> None:
    """By whichever process; each knows what became of it."""
    runs = site.root / "runs"
    site.write("spaces.toml", f'[defaults]\nmax_workers = 3\nenv = {{ RUNS = "{runs}" }}')
    site.write(
        "d/note.py",
        """
        import os

        def handle(data, function_call_info):
            with open(os.environ["RUNS"], "a") as file:
                file.write(f"{function_call_info.call_id}\\n")
        """,
    )
    host = start(site)

    with one_to_each(host) as clients:
        labels = [client.submit("d/note") for _ in range(30) for client in clients.values()]
        for client in clients.values():
            for label in labels:
                eventually(
                    lambda label=label, client=client: client.ask("GET", f"/calls/{label}")[1]["status"] == "succeeded",
                    f"the end of {label}",
                )
    assert Counter(runs.read_text().split()) == Counter(labels)


def test_an_edit_is_seen_by_both(site: Site) -> None:
    """And told of once."""
    site.write("d/who.py", "def handle(data):\n    return 1\n")
    host = start(site)

    with one_to_each(host) as clients:
        assert [client.call("d/who") for client in clients.values()] == [1, 1]
        site.write("d/who.py", "def handle(data):\n    return 2\n")
        site.write("d/new.py", "def handle(data):\n    return 3\n")
        for client in clients.values():
            eventually(lambda client=client: client.call("d/who") == 2, "the new version")
            eventually(lambda client=client: client.ask("GET", "/spaces/d/functions/new")[0] == 200, "the new function")
    host.stop()
    assert host.log.count("d/new added") == 1


def test_log_lines_are_whole(site: Site) -> None:
    """Also long ones that both processes write at once."""
    site.write("d/loud.py", "def handle(data):\n    for _ in range(20):\n        print('x' * 12_000)\n")
    host = start(site)

    with one_to_each(host) as clients, ThreadPoolExecutor() as threads:
        list(threads.map(lambda client: [client.call("d/loud") for _ in range(10)], clients.values()))
    host.stop()
    lines = [json.loads(line) for line in host.lines]
    assert sum(line["logger"] == "spaces.output" for line in lines) == 400


def test_what_is_revoked_with_one_is_refused_by_the_other(site: Site) -> None:
    """At once."""
    site.write("spaces.toml", '[spaces.d]\nclients = [{ id = "ci", secret = "env:SECRET" }]')
    site.write("d/who.py", WHO)
    host = start(site, SECRET="a-secret-of-the-test-suite")

    with one_to_each(host) as clients:
        one, other = clients.values()
        form = "grant_type=client_credentials&client_id=ci&client_secret=a-secret-of-the-test-suite"
        kind = "application/x-www-form-urlencoded"
        token = one.ask("POST", "/oauth2/token", form, Content_Type=kind)[1]["access_token"]
        bearer = f"Bearer {token}"
        assert other.ask("GET", host.path("d/who"), Authorization=bearer)[0] == 200
        assert one.ask("POST", "/oauth2/revoke", f"token={token}", Content_Type=kind)[0] == 200

        assert other.ask("GET", host.path("d/who"), Authorization=bearer)[0] == 401


def test_metrics_add_up(site: Site) -> None:
    """Either process tells what both have counted."""
    site.write("d/who.py", WHO)
    host = start(site)

    with one_to_each(host) as clients:
        for count, client in enumerate(clients.values(), 3):
            for _ in range(count):
                client.call("d/who")
        texts = [client.ask("GET", "/metrics")[1] for client in clients.values()]
    for text in texts:
        [line] = [line for line in text.splitlines() if line.startswith("spaces_calls_total") and '"who"' in line]
        assert float(line.split()[-1]) == 7


def test_a_created_function_answers_everywhere(site: Site) -> None:
    """As soon as it is created."""
    site.write("d/who.py", WHO)
    host = start(site)

    with one_to_each(host) as clients:
        one, other = clients.values()
        status, made = one.ask("POST", "/v1/functions", {"name": "Mood", "input": "Text", "output": "Classification"})
        assert status == 200, made
        assert other.ask("GET", f"/v1/functions/{made['id']}")[0] == 200
        assert other.ask("POST", f"/v1/functions/{made['id']}/labels", {"name": "good"})[0] == 200


def test_a_state_is_that_of_all(site: Site) -> None:
    """Either process says how many workers a function has with both, and how many calls run."""
    take_notes(site, "d", "")
    site.write("d/who.py", WHO)
    site.write(
        "d/slow.py",
        """
        import os, time
        from note import note

        def handle(function_call_info):
            note(function_call_info.path.strip("/"))
            while not os.path.exists(os.environ["NOTES"] + "/go"):
                time.sleep(0.01)
        """,
    )
    host = start(site)

    with one_to_each(host) as clients, one_to_each(host) as others, ThreadPoolExecutor() as threads:
        running = [threads.submit(client.call, "d/slow", f"/{member}") for member, client in clients.items()]
        for member in clients:
            noted(host, str(member))
        states = [client.state("d/slow") for client in others.values()]
        (site.root / "notes" / "go").touch()
        for call in running:
            call.result()
    for state in states:
        assert (state["state"], state["workers"], state["busy"]) == ("ready", 2, 2)


# What cannot be.


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("dev", "--processes", "2"), "always one process"),
        (("serve", "--processes", "0"), "must be 1 to"),
        (("serve", "--processes", "two"), "must be a whole number, not the string 'two'"),
    ],
)
def test_numbers_that_are_refused(site: Site, command: tuple[str, ...], message: str) -> None:
    """With a message, before anything is started."""
    ended = run(*command, str(site.root), "--bind", "127.0.0.1:0")

    assert ended.returncode == 2
    assert message in ended.stderr


def test_a_port_that_is_taken(site: Site) -> None:
    """By another host of several processes, with which it must not be shared."""
    site.write("d/who.py", WHO)
    host = start(site)

    ended = run("serve", str(site.root), "--bind", host.url.removeprefix("http://"), *TWICE)

    assert ended.returncode == 2
    assert "cannot listen on" in ended.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


# Ends.


class Load:
    """While in its scope: one client keeps its connection, one makes a new one for each call, one submits calls."""

    def __init__(self, host: Running, kept: Client) -> None:
        self.host, self.kept = host, kept
        self.reset: list[str] = []  # connections that were cut
        self.wrong: list[str] = []
        self.labels: list[str] = []
        self.counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments)
            for arguments in (("kept", self._on_kept), ("new", self._on_new), ("submitted", self._submit))
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, calls: int = 20) -> None:
        """Wait until each client has had so many more answers."""
        before = Counter(self.counts)
        eventually(
            lambda: (
                self.wrong or all(self.counts[name] >= before[name] + calls for name in ("kept", "new", "submitted"))
            ),
            f"more answers than {before}: {self.counts}, {self.reset}",
        )
        assert not self.wrong, self.wrong

    def _repeat(self, name: str, work: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                work()
                self.counts[name] += 1
            except (OSError, http.client.HTTPException) as error:
                self.reset.append(f"{name}: {error!r}")
            except AssertionError as error:
                self.wrong.append(f"{name}: {error}")

    def _on_kept(self) -> None:
        self.kept.call("d/who")

    def _on_new(self) -> None:
        self._once("GET", self.host.path("d/who"), 200)

    def _submit(self) -> None:
        answer = self._once("POST", self.host.path("d/who").replace("/invoke", "/async-invoke"), 202)
        self.labels.append(answer)

    def _once(self, method: str, path: str, expected: int) -> str:
        connection = http.client.HTTPConnection(self.host.url.removeprefix("http://"), timeout=PATIENCE)
        try:
            connection.request(method, path, headers={"Content-Length": "0"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == expected, f"{answer.status} {text!r}"
            return str(answer.getheader("X-Call-Id"))
        finally:
            connection.close()


@contextmanager
def load_on_both(host: Running) -> Iterator[tuple[Load, int]]:
    """A load, and the member that its kept connection is not with."""
    with one_to_each(host) as clients:
        (_, kept), (victim, _) = clients.items()
        with Load(host, kept) as load:
            yield load, victim


def test_a_process_is_killed(site: Site, engine: str) -> None:
    """Whoever was not connected to it notices nothing; what was accepted ends; another takes its place."""
    site.write("d/who.py", WHO)
    host = start(site, engine)

    with load_on_both(host) as (load, victim):
        os.kill(victim, signal.SIGKILL)
        replaced(host, victim)
        load.goes_on()
    assert not [reset for reset in load.reset if reset.startswith("kept")]
    assert len(load.reset) <= 2  # at most what each of the two others was about
    for label in load.labels:
        eventually(lambda label=label: final(host, label), f"the end of {label}")
    assert "SIGKILL" in host.logged("another takes its place")


def test_a_process_hangs(site: Site) -> None:
    """It is killed, the log says why, and what waits for it in its queue is answered by the one in its place."""
    site.write("d/who.py", WHO)
    host = start(site)

    with one_to_each(host) as clients, ThreadPoolExecutor(16) as threads:
        (_, kept), (victim, _) = clients.items()
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: ") T " in Path(f"/proc/{victim}/stat").read_text(), "its stop")
        url = host.url + host.path("d/who")
        waiting = [threads.submit(httpx2.get, url, timeout=5 * PATIENCE, trust_env=False) for _ in range(16)]
        kept.call("d/who")
        eventually(lambda: not alive(victim), f"the end of {victim}\n{host.log}", patience=3 * PATIENCE)
        assert [call.result().status_code for call in waiting] == [200] * 16
        kept.call("d/who")
    host.logged("hangs, since it is stopped: it is killed")
    replaced(host, victim)


def test_a_process_is_told_to_end(site: Site, engine: str) -> None:
    """It finishes what it runs and another takes its place; no request fails, whether its connection is kept or new."""
    site.write("d/who.py", WHO)
    host = start(site, engine)

    with one_to_each(host) as clients:
        victims = list(clients)
    with Hammer(host, "d/who") as hammer:
        for victim in victims:
            os.kill(victim, signal.SIGTERM)
            replaced(host, victim)
        before = hammer.calls
        eventually(lambda: hammer.failures or hammer.calls > before + 50, "more answers")
    assert host.stop() == 0


@pytest.mark.parametrize("number", endings())
def test_all_are_told_to_end(site: Site, engine: str, number: signal.Signals) -> None:
    """What runs is finished and answered, then nothing is left."""
    take_notes(site, "d", 'timeout = "60s"')
    site.write(
        "d/slow.py",
        """
        import os, time
        from note import note

        def handle(function_call_info):
            note(function_call_info.path.strip("/"))
            while not os.path.exists(os.environ["NOTES"] + "/go"):
                time.sleep(0.01)
            return "finished"
        """,
    )
    host = start(site, engine)
    with one_to_each(host) as clients:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda name=name, c=client: answers.append(c.call("d/slow", f"/{name}")))
            for name, client in clients.items()
        ]
        for thread in threads:
            thread.start()
        for name in clients:
            noted(host, str(name))
        everything = host.descendants()

        host.process.send_signal(number)
        host.logged("finishing what runs")
        (site.root / "notes" / "go").touch()
        for thread in threads:
            thread.join()

    assert answers == ["finished"] * 2
    assert host.stop() == 0
    assert not [pid for pid in everything if alive(pid)]
    assert not (site.root / ".spaces" / "host.json").exists()


def test_the_supervisor_is_killed(site: Site) -> None:
    """Nothing is left of it, nor of the functions' processes."""
    site.write("d/who.py", WHO)
    site.write("d/spin.py", "def handle(data):\n    while True: pass\n")
    site.write("spaces.toml", '[server]\ndrain_timeout = "100ms"')
    host = start(site)
    with one_to_each(host) as clients:
        for client in clients.values():
            client.call("d/who")
        spinning = threading.Thread(target=_cut_off, args=(host, "d/spin"))
        spinning.start()
        eventually(lambda: host.status("d/spin")["busy"] == 1, "the call that spins")
        everything = host.descendants()

        host.process.kill()
        host.process.wait()

        eventually(lambda: not any(map(alive, everything)), f"the end of everything\n{host.log}")
        spinning.join()


def _cut_off(host: Running, function: str) -> None:
    try:
        host.client.get(host.path(function))
    except httpx2.TransportError:
        pass


def test_a_process_that_cannot_start_again(site: Site) -> None:
    """Wrong settings that were saved meanwhile keep nobody from being replaced."""
    site.write("d/who.py", WHO)
    host = start(site)
    with one_to_each(host) as clients:
        victim = next(iter(clients))
    site.write("spaces.toml", "[defaults]\nno_such_setting = 1\n")
    host.logged("no_such_setting")

    os.kill(victim, signal.SIGKILL)

    replaced(host, victim)
    assert host.call("d/who").status_code == 200


def test_a_place_that_stays_empty(site: Site, engine: str) -> None:
    """Connections go to the others, until a process can be started there again."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    file, gone = site.root / "certificate.pem", site.root / "gone.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(file))
    site.write("spaces.toml", f'[server]\ncertfile = "{file}"\nkeyfile = "{file}"\n')
    site.write("d/who.py", WHO)
    host = start(site, engine)
    victim = next(iter(members(host)))

    file.rename(gone)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: host.log.count("certificate.pem: No such file") >= 3, f"failures\n{host.log}")
    refused: list[str] = []
    eventually(lambda: served_by_one(host, refused), f"connections that go to the other\n{host.log}")
    gone.rename(file)

    eventually(lambda: len(takers(host, 4)) == 2, f"another in its place\n{host.log}")
    assert host.stop() == 0


def served_by_one(host: Running, refused: list[str]) -> bool:
    """Whether all connections are taken; one may be refused in the very moment in which an empty place is shut."""
    try:
        return len(takers(host, 20)) == 1
    except ConnectionError:
        refused.append(traceback.format_exc())
        assert len(refused) < 20, f"{refused[-1]}\n{host.log}"
        return False


def takers(host: Running, connections: int) -> set[int]:
    """The processes that so many connections over TLS are with."""
    address = ("127.0.0.1", int(host.url.rpartition(":")[2]))
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    found = set()
    for _ in range(connections):
        with socket.create_connection(address, PATIENCE) as sock, anybody.wrap_socket(sock) as secure:
            found.add(owner(secure))
    return found


def test_where_it_is_is_told(site: Site) -> None:
    """`host.json` names the supervisor, whichever process is replaced."""
    site.write("d/who.py", WHO)
    host = start(site)
    file = Path(site.root / ".spaces" / "host.json")

    assert str(host.process.pid) in file.read_text()
    victim = next(iter(members(host)))
    os.kill(victim, signal.SIGKILL)
    replaced(host, victim)
    assert str(host.process.pid) in file.read_text()


def test_a_submitted_call_is_finished_at_the_end(site: Site, engine: str) -> None:
    """Though no client is connected to whichever process runs it."""
    take_notes(site, "d", "")
    site.write(
        "d/slow.py",
        """
        import os, time
        from note import note

        def handle(data):
            note("began")
            while not os.path.exists(os.environ["NOTES"] + "/go"):
                time.sleep(0.01)
        """,
    )
    host = start(site, engine)
    with one_to_each(host) as clients:
        label = next(iter(clients.values())).submit("d/slow")
        noted(host, "began")

    host.process.send_signal(signal.SIGTERM)
    host.logged("finishing what runs")
    (site.root / "notes" / "go").touch()

    assert host.process.wait(PATIENCE) == 0
    entry = site.start().client.get(f"/calls/{label}").json()
    assert entry["status"] == "succeeded", (entry, host.log)
