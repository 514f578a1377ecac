"""The host as an operator sees it: how it starts and ends, what it refuses, its log, its metrics, its overload."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import cli
from tests.acceptance.conftest import PATIENCE, Running, Site, alive, error_of, eventually
from tests.acceptance.connection import Connection

HELLO = """
    def handle(data):
        return {"hello": data.get("who", "world")}
    """
# Runs until the test lets it.
SLOW = """
    import pathlib, time

    def handle(data):
        folder = pathlib.Path(data["folder"])
        (folder / "running").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return "done"
    """
STREAM = """
    import asyncio, pathlib

    async def handle(data):
        folder = pathlib.Path(data["folder"])
        (folder / "running").touch()
        yield "first "
        while not (folder / "go").exists():
            await asyncio.sleep(0.005)
        yield "last"
    """


def spaces(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        capture_output=True, text=True, timeout=PATIENCE, check=False, **options,
    )  # fmt: skip


class Background(threading.Thread):
    """One call made while the test goes on; `answer` once joined, or `error`."""

    def __init__(self, host: Running, function: str, rest: str) -> None:
        super().__init__()
        self.answer: httpx2.Response | None = None
        self.error: Exception | None = None
        self._url = host.url + host.path(function, rest)
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx2.get(self._url, timeout=PATIENCE, trust_env=False)
        except httpx2.TransportError as error:
            self.error = error

    def text(self) -> str:
        """What was answered."""
        self.join()
        assert self.answer is not None, self.error
        assert self.answer.status_code == 200, self.answer.text
        return self.answer.text


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_calls_finish(site: Site, engine: str, tmp_path: Path, number: signal.Signals) -> None:
    """What runs is finished and answered, streams too; no new connection is taken; then exit 0, and no process."""
    site.write("demo/slow.py", SLOW)
    site.write("demo/stream.py", STREAM)
    host = site.start(engine=engine)
    for name in ("slow", "stream"):
        (tmp_path / name).mkdir()
    slow = Background(host, "demo/slow", f"?folder={tmp_path}/slow")
    stream = Background(host, "demo/stream", f"?folder={tmp_path}/stream")
    for name in ("slow", "stream"):
        eventually((tmp_path / name / "running").exists, f"{name} runs")
    with Connection(host.url) as idle:
        idle.request("/healthz")
        assert idle.answer().status == 200
        processes = host.descendants()
        host.process.send_signal(number)
        host.logged("finishing what runs")
        assert idle.at_end()
    eventually(lambda: refused(host), "it listens no more")
    for name in ("slow", "stream"):
        (tmp_path / name / "go").touch()

    assert (slow.text(), stream.text()) == ("done", "first last")
    assert host.process.wait(timeout=PATIENCE) == 0
    assert not [pid for pid in processes if alive(pid)]
    assert json.loads(host.logged('"ended"'))["level"] == "info"
    assert not [line for line in host.lines if json.loads(line)["level"] in ("error", "critical")]


def refused(host: Running) -> bool:
    """Whether nobody listens there any more."""
    try:
        Connection(host.url).close()
    except ConnectionResetError:  # it was accepted by the kernel, and dropped as the socket closed
        return False
    except ConnectionRefusedError:
        return True
    return False


def is_told(call: Background) -> bool:
    """Whether the client was told that the host ends, and may come back."""
    call.join()
    assert call.answer is not None, call.error
    error = error_of(call.answer)
    assert (call.answer.status_code, error["status"], error["code"]) == (503, 503, "draining")
    return int(call.answer.headers["retry-after"]) > 0 and "x-invoked" not in call.answer.headers


@pytest.mark.parametrize("code", [SLOW, SLOW.replace("def handle", "async def handle")])
def test_drain_timeout_cuts(site: Site, engine: str, tmp_path: Path, code: str) -> None:
    """Calls that run or wait for longer are answered 503; the exit is still a clean one, and says so."""
    settings = '[defaults]\ntimeout = "1h"\nmax_workers = 1\nconcurrency = 1\n'
    site.write("spaces.toml", f'[server]\ndrain_timeout = "100ms"\n{settings}')
    site.write("demo/slow.py", code)
    host = site.start(engine=engine)
    running = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually((tmp_path / "running").exists, "the call runs")
    waiting = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually(lambda: host.status("demo/slow")["waiting"] == 1, "the other one waits")
    processes = host.descendants()

    assert host.stop() == 0
    assert is_told(running)
    assert is_told(waiting)
    assert "cut" in host.logged("drain_timeout")
    assert not [pid for pid in processes if alive(pid)]
    assert "Traceback" not in host.log


def test_drain_timeout_cuts_streams(site: Site, engine: str, tmp_path: Path) -> None:
    """A stream is cut off where it is, which its client can tell from an end; the log names the call."""
    site.write("spaces.toml", '[server]\ndrain_timeout = "100ms"\n[defaults]\ntimeout = "1h"\n')
    site.write("demo/stream.py", STREAM)
    host = site.start(engine=engine)
    path = host.path("demo/stream", f"?folder={tmp_path}")
    with host.client.stream("GET", path, headers={"X-Call-Id": "cut"}) as stream:
        received = stream.iter_text()
        first = next(received)
        host.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.TransportError):
            list(received)

    assert first == "first "
    assert host.process.wait(timeout=PATIENCE) == 0
    assert json.loads(host.logged('"spaces.call"'))["call_id"] == "cut"
    assert "Traceback" not in host.log


def test_a_second_signal_ends_the_waiting(site: Site, engine: str, tmp_path: Path) -> None:
    """It ends at once, with its processes; calls that run are answered 503."""
    site.write("spaces.toml", '[defaults]\ntimeout = "1h"\n')
    site.write("demo/slow.py", SLOW)
    host = site.start(engine=engine)
    call = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually((tmp_path / "running").exists, "the call runs")
    processes = host.descendants()
    host.process.send_signal(signal.SIGTERM)
    host.logged("finishing what runs")

    assert host.stop() == 0
    assert is_told(call)
    host.logged("again")
    assert not [pid for pid in processes if alive(pid)]
    assert "Traceback" not in host.log


def test_a_busy_keep_alive_client_during_the_end(site: Site, engine: str, tmp_path: Path) -> None:
    """A client whose call runs gets its answer and is told that the connection ends with it."""
    site.write("demo/slow.py", SLOW)
    host = site.start(engine=engine)
    with Connection(host.url) as connection:
        connection.request(host.path("demo/slow", f"?folder={tmp_path}"))
        eventually((tmp_path / "running").exists, "the call runs")
        host.process.send_signal(signal.SIGTERM)
        host.logged("finishing what runs")
        eventually(lambda: refused(host), "it listens no more")
        (tmp_path / "go").touch()

        assert connection.answer().body == b"done"
        assert connection.at_end()
    assert host.process.wait(timeout=PATIENCE) == 0


def test_a_signal_at_rest(site: Site, engine: str) -> None:
    """Without calls it ends at once."""
    host = site.start(engine=engine)

    assert host.stop() == 0


# The start.


def test_the_announced_address(site: Site, engine: str) -> None:
    """Port 0 is a free one, and the log says which."""
    host = site.start(engine=engine)
    line = json.loads(host.logged("listening on"))

    assert host.url in line["message"]
    assert host.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", "[::1]:0", "0"])
def test_addresses(site: Site, bind: str) -> None:
    """Host and port in each form; the announced one can be called."""
    if bind.startswith("[") and not has_ipv6():
        pytest.skip("there is no IPv6 here")
    site.write("demo/hello.py", HELLO)
    host = site.start("serve", "--bind", bind)

    assert host.call("demo/hello").json() == {"hello": "world"}


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_the_port_is_taken(site: Site, engine: str) -> None:
    """Exit status 2 and one line that says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = spaces("serve", str(site.root), "--bind", bind, "--engine", engine)

    assert ended.returncode == 2
    said, _, advice = ended.stderr.partition("; ")
    assert said == f"spaces: cannot listen on {bind}: Address already in use"
    assert advice == "`--bind HOST:PORT` chooses another port, 0 a free one\n"


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_exposed_without_open(site: Site, command: str) -> None:
    """Beyond this machine only when told so."""
    ended = spaces(command, str(site.root), "--bind", "0.0.0.0:0")

    assert ended.returncode == 2
    assert "--open" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_exposed_with_open(site: Site) -> None:
    """Told so, it listens everywhere."""
    site.write("demo/hello.py", HELLO)
    host = site.start("serve", "--bind", "0.0.0.0:0", "--open")
    answer = httpx2.get(
        host.url.replace("0.0.0.0", "127.0.0.1") + host.path("demo/hello"), trust_env=False, timeout=PATIENCE
    )

    assert answer.json() == {"hello": "world"}


@pytest.mark.parametrize("where", ["option", "environment", "file"])
def test_the_engine_can_be_chosen(site: Site, where: str) -> None:
    """By option, by environment, by file: hypercorn answers HTTP/2, uvicorn does not."""
    site.write("spaces.toml", '[server]\nengine = "uvicorn"\n' if where == "file" else "")
    env = {"SPACES_ENGINE": "uvicorn"} if where == "environment" else None
    host = site.start(env=env, engine="uvicorn" if where == "option" else None)
    with (
        httpx2.Client(base_url=host.url, http1=False, http2=True, trust_env=False, timeout=PATIENCE) as client,
        pytest.raises(httpx2.TransportError),
    ):
        client.get("/healthz")

    assert host.client.get("/healthz").status_code == 200


def ends_with_2(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that refuses to start, with exit status 2 and no traceback."""
    try:
        status: Any = cli.main([*arguments])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    return said


def wrong(site: Site, capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What is said of a start with this spaces.toml."""
    site.write("spaces.toml", text)
    return ends_with_2(capsys, "serve", str(site.root), "--bind", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nbnid = '1'", "spaces.toml:2: unknown key `bnid` in [server]; did you mean `bind`?"),
        ("[defaults]\ntimeout = 'soon'", "spaces.toml:2: "),
        ("[server]\nengine = 'apache'", "spaces.toml:2: "),
        ("[server]\nbind = 'nowhere'", "spaces.toml:2: "),
        ("[spaces.demo]\nmax_body = -1", "spaces.toml:2: "),
        ("[spaces.demo.functions.x]\nmethods = ['']", "spaces.toml:2: "),
        ("[spaces.demo]\nsecrets = { a = 'env:NO_SUCH_VARIABLE' }", "spaces.toml:2: "),
        ("[spaces.demo]\npath = 'no/such/folder'", "spaces.toml:2: "),
        ("[spaces.'a b']\n", "spaces.toml:1: "),
        ("[server\n", "spaces.toml:1: "),
        ("[server]\ncertfile = 'spaces.toml'", "keyfile"),
        ("[server]\nhttp3 = true", "certfile"),
        ("[server]\ncertfile = 'spaces.toml'\nkeyfile = 'spaces.toml'", "certfile"),
    ],
)
def test_a_wrong_configuration(site: Site, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    """Exit status 2, and the message with file and line; no traceback."""
    message = wrong(site, capsys, text)

    assert message.startswith("spaces: ")
    assert said in message


def test_all_that_is_wrong_is_said_at_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each problem."""
    message = wrong(site, capsys, "[server]\nbnid = 1\n[defaults]\ntimeuot = 1\n[spaces.demo]\nmax_workers = 0\n")

    assert [line in message for line in ("spaces.toml:2", "spaces.toml:4", "spaces.toml:6")] == [True] * 3


@pytest.mark.parametrize(
    "arguments",
    [["serve", "/no/such/folder"], ["serve", "--bind", "x:y"], ["serve", "--engine", "apache"], ["swim"], []],
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Exit status 2, and a reason."""
    assert ends_with_2(capsys, *arguments)


def test_an_empty_root(site: Site) -> None:
    """A root without functions is served."""
    host = site.start()

    assert host.client.get("/spaces").json() == {"spaces": []}
    assert host.client.get("/readyz").status_code == 200


# The log.


def test_the_log_of_production(site: Site, engine: str) -> None:
    """Every line is a JSON object with time, level, logger, message; prints and exceptions name function and call."""
    site.write("spaces.toml", "[server]\naccess_log = true\n")
    site.write("demo/talks.py", "def handle(data):\n    print('a line\\nanother')\n    return 1 / int(data['n'])\n")
    site.write("demo/broken.py", "def handle(data:\n")
    host = site.start(engine=engine)
    fine = host.call("demo/talks", "?n=1", headers={"X-Call-Id": "fine"})
    bad = host.call("demo/talks", "?n=0", headers={"X-Call-Id": "bad"})
    broken = host.call("demo/broken", "?token=hidden", headers={"Authorization": "Bearer hidden"})
    host.call("demo/none")
    assert host.stop() == 0
    lines = [json.loads(line) for line in host.lines]

    assert (fine.status_code, bad.status_code, broken.status_code) == (200, 500, 503)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(line["time"].endswith("Z") for line in lines)
    printed = [line for line in lines if line["logger"] == "spaces.output" and line["call_id"] == "fine"]
    assert "\n".join(line["message"] for line in printed) == "a line\nanother"
    assert {line["function"] for line in printed} == {"demo/talks"}
    raised = [line for line in lines if line.get("call_id") == "bad" and "ZeroDivisionError" in json.dumps(line)]
    assert raised
    calls = {line["call_id"]: line for line in lines if line["logger"] == "spaces.call"}
    assert (calls["fine"]["method"], calls["fine"]["status"]) == ("GET", 200)
    assert calls["fine"]["path"] == host.path("demo/talks")
    assert calls["bad"]["status"] == 500
    assert "hidden" not in host.log


def test_production_logs_no_call_unless_told(site: Site) -> None:
    """Without `access_log` a call leaves no line."""
    site.write("demo/hello.py", HELLO)
    host = site.start()
    host.call("demo/hello")
    host.stop()

    assert "spaces.call" not in host.log


def test_a_log_that_nobody_reads(site: Site) -> None:
    """A full pipe holds up no call."""
    site.write("demo/loud.py", "def handle(data):\n    print('x' * 20_000)\n    return 'ok'\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", str(site.root), "--bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    url = "http" + process.stderr.readline().partition("http")[2].partition(",")[0]
    try:
        with httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            answers = [client.get("/spaces/demo/functions/loud/invoke").text for _ in range(50)]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()

    assert answers == ["ok"] * 50


# Metrics.


@pytest.fixture
def busy(site: Site, engine: str) -> Running:
    """A host that has answered some calls of two functions."""
    site.write("demo/hello.py", HELLO)
    site.write("demo/fails.py", "def handle(data):\n    raise ValueError\n")
    site.write("demo/broken.py", "import nowhere\ndef handle(data): ...\n")
    host = site.start(engine=engine)
    for _ in range(3):
        host.call("demo/hello")
    host.call("demo/fails")
    host.call("demo/broken")
    return host


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(host: Running) -> Samples:
    """Every sample of /metrics: name and labels → value."""
    answer = host.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def value(found: Samples, name: str, function: str, **labels: str) -> float:
    """One sample of a function of the space demo."""
    return found[f"spaces_{name}", frozenset({"space": "demo", "function": function, **labels}.items())]


def test_metrics(busy: Running) -> None:
    """Calls by status, latencies, waiting and own time, workers by state, cold starts, failed loads."""
    found = samples(busy)

    assert value(found, "calls_total", "hello", status="200") == 3
    assert value(found, "calls_total", "fails", status="500") == 1
    assert value(found, "calls_total", "broken", status="503") == 1
    assert value(found, "call_duration_seconds_count", "hello") >= 3
    assert value(found, "call_duration_seconds_bucket", "hello", le="+Inf") >= 3
    assert 0 < value(found, "call_duration_seconds_sum", "hello") < 60
    assert value(found, "waiting_seconds_total", "hello") > 0
    assert value(found, "overhead_seconds_total", "hello") > 0
    assert value(found, "cold_starts_total", "hello") >= 1
    assert value(found, "workers", "hello", state="idle") >= 1
    assert value(found, "workers", "hello", state="busy") == 0
    assert found["spaces_functions", frozenset()] == 3


def test_metrics_of_reloads(busy: Running) -> None:
    """Edits that were loaded beside a serving version, and those that could not be."""
    counted = "reloads_total", "hello"

    def save(text: str) -> None:
        """At one moment: a look at half of it would be one more that has failed."""
        (busy.root / "hello.new").write_text(text)
        (busy.root / "hello.new").replace(busy.root / "functions/demo/hello.py")

    save("def handle(data:")
    eventually(lambda: busy.status("demo/hello")["load_error"], "the edit has failed")
    failed = value(samples(busy), *counted, outcome="failed")
    save("def handle(data):\n    return 2\n")
    eventually(lambda: busy.call("demo/hello").text == "2", "the next edit is served")

    assert failed == 1
    assert value(samples(busy), *counted, outcome="ok") == 1


def test_metrics_while_a_call_runs(site: Site, tmp_path: Path) -> None:
    """A running call is a busy worker."""
    site.write("demo/slow.py", SLOW)
    host = site.start()
    call = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually((tmp_path / "running").exists, "the call runs")
    found = samples(host)
    (tmp_path / "go").touch()

    assert call.text() == "done"
    assert value(found, "workers", "slow", state="busy") == 1


# Overload.


def test_a_full_queue(site: Site, engine: str, tmp_path: Path) -> None:
    """More calls than may wait are answered 429 with Retry-After; those who wait are served."""
    site.write("spaces.toml", "[defaults]\nmax_workers = 1\nmax_waiting = 1\n")
    site.write("demo/slow.py", SLOW)
    host = site.start(engine=engine)
    running = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually((tmp_path / "running").exists, "the first call runs")
    waiting = Background(host, "demo/slow", f"?folder={tmp_path}")
    eventually(lambda: host.status("demo/slow")["waiting"] == 1, "the second waits")
    refused = host.call("demo/slow", f"?folder={tmp_path}")
    other = host.client.get("/healthz")
    (tmp_path / "go").touch()

    assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    assert "x-invoked" not in refused.headers
    assert other.status_code == 200
    assert (running.text(), waiting.text()) == ("done", "done")


def test_a_deadline(site: Site, engine: str, tmp_path: Path) -> None:
    """A call that takes too long is answered 504 in the envelope, and the next one is fine."""
    site.write("spaces.toml", '[defaults]\ntimeout = "1s"\nmin_workers = 1\n')
    site.write("demo/slow.py", SLOW)
    host = site.start(engine=engine)
    eventually(lambda: host.status("demo/slow")["workers"] == 1, "a worker is there")
    late = host.call("demo/slow", f"?folder={tmp_path}")
    (tmp_path / "go").touch()

    assert (late.status_code, error_of(late)["code"]) == (504, "timeout")
    assert "x-invoked" not in late.headers
    assert late.headers["x-call-id"]
    assert host.call("demo/slow", f"?folder={tmp_path}").text == "done"
