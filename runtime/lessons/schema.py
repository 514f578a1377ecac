"""The tables of samples.db: what functions are taught with, and what is kept of them besides their files.

Read by `lessons`, which opens the file through `records.py`.
"""

from __future__ import annotations

from ..records import Migrations

# Of a function: `created` means made through the API, and trained here; `revision` counts what its training depends
# on, and `settled` is the revision of the last training, whatever came of it.
FUNCTIONS = """
CREATE TABLE functions (
    number INTEGER PRIMARY KEY,
    space TEXT NOT NULL,
    name TEXT NOT NULL,
    title TEXT,
    input TEXT,
    output TEXT,
    project TEXT,
    created INTEGER NOT NULL DEFAULT 0,
    model TEXT NOT NULL DEFAULT '',
    problem TEXT NOT NULL DEFAULT '',
    training TEXT NOT NULL DEFAULT '{}',
    revision INTEGER NOT NULL DEFAULT 0,
    settled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL
)
"""
# `former`: the name before, which a model may still answer with.
LABELS = """
CREATE TABLE labels (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    function INTEGER NOT NULL REFERENCES functions ON DELETE CASCADE,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    former TEXT,
    description TEXT,
    metadata TEXT,
    UNIQUE (function, name),
    UNIQUE (function, id)
)
"""
FIELDS = """
CREATE TABLE fields (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    function INTEGER NOT NULL REFERENCES functions ON DELETE CASCADE,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    UNIQUE (function, name),
    UNIQUE (function, id)
)
"""
SAMPLES = """
CREATE TABLE samples (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    function INTEGER NOT NULL REFERENCES functions ON DELETE CASCADE,
    id TEXT NOT NULL,
    data TEXT NOT NULL,
    size INTEGER NOT NULL,
    external_id TEXT,
    metadata TEXT,
    sets TEXT NOT NULL DEFAULT '[]',
    origin TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (function, id)
)
"""
ANNOTATIONS = """
CREATE TABLE annotations (
    sample INTEGER NOT NULL REFERENCES samples ON DELETE CASCADE,
    label INTEGER NOT NULL REFERENCES labels ON DELETE CASCADE,
    present INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (sample, label)
) WITHOUT ROWID
"""
PREDICTIONS = """
CREATE TABLE predictions (
    sample INTEGER NOT NULL REFERENCES samples ON DELETE CASCADE,
    label INTEGER NOT NULL REFERENCES labels ON DELETE CASCADE,
    confidence REAL NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (sample, label)
) WITHOUT ROWID
"""

MIGRATIONS: Migrations = (
    (
        FUNCTIONS,
        LABELS,
        FIELDS,
        SAMPLES,
        "CREATE UNIQUE INDEX samples_external ON samples (function, external_id) WHERE external_id IS NOT NULL",
        "CREATE INDEX samples_origin ON samples (function, origin, number, size)",
        ANNOTATIONS,
        "CREATE INDEX annotations_label ON annotations (label)",
        PREDICTIONS,
        "CREATE INDEX predictions_label ON predictions (label)",
        "CREATE TABLE projects (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL)",
    ),
)
