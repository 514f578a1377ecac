"""Cognite's `client` argument: a CogniteClient for the handler, made in the worker at its first call.

Asked by `handler.Handler` where a `handle` takes `client`. The client runs a thread of its own that would not
survive a fork, so it is never made in a zygote; only the package is imported there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ..context import CallInfo

Source = Callable[[CallInfo], Any]

_NEEDED = ("COGNITE_TOKEN_URL", "COGNITE_CLIENT_ID", "COGNITE_CLIENT_SECRET")


def source(*, named: bool) -> Source:
    """What gives a handler its client: the same for all calls of a worker, None without the cognite-sdk.

    `named`: the handler has a parameter for it. One with only `**kwargs` gets a client if its file has
    imported the package. It speaks to the host itself, or to a Cognite of which the environment tells.
    ValueError where that is told incompletely.
    """
    if not named and "cognite.client" not in sys.modules:
        return lambda info: None
    address = where(os.environ)
    try:
        cognite = import_module("cognite.client")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cognite":
            raise
        return lambda info: None
    if address is None:
        return lambda info: None
    made: list[Any] = []

    def client(info: CallInfo) -> Any:
        if not made:
            made.append(make(cognite, *address))
        return made[0]

    return client


def where(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """The base URL and the credentials, as CogniteClient.load takes them; None where there is no server."""
    base_url = environment.get("COGNITE_BASE_URL")
    if not base_url:
        ours = environment.get("SPACES_URL")
        return (ours, {"token": environment.get("SPACES_TOKEN") or "none"}) if ours else None
    if token := environment.get("COGNITE_TOKEN"):
        return base_url, {"token": token}
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise ValueError(f"COGNITE_BASE_URL is set, so either COGNITE_TOKEN or {', '.join(missing)} must be, too")
    scopes = environment.get("COGNITE_SCOPES") or f"{base_url.rstrip('/')}/.default"
    token_url, client_id, secret = (environment[name] for name in _NEEDED)
    given = {"token_url": token_url, "client_id": client_id, "client_secret": secret, "scopes": scopes.split()}
    return base_url, {"client_credentials": given}


def make(cognite: Any, base_url: str, credentials: dict[str, Any]) -> Any:
    """A new client."""
    cognite.global_config.disable_pypi_version_check = True  # it would ask the internet
    return cognite.CogniteClient.load(
        {
            "client_name": "spaces",
            "project": os.environ.get("COGNITE_PROJECT") or "spaces",
            "base_url": base_url,
            "credentials": credentials,
        }
    )
