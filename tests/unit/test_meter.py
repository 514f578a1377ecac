"""The numbers of several host processes: put together they are those of one, and all agree on whose are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from prometheus_client.parser import text_string_to_metric_families

from runtime import telemetry
from runtime.exposition import PIECE
from runtime.meter import JOINING, NOW, PATIENCE, SHOWN, Meter
from runtime.share import Share
from runtime.telemetry import OTHER, Figures

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire:
    """Links of several processes that all hear each other; `deaf` ones neither hear nor answer."""

    def __init__(self) -> None:
        self.ends: dict[int, End] = {}

    def end(self, number: int) -> Any:
        """Of a process; one of this number that was there before has died."""
        self.ends[number] = End(self, number)
        return self.ends[number]

    def others(self, end: End) -> list[End]:
        return [other for other in self.ends.values() if other is not end and not (other.deaf or end.deaf)]


class End:
    def __init__(self, wire: Wire, number: int) -> None:
        self.share = Share(number, 8)
        self._wire = wire
        self._heard: dict[str, Callable[[bytes], None]] = {}
        self.says: dict[str, Callable[[], Iterator[bytes]]] = {}
        self.deaf = False

    def publish(self, topic: str, payload: bytes) -> None:
        for other in self._wire.others(self):
            if heard := other._heard.get(topic):
                heard(payload)

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        self._heard[topic] = heard

    def answer_in_parts(self, topic: str, say: Callable[[], Iterator[bytes]]) -> None:
        self.says[topic] = say

    async def gather(self, topic: str, timeout: float) -> list[bytes]:
        await checkpoint()
        return [part for other in self._wire.others(self) if topic in other.says for part in other.says[topic]()]


class Member:
    """A meter with pools that are only names and numbers."""

    def __init__(self, link: Any, most: int = 100) -> None:
        self.pools: list[Any] = []
        self.meter = Meter(most, lambda: self.pools, lambda: 7, link)

    @classmethod
    async def join(cls, wire: Wire, number: int, most: int = 100) -> Member:
        """One process more, or in place of one that has died."""
        member = cls(wire.end(number), most)
        await member.meter.join()
        return member

    def call(self, name: str) -> None:
        pool = next((pool for pool in self.pools if pool.function.name == name), None)
        if pool is None:
            function = SimpleNamespace(space="demo", name=name)
            stats = self.meter.ledger.of("demo", name)
            self.pools.append(pool := SimpleNamespace(function=function, stats=stats, workers=set()))
        pool.stats.answered(200, 0.5, 0.1, 0.3)

    async def text(self) -> str:
        return (await self.meter.text(None)).decode()

    async def calls(self) -> dict[str, float]:
        """Those that /metrics shows, by function."""
        families = {family.name: family for family in text_string_to_metric_families(await self.text())}
        return {sample.labels["function"]: sample.value for sample in families["spaces_calls"].samples}


async def test_one_process_has_its_own_numbers() -> None:
    """Without a link there is nobody to ask."""
    alone = Member(None)
    await alone.meter.join()
    alone.call("one")

    assert await alone.calls() == {"one": 1}


async def test_several_processes_are_shown_as_one() -> None:
    """Whoever is asked says the same."""
    wire = Wire()
    members = [await Member.join(wire, number) for number in range(3)]
    for member, names in zip(members, (["one"], ["one", "two"], ["two", "two"]), strict=True):
        for name in names:
            member.call(name)

    assert [await member.calls() for member in members] == [{"one": 2, "two": 3}] * 3


async def test_of_a_sibling_that_does_not_answer_there_is_what_it_had_before() -> None:
    """No counter falls, and what it counts meanwhile is there once it answers."""
    wire = Wire()
    first, second = await Member.join(wire, 0), await Member.join(wire, 1)
    first.call("one")
    second.call("one")
    before = await first.calls()
    wire.ends[1].deaf = True
    second.call("one")
    meanwhile = await first.calls()
    wire.ends[1].deaf = False

    assert before == meanwhile == {"one": 2}
    assert await first.calls() == await second.calls() == {"one": 3}


async def test_what_a_process_had_counted_outlives_it() -> None:
    """As far as it was shown; whoever showed it may die next."""
    wire = Wire()
    first, second, third = [await Member.join(wire, number) for number in range(3)]
    for member in (first, second, third):
        member.call("one")
    assert await first.calls() == {"one": 3}
    del wire.ends[0]
    assert await second.calls() == {"one": 3}
    again = await Member.join(wire, 0)
    again.call("one")
    del wire.ends[1]

    assert await again.calls() == await third.calls() == {"one": 4}
    again = await Member.join(wire, 1)
    assert await again.calls() == {"one": 4}
    del wire.ends[0], wire.ends[2]
    assert await again.calls() == {"one": 4}


async def test_who_missed_what_was_counted_before_him_hears_of_it() -> None:
    """From whoever is asked next: his counters do not stay below the others'."""
    wire = Wire()
    first, second = await Member.join(wire, 0), await Member.join(wire, 1)
    first.call("one")
    first.call("one")
    assert await second.calls() == {"one": 2}
    again = Member(wire.end(0))
    says, wire.ends[1].says = wire.ends[1].says, {}
    await again.meter.join()
    wire.ends[1].says = says
    again.call("one")
    await again.calls()
    assert await second.calls() == {"one": 2}

    assert await again.calls() == {"one": 2}


async def test_who_begins_waits_longer_for_what_was_counted_before() -> None:
    """It is told in many parts, and what comes late is lost for good."""
    wire = Wire()
    member = Member(wire.end(0))
    waited: list[float] = []
    gather = wire.ends[0].gather

    async def gathered(topic: str, timeout: float) -> list[bytes]:
        waited.append(timeout)
        return await gather(topic, timeout)

    wire.ends[0].gather = gathered  # type: ignore[method-assign]
    await member.meter.join()
    await member.text()

    assert waited == [JOINING, PATIENCE]


async def test_nothing_is_lost_of_a_process_that_is_told_to_end() -> None:
    """It tells what it has counted, to the one in its place too, which may have begun before."""
    wire = Wire()
    first, second = await Member.join(wire, 0), await Member.join(wire, 1)
    first.call("one")
    assert await second.calls() == {"one": 1}
    wire.ends[2] = wire.ends.pop(0)  # it still ends, with its line open
    again = await Member.join(wire, 0)
    first.call("one")
    again.call("one")
    assert await second.calls() == {"one": 2}
    first.meter.leave()
    del wire.ends[2]

    assert await second.calls() == await again.calls() == {"one": 3}
    second.call("one")
    second.meter.leave()
    del wire.ends[1]
    assert await again.calls() == {"one": 4}


async def test_workers_are_only_those_of_processes_that_are_there() -> None:
    """They are no counter: a process that does not answer has none that are known."""
    wire = Wire()
    first, second = await Member.join(wire, 0), await Member.join(wire, 1)
    for member in (first, second):
        member.call("one")
        member.pools[0].workers = {Worker(0)}
    assert 'spaces_workers{function="one",space="demo",state="idle"} 2.0' in await first.text()
    del wire.ends[1]

    assert 'spaces_workers{function="one",space="demo",state="idle"} 1.0' in await first.text()


async def test_a_function_is_not_split_between_its_own_series_and_the_others() -> None:
    """All processes have the same series, in whichever order functions were called where."""
    wire = Wire()
    first, second = await Member.join(wire, 0, most=2), await Member.join(wire, 1, most=2)
    for name in ("one", "two", "three"):
        first.call(name)
    for name in ("three", "two", "one"):
        second.call(name)

    assert await first.calls() == await second.calls() == {"one": 2, "two": 2, OTHER: 2}


async def test_who_comes_later_learns_who_has_series() -> None:
    """A process that takes the place of one that died."""
    wire = Wire()
    first = await Member.join(wire, 0, most=1)
    first.call("one")
    second = await Member.join(wire, 1, most=1)
    for name in ("two", "one"):
        second.call(name)

    assert await second.calls() == {"one": 2, OTHER: 1}


async def test_a_choice_made_elsewhere_holds_for_pools_that_are_there() -> None:
    """Where two chose at once, each has the other's: one too many, and none in two places from then on."""
    wire = Wire()
    first, second = await Member.join(wire, 0, most=1), await Member.join(wire, 1, most=1)
    wire.ends[0].deaf = wire.ends[1].deaf = True
    first.call("one")
    first.call("two")
    second.call("two")
    wire.ends[0].deaf = wire.ends[1].deaf = False
    await second.meter.join()
    first.call("two")
    second.call("one")

    assert await first.calls() == await second.calls() == {"one": 2, "two": 2, OTHER: 1}


async def test_workers_are_counted_where_calls_are() -> None:
    """Of the others together, too."""
    member = Member(None, most=1)
    for name in ("one", "two", "three"):
        member.call(name)
    for pool in member.pools:
        pool.workers = {Worker(busy) for busy in (0, 0, 3)}
    [part] = member.meter._parts()
    series = part.series

    assert {key: (one.idle, one.busy) for key, one in series.items()} == {
        ("demo", "one"): (2, 1),
        ("demo", OTHER): (4, 2),
    }


async def test_what_siblings_are_told_is_all_that_is_shown() -> None:
    """The answer to a sibling's question is the same figures."""
    wire = Wire()
    member = await Member.join(wire, 3)
    member.call("one")

    [part] = wire.ends[3].says[NOW]()
    assert telemetry.decode(part) == {3: next(member.meter._parts())}


class Worker:
    """One that has so many calls."""

    def __init__(self, busy: int) -> None:
        self.busy = busy


async def test_many_functions_are_told_in_parts() -> None:
    """To whoever asks, and to those who are to remember; these are told what is news only."""
    wire = Wire()
    first, second, third = [await Member.join(wire, number, most=1000) for number in range(3)]
    names = [f"function-{number}" for number in range(3 * PIECE + 1)]
    for name in names:
        first.call(name)
        second.call(name)
    told: list[Figures] = []
    wire.ends[1].subscribe(SHOWN, lambda payload: told.extend(telemetry.decode(payload).values()))

    assert await first.calls() == dict.fromkeys(names, 2)
    sizes = [len(part.series) for part in told]
    assert sum(sizes) == 3 * len(names)  # of each process, also of the one that has had none of the calls
    assert max(sizes) == PIECE
    told.clear()
    second.call(names[0])
    assert (await first.calls())[names[0]] == 3
    assert [list(part.series) for part in told] == [[("demo", names[0])]]
    del wire.ends[0], wire.ends[1]
    again = await Member.join(wire, 0, most=1000)
    assert await again.calls() == await third.calls() == {**dict.fromkeys(names, 2), names[0]: 3}
