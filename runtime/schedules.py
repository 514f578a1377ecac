"""What a schedule is and when it is due. The only module that knows cronsim.

`settings` reads schedules with it, `triggers/schedule` asks for due times. All times are seconds since the epoch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from functools import cache, partial
from typing import Any

import msgspec
from cronsim import CronSim, CronSimError

from runtime import callback_rules
from runtime import toml_reader as toml
from runtime.calls import SEQUENCE_BITS
from runtime.toml_lines import KeyPath

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONGEST = 200  # characters of an expression


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Due times of one function, and what each call gets.

    `id` is the same on every host and after every restart, below 2**53, and another one when `cron` or
    `timezone` change. `data` is JSON. `catch_up`: of the due times missed while no host ran, run the latest.
    """

    id: int
    cron: str
    timezone: str = "UTC"
    data: bytes | None = None
    callback: str | None = None
    catch_up: bool = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Each field and its value, but not the callback URL and the data, which may hold secrets."""
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        hidden = {field: "***" for field in ("data", "callback") if values[field] is not None}
        return list({**values, **hidden}.items())

    def __repr__(self) -> str:
        return f"Schedule({', '.join(f'{field}={value!r}' for field, value in self.__rich_repr__())})"


def next_after(schedule: Schedule, moment: float) -> float | None:
    """The first due time later than `moment`; None when there is none within 50 years."""
    return next(_due_times(schedule, moment), None)


def latest(schedule: Schedule, after: float, until: float) -> float | None:
    """The last due time later than `after` and not later than `until`; None when there is none."""
    window = 3600.0
    while True:  # further and further back, so that a long time has not to be gone through minute by minute
        found = None
        for due in _due_times(schedule, max(after, until - window)):
            if due > until:
                break
            found = due
        if found is not None or until - window <= after:
            return found
        window *= 2


def _due_times(schedule: Schedule, moment: float) -> Iterator[float]:
    """Due times later than `moment`, each later than the one before."""
    start = datetime.fromtimestamp(math.floor(moment), _zone(schedule.timezone))
    for due in CronSim(schedule.cron, start):
        # In an hour that the clocks repeat, the library may answer with the first of the two: it is over.
        if due.timestamp() > moment:
            moment = due.timestamp()
            yield moment


# Reading.


def read(document: toml.Document, at: KeyPath, raw: Any) -> tuple[Schedule, ...]:
    """What the key `schedule` at this path of a function says: a cron expression, a table, or a list of them."""
    entries = [((*at, number), each) for number, each in enumerate(raw)] if isinstance(raw, list) else [(at, raw)]
    found: list[Schedule] = []
    for place, entry in entries:
        try:
            schedule = _read_one(document, place, entry)
            if schedule is not None:
                found.append(_identified(at, schedule, found))
        except ValueError as error:
            document.problem(place, f"`{at[-1]}` {toml.within(at[:-1])}: {error}")
    return tuple(found)


def _read_one(document: toml.Document, at: KeyPath, raw: Any) -> Schedule | None:
    """A schedule that has no id yet; None when a value in it is wrong, which is noted."""
    if not isinstance(raw, str | dict):
        raise ValueError('must be a cron expression such as "*/5 * * * *", a table with `cron`, or a list of these')
    table = raw if isinstance(raw, dict) else {"cron": raw}
    if "cron" not in table:
        raise ValueError("a schedule needs `cron`")
    readers: toml.Readers = {
        "cron": read_cron,
        "timezone": _timezone,
        "data": _json,
        "callback": partial(_callback, document),
        "catch_up": toml.boolean,
    }
    values = document.values(at, table, readers)
    return Schedule(id=0, **values) if values.keys() == table.keys() else None


def _identified(at: KeyPath, schedule: Schedule, others: list[Schedule]) -> Schedule:
    """With an id made of its function, its due times, and how many others of that function have the same."""
    alike = [other for other in others if (other.cron, other.timezone) == (schedule.cron, schedule.timezone)]
    if any(msgspec.structs.replace(other, id=0) == schedule for other in alike):
        raise ValueError(f"{schedule.cron!r} is there twice")
    _, space, _, function, *_ = at
    source = "\n".join([f"{space}/{function}", schedule.cron, schedule.timezone, str(len(alike))])
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return msgspec.structs.replace(schedule, id=(int.from_bytes(digest, "big") >> SEQUENCE_BITS) or 1)


def read_cron(raw: Any) -> str:
    """A cron expression of five fields, in upper case and with single spaces; ValueError says what is wrong with it."""
    text = toml.string(raw)
    expression = _NAMED.get(text.lower(), " ".join(text.upper().split()))
    if len(expression) > _LONGEST or expression.count(" ") != 4:
        named = ", ".join(name for name in _NAMED if name != "@annually")
        fields = "minute hour day month weekday"
        raise ValueError(f"{toml.shown(text)} is no cron expression; use five fields, {fields}, or {named}")
    try:
        if next(CronSim(expression, datetime.now(UTC)), None) is None:
            raise ValueError(f"{toml.shown(text)} is never due")
    except CronSimError as error:
        reason = str(error)
        raise ValueError(f"{toml.shown(text)} is no cron expression: {reason[:1].lower()}{reason[1:]}") from None
    return expression


def _timezone(raw: Any) -> str:
    name = toml.string(raw)
    try:
        _zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{toml.shown(name)} is no time zone; {_zone_hint(name)}") from None
    return name


@cache
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else zoneinfo.ZoneInfo(name)  # UTC needs no files


def _zone_hint(name: str) -> str:
    known = zoneinfo.available_timezones()
    if not known:
        return "this machine knows none but UTC: install the system's package tzdata, or Python's"
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"did you mean {near[0]!r}?" if near else 'use a name such as "Europe/Berlin"'


def _json(raw: Any) -> bytes:
    """Any TOML value as JSON; dates and times as in RFC 3339."""
    try:
        text = json.dumps(raw, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_isoformat)
    except ValueError:
        raise ValueError("nan and inf have no place in JSON") from None
    return text.encode()


def _isoformat(moment: Any) -> str:
    text: str = moment.isoformat()
    return text


def _callback(document: toml.Document, raw: Any) -> str:
    return callback_rules.url(document.variable(raw))
