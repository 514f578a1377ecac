"""Which requests go the express way, on a host that is not one."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.calls import Call, CallIds
from runtime.errors import NotFound
from runtime.express import Express

TARGET = b"/spaces/demo/functions/stock/invoke/a?b=c"
HEADERS = [(b"host", b"here"), (b"content-length", b"2")]


class FakeHost:
    """Notes the calls that are invoked; `demo` is open, `closed` wants the token `good`."""

    def __init__(self) -> None:
        self.ids, self.received = CallIds(), Counter[str]()
        self.calls: list[Call] = []
        self.authority = SimpleNamespace(
            is_open=lambda space: space == "demo", admits_at_once=lambda space, name, token: token == "good"
        )

    def lookup(self, space: str, name: str) -> Any:
        if name != "stock":
            raise NotFound("there is no such function")
        settings = SimpleNamespace(methods=None, max_path_levels=None, max_body=2)
        return SimpleNamespace(settings=settings, label="demo/stock")

    def invoke(self, call: Call) -> Any:
        self.calls.append(call)
        return call


def begun(
    target: bytes = TARGET, *, method: str = "POST", body: bytes = b"hi", more: Any = (), opened: bool = True
) -> Any:
    """What the host is asked to run."""
    host: Any = FakeHost()
    express = Express(host)
    express.open = opened
    found = express.begin(method, target, [*HEADERS, *more], body, "http", ("1.2.3.4", 5))
    assert ([found] if found else []) == host.calls
    assert sum(host.received.values()) == len(host.calls)
    return found


def test_a_plain_call() -> None:
    call = begun()

    assert (call.space, call.name, call.method, call.path, call.query, call.body) == (
        "demo", "stock", b"POST", b"/a", b"b=c", (b"hi",),
    )  # fmt: skip


@pytest.mark.parametrize("token", [b"good", b"bad"])
def test_a_token_of_the_configuration(token: bytes) -> None:
    """Others are to be looked into, which takes longer."""
    call = begun(TARGET.replace(b"demo", b"closed"), more=[(b"authorization", b"Bearer " + token)])

    assert (call is not None) == (token == b"good")
    assert call is None or b"good" not in call.headers


@pytest.mark.parametrize(
    "wish",
    [
        {"target": TARGET + b"#d"}, {"target": TARGET.replace(b"stock", b"nobody")}, {"target": b"/healthz"},
        {"target": TARGET + b"x" * 65536}, {"target": TARGET.replace(b"demo", b"closed")}, {"method": "HEAD"},
        {"target": TARGET.replace(b"/a", b"/%zz")}, {"body": b"h"}, {"opened": False},
        {"more": [(b"authorization", b"Bearer good")]}, {"more": [(b"transfer-encoding", b"chunked")]},
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_the_ordinary_way(wish: dict[str, Any]) -> None:
    assert begun(**wish) is None


def test_a_body_that_is_too_long_goes_the_ordinary_way() -> None:
    """Where it is refused."""
    host: Any = FakeHost()

    assert Express(host).begin("POST", TARGET, [(b"content-length", b"3")], b"abc", "http", None) is None
    assert not host.calls


def test_paths_of_strangers_are_not_kept() -> None:
    """But for so many, and short ones."""
    express = Express(FakeHost())  # type: ignore[arg-type]
    for number in range(3000):
        express.begin("GET", b"/%d/" % number + b"x" * (number % 2 * 1000), HEADERS, b"", "http", None)

    assert len(express._found) <= 1024
    assert max(map(len, express._found)) <= 256
