"""Which apps there are, and which function is meant by an app and an action.

Used by the other modules here; reads the registry of `host.py`. A space is an app, and so is what a file of Kernel's
kind calls an app. Where both have the same name, and an action of the same name, the space's is meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import QueryParams

from ...authority import Access
from ...errors import NotFound
from ...host import Host
from ...registry import Function, Registry

VERSION = "latest"  # the only one that there is
REGION = "aws.us-east-1a"  # Kernel's clients take no other

Place = tuple[str | None, str | None]  # space and function; None for any


class Apps:
    """The functions by Kernel's names for them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known = Registry()
        self._labelled: list[Function] = []

    def find(self, app: str, action: str, version: str | None) -> Function:
        """The function; NotFound."""
        if version not in (None, "", VERSION):
            raise NotFound(f'there is no version "{version[:100]}" here: every app has one version, "{VERSION}"')
        function = next(self._functions(app, action), None)
        if function is None:
            raise unknown(app, action)
        return function

    def places(self, app: str | None, action: str | None) -> list[Place]:
        """Where in the journal the calls of an app, an action, or both are, functions that are gone included."""
        others = [(each.space, each.name) for each in self._functions(app, action)] if app or action else []
        return list(dict.fromkeys([(app, action), *others]))

    def names(self, space: str, name: str) -> tuple[str, str]:
        """How a function is shown: its app and its action."""
        function = self._registry.functions.get((space, name))
        return (function.app, action_of(function)) if function is not None and function.app else (space, name)

    def listed(self, access: Access, query: QueryParams) -> list[dict[str, Any]]:
        """The apps that may be read, by name, and of these what is asked for."""
        if query.get("version") not in (None, "", VERSION):
            return []
        found: dict[str, list[Function]] = {space: [] for space in access.spaces("read", self._registry.spaces)}
        for function in self._registry.functions.values():
            if access.may("read", function.space, function.name):
                for app in {function.space, function.app or function.space}:
                    found.setdefault(app, []).append(function)
        wanted, text = query.get("app_name"), query.get("query") or ""
        names = sorted(name for name in found if wanted in (None, "", name) and text in name)
        return [self._described(name, found[name]) for name in names]

    def _described(self, app: str, functions: list[Function]) -> dict[str, Any]:
        actions = sorted({action_of(function) for function in functions})
        spaces = {function.space for function in functions} or {app}
        env = {name for space in spaces for name in self._host.config.settings(space, "").env}
        return {
            "id": _number("app", app),
            "app_name": app,
            "version": VERSION,
            "deployment": deployment_of(app),
            "region": REGION,
            "actions": [{"name": name, "input_schema": None, "output_schema": None} for name in actions],
            "env_vars": dict.fromkeys(sorted(env), ""),
        }

    def _functions(self, app: str | None, action: str | None) -> Iterator[Function]:
        """The functions of that app and action, the one that is meant first; of an app alone, those that name it."""
        exact = self._registry.functions.get((app, action)) if app is not None and action is not None else None
        if exact is not None:
            yield exact
        labelled = [each for each in self._with_app() if action in (None, action_of(each)) and each is not exact]
        if action is not None:
            yield from (each for each in labelled if app in (None, each.space))
        if app is not None:
            yield from (each for each in labelled if app == each.app)

    def _with_app(self) -> list[Function]:
        """The functions of files of Kernel's kind, whose names are not only those of space and file."""
        if self._known is not self._registry:
            self._known = self._registry
            self._labelled = [function for function in self._known.functions.values() if function.app]
        return self._labelled

    @property
    def _registry(self) -> Registry:
        return self._host.registry


def unknown(app: str, action: str) -> NotFound:
    """There is none of that name, or none that who asks may know of: nobody can tell which."""
    return NotFound(f'there is no app "{app[:100]}" with an action "{action[:100]}" here')


def action_of(function: Function) -> str:
    """What Kernel's clients call the function."""
    return function.target if function.app and function.target else function.name


def deployment_of(app: str) -> str:
    """The id of an app's deployment: always the same, since it has but one."""
    return _number("deployment", app)


def _number(kind: str, app: str) -> str:
    """24 lower-case characters, as Kernel's ids have."""
    return hashlib.blake2b(f"{kind}/{app}".encode(), digest_size=12).hexdigest()
