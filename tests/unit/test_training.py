"""Training: when it is asked for, what is made of its outcome, and what is left of a function that goes.

The host is a stand-in: it keeps no journal, and a test says what a training call answers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from runtime import training
from runtime.calls import CallIds, Entry, Outcome, Status, Submission, function_id
from runtime.config import TRAINED, Config, FunctionSettings, ServerSettings, with_trained
from runtime.errors import Conflict, Draining, NotFound, Overloaded, RecordsError, Unprocessable
from runtime.journal import Receipt
from runtime.lessons import Draft, Lessons, Mark, Profile, ids
from runtime.registry import Function
from runtime.tasks import Tasks
from runtime.training import Training
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio

ANSWER = {"modelId": "model_1", "labels": ["a", "b"], "samples": 4, "skipped": 0, "accuracy": None, "seconds": 0.1}


def outcome(code: int = 200, body: Any = ANSWER, error_code: str | None = None) -> Outcome:
    text = json.dumps(body).encode()
    return Outcome(code, b"content-type\0application/json", text, error_code is None, 0.1, error_code)


class StandIn:
    """As much of a host as training asks for; it is also its own journal."""

    def __init__(self, root: Path) -> None:
        state = ServerSettings(state=root / ".spaces")
        self.config = Config(root, root / "spaces.toml", root / "functions", state, FunctionSettings(), {})
        self.ids = CallIds()
        self.functions: dict[int, Function] = {}
        self.submitted: list[dict[str, Any]] = []
        self.exports: list[list[dict[str, Any]]] = []
        self.cancelled: list[int] = []
        self.answers: list[Outcome | Exception] = []
        self.ended = anyio.Event()
        self.known: dict[int, Status] = {}

    @property
    def journal(self) -> StandIn:
        return self

    def lookup(self, space: str, name: str) -> Function:
        return self.find(function_id(space, name))

    def find(self, id: int) -> Function:
        if id not in self.functions:
            raise NotFound
        return self.functions[id]

    async def submit(self, submission: Submission) -> Receipt:
        call = submission.call
        self.find(function_id(call.space, call.name))
        assert (call.path, submission.trigger) == (b"/train", "training")
        body = json.loads(b"".join(call.body))
        self.submitted.append(body)
        file = self.config.server.state / "models" / call.name / body["samples"]
        self.exports.append([json.loads(line) for line in file.read_text().splitlines()])
        if self.answers and isinstance(self.answers[0], Exception):
            raise self.answers.pop(0)  # type: ignore[misc]
        return Receipt(call.id, call.label)

    async def wait(self, id: int, seconds: float) -> Entry | None:
        if not self.answers:
            with anyio.move_on_after(seconds):
                await self.ended.wait()
        return None

    async def outcome(self, id: int) -> Outcome | None:
        found = self.answers.pop(0) if self.answers else None
        assert not isinstance(found, Exception)
        return found

    async def cancel(self, id: int) -> Status | None:
        self.cancelled.append(id)
        self.ended.set()
        return Status.CANCELLED

    async def get(self, id: int) -> None:
        return None

    async def written(self, path: Path) -> None:
        self.config = with_trained(self.config)
        name = path.parent.name
        number = function_id(TRAINED, name)
        self.functions.pop(number, None)
        if path.exists():
            self.functions[number] = Function(
                id=number, space=TRAINED, name=name, path=path, line=1, kind="unknown", takes=(), digest="",
                settings=FunctionSettings(),
            )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "QUIET", 0.01)
    monkeypatch.setattr(training, "is_missing", lambda: False)


@pytest.fixture
def host(tmp_path: Path) -> StandIn:
    (tmp_path / "functions").mkdir()
    return StandIn(tmp_path)


@asynccontextmanager
async def running(host: StandIn) -> AsyncIterator[Training]:
    found = Training(host)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        found.start(Tasks(tasks))
        yield found
        tasks.cancel_scope.cancel()
    await found.close()


async def settled(teacher: Training, function: Function) -> Profile:
    """What is kept of the function once what it was taught has been looked at."""
    with anyio.fail_after(PATIENCE):
        while True:
            profile = await teacher.lessons.profile_now(function)
            if profile.revision == profile.settled and profile.revision:
                return profile
            await anyio.sleep(0.001)


async def teach(teacher: Training, function: Function, *names: str, start: int = 0) -> None:
    for number, name in enumerate(names, start):
        data = f'"{number}"'
        draft = Draft(ids.sample_id(function.id, data.encode()), data, marks=(Mark(name),))
        await teacher.lessons.add_sample(function, draft, tags=False)


async def test_a_function_is_created_with_a_file_of_its_own(host: StandIn) -> None:
    async with running(host) as teacher:
        function = await teacher.create("Colours & more!", "Text", "Classification", "project_1")

        assert function.name.startswith("colours-more-")
        assert "'name': 'Colours & more!'" in function.path.read_text()
        assert (host.config.server.state / ".gitignore").exists()
        profile = await teacher.lessons.profile(function)
        assert (profile.title, profile.created, profile.project) == ("Colours & more!", True, "project_1")
        assert not await teacher.is_training(function, profile)
        other = await teacher.create("Colours & more!", "Text", "Classification", None)
        assert other.id != function.id
        assert (await teacher.create("日本", "Text", "Classification", None)).name.startswith("function-")


async def test_a_space_of_that_name_is_the_users(host: StandIn) -> None:
    (host.config.functions_dir / TRAINED).mkdir()
    async with running(host) as teacher:
        with pytest.raises(Conflict, match="a folder of your own"):
            await teacher.create("x", "Text", "Classification", None)
        assert await teacher.lessons.created() == []


async def test_it_is_trained_once_there_is_enough(host: StandIn) -> None:
    host.answers = [outcome()]
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b")
        assert not await teacher.is_training(function, await teacher.lessons.profile_now(function))
        await teach(teacher, function, "b", start=3)
        profile = await settled(teacher, function)

        assert (profile.model, profile.problem) == ("model_1", "")
        assert host.submitted[0]["labels"] == ["a", "b"]
        assert [line["annotation"] for line in host.exports[-1]] == ["a", "a", "b", "b"]
        await until(lambda: "model='model_1'" in function.path.read_text())
        await until(lambda: not list((host.config.server.state / "models").glob("*/export-*")))


async def test_what_comes_during_a_training_is_trained_afterwards(host: StandIn) -> None:
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        await until(lambda: host.submitted)
        profile = await teacher.lessons.profile_now(function)
        assert await teacher.is_training(function, profile)
        await teach(teacher, function, "c", start=4)
        host.answers = [outcome(), outcome(body={**ANSWER, "modelId": "model_2"})]
        host.ended.set()
        assert (await settled(teacher, function)).model == "model_2"
    assert list(map(len, host.exports)) == [4, 5]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (outcome(503, {"error": {"code": "load_failed", "message": "No module named x"}}, "load_failed"), "No module"),
        (outcome(400, {"error": {"status": 400, "code": "not_trained", "message": "too few"}}), "too few"),
        (outcome(200, {"unknown": 1}), "cannot be understood"),
        (Unprocessable("it takes no such thing"), "no such thing"),
    ],
)
async def test_a_training_that_fails_is_told_and_not_repeated(host: StandIn, answer: Any, said: str) -> None:
    host.answers = [answer]
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        profile = await settled(teacher, function)

        assert said in profile.problem
        assert profile.model == ""
        host.answers = [outcome()]
        await teach(teacher, function, "b", start=4)
        assert (await settled(teacher, function)).problem == ""


async def test_a_training_that_cannot_begin_now_is_tried_again(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "AGAIN", 0.01)
    host.answers = [Overloaded("too many wait"), outcome()]
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        profile = await settled(teacher, function)
    assert (profile.model, profile.problem) == ("model_1", "")


async def test_a_record_that_is_locked_is_tried_again(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "AGAIN", 0.01)
    host.answers = [outcome()]
    async with running(host) as teacher:
        failures = [RecordsError("locked"), RecordsError("locked")]
        export = teacher.lessons.export

        async def fail(*arguments: Any) -> Any:
            if failures:
                raise failures.pop()
            return await export(*arguments)

        monkeypatch.setattr(teacher.lessons, "export", fail)
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        assert (await settled(teacher, function)).model == "model_1"


async def test_once_it_is_installed_it_is_trained(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(training, "is_missing", lambda: True)
        async with running(host) as teacher:
            function = await teacher.create("x", "Text", "Classification", None)
            await teach(teacher, function, "a", "a", "b", "b")
            assert (await settled(teacher, function)).problem == training.MISSING
    host.answers = [outcome()]
    async with running(host) as teacher:
        await until(lambda: host.submitted)
        assert (await settled(teacher, function)).problem == ""


@pytest.mark.parametrize("usable", [True, False])
async def test_a_model_that_cannot_be_used_is_made_anew(
    host: StandIn, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after another scikit-learn was installed, or the folder with the models was removed."""
    host.answers = [outcome()]
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        await settled(teacher, function)
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(training.headers, "is_current", lambda *about: bool(asked.append(about)) or usable)
    host.answers = [outcome(body={**ANSWER, "modelId": "model_2"})]
    async with running(host) as teacher:
        await until(lambda: asked)
        wanted = "model_1" if usable else "model_2"
        await until(lambda: f"model='{wanted}'" in function.path.read_text())
        assert (await settled(teacher, function)).model == wanted
    assert asked == [(str(host.config.server.state / "models" / function.name), "model_1")]
    assert len(host.submitted) == (1 if usable else 2)


async def test_what_is_not_installed_is_named(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "is_missing", lambda: True)
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        assert "pip install '.[classify]'" in (await settled(teacher, function)).problem
    assert host.submitted == []


@pytest.mark.parametrize("end", [outcome(503, {}, "interrupted"), Draining()])
async def test_the_next_host_goes_on(host: StandIn, end: Any) -> None:
    host.answers = [end]
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        await until(lambda: not host.answers)
    left = host.config.server.state / "models" / function.name / "export-1.jsonl"
    left.write_text("")
    host.answers = [outcome()]
    async with running(host) as teacher:
        assert (await settled(teacher, function)).model == "model_1"
        await until(lambda: not left.exists())


async def test_what_another_host_has_left_is_trained(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has ended for good. And the first function that another one creates is served."""
    monkeypatch.setattr(training, "GLANCE", 0.01)
    other = StandIn(host.config.root)
    async with running(host):
        async with running(other) as gone:
            function = await gone.create("x", "Text", "Classification", None)
        await until(lambda: TRAINED in host.config.spaces)
        host.functions[function.id] = function
        elsewhere = Lessons(host.config.server.state)
        for number, name in enumerate("aabb"):
            await elsewhere.add_sample(
                function, Draft(f"sample_{number}", f'"{number}"', marks=(Mark(name),)), tags=False
            )
        await elsewhere.close()
        host.answers = [outcome()]
        await until(lambda: "model='model_1'" in function.path.read_text())


async def test_two_hosts_train_a_function_once(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is second waits for the first, and has nothing left to do."""
    monkeypatch.setattr(training, "ASIDE", 0.001)
    claim, refused = training.files.claim, []

    def claiming(folder: Path) -> int | None:
        found = claim(folder)
        if found is None:
            refused.append(folder)
        return found

    monkeypatch.setattr(training.files, "claim", claiming)
    other = StandIn(host.config.root)
    async with running(host) as teacher, running(other) as colleague:
        function = await teacher.create("x", "Text", "Classification", None)
        other.functions[function.id] = function
        await teach(teacher, function, "a", "a", "b", "b")
        await until(lambda: host.submitted)
        colleague.changed(function.id)
        await until(lambda: refused)
        host.answers = [outcome()]
        host.ended.set()
        await settled(teacher, function)
        await until(lambda: not teacher._followed and not colleague._followed)

        assert len(host.submitted) == 1
        assert not other.submitted


async def test_a_folder_that_has_moved_is_told_to_the_function(host: StandIn, tmp_path: Path) -> None:
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
    function.path.write_text(function.path.read_text().replace(str(tmp_path), "/elsewhere"))
    async with running(host):
        await until(lambda: str(tmp_path) in function.path.read_text())


async def test_with_a_function_goes_all_of_it(host: StandIn) -> None:
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        await until(lambda: host.submitted)
        await teacher.remove(function)
        assert len(host.cancelled) == 1
        assert await teacher.lessons.created() == []
        assert not function.path.parent.parent.exists()
        await until(lambda: not list((host.config.server.state / "models").glob("*")))


async def test_a_function_that_was_removed_does_not_come_back(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its file, by the training that ends just then, nor a record of it, by who adds to it just then."""
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        await teach(teacher, function, "a", "a", "b", "b")
        await until(lambda: host.submitted)
        settle, reached, go_on = teacher.lessons.settle, anyio.Event(), anyio.Event()

        async def late(*arguments: Any) -> None:
            reached.set()
            await go_on.wait()
            await settle(*arguments)

        monkeypatch.setattr(teacher.lessons, "settle", late)
        host.answers = [outcome()]
        host.ended.set()
        with anyio.fail_after(PATIENCE):
            await reached.wait()
        await teacher.remove(function)
        go_on.set()
        with pytest.raises(NotFound):
            await teach(teacher, function, "c", start=9)
        await until(lambda: not teacher._followed)

        assert not function.path.exists()
        assert (await teacher.lessons.counts(function)).samples == 0
        assert not (await teacher.lessons.profile_now(function)).labels


async def test_a_folder_that_is_the_users_by_now_is_left_alone(host: StandIn) -> None:
    """As after it was moved to where functions are written by hand."""
    async with running(host) as teacher:
        function = await teacher.create("x", "Text", "Classification", None)
        own = host.config.functions_dir / TRAINED / f"{function.name}.py"
        own.parent.mkdir()
        function.path.rename(own)
        with pytest.raises(Conflict, match="a file of your own"):
            await teacher.remove(msgspec.structs.replace(function, path=own))
        assert own.exists()


async def test_a_disk_that_is_full_leaves_no_half_of_a_function(host: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    async with running(host) as teacher:
        monkeypatch.setattr(training.files, "write", full)
        with pytest.raises(RecordsError):
            await teacher.create("x", "Text", "Classification", None)
        assert await teacher.lessons.created() == []


def test_the_space_is_there_once_there_are_functions(tmp_path: Path) -> None:
    config = StandIn(tmp_path).config
    assert with_trained(config).spaces == {}
    assert config.homes == {}
    folder = config.server.state / TRAINED
    assert config.trained_dir == folder
    folder.mkdir(parents=True)
    found = with_trained(config)
    assert found.homes == {TRAINED: folder}
    assert with_trained(found) == found
    (config.functions_dir / TRAINED).mkdir(parents=True)
    assert config.trained_dir is None
    assert msgspec.structs.replace(config, spaces={}) == with_trained(config)
