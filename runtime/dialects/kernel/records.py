"""A call of the journal as Kernel shows it: the record of an invocation.

Used by `invocations.py`, `listing.py` and `events.py`; reads the journal of `host.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ... import answers
from ...calls import Call, Entry, Outcome, Status
from ...host import Host
from .apps import VERSION, Apps
from .moments import shown

CANCELLED = "cancelled"  # the error code of an outcome that a canceller has left


class Records:
    """Makes the records. One that is whole costs three reads of the journal."""

    def __init__(self, host: Host, apps: Apps) -> None:
        self._host = host
        self._apps = apps

    async def whole(self, entry: Entry) -> dict[str, Any]:
        """All of it."""
        call = await self._host.journal.request(entry.id)
        return self._made(entry, call, await self.outcome(entry))

    async def created(self, entry: Entry) -> dict[str, Any]:
        """What is said to who has made it: less than the whole."""
        whole = await self.whole(entry)
        return {key: whole[key] for key in ("id", "action_name", "status", "output", "status_reason") if key in whole}

    def short(self, entry: Entry, outcome: Outcome | None) -> dict[str, Any]:
        """Without what was sent; without what came back, where that is not given."""
        return self._made(entry, None, outcome)

    async def outcome(self, entry: Entry) -> Outcome | None:
        """What came of it, once it is over; where it was cancelled, what its canceller says."""
        if not entry.status.is_final:
            return None
        outcome = await self._host.journal.outcome(entry.id)
        if entry.status is Status.CANCELLED and outcome is not None and outcome.error_code != CANCELLED:
            return None  # of an earlier attempt
        return outcome

    def _made(self, entry: Entry, call: Call | None, outcome: Outcome | None) -> dict[str, Any]:
        app, action = self._apps.names(entry.space, entry.name)
        record = {
            "id": str(entry.id),
            "app_name": app,
            "action_name": action,
            "version": VERSION,
            "status": status_of(entry, outcome),
            "started_at": shown(entry.accepted_at if entry.started_at is None else entry.started_at),
        }
        payload = _json_text(b"".join(call.body)) if call is not None else None
        if payload:
            record["payload"] = payload
        if entry.status.is_final:
            record["finished_at"] = shown(entry.finished_at or entry.accepted_at)
            record |= _ending(record["status"], entry, outcome, call.timeout if call is not None else None)
        return record


def status_of(entry: Entry, outcome: Outcome | None) -> str:
    """Kernel's word for where it is. It has none for what was cancelled."""
    if entry.status is not Status.CANCELLED:
        return str(entry.status)
    return str(outcome.status if outcome is not None else Status.FAILED)


def settled(status: str, output: str | None) -> Outcome:
    """What is kept of an invocation that its client says has succeeded or failed."""
    body = (output or "").encode()
    kind = b"application/json" if _json_text(body) else b"text/plain; charset=utf-8"
    succeeded = status == Status.SUCCEEDED
    return Outcome(200 if succeeded else 500, b"content-type\0" + kind, body, succeeded, 0.0, CANCELLED)


def _ending(status: str, entry: Entry, outcome: Outcome | None, timeout: float | None) -> dict[str, str]:
    """`output` and `status_reason`."""
    ending: dict[str, str] = {}
    reason = _reason(entry)
    if outcome is None:
        pass
    elif outcome.error_code == CANCELLED and entry.status is Status.CANCELLED:
        if outcome.body:
            ending["output"] = outcome.body.decode()
    else:
        answer = answers.read(outcome)
        ending["output"] = answer.value.decode() if answer.ok else answer.message
        reason = answer.message or reason
        if outcome.error_code == "timeout" and timeout is not None:
            reason = ending["output"] = f"Invocation timed out after {timeout:g} seconds"
    if status == Status.FAILED:
        ending["status_reason"] = reason
    return ending


def _reason(entry: Entry) -> str:
    """Why it failed, as far as that can be told without its outcome."""
    if entry.status is Status.CANCELLED:
        return "Invocation was cancelled"
    what = entry.error_code or (f"status {entry.code}" if entry.code else "unknown error")
    return f"Invocation failed: {what}"


def _json_text(body: bytes) -> str | None:
    """The body where it is JSON; None where it is not, or empty."""
    try:
        text = body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return None
    return text
