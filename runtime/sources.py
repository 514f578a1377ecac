"""What the text of a Python file says, without running it.

Pure functions on the bytes of a file: does it have a `handle`, what does that take, what does the file
import. `entrypoints` asks the first of every file there is, so it must be quick; `snapshots` asks the last.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, TypeVar

import msgspec

Kind = Literal["sync", "async", "generator", "async_generator", "unknown"]
Binding = ast.stmt | ast.Name | ast.alias
_Value = TypeVar("_Value")

_WORD = re.compile(rb"\bhandle\b")
_MARGIN = re.compile(
    rb"^(?:(?:async[ \t]+)?def[ \t]+handle\b|handle[ \t]*(?::[^=\n]*)?=(?!=))",
    re.MULTILINE,
)
_PLAIN = re.compile(rb"(?:async[ \t]+)?def[ \t]+handle[ \t]*\(([\w\s,*/:.|=]*)\)[ \t]*(?:->[^:\n]*)?:")
_IMPORTED = re.compile(rb"^from[ \t][^\n]*\bimport\b[^\n]*\bhandle\b", re.MULTILINE)
_IMPORT_LINE = re.compile(
    rb"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]*(\([^)]*|[^\n#]*)|import[ \t]+([^\n#]*))",
    re.MULTILINE,
)
_IDENTIFIER = re.compile(rb"[A-Za-z_]\w*")
_DYNAMIC = ("import_module", "__import__")
ALL_BELOW = "**"  # among the names of an Import: any module below its `module`, whatever is asked for when it runs
LARGE = (
    256 * 1024
)  # bytes; what is larger is mostly data, and the parser, which lets nobody else run, takes a second for
# each million of them
_FILE = "spaces_static_reading"  # the file's name as far as the parser's warnings are concerned
_QUIET = ("ignore", None, Warning, re.compile(_FILE), 0)


class Signature(msgspec.Struct, frozen=True):
    """How `handle` is defined, as far as reading tells: its line, what calling it gives, what it takes.

    `kind` is "unknown", and `takes` empty, where no `def` in this file defines it. `*args` and `**kwargs`
    keep their stars.
    """

    line: int
    kind: Kind
    takes: tuple[str, ...]


class Import(msgspec.Struct, frozen=True):
    """`from <level dots><module> import <names>`, or `import <module>` where there are no names.

    An import of a name that is made up as it runs has ALL_BELOW for its names.
    """

    module: str
    names: tuple[str, ...] = ()
    level: int = 0


def signature(code: bytes) -> Signature | None:
    """How the module binds `handle`; None where it does not.

    A `def handle` or `handle =` at the left margin settles it, and so works in a file with a syntax error.
    Only where that leaves room for doubt is the whole file parsed and every binding in the module's scope
    looked for, under `if` and `try` too. `from x import *` is taken to bring no `handle`.
    """
    if b"handle" not in code:
        return None
    margin = list(_MARGIN.finditer(code))
    sure = [match for match in margin if not may_be_in_string(code, match.start())]
    plain = _plain_signature(code, sure[-1].start()) if sure else None
    if plain is not None or not _WORD.search(code):
        return plain
    tree = parse(code)
    if tree is not None:
        node = binding(tree, "handle")
        return signature_of(node) if node is not None else None
    likely = sure or margin or list(_IMPORTED.finditer(code))
    return Signature(line_of(code, likely[-1].start()), "unknown", ()) if likely else None


def imports(code: bytes) -> tuple[Import, ...]:
    """Every import in the file, those inside functions included; none where it cannot be parsed.

    `import_module(x)` and `__import__(x)` count, too. Of a LARGE file: every line that is an import by itself.
    """
    if len(code) <= LARGE:
        return _imports_parsed(code)
    trees = [parse(_import_at(match)) for match in _IMPORT_LINE.finditer(code)]
    return tuple(dict.fromkeys(found for tree in trees if tree is not None for found in _imports(tree)))


@lru_cache(maxsize=1024)
def _imports_parsed(code: bytes) -> tuple[Import, ...]:
    tree = parse(code)
    return tuple(dict.fromkeys(_imports(tree))) if tree is not None else ()


def _import_at(match: re.Match[bytes]) -> bytes:
    """The statement of an import line."""
    return match[0].strip(b" \t\\") + (b")" if match[2] and match[2].startswith(b"(") else b"")


@lru_cache(maxsize=256)
def exported(code: bytes) -> tuple[str, ...]:
    """The names that the file lists in `__all__`, as far as they are written out."""
    tree = parse(code)
    return tuple(_listed(tree)) if tree is not None else ()


def mentioned(code: bytes) -> frozenset[str]:
    """All words of the import lines, without the standard library's: a quick superset of what is imported."""
    found = {
        word.decode()
        for match in _IMPORT_LINE.finditer(code)
        for group in match.groups()
        if group
        for word in _IDENTIFIER.findall(group)
    }
    words: frozenset[str] = _shared(frozenset(found - sys.stdlib_module_names))
    return words


def parse(code: bytes) -> ast.Module | None:
    """The file's tree; None where it is no Python, or LARGE."""
    if len(code) > LARGE:
        return None
    # The parser warns of odd escapes and the like. That is the worker's to say, when it imports the file;
    # and where warnings are errors it would make a good file look broken. catch_warnings is not for threads.
    if [*warnings.filters[:1]] != [_QUIET]:
        warnings.filterwarnings("ignore", module=_FILE)
    try:
        return ast.parse(code, _FILE)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=1024)
def _shared(value: _Value) -> _Value:
    """The same object for equal ones: of thousands of files, most say one of a few things."""
    return value


def _plain_signature(code: bytes, start: int) -> Signature | None:
    """The signature of the `handle` at `start`, if it is simple enough to be read without parsing."""
    line = line_of(code, start)
    if code.startswith(b"handle", start):
        return Signature(line, "unknown", ())
    header = _PLAIN.match(code, start)
    if header is None or b"yield" in code[start:]:
        return None
    names = (re.split(rb"[:=]", part)[0].strip().decode() for part in header[1].split(b","))
    kind: Kind = "async" if header[0].startswith(b"async") else "sync"
    takes = tuple(name for name in names if name not in ("", "*", "/"))
    found: Signature = _shared(Signature(line, kind, takes))
    return found


def signature_of(node: Binding) -> Signature:
    """What is known of a name that is bound here."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return Signature(node.lineno, "unknown", ())
    yields = any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in own_scope(node.body))
    kind: Kind
    if isinstance(node, ast.AsyncFunctionDef):
        kind = "async_generator" if yields else "async"
    else:
        kind = "generator" if yields else "sync"
    return Signature(node.lineno, kind, tuple(_parameters(node.args)))


def line_of(code: bytes, position: int) -> int:
    """The number of the line that this byte is in."""
    return code.count(b"\n", 0, position) + 1


def may_be_in_string(code: bytes, position: int) -> bool:
    """Whether this byte may be inside a text of several lines."""
    return any(code.count(quotes, 0, position) % 2 for quotes in (b'"""', b"'''"))


def own_scope(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of one scope, in the order of the source; functions and classes in it are not entered."""
    todo = [*body][::-1]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            todo += [*ast.iter_child_nodes(node)][::-1]


def binding(tree: ast.Module, name: str) -> Binding | None:
    """The last thing in the module's scope that binds the name."""
    last: Binding | None = None
    declared: set[ast.AST] = set()
    for node in own_scope(tree.body):
        match node:
            case ast.AnnAssign(target=target, value=None):
                declared.add(target)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if node.name == name:
                last = node
            case ast.Name(id=bound, ctx=ast.Store()) if bound == name and node not in declared:
                last = node
            case ast.alias() if (node.asname or node.name) == name:
                last = node
    return last


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    for argument in (*arguments.posonlyargs, *arguments.args):
        yield argument.arg
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}"
    for argument in arguments.kwonlyargs:
        yield argument.arg
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def _imports(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield Import(module or "", tuple(alias.name for alias in names), level)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if _is_dynamic(function):
                module = name.lstrip(".")
                yield Import(module, (), len(name) - len(module))
            case ast.Call(func=function, args=[name, *_]) if _is_dynamic(function):
                yield Import(_beginning(name), (ALL_BELOW,))


def _beginning(name: ast.expr) -> str:
    """The packages that a made-up module name begins with, as in f"plugins.{name}" and "plugins." + name."""
    match name:
        case (
            ast.JoinedStr(values=[ast.Constant(value=str(text)), *_])
            | ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add())
        ) if not text.startswith("."):
            return text.rpartition(".")[0]
    return ""


def _is_dynamic(function: ast.expr) -> bool:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _DYNAMIC
    return False


def _listed(tree: ast.Module) -> Iterator[str]:
    for node in own_scope(tree.body):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=value)
                | ast.AugAssign(target=ast.Name(id="__all__"), value=value)
            ) if isinstance(value, ast.List | ast.Tuple):
                yield from (
                    item.value for item in value.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)
                )
