"""spaces.toml and the environment, read into frozen structs.

`cli` calls `load` at start and again when the file changes; the rest of the host only reads the structs.
`toml_reader` reads the values; this says which keys there are. Users read docs/reference/configuration.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from runtime import toml_reader as toml
from runtime.errors import ConfigError

_ENVIRONMENT = {"SPACES_BIND": "bind", "SPACES_ENGINE": "engine", "SPACES_STATE": "state"}
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_MIB = 1024 * 1024


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The `[server]` table: how the host itself runs. Paths are absolute once loaded."""

    bind: str = "127.0.0.1:8000"
    engine: Literal["hypercorn", "uvicorn"] = "hypercorn"
    state: Path = Path(".spaces")
    certfile: Path | None = None
    keyfile: Path | None = None
    http3: bool = False
    drain_timeout: float = 30.0
    access_log: bool = False
    max_zygotes: int = 256


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

    def process_settings(self) -> tuple[object, ...]:
        """What a process has taken up at its start: equal for settings that can share one.

        It holds the secrets: compare it, never print it.
        """
        env, secrets = sorted(self.env.items()), sorted(self.secrets.items())
        limits = self.memory, self.concurrency, self.max_body, self.max_response
        return *limits, tuple(env), tuple(secrets), self.fork

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Each field and its value; of `env` and `secrets` the names only."""
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        hidden = {field: dict.fromkeys(values[field], "***") for field in ("env", "secrets")}
        return list({**values, **hidden}.items())

    def __repr__(self) -> str:
        fields = ", ".join(f"{field}={value!r}" for field, value in self.__rich_repr__())
        return f"FunctionSettings({fields})"


class SpaceSettings(msgspec.Struct, frozen=True):
    """One `[spaces.NAME]` table; the settings in it are whole, with all that they inherit."""

    path: Path
    settings: FunctionSettings
    functions: dict[str, FunctionSettings]


class Config(msgspec.Struct, frozen=True):
    """All that is set for one ROOT. Paths are absolute; `file` and `functions_dir` need not exist.

    `overrides` are the variables that stood in for keys of `[server]`: for `reload`.
    """

    root: Path
    file: Path
    functions_dir: Path
    server: ServerSettings
    defaults: FunctionSettings
    spaces: dict[str, SpaceSettings]
    overrides: dict[str, str] = {}

    def settings(self, space: str, function: str) -> FunctionSettings:
        """What holds for this function, whether or not the file mentions it or its space."""
        known = self.spaces.get(space)
        if known is None:
            return self.defaults
        return known.functions.get(function, known.settings)

    def space_path(self, space: str) -> Path:
        """The folder of the space's handler files; it need not exist."""
        known = self.spaces.get(space)
        return known.path if known else self.functions_dir / space


def load(root: Path, *, environ: Mapping[str, str] = os.environ) -> Config:
    """Read ROOT/spaces.toml, where there is one, and what `environ` sets instead.

    Raises ConfigError; its message has all problems that were found, a line each.
    """
    if not os.path.isdir(root):
        raise toml.refusal([f"{root}: there is no such folder"])
    document = toml.Document(root / "spaces.toml", environ=environ, homes=_HOMES)
    tables = document.values((), document.content, dict.fromkeys(("server", "defaults", "spaces"), toml.table_of))
    server = _read_server(document, tables.get("server", {}))
    defaults = _read_settings(document, ("defaults",), tables.get("defaults", {}), FunctionSettings())
    functions_dir = document.root / "functions"
    spaces = {
        name: _read_space(document, name, table, defaults)
        for name, table in document.named(("spaces",), tables.get("spaces", {}))
    }
    if not os.path.isdir(functions_dir) and all(spaces[name].path == functions_dir / name for name in spaces):
        document.note(
            f"{root}: there are no functions here, neither a functions folder nor a space with a `path` in"
            " spaces.toml; `spaces new hello` writes a first one"
        )
    document.refuse_problems()
    overrides = {variable: environ[variable] for variable in _ENVIRONMENT if environ.get(variable)}
    return Config(document.root, document.root / "spaces.toml", functions_dir, server, defaults, spaces, overrides)


def reload(config: Config) -> Config:
    """The same ROOT as it is now. Raises ConfigError."""
    return load(config.root, environ={**os.environ, **config.overrides})


def parse_bind(text: str) -> tuple[str, int]:
    """Host and port of "host:port", "[v6-address]:port", ":port" and "port", the last two on 127.0.0.1."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or not _is_host(host):
        raise ConfigError(
            f"{toml.shown(text)} is no address to listen on; use HOST:PORT such as 127.0.0.1:8000"
            " or [::1]:8000, or only a PORT, 0 to 65535"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at `host`; of all names only `localhost` is sure to."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_host(text: str) -> bool:
    if text.startswith("[") and text.endswith("]"):
        return _is_address(text[1:-1], ipaddress.IPv6Address)
    if text.rpartition(".")[2].isdigit():  # no name ends in a number: this is an address, perhaps a mistyped one
        return _is_address(text, ipaddress.IPv4Address)
    return not text or _HOST.fullmatch(text) is not None


def _is_address(text: str, kind: Callable[[str], object]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _bind(raw: Any) -> str:
    text = toml.string(raw)
    try:
        parse_bind(text)
    except ConfigError as error:
        raise ValueError(error.message) from None
    return text


_SETTINGS: toml.Readers = {
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
}
_HOMES = {
    **dict.fromkeys(ServerSettings.__struct_fields__, "[server]"),
    **dict.fromkeys(FunctionSettings.__struct_fields__, "[defaults], [spaces.NAME] or [spaces.NAME.functions.NAME]"),
    "path": "[spaces.NAME]",
}


def _read_server(document: toml.Document, table: dict[str, Any]) -> ServerSettings:
    readers: toml.Readers = {
        "bind": _bind,
        "engine": partial(toml.choice, ("hypercorn", "uvicorn")),
        "state": document.path,
        "certfile": document.existing_file,
        "keyfile": document.existing_file,
        "http3": toml.boolean,
        "drain_timeout": partial(toml.duration, zero=True),
        "access_log": toml.boolean,
        "max_zygotes": partial(toml.integer, 1),
    }
    values = {"state": document.root / ".spaces", **document.values(("server",), table, readers)}
    for variable, key in _ENVIRONMENT.items():
        if text := document.environ.get(variable):
            try:
                values[key] = readers[key](text)
            except ValueError as error:
                document.note(f"{variable}: {error}")
    server = ServerSettings(**values)
    for key, other in (("certfile", "keyfile"), ("keyfile", "certfile")):
        if key in table and other not in table:
            document.problem(("server", key), f"`{key}` in [server] needs `{other}` as well")
    if server.http3 and not {"certfile", "keyfile"} & table.keys():
        document.problem(("server", "http3"), "`http3` in [server] needs `certfile` and `keyfile`")
    if server.http3 and server.engine != "hypercorn":
        document.problem(("server", "http3"), f"`http3` in [server] needs the engine hypercorn, not {server.engine}")
    return server


def _read_space(document: toml.Document, name: str, table: dict[str, Any], defaults: FunctionSettings) -> SpaceSettings:
    at = ("spaces", name)
    own: toml.Readers = {"path": document.path, "functions": toml.table_of}
    values = document.values(at, table, {**_settings_readers(document, at), **own})
    path = values.pop("path", document.root / "functions" / name)
    if "path" in table and not os.path.isdir(path):
        document.problem((*at, "path"), f"`path` in [spaces.{name}]: there is no folder {toml.shown(str(path))}")
    tables = values.pop("functions", {})
    settings = _merged(document, at, defaults, values)
    functions = {
        function: _read_settings(document, (*at, "functions", function), function_table, settings)
        for function, function_table in document.named((*at, "functions"), tables)
    }
    return SpaceSettings(path, settings, functions)


def _read_settings(
    document: toml.Document, at: tuple[str, ...], table: dict[str, Any], base: FunctionSettings
) -> FunctionSettings:
    return _merged(document, at, base, document.values(at, table, _settings_readers(document, at)))


def _settings_readers(document: toml.Document, at: tuple[str, ...]) -> toml.Readers:
    return {
        **_SETTINGS,
        "env": partial(document.variables, (*at, "env")),
        "secrets": partial(document.variables, (*at, "secrets")),
    }


def _merged(
    document: toml.Document, at: tuple[str, ...], base: FunctionSettings, values: dict[str, Any]
) -> FunctionSettings:
    """`base` with these values over it."""
    if "env" in values:
        values["env"] = base.env | values["env"]
    if "secrets" in values:
        values["secrets"] = base.secrets | values["secrets"]
    settings = msgspec.structs.replace(base, **values)
    own_bound = next((key for key in ("min_workers", "max_workers") if key in values), None)
    if own_bound and settings.min_workers > settings.max_workers:
        document.problem(
            (*at, own_bound),
            f"`{own_bound}` {toml.within(at)}: `min_workers` is {settings.min_workers} there,"
            f" but `max_workers` is {settings.max_workers}",
        )
    return settings
