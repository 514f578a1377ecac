"""Where the command line finds calls. How it asks for them is in `tests/acceptance/test_cli_calls.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.attach import _has_journal


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PermissionError, which the command words; where nothing is, there is no journal."""
    assert not _has_journal(tmp_path / "nowhere")
    assert not _has_journal(tmp_path)
    (tmp_path / "journal.db").touch()
    assert _has_journal(tmp_path)

    def denied(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(PermissionError):
        _has_journal(tmp_path)
