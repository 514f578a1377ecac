"""What functions there are: data that `loader.py` fills and `host.py` reads, replaced whole on a reload."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from .config import FunctionSettings
from .errors import NotFound


class Function(msgspec.Struct, frozen=True):
    """One function on disk. `digest` is the hash of its entry file, `kind` and `takes` are read, not run.

    `convention` is whose kind of handler it is, `target` its name in the file where it has one of its own, and
    `app` its Kernel app: see `entrypoints.Entrypoint`.
    """

    id: int
    space: str
    name: str
    path: Path
    line: int
    kind: str
    takes: tuple[str, ...]
    digest: str
    settings: FunctionSettings
    convention: str = "handle"
    target: str = ""
    app: str = ""

    @property
    def label(self) -> str:
        return f"{self.space}/{self.name}"


class Registry(msgspec.Struct, frozen=True, dict=True):
    """The lookup table."""

    spaces: tuple[str, ...] = ()
    functions: Mapping[tuple[str, str], Function] = {}

    def lookup(self, space: str, name: str) -> Function:
        """The function of that name; NotFound says which part of the address is unknown."""
        function = self.functions.get((space, name))
        if function is not None:
            return function
        if space not in self.spaces:
            raise NotFound(f"there is no space `{space}` here", details={"space": space})
        raise NotFound(f"there is no function `{name}` in space `{space}`", details={"space": space, "function": name})

    def find(self, id: int) -> Function:
        """The function with this number; NotFound."""
        function = self._numbered.get(id)
        if function is None:
            raise NotFound(f"there is no function {id} here", details={"function": id})
        return function

    def in_space(self, space: str) -> Collection[Function]:
        """The space's functions by name; NotFound when there is no such space."""
        if space not in self.spaces:
            raise NotFound(f"there is no space `{space}` here", details={"space": space})
        return self._by_space.get(space, ())

    @cached_property
    def _by_space(self) -> Mapping[str, Collection[Function]]:
        found: dict[str, list[Function]] = {}
        for _, function in sorted(self.functions.items()):
            found.setdefault(function.space, []).append(function)
        return found

    @cached_property
    def _numbered(self) -> Mapping[int, Function]:
        return {function.id: function for function in self.functions.values()}
