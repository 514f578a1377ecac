"""host.json: there while a host serves, gone after it, and never another's."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from runtime.whereabouts import Whereabouts, find, told


def test_it_is_there_within_the_scope(tmp_path: Path) -> None:
    """With the address and the process; the folder is made."""
    with told(tmp_path / "state", "http://127.0.0.1:1"):
        during = find(tmp_path / "state")

    assert during == Whereabouts("http://127.0.0.1:1", os.getpid())
    assert find(tmp_path / "state") is None
    assert [file.name for file in (tmp_path / "state").iterdir()] == [".gitignore"]


def test_what_another_host_has_written_stays(tmp_path: Path) -> None:
    """It came later, and serves."""
    with told(tmp_path, "http://127.0.0.1:1"):
        (tmp_path / "host.json").write_text('{"url": "http://127.0.0.1:2", "pid": 2}')

    assert find(tmp_path) == Whereabouts("http://127.0.0.1:2", 2)


def test_a_process_that_is_gone_is_noticed() -> None:
    """Ours is there; one that has ended is not, nor is what can be no process."""
    with subprocess.Popen(["true"]) as ended:
        pass

    assert Whereabouts("http://127.0.0.1:1", os.getpid()).is_alive
    assert not Whereabouts("http://127.0.0.1:1", ended.pid).is_alive
    assert not Whereabouts("http://127.0.0.1:1", 2**70).is_alive


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"url": 1, "pid": 2}', b"\xff"])
def test_what_makes_no_sense_is_not_there(tmp_path: Path, content: bytes) -> None:
    """A file that was cut short, say."""
    (tmp_path / "host.json").write_bytes(content)

    assert find(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs a warning."""
    (tmp_path / "state").write_text("a file")
    with caplog.at_level(logging.WARNING), told(tmp_path / "state", "http://127.0.0.1:1"):
        pass

    assert "need --url" in caplog.text


def test_git_leaves_the_state_folder_alone(tmp_path: Path) -> None:
    """Whoever makes it; one that was there before is left as it is."""
    with told(tmp_path / "made", "http://127.0.0.1:1"):
        pass
    assert (tmp_path / "made" / ".gitignore").read_text() == "*\n"
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0  # what is in it is nobody else's to read
    with told(tmp_path, "http://127.0.0.1:1"):
        pass
    assert not (tmp_path / ".gitignore").exists()
