"""What a process asks of the kernel about itself and its children, mostly tried in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.worker import process

ROOT = Path(__file__).parents[3]
PRELUDE = """
import os, resource, signal, sys, time
from runtime.worker import process

def forked(run):
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    return pid

def sleep():
    time.sleep(1000)

def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def dead(*pids):
    while any(process._stat(pid)[0] != "Z" for pid in pids):
        time.sleep(0.001)
"""


def run(script: str) -> list[str]:
    """The words that a script prints, run in a process of its own."""
    text = PRELUDE + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def child() -> Iterator[int]:
    """A child of this process."""
    with subprocess.Popen(["sleep", "1000"]) as started:
        yield started.pid
        started.kill()


def test_children_are_listed(child: int) -> None:
    """The oldest first."""
    with subprocess.Popen(["sleep", "1000"]) as second:
        found = process.children()
        second.kill()

    assert [pid for pid in found if pid in (child, second.pid)] == [child, second.pid]


def test_children_are_found_where_the_kernel_does_not_list_them(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By looking at all processes there are."""
    read = process._read

    def without_list(path: str) -> str:
        if path.endswith("/children"):
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(process, "_read", without_list)

    assert child in process.children()
    assert os.getppid() not in process.children()


def test_killing_children_spares_some() -> None:
    """What is killed is reaped by and by; what is spared lives."""
    assert run("""
        spared, *others = [forked(sleep) for _ in range(4)]
        print(sorted(process.kill_children(spare=[spared])) == sorted(others))
        while process.kill_children(spare=[spared]):
            time.sleep(0.001)
        print(process.children() == [spared])
        os.kill(spared, 9)
    """) == ["True", "True"]


def test_children_of_children_are_killed_in_the_next_round() -> None:
    """For a process that adopts orphans: until there is nothing left."""
    assert run("""
        process.adopt_orphans()
        reader, writer = os.pipe()

        def chain(depth):
            os.write(writer, b"x")
            if depth:
                forked(lambda: chain(depth - 1))
            sleep()

        forked(lambda: chain(4))
        for _ in range(5):
            os.read(reader, 1)
        rounds = 0
        while process.kill_children():
            rounds += 1
        os.close(writer)
        print(rounds >= 5, os.read(reader, 1) == b"", process.children())
    """) == ["True", "True", "[]"]


def test_the_longest_dead_are_buried() -> None:
    """As many as are too many; the living are let be."""
    assert run("""
        living, *short = [forked(sleep)] + [forked(lambda: None) for _ in range(6)]
        dead(*short)
        process.bury(2)
        print(process.children() == [living, *short[-2:]])
        process.bury(2)
        print(process.children() == [living, *short[-2:]])
        process.bury(0)
        print(process.children() == [living])
        os.kill(living, 9)
    """) == ["True", "True", "True"]


def test_a_process_dies_with_its_parent() -> None:
    """However the parent dies, and at once."""
    assert run("""
        process.adopt_orphans()
        reader, writer = os.pipe()

        def parent():
            me = os.getpid()

            def tied():
                process.die_with_parent(me)
                os.write(writer, b"%d " % os.getpid())
                sleep()

            forked(tied)
            sleep()

        pid = forked(parent)
        tied = int(os.read(reader, 100))
        os.kill(pid, 9)
        end_of(pid)
        print(end_of(tied))
    """) == ["-9"]


def test_a_process_whose_parent_is_gone_already_ends() -> None:
    """With a status of its own."""
    assert run("print(end_of(forked(lambda: process.die_with_parent(1))))") == [str(process.EXIT_ORPHANED)]


def test_a_signal_to_the_group_stays_in_it() -> None:
    """The parent and its other children are not in it; leading it again is no error."""
    assert run("""
        def lead():
            process.lead_group()
            process.lead_group()
            os.kill(0, signal.SIGTERM)
            sleep()

        print(end_of(forked(lead)))
    """) == ["-15"]


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2], [0, 2], []])
def test_standard_descriptors_are_filled(closed: list[int]) -> None:
    """Those that are closed become /dev/null; others stay what they were, and none is opened beside them."""
    assert run(f"""
        keep = os.dup(1)
        before = [os.fstat(fd) for fd in range(3)]
        for fd in {closed}:
            os.close(fd)
        process.fill_standard_fds()
        null = os.stat(os.devnull)
        now = [os.fstat(fd) for fd in range(3)]
        right = [now[i].st_rdev == null.st_rdev if i in {closed} else now[i] == before[i] for i in range(3)]
        os.write(keep, (str(right) + " " + str(os.get_inheritable(1)) + " " + str(os.dup(1) - keep)).encode())
    """) == ["[True,", "True,", "True]", "True", "1"]


def test_limits() -> None:
    """No core files, the given number of open files, the given memory, and the out-of-memory killer's first choice."""
    assert run("""
        process.set_limits(300_000_000, 77)
        print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        print(resource.getrlimit(resource.RLIMIT_DATA)[0], open("/proc/self/oom_score_adj").read())
        try:
            bytearray(400_000_000)
        except MemoryError:
            print("refused")
    """) == ["(0,", "0)", "77", "300000000", "900", "refused"]


def test_no_memory_limit() -> None:
    """None leaves memory as it is."""
    assert run("""
        process.set_limits(None, 77)
        print(resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)
    """) == [str(os.sysconf("SC_PAGESIZE") > 0)]


def test_the_host_may_open_as_many_files_as_it_may() -> None:
    """The soft limit becomes the hard one; what it was is remembered."""
    assert run("""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        process.raise_open_files()
        print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard), process.OPEN_FILES > 0)
    """) == ["True", "True"]


def test_threads_are_counted() -> None:
    """All of the operating system's, also those that Python does not know."""
    before = process.threads()
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    during = process.threads()
    release.set()
    thread.join()

    assert during == before + 1


def test_sockets_are_counted() -> None:
    """But for our own."""
    before = process.open_sockets([])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert process.open_sockets([]) == before + 2
        assert process.open_sockets([ours.fileno()]) == before + 1


def test_output_is_redirected() -> None:
    """Standard input is empty; output and errors arrive at the other end; the descriptor itself is closed."""
    assert run("""
        reader, writer = os.pipe()
        keep = os.dup(1)
        process.redirect_output(writer)
        os.write(1, b"out ")
        os.write(2, b"err ")
        try:
            os.write(writer, b"no")
        except OSError:
            os.write(1, b"closed ")
        os.write(keep, os.read(reader, 100) + b"<" + os.read(0, 1) + b">")
    """) == ["out", "err", "closed", "<>"]


def test_no_signal_is_sent_to_who_is_gone() -> None:
    """A child that has ended and was reaped in between is no error."""
    assert run("""
        pid = forked(lambda: None)
        dead(pid)
        print(process.kill_children() == [pid], process.kill_children())
    """) == ["True", "[]"]


def test_the_signal_for_stuck_processes_is_nobody_elses() -> None:
    """It is a real-time signal: what a handler might wait for are others."""
    from runtime.worker.output import STACK_SIGNAL

    assert STACK_SIGNAL not in {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD}
