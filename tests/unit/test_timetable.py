"""Created schedules: what was added is there for the next host, also after a repeat; there are only so many."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import timetable
from runtime.errors import BadRequest
from runtime.timetable import CreatedSchedule, Timetable

pytestmark = pytest.mark.anyio

FIRST = CreatedSchedule(
    id=11, function_id=1, space="demo", name="report", title="é", description="why", cron="@hourly",
    data=b'{"n":1}', session_id=2, created_at=1_800_000_000.25, key="k",
)  # fmt: skip


def other(**fields: Any) -> CreatedSchedule:
    return msgspec.structs.replace(FIRST, **{"key": None, **fields})


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[Timetable]:
    table = Timetable(tmp_path / "state")
    yield table
    await table.close()


async def test_what_is_added_is_there_for_the_next_host(table: Timetable, tmp_path: Path) -> None:
    """Exactly as it was, on disk, for other hosts on the folder too; and nobody else on the machine reads it."""
    second = other(id=12, description=None, data=b"{}")
    await table.add(second)
    await table.add(FIRST)
    next_host = Timetable(tmp_path / "state")

    assert list(await next_host.all()) == [FIRST, second]
    assert (tmp_path / "state" / "schedules.db").stat().st_mode & 0o077 == 0
    assert FIRST.schedule.cron == "0 * * * *"
    assert (FIRST.schedule.id, FIRST.schedule.timezone, FIRST.schedule.data) == (11, "UTC", b'{"n":1}')
    await next_host.close()


async def test_what_is_removed_is_gone(table: Timetable) -> None:
    """And what there never was does no harm."""
    await table.add(FIRST)
    await table.add(other(id=12))
    await table.remove([11, 99])

    assert [each.id for each in await table.all()] == [12]


async def test_a_request_that_comes_again_adds_nothing(table: Timetable) -> None:
    """What is kept is the first one; the same key for another schedule is refused."""
    await table.add(FIRST)
    again = await table.add(other(id=12, key="k", session_id=9, created_at=1.0))

    assert again == FIRST
    for fields in ({"title": "x"}, {"data": b"{}"}, {"cron": "@daily"}, {"description": None}):
        with pytest.raises(BadRequest, match="nonce"):
            await table.add(other(id=13, key="k", **fields))
    await table.add(other(id=14))
    await table.add(other(id=15))
    assert [each.id for each in await table.all()] == [11, 14, 15]


async def test_there_are_only_so_many(table: Timetable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one function, and in all."""
    monkeypatch.setattr(timetable, "MOST_OF_ONE", 2)
    monkeypatch.setattr(timetable, "MOST", 3)
    await table.add(other(id=1))
    await table.add(other(id=2))
    with pytest.raises(BadRequest, match="this function has 2"):
        await table.add(other(id=3))
    await table.add(other(id=4, function_id=2))
    with pytest.raises(BadRequest, match="there are 3"):
        await table.add(other(id=5, function_id=3))
    await table.remove([1])
    await table.add(other(id=6, function_id=3))

    assert [each.id for each in await table.all()] == [2, 4, 6]


async def test_changes_are_told(table: Timetable, tmp_path: Path) -> None:
    """Our own at once, another host's when it is looked for; and what is the same is no change."""
    told: list[int] = []
    table.on_change.append(lambda: told.append(len(table.known)))
    await table.add(FIRST)
    await table.refresh()
    elsewhere = Timetable(tmp_path / "state")
    await elsewhere.add(other(id=12))
    await table.refresh()
    await table.remove([11])
    await elsewhere.close()

    assert told == [1, 2, 1]


async def test_nothing_is_written_before_there_is_something(table: Timetable, tmp_path: Path) -> None:
    """Looking makes no file."""
    await table.refresh()
    await table.remove([1])

    assert list(await table.all()) == []
    assert not (tmp_path / "state").exists()


async def test_a_file_that_cannot_be_read(table: Timetable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Changes nothing that is known, and is complained about once."""
    await table.add(FIRST)
    await table.close()
    for file in (tmp_path / "state").glob("schedules.db*"):
        file.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.ERROR, logger="spaces.schedule"):
        await table.refresh()
        await table.refresh()

    assert list(table.known) == [FIRST]
    assert caplog.text.count("created schedules cannot be read") == 1


def test_its_data_is_not_shown() -> None:
    """It may hold secrets."""
    assert repr(FIRST) == "CreatedSchedule(11, demo/report, 'é', '@hourly')"
