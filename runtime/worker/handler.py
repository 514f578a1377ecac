"""A loaded handler file: finds the function in it, decides what it takes, calls it.

Loaded once in a function zygote (`zygote.py`), called by the loops in its workers. Sources come from the
host (`importer.py`), call data through `context.py` and `body.py`; what is no `handle` is in `conventions/`.
"""

from __future__ import annotations

import functools
import inspect
import os
import traceback
import typing
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from typing import Any

from . import body, context, output
from .conventions import adapter, standins
from .importer import LocalImporter

REQUEST_NAMES = ("req", "request", "event")
KNOWN_NAMES = ("data", "function_call_info", "secrets", "client", "req")
KINDS = ("sync", "async", "generator", "async_generator")


class LoadError(Exception):
    """The file was imported, but there is no handler to call in it."""


class Handler:
    """One function in this process: `call(info)` runs it."""

    def __init__(
        self,
        spec: dict[str, Any],
        handle: Callable[..., Any],
        call: Callable[[context.CallInfo], Any] | None = None,
    ) -> None:
        """`call` is the way to run a `handle` of another convention."""
        self.spec = spec
        self.entry: str = spec["entry"]
        self.debug: bool = spec["debug"]
        self.concurrency: int = spec["concurrency"]
        self.max_body: int = spec["max_body"]
        self.max_response: int = spec["max_response"]
        self.handle = handle
        self.kind = kind_of(handle)
        self.is_async = self.kind.startswith("async")
        self.extras: dict[str, str] = {}
        self.import_seconds = 0.0
        self.parameters = parameters_of(handle)
        plan = plan_arguments(self.parameters) if call is None else {}
        self.request_convention = list(plan.values()) == ["req"]
        self._bind = call or self._binder(plan)

    def call(self, info: context.CallInfo) -> Any:
        """What `handle` returns: a value, a coroutine, or a generator. Raises Refused for unfit data."""
        return self._bind(info)

    def describe(self) -> dict[str, Any]:
        """What the host shows of it."""
        return {
            "kind": self.kind,
            "takes": [parameter.name for parameter in self.parameters],
            "extras": self.extras,
            "import_seconds": self.import_seconds,
        }

    def _binder(self, plan: dict[str, str]) -> Callable[[context.CallInfo], Any]:
        handle, secrets = self.handle, self.spec["secrets"]
        decode = self._decoder(plan)
        positional = self._positional_only()
        if list(plan) == ["data", "function_call_info"] and not positional:
            return lambda info: handle(data=decode(info), function_call_info=info)
        if self._takes_alone(plan, "data"):
            return lambda info: handle(decode(info))
        if self._takes_alone(plan, "req"):
            return lambda info: handle(info)
        sources: dict[str, Callable[[context.CallInfo], Any]] = {
            "data": decode,
            "function_call_info": lambda info: info,
            "req": lambda info: info,
            "secrets": lambda info: dict(secrets),
            "client": self._client(plan),
        }

        def bind(info: context.CallInfo) -> Any:
            given = {name: sources[source](info) for name, source in plan.items()}
            return handle(*[given.pop(name) for name in positional], **given)

        return bind

    def _client(self, plan: dict[str, str]) -> Callable[[context.CallInfo], Any]:
        if "client" not in plan:
            return lambda info: None
        cognite = import_module(f"{__package__}.conventions.cognite")
        named = any(parameter.name == "client" for parameter in self.parameters)
        try:
            source: Callable[[context.CallInfo], Any] = cognite.source(named=named)
        except ValueError as error:
            raise LoadError(str(error)) from error
        return source

    def _positional_only(self) -> list[str]:
        return [p.name for p in self.parameters if p.kind is p.POSITIONAL_ONLY]

    def _takes_alone(self, plan: dict[str, str], source: str) -> bool:
        """Whether this is all that it is given, and can be its first argument."""
        first = self.parameters[0] if self.parameters else None
        fits = first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        return list(plan.values()) == [source] and first is not None and fits and first.name in plan

    def _decoder(self, plan: dict[str, str]) -> Callable[[context.CallInfo], Any]:
        name = next((name for name, source in plan.items() if source == "data"), None)
        if name is None:
            return lambda info: None
        return body.decoder(annotation_of(self.handle, name))


def load(spec: dict[str, Any]) -> Handler:
    """Import the function's entry file and make its Handler; raises whatever the import raises, or LoadError."""
    started = monotonic()
    importer = LocalImporter(spec["modules"], space=spec["space"], name=spec["name"])
    importer.install(spec["search"])
    loaded = _native(spec, importer) if spec["convention"] == "handle" else _adapted(spec, importer)
    if loaded.is_async:
        import_module(f"{__package__}.aloop")  # once, in the zygote, and not in each worker
    output.install_logging()
    loaded.extras = importer.extras(spec["search"])
    loaded.import_seconds = monotonic() - started
    return loaded


def _native(spec: dict[str, Any], importer: LocalImporter) -> Handler:
    standins.serve("function", spec)  # Altair's handlers import its `variables`
    handle = getattr(importer.load_entry(), "handle", None)
    if handle is None:
        raise LoadError("there is no `handle` in this file: define `def handle(data): ...`")
    if not callable(handle):
        raise LoadError(f"`handle` is not a function, but of the type {type(handle).__name__}")
    return Handler(spec, handle)


def _adapted(spec: dict[str, Any], importer: LocalImporter) -> Handler:
    """For a file of another platform."""
    convention = adapter(spec["convention"])
    convention.prepare(spec)
    return Handler(spec, *convention.adapt(importer.load_entry(), spec))


def kind_of(handle: Callable[..., Any]) -> str:
    """One of KINDS, read through functools.partial, decorators made by functools.wraps, and callable objects."""
    target = function_of(handle)
    if inspect.isasyncgenfunction(target):
        return "async_generator"
    if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(handle):
        return "async"
    return "generator" if inspect.isgeneratorfunction(target) else "sync"


def function_of(handle: Callable[..., Any]) -> Callable[..., Any]:
    """The function that does the work: behind decorators, functools.partial, and `__call__`."""
    target = inspect.unwrap(handle)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(target.func)
    if inspect.isroutine(target):
        return target
    method: Callable[..., Any] = inspect.unwrap(type(target).__call__)
    return method


def parameters_of(handle: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of `handle`; LoadError where Python cannot tell."""
    try:
        return list(inspect.signature(handle).parameters.values())
    except (TypeError, ValueError) as error:
        raise LoadError(f"the parameters of `handle` cannot be read: {error}") from error


def plan_arguments(parameters: list[inspect.Parameter]) -> dict[str, str]:
    """Which parameter gets what: name → one of KNOWN_NAMES. LoadError for a required one that we do not know."""
    plan: dict[str, str] = {}
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            plan |= {known: known for known in KNOWN_NAMES if known != "req" and known not in plan}
        elif name in KNOWN_NAMES:
            plan[name] = name
        elif name in REQUEST_NAMES and len(parameters) == 1:
            plan[name] = "req"
        elif parameter.default is parameter.empty:
            raise LoadError(
                f"`handle` takes `{name}`, which is not known here: it may take data, function_call_info, "
                "secrets and client, or req alone; give other parameters a default"
            )
    return plan


def annotation_of(handle: Callable[..., Any], name: str) -> Any:
    """The type that parameter `name` is annotated with, strings resolved."""
    parameter = inspect.signature(handle).parameters.get(name)
    if parameter is None or not isinstance(parameter.annotation, str):
        return inspect.Parameter.empty if parameter is None else parameter.annotation
    try:
        return typing.get_type_hints(function_of(handle), include_extras=True)[name]
    except NameError as error:
        raise LoadError(f"the annotation of `{name}` cannot be resolved: {error}") from error


def describe_error(error: BaseException) -> dict[str, Any]:
    """Why a load failed, for the host: message, file and line nearest to the user, traceback without our frames."""
    ours = os.path.dirname(os.path.abspath(__file__))
    stack = traceback.TracebackException.from_exception(error)
    theirs = [
        entry
        for entry in stack.stack
        if not entry.filename.startswith((ours, "<frozen importlib")) and "/importlib/" not in entry.filename
    ]
    stack.stack[:] = theirs
    own = [entry for entry in theirs if not _is_installed(entry.filename)] or theirs
    file, line = (own[-1].filename, own[-1].lineno) if own else (None, None)
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    lines = list(stack.format_exception_only())  # unlike str(), this cannot raise
    line_of_type = lines[-1] if isinstance(error, SyntaxError) else lines[0]
    ours_to_say = isinstance(error, LoadError)
    message = str(error) if ours_to_say else line_of_type.strip()
    text = "" if ours_to_say else "".join(stack.format())
    return {
        "message": message[:4096].encode("utf-8", "backslashreplace").decode(),
        "file": file,
        "line": line,
        "traceback": text[-32768:].encode("utf-8", "backslashreplace").decode(),
    }


def _is_installed(file: str) -> bool:
    """Whether it is Python's own or of a package: not where the user will mend it."""
    return file.startswith(os.path.dirname(os.__file__) + os.sep) or f"{os.sep}site-packages{os.sep}" in file
