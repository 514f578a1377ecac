"""Which functions the text of a file defines, and by which platform's convention, without running it.

`search` asks this of every file there is, so it must be quick; `snapshots` asks it of the files of one
function. Reads with `sources`. What a worker makes of each convention is in `worker/conventions/`.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from runtime import sources
from runtime.sources import Signature

Convention = Literal["handle", "lambda", "functions_framework", "kernel"]
Definition = ast.FunctionDef | ast.AsyncFunctionDef

FILES = ("handler.py", "lambda_function.py", "main.py")  # in a folder of its own; only the first may have a `handle`
MEANT = {  # what a function of each convention consists in, for messages
    "handle": "`handle`",
    "lambda": "`lambda_handler`",
    "functions_framework": "function decorated by functions_framework",
    "kernel": "Kernel action of this name",
}

_DECORATORS = tuple(f"functions_framework.{name}" for name in ("http", "cloud_event", "typed"))
_ASYNC_DECORATORS = tuple(f"functions_framework.aio.{name}" for name in ("http", "cloud_event"))
_NO_ASYNC = "functions_framework.aio is not served; make it a plain `def`, decorated by functions_framework itself"
_NO_NAME = "the action's name is made up as the file runs; write it out as text, so that it can be read"

# How they look at the left margin, for files that cannot be parsed.
_LAMBDA = re.compile(rb"^(?:(?:async[ \t]+)?def[ \t]+lambda_handler\b|lambda_handler[ \t]*=(?!=))", re.MULTILINE)
_DECORATED = re.compile(
    rb"^@(?:functions_framework\.)?(?:http|cloud_event|typed)\b[^\n]*\n(?:@[^\n]*\n)*(?:async[ \t]+)?def[ \t]+(\w+)",
    re.MULTILINE,
)
_ACTION = re.compile(rb"""^@\w+\.action\(\s*(?:name\s*=\s*)?(["'])([^"'\n]+)\1""", re.MULTILINE)
_APP = re.compile(rb"""\bApp\(\s*(?:name\s*=\s*)?(["'])([^"'\n]+)\1""")


class Entrypoint(msgspec.Struct, frozen=True):
    """One function that a file defines.

    `target` is the name it has there: of a `def`, or of a Kernel action; empty for a `handle`, which has no
    other. `app` is the name of the Kernel app.
    """

    signature: Signature
    convention: Convention = "handle"
    target: str = ""
    app: str = ""


class Entrypoints(msgspec.Struct, frozen=True):
    """All functions that a file defines.

    `broken`: it cannot be parsed, so there may be others. `unserved` are the lines of those that look like
    functions, and why they are none.
    """

    found: tuple[Entrypoint, ...] = ()
    broken: bool = False
    unserved: tuple[tuple[int, str], ...] = ()


def read(code: bytes) -> Entrypoints:
    """The functions in a file: its `handle` alone where it has one, else those of another platform's convention.

    A `handle` that is decorated as another platform's function is that platform's.
    """
    native = sources.signature(code)
    handle = () if native is None else (Entrypoint(native),)
    kernel = b"kernel" in code and b".action" in code
    if not kernel and b"functions_framework" not in code and b"lambda_handler" not in code:
        return Entrypoints(handle)
    tree = sources.parse(code)
    if tree is None:
        return Entrypoints(handle or tuple(_guessed(code)), broken=True)
    reading = _Reading(tree)
    lines = {entry.signature.line for entry in (*reading.actions.values(), *reading.decorated.values())}
    if native is not None and native.line not in lines:
        return Entrypoints(handle)
    found = tuple((reading.actions or reading.decorated).values()) or tuple(_lambda(tree))
    return Entrypoints(found, unserved=tuple(reading.unserved))


def functions(path: str, folder: str, contents: Entrypoints) -> dict[str, Entrypoint]:
    """The functions that a file in a space's `folder`, or in a folder there, stands for, by name.

    One that is alone in its file has the name of the file, or of the folder; several have their own. Kernel
    actions always have their own.
    """
    found = contents.found
    place, leaf = os.path.split(path)
    stem = leaf.removesuffix(".py")
    if place != folder:
        stem = os.path.basename(place)
        if leaf not in FILES or (leaf != FILES[0] and any(entry.convention == "handle" for entry in found)):
            return {}
    if len(found) == 1 and found[0].convention != "kernel":
        return {stem: found[0]}
    return {entry.target: entry for entry in reversed(found)}


class _Reading:
    """What is decorated in a module's scope, statement by statement, as Python would run it."""

    def __init__(self, tree: ast.Module) -> None:
        self.actions: dict[tuple[str, str], Entrypoint] = {}
        self.decorated: dict[str, Entrypoint] = {}
        self.unserved: list[tuple[int, str]] = []
        self._imported: dict[str, str] = {}  # a name here → what it is, in full
        self._texts: dict[str, str] = {}
        self._apps: dict[str, str] = {}
        for node in sources.own_scope(tree.body):
            self._take(node)

    def _take(self, node: ast.AST) -> None:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    root = alias.name.partition(".")[0]
                    self._imported[alias.asname or root] = alias.name if alias.asname else root
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    self._imported[alias.asname or alias.name] = f"{module}.{alias.name}"
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                self._assigned(name, value)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for decorator in node.decorator_list:
                    self._decorator(node, decorator)

    def _assigned(self, name: str, value: ast.expr) -> None:
        text = self._text(value)
        if text is not None:
            self._texts[name] = text
        elif isinstance(value, ast.Call) and self._full_name(value.func) == "kernel.App":
            self._apps[name] = self._text(_first(value)) or ""

    def _decorator(self, node: Definition, decorator: ast.expr) -> None:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = self._full_name(called)
        if name in _DECORATORS:
            entry = Entrypoint(sources.signature_of(node), "functions_framework", node.name)
            self.decorated[node.name] = entry
        elif name in _ASYNC_DECORATORS:
            self.unserved.append((node.lineno, _NO_ASYNC))
        elif isinstance(decorator, ast.Call):
            self._action(node, decorator)

    def _action(self, node: Definition, decorator: ast.Call) -> None:
        match decorator.func:
            case ast.Attribute(value=ast.Name(id=variable), attr="action") if variable in self._apps:
                app, name = self._apps[variable], self._text(_first(decorator))
                if name is None:
                    self.unserved.append((node.lineno, _NO_NAME))
                else:
                    self.actions[app, name] = Entrypoint(sources.signature_of(node), "kernel", name, app)

    def _full_name(self, expression: ast.expr) -> str:
        match expression:
            case ast.Name(id=name):
                return self._imported.get(name, "")
            case ast.Attribute(value=value, attr=name):
                return f"{self._full_name(value)}.{name}"
        return ""

    def _text(self, expression: ast.expr | None) -> str | None:
        match expression:
            case ast.Constant(value=str(text)) if text.isprintable():  # JSON has no lone surrogates
                return text
            case ast.Name(id=name):
                return self._texts.get(name)
        return None


def _first(call: ast.Call) -> ast.expr | None:
    """The first argument, or the one called `name`."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    return next(iter((*call.args, *named)), None)


def _lambda(tree: ast.Module) -> Iterator[Entrypoint]:
    node = sources.binding(tree, "lambda_handler")
    if node is not None:
        yield Entrypoint(sources.signature_of(node), "lambda", "lambda_handler")


def _guessed(code: bytes) -> Iterator[Entrypoint]:
    """What a file that cannot be parsed seems to define."""
    app = _APP.search(code) if b"kernel" in code else None
    actions = _matches(_ACTION, code) if app is not None else {}
    for name, line in actions.items():
        assert app is not None
        yield Entrypoint(Signature(line, "unknown", ()), "kernel", name, app[2].decode("utf-8", "replace"))
    decorated = _matches(_DECORATED, code) if b"functions_framework" in code and not actions else {}
    for name, line in decorated.items():
        yield Entrypoint(Signature(line, "unknown", ()), "functions_framework", name)
    match = _LAMBDA.search(code)
    if match is not None and not actions and not decorated and not sources.may_be_in_string(code, match.start()):
        yield Entrypoint(Signature(sources.line_of(code, match.start()), "unknown", ()), "lambda", "lambda_handler")


def _matches(pattern: re.Pattern[bytes], code: bytes) -> Mapping[str, int]:
    """The last groups of all matches outside of texts, and their lines."""
    return {
        match[pattern.groups].decode("utf-8", "replace"): sources.line_of(code, match.start())
        for match in pattern.finditer(code)
        if not sources.may_be_in_string(code, match.start())
    }
