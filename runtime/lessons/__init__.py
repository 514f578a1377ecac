"""What functions are taught with: labels, fields, samples and annotations, kept in <state>/samples.db.

Asked by the Nyckel dialect, by `captures.py` and by `training.py`; keeps it through `records.py`. `vocabulary` and
`samples` are the steps of its transactions.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import NotFound, RecordsError
from ..records import Records
from ..registry import Function
from . import files, ids, samples, vocabulary
from .profile import Counts, Field, Label, Profile, Project
from .samples import Draft, Mark, Page, Sample, Wanted
from .schema import MIGRATIONS

FRESH = 2.0  # seconds that a profile is good for: another host may have changed it

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]

__all__: Sequence[str] = (
    "Captured",
    "Counts",
    "Draft",
    "Field",
    "Label",
    "Lessons",
    "Mark",
    "Page",
    "Profile",
    "Project",
    "Sample",
    "Wanted",
    "files",
    "ids",
)


class Captured(msgspec.Struct, frozen=True):
    """One invocation: the sample that it makes, if it makes one, the answer, and the labels that were met in it.

    Those of `names` that are not known yet become the function's. `created`: the function was made through the API; if
    nothing is kept of it any more, it was removed meanwhile.
    """

    function: Function
    draft: Draft | None
    prediction: tuple[tuple[str, float], ...] = ()
    names: tuple[str, ...] = ()
    created: bool = False


async def _nobody(number: int) -> None:
    """There is no other process to be told."""


class Lessons:
    """The record of what functions are taught.

    Guarantee: what a method has returned is on disk, and is what the next one sees. Methods may be called from many
    tasks at once. Every one may raise RecordsError; those that change something raise CallerError where it cannot be.
    """

    def __init__(
        self,
        state: Path,
        on_change: Callable[[int], None] = lambda number: None,
        is_created: Callable[[Function], bool] = lambda function: False,
    ) -> None:
        """`on_change` is told the number of each function that may have to be trained anew; `is_created` tells those
        that were created here by their files: of one of which nothing is kept any more, nothing is to be kept."""
        self._writing = Records(state / "samples.db", MIGRATIONS)
        self._reading = Records(state / "samples.db", MIGRATIONS)  # of its own: nobody waits for a commit to read
        self._profiling = Records(state / "samples.db", MIGRATIONS)  # and no invocation for somebody's search
        self._exporting = Records(state / "samples.db", MIGRATIONS)  # takes long
        self._on_change = on_change
        self._is_created = is_created
        self.tell: Callable[[int], Awaitable[None]] = _nobody  # which profile is to be read anew, wherever it is kept
        self._profiles: dict[int, tuple[float, Function, Profile]] = {}

    async def close(self) -> None:
        """Let go of the file."""
        for records in (self._writing, self._reading, self._profiling, self._exporting):
            await records.close()

    # Functions.

    async def profile(self, function: Function) -> Profile:
        """What is kept of a function; what another host has changed is seen after FRESH seconds.

        While the record cannot be read, it is what was known before, or of a handler file what its settings say: no
        invocation fails for it.
        """
        known = self._profiles.get(function.id)
        if known is not None and known[1] is function and time.monotonic() - known[0] < FRESH:
            return known[2]
        try:
            return await self.profile_now(function)
        except RecordsError:
            if known is None and self._is_created(function):
                raise
            profile = vocabulary.profile(None, function) if known is None else known[2]
            self._profiles[function.id] = (time.monotonic(), function, profile)
            return profile

    async def profile_now(self, function: Function) -> Profile:
        """What is kept of a function, read anew."""
        asked = time.monotonic()
        profile = vocabulary.profile(None, function)
        if self._profiling.exist:
            profile = await self._profiling.read(lambda db: vocabulary.profile(db, function))
        self._profiles[function.id] = (asked, function, profile)
        return profile

    def outdate(self, number: int) -> None:
        """What is known of the function is to be read anew, and serves only where that cannot be done."""
        if number in self._profiles:
            self._profiles[number] = (-math.inf, *self._profiles[number][1:])

    async def create(
        self, function: int, space: str, name: str, title: str, input: str, output: str, project: str | None
    ) -> None:
        """A function that is trained here; its file is for the caller to write."""
        row = (function, space, name, title, input, output, project, time.time())
        await self._writing.change(
            lambda db: db.execute(
                "INSERT INTO functions (number, space, name, title, input, output, project, created, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?)",
                row,
            )
        )

    async def rename(self, function: Function, title: str, project: str | None) -> None:
        """Another title, another project."""
        await self._note(
            function, "UPDATE functions SET title = ?, project = ? WHERE number = ?", (title, project, function.id)
        )
        self._on_change(function.id)

    async def forget(self, number: int) -> None:
        """Nothing is kept of the function any more."""
        await self._writing.change(lambda db: db.execute("DELETE FROM functions WHERE number = ?", (number,)))
        self._profiles.pop(number, None)

    async def created(self) -> list[int]:
        """The numbers of the functions that were created here."""
        query = "SELECT number FROM functions WHERE created"
        return await self._read(lambda db: [number for (number,) in db.execute(query)], [])

    async def unsettled(self) -> dict[int, int]:
        """The created functions that are taught something they have not been trained on, and up to which revision."""
        query = "SELECT number, revision FROM functions WHERE created AND revision <> settled"
        return await self._read(lambda db: dict(db.execute(query).fetchall()), {})

    async def counts(self, function: Function) -> Counts:
        """How much a function has been taught."""
        return await self._read(lambda db: vocabulary.counts(db, function.id), Counts())

    async def settle(self, function: Function, revision: int, model: str, problem: str, training: bytes) -> None:
        """What came of training a function on what it was taught up to this revision; `model` empty: none.

        Where another host has done so for a later revision, that counts.
        """
        await self._note(
            function,
            "UPDATE functions SET settled = ?, problem = ?, model = CASE ? WHEN '' THEN model ELSE ? END,"
            " training = ? WHERE number = ? AND settled <= ?",
            (revision, problem, model, model, training.decode(), function.id, revision),
        )

    async def unsettle(self, function: Function) -> None:
        """A training is wanted, though nothing has changed that it depends on."""
        await self._writing.change(lambda db: vocabulary.touch(db, function.id))
        self.outdate(function.id)

    # Labels and fields.

    async def add_label(
        self, function: Function, name: str, description: str | None, metadata: dict[str, str] | None
    ) -> Label:
        """A new label."""
        return await self._change(
            function, lambda db: vocabulary.add_label(db, function.id, name, description, metadata)
        )

    async def label(self, function: Function, id: str) -> Label:
        """One label; NotFound."""
        return await self._read(lambda db: vocabulary.find_label(db, function.id, id))

    async def change_label(
        self, function: Function, id: str, name: str, description: str | None, metadata: dict[str, str] | None
    ) -> Label:
        """A label under another name, or with other notes."""
        return await self._change(
            function, lambda db: vocabulary.change_label(db, function.id, id, name, description, metadata)
        )

    async def remove_label(self, function: Function, id: str) -> None:
        """The label goes, and what annotations and predictions say of it."""
        await self._change(function, lambda db: vocabulary.remove_label(db, function.id, id))

    async def add_field(self, function: Function, name: str, type: str) -> Field:
        """A new field."""
        return await self._change(function, lambda db: vocabulary.add_field(db, function.id, name, type))

    async def field(self, function: Function, id: str) -> Field:
        """One field; NotFound."""
        return await self._read(lambda db: vocabulary.find_field(db, function.id, id))

    async def rename_field(self, function: Function, id: str, name: str) -> Field:
        """A field under another name."""
        return await self._change(function, lambda db: vocabulary.rename_field(db, function.id, id, name))

    async def remove_field(self, function: Function, id: str) -> None:
        """The field goes, and its value in every sample."""
        await self._change(function, lambda db: vocabulary.remove_field(db, function.id, id))

    # Samples.

    async def add_sample(self, function: Function, draft: Draft, *, tags: bool) -> Sample:
        """A new sample; of several with the same data, one."""

        def add(db: sqlite3.Connection) -> Sample:
            samples.add(db, function.id, draft, tags)
            return samples.find(db, function.id, draft.id)

        return await self._change(function, add)

    async def sample(self, function: Function, id: str) -> Sample:
        """One sample; NotFound."""
        return await self._read(lambda db: samples.find(db, function.id, id))

    async def list_samples(self, function: Function, wanted: Wanted) -> Page:
        """The samples that are wanted."""
        return await self._read(lambda db: samples.page(db, function.id, wanted), Page((), None, 0))

    async def remove_sample(self, function: Function, id: str) -> None:
        """The sample goes."""
        await self._change(function, lambda db: samples.remove(db, function.id, id))

    async def remove_external(self, function: Function, external_id: str) -> None:
        """The sample with this external id goes."""
        await self._change(function, lambda db: samples.remove_external(db, function.id, external_id))

    async def annotate(self, function: Function, id: str, marks: Sequence[Mark], *, tags: bool) -> Sample:
        """Which labels are right for a sample; without marks, nobody has said."""

        def annotate(db: sqlite3.Connection) -> Sample:
            sample = samples.find(db, function.id, id)
            samples.annotate(db, function.id, sample.number, marks, tags)
            return samples.find(db, function.id, id)

        return await self._change(function, annotate)

    async def capture(self, batch: Sequence[Captured], most: int, most_bytes: int) -> None:
        """Note these invocations, and keep no more than so many of each function, in number and bytes."""

        def note(db: sqlite3.Connection) -> None:
            for one in batch:
                if one.created and not vocabulary.is_known(db, one.function):
                    continue
                vocabulary.ensure(db, one.function)
                vocabulary.learn(db, one.function.id, one.names)
                if one.draft is not None:
                    samples.capture(db, one.function.id, one.draft, one.prediction)
            for number in {one.function.id for one in batch}:
                samples.forget_captured(db, number, most, most_bytes)

        await self._writing.change(note)
        for one in batch:
            self.outdate(one.function.id)

    async def export(self, function: Function, file: Path) -> tuple[Profile, int]:
        """Write what a function is trained on into a file; what it is like then, and how many samples there are.

        The form is that of `runtime/classify/__init__.py`.
        """

        def write(db: sqlite3.Connection) -> tuple[Profile, int]:
            profile, count = vocabulary.profile(db, function), 0
            with file.open("wb") as lines:
                for id, data, marks in samples.annotated(db, function.id):
                    said = dict(marks) if profile.is_tags else next((name for name, present in marks if present), None)
                    if said:
                        line = {"id": id, "data": msgspec.Raw(data.encode()), "annotation": said}
                        lines.write(msgspec.json.encode(line) + b"\n")
                        count += 1
            return profile, count

        return await self._exporting.read(write)

    # Projects.

    async def projects(self) -> list[Project]:
        """All of them, the oldest first."""
        query = "SELECT id, name FROM projects ORDER BY number"
        return await self._read(lambda db: [Project(*row) for row in db.execute(query)], [])

    async def add_project(self, name: str) -> Project:
        """A new project."""
        project = Project(f"project_{ids.random_text(ids.WIDTH)}", name)
        row = (project.id, project.name)
        await self._writing.change(lambda db: db.execute("INSERT INTO projects (id, name) VALUES (?, ?)", row))
        return project

    async def _change(self, function: Function, step: Step[T]) -> T:
        """Do this in one transaction; whoever trains is told."""

        def work(db: sqlite3.Connection) -> T:
            if not self._is_created(function):
                vocabulary.ensure(db, function)
            elif not vocabulary.is_known(db, function):
                raise NotFound(f"there is no function `{function.label}` any more")
            return step(db)

        try:
            found = await self._writing.change(work)
        finally:
            self.outdate(function.id)
            self._on_change(function.id)
        await self.tell(function.id)
        return found

    async def _note(self, function: Function, statement: str, values: tuple[object, ...]) -> None:
        """Change what is kept of the function itself; of one that nothing is kept of, nothing."""
        await self._writing.change(lambda db: db.execute(statement, values))
        self.outdate(function.id)
        await self.tell(function.id)

    async def _read(self, step: Step[T], nothing: T | None = None) -> T:
        """Look something up; `nothing` is what there is before anything was recorded."""
        if nothing is not None and not self._reading.exist:
            return nothing
        return await self._reading.read(step)
