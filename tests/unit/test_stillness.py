"""stillness: who is writing a file, how long that is waited for, git's lock."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import stillness


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that nobody has written for a minute, as far as `time.time` is asked."""
    path = tmp_path / "file.py"
    path.write_text("")
    return path


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that ages are reckoned by, which stands at the last change of a file; naps move it, too."""
    moved = [0.0]
    monkeypatch.setattr(time, "time", lambda: max(each.stat().st_ctime for each in tmp_path.iterdir()) + moved[0])

    def move(seconds: float) -> None:
        moved[0] += seconds + 0.001  # an age is a difference of large floats

    monkeypatch.setattr(time, "sleep", move)
    return move


def is_open(path: Path) -> bool | None:
    return stillness.is_open_for_writing(str(path))


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_who_has_a_file_open_for_writing_is_noticed(file: Path, mode: str) -> None:
    """In this process or another, until it is closed; reading does not count."""
    with file.open(mode):
        assert is_open(file) is True
    with file.open():
        assert is_open(file) is False
    script = f"import sys; f = open({str(file)!r}, {mode!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_open(file) is True
        process.communicate()
    assert is_open(file) is False


def test_where_it_cannot_be_told_it_is_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such file, no leases on this file system, no leases on this system at all."""
    assert is_open(file.parent / "none") is None
    assert is_open(file.parent) is None

    def refuse(*_: object) -> int:
        raise OSError(22, "no leases here")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert is_open(file) is None
    monkeypatch.undo()
    monkeypatch.delattr(fcntl, "F_SETLEASE")
    assert is_open(file) is None


def test_asking_disturbs_no_writer(file: Path) -> None:
    """One who opens the file just then neither fails nor waits for ever, and no signal ends anybody."""
    done = threading.Event()
    assert signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, signal.SIG_IGN)

    def ask() -> None:
        while not done.is_set():
            is_open(file)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        script = f"for i in range(3000):\n  with open({str(file)!r}, 'w') as f: f.write(str(i))"
        subprocess.run([sys.executable, "-c", script], check=True)
    finally:
        done.set()
        asking.join()
    assert file.read_text() == "2999"


def test_a_file_is_left_alone_for_a_moment_after_it_was_saved(file: Path, later: Callable[[float], None]) -> None:
    """For QUIET, from the last change of any kind on."""
    assert 0 < stillness.unrest(str(file)) <= stillness.QUIET
    later(stillness.QUIET)
    assert stillness.unrest(str(file)) == 0
    assert stillness.unrest(str(file.parent / "none")) == 0
    later(-60)
    assert stillness.unrest(str(file)) == 0  # saved in the future: clocks differ


def test_a_file_that_is_being_written_is_waited_for(file: Path, later: Callable[[float], None]) -> None:
    """Until it is closed; not for one who has stopped writing."""
    with file.open("w"):
        later(stillness.QUIET)
        assert stillness.unrest(str(file)) == stillness.QUIET
        later(stillness.STALLED)
        assert stillness.unrest(str(file)) == 0


def test_settle_waits_for_all(file: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the youngest, and for who is still writing."""
    other = file.with_name("other.py")
    writer = other.open("w")
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        later(seconds)
        if len(naps) == 3:
            writer.close()

    monkeypatch.setattr(time, "sleep", sleep)
    stillness.settle([str(file), str(other)])
    assert len(naps) == 3
    stillness.settle([])
    assert len(naps) == 3


def test_settle_gives_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file that is written on and on."""
    naps: list[float] = []

    def write_on(seconds: float) -> None:
        naps.append(seconds)
        file.write_text("more")

    monkeypatch.setattr(time, "sleep", write_on)
    monkeypatch.setattr(time, "time", lambda: file.stat().st_ctime)
    monkeypatch.setattr(time, "monotonic", lambda: len(naps) * 1.0)
    stillness.settle([str(file)])
    assert len(naps) == stillness.LONGEST


# git


class Lock:
    """A repository's lock, and the naps of who waits for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ".git" / "index.lock"
        self.path.parent.mkdir()
        self.naps: list[float] = []

    def wait(self, then: Callable[[int], object] = lambda _: None, *, over: bool = False) -> int:
        """Wait for the operation's end, doing `then` at each nap; how many naps it took."""

        def is_over(seconds: float) -> bool:
            self.naps.append(seconds)
            then(len(self.naps))
            return over

        stillness.await_git([self.folder / "deep" / "er"], is_over)
        return len(self.naps)


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path)


def test_a_git_operation_is_waited_for(lock: Lock) -> None:
    """However old its lock is, as long as git has it open; not at all where there is none."""
    assert lock.wait() == 0
    with lock.path.open("w"):
        os.utime(lock.path, (0, 0))
        assert lock.wait(lambda count: count == 5 and lock.path.unlink()) == 5


def test_a_lock_that_git_has_closed_is_waited_for_only_for_a_moment(lock: Lock, later: Callable[[float], None]) -> None:
    """It is about to go, or git waits for somebody."""
    lock.path.touch()
    naps = lock.wait(lambda _: later(0.1))
    assert naps == pytest.approx(stillness.CLOSED_LOCK / 0.1, abs=1)


def test_a_lock_of_which_nothing_is_known_is_waited_for_longer(
    lock: Lock, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system does not tell who has it open."""
    lock.path.touch()
    monkeypatch.setattr(stillness, "is_open_for_writing", lambda _: None)
    naps = lock.wait(lambda _: later(0.1))
    assert naps == pytest.approx(stillness.LOCK_WAIT / 0.1, abs=1)


def test_nothing_is_waited_for_for_ever(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither git, nor when told that it does not matter any more."""
    with lock.path.open("w"):
        assert lock.wait(over=True) == 1
        lock.naps.clear()
        monkeypatch.setattr(time, "monotonic", lambda: float(len(lock.naps)))
        assert lock.wait() == stillness.LONG_LOCK


def test_the_lock_is_that_of_the_repository_around(tmp_path: Path) -> None:
    """Of a worktree or submodule, too, whose .git is a file; of what a link leads to."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    git = tmp_path / ".git"
    git.write_text("gitdir: /elsewhere/worktrees/a\n")
    assert stillness.git_lock(inner) == "/elsewhere/worktrees/a/index.lock"
    git.write_text("gitdir: ../elsewhere\n")
    assert stillness.git_lock(inner) == str(tmp_path / "../elsewhere/index.lock")
    git.unlink()
    git.mkdir()
    assert stillness.git_lock(inner) == str(git / "index.lock")
    (inner / ".git").mkdir()
    (tmp_path / "link").symlink_to(inner)
    assert stillness.git_lock(tmp_path / "link") == str(inner / ".git" / "index.lock")
