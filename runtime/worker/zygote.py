"""Processes that fork others: the base zygote, and one function zygote per loaded generation.

Started by `__main__.py`; told what to do by `runtime/spawner.py` over a control socket (SOCK_SEQPACKET,
one JSON object a message, file descriptors beside it). A function zygote imports the handler
(`handler.py`) and forks workers (`loop.py`, `aloop.py`). Names are bound at import, before any handler's
code runs, so that a handler that patches the standard library cannot patch us.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from json import JSONDecoder, JSONEncoder
from os import _exit, close, fork, getpid, kill, pidfd_open, set_inheritable, waitpid, waitstatus_to_exitcode
from select import POLLIN, poll
from signal import ITIMER_PROF, ITIMER_REAL, ITIMER_VIRTUAL, SIG_DFL, SIGCHLD, SIGKILL, setitimer, signal
from socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, recv_fds, send_fds, socket, socketpair
from threading import enumerate as all_threads
from threading import main_thread
from time import sleep
from traceback import print_exc
from typing import Any, NamedTuple, NoReturn

from . import handler, loop, output, process

Message = dict[str, Any]
REAP_AGAIN_MS = 5
SPARE_AFTER_MS = 20  # so long after a fork that was asked for, nobody is likely to be kept waiting by another one
THREAD_END_MS = 50
PAGE = 1024 * 1024

to_json = JSONEncoder(ensure_ascii=False).encode
from_json = JSONDecoder().decode


class Parent:
    """A zygote's loop: serves one control socket, forks children, reports and buries them.

    Guarantee: when it returns or its control socket closes, no descendant is left.
    """

    def __init__(self, control: socket) -> None:
        self.control = control
        self.pids: dict[int, int] = {}  # pidfd → pid
        process.bury(0)
        self._settled = process.children()  # an import started them: they stay until we end
        self._orphaned = False
        self.patience_ms: int | None = None  # `on_quiet` is called after that long without a message
        self._poll = poll()
        self._poll.register(control, POLLIN)
        process.adopt_orphans()

    def serve(self, handle: Callable[[Message, list[int]], None]) -> NoReturn:
        """Give each message to `handle` until the other end closes; then end everything below."""
        while True:
            events = self._poll.poll(REAP_AGAIN_MS if self._orphaned else self.patience_ms)
            if not events and not self._orphaned:
                self.on_quiet()
            for fd, _ in events:
                if fd != self.control.fileno():
                    self.report_exit(fd)
                    continue
                try:
                    data, fds, _, _ = recv_fds(self.control, 65536, 8)
                except OSError:  # the host ended with messages of ours unread
                    data, fds = b"", []
                if not data:
                    self.end()
                for inherited in fds:
                    set_inheritable(inherited, False)
                handle(from_json(data.decode()), fds)
            if self._orphaned:
                self._end_orphans()

    def on_quiet(self) -> None:
        """Nothing has come for `patience_ms`."""

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Tell the host; it being gone is noticed by `serve`."""
        try:
            send_fds(self.control, [encode(message)], fds)
        except OSError:
            self.end()

    def fork(self, run: Callable[[], NoReturn]) -> tuple[int, int]:
        """Fork a child that runs `run`; its pid and a pidfd (ours to keep: it is polled)."""
        parent = getpid()
        pid = fork()
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
        self.control.close()

    def answer_fork(self, message: Message, fds: list[int], run: Callable[[], NoReturn]) -> None:
        """Fork as the host asked, tell it the outcome, and let go of what was the child's."""
        try:
            pid, pidfd = self.fork(run)
        except OSError as error:
            self.send({"op": "fork_failed", "id": message["id"], "message": str(error)})
        else:
            self.send({"op": "forked", "id": message["id"], "pid": pid}, (pidfd,))
        for fd in fds:
            close(fd)

    def report_exit(self, pidfd: int) -> None:
        """Bury a child and tell the host."""
        pid, code = self.bury(pidfd)
        self.send({"op": "exited", "pid": pid, "code": code})

    def bury(self, pidfd: int) -> tuple[int, int]:
        """The pid and the exit code of a child that has ended."""
        self._poll.unregister(pidfd)
        close(pidfd)
        self._orphaned = True
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


class Spare(NamedTuple):
    """A child that is no worker yet: it becomes one when it is sent the sockets of one."""

    pid: int
    pidfd: int
    way: socket


class FunctionZygote(Parent):
    """Forks the workers of one function, the next one ahead: a spare, so that no call has to wait for a fork.

    Guarantee: the host hears of a spare once it has become a worker, and never of one that has not.
    """

    def __init__(self, control: socket, settle: Callable[[], None], work: Callable[[list[int]], NoReturn]) -> None:
        super().__init__(control)
        self._settle, self._work = settle, work
        self._spare: Spare | None = None

    def fork_worker(self, message: Message, fds: list[int]) -> None:
        """Answer the host's wish for a worker on `fds`."""
        self.patience_ms = SPARE_AFTER_MS
        if self._hand_over(message, fds):
            return

        def run() -> NoReturn:
            self._settle()
            self._work(fds)

        self.answer_fork(message, fds, run)

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

    def close(self) -> None:
        super().close()
        if self._spare is not None:
            self._spare.way.close()

    def report_exit(self, pidfd: int) -> None:
        if self._spare is None or self._spare.pidfd != pidfd:
            super().report_exit(pidfd)
            return
        self._spare.way.close()
        self._spare = None
        self.bury(pidfd)

    def _hand_over(self, message: Message, fds: list[int]) -> bool:
        """Make the spare a worker; False when there is none, or it has just ended."""
        spare = self._spare
        if spare is None:
            return False
        try:
            send_fds(spare.way, [b"\0"], fds)
        except OSError:
            return False
        self._spare = None
        self.send({"op": "forked", "id": message["id"], "pid": spare.pid}, (spare.pidfd,))
        for fd in (*fds, spare.way.detach()):
            close(fd)
        return True

    def _wait(self, ours: socket, theirs: socket) -> NoReturn:
        """In the spare: until it is wanted, or the zygote has ended."""
        ours.close()
        self._settle()
        data, fds, _, _ = recv_fds(theirs, 1, 8)
        if not data:
            _exit(0)
        theirs.close()
        for fd in fds:
            set_inheritable(fd, False)
        self._work(fds)


def encode(message: Message) -> bytes:
    """One message: short even where most of it is not ASCII, whole even where parts of it are not Unicode."""
    return to_json(message).encode("utf-8", "backslashreplace")


def serve_base(control_fd: int) -> NoReturn:
    """The base zygote: nothing of the user's is in it. Forks function zygotes and fresh workers."""
    set_inheritable(control_fd, False)
    parent = Parent(socket(AF_UNIX, SOCK_SEQPACKET, fileno=control_fd))
    loop.rehearse()
    gc.collect()
    gc.freeze()

    def handle(message: Message, fds: list[int]) -> None:
        # fds: [spec, output, its control socket (load) or its worker sockets (fresh), faults]
        if message["op"] == "load":
            parent.answer_fork(message, fds, lambda: run_function_zygote(*fds))
        else:
            parent.answer_fork(message, fds, lambda: run_fresh_worker(*fds))

    parent.send({"op": "ready", "pid": getpid()})
    parent.serve(handle)


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


def run_function_zygote(spec_fd: int, output_fd: int, control_fd: int, faults: int) -> NoReturn:
    """Import the handler, say how that went, fork workers as asked."""
    control = socket(AF_UNIX, SOCK_SEQPACKET, fileno=control_fd)
    output.dump_stack_on_signal(faults)
    try:
        function = load(spec_fd, output_fd)
        on_child_end = be_undisturbed()
        unsafe = forking_is_unsafe(control) if function.spec["fork"] == "auto" else None
        ready = {"op": "ready", "unsafe": unsafe, **function.describe()}
    except BaseException as error:
        send_fds(control, [encode({"op": "failed", **handler.describe_error(error)})], [])
        _exit(1)
    gc.collect()
    gc.freeze()

    def settle_worker() -> None:
        if on_child_end is not None:
            signal(SIGCHLD, on_child_end)
        settle()

    parent = FunctionZygote(control, settle_worker, lambda fds: run_worker(function, *fds))
    parent.send(ready)
    parent.serve(parent.fork_worker)


def be_undisturbed() -> Any:
    """Undo what an import may have set up that would hinder a zygote; the handler of SIGCHLD, for the workers."""
    for timer in (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF):
        setitimer(timer, 0)  # a forked worker has none of them anyway
    process.fill_standard_fds()
    return signal(SIGCHLD, SIG_DFL)


def forking_is_unsafe(control: socket) -> str | None:
    """Why this process must not be forked to make workers, or None.

    Threads that survive in the parent across a fork are missing in the child, with their locks held
    (OpenBLAS and others end theirs before a fork: so one is tried). Open sockets would be shared.
    """
    if process.threads() > 1:
        pid = fork()
        if pid == 0:
            _exit(0)
        waitpid(pid, 0)
    names = [thread.name for thread in all_threads() if thread is not main_thread()]
    for _ in range(0 if names else THREAD_END_MS):  # a thread that was joined is still there for a moment
        if process.threads() == 1:
            break
        sleep(0.001)
    if process.threads() > 1:
        return f"importing it left threads running ({', '.join(names) or 'not Python threads'})"
    if process.open_sockets({control.fileno()}):
        return "importing it left sockets open, which forked workers would share"
    return None


def run_fresh_worker(spec_fd: int, output_fd: int, *fds: int) -> NoReturn:
    """A worker with an import of its own, for functions that must not be forked."""
    output.dump_stack_on_signal(fds[-1])
    function = load(spec_fd, output_fd)
    settle()
    run_worker(function, *fds)


def settle() -> None:
    """What a worker does before it has any sockets. (The `random` module sees to itself.)"""
    process.adopt_orphans()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # so that siblings draw other numbers


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
