"""Calls as the command line shows them: tables, times, colours, progress.

Used by `commands.py`. Takes the JSON of docs/reference/http.md, gives text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

COLOURS = {"queued": "36", "running": "34", "succeeded": "32", "failed": "31", "cancelled": "33"}
LEVELS = {"warning": "33", "error": "31", "critical": "31;1"}
UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
COLUMNS = ("ID", "FUNCTION", "STATUS", "ACCEPTED", "TOOK", "RESULT", "CALLBACK")
BAR = 24  # characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of a handler's text; they could move the terminal's cursor

Json = dict[str, Any]


def painted(text: str, colour: str | None, colours: bool) -> str:
    """The text in a colour, where there are colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours and colour else text


def table(calls: Sequence[Json], *, colours: bool, now: datetime) -> list[str]:
    """A line a call below a line of headings, in aligned columns."""
    rows = [COLUMNS, *(_row(call, now) for call in calls)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row, call in zip(rows, [None, *calls], strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if call is None:
            cells = [painted(cell, "2", colours) for cell in cells]
        else:
            cells[2] = painted(cells[2], COLOURS.get(call["status"]), colours)
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(call: Json, now: datetime) -> tuple[str, ...]:
    return (
        str(call["id"]),
        f"{call['space']}/{call['function']}",
        status(call),
        relative(call["accepted_at"], now),
        took(call, now),
        result(call),
        call["callback"]["state"] if call["callback"] else "-",
    )


def status(call: Json) -> str:
    """Its status, with its progress while it runs, and when it is to start where that is not now."""
    if call["status"] == "running" and call["progress"]:
        return f"running {call['progress']['fraction']:.0%}"
    return str(call["status"])


def result(call: Json) -> str:
    """The status of its answer, or what went wrong in the host."""
    if call["result"] is None:
        return "-"
    error = call["result"]["error"]
    return f"{call['result']['status']} {error}" if error else str(call["result"]["status"])


def took(call: Json, now: datetime) -> str:
    """How long it ran, or has been running."""
    if call["result"] and call["finished_at"]:
        return _precise(call["result"]["seconds"] or 0.0)
    if call["status"] == "running" and call["started_at"]:
        return _precise((now - _moment(call["started_at"])).total_seconds())
    return "-"


def relative(text: str | None, now: datetime) -> str:
    """A time, seen from now: `12s ago`, `in 3m`."""
    if text is None:
        return "-"
    seconds = (now - _moment(text)).total_seconds()
    size = _rough(abs(seconds))
    return f"in {size}" if seconds <= -1 else f"{size} ago"


def details(call: Json, *, colours: bool, now: datetime) -> list[str]:
    """Everything that is known of a call, a line a fact."""
    facts = {
        "call": f"{call['id']}" + (f" ({call['label']})" if call["label"] != str(call["id"]) else ""),
        "function": f"{call['space']}/{call['function']}",
        "status": painted(status(call), COLOURS.get(call["status"]), colours),
        "progress": progress(call["progress"]) if call["progress"] and call["status"] == "running" else None,
        "trigger": call["trigger"] + (f", due {call['scheduled_time']}" if call["scheduled_time"] else ""),
        "priority": str(call["priority"]) if call["priority"] else None,
        "idempotency key": call["idempotency_key"],
        "accepted": _when(call["accepted_at"], now),
        "to start": _when(call["run_at"], now) if call["status"] == "queued" else None,
        "started": _when(call["started_at"], now),
        "finished": _when(call["finished_at"], now),
        "attempts": str(call["attempt"]) if call["attempt"] > 1 else None,
        "took": took(call, now) if call["started_at"] else None,
        "result": _result_line(call),
        "callback": _callback_line(call["callback"], now) if call["callback"] else None,
    }
    width = max(map(len, facts)) + 2
    return [f"{name.ljust(width)}{CONTROL.sub('?', fact) if name != 'status' else fact}"
            for name, fact in facts.items() if fact is not None]  # fmt: skip


def progress(state: Json) -> str:
    """A bar, how much, and what the handler says to it."""
    fraction = min(max(float(state["fraction"]), 0.0), 1.0)
    full = round(fraction * BAR)
    message = CONTROL.sub("?", state.get("message") or "").replace("\n", " ")
    return f"[{'#' * full}{'.' * (BAR - full)}] {fraction:4.0%} {message}".rstrip()


def log_line(log: Json, *, colours: bool, origin: str = "") -> str:
    """A line that a handler printed or logged, with its time of day."""
    clock = _moment(log["at"]).astimezone().strftime("%H:%M:%S")
    level = str(log.get("level", "info")).lower()
    mark = f"{level.upper()} " if level in LEVELS else ""
    text = painted(CONTROL.sub("?", f"{mark}{log['text']}".rstrip("\n")), LEVELS.get(level), colours)
    return "  ".join(part for part in (painted(clock, "2", colours), painted(origin, "36", colours), text) if part)


def now() -> datetime:
    """The time, as the functions above want it."""
    return datetime.now(UTC)


def _result_line(call: Json) -> str | None:
    if call["result"] is None:
        return None
    kind, length = call["result"].get("content_type"), call["result"].get("length")
    size = f"{length} bytes" if length is not None else None
    return ", ".join(part for part in (result(call), kind, size) if part)


def _callback_line(callback: Json, now: datetime) -> str:
    parts = [f"{callback['state']}, {callback['url']}"]
    if callback["attempts"]:
        parts.append(f"{callback['attempts']} attempts")
    if callback["next_at"]:
        due = relative(callback["next_at"], now)
        parts.append(f"next {due}" if due.startswith("in ") else "due now")
    if callback["error"]:
        parts.append(callback["error"])
    return ", ".join(parts)


def _when(text: str | None, now: datetime) -> str | None:
    return f"{text}, {relative(text, now)}" if text is not None else None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _rough(seconds: float) -> str:
    return next((f"{seconds // size:.0f}{unit}" for unit, size in UNITS if seconds >= size), "0s")


def _precise(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 60 else _rough(seconds)
