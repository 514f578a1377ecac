"""spaces.toml and the environment, read into frozen structs.

`cli` calls `load` at start and again when the file changes; the rest of the host only reads the structs.
`settings` has what can be set for a function, `toml_reader` reads values. Users read docs/reference/configuration.md.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from runtime import credentials
from runtime import toml_reader as toml
from runtime.callback_rules import SECRET_PREFIX
from runtime.credentials import Client, Issuer, Key, Subject, Token
from runtime.errors import ConfigError
from runtime.schedules import Schedule
from runtime.settings import FunctionSettings, Retry, merge, setting_readers

_ENVIRONMENT = {
    "SPACES_BIND": "bind", "SPACES_ENGINE": "engine", "SPACES_STATE": "state", "SPACES_PROCESSES": "processes",
}  # fmt: skip
MOST_PROCESSES = 256  # of one host
TRAINED = "trained"  # the space of the functions that are created through an API, and trained here
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")

__all__: Sequence[str] = (
    "TRAINED",
    "Config",
    "FunctionSettings",
    "Retry",
    "Schedule",
    "ServerSettings",
    "SpaceSettings",
    "WithoutSecrets",
    "is_loopback",
    "load",
    "parse_bind",
    "processes",
    "reload",
    "with_trained",
)


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The `[server]` table: how the host itself runs. Paths are absolute once loaded."""

    bind: str = "127.0.0.1:8000"
    engine: Literal["hypercorn", "uvicorn"] = "hypercorn"
    processes: int = 1
    state: Path = Path(".spaces")
    certfile: Path | None = None
    keyfile: Path | None = None
    http3: bool = False
    drain_timeout: float = 30.0
    access_log: bool = False
    max_zygotes: int = 256
    metrics_functions: int = 200
    kernel_attach: bool = True
    tokens: tuple[Token, ...] = ()
    token_key: Key | None = None
    token_life: float = 3600.0
    issuer: Issuer | None = None
    projects: tuple[str, ...] = ()

    @property
    def is_guarded(self) -> bool:
        """Whether it says who may call, wherever no space does."""
        return bool(self.tokens) or self.issuer is not None


class SpaceSettings(msgspec.Struct, frozen=True):
    """One `[spaces.NAME]` table; the settings in it are whole, with all that they inherit."""

    path: Path
    settings: FunctionSettings
    functions: dict[str, FunctionSettings]
    tokens: tuple[Token, ...] = ()
    clients: tuple[Client, ...] = ()
    subjects: tuple[Subject, ...] = ()

    @property
    def is_guarded(self) -> bool:
        """Whether it says who may call."""
        return bool(self.tokens or self.clients or self.subjects)


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

    @property
    def homes(self) -> dict[str, Path]:
        """The folder of every space that is configured; not that of trained functions until there are some."""
        later = self.server.state / TRAINED
        return {name: one.path for name, one in self.spaces.items() if one.path != later or os.path.isdir(later)}

    @property
    def trained_dir(self) -> Path | None:
        """The folder for trained functions; None where a folder of the user's own is the space of that name."""
        ours, theirs = self.server.state / TRAINED, self.functions_dir / TRAINED
        given = self.spaces[TRAINED].path if TRAINED in self.spaces else theirs
        return None if given not in (ours, theirs) or os.path.isdir(theirs) else ours


class WithoutSecrets(dict[str, str]):
    """An environment for who runs no function and lets nobody in: what "env:NAME" stands for is made up if need be.

    Where there is no such variable, it is a secret that nobody knows.
    """

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


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
    file = document.root / "spaces.toml"
    return with_trained(Config(document.root, file, functions_dir, server, defaults, spaces, overrides))


def reload(config: Config) -> Config:
    """The same ROOT as it is now. Raises ConfigError, also where what was guarded would be open from now on.

    A file is missing, empty or cut short for a moment while some editors save it, and a host must not open by that.
    """
    after = load(config.root, environ={**os.environ, **config.overrides})
    if opened := _opened(config, after):
        raise toml.refusal(
            [f"{config.file}: it names nobody any more who may call {opened}; to open that, start the host anew"]
        )
    return after


def _opened(before: Config, after: Config) -> str:
    """What somebody was named for before, and nobody is now."""
    if after.server.is_guarded:
        return ""
    if before.server.is_guarded:
        return "this host"
    still = {name for name, space in after.spaces.items() if space.is_guarded}
    lost = [name for name, space in before.spaces.items() if space.is_guarded and name not in still]
    return ", ".join(f"the space {name}" for name in sorted(lost))


def with_trained(config: Config) -> Config:
    """The same with the space of trained functions, once there are some, or something is set for them."""
    folder, given = config.trained_dir, config.spaces.get(TRAINED)
    if folder is None or (given is None and not os.path.isdir(folder)):
        return config
    space = given or SpaceSettings(path=folder, settings=config.defaults, functions={})
    return msgspec.structs.replace(
        config, spaces={**config.spaces, TRAINED: msgspec.structs.replace(space, path=folder)}
    )


def parse_bind(text: str) -> tuple[str, int]:
    """Host and port of "host:port", "[v6-address]:port", ":port" and "port", the last two on 127.0.0.1."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or not _is_host(host):
        raise ConfigError(
            f"{toml.shown(text)} is no address to listen on; use HOST:PORT such as 127.0.0.1:8000"
            " or [::1]:8000, or only a PORT, 0 to 65535"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def processes(raw: Any) -> int:
    """A number of host processes, also as text; ValueError says what it must be."""
    number = toml.integer(0, int(raw) if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}", raw) else raw)
    if not 1 <= number <= MOST_PROCESSES:
        raise ValueError(f"must be 1 to {MOST_PROCESSES}, not {toml.shown(raw)}")
    return number


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


def _projects(raw: Any) -> tuple[str, ...]:
    names = toml.strings('names of projects such as ["main"]', raw)
    for name in names:
        if not _PROJECT.fullmatch(name):
            raise ValueError(f"{toml.shown(name)} is no name of a project; use letters, digits, - and _, at most 64")
    return tuple(names)


def _bind(raw: Any) -> str:
    text = toml.string(raw)
    try:
        parse_bind(text)
    except ConfigError as error:
        raise ValueError(error.message) from None
    return text


_HOMES = {
    **dict.fromkeys(ServerSettings.__struct_fields__, "[server]"),
    **dict.fromkeys(FunctionSettings.__struct_fields__, "[defaults], [spaces.NAME] or [spaces.NAME.functions.NAME]"),
    **dict.fromkeys(("keep_for", "keep_calls", "preload"), "[defaults] or [spaces.NAME]"),
    "schedule": "[spaces.NAME.functions.NAME]",
    **dict.fromkeys(("path", "clients", "subjects"), "[spaces.NAME]"),
    "tokens": "[server] or [spaces.NAME]",
}


def _read_server(document: toml.Document, table: dict[str, Any]) -> ServerSettings:
    readers: toml.Readers = {
        "bind": _bind,
        "engine": partial(toml.choice, ("hypercorn", "uvicorn")),
        "processes": processes,
        "state": document.path,
        "certfile": document.existing_file,
        "keyfile": document.existing_file,
        "http3": toml.boolean,
        "drain_timeout": partial(toml.duration, zero=True),
        "access_log": toml.boolean,
        "max_zygotes": partial(toml.integer, 1),
        "metrics_functions": partial(toml.integer, 0),
        "kernel_attach": toml.boolean,
        "tokens": partial(credentials.server_tokens, document),
        "token_key": partial(credentials.token_key, document),
        "token_life": toml.duration,
        "issuer": partial(credentials.issuer, document),
        "projects": _projects,
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
    if server.http3 and server.processes > 1:
        document.problem(
            ("server", "http3"),
            "`http3` in [server] goes with one process only (`processes`): the datagrams of a connection would reach"
            " any of them",
        )
    if server.http3 and server.engine != "hypercorn":
        document.problem(("server", "http3"), f"`http3` in [server] needs the engine hypercorn, not {server.engine}")
    return server


def _read_space(document: toml.Document, name: str, table: dict[str, Any], defaults: FunctionSettings) -> SpaceSettings:
    at = ("spaces", name)
    own: toml.Readers = {
        "path": document.path,
        "functions": toml.table_of,
        "tokens": partial(credentials.tokens, document, at),
        "clients": partial(credentials.clients, document, at),
        "subjects": partial(credentials.subjects, document, at),
    }
    values = document.values(at, table, {**setting_readers(document, at), **own})
    access = {key: values.pop(key) for key in ("tokens", "clients", "subjects") if key in values}
    path = values.pop("path", document.root / "functions" / name)
    if "path" in table and not os.path.isdir(path):
        document.problem((*at, "path"), f"`path` in [spaces.{name}]: there is no folder {toml.shown(str(path))}")
    tables = values.pop("functions", {})
    settings = merge(document, at, defaults, values)
    functions = {
        function: _read_settings(document, (*at, "functions", function), function_table, settings)
        for function, function_table in document.named((*at, "functions"), tables)
    }
    return SpaceSettings(path, settings, functions, **access)


def _read_settings(
    document: toml.Document, at: tuple[str, ...], table: dict[str, Any], base: FunctionSettings
) -> FunctionSettings:
    return merge(document, at, base, document.values(at, table, setting_readers(document, at)))
