"""What ends a server, and what it cannot begin without."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest

from runtime.config import ServerSettings
from runtime.errors import ConfigError
from runtime.server import endings, require


@pytest.mark.parametrize(("disposition", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminal_that_closes_ends_it(disposition: signal.Handlers, ends: bool) -> None:
    """In good order, unless it was started with nohup."""
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        assert (signal.SIGHUP in endings()) is ends
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("pip", [True, False], ids=["pip", "uv"])
def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, *, pip: bool) -> None:
    """With the command that installs it where the host runs: an environment that uv has made has no pip."""
    find = importlib.util.find_spec
    present = {"uvicorn": None, "pip": find("os") if pip else None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: present[name] if name in present else find(name))
    with pytest.raises(ConfigError) as refused:
        require(ServerSettings(engine="uvicorn"))

    installs = f"{sys.executable} -m pip install" if pip else f"uv pip install --python {sys.executable}"
    assert refused.value.message == (
        f"engine = \"uvicorn\" needs an extra: {installs} '.[fast]', in the folder that spaces was installed from"
    )
