"""Functions, labels and fields in the tables: each function here is one step of a transaction.

Called by `lessons`, in the thread of `records.py`. What cannot be is a CallerError, and changes nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import msgspec

from ..errors import BadRequest, Conflict, NotFound
from ..registry import Function
from . import ids
from .profile import Counts, Field, Label, Profile

MOST_LEARNED = 1000  # labels of one function that it may make up by itself
MOST_LABELS = 10_000
MOST_FIELDS = 1000

_PROFILE = (
    "SELECT title, input, output, project, created, model, problem, training, revision, settled"
    " FROM functions WHERE number = ?"
)
_LABEL = "SELECT number, id, name, former, description, metadata FROM labels WHERE function = ?"


def profile(db: sqlite3.Connection | None, function: Function) -> Profile:
    """What is kept of a function; of one that nothing is kept of, what its settings say."""
    settings = function.settings
    found = db.execute(_PROFILE, (function.id,)).fetchone() if db is not None else None
    if db is None or found is None:
        return Profile(function.id, function.space, function.name, function.label, settings.input, settings.output)
    title, input, output, project, created, model, problem, training, revision, settled = found
    return Profile(
        function.id, function.space, function.name, title or function.label,
        input if created else settings.input, output if created else settings.output, project, bool(created),
        model, problem, msgspec.json.decode(training), revision, settled,
        tuple(_label(row) for row in db.execute(f"{_LABEL} ORDER BY number", (function.id,))),
        tuple(fields(db, function.id)),
    )  # fmt: skip


def ensure(db: sqlite3.Connection, function: Function) -> None:
    """A row for the function, which labels and samples refer to."""
    db.execute(
        "INSERT OR IGNORE INTO functions (number, space, name, created_at) VALUES (?, ?, ?, ?)",
        (function.id, function.space, function.name, time.time()),
    )


def is_known(db: sqlite3.Connection, function: Function) -> bool:
    """Whether anything is kept of the function."""
    return db.execute("SELECT 1 FROM functions WHERE number = ?", (function.id,)).fetchone() is not None


def touch(db: sqlite3.Connection, function: int) -> None:
    """What the function's training depends on is another."""
    db.execute("UPDATE functions SET revision = revision + 1 WHERE number = ?", (function,))


# Labels.


def find_label(db: sqlite3.Connection, function: int, id: str) -> Label:
    """The label with this id; NotFound."""
    row = db.execute(f"{_LABEL} AND id = ?", (function, ids.full("label", id))).fetchone()
    if row is None:
        raise NotFound(f"there is no label {id} here")
    return _label(row)


def label_number(db: sqlite3.Connection, function: int, name: str) -> int | None:
    """The row of the label with this name."""
    row = db.execute("SELECT number FROM labels WHERE function = ? AND name = ?", (function, name)).fetchone()
    return row[0] if row is not None else None


def add_label(
    db: sqlite3.Connection,
    function: int,
    name: str,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Label:
    """A new label; Conflict, with the id of the one that has the name."""
    _refuse_name(db, function, name)
    if _count(db, "labels", function) >= MOST_LABELS:
        raise BadRequest(f"a function has at most {MOST_LABELS} labels")
    id = _free_id(db, "labels", function, lambda turn: ids.label_id(function, name, turn))
    number = db.execute(
        "INSERT INTO labels (function, id, name, description, metadata) VALUES (?, ?, ?, ?, ?)",
        (function, id, name, description, _json(metadata)),
    ).lastrowid
    assert number is not None
    return Label(number, id, name, None, description, metadata)


def change_label(
    db: sqlite3.Connection,
    function: int,
    id: str,
    name: str,
    description: str | None,
    metadata: dict[str, str] | None,
) -> Label:
    """The label under another name, or with other notes; NotFound, Conflict."""
    label = find_label(db, function, id)
    former = label.former
    if name != label.name:
        _refuse_name(db, function, name)
        former = label.name
        touch(db, function)
    db.execute(
        "UPDATE labels SET name = ?, former = ?, description = ?, metadata = ? WHERE number = ?",
        (name, former, description, _json(metadata), label.number),
    )
    return Label(label.number, label.id, name, former, description, metadata)


def remove_label(db: sqlite3.Connection, function: int, id: str) -> None:
    """The label goes, and with it what annotations and predictions say of it; NotFound."""
    db.execute("DELETE FROM labels WHERE number = ?", (find_label(db, function, id).number,))
    touch(db, function)


def learn(db: sqlite3.Connection, function: int, names: tuple[str, ...]) -> None:
    """Labels that a function has answered with are its labels from now on, as long as they are not too many."""
    unknown = [name for name in names if label_number(db, function, name) is None]
    if not unknown:
        return
    room = MOST_LEARNED - _count(db, "labels", function)
    for name in unknown[: max(0, room)]:
        add_label(db, function, name)


def _refuse_name(db: sqlite3.Connection, function: int, name: str) -> None:
    row = db.execute("SELECT id FROM labels WHERE function = ? AND name = ?", (function, name)).fetchone()
    if row is not None:
        raise Conflict(f"there is a label `{name[:100]}` already", details={"id": row[0]})


def _label(row: tuple[int, str, str, str | None, str | None, str | None]) -> Label:
    number, id, name, former, description, metadata = row
    return Label(number, id, name, former, description, msgspec.json.decode(metadata) if metadata else None)


# Fields.


def fields(db: sqlite3.Connection, function: int) -> list[Field]:
    """The function's fields, in the order in which they were made."""
    rows = db.execute("SELECT id, name, type FROM fields WHERE function = ? ORDER BY number", (function,))
    return [Field(*row) for row in rows]


def find_field(db: sqlite3.Connection, function: int, id: str) -> Field:
    """The field with this id; NotFound."""
    whole = ids.full("field", id)
    for field in fields(db, function):
        if field.id == whole:
            return field
    raise NotFound(f"there is no field {id} here")


def add_field(db: sqlite3.Connection, function: int, name: str, type: str) -> Field:
    """A new field; Conflict, with the id of the one that has the name."""
    known = fields(db, function)
    _refuse_field(known, name)
    if len(known) >= MOST_FIELDS:
        raise BadRequest(f"a function has at most {MOST_FIELDS} fields")
    if type == "Image" and any(field.type == "Image" for field in known):
        raise BadRequest("a function has at most one field of type Image")
    id = _free_id(db, "fields", function, lambda turn: ids.field_id(function, name, turn))
    db.execute("INSERT INTO fields (function, id, name, type) VALUES (?, ?, ?, ?)", (function, id, name, type))
    touch(db, function)
    return Field(id, name, type)


def rename_field(db: sqlite3.Connection, function: int, id: str, name: str) -> Field:
    """The field under another name; NotFound, Conflict."""
    field = find_field(db, function, id)
    if name != field.name:
        _refuse_field(fields(db, function), name)
        db.execute("UPDATE fields SET name = ? WHERE function = ? AND id = ?", (name, function, field.id))
        touch(db, function)
    return Field(field.id, name, field.type)


def remove_field(db: sqlite3.Connection, function: int, id: str) -> None:
    """The field goes, and with it its value in every sample; NotFound."""
    field = find_field(db, function, id)
    db.execute("DELETE FROM fields WHERE function = ? AND id = ?", (function, field.id))
    path = f'$."{field.id}"'
    db.execute("UPDATE samples SET data = json_remove(data, ?) WHERE function = ?", (path, function))
    touch(db, function)


def _refuse_field(known: list[Field], name: str) -> None:
    for field in known:
        if field.name == name:
            raise Conflict(f"there is a field `{name[:100]}` already", details={"id": field.id})


# Both.


def counts(db: sqlite3.Connection, function: int) -> Counts:
    """How much the function has been taught."""
    samples, predicted, annotated = db.execute(
        "SELECT count(*), coalesce(sum(EXISTS (SELECT 1 FROM predictions WHERE sample = number)), 0),"
        " coalesce(sum(EXISTS (SELECT 1 FROM annotations WHERE sample = number)), 0)"
        " FROM samples WHERE function = ?",
        (function,),
    ).fetchone()
    rows = db.execute(
        "SELECT labels.id, count(annotations.sample), coalesce(sum(annotations.present), 0) FROM labels"
        " LEFT JOIN annotations ON annotations.label = labels.number WHERE function = ?"
        " GROUP BY labels.number ORDER BY labels.number",
        (function,),
    ).fetchall()
    return Counts(
        samples, predicted, annotated, {id: all for id, all, _ in rows}, {id: present for id, _, present in rows}
    )


def _count(db: sqlite3.Connection, table: str, function: int) -> int:
    found: int = db.execute(f"SELECT count(*) FROM {table} WHERE function = ?", (function,)).fetchone()[0]
    return found


def _free_id(db: sqlite3.Connection, table: str, function: int, make: Callable[[int], str]) -> str:
    """The first id that no other row has: one that was renamed keeps the id of the name that it had."""
    turn = 0
    while db.execute(f"SELECT 1 FROM {table} WHERE function = ? AND id = ?", (function, make(turn))).fetchone():
        turn += 1
    return make(turn)


def _json(value: object) -> str | None:
    return msgspec.json.encode(value).decode() if value is not None else None
