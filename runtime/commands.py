"""The commands on submitted calls: `spaces calls …` and `spaces logs`.

Mounted by `cli.py`. Asks a host through `attach.py`, shows what it says as `display.py` puts it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from . import config, display
from .display import Json
from .errors import ConfigError, HostError
from .following import Follower, Meter, path_of, print_json, print_log, printed
from .logs import is_coloured, logging_to

if TYPE_CHECKING:
    from .attach import Client

PAGE = 200  # calls asked for at once
BODY = 4000  # bytes of a result that `show` prints
NOBODY = "no host is serving here: nothing more will come"

Command = Callable[[argparse.Namespace, "Client"], Awaitable[int]]


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--url", help="the host to ask (default: the one that serves ROOT, else the journal on disk)")
    where.add_argument("--root", default=".", help="the folder that holds functions/ (default: here)")
    where.add_argument("--token", help="what to show that host (default: SPACES_TOKEN, else the key of ROOT will do)")
    calls = commands.add_parser("calls", help="list, show, cancel, rerun submitted calls")
    actions = calls.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=[where], help="list calls, the newest first")
    _add_filters(listing)
    for name, text in SINGLE.items():
        action = actions.add_parser(name, parents=[where], help=text)
        several = name in ("cancel", "rerun", "redeliver")
        action.add_argument("id", nargs="+" if several else None, metavar="ID", type=_id, help="the number of a call")
        if not several:
            action.add_argument("-f", "--follow", action="store_true", help="go on until the call has ended")
        if name != "logs":
            action.add_argument("--json", action="store_true", help="print what the host answers")
    actions.choices["logs"].add_argument("--json", action="store_true", help="a JSON object a line")
    logs = commands.add_parser("logs", parents=[where], help="what the newest submitted calls print")
    logs.add_argument("target", nargs="?", default="", metavar="SPACE[/NAME]", help="of these only (default: of all)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with the calls to come")
    logs.add_argument("-n", "--number", type=_count, default=10, metavar="CALLS", help="how many calls (default: 10)")
    logs.add_argument("--json", action="store_true", help="a JSON object a line")


def _add_filters(listing: argparse.ArgumentParser) -> None:
    listing.add_argument("target", nargs="?", default="", metavar="SPACE[/NAME]", help="of these only")
    listing.add_argument("--status", help="queued, running, succeeded, failed, cancelled; several with commas")
    listing.add_argument("--since", metavar="TIME", help="accepted since then: 2027-01-31T09:00:00Z, or 15m for ago")
    listing.add_argument("--until", metavar="TIME", help="accepted before then")
    listing.add_argument("--trigger", help="http, schedule or rerun")
    listing.add_argument("--key", metavar="KEY", help="submitted with this Idempotency-Key")
    listing.add_argument("--dead-letters", action="store_true", help="whose callback was given up")
    listing.add_argument("-n", "--number", type=_count, default=20, metavar="CALLS", help="at most (default: 20)")
    listing.add_argument("--json", action="store_true", help="print what the host answers")


SINGLE = {
    "show": "everything that is known of a call, and its result",
    "logs": "what a call printed and logged",
    "cancel": "take calls out of the queue, or stop them",
    "rerun": "submit the requests of calls again",
    "redeliver": "deliver the results of calls again",
}


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"`{text}` is no call: give the number that `spaces calls list` shows")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"`{text}` is no number from 1 to 100000")
    return int(text)


def run_command(arguments: argparse.Namespace) -> int:
    """Run one of these commands; its exit status."""
    if arguments.url is not None and not arguments.url.startswith(("http://", "https://")):
        raise ConfigError(f"`{arguments.url}` is no URL; write it as http://HOST:PORT")
    settings = None if arguments.url else config.load(Path(arguments.root), environ=config.WithoutSecrets(os.environ))
    command = ACTIONS[arguments.action] if arguments.command == "calls" else _logs

    token = arguments.token or os.environ.get("SPACES_TOKEN") or None

    from .attach import attach  # not at the top: other commands do without its HTTP client

    async def attached() -> int:
        async with attach(settings, arguments.url, token) as client:
            return await command(arguments, client)

    try:
        with logging_to(console=True, level="CRITICAL"):
            return anyio.run(_interruptible, attached)
    except HostError as error:
        if isinstance(error, ConfigError):
            raise
        print(f"spaces: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if arguments.command == "logs" and arguments.follow else 130
    except BrokenPipeError:  # of `spaces logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _interruptible(work: Callable[[], Awaitable[int]]) -> int:
    """Its exit status; KeyboardInterrupt at Ctrl-C.

    What asyncio does at Ctrl-C, a single cancellation, may get lost in a library that is cleaning up just then. A
    cancelled scope stays cancelled.
    """
    status, failure, interrupted = 0, None, False

    async def watch() -> None:
        nonlocal interrupted
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                interrupted = True
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            status = await work()
        except (HostError, OSError) as error:
            failure = error
        tasks.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    if failure is not None:
        raise failure
    return status


# Many calls.


async def _list(arguments: argparse.Namespace, client: Client) -> int:
    filters = {
        **_place(arguments.target),
        "status": arguments.status,
        "since": arguments.since,
        "until": arguments.until,
        "trigger": arguments.trigger,
        "idempotency_key": arguments.key,
        "dead_letters": "1" if arguments.dead_letters else None,
    }
    asked = {name: value for name, value in filters.items() if value is not None}
    calls: list[Json] = []
    cursor: Json = {}
    while len(calls) < arguments.number:
        answer = await client.get("/calls", {**asked, **cursor, "limit": min(PAGE, arguments.number - len(calls))})
        calls += answer["calls"]
        if answer["next"] is None:
            break
        cursor = {"cursor": answer["next"]}
    if arguments.json:
        print_json({"calls": calls, "next": answer["next"]})
    elif calls:
        for line in display.table(calls, colours=is_coloured(sys.stdout), now=display.now()):
            print(line)
    else:
        print("no calls", file=sys.stderr)
    return 0


def _place(target: str) -> Json:
    """The filters that SPACE or SPACE/NAME stands for."""
    space, _, name = target.partition("/")
    return {"space": space or None, "function": name or None}


# One call.


async def _show(arguments: argparse.Namespace, client: Client) -> int:
    path, call = await _found(client, arguments.id)
    if arguments.follow:
        meter = Meter(sys.stdout)
        async for kind, data in client.events(f"{path}/events"):
            if kind == "progress":
                meter.show(data)
            elif kind == "state":
                meter.say(f"{data['status']}")
        meter.close()
        if not client.live:
            print(f"spaces: {NOBODY}", file=sys.stderr)
    call = await client.get(path)
    if arguments.json:
        print_json(call)
    else:
        for line in display.details(call, colours=is_coloured(sys.stdout), now=display.now()):
            print(line)
        await _print_result(client, path, call)
    return 1 if arguments.follow and call["status"] != "succeeded" else 0


async def _print_result(client: Client, path: str, call: Json) -> None:
    """The body of its answer, where it is text."""
    result = call["result"] or {}
    kind = result.get("content_type") or ""
    if call["status"] not in ("succeeded", "failed") or not result.get("length"):
        return
    if not kind.startswith(("text/", "application/json")):
        return
    body = (await client.request("GET", f"{path}/result", any_answer=True)).content
    text = body[:BODY].decode("utf-8", "replace")
    more = f"\n… {len(body) - BODY} more bytes" if len(body) > BODY else ""
    print(f"\n{display.CONTROL.sub('?', text)}{more}")


async def _call_logs(arguments: argparse.Namespace, client: Client) -> int:
    path, _ = await _found(client, arguments.id)
    if not arguments.follow:
        async for line in printed(client, path):
            print_log(line, arguments.json)
        return 0
    meter = Meter(sys.stderr)
    ended: Json | None = None
    async for kind, data in client.events(f"{path}/events"):
        if kind == "progress":
            meter.show(data)
        elif kind == "log":
            meter.clear()
            print_log(data, arguments.json)
        elif kind == "end":
            ended = data
    meter.close()
    if ended is None:
        print(f"spaces: {NOBODY}", file=sys.stderr)
        return 0
    return 0 if ended["status"] == "succeeded" else 1


async def _change(arguments: argparse.Namespace, client: Client, *, verb: str) -> int:
    """Cancel, rerun, or redeliver each; what is wrong with one does not keep the others from it."""
    problems = 0
    for number in arguments.id:
        try:
            path, _ = await _found(client, number)
            method, address = ("DELETE", path) if verb == "cancel" else ("POST", f"{path}/{verb}")
            answer = await client.request(method, address)
        except HostError as error:
            print(f"spaces: {number}: {error.message}", file=sys.stderr)
            problems += 1
            continue
        _tell(verb, number, answer.status_code, answer.headers.get("location", ""), answer.content, arguments.json)
    if not client.live and verb != "cancel" and problems < len(arguments.id):
        print("spaces: no host is serving here; it will be done when one is", file=sys.stderr)
    return 1 if problems else 0


def _tell(verb: str, number: int, status: int, location: str, body: bytes, as_json: bool) -> None:
    new = location.rpartition("/")[2]
    if as_json:
        print_json(msgspec.json.decode(body) if body else {"id": int(new)})
    elif verb == "rerun":
        print(f"{number} runs again as {new}")
    elif verb == "redeliver":
        print(f"{number} is delivered again")
    else:
        print(f"{number} is cancelled" if status == 200 else f"{number} is being stopped")


async def _found(client: Client, number: int) -> tuple[str, Json]:
    """The address of a call, and what is known of it."""
    call = await client.get(f"/calls/{number}")
    return path_of(call), call


async def _logs(arguments: argparse.Namespace, client: Client) -> int:
    filters = {name: value for name, value in _place(arguments.target).items() if value is not None}
    follower = Follower(client, filters, number=arguments.number, as_json=arguments.json)
    await follower.begin()
    if arguments.follow and client.live:
        await follower.go_on()
    elif arguments.follow:
        print(f"spaces: {NOBODY}", file=sys.stderr)
    return 0


ACTIONS: dict[str, Command] = {
    "list": _list,
    "show": _show,
    "logs": _call_logs,
    "cancel": partial(_change, verb="cancel"),
    "rerun": partial(_change, verb="rerun"),
    "redeliver": partial(_change, verb="redeliver"),
}
