"""What calls functions without HTTP.

`server.py` makes each of TRIGGERS for its host and runs it; a trigger hands its submissions to `Host.submit`.
tests/contract/test_triggers.py holds every trigger to what stands here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..calls import Submission
from ..host import Host
from ..journal import Receipt
from .schedule import Schedules

Submit = Callable[[Submission], Awaitable[Receipt]]


class Trigger(Protocol):
    """One source of calls.

    Guarantee: each call has an id of its own, and is to be known by `Submission.trigger`. What `submit`
    refuses is logged, and tried again where that may help; it ends neither the trigger nor its other calls.
    """

    async def run(self, submit: Submit) -> None:
        """Submit calls as they fall due, until cancelled."""


def schedules(host: Host) -> Schedules:
    """The schedules of a host's functions and those that clients have created, as they are at any time."""
    trigger = Schedules(
        functions=lambda: host.registry.functions.values(),
        created=lambda: host.timetable.known,
        refresh=host.timetable.refresh,
        last_fired=host.journal.last_fired,
        fired=host.journal.fired,
        next_id=host.ids.next,
    )
    host.on_change.append(trigger.changed)
    host.timetable.on_change.append(trigger.changed)
    return trigger


TRIGGERS: tuple[Callable[[Host], Trigger], ...] = (schedules,)

__all__: Sequence[str] = ("TRIGGERS", "Schedules", "Submit", "Trigger", "schedules")
