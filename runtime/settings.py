"""What can be set for one function: the structs, and how each setting is read and inherited.

`config` reads the tables of spaces.toml with it; the rest of the host only reads the structs.
`toml_reader` reads the kinds of values, `schedules` what a schedule is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec

from runtime import callback_rules, schedules
from runtime import toml_reader as toml
from runtime.schedules import Schedule

_MIB = 1024 * 1024
_MOST_MODULES, _LONGEST_MODULE = 100, 150  # of `preload`, in characters: together within `link.PRELOAD_SIZE`
_FUNCTION_DEPTH = 4  # of the path ("spaces", SPACE, "functions", NAME)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a submitted call that has failed is run again. `attempts` counts all starts; waits are seconds."""

    attempts: int = 1
    codes: frozenset[int] = frozenset({408, 429, 500, 502, 503, 504})
    min_wait: float = 10.0
    max_wait: float = 120.0


class FunctionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set for one function, for a space, and for all. Durations are seconds, sizes bytes."""

    timeout: float = 10.0
    load_timeout: float = 30.0
    concurrency: int = 64
    min_workers: int = 0
    max_workers: int = 16
    max_waiting: int = 1000
    idle_timeout: float = 60.0
    memory: int | None = None
    max_body: int = 6 * _MIB
    max_response: int = 6 * _MIB
    methods: frozenset[str] | None = None
    max_path_levels: int | None = None
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    fork: Literal["auto", "always", "never"] = "auto"
    preload: tuple[str, ...] = ()
    async_timeout: float = 900.0
    async_max_body: int = _MIB
    max_queued: int = 10_000
    retry: Retry = Retry()
    idempotent: bool = False
    require_callback: bool = False
    callback_hosts: tuple[str, ...] = ()
    callback_secrets: tuple[str, ...] = ()
    callback_attempts: int = 8
    callback_max_wait: float = 300.0
    keep_for: float = 86400.0
    keep_calls: int = 100_000
    schedule: tuple[Schedule, ...] = ()
    public: bool = False
    input: Literal["Text", "Image", "Tabular"] = "Text"
    output: Literal["Classification", "Tags"] = "Classification"
    capture: bool = True

    def process_settings(self) -> tuple[object, ...]:
        """What a process has taken up at its start: equal for settings that can share one.

        It holds the secrets: compare it, never print it.
        """
        env, secrets = sorted(self.env.items()), sorted(self.secrets.items())
        limits = self.memory, self.concurrency, self.max_body, self.max_response
        return *limits, tuple(env), tuple(secrets), self.fork, self.preload

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Each field and its value; of `env` and `secrets` the names only, of `callback_secrets` how many."""
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        hidden: dict[str, Any] = {field: dict.fromkeys(values[field], "***") for field in ("env", "secrets")}
        hidden["callback_secrets"] = ("***",) * len(self.callback_secrets)
        return list({**values, **hidden}.items())

    def __repr__(self) -> str:
        fields = ", ".join(f"{field}={value!r}" for field, value in self.__rich_repr__())
        return f"FunctionSettings({fields})"


def _modules(raw: Any) -> tuple[str, ...]:
    names = toml.strings('names of modules such as ["numpy", "pandas"]', raw)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{toml.shown(name)} is no name of a module")
        if len(name) > _LONGEST_MODULE:
            raise ValueError(f"{toml.shown(name)} is longer than {_LONGEST_MODULE} characters")
    found = tuple(dict.fromkeys(names))
    if len(found) > _MOST_MODULES:
        raise ValueError(f"must be at most {_MOST_MODULES} names of modules, not {len(found)}")
    return found


_READERS: toml.Readers = {
    "timeout": toml.duration,
    "load_timeout": toml.duration,
    "concurrency": partial(toml.integer, 1),
    "min_workers": partial(toml.integer, 0),
    "max_workers": partial(toml.integer, 1),
    "max_waiting": partial(toml.integer, 0),
    "idle_timeout": toml.duration,
    "memory": partial(toml.optional, "none", partial(toml.size, least=_MIB)),
    "max_body": toml.size,
    "max_response": toml.size,
    "methods": partial(toml.optional, "any", toml.methods),
    "max_path_levels": partial(toml.optional, "none", partial(toml.integer, 0)),
    "fork": partial(toml.choice, ("auto", "always", "never")),
    "preload": _modules,
    "async_timeout": toml.duration,
    "async_max_body": toml.size,
    "max_queued": partial(toml.integer, 0),
    "idempotent": toml.boolean,
    "require_callback": toml.boolean,
    "callback_hosts": callback_rules.hosts,
    "callback_attempts": partial(toml.integer, 1),
    "callback_max_wait": toml.duration,
    "keep_for": toml.duration,
    "keep_calls": partial(toml.integer, 0),
    "public": toml.boolean,
    "input": partial(toml.choice, ("Text", "Image", "Tabular")),
    "output": partial(toml.choice, ("Classification", "Tags")),
    "capture": toml.boolean,
}
_RETRY: toml.Readers = {
    "attempts": partial(toml.integer, 1),
    "codes": toml.status_codes,
    "min_wait": toml.duration,
    "max_wait": toml.duration,
}


def setting_readers(document: toml.Document, at: tuple[str, ...]) -> toml.Readers:
    """How each setting in the table at this path is read; what may not stand there says so."""
    found: dict[str, Callable[[Any], Any]] = {
        **_READERS,
        "env": partial(document.variables, (*at, "env")),
        "secrets": partial(document.variables, (*at, "secrets")),
        "callback_secrets": partial(callback_rules.secrets, document),
        "retry": partial(_retry, document, (*at, "retry")),
        "schedule": partial(schedules.read, document, (*at, "schedule")),
    }
    if len(at) == _FUNCTION_DEPTH:
        found["keep_for"] = found["keep_calls"] = _only_for_spaces
        found["preload"] = _shared_by_spaces
    else:
        found["schedule"] = _only_for_functions
    return found


def merge(
    document: toml.Document, at: tuple[str, ...], base: FunctionSettings, values: dict[str, Any]
) -> FunctionSettings:
    """`base` with these values over it; of `env`, `secrets` and `retry` each key is inherited by itself."""
    for table in ("env", "secrets"):
        if table in values:
            values[table] = getattr(base, table) | values[table]
    if "retry" in values:
        values["retry"] = _merged_retry(document, (*at, "retry"), base.retry, values["retry"])
    settings = msgspec.structs.replace(base, **values)
    _check_bounds(document, at, values, settings, "min_workers", "max_workers")
    return settings


def _retry(document: toml.Document, at: tuple[str, ...], raw: Any) -> dict[str, Any]:
    return document.values(at, toml.table_of(raw), _RETRY)


def _merged_retry(document: toml.Document, at: tuple[str, ...], base: Retry, values: dict[str, Any]) -> Retry:
    retry = msgspec.structs.replace(base, **values)
    _check_bounds(document, at, values, retry, "min_wait", "max_wait")
    return retry


def _check_bounds(
    document: toml.Document, at: tuple[str, ...], own: dict[str, Any], settings: object, low: str, high: str
) -> None:
    """A problem where this table's own values make the lower bound exceed the upper one."""
    key = next((key for key in (low, high) if key in own), None)
    least, most = getattr(settings, low), getattr(settings, high)
    if key and least > most:
        message = f"`{key}` {toml.within(at)}: `{low}` is {least} there, but `{high}` is {most}"
        document.problem((*at, key), message)


def _only_for_functions(_: Any) -> Any:
    raise ValueError("a schedule is one function's; it belongs in [spaces.NAME.functions.NAME]")


def _only_for_spaces(_: Any) -> Any:
    raise ValueError("calls are kept and forgotten by space; it belongs in [defaults] or [spaces.NAME]")


def _shared_by_spaces(_: Any) -> Any:
    raise ValueError("one process imports it for all functions of a space; it belongs in [defaults] or [spaces.NAME]")
