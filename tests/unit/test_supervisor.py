"""The supervisor where something fails: no member and no descriptor is left behind, and it goes on where it can."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import Config, FunctionSettings, ServerSettings
from runtime.supervisor import Member, Supervisor

pytestmark = pytest.mark.anyio


@pytest.fixture
async def supervisor(anyio_backend: str, tmp_path: Path) -> Supervisor:
    config = Config(tmp_path, tmp_path / "spaces.toml", tmp_path, ServerSettings(), FunctionSettings(), {})
    return Supervisor(config, (), exposed=False, log_lock=0, announce=lambda count: None)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A member's, so to speak."""
    with subprocess.Popen(["sleep", "100000"]) as started:
        yield started
        started.kill()


async def test_a_member_that_could_not_be_watched_is_ended(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSError, as where it could not be started; no descriptor is left of it."""

    def full(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervisor, "_spawn", lambda *_: process)
    monkeypatch.setattr(os, "pidfd_open", full)
    files = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError, match="Too many"):
        await supervisor._start(0)

    assert process.returncode == -9
    assert len(os.listdir("/proc/self/fd")) == files


async def test_members_do_not_outlive_a_supervisor_that_fails(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are ended before the base zygotes are."""
    supervisor._members[1] = Member(1, 0, process)
    ended: list[int | None] = []

    async def fail() -> None:
        raise OSError

    monkeypatch.setattr(supervisor, "_serve", fail)
    leave = type(supervisor._bases).__aexit__

    async def leaving(bases: object, *error: object) -> None:
        ended.append(process.returncode)
        await leave(supervisor._bases, *error)

    monkeypatch.setattr(type(supervisor._bases), "__aexit__", leaving)
    with pytest.raises(ExceptionGroup):
        await supervisor.run()

    assert ended == [-9]


@pytest.mark.parametrize("data", [b"garbage", b"[1]", b"\xff"])
async def test_a_wish_that_is_not_understood_is_dropped(
    supervisor: Supervisor, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And logged."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        supervisor._hand_on(theirs, data)

    assert "not understood" in caplog.text
