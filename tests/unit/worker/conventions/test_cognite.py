"""Cognite's `client`: where it goes, when it is made, and when there is none."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from runtime.worker.conventions import cognite
from runtime.worker.handler import Handler, LoadError
from tests.unit.worker.conventions.imported import SPEC, call

OURS = {"SPACES_URL": "http://127.0.0.1:1", "SPACES_TOKEN": "t"}
REAL = {"COGNITE_BASE_URL": "https://x.cognitedata.com"}
CLIENT = {"COGNITE_TOKEN_URL": "https://t", "COGNITE_CLIENT_ID": "i", "COGNITE_CLIENT_SECRET": "s"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What clients are made of, by an SDK that does nothing."""
    found: list[dict[str, Any]] = []

    class CogniteClient:
        @staticmethod
        def load(given: dict[str, Any]) -> int:
            found.append(given)
            return len(found)

    module = ModuleType("cognite.client")
    vars(module).update(CogniteClient=CogniteClient, global_config=type("Config", (), {}))
    monkeypatch.setitem(sys.modules, "cognite", ModuleType("cognite"))
    monkeypatch.setitem(sys.modules, "cognite.client", module)
    for name, value in OURS.items():
        monkeypatch.setenv(name, value)
    return found


def test_it_goes_to_the_host_itself() -> None:
    """Unless the environment tells of a Cognite; without either there is no client."""
    assert cognite.where(OURS) == ("http://127.0.0.1:1", {"token": "t"})
    assert cognite.where({"SPACES_URL": "http://h"}) == ("http://h", {"token": "none"})
    assert cognite.where({**OURS, **REAL, "COGNITE_TOKEN": "c"}) == (REAL["COGNITE_BASE_URL"], {"token": "c"})
    assert cognite.where({}) is None


def test_it_can_have_client_credentials() -> None:
    """All of them, or the function cannot be loaded."""
    found = cognite.where({**OURS, **REAL, **CLIENT})
    expected = {"token_url": "https://t", "client_id": "i", "client_secret": "s",
                "scopes": ["https://x.cognitedata.com/.default"]}  # fmt: skip
    assert found == (REAL["COGNITE_BASE_URL"], {"client_credentials": expected})
    with pytest.raises(ValueError, match="COGNITE_TOKEN or COGNITE_TOKEN_URL, COGNITE_CLIENT_ID"):
        cognite.where(REAL)


def test_it_is_made_once_and_not_before_a_call(made: list[dict[str, Any]]) -> None:
    """For it has a thread, which a fork would lose."""
    function = Handler(SPEC, lambda client, data: (client, data))
    assert made == []
    assert function.call(call(b"1", headers={"content-type": "application/json"})) == (1, 1)
    assert function.call(call()) == (1, {})
    assert made == [
        {"client_name": "spaces", "project": "spaces", "base_url": OURS["SPACES_URL"], "credentials": {"token": "t"}}
    ]


def test_keywords_get_it_where_the_file_uses_the_sdk(
    made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other handler with keywords would pay for a client that it does not know of."""

    def handle(**given: Any) -> Any:
        return given["client"]

    assert Handler(SPEC, handle).call(call()) == 1
    monkeypatch.delitem(sys.modules, "cognite.client")
    assert Handler(SPEC, handle).call(call()) is None


def test_there_is_none_without_the_sdk_or_a_server(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler gets None."""

    def handle(client: Any) -> Any:
        return client

    monkeypatch.delenv("SPACES_URL")
    assert Handler(SPEC, handle).call(call()) is None
    monkeypatch.setenv("SPACES_URL", "http://h")
    monkeypatch.delitem(sys.modules, "cognite.client")
    monkeypatch.setattr(sys.modules["cognite"], "__path__", [], raising=False)
    assert Handler(SPEC, handle).call(call()) is None


def test_half_a_configuration_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when the file is loaded, not at the first call."""
    monkeypatch.setenv("COGNITE_BASE_URL", "https://x")
    with pytest.raises(LoadError, match="COGNITE_BASE_URL is set"):
        Handler(SPEC, lambda client: None)
