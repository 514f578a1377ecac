"""What handlers print and log: lines in the log with the call they belong to, and never a burden to anybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.notes import take_notes

HANDLER = """
    import asyncio, ctypes, logging, os, subprocess, sys, threading, time
    from io import StringIO, TextIOWrapper

    print("printed by the import")
    log = logging.getLogger("shop")

    def in_thread(text):
        thread = threading.Thread(target=print, args=(text,))
        thread.start()
        thread.join()

    def closed():
        os.closerange(0, 3)
        print("after closing")

    def replaced():
        sys.stdout = StringIO()
        print("nowhere")
        sys.stdout = sys.__stdout__
        print("back again")

    def wrapped():
        wrapper = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True)
        wrapper.write("wrapped\\n")
        del wrapper
        print("after the wrapper")

    def logged():
        log.debug("not this")
        log.info("informed of %s", 1)
        log.warning("warned")
        log.error("wrong")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("divided")

    def libc():
        lib = ctypes.CDLL(None)
        lib.puts(b"said in C")
        lib.fflush(None)

    class Late:
        def __del__(self):
            print("said at its end")

    WAYS = {
        "/print": lambda: print("one", "two", sep=", "),
        "/lines": lambda: print("first\\nsecond"),
        "/pieces": lambda: [print(piece, end="") for piece in ("in ", "several ", "pieces")],
        "/unicode": lambda: print("\\u2603 \\ud83d"),
        "/stderr": lambda: print("on stderr", file=sys.stderr),
        "/bytes": lambda: [sys.stdout.buffer.write(piece) for piece in (b"caf\\xc3", b"\\xa9 \\xff!\\n")],
        "/reconfigured": lambda: (sys.stdout.reconfigure(line_buffering=True), print("reconfigured")),
        "/thread": lambda: in_thread("in a thread"),
        "/long": lambda: print("x" * 1_000_000),
        "/nul": lambda: print("a\\0b\\x1b[31mc"),
        "/closed": closed,
        "/replaced": replaced,
        "/wrapped": wrapped,
        "/logged": logged,
        "/libc": libc,
        "/late": Late,
        "/fd": lambda: os.write(1, b"written to 1\\n"),
        "/fd2": lambda: os.write(2, b"written to 2\\n"),
        "/binary": lambda: os.write(1, bytes(range(256)) + b"\\n"),
        "/child": lambda: subprocess.run(["sh", "-c", "echo by a child; echo by a child, on stderr >&2"]),
        "/system": lambda: os.system("echo by a shell"),
        "/raw_line": lambda: os.write(1, b"r" * 1_000_000 + b"\\n"),
        "/unended": lambda: os.write(1, b"without an end"),
        "/warning": lambda: __import__("warnings").warn("be warned"),
    }

    {keyword} handle(function_call_info):
        WAYS[function_call_info.path]()
        return os.getpid()
"""
FLOODS = {
    "prints": "for _ in range(10**6): print('x' * 1000)",
    "short_lines": "for _ in range(10**6): print('y')",
    "one_string": "print('z' * 10**8)",
    "buffer": "for _ in range(100): sys.stdout.buffer.write(os.urandom(10**6))",
    "raw": "for _ in range(10**4): os.write(1, b'w' * 99_999 + b'\\n')",
    "raw_newlines": "for _ in range(1000): os.write(1, b'\\n' * 100_000)",
    "raw_short": "for _ in range(1000): os.write(1, b'yes\\n' * 25_000)",
    "raw_no_lines": "for _ in range(1000): os.write(2, os.urandom(1000) * 100)",
    "child": "subprocess.run('yes | head -c 100000000', shell=True)",
    "logs": "for _ in range(10**4): logging.warning('%s', 'l' * 10_000)",
}


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Iterator[Running]:
    """One host with handlers that print in every way."""
    take_notes(shared_site, "d", 'timeout = "60s"\nmax_workers = 1')
    shared_site.write("d/sync.py", HANDLER.replace("{keyword}", "def"))
    shared_site.write("d/async.py", HANDLER.replace("{keyword}", "async def"))
    for name, text in FLOODS.items():
        shared_site.write(
            f"d/flood_{name}.py",
            f"import logging, os, subprocess, sys\ndef handle(data):\n    {text}\n    return 'done'\n",
        )
    shared_site.write("d/bystander.py", "import os\ndef handle(data):\n    return os.getpid()\n")
    return shared_site.start()


def records(host: Running, call_id: str) -> list[dict[str, Any]]:
    """What the log has of a call's output."""
    found = [json.loads(line) for line in host.lines if f'"call_id":"{call_id}"' in line]
    return [record for record in found if record["logger"] == "spaces.output"]


ATTRIBUTED = {
    "print": [("info", "one, two")],
    "lines": [("info", "first"), ("info", "second")],
    "pieces": [("info", "in several pieces")],
    "unicode": [("info", "\u2603 \\ud83d")],
    "stderr": [("warning", "on stderr")],
    "bytes": [("info", "caf\u00e9 \\xff!")],
    "reconfigured": [("info", "reconfigured")],
    "nul": [("info", "a\0b\x1b[31mc")],
    "closed": [("info", "after closing")],
    "replaced": [("info", "back again")],
    "wrapped": [("info", "wrapped"), ("info", "after the wrapper")],
    "late": [("info", "said at its end")],
    "warning": [("warning", "UserWarning: be warned")],
    "logged": [
        ("info", "shop: informed of 1"),
        ("warning", "shop: warned"),
        ("error", "shop: wrong"),
        ("error", "ZeroDivisionError: division by zero"),
    ],
}


@pytest.mark.parametrize("name", ["sync", "async"])
@pytest.mark.parametrize("way", ATTRIBUTED)
def test_output_has_the_id_of_its_call(host: Running, name: str, way: str) -> None:
    """Function and call id stand beside each line, and the level says where it came from."""
    call_id = f"{name}-{way}"

    assert host.call(f"d/{name}", f"/{way}", headers={"X-Call-Id": call_id}).status_code == 200

    expected = ATTRIBUTED[way]
    found = eventually(lambda: len(records(host, call_id)) >= len(expected) and records(host, call_id), f"{expected}")
    assert {record["function"] for record in found} == {f"d/{name}"}
    for record, (level, text) in zip(found, expected, strict=True):
        assert record["level"] == level
        assert text in record["message"]
    assert "not this" not in str(found)
    assert "nowhere" not in str(found)


def test_a_thread_of_a_sync_call_counts_as_that_call(host: Running) -> None:
    """There is only one that it can belong to."""
    host.call("d/sync", "/thread", headers={"X-Call-Id": "threaded"})

    eventually(lambda: [r for r in records(host, "threaded") if r["message"] == "in a thread"], "the line")


def test_what_an_import_prints(host: Running) -> None:
    """It belongs to no call, but to the function."""
    host.call("d/sync", "/print")

    said = "printed by the import", '"function":"d/sync"'
    line = eventually(lambda: [each for each in host.lines if all(part in each for part in said)], "the line")[0]
    assert "call_id" not in line


@pytest.mark.parametrize(
    ("way", "lines"),
    [
        ("libc", ["said in C"]),
        ("fd", ["written to 1"]),
        ("fd2", ["written to 2"]),
        ("binary", ["\\\\xfe\\\\xff"]),
        ("child", ["by a child", "by a child, on stderr"]),
        ("system", ["by a shell"]),
    ],
)
@pytest.mark.parametrize("name", ["sync", "async"])
def test_what_goes_to_the_file_descriptors(host: Running, name: str, way: str, lines: list[str]) -> None:
    """C code and children are heard, too, as output of the function."""
    restart(host, name)
    before = len(host.lines)

    assert host.call(f"d/{name}", f"/{way}").status_code == 200

    for line in lines:
        eventually(
            lambda line=line: [r for r in host.lines[before:] if line in r and f'"function":"d/{name}"' in r], line
        )


def restart(host: Running, name: str) -> None:
    """A worker whose descriptors 0 to 2 nobody has closed."""
    host.call(f"d/{name}", "/print")
    path = host.root / f"functions/d/{name}.py"
    generation = host.status(f"d/{name}")["generation"]
    path.write_text(path.read_text() + "\n")
    eventually(lambda: host.status(f"d/{name}")["generation"] != generation, "the new generation")


@pytest.mark.parametrize("way", ["long", "raw_line"])
def test_a_line_of_a_megabyte(host: Running, way: str) -> None:
    """It is cut into several; as much of it as a call may print is there."""
    restart(host, "sync")
    before = len(host.lines)

    assert host.call("d/sync", f"/{way}").status_code == 200

    mark = "x" if way == "long" else "r"

    def size() -> int:
        return sum(json.loads(line)["message"].count(mark) for line in host.lines[before:] if mark * 100 in line)

    eventually(lambda: size() > 900_000, "the line")
    assert max(map(len, host.lines[before:])) < 40_000


def test_a_last_line_without_an_end(host: Running) -> None:
    """What a process wrote last is there at the latest when it ends."""
    restart(host, "async")
    host.call("d/async", "/unended")
    restart(host, "async")

    host.logged("without an end")


def peak(host: Running) -> int:
    """KiB of memory that the host has had at most."""
    lines = Path(f"/proc/{host.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_output(host: Running, name: str) -> None:
    """A gigabyte and more: the call is answered, others meanwhile, and the host is no larger for it."""
    bystander = host.call("d/bystander").json()
    memory, lines, answers = peak(host), len(host.lines), 0
    with ThreadPoolExecutor(1) as clients:
        flood = clients.submit(host.call, f"d/flood_{name}", timeout=100)
        while not flood.done():
            assert host.call("d/bystander").json() == bystander
            answers += 1
            wait([flood], timeout=0.01)

    assert flood.result().text == "done"
    assert answers
    assert peak(host) - memory < 32 * 1024
    assert sum(map(len, host.lines[lines:])) < 16 * 1024 * 1024
