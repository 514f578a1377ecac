"""What becomes of a fork of the base zygote: a function's zygote, which forks its workers, or a worker by itself.

Called by `base_zygote.py`. A function zygote imports the handler (`handler.py`), says how that went to every
host that has asked for it, and forks workers (`loop.py`, `aloop.py`) for each of them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import _exit, close, dup2, fstat, getpid
from socket import AF_UNIX, MSG_CTRUNC, SOCK_SEQPACKET, SOCK_STREAM, send_fds, socket, socketpair
from typing import Any, NamedTuple, NoReturn

from . import handler, loop, output, process, rehearsal
from .forking import be_undisturbed, calm_collector, forking_is_unsafe, settle
from .parent import Message, Parent, Seat, encode, from_json, receive, receive_with
from .places import Places

SPARE_AFTER_MS = 20  # so long after a fork that was asked for, nobody is likely to be kept waiting by another one
PAGE = 1024 * 1024
CUT_SHORT = int(MSG_CTRUNC)


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
        rehearse: Callable[[], None],
        work: Callable[[Sequence[int]], NoReturn],
    ) -> None:
        super().__init__(door)
        self._ready = ready  # what everybody who comes is told
        self._settle, self._rehearse, self._work = settle, rehearse, work
        self._spare: Spare | None = None
        self._places = Places()

    def handle(self, seat: Seat, message: Message, fds: list[int]) -> None:
        """Answer a host's wish for a worker with these: its output, sockets and faults."""
        if message["op"] == "pass":
            self._places.passed(seat)
            return
        if message["op"] == "give":
            self.give(seat, message, fds, self._places.given)
            return
        if message["op"] == "expect":
            self.patience_ms = SPARE_AFTER_MS
            return
        if not self._places.take(seat, message["most"], wanted=message["wanted"]):
            self.refuse(seat, message, fds)
            return
        if self._hand_over(seat, message, fds):
            return

        def run() -> NoReturn:
            self._settle()
            if message["ahead"]:
                self._rehearse()
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
        with suppress(OSError):  # the fork that somebody waits for may say why
            ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
            try:
                with theirs:
                    self._spare = Spare(*self.fork(lambda: self._wait(ours, theirs)), ours)
            except OSError:
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
        self._rehearse()
        data, fds, flags = receive_with(theirs, 1)
        if not data or flags & CUT_SHORT:  # an import may have left no room for all of them
            _exit(1 if data else 0)
        theirs.close()
        self._work(fds)


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
        with calm_collector():
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
        worker = loop.unconnected(function)
        ready = {"op": "ready", "unsafe": unsafe, **function.describe()}
    except BaseException as error:
        refuse_all(control, way, {"op": "failed", **handler.describe_error(error)})
        _exit(1)
    printing = [fd for fd in (1, 2) if identity(fd) == pipe]  # unless the import has put something else there
    output.dump_stack_on_signal(faults)  # once more: the import may have done something else about signals
    gc.collect()
    gc.freeze()

    def rehearse() -> None:
        with suppress(OSError):  # an import may have left no room for sockets
            rehearsal.rehearse(worker)

    def work(fds: Sequence[int]) -> NoReturn:
        out, *channel, stack = fds
        for fd in printing:
            dup2(out, fd)
        dup2(stack, faults, False)
        close(out)
        close(stack)
        run_worker(worker, channel)

    zygote = FunctionZygote(way, ready, lambda: settle(signals), rehearse, work)
    zygote.alone = process.threads() == 1
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
    *channel, faults = fds
    output.dump_stack_on_signal(faults)
    function = load(spec_fd, output_fd)
    settle({})
    output.dump_stack_on_signal(faults)  # once more: the import may have done something else about signals
    run_worker(loop.unconnected(function), channel)


def run_worker(worker: loop.SyncWorker, fds: Sequence[int]) -> NoReturn:
    """Serve calls until the host closes the way they come in. `fds`: the channel, a sync worker's queue of calls."""
    if worker.handler.is_async:
        from . import aloop  # asyncio is large: other functions do without (`handler.load` has imported it)

        worker.let_go()
        aloop.serve(socket(AF_UNIX, SOCK_STREAM, fileno=fds[0]), worker.handler)
    else:
        worker.connect(*fds)
        loop.serve(worker)
    _exit(0)
