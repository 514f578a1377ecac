"""spaces.toml is changed while the host runs."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Running, Site, error_of, eventually
from tests.acceptance.hammer import Hammer

STOCK = """
    import os, time
    def handle(data, secrets):
        time.sleep(float(data.get("sleep", 0)))
        return {"zygote": os.getppid(), "env": os.environ.get("MARK"), "secret": secrets.get("key")}
    """


@pytest.fixture
def host(site: Site) -> Running:
    """A host with one function that is loaded."""
    site.write("demo/stock.py", STOCK)
    site.write("spaces.toml", '[spaces.demo]\ntimeout = "1h"\n')
    host = site.start("serve")
    assert host.call("demo/stock").status_code == 200
    return host


def loads(host: Running) -> int:
    """How often spaces.toml was read, well or not."""
    return sum("spaces.toml loaded" in line or "settings before go on" in line for line in host.lines)


def configure(site: Site, host: Running, text: str) -> None:
    """Write spaces.toml and wait until it is read."""
    before = loads(host)
    site.write("spaces.toml", text)
    eventually(lambda: loads(host) > before, "spaces.toml to be read")


def test_timeouts_apply_without_a_new_process(site: Site, host: Running) -> None:
    """Of a function, of its space, of all; and what else the host alone goes by."""
    zygote = host.call("demo/stock").json()["zygote"]
    for table in ("spaces.demo.functions.stock", "spaces.demo", "defaults"):
        configure(site, host, f'[{table}]\ntimeout = "50ms"\n')
        eventually(lambda: host.call("demo/stock", "?sleep=1").status_code == 504, "the short timeout")
        configure(site, host, f'[{table}]\ntimeout = "1h"\nmethods = ["POST"]\n')
        eventually(lambda: host.call("demo/stock").status_code == 405, "the methods")
        assert host.call("demo/stock", "?sleep=0.1", method="POST").status_code == 200
    (site.root / "spaces.toml").unlink()
    eventually(lambda: host.call("demo/stock").status_code == 200, "the defaults")
    assert host.call("demo/stock").json()["zygote"] == zygote


def test_env_secrets_and_memory_make_a_new_generation(site: Site, host: Running) -> None:
    """Without a failed request, and only of the functions that they are for."""
    site.write("demo/other.py", STOCK)
    eventually(lambda: host.call("demo/other").status_code == 200, "the other one")
    other = host.call("demo/other").json()
    with Hammer(host, "demo/stock", 4) as hammer:
        zygotes = {hammer.answers[0][-1]["zygote"]}
        for key, value, told in (("env", '{MARK = "x"}', "env"), ("secrets", '{key = "x"}', "secret")):
            configure(site, host, f"[spaces.demo.functions.stock]\n{key} = {value}\n")
            eventually(lambda told=told: hammer.answers[0][-1][told] == "x", f"the new {key}")
            zygotes.add(hammer.answers[0][-1]["zygote"])
        configure(site, host, '[spaces.demo.functions.stock]\nmemory = "1 GiB"\n')
        eventually(lambda: hammer.answers[0][-1]["zygote"] not in zygotes, "a new process")
    assert len(zygotes) == 3
    assert host.call("demo/other").json() == other


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[defaults]\ntimeout = "fast"\n', "spaces.toml:2: "),
        ("[defaults]\n\ntimeuot = 3\n", "spaces.toml:3: "),
        ("[defaults\n", "spaces.toml:1: "),
        ('[spaces.demo]\npath = "nowhere"\n', "spaces.toml:2: "),
        ('[spaces.demo]\nsecrets = {key = "env:NOT_SET_ANYWHERE"}\n', "spaces.toml:2: "),
    ],
)
def test_a_broken_edit_keeps_what_was_good(site: Site, host: Running, text: str, complaint: str) -> None:
    """And is told with its line; the next good one counts."""
    configure(site, host, '[spaces.demo]\nmethods = ["GET"]\n')
    eventually(lambda: host.call("demo/stock", method="PUT").status_code == 405, "the methods")
    configure(site, host, text)
    assert "the settings before go on" in host.logged(complaint)
    assert host.call("demo/stock").status_code == 200
    assert host.call("demo/stock", method="PUT").status_code == 405
    configure(site, host, '[spaces.demo]\nmethods = ["PUT"]\n')
    eventually(lambda: host.call("demo/stock", method="PUT").status_code == 200, "the good edit")


def test_a_space_in_another_folder_can_be_added_moved_and_removed(site: Site, host: Running) -> None:
    """With `path`; its files are watched from then on."""
    for place, number in (("one", 1), ("two", 2)):
        (site.root / place).mkdir()
        (site.root / place / "stock.py").write_text(f"def handle(data): return {number}\n")
    assert host.call("far/stock").status_code == 404
    site.write("spaces.toml", '[spaces.far]\npath = "one"\n')
    eventually(lambda: host.call("far/stock").status_code == 200, "the new space")
    assert host.call("far/stock").json() == 1
    (site.root / "one" / "stock.py").write_text("def handle(data): return 10\n")
    eventually(lambda: host.call("far/stock").json() == 10, "an edit there")
    with Hammer(host, "far/stock", 2) as hammer:
        site.write("spaces.toml", '[spaces.far]\npath = "two"\n')
        hammer.until(2)
        (site.root / "two" / "stock.py").write_text("def handle(data): return 20\n")
        hammer.until(20)
    site.write("spaces.toml", "")
    eventually(lambda: host.call("far/stock").status_code == 404, "the space to be gone")


def test_a_change_of_the_server_says_that_it_needs_a_start(site: Site, host: Running) -> None:
    """And only such a change: that the address was given on the command line is none."""
    before = host.call("demo/stock").json()
    configure(site, host, '[defaults]\ntimeout = "1h"\n')
    assert "next start" not in host.log
    configure(site, host, '[server]\nengine = "uvicorn"\n[spaces.demo.functions.stock]\nmethods = ["GET"]\n')
    assert "[server]" in host.logged("next start")
    eventually(lambda: host.call("demo/stock", method="PUT").status_code == 405, "the rest of it")
    assert host.call("demo/stock").json() == before


def test_a_slow_save_costs_no_request(site: Site, host: Running) -> None:
    """A file that is emptied and then written is not taken for an empty one."""
    (site.root / "far").mkdir()
    (site.root / "far" / "stock.py").write_text("import os\ndef handle(data): return os.environ['MARK']\n")
    text = '[spaces.far]\npath = "far"\nenv = {MARK = "%s"}\n'
    site.write("spaces.toml", text % "0")
    eventually(lambda: host.call("far/stock").status_code == 200, "the space")
    with Hammer(host, "far/stock", 2) as hammer:
        for number in range(1, 6):
            with (site.root / "spaces.toml").open("w") as file:
                for line in (text % number).splitlines(keepends=True):
                    file.write(line)
                    file.flush()
                    seen = hammer.calls
                    eventually(lambda seen=seen: hammer.calls > seen + 50, "some time to pass")
            hammer.until(number)


def test_min_workers_are_started_when_they_are_asked_for(site: Site, host: Running) -> None:
    """Of a function that is loaded, and of one that is not."""
    site.write("demo/other.py", STOCK)
    configure(site, host, "[spaces.demo]\nmin_workers = 2\n")
    for name in ("demo/stock", "demo/other"):
        eventually(lambda name=name: host.status(name)["workers"] == 2, f"two workers of {name}")


def test_the_command_line_stays_in_force(site: Site) -> None:
    """What it set instead of [server] is no change of the file."""
    site.write("demo/stock.py", STOCK)
    site.write("spaces.toml", '[server]\nbind = "127.0.0.1:1"\n')
    host = site.start("serve", "--engine", "uvicorn")
    configure(site, host, '[server]\nbind = "127.0.0.1:1"\n[defaults]\nmethods = ["PUT"]\n')
    eventually(lambda: host.call("demo/stock").status_code == 405, "the rest of it")
    assert error_of(host.call("demo/stock"))["code"] == "method_not_allowed"
    assert "next start" not in host.log
