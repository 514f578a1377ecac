"""What every zygote does: serves control sockets, forks children for those who ask, buries and reports them.

Subclassed by `base_zygote.py` and `zygote.py`. A control socket is SOCK_SEQPACKET: one JSON object a message,
file descriptors beside it. Names are bound at import, before any handler's code runs, so that a handler that
patches the standard library cannot patch us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from json import JSONDecoder, JSONEncoder
from os import _exit, close, fork, getpid, kill, pidfd_open, waitpid, waitstatus_to_exitcode
from select import POLLIN, poll
from signal import SIGKILL, pidfd_send_signal
from socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SHUT_RDWR,
    SO_SNDTIMEO,
    SOL_SOCKET,
    socket,
)
from struct import calcsize, pack, unpack
from traceback import print_exc
from typing import Any, NoReturn

from . import at_fork, process

Message = dict[str, Any]
REAP_AGAIN_MS = 5
PATIENCE = pack("ll", 5, 0)  # seconds and microseconds in which a host must have read something

CUT = "cut"  # in place of what was asked, where not all of its descriptors came: we may have no more of them

hosts = count(1)

# Plain numbers, as the members of an enum run code of theirs. And no `send_fds`: what a zygote writes to between two
# forks, if only a count of references, is one more page for each of its children.
CLOSING, CUT_OFF = int(MSG_CMSG_CLOEXEC), int(MSG_CTRUNC)
SIZE = calcsize("i")  # of a descriptor
ROOM = CMSG_SPACE(8 * SIZE)

to_json = JSONEncoder(ensure_ascii=False).encode
FORKED = '{"op": "forked", "id": %d, "pid": %d}'
decoder: Any = JSONDecoder()
scan_json = decoder.scan_once  # `decode` would look for what stands after it


class Seat:
    """One control socket: somebody who asks for children, and those that it has."""

    def __init__(self, control: socket, number: int = 0, host: int | None = None) -> None:
        self.control = control
        self.number = number  # by which the base zygote knows it
        self.host = next(hosts) if host is None else host  # who may have several of them
        self.children: set[int] = set()  # pidfds
        with suppress(OSError):
            control.setsockopt(SOL_SOCKET, SO_SNDTIMEO, PATIENCE)

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Tell the host; it being gone is noticed by `Parent.serve`."""
        with suppress(OSError):
            try:
                send_with(self.control, encode(message), fds)
            except BlockingIOError:  # it reads nothing, and others are not to wait for it
                self.control.shutdown(SHUT_RDWR)
            except OSError:
                if fds:  # too many of them are on their way, perhaps: then it hears at least that there is something
                    self.control.send(encode(message))

    def hint(self, message: Message) -> None:
        """Tell the host what it can do without."""
        with suppress(OSError):
            self.control.send(encode(message), MSG_DONTWAIT)


class Parent:
    """A zygote's loop.

    It has one door, by which come the control sockets of those whom it is to serve. Guarantee: the children of
    a control socket that has closed are killed; when it returns or nobody is left, no descendant is.
    """

    lasting = True  # until the door has closed, even without anybody to serve
    alone = True  # it is its process's only thread

    def __init__(self, door: socket) -> None:
        self.door = door
        self.seats: dict[int, Seat] = {}  # by their file descriptor
        self.pids: dict[int, int] = {}  # pidfd → pid
        self.owners: dict[int, Seat] = {}  # pidfd → who asked for it
        process.bury(0)
        self._settled = process.children()  # an import started them: they stay until we end
        self._orphaned = False
        self._shut = False  # the door
        self._stale = False  # a descriptor was closed: what poll said before may be about another one by now
        self.patience_ms: int | None = None  # `on_quiet` is called after that long without a message
        self._poll = poll()
        self._poll.register(door, POLLIN)
        process.adopt_orphans()

    def serve(self) -> NoReturn:
        """Do what is asked until the door and every control socket have closed; then end everything below."""
        while True:
            events = self._poll.poll(REAP_AGAIN_MS if self._orphaned else self.patience_ms)
            if not events and not self._orphaned:
                self.on_quiet()
            self._stale = False
            for fd, _ in events:
                if fd in self.pids:
                    self.report_exit(fd)
                elif fd in self.seats:
                    self._hear(self.seats[fd])
                else:
                    self._answer_door(fd)
                if self._stale:
                    break
            if self._orphaned:
                self._end_orphans()

    def handle(self, seat: Seat, message: Message, fds: list[int]) -> None:
        """Do what a host asks; the descriptors are the callee's."""
        raise NotImplementedError

    def on_door(self, fd: int, message: Message, fds: list[int]) -> None:
        """Something came through a door."""
        if message["op"] == "attach" and fds:
            self.seat(socket(fileno=fds.pop()), message.get("number", 0), message.get("host"))

    def on_quiet(self) -> None:
        """Nothing has come for `patience_ms`."""

    def on_left(self, seat: Seat) -> None:
        """A control socket has closed."""

    def on_shut(self, fd: int) -> None:
        """A door has closed: when nobody is left either, that is the end."""
        self.forget(self.door)
        self._shut = True
        if not self.seats:
            self.end()

    def seat(self, control: socket, number: int = 0, host: int | None = None) -> Seat:
        """Serve one more control socket."""
        seat = self.seats[control.fileno()] = Seat(control, number, host)
        self.listen(control)
        return seat

    def listen(self, sock: socket) -> None:
        """Look whether something comes from there, too."""
        self._poll.register(sock, POLLIN)

    def _hear(self, seat: Seat) -> None:
        message, fds = receive(seat.control)
        if message is None:
            self.unseat(seat)
        elif message["op"] == CUT:
            if message["id"] is not None:
                self.cannot_fork(seat, message, fds, "its zygote may open no more files")
        else:
            self.handle(seat, message, fds)

    def _answer_door(self, fd: int) -> None:
        door = self.door_of(fd)
        message, fds = receive(door) if door is not None else (None, [])
        if message is None:
            self.on_shut(fd)
        else:
            self.on_door(fd, message, fds)

    def door_of(self, fd: int) -> socket | None:
        """The door with this descriptor."""
        return self.door

    def unseat(self, seat: Seat) -> None:
        """Somebody has gone: end what was forked for it."""
        del self.seats[seat.control.fileno()]
        self.forget(seat.control)
        for pidfd in seat.children:
            kill_by(pidfd)
        self.on_left(seat)
        if not self.seats and (self._shut or not self.lasting):
            self.end()

    def forget(self, sock: socket) -> None:
        """Close one of those that are polled."""
        self._poll.unregister(sock)
        sock.close()
        self._stale = True

    def fork(self, run: Callable[[], NoReturn]) -> tuple[int, int]:
        """Fork a child that runs `run`; its pid and a pidfd (ours to keep: it is polled)."""
        parent = getpid()
        pid = at_fork.fork() if self.alone else fork()
        if pid == 0:
            try:
                process.die_with_parent(parent)
                process.lead_group()
                self.close()
                run()
            except BaseException:
                print_exc()
            finally:
                _exit(1)
        try:
            pidfd = pidfd_open(pid)
        except OSError:  # an import may have left no room for it
            kill(pid, SIGKILL)
            waitpid(pid, 0)
            raise
        self.pids[pidfd] = pid
        self._poll.register(pidfd, POLLIN)
        return pid, pidfd

    def close(self) -> None:
        """In a child: what is the parent's."""
        for pidfd in self.pids:
            close(pidfd)
        for seat in self.seats.values():
            seat.control.close()
        self.door.close()

    def answer_fork(self, seat: Seat, message: Message, fds: list[int], run: Callable[[], NoReturn]) -> int | None:
        """Fork as the host asked, tell it the outcome, and let go of what was the child's; a pidfd if there is one."""
        pidfd = None
        try:
            pid, pidfd = self.fork(run)
        except OSError as error:
            seat.send({"op": "fork_failed", "id": message["id"], "message": str(error)})
        else:
            self.belongs(pidfd, seat)
            seat.send({"op": "forked", "id": message["id"], "pid": pid}, (pidfd,))
        for fd in fds:
            close(fd)
        return pidfd

    def refuse(self, seat: Seat, message: Message, fds: list[int]) -> None:
        """Others have all the workers that there may be."""
        seat.send({"op": "full", "id": message["id"]})
        for fd in fds:
            close(fd)

    def cannot_fork(self, seat: Seat, message: Message, fds: list[int], why: object) -> None:
        """There is no child, and nothing of it is left."""
        seat.send({"op": "fork_failed", "id": message["id"], "message": str(why)})
        for fd in fds:
            close(fd)

    def give(self, seat: Seat, message: Message, fds: list[int], taker: Callable[[Seat], Seat | None]) -> None:
        """A host gives a child away, with its sockets: to whoever waits for one."""
        pidfd = next((pidfd for pidfd in seat.children if self.pids[pidfd] == message["pid"]), None)
        if pidfd is not None:
            other = taker(seat) or seat  # where nobody waits any more, it comes back
            seat.children.discard(pidfd)
            self.belongs(pidfd, other)
            other.send({**message, "op": "given"}, (pidfd, *fds))
        for fd in fds:
            close(fd)

    def belongs(self, pidfd: int, seat: Seat) -> None:
        """A child is this one's: reported to it, and ended with it."""
        self.owners[pidfd] = seat
        seat.children.add(pidfd)

    def report_exit(self, pidfd: int) -> None:
        """Bury a child and tell whose it was."""
        owner = self.owners.pop(pidfd, None)
        pid, code = self.bury(pidfd)
        if owner is not None:
            owner.children.discard(pidfd)
            owner.send({"op": "exited", "pid": pid, "code": code})

    def bury(self, pidfd: int) -> tuple[int, int]:
        """The pid and the exit code of a child that has ended."""
        self._poll.unregister(pidfd)
        close(pidfd)
        self._orphaned = self._stale = True
        pid = self.pids.pop(pidfd)
        try:
            return pid, waitstatus_to_exitcode(waitpid(pid, 0)[1])
        except ChildProcessError:  # a handler's patched SIGCHLD reaped it before us
            return pid, 0

    def _end_orphans(self) -> None:
        """What ended workers leave behind is ours now: kill it, and in the next rounds what that leaves behind."""
        self._orphaned = bool(process.kill_children(spare=(*self.pids.values(), *self._settled)))

    def end(self) -> NoReturn:
        """Kill every descendant, wait until they are gone, and exit."""
        while process.kill_children():
            try:
                waitpid(-1, 0)
            except ChildProcessError:  # they were dead by then
                pass
        _exit(0)


def from_json(text: str) -> Any:
    """The value at the beginning of a text; ValueError when there is none."""
    try:
        return scan_json(text, 0)[0]
    except StopIteration:
        raise ValueError("this is not JSON") from None


def encode(message: Message) -> bytes:
    """One message: short even where most of it is not ASCII, whole even where parts of it are not Unicode."""
    if message.get("op") == "forked":
        return (FORKED % (message["id"], message["pid"])).encode()
    return to_json(message).encode("utf-8", "backslashreplace")


def receive(sock: socket, flags: int = 0) -> tuple[Message | None, list[int]]:
    """One message and its descriptors; None when the other end has closed, or is not to be understood."""
    fds: list[int] = []
    try:
        data, fds, came = receive_with(sock, 65536, flags)
        message = from_json(data.decode())
        if isinstance(message, dict) and "op" in message:
            if came & CUT_OFF:
                for fd in fds:
                    close(fd)
                return {"op": CUT, "id": message.get("id")}, []
            return message, fds
    except (OSError, ValueError, RecursionError):  # it ended with messages of ours unread; or an import speaks there
        pass
    for fd in fds:
        close(fd)
    return None, []


def send_with(sock: socket, data: bytes, fds: Sequence[int]) -> None:
    """Send one message with these descriptors."""
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else ())


def receive_with(sock: socket, size: int, flags: int = 0) -> tuple[bytes, list[int], int]:
    """One message, its descriptors, and the flags it came with. No program that is executed has the descriptors."""
    data, more, came, _ = sock.recvmsg(size, ROOM, flags | CLOSING)
    fds: list[int] = []
    for level, kind, packed in more:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += unpack(f"{len(packed) // SIZE}i", packed)
    return data, fds, came


def kill_by(pidfd: int) -> None:
    """SIGKILL, unless it has just ended."""
    try:
        pidfd_send_signal(pidfd, SIGKILL)
    except ProcessLookupError:
        pass
