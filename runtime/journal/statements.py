"""Every SQL statement that changes the journal, by name. `queries.py` has those that only read.

Used within a transaction of `writer.py`. States stand as numbers, because SQLite uses a partial index only where it can
read its condition in the statement: state 0 delayed, 1 ready, 2 running; callback 1 waiting, 2 pending, 3 delivered,
4 dead.
"""

from __future__ import annotations

from functools import cache

ADD_NAME = "INSERT INTO names (text) VALUES (?)"
NAMES = "SELECT id, text FROM names"

INSERT_CALLS = """INSERT INTO calls (id, space, name, state, priority, attempt, owner, accepted_at, run_at, started_at,
    callback, label, trigger, idempotency_key, schedule_id, scheduled_time, callback_url) VALUES"""
INSERT_REQUESTS = "INSERT INTO requests (id, method, path, query, headers, body, timeout) VALUES"
PUT_OUTCOMES = "INSERT OR REPLACE INTO outcomes (id, code, headers, body, invoked, seconds, error_code) VALUES"

KEY = "SELECT id, label, at, digest FROM keys WHERE space = ? AND name = ? AND key = ?"
PUT_KEY = "INSERT OR REPLACE INTO keys (space, name, key, at, id, label, digest) VALUES (?, ?, ?, ?, ?, ?, ?)"
FORGET_KEYS = "DELETE FROM keys WHERE (space, name, key) IN (SELECT space, name, key FROM keys WHERE at < ? LIMIT ?)"

FIRED = "SELECT fired FROM schedules WHERE id = ?"
PUT_FIRED = "INSERT OR REPLACE INTO schedules (id, fired) VALUES (?, ?)"

PROMOTE = """UPDATE calls SET state = 1 WHERE id IN
    (SELECT id FROM calls WHERE state = 0 AND run_at <= ? ORDER BY run_at LIMIT ?) RETURNING space, name, id"""
READY = """SELECT json_group_array(id) FROM (SELECT id FROM calls
    WHERE state = 1 AND space = ? AND name = ? ORDER BY priority DESC, id LIMIT ?)"""
START = """UPDATE calls SET state = 2, owner = ?, attempt = attempt + 1, started_at = ?, progress = NULL,
    progress_message = '' WHERE id IN (SELECT value FROM json_each(?))"""
ALL_TOLD = "SELECT json_group_array(id) FROM calls WHERE told = 1 AND id IN (SELECT value FROM json_each(?))"

# Those of these calls that are running in our hands, with what must be seen to besides.
OURS = """SELECT json_group_array(json_array(id, told, cancel, callback, space, name)) FROM calls
    WHERE id IN (SELECT value FROM json_each(?)) AND state = 2 AND owner = ?"""
FINISH = """WITH ended (id, state, code, error_code, seconds, now) AS (VALUES {})
    UPDATE calls SET state = ended.state, finished_at = now, code = ended.code, error_code = ended.error_code,
    seconds = ended.seconds, owner = NULL, cancel = 0, callback_at = CASE callback WHEN 1 THEN now END,
    callback = CASE callback WHEN 1 THEN 2 ELSE 0 END FROM ended WHERE calls.id = ended.id"""
CANCEL = """UPDATE calls SET state = 5, finished_at = ?, owner = NULL, cancel = 0, callback = 0, callback_at = NULL
    WHERE id = ?"""
REQUEUE = """UPDATE calls SET state = ?, run_at = ?, owner = NULL, cancel = 0, code = ?, error_code = ?, seconds = ?
    WHERE id = ?"""
UNSTART = """UPDATE calls SET state = ?, run_at = coalesce(?, run_at), owner = NULL, cancel = 0,
    attempt = attempt - 1, started_at = NULL WHERE id = ?"""

STATE = "SELECT state, space, name, told FROM calls WHERE id = ?"
ASK_TO_CANCEL = "UPDATE calls SET cancel = 1 WHERE id = ?"

OTHER_OWNERS = "SELECT id, boot, expires FROM owners WHERE id <> ?"
PUT_OWNER = "INSERT OR REPLACE INTO owners (id, boot, expires) VALUES (?, ?, ?)"
END_OWNER = "UPDATE owners SET expires = 0 WHERE id = ?"
FORGET_OWNER = "DELETE FROM owners WHERE id = ?"
HOLDS = """SELECT EXISTS (SELECT 1 FROM calls WHERE state = 2 AND owner = ?)
    OR EXISTS (SELECT 1 FROM calls WHERE callback_owner = ? AND callback_owner IS NOT NULL)"""
RUNNING_OF = "SELECT json_group_array(id) FROM (SELECT id FROM calls WHERE state = 2 AND owner = ? ORDER BY id)"
INHERIT = "UPDATE calls SET owner = ? WHERE state = 2 AND owner = ?"
FREE_DELIVERIES = "UPDATE calls SET callback_owner = NULL WHERE callback_owner = ? AND callback_owner IS NOT NULL"

DUE_DELIVERIES = """SELECT json_group_array(id) FROM (SELECT id FROM calls
    WHERE callback = 2 AND callback_owner IS NULL AND callback_at <= ? ORDER BY callback_at, id LIMIT ?)"""
# Function by function: the next one that has a callback pending, how many of it an owner has, what of it is due.
PENDING_FUNCTION = """SELECT space, name FROM calls INDEXED BY calls_pending_of
    WHERE callback = 2 AND callback_owner IS NULL AND (space, name) > (?, ?) ORDER BY space, name LIMIT 1"""
DELIVERING = """SELECT space, name, count(*) FROM calls
    WHERE callback_owner = ? AND callback_owner IS NOT NULL GROUP BY space, name"""
DUE_OF = """SELECT callback_at, id FROM calls INDEXED BY calls_pending_of
    WHERE callback = 2 AND callback_owner IS NULL AND space = ? AND name = ? AND callback_at <= ?
    ORDER BY callback_at, id LIMIT ?"""
START_DELIVERIES = """UPDATE calls SET callback_owner = ?, callback_attempts = callback_attempts + 1
    WHERE id IN (SELECT value FROM json_each(?))"""
UNSTART_DELIVERIES = """UPDATE calls SET callback_owner = NULL, callback_attempts = callback_attempts - 1
    WHERE id IN (SELECT value FROM json_each(?)) AND callback_owner = ?"""
DELIVERED = """UPDATE calls SET callback = 3, callback_at = NULL, callback_owner = NULL, callback_error = NULL
    WHERE id = ? AND callback = 2 AND callback_owner = ?"""
GIVE_UP = """UPDATE calls SET callback = 4, callback_at = NULL, callback_owner = NULL, callback_error = ?
    WHERE id = ? AND callback = 2 AND callback_owner = ?"""
# A dead or delivered one begins anew, with as many attempts as the first time.
REDELIVER = """UPDATE calls SET callback_attempts = CASE callback WHEN 2 THEN callback_attempts ELSE 0 END,
    callback = 2, callback_at = ?, callback_owner = NULL, callback_error = ?
    WHERE id = ? AND state IN (3, 4) AND callback_url IS NOT NULL"""
DELIVERING_NOW = "SELECT callback_owner FROM calls WHERE id = ? AND callback_owner IS NOT NULL"

TOLD = """SELECT state, told, accepted_at, started_at, finished_at, (SELECT max(number) FROM events
    WHERE events.id = calls.id) FROM calls WHERE id = ?"""
SET_TOLD = "UPDATE calls SET told = 1 WHERE id = ?"
INSERT_EVENTS = "INSERT INTO events (id, number, at, kind, data) VALUES"
INSERT_EVENT = f"{INSERT_EVENTS} (?, ?, ?, ?, ?)"
SET_PROGRESS = "UPDATE calls SET progress = ?, progress_message = ? WHERE id = ?"

NEXT_CALL = "SELECT run_at FROM calls WHERE state = 0 ORDER BY run_at LIMIT 1"
NEXT_DELIVERY = """SELECT callback_at FROM calls WHERE callback = 2 AND callback_owner IS NULL
    ORDER BY callback_at LIMIT 1"""
WAITING = "SELECT space, name, count(*) FROM calls WHERE state = 1 GROUP BY space, name"
TO_CANCEL = "SELECT id FROM calls WHERE state = 2 AND owner = ? AND cancel = 1"

# Finished calls in the order of their end, from one on, up to another one.
OLDEST = """SELECT id, finished_at, callback FROM calls WHERE space = ? AND finished_at IS NOT NULL
    AND (finished_at, id) > (?, ?) AND (finished_at, id) <= (?, ?) ORDER BY finished_at, id LIMIT ?"""
FORGET = tuple(
    f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))"
    for table in ("calls", "requests", "outcomes", "events")
)


@cache
def rows(statement: str, columns: int, count: int) -> str:
    """A statement with so many rows in place of `{}`, or at its end: one trip into SQLite, however many there are."""
    listed = ", ".join([f"({', '.join('?' * columns)})"] * count)
    return statement.format(listed) if "{}" in statement else f"{statement} {listed}"
