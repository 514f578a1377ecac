"""A journal that cannot be used: a clear error, nothing acknowledged is lost, and it goes on when the cause is gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import JournalError
from runtime.journal import Query, files, schema
from runtime.journal.owners import EXPIRY
from runtime.journal.sqlite import SQLiteJournal
from runtime.journal.writer import REOPEN_SECONDS
from tests.contract.journal_stores import BAD, OK, F, G, H, SQLiteStore, submission

pytestmark = pytest.mark.anyio
ROOT = os.geteuid() == 0


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path)


async def refused(journal: SQLiteJournal, match: str, id: int = 99) -> JournalError:
    """The error of an append."""
    with pytest.raises(JournalError, match=match) as caught:
        await journal.append(submission(id))
    return caught.value


async def test_a_damaged_file(store: SQLiteStore) -> None:
    """`open` says what is wrong; once the file is away the same journal works."""
    store.path.parent.mkdir()
    store.path.write_bytes(b"this is no database, whatever its name says " * 100)
    journal = store.journal()
    try:
        with pytest.raises(JournalError, match=r"journal\.db .*not a database.* Move it away"):
            await journal.open()
        at_once = await refused(journal, "not a database")
        store.path.unlink()
        too_early = await refused(journal, "not a database")
        store.clock.advance(REOPEN_SECONDS / 2)
        still = await refused(journal, "not a database")  # asking often does not put the next attempt off
        store.clock.advance(REOPEN_SECONDS / 2)
        await journal.append(submission(1))

        assert still.message == at_once.message
        assert (at_once.status, at_once.retryable, at_once.details) == (503, True, {"cause": "SQLITE_NOTADB"})
        assert at_once is not too_early
        assert await journal.waiting() == {F: 1}
    finally:
        await journal.close()


@pytest.mark.parametrize("before", ["a folder", "a journal"])
async def test_only_its_owner_may_read_it(store: SQLiteStore, before: str) -> None:
    """Also in a folder that somebody else has made, and where an earlier version has made it."""
    store.path.parent.mkdir(mode=0o755, exist_ok=True)
    store.path.parent.chmod(0o755)
    if before == "a journal":
        store.path.touch(mode=0o644)
    journal = store.journal()
    await journal.open()
    await journal.append(submission(1))

    files = [path for path in store.path.parent.iterdir() if path.name.startswith(store.path.name)]
    assert len(files) == 3
    assert not any(path.stat().st_mode & 0o077 for path in files)
    await journal.close()


async def test_damage_that_comes_later(store: SQLiteStore) -> None:
    """Pages that turn out to be garbage are an error that says so, until the file is restored."""
    journal = store.journal()
    await journal.open()
    await asyncio.gather(*(journal.append(submission(id)) for id in range(1, 500)))
    await journal.close()
    sound = store.path.read_bytes()
    store.path.write_bytes(sound[:4096] + b"\xff" * (len(sound) - 4096))
    with pytest.raises(JournalError, match="damaged"):
        await journal.open()
    with pytest.raises(JournalError, match="damaged"):
        await journal.get(1)
    store.path.write_bytes(sound)
    store.clock.advance(REOPEN_SECONDS)
    waiting, entry = await journal.waiting(), await journal.get(1)
    await journal.close()

    assert waiting == {F: 499}
    assert entry is not None


async def test_a_row_that_makes_no_sense(store: SQLiteStore) -> None:
    """It is an error for whoever reads it, and for nobody else."""
    journal = store.journal()
    await journal.open()
    await journal.append(submission(1))
    await journal.append(submission(2))
    with closing(sqlite3.connect(store.path)) as other, other:
        other.execute("UPDATE calls SET state = 77 WHERE id = 1")
    bad, good, too_large = await asyncio.gather(*(journal.get(id) for id in (1, 2, 2**70)), return_exceptions=True)
    await journal.close()

    assert isinstance(bad, JournalError)
    assert not isinstance(good, BaseException)
    assert isinstance(too_large, JournalError)


async def test_a_newer_version_is_refused(store: SQLiteStore) -> None:
    """With both versions named, and the file left as it is."""
    store.path.parent.mkdir()
    newer = len(schema.MIGRATIONS) + 1
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newer}")
        connection.execute("CREATE TABLE later (x)")
    journal = store.journal()
    with pytest.raises(JournalError, match=f"newer version .*version {newer}.*Update"):
        await journal.open()
    await journal.close()
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("later",)]


async def test_a_database_of_others_is_refused(store: SQLiteStore) -> None:
    """Whatever it is, it stays as it was."""
    store.path.parent.mkdir()
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    journal = store.journal()
    with pytest.raises(JournalError, match="not a journal of this program"):
        await journal.open()
    await journal.close()
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_locked_by_another_process(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some patience, an error that says so; when the lock is gone, all goes on."""
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.05)
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1))
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            journal.note(1, "log", {"text": "kept"})
            error = await refused(journal, "locked.*Find that process")
            reading = await journal.get(1)
        await journal.append(submission(2))
        kinds = [event.kind for event in await journal.events(1)]
    finally:
        await journal.close()

    assert error.details == {"cause": "SQLITE_BUSY"}
    assert reading is not None
    assert kinds == ["state", "log"]


STOPPED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
"""


async def test_a_process_that_is_stopped_while_it_writes(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be written meanwhile; the log says which it is and what to do, once, and nobody waits long again."""
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(files, "HURRIED_SECONDS", 0.0)
    journal = store.journal()
    await journal.open()
    try:
        process = subprocess.Popen([sys.executable, "-c", STOPPED, store.path])
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for id in (1, 2):
            await refused(journal, "locked", id)
        hurried = journal._writer._locked_out
        process.send_signal(signal.SIGCONT)
        process.wait()
        await journal.append(submission(3))
        after = journal._writer._locked_out
    finally:
        await journal.close()
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    assert f"process {process.pid} (" in line
    assert f"which is stopped: `kill -CONT {process.pid}`" in line
    assert (hurried, after) == (True, False)


async def test_opened_by_many_at_the_same_moment(store: SQLiteStore) -> None:
    """As the processes of one host do it: where there is no file yet, all of them have it in the end."""
    journals = [store.journal() for _ in range(8)]
    try:
        await asyncio.gather(*(journal.open() for journal in journals))
        await asyncio.gather(*(journal.append(submission(id)) for id, journal in enumerate(journals, 1)))
        found = await journals[0].find(Query())
    finally:
        await asyncio.gather(*(journal.close() for journal in journals))

    assert len(found) == 8


@pytest.mark.skipif(ROOT, reason="root may write everything")
async def test_a_read_only_folder(store: SQLiteStore) -> None:
    """An error at `open`, and no harm done."""
    store.path.parent.mkdir()
    store.path.parent.chmod(0o500)
    journal = store.journal()
    try:
        with pytest.raises(JournalError, match=r"journal\.db"):
            await journal.open()
    finally:
        store.path.parent.chmod(0o700)
        await journal.close()


async def test_a_read_only_file(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what to do; later calls try again, and succeed when it may be written."""
    journal = store.journal()
    await journal.open()
    await journal.append(submission(1))
    await journal.close()
    connect = sqlite3.connect  # a stand-in for permissions, which mean nothing to root

    def read_only(path: Path, **wanted: object) -> sqlite3.Connection:
        return connect(f"{path.as_uri()}?mode=ro", uri=True, **wanted)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(files.sqlite3, "connect", read_only)
    with pytest.raises(JournalError, match="writable"):
        await journal.open()
    monkeypatch.undo()
    store.clock.advance(REOPEN_SECONDS)
    await journal.append(submission(2))
    waiting = await journal.waiting()
    await journal.close()

    assert waiting == {F: 2}


async def test_no_folder_can_be_made(store: SQLiteStore) -> None:
    """A file where the folder should be."""
    store.path.parent.write_text("in the way")
    journal = store.journal()
    with pytest.raises(JournalError, match=r"journal\.db"):
        await journal.open()
    await journal.close()


@pytest.mark.parametrize("what", ["journal.db", "journal.db-wal", "journal.db-shm", "everything"])
async def test_deleted_while_in_use(store: SQLiteStore, what: str) -> None:
    """Nothing more is acknowledged that would be lost; a second later it goes on with what is there."""
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1))
        assert await journal.get(1) is not None
        if what == "everything":
            shutil.rmtree(store.path.parent)
        else:
            (store.path.parent / what).unlink()
        await refused(journal, "deleted or replaced", 2)
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(3), claim=True)
        ids = [entry.id for entry in await journal.find(Query())]
        assert await journal.complete(3, OK)
    finally:
        await journal.close()

    assert ids[0] == 3
    assert 1 in ids or what in ("journal.db", "everything")  # what was in the log is saved while we still have it


async def test_a_file_that_is_put_back(store: SQLiteStore) -> None:
    """What was moved away by mistake is all there again when it is back."""
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1))
        aside = store.path.parent.with_name("aside")
        store.path.parent.rename(aside)
        await refused(journal, "deleted or replaced", 2)
        aside.rename(store.path.parent)
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(3))

        assert {entry.id for entry in await journal.find(Query())} >= {1, 3}
    finally:
        await journal.close()


def beside(path: Path, suffix: str) -> Path:
    """Another file of a journal."""
    return path.with_name(path.name + suffix)


@pytest.mark.parametrize("what", ["claim", "append", "append_checked", "claim_deliveries", "take_over"])
async def test_moved_away_in_the_middle_of_a_batch(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is committed, and nobody hears of it: when the file is back, nothing is in the hands of nobody."""
    journal, dead = store.journal(), store.journal()
    await dead.open()
    await dead.append(submission(1), claim=what == "take_over")
    await store.crash(dead)
    await journal.open()
    await journal.append(submission(2, function=H, callback_url="http://h/"), claim=True)
    await journal.complete(2, OK)
    aside, report = store.path.with_name("aside"), journal._writer._report

    def moved(*arguments: Any) -> Any:
        store.path.rename(aside)
        return report(*arguments)

    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "claim": lambda: journal.claim({F: 1}),
        "append": lambda: journal.append(submission(3, function=G), claim=True),
        "append_checked": lambda: journal.append(submission(3, function=G, idempotency_key="k"), claim=True),
        "claim_deliveries": lambda: journal.claim_deliveries(9),
        "take_over": journal.take_over,
    }
    try:
        journal.note(2, "log", {"text": "once"})
        monkeypatch.setattr(journal._writer, "_report", moved)
        with pytest.raises(JournalError, match="deleted or replaced"):
            await asked[what]()
        monkeypatch.undo()
        await refused(journal, "deleted or replaced")
        aside.rename(store.path)
        store.clock.advance(REOPEN_SECONDS)
        await journal.fired(1, 1.0)
        taken = [claim.entry.id for claim in await journal.take_over()]
        waiting = await journal.waiting()
        deliveries = [(each.entry.id, each.attempt) for each in await journal.claim_deliveries(9)]
        kinds = [event.kind for event in await journal.events(2)]
        claims = [(claim.entry.id, claim.call.attempt) for claim in await journal.claim({F: 9, G: 9})]
    finally:
        await journal.close()

    assert taken == ([1] if what == "take_over" else [])
    assert waiting == ({F: 1} if "claim" in what else {} if what == "take_over" else {F: 1, G: 1})
    assert claims == [(id, 1) for id, function in ((1, F), (3, G)) if function in waiting]
    assert deliveries == [(2, 1)]
    assert kinds.count("log") == 1


async def test_what_is_given_back_while_the_file_is_away(store: SQLiteStore) -> None:
    """It is given back once the file is there, though nobody asks for it again."""
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1), claim=True)
        aside = store.path.with_name("aside")
        store.path.rename(aside)
        journal.give_back(1)
        await refused(journal, "deleted or replaced")
        aside.rename(store.path)
        store.clock.advance(REOPEN_SECONDS)
        for _ in range(500):
            if not journal._writer._owed:
                break
            await asyncio.sleep(0.01)

        assert await journal.waiting() == {F: 1}
    finally:
        await journal.close()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_nobody_begins_anew_beside_those_who_have_what_was_deleted(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Two would write at once. When the first has found out and let go, both go on, and all is there."""
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.05)
    one, two = store.journal(), store.journal()
    await one.open()
    try:
        await one.append(submission(1))
        assert await one.get(1) is not None
        beside(store.path, suffix).unlink()
        with pytest.raises(JournalError, match="in use, but its -wal or its -shm"):
            await two.open()
        not_made = not beside(store.path, suffix).exists()
        await refused(one, "deleted or replaced")
        store.clock.advance(REOPEN_SECONDS)
        await two.append(submission(2))
        await one.append(submission(3))
        found = [[entry.id for entry in await journal.find(Query())] for journal in (one, two)]
    finally:
        await one.close()
        await two.close()

    assert not_made
    assert found == [[3, 2, 1]] * 2
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_ended_at_once_after_the_log_was_deleted(store: SQLiteStore, tmp_path: Path) -> None:
    """What was in it is in the file, whoever else has the file open."""
    one, two = store.journal(), store.journal()
    await one.open()
    await two.open()
    await one.append(submission(1))
    beside(store.path, "-wal").unlink()
    await one.close()
    shutil.copy(store.path, tmp_path / "copy.db")
    await two.close()

    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        assert connection.execute("SELECT id FROM calls").fetchall() == [(1,)]


ANOTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("COMMIT")
print(flush=True)
input()
"""


async def test_a_program_that_makes_what_was_deleted(store: SQLiteStore) -> None:
    """What this process has is not what is there, as long as one of its connections has the old one."""
    journal = store.journal()
    await journal.open()
    await journal.append(submission(1))
    assert await journal.get(1) is not None
    beside(store.path, "-shm").unlink()
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen([sys.executable, "-c", ANOTHER, store.path], stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            with pytest.raises(JournalError, match="replaced while in use"):
                await journal.get(1)  # the writer has it still
            await refused(journal, "deleted or replaced")
            store.clock.advance(REOPEN_SECONDS)
            await journal.append(submission(2))
            found = [entry.id for entry in await journal.find(Query())]
            process.communicate(b"\n")
    finally:
        await journal.close()

    assert found == [2, 1]
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_file_that_comes_back_after_another_one(store: SQLiteStore) -> None:
    """What was running has an end: it is taken over, as if its host had died. Its own end came too late."""
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1), claim=True)
        paths = [beside(store.path, suffix) for suffix in ("", "-wal", "-shm")]
        for path in paths:
            path.rename(beside(path, ".aside"))
        await refused(journal, "deleted or replaced")
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(2))
        ended = await journal.complete(1, OK)
        for path in paths:
            beside(path, ".aside").replace(path)
        await refused(journal, "deleted or replaced")
        store.clock.advance(EXPIRY)
        taken = [claim.entry.id for claim in await journal.take_over()]

        assert (ended, taken) == (False, [1])
        assert await journal.complete(1, BAD)
    finally:
        await journal.close()


async def test_the_file_alone_comes_back_after_another_one(store: SQLiteStore) -> None:
    """What is in the log of the other one is not taken for its own."""
    journal = store.journal()
    await journal.open()
    try:
        await journal.append(submission(1))
        assert await journal.get(1) is not None
        aside = store.path.with_name("aside")
        store.path.rename(aside)
        await refused(journal, "deleted or replaced")
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(2))
        assert await journal.get(2) is not None
        aside.replace(store.path)
        await refused(journal, "deleted or replaced")
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(3))
        found = [entry.id for entry in await journal.find(Query())]
    finally:
        await journal.close()

    assert found == [3, 1]
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for about 200 kB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    """What was acknowledged stays, what was not is absent, and there is room again when there is room."""
    store = SQLiteStore(small_disk)
    ballast = small_disk / "ballast"
    journal = store.journal()
    await journal.open()
    accepted, failures = [], []
    try:
        ballast.write_bytes(bytes(150_000))
        for id in range(1, 100):
            try:
                await journal.append(submission(id, body=os.urandom(10_000)))
                accepted.append(id)
            except JournalError as error:
                failures.append(error)
                break
        there = {entry.id for entry in await journal.find(Query(limit=1000))}
        ballast.unlink()
        store.clock.advance(REOPEN_SECONDS)
        await journal.append(submission(1000))
        assert await journal.waiting() == {F: len(accepted) + 1}
    finally:
        await journal.close()

    assert accepted
    assert failures
    assert "disk" in failures[0].message
    assert there == set(accepted)


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.contract.journal_stores import submission
from runtime.journal import open_journal

async def main():
    journal = open_journal("sqlite", Path(sys.argv[1]))
    await journal.open()
    async def appending(start):
        for id in range(start, start + 1_000_000):
            await journal.append(submission(id, body=b"%d" % id), claim=id % 3 == 0)
            print(id, flush=True)
    await asyncio.gather(*(appending(start * 1_000_000) for start in range(1, 21)))
asyncio.run(main())
"""


async def test_killed_in_the_middle(tmp_path: Path) -> None:
    """After SIGKILL every acknowledged call is there, whole; its running calls are for others at once."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    with process, process.stdout as output:
        acknowledged = [int(output.readline()) for _ in range(500)]
        process.kill()
        acknowledged += [int(line) for line in output.read().split(b"\n")[:-1]]
    journal = SQLiteJournal(tmp_path / "journal.db")
    await journal.open()
    try:
        taken = {claim.entry.id for claim in await journal.take_over()}
        entries = {entry.id: entry for entry in await journal.find(Query(limit=1_000_000))}
        requests = await asyncio.gather(*map(journal.request, entries))
    finally:
        await journal.close()

    assert set(acknowledged) <= entries.keys()
    assert [call and b"".join(call.body) for call in requests] == [b"%d" % id for id in entries]
    assert taken == {id for id in entries if id % 3 == 0}


async def test_the_state_folder_is_not_for_git(store: SQLiteStore) -> None:
    """A folder that is made says so; one that was there is left alone."""
    journal = store.journal()
    await journal.open()
    await journal.close()
    made = (store.path.parent / ".gitignore").read_text()
    (store.path.parent / ".gitignore").unlink()
    await journal.open()
    await journal.close()

    assert made == "*\n"
    assert not (store.path.parent / ".gitignore").exists()
