"""What calls print and how far they are, shown as it happens: one call's, and those of many.

Used by `commands.py`; asks a host through `attach.py`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from . import display
from .display import Json
from .errors import HostError
from .logs import is_coloured

if TYPE_CHECKING:
    from .attach import Client

PAGE = 200  # calls asked for at once
TRIES = 30  # that many times, a second apart, a host that does not answer is asked again
FOLLOWED = 256  # calls whose events are read at one time: as many as a host runs
CHECKED = 100  # calls that wait to be begun, looked at in each second


class Follower:
    """Prints the log lines of the newest calls, and of those to come as they print them."""

    def __init__(self, client: Client, filters: dict[str, str], *, number: int, as_json: bool) -> None:
        self._client = client
        self._json = as_json
        self._number = number
        self._filters = filters
        self._newest = 0
        self._coming: dict[int, Json] = {}  # calls that are to be followed
        self._places = anyio.Semaphore(FOLLOWED)
        self._failure: Exception | None = None

    async def begin(self) -> None:
        """The newest calls, the oldest of them first; those that have not ended are left for `go_on`."""
        answer = await self._client.get("/calls", {**self._filters, "limit": min(self._number, PAGE)})
        calls = answer["calls"][::-1]
        self._newest = max((call["id"] for call in calls), default=0)
        for call in calls:
            if self._client.live and call["status"] in ("queued", "running"):
                self._coming[call["id"]] = call
                continue
            async for line in printed(self._client, path_of(call)):
                self._print(call, line)

    async def go_on(self) -> None:
        """Until the host is gone, or whoever reads this."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._guard, self._look)
        raise self._failure or HostError("the host is gone")

    async def _guard(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            await work(*arguments)
        except (HostError, OSError) as error:  # OSError: nobody reads standard output any more
            self._failure = error
            self._tasks.cancel_scope.cancel()

    async def _look(self) -> None:
        """For ever: follow each call as it begins; a host that starts anew is waited for."""
        misses = 0
        while True:
            try:
                await self._follow_begun()
                await anyio.sleep(1)
                self._coming |= await self._new()
                misses = 0
            except HostError:
                misses += 1
                if misses == TRIES:
                    raise
                await anyio.sleep(1)

    async def _follow_begun(self) -> None:
        """Follow those to come that have begun meanwhile. Where many wait, they are looked at in turn."""
        now = display.now().isoformat()
        due = [call for call in self._coming.values() if call["status"] != "queued" or call["run_at"] <= now]
        for call in due[:CHECKED]:
            number = call["id"]
            if call["status"] == "queued":
                answer = await self._client.get("/calls", {"cursor": number + 1, "limit": 1})
                call = next((found for found in answer["calls"] if found["id"] == number), {**call, "status": "gone"})
            del self._coming[number]
            if call["status"] == "queued":
                self._coming[number] = call
            else:
                self._tasks.start_soon(self._guard, self._follow, call)

    async def _new(self) -> dict[int, Json]:
        """The calls that came since the last look, the oldest first."""
        found: list[Json] = []
        cursor: Json = {}
        while True:
            answer = await self._client.get("/calls", {**self._filters, **cursor, "limit": PAGE})
            found += (call for call in answer["calls"] if call["id"] > self._newest)
            if answer["next"] is None or int(answer["next"]) <= self._newest:
                break
            cursor = {"cursor": answer["next"]}
        self._newest = max((call["id"] for call in found), default=self._newest)
        return {call["id"]: call for call in reversed(found)}

    async def _follow(self, call: Json) -> None:
        async with self._places:
            with suppress(HostError):  # it is no longer kept
                await self._tell(call)

    async def _tell(self, call: Json) -> None:
        async for kind, data in self._client.events(f"{path_of(call)}/events"):
            if kind == "log":
                self._print(call, data)

    def _print(self, call: Json, line: Json) -> None:
        origin = f"{call['space']}/{call['function']}"
        if self._json:
            print_json({"call": call["id"], "function": origin, **line})
        else:
            print(display.log_line(line, colours=is_coloured(sys.stdout), origin=f"{origin} {call['id']}"), flush=True)


async def printed(client: Client, path: str) -> AsyncIterator[Json]:
    """The log lines of a call so far."""
    after = 0
    while after is not None:
        answer = await client.get(f"{path}/logs", {"after": after})
        for line in answer["logs"]:
            yield line
        after = answer["next"]


def path_of(call: Json) -> str:
    """The address of a call."""
    return f"/spaces/{call['space']}/functions/{call['function']}/calls/{call['id']}"


class Meter:
    """The progress of one call: a line that is written over on a terminal, a line each elsewhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._terminal: bool = stream.isatty()
        self._shown = False

    def show(self, state: Json) -> None:
        """Its progress now."""
        text = display.progress(state)
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._shown = True
        elif self._stream is sys.stdout:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for other lines."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def close(self) -> None:
        """Leave the last state standing."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()


def print_log(line: Json, as_json: bool) -> None:
    """One log line."""
    if as_json:
        print_json(line)
    else:
        print(display.log_line(line, colours=is_coloured(sys.stdout)), flush=True)


def print_json(value: Any) -> None:
    """A JSON document on a line."""
    print(msgspec.json.encode(value).decode(), flush=True)
