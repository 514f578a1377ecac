"""Submitting, over a real journal, to a host that runs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from runtime import background, config, deliveries, dispatcher
from runtime.background import Background
from runtime.calls import Call, CallIds, Result, Status, Submission, function_id
from runtime.errors import Draining, HostError, JournalError, NotFound
from runtime.exchange import Exchange
from runtime.host import Host
from runtime.journal import writer
from runtime.registry import Function
from runtime.settings import FunctionSettings
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def hosting(root: Path) -> AsyncIterator[Host]:
    """A host with one function, which it does not run."""
    folder = root / "functions" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stock.py").write_text("def handle(data):\n    return 1\n")
    async with Host(config.load(root, environ={}), watch=False, durable=True, dispatch=False) as host:
        yield host


def submission(id: int, label: str | None = None, **wishes: object) -> Submission:
    """A call of that function, as the dialect makes it."""
    label = label or str(id)
    headers = b"content-type\0text/plain\0x-call-id\0" + label.encode()
    call = Call(id=id, label=label, space="demo", name="stock", headers=headers, body=(b"hello",))
    return Submission(call, **wishes)  # type: ignore[arg-type]


async def test_an_id_that_is_taken_is_replaced(tmp_path: Path) -> None:
    """Two hosts on one journal may give out the same one. The call is told its new one."""
    async with hosting(tmp_path) as host, hosting(tmp_path) as other:
        first = await host.submit(submission(77))
        second = await other.submit(submission(77))
        named = await other.submit(submission(77, label="mine"))

        assert (first.id, first.label) == (77, "77")
        assert second.id not in (77, named.id)
        assert second.label == str(second.id)
        call = await host.journal.request(second.id)
        assert call is not None
        assert call.headers == b"content-type\0text/plain\0x-call-id\0" + second.label.encode()
        assert named.label == "mine"
        call = await host.journal.request(named.id)
        assert call is not None
        assert call.headers.endswith(b"x-call-id\0mine")


async def test_old_calls_that_cannot_be_removed_are_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk ends neither the host nor its tidying up."""
    monkeypatch.setattr(background, "PRUNE_EVERY", 0.01)
    async with members(tmp_path, monkeypatch) as (one, _):
        pruned: list[str] = []

        async def failing(space: str, **_: object) -> int:
            raise JournalError("the disk is full")

        async def prune(space: str, **_: object) -> int:
            pruned.append(space)
            return 0

        monkeypatch.setattr(one.background.journal, "prune", failing)
        await one.submit(77)
        await until(lambda: "old calls could not be removed: the disk is full" in caplog.text)
        monkeypatch.setattr(one.background.journal, "prune", prune)
        await until(lambda: pruned)

    assert pruned[0] == "demo"


async def test_a_rerun_is_a_call_of_its_own(tmp_path: Path) -> None:
    """With the request, the callback and the priority of the first one."""
    async with hosting(tmp_path) as host:
        first = await host.submit(submission(77, label="mine", callback_url="http://localhost/", priority=3))
        again = await host.rerun(first.id)
        entry = await host.journal.get(again.id)
        call = await host.journal.request(again.id)
        with pytest.raises(NotFound):
            await host.rerun(1)

    assert entry is not None
    assert call is not None
    assert (entry.trigger, entry.callback_url, entry.priority) == ("rerun", "http://localhost/", 3)
    assert (call.label, call.body) == (str(again.id), (b"hello",))
    assert call.headers == b"content-type\0text/plain\0x-call-id\0" + call.label.encode()


async def test_a_host_without_dispatch_runs_nothing(tmp_path: Path) -> None:
    """It records, looks up and cancels."""
    async with hosting(tmp_path) as host:
        receipt = await host.submit(submission(77))
        entry = await host.journal.get(receipt.id)
        assert entry is not None
        assert entry.status is Status.QUEUED
        assert await host.cancel(receipt.id) is Status.CANCELLED
        assert await host.cancel(1) is None
        assert not await host.redeliver(receipt.id)


async def test_a_host_without_a_journal_says_so(tmp_path: Path) -> None:
    """It runs calls all the same."""
    async with hosting(tmp_path):
        pass
    async with Host(config.load(tmp_path, environ={}), watch=False) as host:
        with pytest.raises(JournalError, match="no journal"):
            await host.submit(submission(77))
        with pytest.raises(JournalError, match="no journal"):
            _ = host.journal


async def test_a_journal_that_cannot_be_opened_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitting fails, and succeeds once the cause is gone."""
    monkeypatch.setattr(writer, "REOPEN_SECONDS", 0.1)
    file = tmp_path / ".spaces" / "journal.db"
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    async with hosting(tmp_path) as host:
        assert "cannot be used" in caplog.text
        with pytest.raises(JournalError):
            await host.submit(submission(77))
        assert b"spaces_submitted_calls" not in await host.metrics()
        file.unlink()
        with anyio.fail_after(20):
            while True:
                try:
                    receipt = await host.submit(submission(78))
                    break
                except JournalError:
                    await anyio.sleep(0.05)
        assert receipt.id == 78
        assert b"spaces_submitted_calls" in await host.metrics()


async def test_a_host_that_drains_takes_no_submissions(tmp_path: Path) -> None:
    """The client asks again, and reaches the next one."""
    async with hosting(tmp_path) as host:
        await host.drain(0)
        with pytest.raises(Draining):
            await host.submit(submission(77))


# Several processes on one journal.


class Member:
    """What one process does in the background, with workers that answer when the test says so."""

    def __init__(self, root: Path) -> None:
        self.running: dict[int, Exchange] = {}
        self.others: list[Member] = []
        self.function = Function(
            id=function_id("demo", "stock"), space="demo", name="stock", path=Path("stock.py"), line=1, kind="sync",
            takes=("data",), digest="", settings=FunctionSettings(max_workers=1),
        )  # fmt: skip
        settings = config.load(root, environ={})
        self.background = Background(
            lambda: settings, invoke=self._invoke, lookup=lambda space, name: self.function, ids=CallIds(),
            loopback=lambda: True, word=lambda error: error, dispatch=True, bell=self,
        )  # fmt: skip

    def ring(self, payload: bytes) -> None:
        for other in self.others:
            other.background.heard(payload)

    def _invoke(self, call: Call) -> Exchange:
        exchange = Exchange(call, 60.0, asyncio.get_running_loop(), lambda exchange: None, self._cancelled)
        exchange.channel = self  # type: ignore[assignment]
        self.running[call.id] = exchange
        return exchange

    def _cancelled(self, exchange: Exchange, error: HostError) -> None:
        self.running.pop(exchange.call.id).failed(error)

    def answer(self, id: int) -> None:
        self.running.pop(id).answered(Result(200, b"", b"1", complete=True, failed=False, handler_seconds=0.0))

    async def submit(self, id: int) -> None:
        await self.background.submit(submission(id), self.function)


@asynccontextmanager
async def members(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Member, Member]]:
    """Two that look at the journal when they start, and then no more unless they are told."""
    (root / "functions").mkdir()
    for module in (dispatcher, deliveries):
        monkeypatch.setattr(module, "LOOK_EVERY", 1000.0)
    one, two = Member(root), Member(root)
    one.others, two.others = [two], [one]
    async with AsyncExitStack() as stack:
        for each in (one, two):
            await stack.enter_async_context(each.background)
        yield one, two


async def test_a_call_that_finds_no_place_is_run_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, where that one has a place."""
    async with members(tmp_path, monkeypatch) as (one, two):
        await one.submit(10)
        await until(lambda: 10 in one.running)
        await one.submit(11)
        await until(lambda: 11 in two.running)

        assert list(one.running) == [10]


async def test_a_call_is_stopped_in_the_process_that_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever process was asked to cancel it; and whoever waits for it there hears of its end."""
    async with members(tmp_path, monkeypatch) as (one, two):
        await one.submit(10)
        await until(lambda: 10 in one.running)
        assert await two.background.cancel(10) is Status.RUNNING
        entry = await two.background.journal.get(10)
        with anyio.fail_after(20):
            while entry is not None and not entry.status.is_final:
                await two.background.journal.changed(10, 1000)
                entry = await two.background.journal.get(10)

        assert entry is not None
        assert entry.status is Status.CANCELLED
        assert one.running == {}
