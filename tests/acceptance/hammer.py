"""Clients that call one function without a pause while something is done to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from tests.acceptance.conftest import PATIENCE, Running, eventually


class Hammer:
    """While in its scope, several clients call; what they get is noted, each client's in order.

    Leaving it fails the test if one call failed: refused, cut off, or answered by anything but 200.
    """

    def __init__(self, host: Running, function: str, clients: int = 8) -> None:
        self._host = host
        self._path = host.path(function)
        self._address = host.url.removeprefix("http://")
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(clients)]
        self.answers: list[list[Any]] = [[] for _ in range(clients)]
        self.failures: list[str] = []

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        eventually(lambda: all(self.answers) or self.failures, "a first answer to each client")
        assert not self.failures, self.failures[:3]
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            assert not self.failures, f"{len(self.failures)} of {self.calls}: {self.failures[:3]}\n{self._host.log}"

    @property
    def calls(self) -> int:
        """How many calls were answered as they should be."""
        return sum(map(len, self.answers))

    def distinct(self) -> set[str]:
        """The different answers, as JSON."""
        return {json.dumps(answer) for answers in self.answers for answer in answers}

    def runs(self) -> Iterator[list[Any]]:
        """What each client got, in order, repetitions left out."""
        for answers in self.answers:
            yield [answer for number, answer in enumerate(answers) if not number or answers[number - 1] != answer]

    def until(self, expected: Any) -> None:
        """Wait until every client's last answer is this one; a failure ends the waiting."""
        eventually(
            lambda: self.failures or all(answers[-1] == expected for answers in self.answers),
            f"{expected!r} answered to every client",
        )
        assert not self.failures, f"{self.failures[:3]}\n{self._host.log}"

    def _call(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE)
        while not self._done.is_set():
            try:
                connection.request("GET", self._path)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as problem:
                self.failures.append(repr(problem))
                connection.close()
                continue
            if answer.status == 200:
                self.answers[number].append(json.loads(body))
            else:
                self.failures.append(f"{answer.status} {body.decode()}")
        connection.close()
