"""What becomes of a fork of the base zygote: a function's zygote, which forks its workers, or a worker by itself.

Called by `base_zygote.py`. A function zygote imports the handler (`handler.py`), says how that went to every
host that has asked for it, and forks workers (`loop.py`, `aloop.py`) for each of them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import _exit, close, dup2, fstat, getpid, set_inheritable
from socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, recv_fds, send_fds, socket, socketpair
from typing import Any, NamedTuple, NoReturn

from . import handler, loop, output, process
from .forking import be_undisturbed, forking_is_unsafe, settle
from .parent import Message, Parent, Seat, encode, from_json, receive
from .places import Places

SPARE_AFTER_MS = 20  # so long after a fork that was asked for, nobody is likely to be kept waiting by another one
PAGE = 1024 * 1024


class Spare(NamedTuple):
    """A child that is no worker yet: it becomes one when it is sent the sockets of one."""

    pid: int
    pidfd: int
    way: socket


class FunctionZygote(Parent):
    """Forks the workers of one function, the next one ahead: a spare, so that no call has to wait for a fork.

    Guarantee: a host hears of a spare once it has become a worker, and never of one that has not. All hosts
    together have no more workers than they say there may be.
    """

    def __init__(
        self,
        door: socket,
        ready: Message,
        settle: Callable[[], None],
        work: Callable[[Sequence[int]], NoReturn],
    ) -> None:
        super().__init__(door)
        self._ready = ready  # what everybody who comes is told
        self._settle, self._work = settle, work
        self._spare: Spare | None = None
        self._places = Places()

    def handle(self, seat: Seat, message: Message, fds: list[int]) -> None:
        """Answer a host's wish for a worker with these: its output, sockets and faults."""
        if message["op"] == "pass":
            self._places.passed(seat)
            return
        if message["shared"]:  # else the host itself has started a worker ahead
            self.patience_ms = SPARE_AFTER_MS
        if not self._places.take(seat, message["most"], wanted=message["wanted"]):
            self.refuse(seat, message, fds)
            return
        if self._hand_over(seat, message, fds):
            return

        def run() -> NoReturn:
            self._settle()
            if message["ahead"]:
                rehearse()
            self._work(fds)

        if self.answer_fork(seat, message, fds, run) is None:
            self._places.ended(seat)

    def on_left(self, seat: Seat) -> None:
        self._places.left(seat)
        with suppress(OSError):  # the base zygote knows already
            send_fds(self.door, [encode({"op": "left", "number": seat.number})], ())

    def on_quiet(self) -> None:
        """Fork the next spare. One that ends by itself is not replaced before a worker is wanted again."""
        self.patience_ms = None
        if self._spare is not None:
            return
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            with theirs:
                self._spare = Spare(*self.fork(lambda: self._wait(ours, theirs)), ours)
        except OSError:  # the fork that somebody waits for may say why
            ours.close()

    def seat(self, control: socket, number: int = 0, host: int | None = None) -> Seat:
        seat = super().seat(control, number, host)
        seat.send(self._ready)
        return seat

    def close(self) -> None:
        super().close()
        if self._spare is not None:
            self._spare.way.close()

    def report_exit(self, pidfd: int) -> None:
        if self._spare is not None and self._spare.pidfd == pidfd:
            self._spare.way.close()
            self._spare = None
        owner = self.owners.get(pidfd)
        super().report_exit(pidfd)
        if owner is not None:
            self._places.ended(owner)

    def _hand_over(self, seat: Seat, message: Message, fds: list[int]) -> bool:
        """Make the spare a worker; False when there is none, or it has just ended."""
        spare = self._spare
        if spare is None:
            return False
        try:
            send_fds(spare.way, [b"\0"], fds)
        except OSError:
            return False
        self._spare = None
        self.belongs(spare.pidfd, seat)
        seat.send({"op": "forked", "id": message["id"], "pid": spare.pid}, (spare.pidfd,))
        for fd in (*fds, spare.way.detach()):
            close(fd)
        return True

    def _wait(self, ours: socket, theirs: socket) -> NoReturn:
        """In the spare: until it is wanted, or the zygote has ended."""
        ours.close()
        self._settle()
        rehearse()
        data, fds, _, _ = recv_fds(theirs, 1, 8)
        if not data:
            _exit(0)
        theirs.close()
        for fd in fds:
            set_inheritable(fd, False)
        self._work(fds)


def rehearse() -> None:
    """In a process that nobody waits for: what a first call writes to is then its own already."""
    with suppress(OSError):  # an import may have left no room for sockets
        loop.rehearse()


def read_spec(spec_fd: int) -> dict[str, Any]:
    """What the host wrote of the function: see `runtime/spawner.py`."""
    size = os.fstat(spec_fd).st_size  # pread: the descriptor's offset is shared with other processes
    spec: dict[str, Any] = from_json(b"".join(os.pread(spec_fd, PAGE, at) for at in range(0, size, PAGE)).decode())
    close(spec_fd)
    return spec


def load(spec_fd: int, output_fd: int) -> handler.Handler:
    """Turn this process into the function's own: output, environment, limits, folder; import the handler."""
    process.adopt_orphans()
    process.redirect_output(output_fd)
    output.install()
    spec = read_spec(spec_fd)
    os.environ.clear()
    os.environ.update(spec["env"])
    process.set_limits(spec["memory"], spec["open_files"])
    os.chdir(spec["folder"])
    pid = getpid()
    try:
        return handler.load(spec)
    finally:
        if getpid() != pid:  # a child that the import forked must not be a second one of us
            _exit(0)


def run_function_zygote(
    spec_fd: int, output_fd: int, control_fd: int, faults: int, *, way: socket, number: int, host: int
) -> NoReturn:
    """Import the handler, say how that went, fork workers as asked. By the way come further control sockets."""
    control = socket(AF_UNIX, SOCK_SEQPACKET, fileno=control_fd)
    output.dump_stack_on_signal(faults)
    pipe = identity(output_fd)
    try:
        function = load(spec_fd, output_fd)
        signals = be_undisturbed()
        ours = {control.fileno(), way.fileno()}
        unsafe = forking_is_unsafe(ours) if function.spec["fork"] == "auto" else None
        ready = {"op": "ready", "unsafe": unsafe, **function.describe()}
    except BaseException as error:
        refuse_all(control, way, {"op": "failed", **handler.describe_error(error)})
        _exit(1)
    gc.collect()
    gc.freeze()
    printing = [fd for fd in (1, 2) if identity(fd) == pipe]  # unless the import has put something else there

    def work(fds: Sequence[int]) -> NoReturn:
        for fd in printing:
            dup2(fds[0], fd)
        close(fds[0])
        run_worker(function, *fds[1:])

    zygote = FunctionZygote(way, ready, lambda: settle(signals), work)
    zygote.seat(control, number, host)
    zygote.serve()


def identity(fd: int) -> tuple[int, int]:
    """What makes one open file or pipe another than the next."""
    found = fstat(fd)
    return found.st_dev, found.st_ino


def refuse_all(control: socket, way: socket, failed: Message) -> None:
    """Tell every host that has asked for this import that it has failed; those too that are on their way here."""
    Seat(control).send(failed)
    send_fds(way, [encode({"op": "over"})], ())
    while (came := receive(way))[0] is not None:
        for fd in came[1]:
            with socket(fileno=fd) as late:
                Seat(late).send(failed)


def run_fresh_worker(spec_fd: int, output_fd: int, *fds: int) -> NoReturn:
    """A worker with an import of its own, for functions that must not be forked."""
    output.dump_stack_on_signal(fds[-1])
    function = load(spec_fd, output_fd)
    settle({})
    run_worker(function, *fds)


def run_worker(function: handler.Handler, channel_fd: int, *fds: int) -> NoReturn:
    """Serve calls until the host closes the way they come in. `fds`: a sync worker's queue of calls, faults."""
    *queue_fd, faults = fds
    channel = socket(AF_UNIX, SOCK_STREAM, fileno=channel_fd)
    output.dump_stack_on_signal(faults)
    if function.is_async:
        from . import aloop  # asyncio is large: other functions do without (`handler.load` has imported it)

        aloop.serve(channel, function)
    else:
        loop.serve(channel, socket(AF_UNIX, SOCK_SEQPACKET, fileno=queue_fd[0]), function)
    _exit(0)
