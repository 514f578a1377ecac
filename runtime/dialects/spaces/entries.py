"""A call of the journal as JSON shows it: docs/reference/http.md has every field.

Used by `calls.py` and `events.py`.
"""

from __future__ import annotations

import logging
from typing import Any

from ...calls import CallbackState, Entry, Event, Outcome
from .moments import shown


def describe(entry: Entry, outcome: Outcome | None = None) -> dict[str, Any]:
    """What a client is shown of a call; with its outcome, also what kind of answer that is."""
    return {
        "id": entry.id,
        "label": entry.label,
        "space": entry.space,
        "function": entry.name,
        "status": entry.status,
        "trigger": entry.trigger,
        "priority": entry.priority,
        "idempotency_key": entry.idempotency_key,
        "schedule_id": entry.schedule_id or None,
        "scheduled_time": shown(entry.scheduled_time or None),
        "accepted_at": shown(entry.accepted_at),
        "run_at": shown(entry.run_at),
        "started_at": shown(entry.started_at),
        "finished_at": shown(entry.finished_at),
        "attempt": entry.attempt,
        "progress": _progress(entry),
        "result": _result(entry, outcome),
        "callback": _callback(entry),
    }


def describe_event(event: Event) -> dict[str, Any]:
    """One thing that happened, with its time; the level of a log line by its name."""
    told = {"at": shown(event.at), **event.data}
    if event.kind == "log":
        told["level"] = logging.getLevelName(event.data["level"]).lower()
    return told


def headers_of(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    """The answer's headers, a pair each."""
    parts = outcome.headers.split(b"\0") if outcome.headers else []
    fields = iter(parts)
    return list(zip(fields, fields))  # noqa: B905 - a name and its value, in turn, out of one iterator


def _progress(entry: Entry) -> dict[str, Any] | None:
    if entry.progress is None:
        return None
    return {"fraction": entry.progress, "message": entry.progress_message}


def _result(entry: Entry, outcome: Outcome | None) -> dict[str, Any] | None:
    """How it ended; of a call that is to run again, how its last attempt did."""
    if entry.code is None:
        return None
    result: dict[str, Any] = {"status": entry.code, "error": entry.error_code, "seconds": entry.seconds}
    if outcome is not None:
        kind = dict(headers_of(outcome)).get(b"content-type")
        result["content_type"] = kind.decode("latin-1") if kind is not None else None
        result["length"] = len(outcome.body)
    return result


def _callback(entry: Entry) -> dict[str, Any] | None:
    """Where it stands with the callback. What follows the `?` of its URL is not shown: it often is a secret."""
    if entry.callback_url is None:
        return None
    waits = entry.callback is CallbackState.PENDING
    return {
        "state": entry.callback,
        "url": entry.callback_url.partition("?")[0],
        "attempts": entry.callback_attempts,
        "next_at": shown(entry.callback_at) if waits else None,
        "error": entry.callback_error,
    }
