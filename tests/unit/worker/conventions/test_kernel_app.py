"""Kernel: which action is called, with what, and what is answered; with the stand-in for its package."""

from __future__ import annotations

import asyncio
import os
import sys
from types import ModuleType

import pytest

from runtime.worker.conventions import kernel_app, standins
from runtime.worker.faults import NotEncodable, Refused
from runtime.worker.handler import Handler, LoadError
from tests.unit.worker.conventions.imported import SPEC, call, loaded, shown

APP = """
    import kernel
    client = kernel.Kernel()
    app = kernel.App("shop")
    other = kernel.App("other")

    @app.action("buy")
    def buy(ctx: kernel.KernelContext, payload):
        return {"id": ctx.invocation_id, "payload": payload, "status_code": 404}

    @app.action("ask")
    async def ask(ctx): return ["asked"]

    @other.action("buy")
    def buy_there(ctx, payload=1): return payload

    @other.action("bad")
    def bad(ctx): return object()

    @other.action("use")
    def use(ctx): return client.browsers.create()
"""


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import kernel` gives the stand-in, whether the package is installed or not."""
    module = ModuleType("kernel")
    monkeypatch.setattr(standins.app_registry, "apps", {})
    standins.StandIn("kernel", {}).exec_module(module)
    monkeypatch.setitem(sys.modules, "kernel", module)


def action(name: str, app: str = "shop") -> Handler:
    """One action of the file above."""
    return loaded("kernel", name, APP, app=app)


def test_an_action_gets_its_context_and_the_payload() -> None:
    """Decoded, None where there is no body; what it returns is JSON, and never a status."""
    buy = action("buy")
    status, _, output = shown(buy.call(call(b'{"a":1}')))
    assert (status, output) == (200, {"id": "7", "payload": {"a": 1}, "status_code": 404})
    assert shown(buy.call(call(query=b"a=1")))[2]["payload"] is None
    assert (buy.kind, buy.describe()["takes"]) == ("sync", ["ctx", "payload"])


def test_an_async_action_is_awaited() -> None:
    """Its kind is that of the function behind the decorator."""
    ask = action("ask")
    assert ask.kind == "async"
    assert shown(asyncio.run(ask.call(call())))[2] == ["asked"]


def test_two_apps_may_have_an_action_of_one_name() -> None:
    """It is the one of the app that is meant; a default of the payload is not used, as with Kernel."""
    assert shown(action("buy", "other").call(call()))[2] is None
    assert shown(action("buy", "unknown").call(call()))[2]["id"] == "7"


def test_what_is_wrong_is_said() -> None:
    """A payload that is no JSON, a result that has none, an action that is not there."""
    with pytest.raises(Refused, match="not valid JSON"):
        action("buy").call(call(b"{"))
    with pytest.raises(NotEncodable):
        action("bad", "other").call(call())
    with pytest.raises(LoadError, match="no action `gone`"):
        action("gone")
    with pytest.raises(RuntimeError, match="pip install kernel"):
        action("use", "other").call(call())


@pytest.mark.parametrize("takes", ["", "a, b, c"])
def test_an_action_takes_one_or_two(takes: str) -> None:
    """As with Kernel, the import fails otherwise."""
    with pytest.raises(TypeError, match="an action takes"):
        loaded("kernel", "x", f"import kernel\n@kernel.App('a').action('x')\ndef x({takes}): ...")


def test_there_is_always_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because most files make a client; one that is set stays."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setenv("KERNEL_API_KEY", "mine")
    kernel_app.prepare(SPEC)
    assert os.environ["KERNEL_API_KEY"] == "mine"
    monkeypatch.delenv("KERNEL_API_KEY")
    kernel_app.prepare(SPEC)
    assert os.environ["KERNEL_API_KEY"]
