"""Handlers: what kind they are, what they take, how they are called, and why they cannot be."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from runtime.worker.context import CallInfo
from runtime.worker.handler import (
    Handler,
    LoadError,
    annotation_of,
    describe_error,
    kind_of,
    parameters_of,
    plan_arguments,
)


def info(body: bytes = b'{"a": 1}') -> CallInfo:
    """A call with a JSON body."""
    headers = b"content-type\0application/json"
    return CallInfo(1, 2, "s", "f", "POST", b"/p", b"q=1", headers, body, 0.0, 1, 1000)


def handler(handle: Callable[..., Any], **settings: Any) -> Handler:
    """A loaded handler."""
    spec = {
        "entry": "functions.s.f", "debug": False, "concurrency": 1, "max_body": 1000, "max_response": 1000,
        "secrets": {"key": "value"}, **settings,
    }  # fmt: skip
    return Handler(spec, handle)


# Kinds.


def plain(data: Any) -> Any:
    return data


async def coroutine(data: Any) -> Any:
    return data


def generator(data: Any) -> Iterator[Any]:
    yield data


async def async_generator(data: Any) -> AsyncIterator[Any]:
    yield data


class Callee:
    def __call__(self, data: Any) -> Any:
        return data


class AsyncCallee:
    async def __call__(self, data: Any) -> Any:
        return data

    async def method(self, data: Any) -> Any:
        return data


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


@pytest.mark.parametrize(
    ("handle", "kind"),
    [
        (plain, "sync"),
        (coroutine, "async"),
        (generator, "generator"),
        (async_generator, "async_generator"),
        (Callee(), "sync"),
        (AsyncCallee(), "async"),
        (AsyncCallee().method, "async"),
        (decorated(coroutine), "async"),
        (decorated(async_generator), "async_generator"),
        (functools.partial(coroutine), "async"),
        (functools.partial(functools.partial(decorated(generator))), "generator"),
        (functools.partial(AsyncCallee()), "async"),
        (functools.lru_cache(plain), "sync"),
        (dict, "sync"),
        (len, "sync"),
    ],
)
def test_kinds(handle: Callable[..., Any], kind: str) -> None:
    """What it is, is what the function behind decorators, partials and `__call__` is."""
    assert kind_of(handle) == kind


# Arguments.


def on_request(req: Any) -> Any:
    return req


def on_event(event: Any, /) -> Any:
    return event


CALLED: dict[str, tuple[Callable[..., Any], Any]] = {
    "data": (lambda data: data, {"a": 1}),
    "data, positional only": (eval("lambda data, /: data"), {"a": 1}),
    "data, keyword only": (lambda *, data: data, {"a": 1}),
    "data behind a default": (lambda limit=5, data=None: (limit, data), (5, {"a": 1})),
    "data before a default": (lambda data, limit=5: (limit, data), (5, {"a": 1})),
    "data and info": (lambda data, function_call_info: (data, function_call_info.path), ({"a": 1}, "/p")),
    "info and data": (lambda function_call_info, data: (data, function_call_info["path"]), ({"a": 1}, "/p")),
    "both, positional only": (
        eval("lambda data, function_call_info, /: (data, function_call_info.path)"), ({"a": 1}, "/p"),
    ),
    "info alone": (lambda function_call_info: function_call_info.query["q"], "1"),
    "secrets": (lambda secrets: secrets, {"key": "value"}),
    "all": (lambda data, function_call_info, secrets: (data, function_call_info.name, secrets["key"]),
            ({"a": 1}, "f", "value")),
    "nothing": (lambda: "nothing", "nothing"),
    "keywords": (lambda **given: sorted(given), ["client", "data", "function_call_info", "secrets"]),
    "data and keywords": (lambda data, **given: sorted(given), ["client", "function_call_info", "secrets"]),
    "more": (lambda data, *more: (data, more), ({"a": 1}, ())),
    "an object": (Callee(), {"a": 1}),
    "a partial": (functools.partial(lambda data, limit: (data, limit), limit=7), ({"a": 1}, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLED)
def test_arguments_are_chosen_by_name(name: str) -> None:
    """And given as the signature wants them."""
    handle, expected = CALLED[name]

    assert handler(handle).call(info()) == expected


@pytest.mark.parametrize("handle", [on_request, on_event, lambda request: request, lambda *, req: req])
def test_a_request_alone(handle: Callable[..., Any]) -> None:
    """One parameter of a request's name gets the request itself, and answers go by the other convention."""
    loaded, call = handler(handle), info()

    assert loaded.call(call) is call
    assert loaded.request_convention


def test_req_beside_others() -> None:
    """Is the request as well, but the answer is an ordinary one."""
    loaded, call = handler(lambda req, data: (req, data)), info()

    assert loaded.call(call) == (call, {"a": 1})
    assert not loaded.request_convention


def test_secrets_are_a_copy() -> None:
    """What a call changes in them is gone with it."""

    def handle(secrets: dict[str, str]) -> dict[str, str]:
        secrets["mine"] = "x"
        return secrets

    loaded = handler(handle)

    assert loaded.call(info()) == loaded.call(info()) == {"key": "value", "mine": "x"}
    assert loaded.spec["secrets"] == {"key": "value"}


@pytest.mark.parametrize(
    "handle", [lambda other: other, lambda data, other: other, lambda event, data: event, lambda *, other: other]
)
def test_what_is_not_known_needs_a_default(handle: Callable[..., Any]) -> None:
    """LoadError names the parameter and what there is."""
    with pytest.raises(
        LoadError, match=r"`handle` takes `(other|event)`, which is not known.*data, function_call_info"
    ):
        plan_arguments(parameters_of(handle))


def test_a_signature_that_cannot_be_read() -> None:
    """LoadError, too."""

    def handle(data: Any) -> None:
        """Its signature is not one."""

    handle.__signature__ = object()  # type: ignore[attr-defined]

    with pytest.raises(LoadError, match="cannot be read"):
        parameters_of(handle)


# Types.


@dataclass
class Point:
    x: int


def typed(data: Point) -> int:
    return data.x


class TypedCallee:
    def __call__(self, data: Point) -> int:
        return data.x


@pytest.mark.parametrize("handle", [typed, decorated(typed), functools.partial(typed), TypedCallee()])
def test_data_has_the_annotated_type(handle: Callable[..., Any]) -> None:
    """Annotations are resolved where the function was written, also those that are strings."""
    assert annotation_of(handle, "data") is Point
    assert handler(handle).call(info(b'{"x": 3}')) == 3


def test_no_annotation() -> None:
    """Is no type."""
    assert annotation_of(lambda data: data, "data") is annotation_of(lambda data: data, "missing")


def test_an_annotation_that_cannot_be_resolved() -> None:
    """LoadError, before any call."""

    def handle(data: Nowhere) -> None:  # type: ignore[name-defined] # noqa: F821
        """Its type does not exist."""

    with pytest.raises(LoadError, match=r"annotation of `data` cannot be resolved.*Nowhere"):
        handler(handle)


# What is told to the host.


def test_what_it_is_described_as() -> None:
    """Its kind and the names of its parameters."""
    described = handler(async_generator).describe()

    assert (described["kind"], described["takes"], described["extras"]) == ("async_generator", ["data"], {})


def raised(run: Callable[[], Any]) -> BaseException:
    """What this raises."""
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def run_file(path: str, source: str) -> Callable[[], Any]:
    """Runs a source as if it stood in this file."""
    return lambda: exec(compile(source, path, "exec"), types.ModuleType("m").__dict__)


def test_an_error_is_described_where_the_user_can_mend_it() -> None:
    """The innermost place that is neither ours, nor Python's, nor in an installed package."""
    described = describe_error(raised(run_file("/x/f.py", "import json\n\njson.loads('{')")))

    assert (described["file"], described["line"]) == ("/x/f.py", 3)
    assert described["message"].startswith("json.decoder.JSONDecodeError: Expecting")
    assert 'File "/x/f.py", line 3' in described["traceback"]
    assert f"{os.sep}worker{os.sep}handler.py" not in described["traceback"]


def test_a_syntax_error_is_where_it_is() -> None:
    """Not where it was imported from."""
    described = describe_error(raised(run_file("/x/f.py", "x = 1\ndef (:\n")))

    assert (described["file"], described["line"]) == ("/x/f.py", 2)
    assert described["message"] == "SyntaxError: invalid syntax"


def test_our_own_words_need_no_traceback() -> None:
    """They say all there is."""
    described = describe_error(LoadError("there is no `handle`"))

    assert described == {"message": "there is no `handle`", "file": None, "line": None, "traceback": ""}


class Odd(Exception):
    def __str__(self) -> str:
        raise self


class Nul(Exception):
    __str__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Odd(), "Odd: <exception str() failed>"),
        (Nul(), "Nul: <exception str() failed>"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError("\udc80 \U0001f600"), "ValueError: \\udc80 \U0001f600"),
        (ExceptionGroup("some", [ValueError(1)]), "ExceptionGroup: some (1 sub-exception)"),
        (ValueError("x" * 10_000), "ValueError: xxx"),
    ],
)
def test_any_error_can_be_described(error: BaseException, message: str) -> None:
    """Whatever happens when one looks at it; what is told is text, and not too much."""
    error.add_note("a note")

    described = describe_error(error)

    assert message in described["message"]
    assert "a note" not in described["message"]
    assert len(described["message"]) <= 4200
    assert len(described["traceback"]) <= 33_000
    str(described).encode()
