"""Schedules that clients create: added, looked up and deleted. Those of spaces.toml are not among them.

Mounted by `__init__.py`. They are kept by the host's timetable, and fired by `triggers/schedule`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from ...authority import Access
from ...errors import BadRequest, BodyTooLarge
from ...registry import Function
from ...schedules import read_cron
from ...timetable import CreatedSchedule
from .calls import data_of
from .door import BASE, MOST_ITEMS, Door, Id, Limit, Range, Shape, milliseconds, number_in
from .sessions import Sessions, key_of
from .words import describe

MOST = 10_000  # schedules in one answer, which has no second page
USUAL = 100
MOST_DATA = 64 * 1024  # bytes: all schedules are held in memory


class Wanted(Shape, frozen=True):
    """A schedule to be created."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=140)]
    cron_expression: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    function_id: Id | None = None
    function_external_id: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    description: Annotated[str, msgspec.Meta(max_length=500)] | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    nonce: str | None = None


class CreateBody(Shape, frozen=True):
    """Of POST schedules."""

    items: list[Wanted]


class ItemOfSchedule(Shape, frozen=True):
    """What is asked for."""

    id: Id


class ItemsBody(Shape, frozen=True):
    """Of POST schedules/byids and schedules/delete."""

    items: Annotated[list[ItemOfSchedule], msgspec.Meta(min_length=1, max_length=MOST_ITEMS)]
    ignore_unknown_ids: bool | None = None


class Filter(Shape, frozen=True):
    """Which schedules to list."""

    name: str | None = None
    function_id: Id | None = None
    function_external_id: str | None = None
    cron_expression: str | None = None
    created_time: Range | None = None

    def has(self, schedule: CreatedSchedule) -> bool:
        """Whether a schedule is asked for."""
        pairs = (
            (self.name, schedule.title),
            (self.function_id, schedule.function_id),
            (self.function_external_id, f"{schedule.space}/{schedule.name}"),
            (self.cron_expression, schedule.cron),
        )
        return all(wanted in (None, value) for wanted, value in pairs) and (
            self.created_time is None or self.created_time.has(milliseconds(schedule.created_at))
        )


class ListBody(Shape, frozen=True):
    """Of POST schedules/list."""

    filter: Filter | None = None
    limit: Limit | None = None


class Shown(Shape, frozen=True):
    """A schedule; its data is shown by an address of its own."""

    id: int
    name: str
    created_time: int
    cron_expression: str
    session_id: int
    when: str
    function_id: int
    function_external_id: str
    description: str | None = None


class Schedules:
    """The pages of created schedules."""

    def __init__(self, door: Door, sessions: Sessions) -> None:
        self._door = door
        self._host = door.host
        self._sessions = sessions

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        route = self._door.route
        schedules = f"{BASE}/functions/schedules"
        return [
            route(schedules, "GET", self._plain_list),
            route(schedules, "POST", self._create),
            route(f"{schedules}/list", "POST", self._list),
            route(f"{schedules}/byids", "POST", self._by_ids),
            route(f"{schedules}/delete", "POST", self._delete),
            route(f"{schedules}/{{schedule}}", "GET", self._one),
            route(f"{schedules}/{{schedule}}/input_data", "GET", self._input_data),
        ]

    # Changes.

    async def _create(self, request: Request) -> tuple[int, Any]:
        """Keep a schedule: it is on disk when this answers. The same nonce again is the same schedule."""
        access = await self._door.access(request)
        body = await self._door.read(request, CreateBody)
        if len(body.items) != 1:
            raise BadRequest("one schedule can be created at a time: `items` must have one item")
        wanted = body.items[0]
        function = self._function(access, wanted)
        free = self._host.authority.is_open(function.space)
        session = self._sessions.check(wanted.nonce, access.subject, needed=not free)
        _check_cron(wanted.cron_expression)
        data = data_of(wanted.data)
        if len(data) > MOST_DATA:
            raise BodyTooLarge(f"the data has {len(data)} bytes; a schedule's may have {MOST_DATA}")
        created = CreatedSchedule(
            id=self._host.ids.next(),
            function_id=function.id,
            space=function.space,
            name=function.name,
            title=wanted.name,
            description=wanted.description,
            cron=wanted.cron_expression,
            data=data,
            session_id=session,
            created_at=time.time(),
            key=f"{function.id} {key_of(access.subject, wanted.nonce)}" if wanted.nonce else None,
        )
        return 201, {"items": [shown(await self._host.timetable.add(created))]}

    def _function(self, access: Access, wanted: Wanted) -> Function:
        """The function that is to be called."""
        if wanted.function_id is not None:
            return self._door.visible(access, wanted.function_id, "deploy")
        if wanted.function_external_id is None:
            raise BadRequest("functionId is missing")
        space, _, name = wanted.function_external_id.partition("/")
        function = self._host.registry.functions.get((space, name))
        if function is None or not access.may("read", space, name):
            item = {"externalId": wanted.function_external_id}
            raise self._door.missing(access, "Function ids", [item])
        return self._door.visible(access, function.id, "deploy")

    async def _delete(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        found = await self._chosen(access, await self._door.read(request, ItemsBody))
        for schedule in found:
            access.require("deploy", schedule.space, schedule.name)
        await self._host.timetable.remove([schedule.id for schedule in found])
        return 200, {}

    # Look-ups.

    async def _by_ids(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        found = await self._chosen(access, await self._door.read(request, ItemsBody))
        return 200, {"items": [shown(schedule) for schedule in found]}

    async def _one(self, request: Request) -> tuple[int, Any]:
        return 200, shown(await self._asked_for(request))

    async def _input_data(self, request: Request) -> tuple[int, Any]:
        schedule = await self._asked_for(request)
        return 200, {"id": schedule.id, "data": msgspec.Raw(schedule.data)}

    async def _list(self, request: Request) -> tuple[int, Any]:
        access = await self._door.access(request)
        body = await self._door.read(request, ListBody)
        return await self._found(access, body)

    async def _plain_list(self, request: Request) -> tuple[int, Any]:
        return await self._found(await self._door.access(request), ListBody())

    async def _found(self, access: Access, body: ListBody) -> tuple[int, Any]:
        wanted = body.filter or Filter()
        found = [shown(schedule) for schedule in await self._readable(access) if wanted.has(schedule)]
        return 200, {"items": found[: min(body.limit or USUAL, MOST)]}

    async def _readable(self, access: Access) -> list[CreatedSchedule]:
        """Those of functions that may be looked at, also of functions that are no more."""
        everything = await self._host.timetable.all()
        return [schedule for schedule in everything if access.may("read", schedule.space, schedule.name)]

    async def _chosen(self, access: Access, body: ItemsBody) -> list[CreatedSchedule]:
        readable = {schedule.id: schedule for schedule in await self._readable(access)}
        missing = [{"id": item.id} for item in body.items if item.id not in readable]
        if missing and not body.ignore_unknown_ids:
            raise self._door.missing(access, "Schedule ids", missing)
        return [readable[item.id] for item in body.items if item.id in readable]

    async def _asked_for(self, request: Request) -> CreatedSchedule:
        """The schedule in the address."""
        access = await self._door.access(request)
        item = ItemOfSchedule(number_in(request, "schedule"))
        (schedule,) = await self._chosen(access, ItemsBody([item]))
        return schedule


def shown(schedule: CreatedSchedule) -> Shown:
    """A schedule as this API shows it."""
    return Shown(
        id=schedule.id,
        name=schedule.title,
        created_time=milliseconds(schedule.created_at),
        cron_expression=schedule.cron,
        session_id=schedule.session_id,
        when=describe(schedule.schedule.cron),
        function_id=schedule.function_id,
        function_external_id=f"{schedule.space}/{schedule.name}",
        description=schedule.description,
    )


def _check_cron(text: str) -> None:
    try:
        read_cron(text)
    except ValueError as error:
        raise BadRequest(f"cronExpression: {error}") from None
