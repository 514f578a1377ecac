"""Functions that are created through an API and trained on their samples: their files, and when they are trained.

Made by `host.py`, asked by the Nyckel dialect. A training is a submitted call of the function itself, which says what
came of it; `classify/` is what it runs, `lessons` what it is trained on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec

from . import answers
from .calls import Call, CallIds, Entry, Outcome, Status, Submission, function_id
from .captures import Captures
from .classify import headers
from .classify.source import generated
from .config import TRAINED, Config
from .errors import BadRequest, Conflict, Draining, HostError, NotFound, RecordsError
from .journal import Journal, Receipt
from .lessons import Lessons, Profile, files, ids
from .registry import Function
from .tasks import Tasks

QUIET = 0.5  # seconds without a change after which a training begins
LONGEST_QUIET = 60.0  # seconds: as long as the last one took, but no longer
AGAIN = 30.0  # seconds until a training is tried again that could not begin: too many calls wait, the disk is full
GLANCE = 60.0  # seconds between looks at what other hosts have left
AT_ONCE = 2  # trainings
ASIDE = 0.5  # seconds between looks at whether another host still trains a function
STEP = 60.0  # seconds between two looks at one that runs
MODELS_KEPT = 5
MISSING = "trained functions need an extra: pip install '.[classify]', in the folder that the host was installed from"

_JSON = b"content-type\0application/json"
_EXPORT = re.compile(r"export-([0-9]{1,16})\.jsonl")

log = logging.getLogger("spaces.training")


class Trained(msgspec.Struct, frozen=True):
    """What a training call answers."""

    modelId: str
    labels: list[str] = []
    samples: int = 0
    accuracy: float | None = None


class Runs(Protocol):
    """What training needs of the host that it is in."""

    config: Config
    ids: CallIds

    @property
    def journal(self) -> Journal: ...
    def lookup(self, space: str, name: str) -> Function: ...
    def find(self, id: int) -> Function: ...
    async def submit(self, submission: Submission) -> Receipt: ...
    async def wait(self, id: int, seconds: float) -> Entry | None: ...
    async def cancel(self, id: int) -> Status | None: ...
    async def written(self, path: Path) -> None: ...


class Training:
    """One host's trained functions, and what all functions are taught.

    Guarantee: a change of what a function is trained on is followed by a training that has seen it, one at a time
    for a function, also when the host ends in between. Until it has ended well the model before it answers.
    """

    def __init__(self, host: Runs) -> None:
        self._host = host
        self._state = host.config.server.state
        self.lessons = Lessons(self._state, self.changed, lambda function: function.path == self._file(function.name))
        self.captures = Captures(self.lessons)
        self._tasks: Tasks | None = None
        self._asked: set[int] = set()
        self._followed: set[int] = set()
        self._changed_at: dict[int, float] = {}
        self._took: dict[int, float] = {}
        self._running: dict[int, int] = {}  # the training call of each function
        self._turns = anyio.CapacityLimiter(AT_ONCE)
        self._files = anyio.Lock()  # what is removed must not be written again by who has just looked at it

    def start(self, tasks: Tasks) -> None:
        """Begin: with what the host before has left undone."""
        self._tasks = tasks
        tasks.start_soon(self.captures.run)
        tasks.start_soon(self._resume)
        tasks.start_soon(self._look_at_others)

    async def close(self) -> None:
        """Note what waits to be noted, and let go of the files."""
        with anyio.CancelScope(shield=True):
            await self.captures.close()
            await self.lessons.close()

    # Functions come and go.

    async def create(self, title: str, input: str, output: str, project: str | None) -> Function:
        """A new function in the space `trained`, which can be called when this returns; Conflict, RecordsError."""
        if self._host.config.trained_dir is None:
            raise Conflict(
                f"functions cannot be created here: the space `{TRAINED}`, in which they would be, is a folder of your"
                " own; rename that, or give it another name in spaces.toml"
            )
        slug = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "function"
        name = f"{slug}-{ids.random_text(6)}"
        number = function_id(TRAINED, name)
        await self.lessons.create(number, TRAINED, name, title, input, output, project)
        profile = Profile(number, TRAINED, name, title, input, output, created=True)
        try:
            async with self._files:
                await self._put(profile)
        except OSError as error:
            await self.lessons.forget(number)
            log.error("the file of a new function cannot be written: %s", error)
            raise RecordsError("the file of the new function cannot be written") from None
        return self._host.lookup(TRAINED, name)

    async def remove(self, function: Function) -> None:
        """A created function goes: its file, its models, and all that it was taught; Conflict."""
        if function.path != self._file(function.name):  # its folder may hold anything
            raise Conflict(f"`{function.label}` is a file of your own by now; remove that, and the function is gone")
        async with self._files:
            await anyio.to_thread.run_sync(files.remove, function.path.parent)
            await anyio.to_thread.run_sync(files.remove_empty, function.path.parent.parent)
            await self._host.written(function.path)
            if function.id in self._running:
                await self._host.cancel(self._running[function.id])
            await self.captures.flush()
            await self.lessons.forget(function.id)
            await anyio.to_thread.run_sync(files.remove, self._models(function.name))

    def _models(self, name: str) -> Path:
        return self._state / "models" / name

    def _file(self, name: str) -> Path:
        return self._state / TRAINED / name / "handler.py"

    async def _write(self, function: Function) -> None:
        """Bring the function's file up to date, unless the function was removed meanwhile."""
        async with self._files:
            profile = await self.lessons.profile_now(function)
            if profile.created:
                await self._put(profile)

    async def _put(self, profile: Profile) -> None:
        """Write the function's file, where it would say anything else than it does, and have it served."""
        if self._host.config.trained_dir is None:
            return
        file = self._file(profile.name)
        text = generated(described(profile), str(self._models(profile.name)), profile.model, MODELS_KEPT)
        if await anyio.to_thread.run_sync(files.write, self._state, file, text):
            await self._host.written(file)

    # When to train.

    def changed(self, number: int) -> None:
        """What this function is trained on may be another."""
        self._changed_at[number] = monotonic()
        self._asked.add(number)
        if self._tasks is not None and number not in self._followed:
            self._followed.add(number)
            self._tasks.start_soon(self._follow, number)

    async def is_training(self, function: Function, profile: Profile) -> bool:
        """Whether a training runs, or is about to."""
        return profile.created and profile.revision != profile.settled and await self._is_teachable(function, profile)

    async def _follow(self, number: int) -> None:
        """Train a function as long as it is asked for; between the last look and the end, nothing is awaited."""
        try:
            while number in self._asked:
                await self._await_quiet(number)
                self._asked.discard(number)
                try:
                    await self._consider(self._host.find(number))
                except NotFound:  # it was removed
                    self._asked.discard(number)
                    self._took.pop(number, None)
                    return
                except Draining:  # the next host goes on
                    return
                except (HostError, OSError) as error:
                    log.warning("function %d waits to be trained: %s", number, error)
                    self._asked.add(number)
                    await anyio.sleep(AGAIN)
        finally:
            self._followed.discard(number)

    async def _await_quiet(self, number: int) -> None:
        quiet = min(LONGEST_QUIET, max(QUIET, self._took.get(number, 0.0)))
        begun = monotonic()
        while (left := min(self._changed_at[number] + QUIET, begun + quiet) - monotonic()) > 0:
            await anyio.sleep(left)

    async def _consider(self, function: Function) -> None:
        profile = await self.lessons.profile_now(function)
        if not profile.created or profile.revision == profile.settled:
            return
        await self._write(function)  # its fields may be others
        if await self._is_teachable(function, profile):
            async with self._alone(function), self._turns:
                profile = await self.lessons.profile_now(function)
                if profile.revision == profile.settled:  # another host was quicker
                    return
                started = monotonic()
                await self._train(function)
                self._took[function.id] = monotonic() - started

    @asynccontextmanager
    async def _alone(self, function: Function) -> AsyncIterator[None]:
        """While no other host on this state folder trains this function."""
        folder = self._models(function.name)
        await anyio.to_thread.run_sync(files.make, self._state, folder)
        while (handle := await anyio.to_thread.run_sync(files.claim, folder)) is None:
            await anyio.sleep(ASIDE)
        try:
            yield
        finally:
            os.close(handle)

    async def _is_teachable(self, function: Function, profile: Profile) -> bool:
        """Whether there is enough to learn from; the function itself says what is missing."""
        counts = await self.lessons.counts(function)
        if profile.is_tags:
            return any(0 < counts.presences[id] < counts.mentions[id] for id in counts.mentions)
        return sum(count >= 2 for count in counts.presences.values()) >= 2

    # One training.

    async def _train(self, function: Function) -> None:
        number = self._host.ids.next()
        export = self._models(function.name) / f"export-{number}.jsonl"
        try:
            await anyio.to_thread.run_sync(files.make, self._state, export.parent)
            profile, count = await self.lessons.export(function, export)
            log.info("%s: training on %d samples", function.label, count)
            try:
                outcome = await self._run(number, function, profile, export)
            except HostError as error:
                if error.retryable or isinstance(error, NotFound):
                    raise  # not now, or there is nothing any more to train
                await self._fail(function, profile, error.message)
            else:
                await self._learn(function, profile, outcome)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(files.unlink, export)

    async def _run(self, number: int, function: Function, profile: Profile, export: Path) -> Outcome | None:
        """The training call's outcome; None where this host does not see it."""
        if is_missing():
            raise HostError(MISSING)
        body = msgspec.json.encode({"samples": export.name, "labels": [label.name for label in profile.labels]})
        call = Call(number, str(number), function.space, function.name, path=b"/train", headers=_JSON, body=(body,))
        receipt = await self._host.submit(Submission(call, trigger="training"))
        self._running[function.id] = receipt.id
        try:
            return await self._result(function, receipt.id)
        except NotFound:  # or it would wait for the function to come back
            await self._host.cancel(receipt.id)
            raise
        finally:
            del self._running[function.id]

    async def _result(self, function: Function, call: int) -> Outcome | None:
        """What came of a training call, once it is over; NotFound when its function was removed."""
        while True:
            asked = monotonic()
            self._host.find(function.id)
            entry = await self._host.wait(call, STEP)
            if entry is None or entry.status.is_final:
                return await self._host.journal.outcome(call)
            if monotonic() - asked < STEP / 2:  # nobody waits any more: the host is ending
                return None

    async def _learn(self, function: Function, profile: Profile, outcome: Outcome | None) -> None:
        if outcome is None or outcome.error_code == "interrupted":
            return  # the next host trains it
        answer = answers.read(outcome)
        if not answer.ok:
            await self._fail(function, profile, answer.message)
            return
        try:
            said = msgspec.json.decode(answer.value, type=Trained)
        except msgspec.ValidationError as error:
            await self._fail(function, profile, f"the training answered what cannot be understood: {error}")
            return
        await self.lessons.settle(function, profile.revision, said.modelId, "", answer.value)
        log.info("%s: trained, %s (accuracy %s)", function.label, said.modelId, said.accuracy)
        await self._write(function)

    async def _fail(self, function: Function, profile: Profile, problem: str) -> None:
        """The model before goes on, until what it is taught is something else."""
        log.error("%s could not be trained: %s", function.label, problem)
        await self.lessons.settle(function, profile.revision, "", problem, b"{}")

    # After a start.

    async def _resume(self) -> None:
        """Train what the host before has not, and remove what it was about to."""
        for number in await self._created():
            try:
                function = self._host.find(number)
                if await self._is_lost(await self.lessons.profile_now(function)):
                    await self.lessons.unsettle(function)
                await self._write(function)  # the folder may have moved
            except NotFound:
                continue
            except (HostError, OSError) as error:
                log.error("function %d is not as it should be: %s", number, error)
            self.changed(number)
        for file in await anyio.to_thread.run_sync(files.exports, self._state / "models"):
            found = _EXPORT.fullmatch(file.name)
            entry = await self._host.journal.get(int(found[1])) if found else None
            if found and (entry is None or entry.status.is_final):
                await anyio.to_thread.run_sync(files.unlink, file)

    async def _look_at_others(self) -> None:
        """For ever: serve the first function that another host has created, train what another has left undone."""
        before: Mapping[int, int] = {}
        while True:
            await anyio.sleep(GLANCE)
            folder = self._host.config.trained_dir
            if TRAINED not in self._host.config.spaces and folder is not None and folder.is_dir():
                await self._host.written(folder)
            try:
                unsettled = await self.lessons.unsettled()
            except RecordsError:
                continue
            for number, revision in unsettled.items():
                if before.get(number) == revision and number not in self._followed:
                    self.changed(number)
            before = unsettled

    async def _created(self) -> list[int]:
        """The numbers of the functions that were created here, as soon as they can be read."""
        while True:
            try:
                return await self.lessons.created()
            except RecordsError:
                await anyio.sleep(AGAIN)

    async def _is_lost(self, profile: Profile) -> bool:
        """Whether it must be trained though it is taught nothing new: its model cannot be used, or now it can have one.

        A model cannot be used by another scikit-learn than made it; there is none where scikit-learn was missing.
        """
        if is_missing():
            return False
        if not profile.model:
            return profile.problem == MISSING
        models = str(self._models(profile.name))
        return not await anyio.to_thread.run_sync(headers.is_current, models, profile.model)


def described(profile: Profile) -> dict[str, object]:
    """The function as `runtime/classify` wants to know it."""
    fields = [{"id": field.id, "name": field.name, "type": field.type} for field in profile.fields]
    return {"name": profile.title, "input": profile.input, "output": profile.output, "fields": fields}


@cache
def is_missing() -> bool:
    """Whether what trained functions need is not installed, as the host started."""
    return importlib.util.find_spec("sklearn") is None or importlib.util.find_spec("PIL") is None


def check_installed() -> None:
    """BadRequest where trained functions cannot run here."""
    if is_missing():
        raise BadRequest(f"not trained yet: {MISSING}")
