"""Loading on stage: sources that change when told to, imports that end when told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from runtime import loading as module_under_test
from runtime.config import FunctionSettings
from runtime.errors import HostError, LoadFailed, NotFound
from runtime.loading import Loading
from runtime.registry import Function
from runtime.snapshots import Snapshot
from runtime.spawner import Loaded
from runtime.telemetry import FunctionStats
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
FOLDER = "/root/functions/demo"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def function(**settings: Any) -> Function:
    """demo/stock."""
    path = Path(FOLDER) / "stock.py"
    return Function(1, "demo", "stock", path, 7, "sync", ("data",), "", FunctionSettings(**settings))


class Disk:
    """Stands in for the loader: one text, which is the digest, too. A text of `missing` is no function."""

    def __init__(self) -> None:
        self.text = "one"
        self.reads = 0
        self.checked: list[tuple[str, dict[str, str]]] = []
        self.extras: dict[str, str] = {}
        self.gate = threading.Event()  # reading waits for it
        self.gate.set()

    def snapshot(self, space: str, name: str) -> Snapshot:
        self.reads += 1
        text = self.text
        self.gate.wait(10)
        if text == "missing":
            raise LoadFailed("stock.py was deleted")
        return Snapshot(space, name, f"{FOLDER}/stock.py", FOLDER, (FOLDER,), (), text, frozenset(), frozenset())

    def changed(self, snapshot: Snapshot, extras: Mapping[str, str]) -> bool:
        self.checked.append((snapshot.digest, dict(extras)))
        return self.text != snapshot.digest or any(self.extras.get(path) != digest for path, digest in extras.items())


class Made:
    """Stands in for a Generation."""

    def __init__(self, function: Function, snapshot: Snapshot, extras: Mapping[str, str], unsafe: str | None) -> None:
        self.function = function
        self.snapshot = snapshot
        self.loaded = Loaded("sync", ("data",), extras, 0.001, unsafe)
        self.alive = True
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        self.alive = False


class StagePool:
    """What a Loading sees of its pool."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.function = function()
        self.tasks = tasks
        self.stats = FunctionStats()
        self.current: Any = None
        self.error: LoadFailed | None = None
        self.loading = False
        self.served: list[str] = []
        self.refused: list[HostError] = []
        self.ended = 0
        self.printed_lines: list[str] = []

    def swap(self, generation: Any) -> None:
        self.current = generation
        self.served.append(generation.snapshot.digest)

    def refuse_waiting(self, error: HostError) -> None:
        self.refused.append(error)

    def serve_waiting(self) -> None:
        self.ended += 1

    def printed(self, exchange: None, level: int, text: str) -> None:
        self.printed_lines.append(text)


class Stage:
    """A Loading with its surroundings. Imports end at once, unless there is a gate for their text."""

    def __init__(self, tasks: anyio.abc.TaskGroup, debug: bool) -> None:
        self.disk = Disk()
        self.pool = StagePool(tasks)
        self.limiter = anyio.CapacityLimiter(1)
        self.loading = Loading(self.pool, self.disk, None, self.limiter, debug=debug)  # type: ignore[arg-type]
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.made: list[Made] = []
        self.gates: dict[str, anyio.Event] = {}
        self.errors: dict[str, LoadFailed] = {}
        self.extras: dict[str, str] = {}
        self.unsafe: str | None = None
        self.while_importing: Callable[[str], None] = lambda _: None

    async def load(self, function: Function, snapshot: Snapshot, *_: Any, environment: object, debug: bool) -> Made:
        """Instead of Generation.load."""
        text = snapshot.digest
        self.begun.append(text)
        self.while_importing(text)
        try:
            if text in self.gates:
                await self.gates[text].wait()
        except BaseException:
            self.cancelled.append(text)
            raise
        if text in self.errors:
            raise self.errors[text]
        self.made.append(Made(function, snapshot, self.extras, self.unsafe))
        return self.made[-1]

    async def rest(self) -> None:
        """Until no load is under way."""
        await until(lambda: not self.pool.loading)

    async def save(self, text: str) -> None:
        """Another text on disk, told, and what comes of it."""
        self.disk.text = text
        self.loading.changed()
        await self.rest()


@asynccontextmanager
async def staged(monkeypatch: pytest.MonkeyPatch, debug: bool = False) -> AsyncIterator[Stage]:
    """A stage on which nothing has happened yet."""
    async with anyio.create_task_group() as tasks:
        stage = Stage(tasks, debug)
        monkeypatch.setattr(module_under_test.Generation, "load", stage.load)
        yield stage
        tasks.cancel_scope.cancel()


async def test_the_first_need_loads_what_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however many need it; and checks that it was still there at the end."""
    async with staged(monkeypatch) as stage:
        for _ in range(3):
            stage.loading.need()
        await stage.rest()
        assert (stage.pool.served, stage.disk.reads, stage.pool.ended) == (["one"], 1, 1)
        assert stage.disk.checked == [("one", {})]
        assert stage.pool.stats.reloads == {}


async def test_a_change_is_loaded_beside_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes its place when it is there."""
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.gates["two"] = anyio.Event()
        stage.disk.text = "two"
        stage.loading.changed()
        await until(lambda: stage.begun == ["one", "two"])
        assert stage.pool.served == ["one"]
        stage.gates["two"].set()
        await stage.rest()
        assert stage.pool.served == ["one", "two"]
        assert stage.pool.stats.reloads == {"ok": 1}


async def test_what_serves_already_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its settings ask for another process, or what else it imported has changed."""
    async with staged(monkeypatch) as stage:
        stage.extras = {"/extra.py": "a"}
        stage.disk.extras = {"/extra.py": "a"}
        await stage.save("one")
        await stage.save("one")
        assert stage.pool.served == ["one"]
        stage.pool.function = function(timeout=1.0)
        await stage.save("one")
        assert stage.pool.served == ["one"]
        stage.pool.function = function(env={"A": "1"})
        await stage.save("one")
        assert stage.pool.served == ["one", "one"]
        stage.disk.extras = {"/extra.py": "b"}
        stage.extras = {"/extra.py": "b"}
        await stage.save("one")
        assert stage.pool.served == ["one", "one", "one"]


async def test_what_serves_and_sleeps_is_not_woken_by_a_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is when it is needed, from its own sources, whatever is on disk."""
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.pool.current.alive = False
        await stage.save("one")
        assert stage.pool.served == ["one"]
        stage.disk.text = "two"
        reads = stage.disk.reads
        stage.loading.need()
        await stage.rest()
        assert stage.pool.served == ["one", "one"]
        assert stage.disk.reads == reads


async def test_files_that_change_while_they_are_imported_are_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was imported is dropped, unseen; extras count, too."""
    async with staged(monkeypatch) as stage:

        def save(text: str) -> None:
            if text == "one":
                stage.disk.text = "two"
            elif not stage.extras:
                stage.extras = {"/extra.py": "a"}
                stage.disk.extras = {"/extra.py": "b"}
            else:
                stage.disk.extras = stage.extras

        stage.while_importing = save
        stage.loading.need()
        await stage.rest()
        assert stage.begun == ["one", "two", "two"]
        assert stage.pool.served == ["two"]
        assert [made.killed for made in stage.made] == [True, True, False]


async def test_files_that_never_stand_still_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few attempts."""
    async with staged(monkeypatch) as stage:

        def save(text: str) -> None:
            stage.disk.text = text + "+"

        stage.while_importing = save
        stage.loading.need()
        await stage.rest()
        assert len(stage.begun) == module_under_test.ATTEMPTS
        assert stage.pool.served == [stage.begun[-1]]


async def test_a_good_save_ends_an_import_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing that serves, and with something."""
    async with staged(monkeypatch) as stage:
        stage.gates = {"one": anyio.Event(), "three": anyio.Event()}
        stage.loading.need()
        await until(lambda: stage.begun == ["one"])
        await stage.save("two")
        assert (stage.cancelled, stage.pool.served) == (["one"], ["two"])
        stage.disk.text = "three"
        stage.loading.changed()
        await until(lambda: stage.begun[-1] == "three")
        await stage.save("four")
        assert (stage.cancelled, stage.pool.served) == (["one", "three"], ["two", "four"])
        assert stage.limiter.borrowed_tokens == 0


async def test_what_does_not_change_its_sources_does_not_end_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files of the folder are saved while it loads."""
    async with staged(monkeypatch) as stage:
        stage.gates["one"] = anyio.Event()
        stage.loading.need()
        await until(lambda: stage.begun == ["one"])
        for _ in range(3):
            stage.loading.changed()
        await until(lambda: len(stage.disk.checked) == 3)
        stage.gates["one"].set()
        await stage.rest()
        assert (stage.begun, stage.cancelled, stage.pool.served) == (["one"], [], ["one"])


async def test_a_change_while_sources_are_read_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before it is not served."""
    async with staged(monkeypatch) as stage:
        stage.disk.gate.clear()
        stage.loading.need()
        await until(lambda: stage.disk.reads == 1)
        stage.disk.text = "two"
        stage.loading.changed()
        stage.disk.gate.set()
        await stage.rest()
        assert stage.pool.served == ["two"]


async def test_a_failed_load_replaces_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told with file and line, and counted; the next good save ends the error."""
    caplog.set_level(logging.INFO)
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        details = {"file": "/root/helper.py", "line": 3, "traceback": "Traceback"}
        stage.errors["two"] = LoadFailed("SyntaxError: no", details=details)
        await stage.save("two")
        assert (stage.pool.served, stage.pool.refused) == (["one"], [])
        assert stage.pool.error is not None
        assert stage.pool.error.details == {"file": "/root/helper.py", "line": 3}
        assert "/root/helper.py:3: SyntaxError: no; the generation before it goes on serving" in caplog.text
        await stage.save("three")
        assert stage.pool.error is None
        assert stage.pool.stats.reloads == {"failed": 1, "ok": 1}
        await stage.save("two")
        await stage.save("three")
        assert stage.pool.error is None
        assert stage.pool.served == ["one", "three"]


async def test_in_debug_an_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be shown to who calls."""
    async with staged(monkeypatch, debug=True) as stage:
        stage.errors["one"] = LoadFailed("no", details={"file": "x", "line": 1, "traceback": "Traceback"})
        stage.loading.need()
        await stage.rest()
        assert stage.pool.error is not None
        assert stage.pool.error.details["traceback"] == "Traceback"


@pytest.mark.parametrize(
    ("trace", "where"),
    [
        ("", (f"{FOLDER}/stock.py", 7)),
        ('Thread 1:\n  File "/usr/lib/time.py", line 2 in sleep\n', (f"{FOLDER}/stock.py", 7)),
        (f'  File "/usr/x.py", line 2 in f\n  File "{FOLDER}/help.py", line 5 in <module>\n', (f"{FOLDER}/help.py", 5)),
        (f'  File "{FOLDER}/a.py", line 1 in a\n  File "{FOLDER}/b.py", line 2 in b\n', (f"{FOLDER}/a.py", 1)),
    ],
)  # fmt: skip
async def test_an_error_without_a_place_gets_one(
    monkeypatch: pytest.MonkeyPatch, trace: str, where: tuple[str, int]
) -> None:
    """The innermost of the user's own lines, or where the function is."""
    async with staged(monkeypatch) as stage:
        stage.errors["one"] = LoadFailed("did not finish", details={"traceback": trace})
        stage.loading.need()
        await stage.rest()
        assert stage.pool.error is not None
        assert (stage.pool.error.details["file"], stage.pool.error.details["line"]) == where


async def test_an_error_of_files_that_changed_meanwhile_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were only half saved."""
    async with staged(monkeypatch) as stage:
        stage.errors["one"] = LoadFailed("no")

        def save(text: str) -> None:
            stage.disk.text = "two"

        stage.while_importing = save
        stage.loading.need()
        await stage.rest()
        assert (stage.begun, stage.pool.served, stage.pool.refused) == (["one", "two"], ["two"], [])


async def test_who_waits_for_what_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once for a while, then it is tried again; a save is tried at once."""
    clock = [1000.0]
    monkeypatch.setattr(module_under_test, "monotonic", lambda: clock[0])
    async with staged(monkeypatch) as stage:
        error = stage.errors["one"] = LoadFailed("no")
        for _ in range(3):
            stage.loading.need()
            await stage.rest()
        assert (stage.begun, stage.pool.refused) == (["one"], [error] * 3)
        clock[0] += module_under_test.RETRY_AFTER
        stage.loading.need()
        await stage.rest()
        assert stage.begun == ["one", "one"]
        stage.disk.text = "missing"
        await stage.save("missing")
        assert stage.pool.refused[-1].message == "stock.py was deleted"
        await stage.save("two")
        assert stage.pool.served == ["two"]
        assert stage.pool.error is None


async def test_a_broken_save_while_it_sleeps_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is served by what was good, and the error stays to be seen."""
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.pool.current.alive = False
        stage.errors["two"] = LoadFailed("no")
        await stage.save("two")
        assert stage.pool.refused == []
        stage.loading.need()
        await stage.rest()
        assert (stage.pool.served, stage.pool.refused) == (["one", "one"], [])
        assert stage.pool.error is stage.errors["two"]
        stage.pool.current.alive = False
        stage.errors["one"] = LoadFailed("no longer")
        for _ in range(2):
            stage.loading.need()
            await stage.rest()
        assert stage.pool.refused == [stage.errors["one"]] * 2


async def test_what_was_good_and_cannot_be_imported_again_does_not_go_on_serving(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process was killed: nobody is told otherwise, and nothing of it stays once it serves again."""
    clock = [1000.0]
    monkeypatch.setattr(module_under_test, "monotonic", lambda: clock[0])
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.pool.current.alive = False
        stage.errors["one"] = LoadFailed("killed", retryable=True)
        stage.loading.need()
        await stage.rest()
        assert stage.pool.error is stage.errors["one"]
        assert "killed" in caplog.text
        assert "goes on serving" not in caplog.text
        del stage.errors["one"]
        clock[0] += module_under_test.RETRY_AFTER
        stage.loading.need()
        await stage.rest()
        assert stage.pool.served == ["one", "one"]
        assert stage.pool.error is None


async def test_the_error_of_newer_files_outlasts_that_of_what_was_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what is on disk, and are broken still."""
    clock = [1000.0]
    monkeypatch.setattr(module_under_test, "monotonic", lambda: clock[0])
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.errors["two"] = LoadFailed("broken")
        await stage.save("two")
        stage.pool.current.alive = False
        stage.errors["one"] = LoadFailed("killed", retryable=True)
        stage.loading.need()
        await stage.rest()
        assert stage.pool.refused == [stage.errors.pop("one")]
        clock[0] += module_under_test.RETRY_AFTER
        stage.loading.need()
        await stage.rest()
        assert stage.pool.served == ["one", "one"]
        assert stage.pool.error is stage.errors["two"]


async def test_a_save_that_no_process_can_be_had_for_is_loaded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody will save it again, as nothing is wrong with it."""
    monkeypatch.setattr(module_under_test, "TRY_AGAIN", 0.01)
    async with staged(monkeypatch) as stage:
        await stage.save("one")
        stage.errors["two"] = LoadFailed("no process could be started", retryable=True)
        for _ in range(3):
            await stage.save("two")
        await until(lambda: len(stage.begun) == 10)
        assert (stage.pool.served, stage.pool.refused) == (["one"], [])
        del stage.errors["two"]
        await until(lambda: stage.pool.served == ["one", "two"])
        assert stage.pool.error is None
        stage.errors["three"] = LoadFailed("broken")
        await stage.save("three")
        begun = list(stage.begun)
        await anyio.sleep(0.1)
        assert stage.begun == begun


async def test_a_function_that_is_no_more_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import is ended, who waits is told, and nothing starts for who comes later."""
    async with staged(monkeypatch) as stage:
        stage.gates["one"] = anyio.Event()
        stage.loading.need()
        await until(lambda: stage.begun == ["one"])
        stage.loading.close()
        await stage.rest()
        assert stage.cancelled == ["one"]
        stage.loading.need()
        stage.loading.changed()
        await stage.rest()
        assert (stage.begun, stage.pool.served) == (["one"], [])
        assert [type(error) for error in stage.pool.refused] == [NotFound] * 2


async def test_a_function_that_goes_at_the_very_end_of_its_load_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is ended."""
    async with staged(monkeypatch) as stage:
        real = stage.disk.changed

        def changed(snapshot: Snapshot, extras: Mapping[str, str]) -> bool:
            stage.loading._closed = True
            return real(snapshot, extras)

        monkeypatch.setattr(stage.disk, "changed", changed)
        stage.loading.need()
        await stage.rest()
        assert stage.pool.served == []
        assert stage.made[0].killed


async def test_few_are_imported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for their turn."""
    monkeypatch.setattr(module_under_test, "LONG", 1000.0)
    async with staged(monkeypatch) as stage, anyio.create_task_group() as tasks:
        order = []

        async def second() -> None:
            async with stage.loading._turn():
                order.append("second")

        async with stage.loading._turn():
            tasks.start_soon(second)
            await until(lambda: stage.limiter.statistics().tasks_waiting == 1)
            order.append("first")
        await until(lambda: len(order) == 2)
        assert order == ["first", "second"]
        assert stage.limiter.borrowed_tokens == 0


async def test_an_import_that_takes_long_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It no longer counts among those that run at once."""
    monkeypatch.setattr(module_under_test, "LONG", 0.001)
    async with staged(monkeypatch) as stage:
        async with stage.loading._turn(), stage.loading._turn(), stage.loading._turn():
            pass
        assert stage.limiter.borrowed_tokens == 0


async def test_workers_that_cannot_be_forked_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, and the setting that decides."""
    async with staged(monkeypatch) as stage:
        stage.unsafe = "importing it left threads running"
        stage.loading.need()
        await stage.rest()
        assert "demo/stock: importing it left threads running; its workers start as fresh processes" in caplog.text
        assert "`fork`" in caplog.text
