"""Owner: alive as long as its process holds its lock, and dead at once when it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.journal import owners
from runtime.journal.owners import EXPIRY, Owner, Turn


@pytest.fixture
def asker(tmp_path: Path) -> Owner:
    owner = Owner(tmp_path / "owners")
    owner.folder.mkdir()
    return owner


def alive(asker: Owner, owner: Owner, *, expires: float = EXPIRY, now: float = 0.0) -> bool:
    return asker.is_alive(owner.id, owner.boot, expires, now)


def test_it_lives_until_it_ends(asker: Owner) -> None:
    """Whatever the clock says."""
    owner = Owner(asker.folder)
    owner.begin()
    long_after = alive(asker, owner, now=1e9)
    owner.end(forget=False)

    assert long_after
    assert not alive(asker, owner)
    assert asker.is_alive(asker.id, asker.boot, 0.0, 1e9)


def test_without_a_lock_the_expiry_decides(asker: Owner) -> None:
    """As when somebody deleted the file of one that lives."""
    owner = Owner(asker.folder)

    assert alive(asker, owner, now=EXPIRY - 1)
    assert not alive(asker, owner, now=EXPIRY)


def test_one_of_another_run_of_the_machine_is_dead(asker: Owner) -> None:
    """And one that has said that it ended."""
    owner = Owner(asker.folder)
    owner.begin()

    assert not asker.is_alive(owner.id, "another boot", EXPIRY, 0.0)
    assert not alive(asker, owner, expires=0.0)
    owner.end(forget=True)


def test_the_lock_ends_with_the_process(asker: Owner) -> None:
    """However it ends; what it started may live on."""
    code = (
        "import os, sys, subprocess; from pathlib import Path; from runtime.journal.owners import Owner\n"
        "owner = Owner(Path(sys.argv[1])); owner.begin()\n"
        "child = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL)\n"
        "print(owner.id, child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(asker.folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        id, child = map(int, process.stdout.readline().split())
        before = asker.is_alive(id, asker.boot, EXPIRY, 0.0)
        process.kill()
        process.wait()
        after = asker.is_alive(id, asker.boot, EXPIRY, 0.0)
    subprocess.run(["kill", str(child)], check=True)

    assert (before, after) == (True, False)


def test_locks_of_the_dead_are_tidied_away(asker: Owner) -> None:
    """Of those that nothing is known of any more; never of the living."""
    living, dead, known = (Owner(asker.folder) for _ in range(3))
    for owner in (living, dead, known):
        owner.begin()
    dead.end(forget=False)
    known.end(forget=False)
    (asker.folder / "notes.lock").touch()
    asker.tidy({known.id})

    assert {path.stem for path in asker.folder.iterdir()} == {str(living.id), str(known.id), "notes"}
    living.end(forget=True)
    assert {path.stem for path in asker.folder.iterdir()} == {str(known.id), "notes"}


def test_a_lock_that_was_deleted_is_made_again(asker: Owner) -> None:
    """By the owner, when it begins again."""
    owner = Owner(asker.folder)
    owner.begin()
    owner.path(owner.id).unlink()
    owner.begin()

    assert alive(asker, owner, now=1e9)
    owner.end(forget=True)


def test_one_writes_at_a_time(asker: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile waits; whoever dies leaves the turn to the next."""
    monkeypatch.setattr(owners, "TURN_SECONDS", 20.0)
    turns = [Turn(asker.folder) for _ in range(2)]
    entered, events = threading.Event(), []

    def second() -> None:
        entered.set()
        with turns[1]:
            events.append("second")

    thread = threading.Thread(target=second)
    with turns[0]:
        thread.start()
        entered.wait(20)
        events.append("first")
    thread.join(20)
    for turn in turns:
        turn.close()
        turn.close()

    assert events == ["first", "second"]


def test_where_there_are_no_turns_nobody_waits(tmp_path: Path) -> None:
    """They are there for speed alone: without a folder it goes on all the same."""
    turn = Turn(tmp_path / "nowhere")
    with turn:
        pass
    (tmp_path / "nowhere").mkdir()
    with turn:
        made = turn._path.exists()
    turn.close()

    assert made


def be_impatient(patch: pytest.MonkeyPatch) -> None:
    """Whoever has the turn at two looks has had it for long."""
    for name, seconds in (("TURN_SECONDS", 0.01), ("LOOK_EVERY", 0.0), ("HELD_FOR_LONG", 0.0)):
        patch.setattr(owners, name, seconds)


def test_who_is_stopped_in_its_turn_holds_nobody_up(
    asker: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next goes on without, having waited once, and says who it is if it stays so; until it is given back."""
    be_impatient(monkeypatch)
    stopped, turn = Turn(asker.folder), Turn(asker.folder)
    patience = []
    with stopped:
        for _ in range(2):
            with turn:
                patience.append(turn._patience)
    with turn:
        patience.append(turn._patience)
    for each in (stopped, turn):
        each.close()

    assert patience == [0.0, 0.0, 0.01]
    assert [f"process {os.getpid()} (" in record.getMessage() for record in caplog.records] == [True]


def test_who_has_the_turn_often_is_not_complained_of(
    asker: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are several that work, of whom one or another has it whenever somebody looks."""
    be_impatient(monkeypatch)
    holders = iter(["process 1", "process 2"] * 2)
    monkeypatch.setattr(owners, "holder_of", lambda path: next(holders))
    one, turn = Turn(asker.folder), Turn(asker.folder)
    with one:
        for _ in range(4):
            with turn:
                pass
    for each in (one, turn):
        each.close()

    assert caplog.records == []
