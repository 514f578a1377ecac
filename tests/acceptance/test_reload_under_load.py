"""Files are changed while many clients call: no call fails, and no answer comes from two states of the files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE, Running, Site, eventually
from tests.acceptance.hammer import Hammer
from tests.acceptance.space import Space, version


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Running:
    """A host in production, for spaces of several tests."""
    return shared_site.start("serve")


@pytest.fixture
def space(host: Running) -> Space:
    """A space of its own."""
    return Space(host)


def rename_over(path: Path, text: str) -> None:
    """A new file takes the place of the old one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def in_place(path: Path, text: str) -> None:
    """The file is emptied and written."""
    path.write_text(text)


def in_pieces(path: Path, text: str) -> None:
    """The file is emptied and written a few bytes at a time."""
    with path.open("w") as file:
        for at in range(0, len(text), 7):
            file.write(text[at : at + 7])
            file.flush()


def move_away_first(path: Path, text: str) -> None:
    """The old file becomes the backup; then a new one is written."""
    path.replace(path.with_name(f"{path.name}~"))
    path.write_text(text)


WAYS: tuple[Callable[[Path, str], None], ...] = (rename_over, in_place, in_pieces, move_away_first)


@pytest.mark.parametrize("engine", ["hypercorn", "uvicorn"])
def test_twenty_edits_cost_no_request(site: Site, engine: str) -> None:
    """However they are saved; each client goes from version to version and never back."""
    path = site.write("demo/stock.py", version(0))
    host = site.start("serve", engine=engine)
    with Hammer(host, "demo/stock") as hammer:
        for number in range(1, 21):
            WAYS[number % len(WAYS)](path, version(number))
            hammer.until(number)
    for run in hammer.runs():
        assert run == list(range(21))


def test_edits_in_quick_succession_cost_no_request(space: Space) -> None:
    """Faster than they can be served: the last one is, and none is served after a later one."""
    path = space.folder / "stock.py"
    space.copy({"stock.py": version(0)})
    space.comes_to_serve(0)
    with Hammer(space.host, f"{space.name}/stock") as hammer:
        for number in range(1, 201):
            WAYS[number % len(WAYS)](path, version(number))
        hammer.until(200)
    for run in hammer.runs():
        assert run == sorted(run)


# One answer, one state of the files.

STATE = {
    "stock.py": "import eager\nVERSION = {}\n"
    "def handle(data):\n    from pack import late\n    import lazy\n"
    "    return [VERSION, eager.VERSION, lazy.VERSION, late.VERSION, lazy.deeper()]\n",
    "eager.py": "VERSION = {}\n",
    "lazy.py": "VERSION = {}\ndef deeper():\n    from pack.deeper import VERSION\n    return VERSION\n",
    "pack/late.py": "VERSION = {}\n",
    "pack/deeper.py": "VERSION = {}\n",
}


def state(number: int) -> dict[str, str]:
    """Every file at one version."""
    return {name: text.replace("{}", str(number)) for name, text in STATE.items()}


@pytest.mark.parametrize("save", [rename_over, in_place, in_pieces], ids=lambda save: save.__name__)
def test_an_answer_comes_from_what_was_on_disk_at_one_moment(space: Space, save: Callable[[Path, str], None]) -> None:
    """Five files are edited one after the other: an answer may show a state in between, but never one that was not."""
    names = list(STATE)
    space.copy(state(0))
    on_disk = [0] * len(names)
    states = {json.dumps(on_disk)}
    space.comes_to_serve(on_disk)
    with Hammer(space.host, f"{space.name}/stock") as hammer:
        for number in range(1, 21):
            order = range(len(names)) if number % 2 else reversed(range(len(names)))
            for file in order:
                on_disk[file] = number
                states.add(json.dumps(on_disk))
                save(space.folder / names[file], state(number)[names[file]])
            if number % 3:
                hammer.until(on_disk)
        hammer.until(on_disk)
    assert hammer.distinct() <= states
    for run in hammer.runs():
        assert run == sorted(run, key=sum)


def processes(space: Space) -> set[int]:
    """Those that run functions of this space, which is where they are at home."""
    found = set()
    for pid in space.host.descendants():
        with suppress(OSError):  # it has ended by now
            if os.readlink(f"/proc/{pid}/cwd") == str(space.folder):
                found.add(pid)
    return found


def test_a_call_that_began_before_a_save_ends_with_the_old_files(space: Space) -> None:
    """Also what it imports only after the save, and in a worker that is ended as soon as it is done."""
    waiting = (
        "import os, time\nwhile not os.path.exists(os.path.join(os.path.dirname(__file__), 'go')): time.sleep(.005)\n"
    )
    slow = STATE["stock.py"].replace("    from pack", f"    if data: exec({waiting!r}, globals())\n    from pack")
    space.copy({**state(1), "stock.py": slow.replace("{}", "1")})
    space.comes_to_serve([1] * 5)
    with ThreadPoolExecutor(4) as clients:
        calls = [clients.submit(space.answer, "stock", "?wait=1") for _ in range(4)]
        eventually(lambda: len(processes(space)) == 6, "a zygote, a worker for each of the calls under way, a spare")
        old = processes(space)
        for name, text in state(2).items():
            space.write(name, text)
        space.serves([2] * 5)
        (space.folder / "pack" / "deeper.py").unlink()
        assert not any(call.done() for call in calls)
        (space.folder / "go").touch()
        assert [call.result(PATIENCE) for call in calls] == [[1] * 5] * 4
    eventually(lambda: not old & space.host.descendants(), "the end of the old generation")


def test_a_stream_that_began_before_a_save_ends_with_the_old_files(space: Space) -> None:
    """Sync and async; the new code streams meanwhile."""
    stream = """
        import os, {sleeper}
        {kind} handle(data):
            yield "{version} begins\\n"
            while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
                {sleep}(0.005)
            import helper
            yield f"{version} ends {{helper.VERSION}}\\n"
        """
    kinds = {
        "plain": {"sleeper": "time", "kind": "def", "sleep": "time.sleep"},
        "awaited": {"sleeper": "asyncio", "kind": "async def", "sleep": "await asyncio.sleep"},
    }
    files = {f"{name}.py": stream.format(version=1, **kind) for name, kind in kinds.items()}
    space.copy({**files, "helper.py": "VERSION = 1", "seen.py": version(0)})
    space.comes_to_serve(0, "seen")
    streams = {}
    for name in kinds:
        streams[name] = space.host.client.stream("GET", space.host.path(f"{space.name}/{name}"))
    with streams["plain"] as plain, streams["awaited"] as awaited:
        lines = {name: answer.iter_lines() for name, answer in (("plain", plain), ("awaited", awaited))}
        assert {name: next(line) for name, line in lines.items()} == dict.fromkeys(kinds, "1 begins")
        space.write("helper.py", "VERSION = 2")
        for name, kind in kinds.items():
            before = space.status(name)["generation"]
            space.write(f"{name}.py", f"import helper\ndef handle(data): return helper.VERSION\n# {kind}")
            eventually(lambda n=name, old=before: space.status(n)["generation"] != old, "the new code")
            assert space.answer(name) == 2
        (space.folder / "go").touch()
        assert {name: list(line) for name, line in lines.items()} == {name: ["1 ends 1"] for name in kinds}


# git

FILES = 12


@pytest.fixture
def git(space: Space) -> Iterator[Callable[..., None]]:
    """git in the space's folder, which makes it slow: every file that it writes takes its time."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    settings = {
        "user.name": "x", "user.email": "x@example.org", "commit.gpgsign": "false", "init.defaultBranch": "main",
        "core.autocrlf": "false", "filter.slow.smudge": "sleep 0.03; cat", "filter.slow.clean": "cat",
        "advice.detachedHead": "false",
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def run(*arguments: str) -> None:
        command = ["git", *options, *arguments]
        subprocess.run(command, cwd=space.folder, env=environment, check=True, capture_output=True)

    return run  # type: ignore[return-value]


def checked_out(number: int) -> dict[str, str]:
    """Many files at one version: half of them imported at once, half when called."""
    names = [f"module{index}" for index in range(FILES)]
    eager, lazy = names[::2], names[1::2]
    handler = f"import {', '.join(eager)}\nVERSION = {number}\ndef handle(data):\n    import {', '.join(lazy)}\n"
    handler += f"    return [VERSION, {', '.join(f'{name}.VERSION' for name in names)}]\n"
    return {"stock.py": handler, **{f"{name}.py": f"VERSION = {number}\n" for name in names}}


def test_a_git_operation_is_served_as_a_whole(space: Space, git: Callable[..., Any]) -> None:
    """Checkout, stash, reset: no state in between, however long git takes."""
    space.copy({**checked_out(1), ".gitattributes": "*.py filter=slow\n"})
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("checkout", "-q", "-b", "two")
    space.comes_to_serve([1] * (FILES + 1))
    for name, text in checked_out(2).items():
        (space.folder / name).write_text(text)
    git("commit", "-q", "-a", "-m", "two")
    one, two, three = ([number] * (FILES + 1) for number in (1, 2, 3))
    space.serves(two)
    with Hammer(space.host, f"{space.name}/stock", clients=4) as hammer:
        git("checkout", "-q", "main")
        hammer.until(one)
        git("checkout", "-q", "two")
        hammer.until(two)
        git("reset", "-q", "--hard", "main")
        hammer.until(one)
    assert hammer.distinct() == {json.dumps(one), json.dumps(two)}
    for name, text in checked_out(3).items():
        (space.folder / name).write_text(text)
    space.serves(three)
    with Hammer(space.host, f"{space.name}/stock", clients=4) as hammer:
        git("stash", "-q")
        hammer.until(one)
        git("stash", "pop", "-q")
        hammer.until(three)
    assert hammer.distinct() == {json.dumps(one), json.dumps(three)}


# Many functions, many edits.


def test_many_functions_can_be_edited_at_once(space: Space) -> None:
    """Those that are loaded are loaded again, those that are not serve what is there when they are called."""
    names = [f"f{number}" for number in range(300)]
    space.copy({f"{name}.py": version(1) for name in names})
    warm = names[::6]
    space.comes_to_serve(1, warm[0])
    for name in warm:
        assert space.answer(name) == 1
    with Hammer(space.host, f"{space.name}/{warm[0]}", clients=1):
        for name in names:
            rename_over(space.folder / f"{name}.py", version(2))
        for name in warm:
            space.serves(2, name)
    assert space.answer("f1") == 2
    assert len(space.host.client.get(f"/spaces/{space.name}/functions").json()["functions"]) == 300


def test_a_helper_of_many_functions_is_reloaded_in_all(space: Space) -> None:
    """Thirty loaded functions; and a broken save of it breaks none."""
    names = [f"f{number}" for number in range(30)]
    code = "import shared\ndef handle(data): return shared.X\n"
    space.copy({**{f"{name}.py": code for name in names}, "shared.py": "X = 1\n"})
    space.comes_to_serve(1, names[0])
    for name in names:
        assert space.answer(name) == 1
    space.write("shared.py", "X = 2\n")
    for name in names:
        space.serves(2, name)
    space.write("shared.py", "X = \n")
    for name in names:
        space.load_error(name)
        assert space.answer(name) == 2
    space.write("shared.py", "X = 3\n")
    for name in names:
        space.serves(3, name)


def test_reloads_leave_nothing_behind(site: Site) -> None:
    """Neither processes nor descriptors; loads that failed or were overtaken leave none either."""
    path = site.write("demo/stock.py", version(0))
    host = site.start("serve")

    def held() -> tuple[int, int]:
        eventually(lambda: len(host.descendants()) == 4, "a base, a zygote, its worker and its spare")
        return len(host.descendants()), len(os.listdir(f"/proc/{host.process.pid}/fd"))

    def edit(numbers: range) -> None:
        for number in numbers:
            if number % 5 == 0:
                rename_over(path, version(number) + "1 / 0\n")
                eventually(lambda: host.status("demo/stock")["load_error"], "the error")
            if number % 7 == 0:
                rename_over(path, "while True: pass\n" + version(number))
            rename_over(path, version(number))
            eventually(lambda number=number: host.call("demo/stock").json() == number, "the new version")

    assert host.call("demo/stock").json() == 0
    edit(range(1, 6))
    processes, descriptors = held()
    edit(range(6, 50))
    eventually(lambda: held()[0] <= processes, f"no more than {processes} processes")
    eventually(lambda: held()[1] <= descriptors, f"no more than {descriptors} descriptors")


def test_deleting_a_function_ends_its_processes(site: Site) -> None:
    """Once its calls are over; those under way are answered."""
    site.write("demo/stock.py", """
        import os, time
        def handle(data):
            while data and not os.path.exists(data["until"]):
                time.sleep(0.005)
            return 1
        """)  # fmt: skip
    site.write("demo/other.py", version(1))
    host = site.start("serve")
    assert host.call("demo/other").json() == 1
    eventually(lambda: len(host.descendants()) == 4, "a base, a zygote, its worker and its spare")
    without = host.descendants()
    go = site.root / "go"
    with ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(host.call, "demo/stock", f"?until={go}") for _ in range(2)]
        eventually(lambda: host.status("demo/stock")["busy"] == 2, "the calls under way")
        (site.root / "functions/demo/stock.py").unlink()
        eventually(lambda: host.call("demo/stock").status_code == 404, "it to be gone")
        go.touch()
        assert [(call.result(PATIENCE).status_code, call.result().json()) for call in calls] == [(200, 1)] * 2
    eventually(lambda: host.descendants() == without, "the end of its processes")


def test_a_function_that_is_deleted_while_calls_wait_for_it_answers_them(site: Site) -> None:
    """They are told that it is gone; its import is ended."""
    site.write("demo/stock.py", "import time\nprint('begun', flush=True)\ntime.sleep(1e6)\n" + version(1))
    host = site.start("serve")
    without = host.descendants()
    with ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(host.call, "demo/stock") for _ in range(2)]
        host.logged("begun")
        (site.root / "functions/demo/stock.py").unlink()
        assert [call.result(PATIENCE).status_code for call in calls] == [404, 404]
    eventually(lambda: host.descendants() == without, "the end of its processes")
