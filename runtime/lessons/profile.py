"""What is kept of one function: its labels, its fields, and for one that is trained here, what became of that.

Filled by `lessons`, read by the dialect and by `training.py`. Immutable; a change makes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import msgspec


class Label(msgspec.Struct, frozen=True):
    """One answer that a function may give. `former`: the name that it had before."""

    number: int
    id: str
    name: str
    former: str | None = None
    description: str | None = None
    metadata: dict[str, str] | None = None


class Field(msgspec.Struct, frozen=True):
    """One column of tabular data; `type` is Text, Number or Image."""

    id: str
    name: str
    type: str


class Profile(msgspec.Struct, frozen=True, dict=True):
    """One function. `created`: through the API, so it is trained here; `model` is the one that answers.

    `problem`: why the last training gave no model. `training`: what it said of itself.
    """

    number: int
    space: str
    name: str
    title: str
    input: str
    output: str
    project: str | None = None
    created: bool = False
    model: str = ""
    problem: str = ""
    training: dict[str, object] = {}
    revision: int = 0
    settled: int = 0
    labels: tuple[Label, ...] = ()
    fields: tuple[Field, ...] = ()

    @property
    def is_tags(self) -> bool:
        """Whether it answers with any number of labels instead of one."""
        return self.output == "Tags"

    @cached_property
    def by_name(self) -> Mapping[str, Label]:
        """Labels by name; a former name counts where no label has it now."""
        former = {label.former: label for label in self.labels if label.former is not None}
        return {**former, **{label.name: label for label in self.labels}}

    @cached_property
    def by_id(self) -> Mapping[str, Label]:
        """Labels by id."""
        return {label.id: label for label in self.labels}

    @cached_property
    def fields_by_key(self) -> Mapping[str, Field]:
        """Fields by whatever data may call them: name, id, id without its prefix; a name goes before the others."""
        ids = {key: field for field in self.fields for key in (field.id, field.id.removeprefix("field_"))}
        return {**ids, **{field.name: field for field in self.fields}}


class Counts(msgspec.Struct, frozen=True):
    """How much a function has been taught. By label id: in how many samples it is annotated, and as present."""

    samples: int = 0
    predicted: int = 0
    annotated: int = 0
    mentions: dict[str, int] = {}
    presences: dict[str, int] = {}


class Project(msgspec.Struct, frozen=True):
    """A name to group functions by."""

    id: str
    name: str
