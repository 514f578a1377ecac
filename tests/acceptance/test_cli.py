"""The command `spaces` as its user sees it: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtime import cli
from tests.acceptance.conftest import PATIENCE, URL, Site, error_of, eventually

HELLO = """
    def handle(data):
        return {"hello": data.get("who", "world")}
    """
ECHO = """
    def handle(data, function_call_info):
        info = function_call_info
        return {"method": info.method, "path": info.path, "query": info.query.multi_items(), "data": data,
                "headers": info.headers.multi_items()}
    """


def spaces(
    *arguments: str | Path, input: str | bytes | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)], capture_output=True,
        timeout=PATIENCE, check=False, input=input.encode() if isinstance(input, str) else input, **options,
    )  # fmt: skip
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode("utf-8", "backslashreplace"), ended.stderr.decode()
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The same without a process of its own, for what ends before it starts any: exit status and both outputs."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, *capsys.readouterr()


# dev.


def test_dev_says_what_it_serves(site: Site, engine: str) -> None:
    """Where it listens, a line for each function, then a line for each call; nothing coloured on a pipe."""
    site.write("demo/hello.py", HELLO)
    site.write("demo/waits.py", "import asyncio\n\nasync def handle(data, function_call_info):\n    yield 'x'\n")
    site.write("other/broken/handler.py", "def handle(data):\n    return 1 / 0\n")
    site.write("other/unloadable.py", "import nowhere\n\ndef handle(data): ...\n")
    host = site.start("dev", engine=engine)
    hello, waits, broken = (host.logged(f"  {label} ") for label in ("demo/hello", "demo/waits", "other/broken"))
    host.call("demo/hello", "/some/path?a=b")
    host.call("demo/nothing")
    error = host.call("other/broken")
    called = host.logged("GET /spaces/demo/functions/hello")
    missed = host.logged("GET /spaces/demo/functions/nothing")
    failed = host.logged("GET /spaces/other/functions/broken")

    assert f"{host.url}/spaces/demo/functions/hello/invoke" in hello
    assert "sync handle(data)" in hello
    assert "functions/demo/hello.py:2" in hello
    assert "async generator handle(data, function_call_info)" in waits
    assert "functions/other/broken/handler.py:1" in broken
    assert re.search(r"GET /spaces/demo/functions/hello/invoke/some/path 200 [\d.]+ ms$", called)
    assert re.search(r"404 [\d.]+ ms$", missed)
    assert re.search(r"500 [\d.]+ ms$", failed)
    assert "ZeroDivisionError" in error_of(error)["details"]["traceback"]
    assert "nowhere" in error_of(host.call("other/unloadable"))["details"]["traceback"]
    assert "handler.py" in error_of(error)["details"]["traceback"]
    assert "ZeroDivisionError" in host.log
    assert "\x1b" not in host.log


def test_dev_says_so_when_there_is_nothing_yet(site: Site) -> None:
    """And how to begin."""
    host = site.start("dev")

    assert "spaces new" in host.logged("no functions")


def test_dev_shows_what_is_printed(site: Site) -> None:
    """Lines of a handler carry its name."""
    site.write("demo/talks.py", "def handle(data):\n    print('one\\ntwo')\n    return 1\n")
    host = site.start("dev")
    host.call("demo/talks")

    assert "demo/talks | one" in host.logged("| one")
    assert "demo/talks | two" in host.logged("| two")


def test_dev_on_a_terminal_is_coloured(site: Site) -> None:
    """On a terminal, statuses have colours, and Ctrl-C ends it cleanly."""
    site.write("demo/hello.py", HELLO)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "dev", str(site.root), "--bind", "127.0.0.1:0"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def until(text: str) -> str:
        nonlocal seen
        while text not in seen:
            seen += os.read(ours, 65536).decode()
        return seen

    url = URL.search(until("/invoke"))
    assert url
    httpx2.get(f"{url[0]}/spaces/demo/functions/hello/invoke", trust_env=False, timeout=PATIENCE)
    httpx2.get(f"{url[0]}/spaces/demo/functions/none/invoke", trust_env=False, timeout=PATIENCE)
    until(" 404 ")
    process.send_signal(signal.SIGINT)
    until("ended")

    assert process.wait(timeout=PATIENCE) == 0
    os.close(ours)
    assert re.search(r"\x1b\[32mGET \S+ 200 [\d.]+ ms\x1b\[0m", seen)
    assert re.search(r"\x1b\[33mGET \S+ 404 [\d.]+ ms\x1b\[0m", seen)


def test_no_color(site: Site) -> None:
    """NO_COLOR is respected, as everywhere (no-color.org)."""
    site.write("demo/hello.py", HELLO)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "dev", str(site.root), "--bind", "127.0.0.1:0"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    seen = ""
    while "/invoke" not in seen:
        seen += os.read(ours, 65536).decode()
    process.terminate()
    process.wait(timeout=PATIENCE)
    os.close(ours)

    assert "\x1b" not in seen


# new.

KINDS = {
    "json": (lambda call: call("?who=you").json() == {"hello": "you"}),
    "typed": (lambda call: call(method="POST", json={"item": "tea", "count": 2}).json() == {"ordered": "2 x tea"}),
    "async": (lambda call: call().json() == ["first", "second"]),
    "stream": (lambda call: call("?count=1").text == 'event: tick\ndata: {"number":0}\n\n'),
    "http": (
        lambda call: call("/a", method="PUT").status_code == 201 and "<h1>PUT /a</h1>" in call("/a", method="PUT").text
    ),
}


def test_new_writes_each_kind_and_each_is_served(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind answers as it is; the file says how to try it; `check` finds nothing wrong."""
    written = {
        kind: in_process(capsys, "new", f"a_{kind}", "--space", "Fresh-1", "--kind", kind, "--root", site.root)
        for kind in KINDS
    }
    checked = spaces("check", site.root)
    host = site.start()

    assert [(status, stderr) for status, _, stderr in written.values()] == [(0, "")] * len(KINDS)
    assert (checked.returncode, checked.stderr) == (0, "")
    for kind, works in KINDS.items():
        path = site.root / "functions" / "Fresh-1" / f"a_{kind}.py"
        assert f"/spaces/Fresh-1/functions/a_{kind}/invoke" in path.read_text()
        assert str(path) in written[kind][1]
        assert works(lambda rest="", name=f"Fresh-1/a_{kind}", **options: host.call(name, rest, **options)), kind


def test_new_by_default(tmp_path: Path) -> None:
    """In the space demo of the current folder, which need not have functions yet, of the kind json."""
    ended = spaces("new", "hello", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())})

    assert ended.returncode == 0
    assert (tmp_path / "functions/demo/hello.py").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hello"], "exists already"),
        (["folder"], "exists already"),
        (["../up"], "characters"),
        (["a.b"], "characters"),
        (["x" * 64], "characters"),
        (["x", "--space", ""], "characters"),
        (["x", "--kind", "novel"], "novel"),
    ],
)
def test_new_refuses(site: Site, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Names that cannot be, and files that are there: exit status 2, and nothing is written."""
    site.write("demo/hello.py", HELLO)
    site.write("demo/folder/handler.py", HELLO)
    before = sorted(site.root.rglob("*"))
    status, _, stderr = in_process(capsys, "new", *arguments, "--root", site.root)

    assert status == 2
    assert said in stderr
    assert sorted(site.root.rglob("*")) == before


# list.


def test_list(site: Site) -> None:
    """A line for each function: name, address, kind, arguments, place; hints go to stderr; nothing is run."""
    site.write("demo/hello.py", HELLO)
    site.write("demo/folder/handler.py", "raise SystemExit\nasync def handle(req): ...\n")
    site.write("demo/bad-näme.py", HELLO)
    site.write("spaces.toml", "[spaces.demo.functions.helo]\n")
    ended = spaces("list", site.root)

    assert ended.returncode == 0
    lines = [re.split("  +", line) for line in ended.stdout.splitlines()]
    assert lines == [
        [
            "demo/folder",
            "/spaces/demo/functions/folder/invoke",
            "async handle(req)",
            "functions/demo/folder/handler.py:2",
        ],
        ["demo/hello", "/spaces/demo/functions/hello/invoke", "sync handle(data)", "functions/demo/hello.py:2"],
    ]
    assert "bad-näme" in ended.stderr
    assert "functions.helo] is for a function that no file has; did you mean `hello`?" in ended.stderr


# invoke.


@pytest.fixture
def echo(site: Site) -> Site:
    """A root with functions to invoke."""
    site.write("demo/echo.py", ECHO)
    site.write("demo/fails.py", "def handle(data):\n    print('on the way')\n    return 1 / 0\n")
    site.write("demo/refuses.py", "def handle(data):\n    return 'no such thing', 404\n")
    site.write("demo/binary.py", "def handle(data):\n    return bytes(range(256))\n")
    site.write("demo/stream.py", "def handle(data):\n    yield 'a'\n    yield 'b'\n")
    site.write("demo/cut.py", "def handle(data):\n    yield 'a'\n    raise ValueError('midway')\n")
    site.write("demo/hangs.py", "def handle(data):\n    while True: pass\n")
    site.write("demo/broken.py", "import nowhere\n\ndef handle(data): ...\n")
    site.write("spaces.toml", '[spaces.demo.functions.hangs]\ntimeout = "1s"\n')
    return site


def invoked(echo: Site, *arguments: str | Path, input: str | bytes | None = None) -> dict[str, Any]:
    """What the function says it got."""
    ended = spaces("invoke", *arguments, "--root", echo.root, input=input)
    assert (ended.returncode, ended.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_invoke(echo: Site, tmp_path: Path) -> None:
    """Path, query, method, headers, and a body from the line, a file or standard input."""
    (tmp_path / "body.json").write_text('{"from": "file"}')
    plain = invoked(echo, "demo/echo")
    whole = invoked(
        echo, "demo/echo/a b/ü%2Fc/?x=1&x=2 3", "-d", '{"n": 1}', "-X", "put", "-H", "X-One: 1", "-H", "x-one:two"
    )

    assert (plain["method"], plain["path"], plain["query"], plain["data"]) == ("GET", "/", [], {})
    assert (whole["method"], whole["path"], whole["data"]) == ("PUT", "/a b/ü/c/", {"n": 1})
    assert whole["query"] == [["x", "1"], ["x", "2 3"]]
    assert [value for name, value in whole["headers"] if name == "x-one"] == ["1", "two"]
    assert invoked(echo, "demo/echo", "-d", f"@{tmp_path}/body.json")["data"] == {"from": "file"}
    assert invoked(echo, "demo/echo", "-d", "-", input='{"from": "stdin"}')["data"] == {"from": "stdin"}
    assert invoked(echo, "/demo/echo/", "-d", "")["method"] == "POST"
    assert invoked(echo, "demo/echo", "-d", "text", "-H", "Content-Type: text/plain")["data"] == "text"


def test_invoke_writes_the_answer_as_it_is(echo: Site) -> None:
    """Bytes untouched, streams too, and nothing else on standard output."""
    binary = subprocess.run(
        [sys.executable, "-m", "runtime", "invoke", "demo/binary", "--root", str(echo.root)],
        capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    stream = spaces("invoke", "demo/stream", "--root", echo.root)

    assert (binary.returncode, binary.stdout) == (0, bytes(range(256)))
    assert (stream.returncode, stream.stdout) == (0, "ab")


@pytest.mark.parametrize(
    ("function", "stdout", "stderr"),
    [
        ("demo/fails", "ZeroDivisionError", "on the way"),
        ("demo/refuses", "no such thing", ""),
        ("demo/cut", "a", "midway"),
        ("demo/hangs", "", "504 timeout"),
        ("demo/broken", "", "No module named 'nowhere'"),
        ("demo/none", "", "404 not_found: there is no function `none` in space `demo`"),
        ("none/echo", "", "404 not_found: there is no space `none` here"),
        ("demo/echo/%zz", "", "400 "),
    ],
)
def test_invoke_that_fails(echo: Site, function: str, stdout: str, stderr: str) -> None:
    """Exit status 1; what was answered on standard output, what went wrong on standard error."""
    ended = spaces("invoke", function, "--root", echo.root)

    assert ended.returncode == 1
    assert stdout in ended.stdout
    assert stderr in ended.stderr


@pytest.mark.parametrize(
    "arguments", [["demo"], ["demo/echo", "-H", "nonsense"], ["demo/echo", "-d", "@/no/such/file"], []]
)
def test_invoke_that_makes_no_sense(echo: Site, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Exit status 2 with a line that says so."""
    status, stdout, stderr = in_process(capsys, "invoke", *arguments, "--root", echo.root)

    assert (status, stdout) == (2, "")
    assert stderr
    assert "Traceback" not in stderr


def test_invoke_leaves_no_process(echo: Site) -> None:
    """Nothing of it runs on."""
    ended = spaces("invoke", "demo/echo", "--root", echo.root)

    assert ended.returncode == 0
    eventually(lambda: not [pid for pid in processes() if str(echo.root) in command_of(pid)], "all have ended")


def processes() -> list[str]:
    """Every process there is."""
    return [entry for entry in os.listdir("/proc") if entry.isdigit()]


def command_of(pid: str) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# check.


def test_check_names_every_problem(site: Site) -> None:
    """File and line of each, and exit status 1."""
    site.write("demo/fine.py", HELLO)
    site.write("demo/syntax.py", "def handle(data):\n    return (\n")
    site.write("demo/imports.py", "import os\nimport nowhere\n\ndef handle(data): ...\n")
    site.write("demo/raises.py", "def handle(data): ...\n\n\nraise ValueError('no')\n")
    site.write("demo/takes.py", "x = 1\n\ndef handle(data, surprise): ...\n")
    site.write("demo/helper_fails.py", "from trouble import x\n\ndef handle(data): ...\n")
    site.write("demo/trouble.py", "x = 1\ny = 1 / 0\n")
    site.write("demo/exits.py", "import sys\n\nsys.exit(3)\n\ndef handle(data): ...\n")
    ended = spaces("check", site.root)
    lines = ended.stdout.splitlines()

    assert ended.returncode == 1
    assert ended.stderr == ""
    starts = {line.partition(" ")[0]: line for line in lines[:-1]}
    assert set(starts) == {
        "functions/demo/exits.py:3:",
        "functions/demo/trouble.py:2:",
        "functions/demo/imports.py:2:",
        "functions/demo/raises.py:4:",
        "functions/demo/syntax.py:2:",
        "functions/demo/takes.py:3:",
    }
    assert "demo/helper_fails" in starts["functions/demo/trouble.py:2:"]
    assert "nowhere" in starts["functions/demo/imports.py:2:"]
    assert "surprise" in starts["functions/demo/takes.py:3:"]
    assert lines[-1] == "7 functions, 6 with a problem"


def test_check_finds_nothing(site: Site) -> None:
    """Exit status 0."""
    site.write("demo/fine.py", HELLO)
    ended = spaces("check", site.root)

    assert (ended.returncode, ended.stdout) == (0, "1 function, 0 with a problem\n")


def test_check_of_a_wrong_configuration(site: Site) -> None:
    """Exit status 2, with file and line."""
    site.write("spaces.toml", "[defaults]\ntimeuot = 1\n")
    ended = spaces("check", site.root)

    assert ended.returncode == 2
    assert "spaces.toml:2" in ended.stderr


# The command itself.


@pytest.mark.parametrize("command", [[], ["dev"], ["serve"], ["new"], ["list"], ["invoke"], ["check"]])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """Every command explains itself."""
    status, stdout, _ = in_process(capsys, *command, "--help")

    assert status == 0
    assert "usage: spaces" in stdout


def test_the_installed_command() -> None:
    """`spaces` is the same as `python -m runtime`."""
    installed = Path(sys.executable).with_name("spaces")
    if not installed.exists():
        pytest.skip("the package is not installed here")
    ended = subprocess.run([installed, "--version"], capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert ended.stdout == spaces("--version").stdout
    assert re.fullmatch(r"spaces \d+\.\d+\.\d+\S*\n", ended.stdout)


# curl.


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(site: Site, engine: str, tmp_path: Path) -> None:
    """The commands that the docs show: JSON, forms, files, uploads, HEAD, compressed bodies, streams."""
    site.write("demo/echo.py", ECHO)
    site.write("demo/stream.py", "def handle(data):\n    yield {'data': 1}\n    yield {'data': 2}\n")
    host = site.start(engine=engine)
    (tmp_path / "file.bin").write_bytes(b"\x00\x01")
    target = host.url + host.path("demo/echo")

    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", "-sS", "--noproxy", "*", *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout

    assert json.loads(curl(target, "-d", '{"a": 1}'))["data"] == {"a": 1}
    assert json.loads(curl(target, "--json", '{"a": 1}'))["data"] == {"a": 1}
    assert json.loads(curl(target, "-d", "a=1", "-d", "b=x y"))["data"] == {"a": "1", "b": "x y"}
    assert json.loads(curl("-G", target, "--data-urlencode", "q=ü&"))["query"] == [["q", "ü&"]]
    assert json.loads(curl(target + "/stock/market/today?company=Google"))["path"] == "/stock/market/today"
    assert json.loads(curl("--path-as-is", target + "/../x"))["path"] == "/../x"
    assert "HTTP/1.1 200" in curl("-I", target)
    assert curl("-N", host.url + host.path("demo/stream")) == "data: 1\n\ndata: 2\n\n"
    assert "x-invoked: true" in curl("-i", "-X", "OPTIONS", target)
    assert (
        json.loads(curl(target, "-T", str(tmp_path / "file.bin"), "-H", "Content-Type: text/plain"))["method"] == "PUT"
    )
    (tmp_path / "large.json").write_text(json.dumps(["x" * 2_000_000]))
    large = curl(target, "-H", "Expect: 100-continue", "--json", f"@{tmp_path}/large.json")
    assert json.loads(large)["data"] == ["x" * 2_000_000]
    assert json.loads(curl("--http2", target))["method"] == "GET"
    assert not [line for line in host.lines if json.loads(line)["level"] != "info"]
