"""The command `spaces`: dev, serve, new, list, invoke, check; calls and logs are in `commands.py`.

Reads arguments, calls `server.py` or a `host.py` of its own, prints. Exit status: 0 done, 1 it failed,
2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import pwd
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import msgspec

from . import __version__, config, scaffold, server
from .calls import Call
from .commands import add_commands, run_command
from .config import Config
from .engines import ENGINES
from .errors import ConfigError, HostError, LoadFailed
from .host import Host
from .logs import logging_to
from .registry import Function
from .search import Hint
from .supervisor import supervise
from .systemd import tell_ready, watched

NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
LISTED = 40  # functions that `dev` lists at its start


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="spaces",
        description="A self-hosted serverless function runtime: a folder of handler files, served.",
    )
    parser.add_argument("--version", action="version", version=f"spaces {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    dev = commands.add_parser("dev", help="serve ROOT while you edit it")
    serve = commands.add_parser("serve", help="serve ROOT in production")
    new = commands.add_parser("new", help="write a handler to start from")
    listing = commands.add_parser("list", help="list the functions")
    invoke = commands.add_parser("invoke", help="run a function once, without a server")
    check = commands.add_parser("check", help="load every function and print each problem")

    add_commands(commands)

    for command in (dev, serve, listing, check):
        command.add_argument("root", nargs="?", default=".", metavar="ROOT", help=_ROOT_HELP)
    for command in (dev, serve):
        command.add_argument("--bind", metavar="HOST:PORT", help="where to listen; port 0 picks a free one")
        command.add_argument("--engine", choices=sorted(ENGINES), help="the HTTP server underneath")
        command.add_argument("--open", action="store_true", help="listen beyond this machine without tokens")
        command.add_argument("--processes", type=_count, metavar="N", help=_PROCESSES_HELP[command is dev])
    new.add_argument("name", metavar="NAME", help="the function's name")
    new.add_argument("--space", default="demo", help="its space (default: demo)")
    new.add_argument("--kind", choices=list(scaffold.KINDS), default="json", help="what to start from")
    invoke.add_argument("target", metavar="SPACE/NAME[/PATH][?QUERY]", help="the function, and what follows it")
    invoke.add_argument("-d", "--data", metavar="JSON|@FILE|-", help="the body; - reads standard input")
    invoke.add_argument("-X", "--method", help="the HTTP method (default: GET, or POST with a body)")
    invoke.add_argument("-H", "--header", action="append", default=[], metavar="NAME: VALUE", help="a header")
    for command in (new, invoke):
        command.add_argument("--root", default=".", help=_ROOT_HELP)
    return parser


_ROOT_HELP = "the folder that holds functions/ (default: here)"
_PROCESSES_HELP = ("how many processes serve it, one for a core (default: 1)", argparse.SUPPRESS)


def _count(text: str) -> int:
    try:
        return config.processes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        print(f"spaces: {error.message}", file=sys.stderr)
        return 2
    except PermissionError as error:
        if error.filename is None:
            raise
        print(f"spaces: {error.filename}: {error.strerror}{_owned(Path(error.filename))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _owned(path: Path) -> str:
    """Whose this is, or what it is in, as far as that may be known."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError, KeyError):
            if (owner := place.owner()) != pwd.getpwuid(os.geteuid()).pw_name:
                return f" ({place} belongs to {owner})"
            break
    return ""


def _load(arguments: argparse.Namespace, environ: dict[str, str] | None = None) -> Config:
    environ = dict(os.environ) if environ is None else environ
    if getattr(arguments, "bind", None):
        config.parse_bind(arguments.bind)  # so that a mistake is not put down to the variable
    for option in ("bind", "engine", "processes"):
        if getattr(arguments, option, None):
            environ[f"SPACES_{option.upper()}"] = str(getattr(arguments, option))
    return config.load(Path(arguments.root), environ=environ)


def _run(main: Callable[[], Any]) -> Any:
    """Run on the fastest event loop there is."""
    return anyio.run(main, backend_options={"use_uvloop": find_spec("uvloop") is not None})


def _dev(arguments: argparse.Namespace) -> int:
    if arguments.processes not in (None, 1):
        raise ConfigError("`spaces dev` is always one process; `spaces serve` takes --processes")
    settings = _load(arguments)
    with logging_to(console=True):
        _run(partial(server.serve, settings, dev=True, exposed=arguments.open, announce=_announce_dev))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    faulthandler.enable(2)  # systemd, for one, ends a process that hangs by SIGABRT
    if settings.server.processes == 1:
        one = partial(server.serve, settings, dev=False, exposed=arguments.open, announce=_announce)
        with logging_to(console=False):
            _run(partial(watched, one))
        return 0
    announce = partial(_announce_count, settings)
    with open(os.memfd_create("log"), "wb") as turns, logging_to(console=False, lock=turns.fileno()):
        all_of_them = partial(supervise, settings, exposed=arguments.open, log_lock=turns.fileno(), announce=announce)
        status: int = _run(partial(watched, all_of_them))
    return status


def _announce(host: Host, url: str) -> None:
    _announce_count(host.config, len(host.registry.functions), url)


def _announce_count(settings: Config, count: int, url: str) -> None:
    server.log.info("listening on %s, %s in %s", url, _functions(count), settings.root)
    tell_ready()


def _announce_dev(host: Host, url: str) -> None:
    server.log.info("listening on %s", url)
    functions = sorted(host.registry.functions.values(), key=lambda function: function.label)
    for line in _lines(functions[:LISTED], host.config, url):
        server.log.info("%s", line)
    if len(functions) > LISTED:
        server.log.info("  … and %d more (spaces list)", len(functions) - LISTED)
    if not functions:
        server.log.warning("there are no functions yet: `spaces new hello` writes one")
    for hint in host.hints:
        if hint.important:
            server.log.warning("%s", _hint(hint, host.config))


def _lines(functions: list[Function], settings: Config, url: str = "") -> list[str]:
    """A line a function: name, address, kind, what it takes, where it is."""
    rows = [
        (
            f"  {function.label}",
            f"{url}/spaces/{function.space}/functions/{function.name}/invoke",
            f"{function.kind.replace('_', ' ')} {function.target or 'handle'}({', '.join(function.takes)})",
            f"{_relative(function.path, settings.root)}:{function.line}",
        )
        for function in functions
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _functions(count: int) -> str:
    return f"{count} function{'' if count == 1 else 's'}"


def _hint(hint: Hint, settings: Config) -> str:
    return f"{_relative(hint.path, settings.root)}: {hint.message}"


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _new(arguments: argparse.Namespace) -> int:
    for what in ("name", "space"):
        if NAME.fullmatch(getattr(arguments, what)) is None:
            raise ConfigError(f"a {what} is 1 to 63 of the characters A-Z a-z 0-9 _ -")
    root = Path(arguments.root)
    path = scaffold.write(root / "functions", arguments.space, arguments.name, arguments.kind)
    print(f"{path} written; `spaces dev` serves it at", end=" ")
    print(f"/spaces/{arguments.space}/functions/{arguments.name}/invoke")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    settings = _load(arguments, config.WithoutSecrets(os.environ))

    async def show() -> None:
        host = Host(settings, watch=False)
        await host.scan()
        for line in _lines(sorted(host.registry.functions.values(), key=lambda f: f.label), settings):
            print(line.strip())
        for hint in host.hints:
            print(_hint(hint, settings), file=sys.stderr)

    anyio.run(show)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)

    async def check() -> int:
        problems = 0
        async with Host(settings, debug=True, watch=False) as host:
            functions = sorted(host.registry.functions.values(), key=lambda function: function.label)
            async with anyio.create_task_group() as tasks:
                results: dict[str, LoadFailed | None] = {}
                for function in functions:
                    tasks.start_soon(_check_one, host, function, results)
            for function in functions:
                error = results[function.label]
                if error is not None:
                    problems += 1
                    print(_problem(host, function, error))
            for hint in host.hints:
                if hint.important:
                    print(_hint(hint, settings), file=sys.stderr)
        print(f"{_functions(len(functions))}, {problems} with a problem")
        return 1 if problems else 0

    with logging_to(console=True, level="CRITICAL"):
        status: int = _run(check)
    return status


async def _check_one(host: Host, function: Function, results: dict[str, LoadFailed | None]) -> None:
    results[function.label] = await host.load(function)
    host.unload(function)


def _problem(host: Host, function: Function, error: LoadFailed) -> str:
    shown = host.describe(error)
    file = shown.get("file") or _relative(function.path, host.config.root)
    return f"{file}:{shown.get('line') or function.line}: {function.label}: {error.message}"


def _invoke(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    call = _call(arguments)

    async def run() -> int:
        async with Host(settings, debug=True, watch=False) as host:
            try:
                with host.invoke(msgspec.structs.replace(call, id=(number := host.ids.next()), label=str(number))) as x:
                    result = await x.result()
                    _write(result.body)
                    if not result.complete:
                        async for chunk in x.chunks():
                            _write(chunk)
            except HostError as error:
                print(f"spaces: {error.status} {error.code}: {error.message}", file=sys.stderr)
                if trace := error.details.get("traceback"):
                    print(trace, end="", file=sys.stderr)
                return 1
        if sys.stdout.isatty():
            print()
        return 0 if result.status < 400 else 1

    with logging_to(console=True, level="WARNING", output="INFO"):
        status: int = _run(run)
    return status


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _call(arguments: argparse.Namespace) -> Call:
    """The call that the command line describes."""
    target, _, query = arguments.target.partition("?")
    space, _, rest = target.lstrip("/").partition("/")
    name, slash, path = rest.partition("/")
    if not name:
        raise ConfigError(f"`{arguments.target}` is not SPACE/NAME[/PATH]")
    body = _body(arguments.data)
    headers = [_header(line) for line in arguments.header]
    if body is not None:
        if not any(name == "content-type" for name, _ in headers):
            headers.append(("content-type", "application/json"))
        headers.append(("content-length", str(len(body))))
    method = arguments.method or ("GET" if body is None else "POST")
    return Call(
        id=0,
        label="",
        space=space,
        name=name,
        method=method.upper().encode(),
        path=quote(slash + path, safe="/%:@!$&'()*+,;=~").encode(),
        query=quote(query, safe="=&%+:@!$'()*,;/?~").encode(),
        headers="\0".join(part for pair in headers for part in pair).encode("latin-1", "replace"),
        body=(body,) if body else (),
    )


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {data[1:]}: {error.strerror}") from None
    return data.encode()


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise ConfigError(f"`{line}` is not a header: write it as 'Name: value'")
    return name.strip().lower(), value.strip()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "dev": _dev,
    "serve": _serve,
    "new": _new,
    "list": _list,
    "invoke": _invoke,
    "check": _check,
    "calls": run_command,
    "logs": run_command,
}
