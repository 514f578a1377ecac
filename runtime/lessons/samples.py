"""Samples, annotations and predictions in the tables: each function here is one step of a transaction.

Called by `lessons`, in the thread of `records.py`. What cannot be is a CallerError, and changes nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence

import msgspec

from ..errors import BadRequest, Conflict, NotFound
from . import ids, vocabulary

CAPTURED = "InvokeCapture"
PAGE_BYTES = 16 * 1024 * 1024  # of data in one page: what is left over is the next page's


class Mark(msgspec.Struct, frozen=True):
    """What an annotation says of one label, which is named or given by its id."""

    name: str | None = None
    id: str | None = None
    present: bool = True


class Draft(msgspec.Struct, frozen=True):
    """A sample to be recorded; `data` and `metadata` are JSON texts."""

    id: str
    data: str
    external_id: str | None = None
    metadata: str | None = None
    marks: tuple[Mark, ...] = ()
    sets: tuple[str, ...] = ()
    origin: str = "Api"


class Sample(msgspec.Struct, frozen=True):
    """A recorded sample. `annotation`: label ids, and whether each is present; `prediction`: ids and confidences."""

    number: int
    id: str
    data: str | None
    external_id: str | None
    metadata: str | None
    sets: tuple[str, ...]
    origin: str
    annotation: tuple[tuple[str, bool], ...]
    prediction: tuple[tuple[str, float], ...]


class Wanted(msgspec.Struct, frozen=True):
    """Which samples to list. `up_to`: none that is newer than this one, so that pages do not shift."""

    external_id: str | None = None
    annotated: bool | None = None
    predicted: bool | None = None
    annotation_label: str | None = None
    prediction_label: str | None = None
    agree: bool | None = None
    origin: str | None = None
    text: str | None = None
    ids: tuple[str, ...] = ()
    sample_set: str | None = None
    since: float | None = None
    until: float | None = None
    newest_first: bool = False
    start: int = 0
    count: int = 1000
    up_to: int | None = None
    with_data: bool = True


class Page(msgspec.Struct, frozen=True):
    """Samples, and where the next page starts; None: there is none."""

    samples: tuple[Sample, ...]
    next: int | None
    up_to: int


def add(db: sqlite3.Connection, function: int, draft: Draft, tags: bool) -> int:
    """Record a sample; Conflict, with the id of the one there is, where its data or external id is known."""
    row = db.execute(
        "SELECT id, id = ? FROM samples WHERE function = ? AND (id = ? OR external_id = ?) LIMIT 1",
        (draft.id, function, draft.id, draft.external_id),
    ).fetchone()
    if row is not None:
        what = "this data" if row[1] else f"the external id `{(draft.external_id or '')[:100]}`"
        raise Conflict(f"there is a sample with {what} already", details={"existingSampleId": row[0]})
    number = _insert(db, function, draft)
    if draft.marks:
        annotate(db, function, number, draft.marks, tags)
    return number


def capture(db: sqlite3.Connection, function: int, draft: Draft, prediction: Sequence[tuple[str, float]]) -> None:
    """Note what a function was asked and has answered; of a sample that there is already, the answer alone."""
    row = db.execute("SELECT number FROM samples WHERE function = ? AND id = ?", (function, draft.id)).fetchone()
    if row is None and draft.external_id is not None:
        known = "SELECT 1 FROM samples WHERE function = ? AND external_id = ?"
        if db.execute(known, (function, draft.external_id)).fetchone():  # whose it stays
            draft = msgspec.structs.replace(draft, external_id=None)
    number: int = row[0] if row is not None else _insert(db, function, draft)
    db.execute("DELETE FROM predictions WHERE sample = ?", (number,))
    for position, (name, confidence) in enumerate(prediction):
        label = vocabulary.label_number(db, function, name)
        if label is not None:
            db.execute("INSERT OR IGNORE INTO predictions VALUES (?, ?, ?, ?)", (number, label, confidence, position))


def forget_captured(db: sqlite3.Connection, function: int, most: int, most_bytes: int) -> None:
    """Of what was captured and nobody has annotated, the oldest goes until the rest is within these bounds."""
    count, size = db.execute(
        "SELECT count(*), coalesce(sum(size), 0) FROM samples WHERE function = ? AND origin = ?", (function, CAPTURED)
    ).fetchone()
    if count <= most and size <= most_bytes:
        return
    gone = []
    oldest = db.execute(
        "SELECT number, size FROM samples WHERE function = ? AND origin = ?"
        " AND NOT EXISTS (SELECT 1 FROM annotations WHERE sample = number) ORDER BY number",
        (function, CAPTURED),
    )
    for number, bytes_of_it in oldest:
        if count <= most and size <= most_bytes:
            break
        gone.append((number,))
        count, size = count - 1, size - bytes_of_it
    db.executemany("DELETE FROM samples WHERE number = ?", gone)


def find(db: sqlite3.Connection, function: int, id: str) -> Sample:
    """The sample with this id; NotFound."""
    wanted = Wanted(ids=(ids.full("sample", id),), count=1)
    found = page(db, function, wanted).samples
    if not found:
        raise NotFound(f"there is no sample {id} here")
    return found[0]


def remove(db: sqlite3.Connection, function: int, id: str) -> None:
    """The sample with this id goes; NotFound."""
    sample = find(db, function, id)
    db.execute("DELETE FROM samples WHERE number = ?", (sample.number,))
    if sample.annotation:
        vocabulary.touch(db, function)


def remove_external(db: sqlite3.Connection, function: int, external_id: str) -> None:
    """The sample with this external id goes; NotFound."""
    row = db.execute("SELECT id FROM samples WHERE function = ? AND external_id = ?", (function, external_id))
    found = row.fetchone()
    if found is None:
        raise NotFound(f"there is no sample with the external id `{external_id[:100]}` here")
    remove(db, function, found[0])


def annotate(db: sqlite3.Connection, function: int, sample: int, marks: Sequence[Mark], tags: bool) -> None:
    """Say which labels are right for a sample, instead of what was said before; without marks, nothing.

    With `tags`, labels that there are and that are not mentioned are absent.
    """
    chosen: dict[int, bool] = {}
    for mark in marks:
        chosen[_marked(db, function, mark)] = mark.present
    if tags and marks:
        for (label,) in db.execute("SELECT number FROM labels WHERE function = ? ORDER BY number", (function,)):
            chosen.setdefault(label, False)
    db.execute("DELETE FROM annotations WHERE sample = ?", (sample,))
    rows = [(sample, label, present, position) for position, (label, present) in enumerate(chosen.items())]
    db.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?)", rows)
    vocabulary.touch(db, function)


def page(db: sqlite3.Connection, function: int, wanted: Wanted) -> Page:
    """The samples that are wanted; fewer than asked for where their data is large."""
    newest = db.execute("SELECT coalesce(max(number), 0) FROM samples WHERE function = ?", (function,)).fetchone()[0]
    up_to: int = newest if wanted.up_to is None else wanted.up_to
    conditions = [("function = ?", function), ("number <= ?", up_to), *_conditions(wanted)]
    where = " AND ".join(text for text, *_ in conditions)
    values = [value for _, *given in conditions for value in given]
    order = "DESC" if wanted.newest_first else "ASC"
    columns = f"number, id, {'data' if wanted.with_data else 'NULL'}, external_id, metadata, sets, origin, size"
    rows = db.execute(
        f"SELECT {columns} FROM samples WHERE {where} ORDER BY number {order} LIMIT ? OFFSET ?",
        (*values, wanted.count + 1, wanted.start),
    )
    found: list[Sample] = []
    size = 0
    for *row, bytes_of_it in rows:
        size += bytes_of_it if wanted.with_data else 0
        if len(found) == wanted.count or (found and size > PAGE_BYTES):
            return Page(tuple(found), wanted.start + len(found), up_to)
        found.append(_sample(db, row))
    return Page(tuple(found), None, up_to)


def annotated(db: sqlite3.Connection, function: int) -> Iterator[tuple[str, str, list[tuple[str, bool]]]]:
    """Every sample that is annotated: its id, its data, and label names with whether each is present."""
    rows = db.execute(
        "SELECT number, id, data FROM samples WHERE function = ?"
        " AND EXISTS (SELECT 1 FROM annotations WHERE sample = number) ORDER BY number",
        (function,),
    )
    marks = (
        "SELECT name, present FROM annotations JOIN labels ON labels.number = label WHERE sample = ? ORDER BY position"
    )
    for number, id, data in rows:
        yield id, data, [(name, bool(present)) for name, present in db.execute(marks, (number,))]


def _insert(db: sqlite3.Connection, function: int, draft: Draft) -> int:
    number = db.execute(
        "INSERT INTO samples (function, id, data, size, external_id, metadata, sets, origin, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            function, draft.id, draft.data, len(draft.data), draft.external_id, draft.metadata,
            msgspec.json.encode(draft.sets).decode(), draft.origin, time.time(),
        ),
    ).lastrowid  # fmt: skip
    assert number is not None
    return number


def _marked(db: sqlite3.Connection, function: int, mark: Mark) -> int:
    """The row of the label that a mark is about; one that is named and unknown is made."""
    if mark.id is not None:
        try:
            return vocabulary.find_label(db, function, mark.id).number
        except NotFound as error:
            raise BadRequest(f"annotation: {error.message}") from None
    assert mark.name is not None
    known = vocabulary.label_number(db, function, mark.name)
    return vocabulary.add_label(db, function, mark.name).number if known is None else known


def _conditions(wanted: Wanted) -> Iterator[tuple[str, *tuple[object, ...]]]:
    """What a sample must fulfil, in SQL, and the values."""
    best = "(SELECT label FROM predictions WHERE sample = number ORDER BY position LIMIT 1)"
    right = "(SELECT label FROM annotations WHERE sample = number AND present ORDER BY position LIMIT 1)"
    label = "(SELECT labels.number FROM labels WHERE labels.function = samples.function AND labels.id = ?)"
    if wanted.external_id is not None:
        yield "external_id = ?", wanted.external_id
    for table, wish in (("annotations", wanted.annotated), ("predictions", wanted.predicted)):
        if wish is not None:
            yield (f"{'' if wish else 'NOT '}EXISTS (SELECT 1 FROM {table} WHERE sample = number)",)
    if wanted.annotation_label is not None:
        inner = f"SELECT 1 FROM annotations WHERE sample = number AND present AND label = {label}"
        yield f"EXISTS ({inner})", wanted.annotation_label
    if wanted.prediction_label is not None:
        yield f"{best} = {label}", wanted.prediction_label
    if wanted.agree is not None:
        yield (f"{best} {'=' if wanted.agree else '<>'} {right}",)
    if wanted.origin is not None:
        yield "origin = ?", wanted.origin
    if wanted.text is not None:
        escaped = msgspec.json.encode(wanted.text)[1:-1].decode()  # as it is in JSON, which the data is
        yield "instr(lower(data), lower(?)) > 0", escaped
    if wanted.ids:
        yield f"id IN ({', '.join('?' * len(wanted.ids))})", *wanted.ids
    if wanted.sample_set is not None:
        yield "EXISTS (SELECT 1 FROM json_each(sets) WHERE value = ?)", wanted.sample_set
    if wanted.since is not None:
        yield "created_at >= ?", wanted.since
    if wanted.until is not None:
        yield "created_at < ?", wanted.until


def _sample(db: sqlite3.Connection, row: Sequence[object]) -> Sample:
    number, id, data, external_id, metadata, sets, origin = row
    marks = (
        "SELECT labels.id, present FROM annotations JOIN labels ON labels.number = label WHERE sample = ?"
        " ORDER BY position"
    )
    guesses = (
        "SELECT labels.id, confidence FROM predictions JOIN labels ON labels.number = label WHERE sample = ?"
        " ORDER BY position"
    )
    values = {
        "number": number, "id": id, "data": data, "external_id": external_id, "metadata": metadata, "origin": origin,
        "sets": msgspec.json.decode(str(sets)),
        "annotation": [(label, bool(present)) for label, present in db.execute(marks, (number,))],
        "prediction": db.execute(guesses, (number,)).fetchall(),
    }  # fmt: skip
    return msgspec.convert(values, Sample)
