"""Symbolic links on the way to a user's files, and where they lead: what is changed there is changed here.

Filled by `loader` as it comes across them, read by `watcher`, which watches at their ends, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set

STEPS = 40  # links that lead to one another: more are a circle

Links = Mapping[str, tuple[str, ...]]  # a link, and the way it leads


class LinkBook:
    """The links that were met, by who met them last. From any thread."""

    def __init__(self) -> None:
        self._met: dict[Hashable, dict[str, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def note(self, who: Hashable, links: dict[str, tuple[str, ...]]) -> None:
        """These are all that `who` meets now."""
        with self._lock:
            self._met[who] = links

    def keep(self, who: Set[Hashable]) -> None:
        """There is nobody else any more."""
        with self._lock:
            for gone in self._met.keys() - who:
                del self._met[gone]

    def all(self) -> Links:
        """All of them."""
        with self._lock:
            return {link: way for links in self._met.values() for link, way in links.items()}


def met(paths: Iterable[str], folder: str) -> dict[str, tuple[str, ...]]:
    """The links among `folder`, these paths in it, and the folders between."""
    places = {folder}
    for path in paths:
        while path.startswith(folder + os.sep) and path not in places:
            places.add(path)
            path = os.path.dirname(path)
    return {place: way(place) for place in places if os.path.islink(place)}


def above(path: str) -> dict[str, tuple[str, ...]]:
    """The links among this path and the folders that it is in."""
    found = {}
    while path != (parent := os.path.dirname(path)):
        if os.path.islink(path):
            found[path] = way(path)
        path = parent
    return found


def way(link: str) -> tuple[str, ...]:
    """Every link on the way that this one leads, and its end: a change of any of them changes what is seen here."""
    passed: list[str] = []
    place, rest = os.path.realpath(os.path.dirname(link)), [os.path.basename(link)]
    while rest:
        step = os.path.normpath(os.path.join(place, rest.pop(0)))
        if len(passed) > STEPS or not os.path.islink(step):
            place = step
            continue
        passed.append(step)
        target = os.readlink(step)
        rest = [*(os.sep if target.startswith(os.sep) else "", *target.split(os.sep)), *rest]
    return (*passed[1:], place)


def seen_through(links: Links, path: str) -> Iterator[str]:
    """The other paths by which this one is seen, or which are seen by it."""
    for link, places in links.items():
        for place in places:
            if path == place or path.startswith(place + os.sep):
                yield link + path[len(place) :]
        if path.startswith(link + os.sep):
            yield places[-1] + path[len(link) :]
