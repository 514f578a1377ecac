"""Forking without the hooks of `threading` and `logging`, in interpreters of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

SCRIPT = """
import os, sys

from runtime.worker import at_fork
import logging, random, threading

def end(fork, tell):
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        os.write(writer, tell().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(reader, 100).decode()

def about(lock=threading._active_limbo_lock):
    return "kept" if threading._active_limbo_lock is lock else "renewed"
"""


def run(script: str) -> str:
    """What a script prints."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT + script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_locks_are_renewed_by_ordinary_forks_alone() -> None:
    """Also by those of a child that was forked the other way."""
    assert run("""
print(end(at_fork.fork, about), end(os.fork, about), end(at_fork.fork, lambda: end(os.fork, about)))
""") == "kept renewed renewed"  # fmt: skip


def test_other_hooks_run() -> None:
    """Siblings draw different numbers, and whatever a handler has registered is called."""
    assert run("""
os.register_at_fork(after_in_child=lambda: os.environ.update(HOOK="ran"))
drawn = {end(at_fork.fork, lambda: f"{os.environ['HOOK']} {random.random()}") for _ in range(3)}
print(len(drawn), {each.split()[0] for each in drawn})
""") == "3 {'ran'}"  # fmt: skip


def test_a_lock_that_is_held_does_not_stay_so() -> None:
    """A thread that logs while another forks, as a handler may: the child can log."""
    assert run("""
logging._lock.acquire()
def tell():
    free = logging._lock.acquire(timeout=5)
    return f"{free} {threading.active_count()}"
print(end(os.fork, tell))
""") == "True 1"  # fmt: skip
