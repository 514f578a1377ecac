"""Pools on real files and processes: what is loaded again for which change, what ends, what is warmed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest

from runtime import config as configuration
from runtime import pools as module_under_test
from runtime import snapshots
from runtime.calls import Call, function_id
from runtime.errors import LoadFailed, NotFound
from runtime.exchange import Exchange
from runtime.loader import Loader
from runtime.loading import Loading
from runtime.pools import Pools
from runtime.registry import Function, Registry
from runtime.share import Share
from runtime.spawner import Spawner
from runtime.worker import process as worker_process
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
VERSION = "import os\ndef handle(data): return [{}, os.getppid()]\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    """A space `demo` and the pools of its functions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "functions" / "demo"
        self.folder.mkdir(parents=True)
        self.config = configuration.load(root, environ={})
        self.loader = Loader(self.config)
        self.pools: Pools

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def registry(self, **settings: Any) -> Registry:
        """The functions that are on disk."""
        defaults = msgspec.structs.replace(self.config.defaults, **settings)
        functions = {
            key: Function(function_id(*key), *key, one.path, one.line, one.kind, one.takes, one.digest, defaults)
            for key, one in self.loader.scan().functions.items()
        }
        return Registry(("demo",), functions)

    def function(self, name: str = "stock", **settings: Any) -> Function:
        return self.registry(**settings).functions["demo", name]

    def update(self, *names: str, everything: bool = False, **settings: Any) -> None:
        """What the host does when these files have changed."""
        paths = [self.folder / name for name in names]
        self.pools.update(self.registry(**settings), paths, everything=everything)

    def begin(self, function: Function) -> Exchange:
        """A call under way."""
        return self.pools.lease(function, Call(1, "1", "demo", function.name, b"GET", b"", b"", b"", ()))

    async def call(self, function: Function | None = None) -> Any:
        """What a call answers."""
        with anyio.fail_after(10), self.begin(function or self.function()) as exchange:
            result = await exchange.result()
        assert result.status == 200, result.body
        return msgspec.json.decode(result.body)

    async def rest(self) -> None:
        """Until nothing is loading."""
        await until(lambda: not any(pool.loading for pool in self.pools))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@asynccontextmanager
async def running(place: Place, *, max_zygotes: int = 256) -> AsyncIterator[Place]:
    """The place with pools at work."""
    async with Spawner() as spawner, anyio.create_task_group() as tasks:
        place.pools = Pools(place.loader, spawner, tasks, lambda *_: None, max_zygotes=max_zygotes, debug=False)
        try:
            yield place
        finally:
            place.pools.close()
            tasks.cancel_scope.cancel()


async def test_a_function_costs_nothing_until_it_is_called(place: Place) -> None:
    """Then it has a pool, which keeps its processes."""
    place.write({"stock.py": VERSION.format(1)})
    async with running(place):
        function = place.function()
        assert list(place.pools) == []
        assert place.pools.find(function) is None
        place.update("stock.py", everything=True)
        assert list(place.pools) == []
        first = await place.call(function)
        assert first[0] == 1
        assert await place.call(function) == first
        pool = place.pools.find(function)
        assert pool is not None
        assert list(place.pools) == [pool]
        assert (pool.state, place.pools.busy) == ("ready", False)


async def test_what_concerns_a_function_is_loaded_again(place: Place) -> None:
    """Its file, a helper, a helper that is new; not what it has nothing to do with; and on suspicion everything."""
    place.write({"stock.py": "import helper\n" + VERSION.format("helper.X"), "helper.py": "X = 1"})
    async with running(place):
        last = await place.call()
        pool = place.pools.find(place.function())
        assert pool is not None
        for name, text, number in (
            ("helper.py", "X = 2", 2),
            ("stock.py", "import helper\n" + VERSION.format("helper.X + 10"), 12),
            ("helper/__init__.py", "X = 3", 13),
        ):
            place.write({name: text})
            place.update(name)
            assert pool.loading
            await place.rest()
            before, last = last, await place.call()
            assert (last[0], last[1] != before[1]) == (number, True)
        place.write({"unrelated.py": "", "other.py": VERSION.format(1)})
        place.update("unrelated.py", "other.py")
        assert not pool.loading
        place.update(everything=True)
        assert pool.loading
        await place.rest()
        assert await place.call() == last


async def test_other_settings_are_other_processes_where_processes_hold_them(place: Place) -> None:
    """The rest applies to the processes that there are."""
    place.write({"stock.py": VERSION.format("os.environ.get('A')")})
    async with running(place):
        first = await place.call()
        pool = place.pools.find(place.function())
        assert pool is not None
        place.update(timeout=5.0)
        assert (pool.loading, pool.function.settings.timeout) == (False, 5.0)
        place.update(timeout=5.0, env={"A": "x"})
        await place.rest()
        second = await place.call(place.function(timeout=5.0, env={"A": "x"}))
        assert (first[0], second[0]) == (None, "x")
        place.update(timeout=5.0, env={"A": "x"}, min_workers=3)
        assert len(pool.workers) == 3
        assert not pool.loading


async def test_a_function_that_is_removed_finishes_its_calls_and_ends(place: Place) -> None:
    """It has no pool any more, but is busy until then; a new one of its name is another."""
    place.write({"stock.py": "import time\ndef handle(data):\n    time.sleep(1000)\n"})
    async with running(place):
        function = place.function()
        before = set(worker_process.children())
        with place.begin(function) as exchange:
            pool = place.pools.find(function)
            assert pool is not None
            await until(lambda: exchange.started_at)
            (place.folder / "stock.py").unlink()
            place.update("stock.py")
            assert place.pools.find(function) is None
            assert place.pools.busy
            place.write({"stock.py": VERSION.format(2)})
            assert (await place.call())[0] == 2
            place.update()
            assert place.pools.busy
            for worker in tuple(pool.workers):
                worker.process.kill()
            await until(lambda: not place.pools.busy)
            place.update()
            assert place.pools._leaving == []
        assert set(worker_process.children()) <= before


async def test_who_waits_for_a_function_that_is_removed_is_told(place: Place) -> None:
    """That there is none, at once."""
    place.write({"stock.py": "import time\ntime.sleep(1000)\ndef handle(data): ...\n"})
    async with running(place):
        with place.begin(place.function()) as exchange:
            (place.folder / "stock.py").unlink()
            place.update("stock.py")
            with anyio.fail_after(10), pytest.raises(NotFound, match="demo/stock"):
                await exchange.result()
        assert not place.pools.busy


async def test_warm_loads_what_is_cold(place: Place) -> None:
    """Never called or asleep; not what has failed, nor what is ready."""
    place.write({"stock.py": VERSION.format(1), "broken.py": "import nowhere\ndef handle(data): ..."})
    async with running(place):
        function, broken = place.function(), place.function("broken")
        for each in (function, broken):
            place.pools.warm(each)
        await place.rest()
        pool, failed = place.pools.find(function), place.pools.find(broken)
        assert pool is not None
        assert failed is not None
        assert (pool.state, failed.state) == ("ready", "failed")
        for each in (function, broken):
            place.pools.warm(each)
        assert not pool.loading
        assert not failed.loading
        pool.retire()
        assert pool.state == "cold"
        place.pools.warm(function)
        await place.rest()
        assert pool.state == "ready"


@pytest.mark.parametrize("reason", ["idle", "many"])
async def test_zygotes_that_nobody_uses_end(place: Place, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After long idleness, or the least used of too many; their functions are ready again when called."""
    monkeypatch.setattr(module_under_test, "TIDY_EVERY", 0.01)
    place.write({f"f{number}.py": VERSION.format(number) for number in range(3)})
    settings = {"idle_timeout": 0.001} if reason == "idle" else {}
    async with running(place, max_zygotes=1), anyio.create_task_group() as tasks:
        functions = [place.function(f"f{number}", **settings) for number in range(3)]
        answers = [await place.call(function) for function in functions]
        tasks.start_soon(place.pools.tidy)
        left = set() if reason == "idle" else {"f2"}

        def ready() -> set[str]:
            return {pool.function.name for pool in place.pools if pool.state == "ready"}

        await until(lambda: ready() == left)
        await until(lambda: not any(pool.workers for pool in place.pools if pool.state == "cold"))
        again = [await place.call(function) for function in reversed(functions)]
        assert [answer[0] for answer in again] == [2, 1, 0]
        assert (again[0] == answers[2]) == (reason == "many")
        tasks.cancel_scope.cancel()


async def test_what_is_busy_or_to_be_kept_warm_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    monkeypatch.setattr(module_under_test, "TIDY_EVERY", 0.001)
    place.write({"busy.py": "import time\ndef handle(data):\n    time.sleep(1000)\n", "warm.py": VERSION.format(1),
                 "idle.py": VERSION.format(2)})  # fmt: skip
    async with running(place, max_zygotes=1), anyio.create_task_group() as tasks:
        await place.call(place.function("idle"))
        await place.call(place.function("warm", min_workers=1))
        with place.begin(place.function("busy")) as exchange:
            await until(lambda: exchange.started_at)
            tasks.start_soon(place.pools.tidy)
            idle = place.pools.find(place.function("idle"))
            assert idle is not None
            await until(lambda: idle.state == "cold")
            assert {pool.function.name for pool in place.pools if pool.state == "ready"} == {"busy", "warm"}
        tasks.cancel_scope.cancel()


async def test_what_is_loaded_before_it_is_called_stays_as_what_is_called_does(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it was warmed for the first time, or again: it is not taken to have been idle before."""
    monkeypatch.setattr(module_under_test, "TIDY_EVERY", 0.001)
    place.write({f"{name}.py": VERSION.format(1) for name in ("new", "again", "idle")})
    async with running(place), anyio.create_task_group() as tasks:
        new, again, idle = (place.function(name) for name in ("new", "again", "idle"))
        for function in (again, idle):
            await place.call(function)
        asleep, unused = place.pools.find(again), place.pools.find(idle)
        assert asleep is not None
        assert unused is not None
        asleep.retire()
        asleep.last_used = unused.last_used = float("-inf")
        for function in (new, again):
            place.pools.warm(function)
        await place.rest()
        tasks.start_soon(place.pools.tidy)
        await until(lambda: unused.state == "cold")

        assert {pool.function.name for pool in place.pools if pool.state == "ready"} == {"new", "again"}
        tasks.cancel_scope.cancel()


# Which changes concern a function


def pool_of(folder: Path, *, error: bool = False, loaded: bool = True, entry: str = "stock.py") -> Any:
    """What there is to be asked of a pool, with `import helper` and an extra file."""
    snapshot = snapshots.take("demo", "stock", str(folder))
    current = SimpleNamespace(snapshot=snapshot, loaded=SimpleNamespace(extras={str(folder / "odd" / "extra.py"): ""}))
    return SimpleNamespace(
        function=SimpleNamespace(path=folder / entry, name="stock"),
        current=current if loaded else None,
        error=LoadFailed() if error else None,
    )


@pytest.mark.parametrize(
    ("path", "concerned"),
    [
        ("stock.py", True),
        ("pack/inner.py", True),
        ("pack", True),
        (".", True),
        ("..", True),
        ("odd/extra.py", True),
        ("odd", True),
        ("helper.py", True),
        ("helper/__init__.py", True),
        ("helper", True),
        ("pack/deeper/inner.py", True),
        ("unrelated.py", False),
        ("odd/other.py", False),
        ("stocks.py", False),
        ("../other/helper.py", False),
        ("../demonstration/helper.py", False),
    ],
)
def test_which_changes_concern_what_is_loaded(place: Place, path: str, concerned: bool) -> None:
    """What it consists of, folders of that, and what has a name that it imports."""
    place.write({"stock.py": "import helper, pack.inner\ndef handle(): ...", "pack/inner.py": ""})
    changed = os.path.normpath(place.folder / path)
    assert module_under_test._concerns(pool_of(place.folder), [changed]) is concerned
    assert module_under_test._concerns(pool_of(place.folder), ["/elsewhere", changed]) is concerned


@pytest.mark.parametrize("state", [{"loaded": False}, {"error": True}])
def test_whatever_is_in_its_space_may_mend_what_cannot_be_loaded(place: Place, state: dict[str, bool]) -> None:
    """Of another space nothing does."""
    place.write({"stock.py": "def handle(): ...", "stock2/handler.py": ""})
    for entry in ("stock.py", "stock2/handler.py"):
        pool = pool_of(place.folder, entry=entry, **state)
        assert module_under_test._concerns(pool, [str(place.folder / "unrelated.py")])
        assert not module_under_test._concerns(pool, [str(place.folder.parent / "other" / "x.py")])
        assert not module_under_test._concerns(pool, [])


async def test_what_was_called_last_is_loaded_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper of hundreds of functions has changed: those in use need not wait for the others."""
    names = ("first", "second", "third")
    place.write({f"{name}.py": "import helper\ndef handle(data): return 1\n" for name in names} | {"helper.py": ""})
    order = []
    async with running(place):
        for name in ("second", "third", "first"):
            await place.call(place.function(name))
        monkeypatch.setattr(Loading, "changed", lambda loading: order.append(loading.pool.function.name))
        place.write({"helper.py": "X = 1"})
        place.update("helper.py")

    assert order == ["first", "third", "second"]


async def test_what_is_asleep_is_loaded_when_it_is_called(place: Place) -> None:
    """Its own edit is loaded at once, a helper's, which a thousand functions may have, with the next call."""
    place.write({"stock.py": "import helper\n" + VERSION.format("helper.X"), "helper.py": "X = 1"})
    async with running(place):
        await place.call()
        pool = place.pools.find(place.function())
        assert pool is not None
        pool.retire()
        await until(lambda: pool.state == "cold")
        place.write({"helper.py": "X = 2"})
        place.update("helper.py")
        assert (pool.state, pool.loading) == ("cold", False)
        assert (await place.call())[0] == 2

        pool.retire()
        await until(lambda: pool.state == "cold")
        place.write({"stock.py": VERSION.format(3)})
        place.update("stock.py")
        assert pool.loading
        assert (await place.call())[0] == 3


async def test_imports_at_once_are_those_of_all_hosts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part of them, and at least one."""
    monkeypatch.setattr(module_under_test, "LOADS_AT_ONCE", 4)
    nothing: Any = None

    def limit(index: int, of: int) -> float:
        share = Share(index, of)
        pools = Pools(nothing, nothing, nothing, nothing, max_zygotes=1, share=share, debug=False)
        return pools._limiter.total_tokens

    assert [limit(index, 3) for index in range(3)] == [2, 1, 1]
    assert limit(7, 8) == 1
    assert limit(0, 1) == 4
