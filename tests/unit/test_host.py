"""Host on folders of its own, with real processes: calls, what it says of its functions, changes on disk, its end."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import config as configuration
from runtime import scaffold
from runtime.calls import Call, Result, function_id
from runtime.errors import Draining, LoadFailed, NotFound
from runtime.host import Host
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio

ECHO = "def handle(data):\n    return data\n"
BROKEN = "import os\nimport no_such_module\n\ndef handle(data): ...\n"
HANGING = """
import time
def handle(data):
    print("running", flush=True)
    time.sleep(1000)
"""


class Place:
    """A root with functions/, and the hosts on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "functions").mkdir()

    def write(self, files: Mapping[str, str]) -> None:
        """Files below functions/, or spaces.toml."""
        for name, text in files.items():
            path = self.root / name if name == "spaces.toml" else self.root / "functions" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / "functions" / name).unlink()

    @asynccontextmanager
    async def host(self, files: Mapping[str, str], **options: Any) -> AsyncIterator[Host]:
        """A host on these files; one that watches has begun to."""
        self.write(files)
        async with Host(configuration.load(self.root, environ={}), **{"watch": False, **options}) as host:
            yield host


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the host has logged until now, a message each."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


async def invoke(host: Host, address: str, **fields: Any) -> Result:
    """The answer to a call of `space/name`."""
    space, name = address.split("/")
    with anyio.fail_after(PATIENCE), host.invoke(call(host, space, name, **fields)) as exchange:
        result = await exchange.result()
        if not result.complete:
            async for _ in exchange.chunks():
                pass
        return result


def call(host: Host, space: str, name: str, **fields: Any) -> Call:
    number = host.ids.next()
    return Call(id=number, label=f"label-{number}", space=space, name=name, **fields)


def children() -> set[int]:
    """The pids of our own child processes."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


# Calls.


async def test_a_call_is_answered_by_the_function_of_that_name(place: Place) -> None:
    """Of that space, with its body."""
    files = {"demo/echo.py": ECHO, "other/echo.py": "def handle(data):\n    return 'other'\n"}
    async with place.host(files) as host:
        json = (b'{"a":', b"1}")
        result = await invoke(host, "demo/echo", headers=b"content-type\0application/json", body=json)
        assert (result.status, result.body, result.complete) == (200, b'{"a":1}', True)
        assert (await invoke(host, "other/echo")).body == b"other"


async def test_every_kind_of_new_handler_can_be_called(place: Place) -> None:
    """As `spaces new` writes it, and without a change."""
    for kind in scaffold.KINDS:
        scaffold.write(place.root / "functions", "demo", kind, kind)
    body = {"typed": b'{"item": "tea"}', "stream": b'{"count": 1}'}
    async with place.host({}) as host:
        for kind in scaffold.KINDS:
            result = await invoke(
                host, f"demo/{kind}", headers=b"content-type\0application/json", body=(body.get(kind, b"{}"),)
            )
            assert (kind, result.status) == (kind, 201 if kind == "http" else 200)


@pytest.mark.parametrize("address", ["demo/nothing", "nowhere/echo"])
async def test_what_is_not_there_is_said_at_once(place: Place, address: str) -> None:
    """No process is started for it."""
    async with place.host({"demo/echo.py": ECHO}) as host:
        with pytest.raises(NotFound):
            host.invoke(call(host, *address.split("/")))
        with pytest.raises(NotFound):
            host.lookup(*address.split("/"))


async def test_what_a_handler_prints_is_logged_with_its_function_and_call(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level of output, under the label that the client knows."""
    caplog.set_level(logging.INFO)
    async with place.host({"demo/talk.py": "def handle(data):\n    print('hello')\n"}) as host:
        await invoke(host, "demo/talk")
        await until(lambda: any(record.name == "spaces.output" for record in caplog.records))
    (record,) = [record for record in caplog.records if record.name == "spaces.output"]

    assert record.getMessage() == "hello"
    assert vars(record)["function"] == "demo/talk"
    assert re.fullmatch(r"label-\d+", vars(record)["call_id"])


# What is here.


async def test_a_function_that_nobody_called_is_cold(place: Place) -> None:
    """What is known of it is read from its file."""
    async with place.host({"demo/echo.py": "\nasync def handle(data, secrets): ...\n"}) as host:
        status = host.status(host.lookup("demo", "echo"))

        assert status.state == "cold"
        assert (status.space, status.name, status.id) == ("demo", "echo", function_id("demo", "echo"))
        assert (status.file, status.line) == ("functions/demo/echo.py", 2)
        assert (status.kind, status.takes) == ("async", ("data", "secrets"))
        assert (status.generation, status.load_error) == (None, None)
        assert (status.workers, status.busy, status.waiting) == (0, 0, 0)


async def test_a_function_that_was_called_is_ready(place: Place) -> None:
    """With its generation, its workers, and what is in them."""
    toml = "[defaults]\nmax_workers = 1\n"
    async with place.host({"demo/hang.py": HANGING, "spaces.toml": toml}) as host:
        function = host.lookup("demo", "hang")
        with host.invoke(call(host, "demo", "hang")), host.invoke(call(host, "demo", "hang")):
            assert (host.status(function).state, host.status(function).waiting) == ("loading", 2)
            await until(lambda: host.status(function).busy)
            status = host.status(function)

            assert status.state == "ready"
            assert re.fullmatch("[0-9a-f]{12}", status.generation or "")
            assert (status.workers, status.busy, status.waiting) == (1, 1, 1)


async def test_what_a_function_is_after_its_import_goes_before_what_its_file_looked_like(place: Place) -> None:
    """A decorator may have made something else of it."""
    source = "def handle(data): ...\nasync def other(secrets): ...\nhandle = other\n"
    async with place.host({"demo/odd.py": source}) as host:
        function = host.lookup("demo", "odd")
        await host.load(function)
        status = host.status(function)

        assert (status.kind, status.takes) == ("async", ("secrets",))


async def test_a_function_that_cannot_be_loaded_has_failed(place: Place) -> None:
    """The error has message, file and line, and the call is told."""
    async with place.host({"demo/bad.py": BROKEN}) as host:
        function = host.lookup("demo", "bad")
        with pytest.raises(LoadFailed, match="no_such_module"):
            await invoke(host, "demo/bad")
        status = host.status(function)

        assert status.state == "failed"
        assert status.load_error is not None
        assert "no_such_module" in status.load_error["message"]
        assert (status.load_error["file"], status.load_error["line"]) == ("functions/demo/bad.py", 2)
        assert "traceback" not in status.load_error


@pytest.mark.parametrize("debug", [False, True])
async def test_load_gives_the_error_or_none(place: Place, debug: bool) -> None:
    """With a traceback where errors are to be seen; what is loaded is ready for its first call."""
    async with place.host({"demo/bad.py": BROKEN, "demo/echo.py": ECHO}, debug=debug) as host:
        error = await host.load(host.lookup("demo", "bad"))
        assert error is not None
        assert ("traceback" in error.details) is debug

        assert await host.load(host.lookup("demo", "echo")) is None
        status = host.status(host.lookup("demo", "echo"))
        assert (status.state, status.workers) == ("ready", 0)


async def test_unloading_ends_the_processes_of_a_function(place: Place) -> None:
    """Its next call starts others."""
    async with place.host({"demo/pid.py": "import os\ndef handle(data):\n    return os.getpid()\n"}) as host:
        first = (await invoke(host, "demo/pid")).body
        host.unload(host.lookup("demo", "pid"))
        await until(lambda: not Path(f"/proc/{first.decode()}").exists())

        assert (await invoke(host, "demo/pid")).body != first


async def test_files_outside_of_root_keep_their_whole_path(place: Place) -> None:
    """A space may be anywhere."""
    place.write({"demo/echo.py": ECHO})
    host = Host(configuration.load(place.root, environ={}))
    error = LoadFailed("it", details={"file": "/elsewhere/bad.py", "line": 3})

    assert host.describe(error) == {"message": "it", "file": "/elsewhere/bad.py", "line": 3}
    assert host.describe(LoadFailed("it")) == {"message": "it"}


async def test_clients_are_told_no_paths_of_this_machine(place: Place) -> None:
    """What is below ROOT is named from there, in the words of an error too."""
    host = Host(configuration.load(place.root, environ={}), watch=False)
    worded = host.worded(LoadFailed(f"{host.config.root}/functions/demo/x.py was deleted"))
    assert worded.message == "the function cannot be loaded: functions/demo/x.py was deleted"
    assert str(place.root) not in str(worded.details)


async def test_metrics_are_those_of_functions_that_were_called(place: Place) -> None:
    """And how many there are."""
    async with place.host({"demo/echo.py": ECHO, "demo/other.py": ECHO}) as host:
        await invoke(host, "demo/echo")
        families = {each.name: each for each in text_string_to_metric_families((await host.metrics()).decode())}
        labels = [(each.labels["function"], each.value) for each in families["spaces_calls"].samples]
        workers = {each.labels["state"]: each.value for each in families["spaces_workers"].samples}

        assert labels == [("echo", 1)]
        assert workers == {"idle": 1, "busy": 0}
        assert [each.value for each in families["spaces_functions"].samples] == [2]


async def test_min_workers_are_started_before_the_first_call(place: Place) -> None:
    """For those functions alone that ask for them."""
    toml = "[spaces.demo.functions.echo]\nmin_workers = 2\n"
    async with place.host({"demo/echo.py": ECHO, "demo/cold.py": ECHO, "spaces.toml": toml}) as host:
        await until(lambda: host.status(host.lookup("demo", "echo")).workers == 2)
        assert host.status(host.lookup("demo", "cold")).state == "cold"


async def test_hints_are_known_after_a_scan(place: Place) -> None:
    """What is no function, and seems to be meant as one."""
    async with place.host({"demo/echo.py": ECHO, "demo/odd name.py": ECHO}) as host:
        hints = {hint.path.name for hint in host.hints if hint.important}

        assert hints == {"odd name.py"}


# Changes on disk.


async def test_an_edit_is_served(place: Place) -> None:
    """Without an end of what was there before."""
    async with place.host({"demo/echo.py": ECHO}, watch=True) as host:
        assert (await invoke(host, "demo/echo", query=b"a=1")).body == b'{"a":"1"}'
        before = host.status(host.lookup("demo", "echo")).generation
        place.write({"demo/echo.py": "def handle(data):\n    return 'new'\n"})
        await until(lambda: host.status(host.lookup("demo", "echo")).generation != before)

        assert (await invoke(host, "demo/echo")).body == b"new"


async def test_functions_come_and_go_with_their_files(place: Place, logged: Callable[[], list[str]]) -> None:
    """And the log says so."""
    async with place.host({"demo/echo.py": ECHO}, watch=True) as host:
        place.write({"new/later.py": ECHO})
        await until(lambda: ("new", "later") in host.registry.functions)
        assert host.registry.spaces == ("demo", "new")
        assert (await invoke(host, "new/later")).status == 200

        place.remove("demo/echo.py")
        await until(lambda: ("demo", "echo") not in host.registry.functions)
        with pytest.raises(NotFound):
            host.invoke(call(host, "demo", "echo"))
    assert "new/later added (functions/new/later.py)" in logged()
    assert "demo/echo removed" in logged()


async def test_a_broken_edit_keeps_what_served_and_shows_its_error(
    place: Place, logged: Callable[[], list[str]]
) -> None:
    """Until the next good one."""
    async with place.host({"demo/echo.py": ECHO}, watch=True) as host:
        await invoke(host, "demo/echo")
        function = host.lookup("demo", "echo")
        place.write({"demo/echo.py": "def handle(data):\n    return data +\n"})
        await until(lambda: host.status(function).load_error)
        status = host.status(function)

        assert status.state == "ready"
        assert status.load_error is not None
        assert (status.load_error["file"], status.load_error["line"]) == ("functions/demo/echo.py", 2)
        assert (await invoke(host, "demo/echo", query=b"a=1")).body == b'{"a":"1"}'
        place.write({"demo/echo.py": "def handle(data):\n    return 'good'\n"})
        await until(lambda: not host.status(function).load_error)
        assert (await invoke(host, "demo/echo")).body == b"good"
    assert any("the generation before it goes on serving" in line for line in logged())


async def test_in_dev_an_edit_is_loaded_before_anybody_calls(place: Place) -> None:
    """Who saves a mistake hears of it at once."""
    async with place.host({"demo/echo.py": ECHO}, watch=True, debug=True) as host:
        place.write({"demo/echo.py": BROKEN})
        await until(lambda: host.status(host.lookup("demo", "echo")).state == "failed")


async def test_settings_follow_their_file(place: Place, logged: Callable[[], list[str]]) -> None:
    """Those of functions at once; a broken file changes nothing; those of the server wait for the next start."""
    files = {"demo/echo.py": ECHO, "spaces.toml": '[defaults]\ntimeout = "5s"\n'}
    async with place.host(files, watch=True) as host:
        assert host.lookup("demo", "echo").settings.timeout == 5.0
        place.write({"spaces.toml": '[server]\nengine = "uvicorn"\n[defaults]\ntimeout = "6s"\n'})
        await until(lambda: host.lookup("demo", "echo").settings.timeout == 6.0)
        assert host.config.server.engine == "hypercorn"
        assert any("[server] take effect at the next start" in line for line in logged())

        place.write({"spaces.toml": "[defaults]\ntimeuot = 7\n"})
        await until(lambda: any("the settings before go on" in line for line in logged()))
        assert host.lookup("demo", "echo").settings.timeout == 6.0
        place.write({"spaces.toml": ""})
        await until(lambda: host.lookup("demo", "echo").settings.timeout == 10.0)


async def test_a_new_file_that_is_no_function_is_hinted_at_once(place: Place, logged: Callable[[], list[str]]) -> None:
    """When it seems to be meant as one."""
    async with place.host({"demo/echo.py": ECHO}, watch=True) as host:
        place.write({"demo/odd name.py": ECHO})
        await until(lambda: host.hints)
        place.write({"demo/another.py": ECHO})
        await until(lambda: ("demo", "another") in host.registry.functions)
    hints = [line for line in logged() if "odd name.py" in line]

    assert len(hints) == 1
    assert hints[0].startswith("functions/demo/odd name.py: ")


async def test_settings_for_a_function_that_is_not_there_are_hinted_at(
    place: Place, logged: Callable[[], list[str]]
) -> None:
    """As soon as spaces.toml is saved, and no more once it is right."""
    async with place.host({"demo/echo.py": ECHO}, watch=True) as host:
        place.write({"spaces.toml": "[spaces.demo.functions.ehco]\ntimeout = 3\n"})
        await until(lambda: host.hints)
        place.write({"spaces.toml": "[spaces.demo.functions.echo]\ntimeout = 3\n"})
        await until(lambda: not host.hints)

    assert [line for line in logged() if "ehco" in line] == [
        "spaces.toml: [spaces.demo.functions.ehco] is for a function that no file has; did you mean `echo`?"
    ]


# Its end.


async def test_draining_lets_calls_finish_and_takes_no_more(place: Place) -> None:
    """It says whether all were done in time."""
    source = (
        "import time\ndef handle(data):\n    print('running', flush=True)\n    time.sleep(0.2)\n    return 'done'\n"
    )
    async with place.host({"demo/slow.py": source}) as host:
        with host.invoke(call(host, "demo", "slow")) as exchange:
            async with anyio.create_task_group() as tasks:
                ended: list[bool] = []

                async def drain() -> None:
                    ended.append(await host.drain(PATIENCE))

                tasks.start_soon(drain)
                await until(lambda: host.draining)
                with pytest.raises(Draining):
                    host.invoke(call(host, "demo", "slow"))
                assert (await exchange.result()).body == b"done"
            assert ended == [True]


async def test_draining_gives_up_in_the_end(place: Place) -> None:
    """When a call goes on for longer than that."""
    async with place.host({"demo/hang.py": HANGING}) as host:
        with host.invoke(call(host, "demo", "hang")):
            assert await host.drain(0.0) is False


async def test_a_cut_ends_every_call(place: Place, logged: Callable[[], list[str]]) -> None:
    """The ones that run and those that wait; what waited is never run."""
    never = "import time\ntime.sleep(1000)\ndef handle(data): ...\n"
    async with place.host({"demo/hang.py": HANGING, "demo/never.py": never}) as host:
        exchanges = [host.invoke(call(host, "demo", name)) for name in ("hang", "never")]
        await until(lambda: "running" in logged())
        host.cut()
        for exchange in exchanges:
            with exchange, pytest.raises(Draining):
                await exchange.result()

        assert [exchange.over for exchange in exchanges] == [True, True]
        assert [len(pool.waiting) for pool in host._pools] == [0, 0]


async def test_no_process_is_left_after_its_end(place: Place, logged: Callable[[], list[str]]) -> None:
    """Whatever was running."""
    before = children()
    async with place.host({"demo/hang.py": HANGING, "demo/echo.py": ECHO}) as host:
        await invoke(host, "demo/echo")
        host.invoke(call(host, "demo", "hang"))
        await until(lambda: "running" in logged())
        assert children() - before
        pids = {child.process.pid for pool in host._pools for child in pool.workers}
        assert len(pids) == 2

    assert children() == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_an_exception_within_ends_it_too(place: Place) -> None:
    """And comes out as it is."""
    before = children()

    async def fail() -> None:
        async with place.host({"demo/echo.py": ECHO}) as host:
            await invoke(host, "demo/echo")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()

    assert children() == before
