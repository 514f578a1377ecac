"""What the command says where it may not do what it is asked. The rest of it is in `tests/acceptance/test_cli.py`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from runtime import cli, config


def denied(path: Path | None) -> int:
    if path is None:
        raise PermissionError(1, "Operation not permitted")
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "another's"])
def test_what_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, ours: bool
) -> None:
    """And whose it is, where that is somebody else."""
    monkeypatch.setitem(cli.COMMANDS, "list", lambda _: denied(tmp_path / "state" / "journal.db"))
    owner = Path.owner(tmp_path)
    if not ours:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)

    assert cli.main(["list"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"spaces: {tmp_path}/state/journal.db: Permission denied")
    assert (f"({tmp_path} belongs to {owner})" in said) is not ours


def test_what_is_denied_without_a_file_is_no_mistake_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised, with all that is known of it."""
    monkeypatch.setitem(cli.COMMANDS, "list", lambda _: denied(None))
    with pytest.raises(PermissionError):
        cli.main(["list"])


def test_a_state_folder_of_another_is_nothing_to_who_only_looks_at_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there are trained functions in it cannot be known: there are none then."""
    (tmp_path / "functions").mkdir()
    genuine = os.stat

    def stat(path: object, **how: object) -> os.stat_result:
        if ".spaces" in str(path):
            denied(Path(str(path)))
        return genuine(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)

    assert config.load(tmp_path, environ={}).spaces == {}
    assert cli.main(["list", str(tmp_path)]) == 0


def test_arguments_are_not_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is made up for secrets that are missing is no setting."""
    (tmp_path / "functions").mkdir()
    (tmp_path / "spaces.toml").write_text('[spaces.shop]\ntokens = ["env:NOWHERE"]\nenv = { KEY = "env:NOWHERE" }\n')
    monkeypatch.setenv("SPACES_STATE", str(tmp_path / "elsewhere"))
    for name in ("SPACES_BIND", "SPACES_ENGINE", "SPACES_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    settings = cli._load(argparse.Namespace(root=str(tmp_path)), config.WithoutSecrets(os.environ))

    assert settings.server.state == tmp_path / "elsewhere"
    assert (settings.server.bind, settings.server.processes) == ("127.0.0.1:8000", 1)
    assert settings.overrides == {"SPACES_STATE": str(tmp_path / "elsewhere")}
    with pytest.raises(config.ConfigError, match="NOWHERE"):
        cli._load(argparse.Namespace(root=str(tmp_path)))
