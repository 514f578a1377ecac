"""The base zygote: imports what a space preloads, then forks function zygotes, and workers with an import of their own.

Made by `__main__.py`; attached to hosts by `runtime/bases.py`, told what to do by `runtime/spawner.py`. What it
forks becomes a function's process in `zygote.py`. A function zygote is one for all hosts that load the same.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from os import close, getpid, set_inheritable
from socket import AF_UNIX, MSG_DONTWAIT, SOCK_SEQPACKET, send_fds, socket, socketpair
from typing import NoReturn

from . import preload, rehearsal
from .parent import Message, Parent, Seat, encode, kill_by
from .places import Places
from .zygote import run_fresh_worker, run_function_zygote


def serve_base(door_fd: int, names: Sequence[str]) -> NoReturn:
    """Import what is to be preloaded, and serve the hosts that come through the door."""
    set_inheritable(door_fd, False)
    door = socket(AF_UNIX, SOCK_SEQPACKET, fileno=door_fd)
    with suppress(BrokenPipeError):  # whoever wanted it has gone already, which `serve` finds too
        preload.preload(names, door)
    base = BaseZygote(door)
    base.lasting = not names  # what was preloaded takes memory: when no host wants it, it goes
    rehearsal.warm_up()
    gc.collect()
    gc.freeze()
    with suppress(BrokenPipeError):
        send_fds(door, [encode({"op": "ready", "pid": getpid()})], ())
    base.serve()


class Shared:
    """A function zygote, and who holds it: each hold is one load of one host."""

    def __init__(self, key: str, way: socket, faults: int) -> None:
        self.key = key
        self.way = way  # by which it is sent further control sockets
        self.faults = faults
        self.pid = self.pidfd = 0
        self.holds: dict[int, tuple[Seat, int]] = {}  # number → who, by which request
        self.left: set[int] = set()  # of the holds, those whose control socket has closed

    @property
    def unused(self) -> bool:
        return self.holds.keys() <= self.left


class BaseZygote(Parent):
    """Guarantee: a function zygote is ended once no host holds it, whatever it is doing; and not before."""

    def __init__(self, door: socket) -> None:
        super().__init__(door)
        self._shared: dict[int, Shared] = {}  # by the descriptor of the way to it
        self._by_key: dict[str, Shared] = {}  # those that a further load may be given
        self._by_pidfd: dict[int, Shared] = {}
        self._places: dict[str, Places] = {}  # of workers with an import of their own
        self._fresh: dict[int, str] = {}  # pidfd of such a worker → key
        self._number = 0

    def seat(self, control: socket, number: int = 0, host: int | None = None) -> Seat:
        seat = super().seat(control, number, host)
        seat.send({"op": "ready", "pid": getpid()})
        return seat

    def handle(self, seat: Seat, message: Message, fds: list[int]) -> None:
        # fds: [spec, output, its control socket (load) or its worker sockets (fresh), faults]
        match message["op"]:
            case "load":
                self._load(seat, message, fds)
            case "fresh":
                self._fork_fresh(seat, message, fds)
            case "release" | "stale":
                self._let_go(seat, message)
            case "give":
                self.give(seat, message, fds, self._places.get(message["key"], Places()).given)
            case _:  # "pass"
                if message["key"] in self._places:
                    self._places[message["key"]].passed(seat)

    def report_exit(self, pidfd: int) -> None:
        shared = self._by_pidfd.pop(pidfd, None)
        if shared is None:
            seat, key = self.owners.get(pidfd), self._fresh.pop(pidfd)
            super().report_exit(pidfd)
            if seat is not None:
                self._place_free(seat, key)
            return
        if shared.way.fileno() in self._shared:
            self._shut_way(shared)
        close(shared.faults)
        pid, code = self.bury(pidfd)
        for seat, id in shared.holds.values():
            seat.send({"op": "exited", "pid": pid, "id": id, "code": code})

    def close(self) -> None:
        super().close()
        for shared in self._by_pidfd.values():
            close(shared.faults)
        for shared in self._shared.values():
            shared.way.close()

    # Workers with an import of their own.

    def _fork_fresh(self, seat: Seat, message: Message, fds: list[int]) -> None:
        key = message["key"]
        places = self._places.setdefault(key, Places(key))
        if not places.take(seat, message["most"], wanted=message["wanted"]):
            self.refuse(seat, message, fds)
            return
        pidfd = self.answer_fork(seat, message, fds, lambda: run_fresh_worker(*fds))
        if pidfd is None:
            self._place_free(seat, key)
        else:
            self._fresh[pidfd] = key

    def _place_free(self, seat: Seat, key: str) -> None:
        places = self._places[key]
        places.ended(seat)
        if places.unused:
            del self._places[key]

    # Function zygotes.

    def _load(self, seat: Seat, message: Message, fds: list[int]) -> None:
        """A hold on a function zygote: on one that there is, or a new one."""
        self._number += 1
        shared = self._by_key.get(message["key"])
        if shared is None or not self._let_in(shared, seat, fds[2]):
            self._fork_zygote(seat, message, fds)
            return
        shared.holds[self._number] = seat, message["id"]
        seat.send({"op": "forked", "id": message["id"], "pid": shared.pid}, (shared.pidfd, shared.faults))
        for fd in fds:
            close(fd)

    def _let_in(self, shared: Shared, seat: Seat, control: int) -> bool:
        message = {"op": "attach", "number": self._number, "host": seat.host}
        try:
            send_fds(shared.way, [encode(message)], [control], MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _fork_zygote(self, seat: Seat, message: Message, fds: list[int]) -> None:
        spec, output, control, faults = fds
        number = self._number
        try:
            ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        except OSError as error:
            self.cannot_fork(seat, message, fds, error)
            return

        def run() -> NoReturn:
            ours.close()
            run_function_zygote(spec, output, control, faults, way=theirs, number=number, host=seat.host)

        shared = Shared(message["key"], ours, faults)
        try:
            with theirs:
                shared.pid, shared.pidfd = self.fork(run)
        except OSError as error:
            seat.send({"op": "fork_failed", "id": message["id"], "message": str(error)})
            ours.close()
            close(faults)
        else:
            shared.holds[number] = seat, message["id"]
            self._shared[ours.fileno()] = self._by_key[shared.key] = self._by_pidfd[shared.pidfd] = shared
            self.listen(ours)
            seat.send({"op": "forked", "id": message["id"], "pid": shared.pid}, (shared.pidfd,))
        for fd in (spec, output, control):
            close(fd)

    def _let_go(self, seat: Seat, message: Message) -> None:
        """A host has no more use for what it loaded by that request (`release`), or nobody is to load it (`stale`)."""
        for shared in tuple(self._by_pidfd.values()):
            for number in [each for each, hold in shared.holds.items() if hold == (seat, message["id"])]:
                if message["op"] == "stale":
                    self._close_to_others(shared)
                else:
                    del shared.holds[number]
                    self._end_unused(shared)

    def _end_unused(self, shared: Shared) -> None:
        if shared.unused:
            self._close_to_others(shared)
            kill_by(shared.pidfd)

    def _close_to_others(self, shared: Shared) -> None:
        if self._by_key.get(shared.key) is shared:
            del self._by_key[shared.key]

    def on_left(self, seat: Seat) -> None:
        for shared in tuple(self._by_pidfd.values()):
            for number, (who, _) in tuple(shared.holds.items()):
                if who is seat:
                    del shared.holds[number]
            self._end_unused(shared)
        for places in self._places.values():
            places.left(seat)

    def on_door(self, fd: int, message: Message, fds: list[int]) -> None:
        shared = self._shared.get(fd)
        if shared is None:
            super().on_door(fd, message, fds)
            return
        for unexpected in fds:
            close(unexpected)
        if message["op"] == "left":
            shared.left.add(message.get("number", 0))
        if shared.unused or message["op"] == "over":  # it ends by itself, once it has answered those on their way
            self._shut_way(shared)

    def on_shut(self, fd: int) -> None:
        if fd not in self._shared:
            super().on_shut(fd)
            return
        shared = self._shared[fd]
        self._shut_way(shared)
        kill_by(shared.pidfd)  # it has ended, or nobody can be let in any more

    def _shut_way(self, shared: Shared) -> None:
        del self._shared[shared.way.fileno()]
        self._close_to_others(shared)
        self.forget(shared.way)

    def door_of(self, fd: int) -> socket | None:
        return self._shared[fd].way if fd in self._shared else self.door
