"""Several host processes on one address: starts them, replaces those that end, and ends them all.

Started by `cli.py` for `processes` > 1. Each member (`member.py`) listens on a socket of its own that stays open here
too, so that connections wait while it is replaced. One that hangs is killed. The base zygotes (`bases.py`) are ours:
functions' processes outlive a member.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from .authority import Authority, is_guarded
from .bases import Bases
from .config import Config
from .engines import BACKLOG
from .link import ASK, PRELOAD_SIZE, Relay
from .member import Seat, command, pickled
from .server import endings, listen, require, url_of
from .share import Share
from .whereabouts import told
from .worker.output import STACK_SIGNAL

STEADY = 10.0  # seconds after which a member is taken to run well: the next one is started at once when it ends
WAITS = 0.1, 5.0  # seconds before another member is started after one that did not: at first, and at most
GRACE = 10.0  # seconds beyond `drain_timeout` in which members must have ended by themselves
BEAT = 2.0  # seconds after which each member is asked again whether it is there
HANGS = 5  # questions without an answer after which it is taken to hang
BEGINS = 30  # questions of which a new one must have answered one
LATE = 20.0  # seconds after which connections are not to wait any longer for a new one to be ready
NEVER = 120.0  # seconds after which one that is not ready gets replaced, whatever it does
DUMP_WAIT = 0.25  # seconds that it is given to write down where it hangs
DUMP_SIZE = 64 * 1024
DOING = {"T": ", since it is stopped", "t": ", since a debugger holds it", "D": ", since it waits for a disk"}

log = logging.getLogger("spaces.server")


class Member:
    """One host process. `faults`: a file, ours to close, into which it writes where it hangs or crashes."""

    def __init__(self, number: int, index: int, process: subprocess.Popen[bytes], faults: int) -> None:
        self.number, self.index, self.process, self.faults = number, index, process, faults
        self.started_at = time.monotonic()
        self.missed = HANGS - BEGINS  # questions since it has last answered one
        self.crash: str | None = None  # where, once it has ended in one
        self._read = 0  # bytes of its faults
        self.ready = anyio.Event()
        self.leaving = anyio.Event()  # it wants to be replaced, or has ended
        self.ended = anyio.Event()

    def reason(self) -> str:
        """How it ended."""
        status = self.process.returncode
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            return f"was ended by {name}"
        return f"ended with status {status}"

    def fault(self) -> str | None:
        """What it has written since it was last read of where it was, by thread; None where its file is closed."""
        text = os.pread(self.faults, DUMP_SIZE, self._read) if self.faults >= 0 else b""
        self._read += len(text)
        return text.decode("utf-8", "replace") or None


async def supervise(config: Config, *, exposed: bool, log_lock: int, announce: Callable[[int, str], None]) -> int:
    """Serve with as many processes as are set, until told to end; the exit status.

    `announce` is called once calls can be taken, with the number of functions and the address. `log_lock`: see
    `logs.logging_to`.
    """
    require(config.server)
    with ExitStack() as scopes:
        socks = listen(config.server, exposed=exposed or is_guarded(config), count=config.server.processes)
        for sock in socks:
            scopes.enter_context(sock)
        url = url_of(socks[0], config.server)
        authority = Authority(lambda: config, open=lambda: True)
        await anyio.to_thread.run_sync(authority.prepare)  # so that there is one key, before several look for it
        scopes.enter_context(told(config.server.state, url))
        supervisor = Supervisor(
            config, socks, exposed=exposed, log_lock=log_lock, announce=lambda count: announce(count, url)
        )
        status = await supervisor.run()
    log.info("ended")
    return status


class Supervisor:
    """The members on these sockets.

    Guarantee: while it runs there is a member for each socket, or one is being started; after it, none.
    """

    def __init__(
        self,
        config: Config,
        socks: Sequence[socket.socket],
        *,
        exposed: bool,
        log_lock: int,
        announce: Callable[[int], None],
    ) -> None:
        self._socks = socks
        self._bases = Bases(others=lambda: [member.process.pid for member in self._members.values()])
        self._exposed, self._log_lock, self._announce = exposed, log_lock, announce
        self._drain_timeout = config.server.drain_timeout
        self._config = pickled(config)  # as the member has it that was the last to take up changes
        self._members: dict[int, Member] = {}
        self._numbers = itertools.count(1)
        self._relay = Relay(self._told)
        self._unannounced = set(range(len(socks)))
        self._ending = anyio.Event()
        self._patience = anyio.CancelScope()  # with members that end
        self._status = 0
        self._tasks: anyio.abc.TaskGroup

    async def run(self) -> int:
        """Until told to end by a signal, or a member cannot start; the exit status."""
        async with self._bases:
            try:
                async with anyio.create_task_group() as self._tasks:
                    await self._serve()
                    self._tasks.cancel_scope.cancel()
            finally:
                self._kill_members()
        return self._status

    async def _serve(self) -> None:
        self._tasks.start_soon(self._await_signals)
        self._tasks.start_soon(self._ask_after_members)
        for index in range(len(self._socks)):
            self._tasks.start_soon(self._keep, index)
        await self._ending.wait()
        for sock in self._socks:  # first: connections that nobody takes any more are to be refused
            sock.close()
        await self._end_members()
        self._relay.close()

    # Members come and go.

    async def _keep(self, index: int) -> None:
        """Have a member in this place, as long as there is to be one."""
        least, most = WAITS
        wait = 0.0
        while not self._ending.is_set():
            try:
                member = await self._start(index)
            except OSError as error:  # no memory, no descriptors: there may be some in a while
                if index in self._unannounced:
                    raise
                log.error("no host process can be started: %s", error)
                self._withdraw(index)
                await self._pause(most)
                continue
            await member.leaving.wait()
            if self._ending.is_set() or not member.ended.is_set():
                continue
            if index in self._unannounced:
                self._fail(member)
                return
            log.error(
                "host process %d %s: another takes its place",
                member.process.pid, member.reason(), extra={"stack": member.crash},
            )  # fmt: skip
            if wait and not member.ready.is_set():
                self._withdraw(index)
            lived = time.monotonic() - member.started_at
            wait = 0.0 if lived >= STEADY else min(most, max(least, 2 * wait))
            await self._pause(wait)

    def _withdraw(self, index: int) -> None:
        """Nobody gets to serve in this place: leave connections to the others, until somebody listens here again."""
        served = any(member.index == index and member.ready.is_set() for member in self._members.values())
        if served or self._ending.is_set() or index in self._unannounced:
            return
        listens = self._socks[index].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens:  # if it did not, that would shut its next connections, too
            self._socks[index].shutdown(socket.SHUT_RD)

    async def _pause(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._ending.wait()

    def _fail(self, member: Member) -> None:
        """The first one in its place cannot start; it has said why."""
        status = member.process.returncode or 1
        if not self._ending.is_set():
            log.error("host process %d %s before it could serve", member.process.pid, member.reason())
            self._status = status if status > 0 else 1
        self._ending.set()

    async def _start(self, index: int) -> Member:
        """OSError where there cannot be one now."""
        with ExitStack() as failing:
            faults = os.memfd_create("faults")
            failing.callback(os.close, faults)
            line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            failing.callback(line.close)
            with theirs:
                doors, their_doors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                failing.callback(doors.close)
                with their_doors:
                    process = self._spawn(index, theirs.fileno(), their_doors.fileno(), faults)
            failing.callback(process.wait)
            failing.callback(process.kill)  # which is done first
            handle = os.pidfd_open(process.pid)
            failing.pop_all()
        member = Member(next(self._numbers), index, process, faults)
        self._members[member.number] = member
        self._tasks.start_soon(self._watch, member, handle)
        self._tasks.start_soon(self._attach, doors)
        await self._relay.join(member.number, line)
        return member

    def _spawn(self, index: int, line: int, doors: int, faults: int) -> subprocess.Popen[bytes]:
        seat = Seat(
            share=Share(index, len(self._socks)),
            exposed=self._exposed,
            sock=self._socks[index].fileno(),
            line=line,
            doors=doors,
            faults=faults,
            log_lock=self._log_lock,
        )
        with open(os.memfd_create("config"), "w+b") as config:
            config.write(self._config)
            config.seek(0)
            return subprocess.Popen(
                command(seat),
                stdin=config,
                pass_fds=(seat.sock, seat.line, seat.doors, seat.faults, seat.log_lock),
                start_new_session=True,  # Ctrl-C in a terminal is for the supervisor alone
            )

    async def _watch(self, member: Member, handle: int) -> None:
        """Until its end, of which it then tells; `handle` is a pidfd of it, ours to close."""
        try:
            await anyio.wait_readable(handle)
        finally:
            os.close(handle)
        member.process.wait()
        member.crash = member.fault()
        os.close(member.faults)
        member.faults = -1
        del self._members[member.number]
        member.ended.set()
        member.leaving.set()

    async def _ask_after_members(self) -> None:
        """Kill whoever hangs. What is counted are questions, not seconds: whatever stops us, too, is no silence."""
        while True:
            await anyio.sleep(BEAT)
            for member in self._members.values():
                if member.missed == HANGS:
                    self._tasks.start_soon(self._put_down, member)
                age = time.monotonic() - member.started_at
                if age > LATE:
                    self._withdraw(member.index)
                if age > NEVER:
                    self._give_up(member)
                member.missed += 1
                self._relay.say(member.number, ASK)

    def _give_up(self, member: Member) -> None:
        """Replace a member that answers, and does not get ready. The first in its place has more time."""
        if member.ready.is_set() or member.leaving.is_set() or member.index in self._unannounced:
            return
        log.error("host process %d is not ready after %.0f seconds: it is killed", member.process.pid, NEVER)
        member.leaving.set()
        member.process.kill()

    async def _put_down(self, member: Member) -> None:
        """Kill a member that hangs, and say where it does."""
        pid = member.process.pid
        doing = _doing(pid)
        member.process.send_signal(STACK_SIGNAL)
        with anyio.move_on_after(DUMP_WAIT):
            await member.ended.wait()
        if member.ended.is_set():
            return
        where = {"stack": member.fault()}
        if member.missed < HANGS:
            log.warning("host process %d did not answer, and answers again", pid, extra=where)
        else:
            log.error("host process %d hangs%s: it is killed", pid, doing, extra=where)
            member.process.kill()

    async def _attach(self, doors: socket.socket) -> None:
        """Hand on the sockets by which a member wants to speak to base zygotes, until it ends."""
        with doors:
            doors.setblocking(False)
            while True:
                await anyio.wait_readable(doors)
                data, handles, *_ = socket.recv_fds(doors, PRELOAD_SIZE, 1)
                if not data:
                    return
                for handle in handles:
                    with socket.socket(fileno=handle) as sock:
                        self._hand_on(sock, data)

    def _hand_on(self, sock: socket.socket, data: bytes) -> None:
        try:
            self._bases.attach(sock, msgspec.json.decode(data, type=tuple[str, ...]))
        except msgspec.DecodeError as error:
            log.error("a host process asked for a base zygote in words that are not understood: %s", error)
        except OSError as error:  # the member sees its end of the socket close, and asks again at the next call
            log.error("no base zygote can be reached: %s", error)

    def _told(self, number: int, word: str, payload: bytes) -> None:
        """What a member says."""
        member = self._members.get(number)
        if member is None:
            return
        member.missed = 0  # whatever it says: it lives
        if word == "config":
            self._config = payload
        elif word == "leaving":
            member.leaving.set()
            if self._ending.is_set():
                self._relay.say(number, "end")
        elif word == "ready":
            self._is_ready(member, functions=int(payload))

    def _is_ready(self, member: Member, functions: int) -> None:
        member.ready.set()
        if not self._ending.is_set():
            self._socks[member.index].listen(BACKLOG)  # it may have been withdrawn just now
        for other in self._members.values():
            if other.index == member.index and other is not member:
                self._relay.say(other.number, "replaced")
        if member.index in self._unannounced:
            self._unannounced.discard(member.index)
            if not self._unannounced and not self._ending.is_set():
                self._announce(functions)

    # The end.

    async def _await_signals(self) -> None:
        with anyio.open_signal_receiver(*endings()) as signals:
            async for number in signals:
                if not self._ending.is_set():
                    log.info("%s: finishing what runs", number.name)
                    self._ending.set()
                    continue
                log.warning("%s again: ending now", number.name)
                for member in self._members.values():
                    self._relay.say(member.number, "now")
                self._patience.deadline = min(self._patience.deadline, anyio.current_time() + GRACE)
                return

    async def _end_members(self) -> None:
        """Have all finish what they run; kill those that do not end."""
        for member in list(self._members.values()):
            self._relay.say(member.number, "end")
            if not member.ready.is_set():
                member.process.terminate()
        limit = anyio.current_time() + self._drain_timeout + GRACE
        self._patience.deadline = min(self._patience.deadline, limit)
        with self._patience:
            await self._until_all_ended()
        for member in self._members.values():
            log.error("host process %d does not end: it is killed", member.process.pid)
            with suppress(ProcessLookupError):
                member.process.kill()
        await self._until_all_ended()

    def _kill_members(self) -> None:
        """Those that are left, where something went wrong with us: before the base zygotes, which they would miss."""
        for member in self._members.values():
            member.process.kill()
        for member in self._members.values():
            member.process.wait()

    async def _until_all_ended(self) -> None:
        for member in list(self._members.values()):
            await member.ended.wait()


def _doing(pid: int) -> str:
    """Why it cannot answer, where the kernel knows."""
    try:
        return DOING.get(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "")
    except OSError:
        return ""
