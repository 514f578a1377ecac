"""A cron expression in words, as this API shows it beside a schedule.

Used by `schedules.py`. The expression is a valid one; what is too involved to be read aloud is told field by field.
"""

from __future__ import annotations

import re

DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
STEP = re.compile(r"\*/([0-9]+)")
NUMBER = re.compile(r"[0-9]+")


def describe(expression: str) -> str:
    """An expression of five fields, in capitals, in words; times are those of UTC."""
    minute, hour, day, month, weekday = expression.split(" ")
    text = _time(minute, hour) + _days(day, weekday)
    if month != "*":
        text += f", in {_list(month, MONTHS, 1, 'month')}"
    return text


def _time(minute: str, hour: str) -> str:
    if hour == "*":
        return _minutes(minute)
    step = STEP.fullmatch(hour)
    if minute == "0" and step:
        if int(step[1]) >= 24:  # it leaves the day at once
            return "At 00:00 UTC"
        return "Every hour" if step[1] == "1" else f"Every {step[1]} hours"
    if NUMBER.fullmatch(minute) and all(NUMBER.fullmatch(part) for part in hour.split(",")):
        return f"At {_joined([f'{int(part):02}:{int(minute):02}' for part in hour.split(',')])} UTC"
    return f"{_minutes(minute)}, during hour {_list(hour, (), 0, 'hour')} UTC"


def _minutes(minute: str) -> str:
    """What a field of minutes says of each hour."""
    step = STEP.fullmatch(minute)
    if minute == "*" or (step and step[1] == "1"):
        return "Every minute"
    if step and int(step[1]) < 60:
        return f"Every {step[1]} minutes"
    if minute == "0" or step:  # a step that leaves the hour at once
        return "Every hour"
    return f"At minute {_list(minute, (), 0, 'minute')} of every hour"


def _days(day: str, weekday: str) -> str:
    """On which days; where both fields name some, either will do."""
    if day == "*" and weekday == "*":
        return ""
    of_month = "" if day == "*" else f"on day {_list(day, (), 0, 'day')} of the month"
    of_week = "" if weekday == "*" else f"on {_list(weekday, DAYS, 0, 'day of the week')}"
    return ", " + " or ".join(filter(None, (of_month, of_week)))


def _list(field: str, names: tuple[str, ...], first: int, unit: str) -> str:
    return _joined([_part(part, names, first, unit) for part in field.split(",")])


def _part(part: str, names: tuple[str, ...], first: int, unit: str) -> str:
    """One of the things that a field lists: a value, a range, either with a step."""
    values, slash, step = part.partition("/")
    low, dash, high = values.partition("-")
    text = f"{_name(low, names, first)} to {_name(high, names, first)}" if dash else _name(low, names, first)
    if not slash:
        return text
    return f"every {step} {unit}s" if values == "*" else f"every {step} {unit}s from {text}"


def _name(value: str, names: tuple[str, ...], first: int) -> str:
    """What a value is called: of "1" and "MON" Monday; what is neither as it is written."""
    if NUMBER.fullmatch(value) and first <= int(value) < len(names) + first:
        return names[int(value) - first]
    return next((name for name in names if len(value) == 3 and name.upper().startswith(value)), value)


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
