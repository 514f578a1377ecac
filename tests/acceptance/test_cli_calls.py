"""`spaces calls` and `spaces logs` as their user sees them: against a host that serves, and on the journal on disk."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually

WORK = """
    import pathlib, time

    def handle(data, function_call_info):
        folder = pathlib.Path(data["folder"])
        print("working on", data.get("name"))
        function_call_info.progress(0.4, "half way")
        while not (folder / "go").exists():
            time.sleep(0.01)
        print("done with", data.get("name"))
        return {"done": data.get("name")}
    """
ECHO = """
    def handle(data):
        print("echo of", data)
        return data
    """
RAISING = """
    def handle(data):
        raise ValueError("bad thing")
    """


def spaces(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        capture_output=True, timeout=PATIENCE, check=False, text=True, **options,
    )  # fmt: skip


@contextmanager
def running(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the command in this scope."""
    with subprocess.Popen(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Running:
    """A host that serves."""
    shared_site.write("demo/work.py", WORK)
    shared_site.write("demo/echo.py", ECHO)
    shared_site.write("demo/raising.py", RAISING)
    return shared_site.start()


def submitted(host: Running, name: str, data: Any = None, **headers: str) -> str:
    """The number of a call that was accepted."""
    answer = host.client.post(f"/spaces/demo/functions/{name}/async-invoke", json=data or {}, headers=headers)
    assert answer.status_code == 202, answer.text
    number: str = answer.headers["location"].rpartition("/")[2]
    return number


def ended(host: Running, number: str) -> dict[str, Any]:
    """A call, once it has ended."""
    return eventually(  # type: ignore[no-any-return]
        lambda: (
            call
            if (call := host.client.get(f"/calls/{number}").json())["status"] not in ("queued", "running")
            else None
        ),
        f"the end of {number}",
    )


def test_the_host_that_serves_a_root_is_found(host: Running) -> None:
    """By the file that it leaves; a list is a table."""
    number = submitted(host, "echo", {"a": 1})
    ended(host, number)
    listed = spaces("calls", "list", "demo/echo", "--root", host.root)
    lines = listed.stdout.splitlines()
    where = json.loads((host.root / ".spaces" / "host.json").read_text())

    assert (listed.returncode, listed.stderr) == (0, "")
    assert where == {"url": host.url, "pid": host.process.pid}
    assert lines[0].split() == ["ID", "FUNCTION", "STATUS", "ACCEPTED", "TOOK", "RESULT", "CALLBACK"]
    assert lines[1].split()[:3] == [number, "demo/echo", "succeeded"]
    assert "\x1b" not in listed.stdout


def test_a_list_can_be_filtered_and_raw(host: Running) -> None:
    """As over HTTP."""
    ended(host, good := submitted(host, "echo"))
    ended(host, bad := submitted(host, "raising", **{"Idempotency-Key": "the-key"}))

    def listed(*options: str) -> list[str]:
        answer = spaces("calls", "list", "--url", host.url, "--json", *options)
        assert answer.returncode == 0, answer.stderr
        return [str(call["id"]) for call in json.loads(answer.stdout)["calls"]]

    assert listed("-n", "2") == [bad, good]
    assert listed("-n", "1") == [bad]
    assert listed("demo/raising") == [bad]
    assert listed("demo", "--status", "failed") == [bad]
    assert listed("--key", "the-key") == [bad]
    assert listed("--since", "1h", "-n", "2") == [bad, good]
    assert listed("--until", "1h") == []
    assert listed("--trigger", "schedule") == []
    assert listed("--dead-letters") == []


def test_a_call_is_shown_with_its_result(host: Running) -> None:
    """Facts, an empty line, the answer; or the JSON of the host."""
    ended(host, number := submitted(host, "echo", {"a": 1}, **{"X-Call-Id": "order-7"}))
    shown = spaces("calls", "show", number, "--root", host.root)
    raw = spaces("calls", "show", number, "--root", host.root, "--json")
    facts, _, body = shown.stdout.partition("\n\n")

    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"^call +{number} \(order-7\)$", facts, re.MULTILINE)
    assert re.search(r"^status +succeeded$", facts, re.MULTILINE)
    assert body == '{"a":1}\n'
    assert json.loads(raw.stdout)["label"] == "order-7"


def test_a_call_is_followed_to_its_end(host: Running, tmp_path: Path) -> None:
    """Its states and its progress, then what is known of it."""
    number = submitted(host, "work", {"folder": str(tmp_path), "name": "it"})
    with running("calls", "show", number, "-f", "--root", host.root) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "half way" in line:
                break
        (tmp_path / "go").touch()
        rest, errors = process.communicate(timeout=PATIENCE)

    assert any(line.startswith("[##########......") and "40% half way" in line for line in lines)
    assert (process.returncode, errors) == (0, "")
    assert rest.splitlines()[0] == "succeeded"
    assert rest.endswith('\n\n{"done":"it"}\n')


def test_the_logs_of_a_call_are_followed(host: Running, tmp_path: Path) -> None:
    """Each line as it is printed."""
    number = submitted(host, "work", {"folder": str(tmp_path), "name": "it"})
    with running("calls", "logs", number, "-f", "--root", host.root) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        (tmp_path / "go").touch()
        rest, errors = process.communicate(timeout=PATIENCE)
    later = spaces("calls", "logs", number, "--root", host.root)
    raw = spaces("calls", "logs", number, "--root", host.root, "--json")

    assert first.rstrip().endswith("working on it")
    assert rest.rstrip().endswith("done with it")
    assert (process.returncode, errors) == (0, "")
    assert later.stdout == first + rest
    assert [json.loads(line)["text"].strip() for line in raw.stdout.splitlines()] == ["working on it", "done with it"]


def test_progress_is_drawn_on_a_terminal(host: Running, tmp_path: Path) -> None:
    """Below the lines, over itself."""
    number = submitted(host, "work", {"folder": str(tmp_path), "name": "it"})
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "runtime", "calls", "logs", number, "-f", "--root", str(host.root)],
        stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        screen = b""
        with open(ours, "rb", buffering=0) as terminal:
            while b"half way" not in screen:
                screen += terminal.read(4096)
            (tmp_path / "go").touch()
            while b"done with it" not in screen:
                screen += terminal.read(4096)
        process.wait(PATIENCE)

    assert b"\r\x1b[K[##########" in screen


def test_a_failed_call_is_status_1_where_it_is_followed(host: Running) -> None:
    """To be asked for in a script."""
    ended(host, number := submitted(host, "raising"))
    statuses = [
        spaces("calls", "show", number, "--root", host.root).returncode,
        spaces("calls", "show", number, "-f", "--root", host.root).returncode,
        spaces("calls", "logs", number, "-f", "--root", host.root).returncode,
    ]

    assert statuses == [0, 1, 1]


def test_calls_are_cancelled_and_run_again(host: Running) -> None:
    """Several at once; what is wrong with one is told, and does not keep the others from it."""
    late, other = (submitted(host, "echo", {"n": n}, **{"X-Delay": "1h"}) for n in range(2))
    cancelled = spaces("calls", "cancel", late, "1", other, "--root", host.root)
    again = spaces("calls", "rerun", late, "--root", host.root)
    (new,) = re.findall(r"as (\d+)$", again.stdout, re.MULTILINE)
    nothing = spaces("calls", "redeliver", late, "--root", host.root)

    assert cancelled.stdout.splitlines() == [f"{late} is cancelled", f"{other} is cancelled"]
    assert (cancelled.returncode, cancelled.stderr) == (
        1,
        "spaces: 1: there is no call 1 here, or it is no longer kept\n",
    )
    assert again.returncode == 0
    assert ended(host, new)["trigger"] == "rerun"
    assert nothing.returncode == 1
    assert "no callback URL" in nothing.stderr


def test_the_logs_of_a_space_are_followed(host: Running, tmp_path: Path) -> None:
    """Of calls that have ended, of one that runs, and of those to come; Ctrl-C is the way to end it."""
    ended(host, before := submitted(host, "echo", {"n": 1}))
    now = submitted(host, "work", {"folder": str(tmp_path), "name": "now"})
    with running("logs", "demo", "-f", "-n", "2", "--root", host.root) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        after = submitted(host, "echo", {"n": 2})
        lines.append(process.stdout.readline())
        (tmp_path / "go").touch()
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)

    assert [line.split(None, 3)[1:] for line in lines] == [
        ["demo/echo", before, "echo of {'n': 1}\n"],
        ["demo/work", now, "working on now\n"],
        ["demo/echo", after, "echo of {'n': 2}\n"],
        ["demo/work", now, "done with now\n"],
    ]
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("calls", "show", "1"), 1, "there is no call 1"),
        (("calls", "show", "order-7"), 2, "give the number"),
        (("calls", "list", "--status", "done"), 1, "status must be among"),
        (("calls", "list", "nosuch/function"), 1, "there is no space `nosuch`"),
        (("calls", "list", "-n", "0"), 2, "no number from 1"),
        (("calls", "list", "--url", "127.0.0.1:1"), 2, "is no URL"),
        (("calls", "list", "--url", "http://127.0.0.1:1"), 1, "http://127.0.0.1:1"),
        (("calls", "list", "--root", "nowhere"), 2, "there is no such folder"),
    ],
)
def test_what_is_wrong_is_told(host: Running, arguments: tuple[str, ...], status: int, words: str) -> None:
    """On standard error, with the status of the others."""
    where = () if {"--url", "--root"} & set(arguments) else ("--root", str(host.root))
    answer = spaces(*arguments, *where)

    assert (answer.returncode, answer.stdout) == (status, "")
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_a_host_the_journal_on_disk_is_read(site: Site) -> None:
    """After a host has ended, and after one was killed, whose address nobody answers at; changes wait for the next."""
    site.write("demo/echo.py", ECHO)
    first = site.start()
    ended(first, done := submitted(first, "echo", {"n": 1}))
    late, later = (submitted(first, "echo", {"n": n}, **{"X-Delay": "1h"}) for n in (2, 3))
    first.stop(signal.SIGKILL)
    assert (site.root / ".spaces" / "host.json").exists()

    listed = spaces("calls", "list", "--root", site.root)
    cancelled = spaces("calls", "cancel", late, "--root", site.root)
    again = spaces("calls", "rerun", done, "--root", site.root)
    logs = spaces("logs", "-f", "--root", site.root)
    followed = spaces("calls", "show", later, "-f", "--root", site.root)

    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [later, late, done]
    assert listed.stderr == ""
    assert cancelled.stdout == f"{late} is cancelled\n"
    assert "no host is serving" in again.stderr
    assert "echo of {'n': 1}" in logs.stdout
    assert "no host is serving" in logs.stderr
    assert followed.returncode == 1
    assert "no host is serving" in followed.stderr

    second = site.start()
    (new,) = re.findall(r"as (\d+)$", again.stdout, re.MULTILINE)

    assert ended(second, new)["status"] == "succeeded"
    assert ended(second, late)["status"] == "cancelled"
    second.stop()
    assert not (site.root / ".spaces" / "host.json").exists()


def test_a_stranger_at_the_address_is_no_host(site: Site) -> None:
    """Its port may belong to something else by now."""
    site.write("demo/echo.py", ECHO)
    (site.root / ".spaces").mkdir()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(site.root)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as stranger:  # fmt: skip
        assert stranger.stdout is not None
        port = re.search(r"port (\d+)", stranger.stdout.readline())
        assert port is not None
        whereabouts = {"url": f"http://127.0.0.1:{port[1]}", "pid": stranger.pid}
        (site.root / ".spaces" / "host.json").write_text(json.dumps(whereabouts))
        listed = spaces("calls", "list", "--root", site.root)
        stranger.kill()

    assert (listed.returncode, listed.stdout) == (1, "")
    assert listed.stderr.startswith(f"spaces: no host serves {site.root}, and there is no journal in")


def test_where_there_is_nothing_it_is_said_where_that_was(site: Site) -> None:
    """And nothing is made: the service's own variables may lead elsewhere."""
    site.write("demo/echo.py", ECHO)
    for command in (["calls", "list"], ["calls", "show", "1"], ["logs"]):
        asked = spaces(*command, "--root", site.root)

        assert (asked.returncode, asked.stdout) == (1, "")
        assert f"no journal in {site.root / '.spaces'}" in asked.stderr
        assert "SPACES_STATE" in asked.stderr
    assert not (site.root / ".spaces").exists()


def test_a_host_of_another_root_at_the_address_is_not_asked(site: Site, host: Running) -> None:
    """Whose port was this root's before: the process that had it is gone."""
    site.write("demo/echo.py", ECHO)
    ended(host, submitted(host, "echo"))
    with subprocess.Popen(["true"]) as process:
        pass
    (site.root / ".spaces").mkdir()
    (site.root / ".spaces" / "host.json").write_text(json.dumps({"url": host.url, "pid": process.pid}))
    listed = spaces("calls", "list", "--root", site.root)

    assert (listed.returncode, listed.stdout) == (1, "")
    assert listed.stderr.startswith(f"spaces: no host serves {site.root}, and there is no journal in")


def test_a_host_with_a_certificate_is_found(site: Site) -> None:
    """Whatever name that is for."""
    site.write("demo/echo.py", ECHO)
    certificate = trustme.CA().issue_cert("functions.example.com")
    certificate.private_key_pem.write_to_path(site.root / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(site.root / "cert.pem", append=True)
    site.write("spaces.toml", "[server]\ncertfile = 'cert.pem'\nkeyfile = 'key.pem'\n")
    running = site.start()
    again = spaces("calls", "list", "--root", site.root, "--json")

    assert running.url.startswith("https://")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"calls": [], "next": None})
    assert again.stderr == ""
