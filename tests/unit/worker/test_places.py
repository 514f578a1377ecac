"""Whose turn it is to have a worker: whatever hosts do, the limit holds and everybody gets one."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.worker.parent import Seat, from_json
from runtime.worker.places import Places


class Host(Seat):
    """A host that keeps what it is told."""

    def __init__(self) -> None:
        self.control, self._theirs = socket.socketpair()
        super().__init__(self.control)
        self.told: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        self.told.append(message)

    hint = send

    def ops(self) -> list[str]:
        """What it was told since it was asked last."""
        told, self.told = self.told, []
        return [message["op"] for message in told]

    def close(self) -> None:
        self.control.close()
        self._theirs.close()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made = [Host() for _ in range(3)]
    yield made
    for host in made:
        host.close()


def test_one_host_is_refused_nothing(hosts: list[Host]) -> None:
    """It keeps to the limit itself, and knows better which of its workers are no more."""
    places = Places()

    assert all(places.take(hosts[0], 2, wanted=True) for _ in range(5))
    assert hosts[0].ops() == []


def test_a_host_that_has_loaded_twice_is_one(hosts: list[Host]) -> None:
    """What still ends of what it had before does not keep it from having more, nor does it give others more."""
    places = Places()
    before, now, other = hosts
    before.host = now.host = 7
    assert places.take(before, 1, wanted=True)

    assert places.take(now, 1, wanted=True)
    assert not places.take(other, 1, wanted=True)
    places.ended(now)
    assert other.ops() == []
    places.ended(before)

    assert "room" in other.ops()


def test_who_has_the_most_is_asked(hosts: list[Host]) -> None:
    """For one in use only by who has none, or two fewer."""
    places = Places()
    for host, count in zip(hosts, (2, 1, 0), strict=True):
        assert all(places.take(host, 3, wanted=True) for _ in range(count))

    assert not places.take(hosts[1], 3, wanted=True)
    assert hosts[0].told == [{"op": "wanted", "busy": False}]
    assert not places.take(hosts[2], 3, wanted=True)
    assert hosts[0].told[1:] == [{"op": "wanted", "busy": True}]
    assert hosts[1].ops() == []


def test_all_who_have_more_than_their_share_are_asked(hosts: list[Host]) -> None:
    """The one with the most may have nothing but long calls."""
    places = Places()
    for host, count in zip(hosts, (3, 2, 0), strict=True):
        assert all(places.take(host, 5, wanted=True) for _ in range(count))

    assert not places.take(hosts[2], 5, wanted=True)

    assert [host.ops() for host in hosts] == [["wanted"], ["wanted"], []]


def test_places_are_offered_first_come_first_served(hosts: list[Host]) -> None:
    """And kept; who asked several times has one turn."""
    places = Places("a key")
    assert places.take(hosts[0], 1, wanted=True)
    for host in (hosts[1], hosts[2], hosts[1]):
        assert not places.take(host, 1, wanted=True)
    places.ended(hosts[0])
    assert hosts[1].told == [{"op": "room", "key": "a key"}, {"op": "wanted", "busy": True, "key": "a key"}]
    assert not places.take(hosts[2], 1, wanted=True)
    assert places.take(hosts[1], 1, wanted=True)

    places.ended(hosts[1])
    assert "room" in hosts[2].ops()
    places.left(hosts[2])

    assert places.unused
    assert hosts[1].ops().count("room") == 1


MOST = 3


class History(RuleBasedStateMachine):
    """Hosts that come, take, pass on, end workers and leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places()
        self.hosts = [Host() for _ in range(4)]
        self.workers: Counter[Host] = Counter()
        self.waiting: set[Host] = set()  # for an offer
        self.offered: set[Host] = set()

    def teardown(self) -> None:
        for host in self.hosts:
            host.close()

    @rule(number=st.integers(0, 3), wanted=st.booleans())
    def take(self, number: int, wanted: bool) -> None:
        host = self.hosts[number]
        if self.workers[host] >= MOST:  # a pool does not ask for more
            return
        if self.places.take(host, MOST, wanted=wanted):
            self.workers[host] += 1
            self.offered.discard(host)
        elif wanted:
            self.waiting.add(host)
        self.listen()

    @rule(number=st.integers(0, 3))
    def end(self, number: int) -> None:
        host = self.hosts[number]
        if self.workers[host]:
            self.workers[host] -= 1
            self.places.ended(host)
            self.listen()

    @rule(number=st.integers(0, 3))
    def give(self, number: int) -> None:
        """A worker to whoever waits, first of all those that have waited longest."""
        host = self.hosts[number]
        if not self.workers[host]:
            return
        other = self.places.given(host)
        assert (other is None) is not bool(self.waiting)
        if other is not None:
            taker = self.hosts[self.hosts.index(other)]
            self.waiting.remove(taker)
            self.workers[host] -= 1
            self.workers[taker] += 1
        self.listen()

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def pass_on(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.offered, key=self.hosts.index)))
        self.offered.discard(host)
        self.places.passed(host)
        self.listen()

    @rule(number=st.integers(0, 3))
    def leave(self, number: int) -> None:
        host = self.hosts[number]
        self.waiting.discard(host)
        self.offered.discard(host)
        self.places.left(host)
        for _ in range(self.workers.pop(host, 0)):
            self.places.ended(host)
        self.listen()

    def listen(self) -> None:
        for host in self.hosts:
            if "room" in host.ops():
                assert host in self.waiting
                self.waiting.discard(host)
                self.offered.add(host)

    @invariant()
    def there_are_never_too_many(self) -> None:
        assert self.workers.total() <= MOST

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        assert not self.waiting or self.workers.total() + len(self.offered) >= MOST

    @invariant()
    def what_nobody_has_is_forgotten(self) -> None:
        assert self.places.unused is not bool(self.workers.total() or self.offered)


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=200, deadline=None)


def test_messages_are_json() -> None:
    """As everything on a control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Seat(ours).hint({"op": "wanted"})

        assert from_json(theirs.recv(100).decode()) == {"op": "wanted"}
