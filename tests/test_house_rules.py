"""The house budget, measured: small modules, small functions, a worker side on the standard library alone.

Reads the sources of `runtime/` with ast and imports nothing of them. Every failure names file and line.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "runtime"

MAX_MODULES = 200
MAX_LINES = 33_500
MAX_MODULE_LINES, MEDIAN_MODULE_LINES = 400, 200
MAX_FUNCTION_LINES, P90_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 60, 30, 8

VAGUE_NAMES = {"base", "common", "core", "helpers", "misc", "models", "services", "utils"}
OPTIONAL_IN_WORKER = {"msgspec", "pydantic"}  # used where the function's environment has them

CATCH_ALL_MODULES = {"app.py", "worker/loop.py", "worker/aloop.py"}
# Other places that must survive whatever is raised: "module.py:function" and the reason.
CATCH_ALL_ALLOWED = {
    "worker/failures.py:failure": "the exception is the user's, and its call is to have an answer",
    "worker/failures.py:traceback_text": "the exception is the user's, and so is what it does when printed",
    "worker/failures.py:_text_of": "a `__str__` of the user's may raise anything",
    "deadlines.py:Deadlines._reached": "one call's mishap must not cost the others their deadlines",
    "express/__init__.py:Express.record": "there is no application around it that would answer 500",
    "express/uvicorn.py:Passage._safely": "one call's mishap must not cost the others of its worker their answers",
    "deliveries.py:Deliveries._one": "one callback's mishap must not end the deliveries of the others",
    "dispatcher.py:Dispatcher._attempt": "a call that fails in the host is recorded as failed, whatever was raised",
    "host.py:Host._follow_changes": "a change on disk that cannot be read must not end the host",
    "http3.py:Quic._survive": "one connection's mishap must not end HTTP/3 for all others",
    "journal/lane.py:Lane._report": "one who is told and fails must not keep the others of a batch from being told",
    "journal/reader.py:Reader._answer": "a damaged row must neither hang those who wait nor end the reading thread",
    "journal/writer.py:Writer.work": "everybody who waits for a commit is to hear of its failure",
    "tasks.py:Tasks._run": "a failed piece of background work must not end the host",
    "worker/output.py:LogHandler.emit": "what cannot be logged must not fail the code that logs it",
    "worker/parent.py:Parent.fork": "a forked child must never run on in the zygote's own stack",
    "worker/preload.py:preload": "what a preloaded module raises is told to the host, which goes on without it",
    "worker/zygote.py:run_function_zygote": "what the function raises on import is told to the host",
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    path: Path
    text: str
    tree: ast.Module

    @property
    def place(self) -> str:
        """The path as it is written in the lists above."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def dotted(self) -> str:
        parts = self.path.relative_to(REPOSITORY).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


def parse(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(path, text, ast.parse(text, str(path)))


MODULES = [parse(path) for path in sorted(PACKAGE.rglob("*.py"))]
WORKER_MODULES = [module for module in MODULES if module.place.startswith("worker/")]


def functions() -> Iterator[tuple[int, str]]:
    """Lines and place of every function, nested ones too, from `def` to its last line."""
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, FunctionNode):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module.at(node)} {node.name}"


def largest(sized: list[tuple[int, str]], count: int = 10) -> str:
    """The first places to look at when a median or a sum is over its budget."""
    return "\n".join(f"{size:5} {place}" for size, place in sorted(sized, reverse=True)[:count])


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def nodes_run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is executed when the module is imported: not the bodies of functions, nor what only mypy reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode | ast.Lambda):
            continue
        yield child
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from nodes_run_on_import(other)
        else:
            yield from nodes_run_on_import(child)


def imported_names(module: Module, node: ast.AST) -> list[str]:
    """Absolute dotted names that an import statement may load: `from a import b` gives `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    origin = node.module or ""
    if node.level:
        package = module.dotted if module.path.name == "__init__.py" else module.dotted.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        origin = f"{package}.{origin}".rstrip(".")
    return [origin, *(f"{origin}.{alias.name}" for alias in node.names)]


def import_graph() -> dict[str, dict[str, str]]:
    """For each module, the modules of ours that it imports while it is imported, and where."""
    known = {module.dotted for module in MODULES}
    graph: dict[str, dict[str, str]] = {name: {} for name in known}
    for module in MODULES:
        for node in nodes_run_on_import(module.tree):
            found = [name for name in imported_names(module, node) if name in known]
            submodules = [name for name in found if any(name.startswith(f"{other}.") for other in found)]
            for name in submodules or found:
                graph[module.dotted].setdefault(name, module.at(node))
    return graph


def enclosing_functions(tree: ast.AST, name: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node with the dotted name of the function or class that it stands in."""
    for child in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(child, FunctionNode | ast.ClassDef):
            inner = f"{name}.{child.name}".lstrip(".")
        yield child, name
        yield from enclosing_functions(child, inner)


def ends_by_raising(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def catches_all(node: ast.AST) -> bool:
    """`except:`, `except Exception`, `suppress(Exception)`; BaseException too, unless it is raised again."""
    if isinstance(node, ast.ExceptHandler):
        caught = {"BaseException"} if node.type is None else {ast.unparse(name) for name in ast.walk(node.type)}
        return "Exception" in caught or ("BaseException" in caught and not ends_by_raising(node))
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}:
        return bool({"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args})
    return False


def catch_alls() -> dict[str, list[str]]:
    """Where everything is caught, outside the modules that may: "module.py:function" to file:line."""
    found: dict[str, list[str]] = {}
    for module in MODULES:
        if module.place in CATCH_ALL_MODULES:
            continue
        for node, function in enclosing_functions(module.tree):
            if catches_all(node):
                found.setdefault(f"{module.place}:{function}", []).append(module.at(node))
    return found


def test_the_package_is_small() -> None:
    """The package stays within the budget above."""
    sized = [(module.lines, module.at(module.tree)) for module in MODULES]

    assert len(MODULES) <= MAX_MODULES
    assert sum(lines for lines, _ in sized) <= MAX_LINES, largest(sized)


def test_modules_are_short() -> None:
    """No module is over 400 lines, and half of them are at most 200."""
    sized = [(module.lines, module.at(module.tree)) for module in MODULES]

    assert [entry for entry in sized if entry[0] > MAX_MODULE_LINES] == []
    assert statistics.median(lines for lines, _ in sized) <= MEDIAN_MODULE_LINES, largest(sized)


def test_functions_are_short() -> None:
    """No function is over 60 lines, nine in ten are at most 30, and half of them at most 8."""
    sized = sorted(functions())
    lengths = [lines for lines, _ in sized]

    assert [entry for entry in sized if entry[0] > MAX_FUNCTION_LINES] == []
    assert lengths[math.ceil(len(lengths) * 0.9) - 1] <= P90_FUNCTION_LINES, largest(sized, len(sized) // 10)
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES, largest(sized, len(sized) // 2)


def test_every_module_says_what_it_is() -> None:
    """Every module opens with a docstring."""
    silent = [module.at(module.tree) for module in MODULES if not ast.get_docstring(module.tree)]

    assert silent == [], "\n".join(silent)


def test_module_names_say_something() -> None:
    """No module or package has a name that would take in anything."""
    vague = [module.at(module.tree) for module in MODULES if VAGUE_NAMES & set(module.dotted.split("."))]

    assert vague == [], "\n".join(vague)


def test_the_worker_side_needs_only_the_standard_library() -> None:
    """Below runtime/worker/ every absolute import is of the standard library, or optional inside a `try`."""
    allowed = sys.stdlib_module_names
    wrong = []
    for module in WORKER_MODULES:
        tries = [node for node in ast.walk(module.tree) if isinstance(node, ast.Try)]
        optional = {inner for node in tries for statement in node.body for inner in ast.walk(statement)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            roots = {name.partition(".")[0] for name in imported_names(module, node)} - allowed
            if roots - (OPTIONAL_IN_WORKER if node in optional else set()):
                wrong.append(f"{module.at(node)} {ast.unparse(node)}")

    assert WORKER_MODULES
    assert wrong == [], "\n".join(wrong)


def test_relative_imports_of_the_worker_side_stay_there() -> None:
    """The worker side is mounted under another name, so it cannot reach its siblings in the host."""
    wrong = [
        f"{module.at(node)} {ast.unparse(node)}"
        for module in WORKER_MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
        if not imported_names(module, node)[0].startswith("runtime.worker")
    ]

    assert wrong == [], "\n".join(wrong)


def test_no_import_cycles() -> None:
    """Modules can be put in an order in which each imports only earlier ones."""
    graph = import_graph()
    try:
        graphlib.TopologicalSorter(graph).prepare()
        cycle = []
    except graphlib.CycleError as error:
        names = error.args[1][::-1]  # from importer to imported
        pairs = itertools.pairwise(names)
        cycle = [f"{graph[importer][imported]} imports {imported}" for importer, imported in pairs]

    assert any(graph.values())
    assert cycle == [], "\n".join(cycle)


def test_everything_is_caught_only_where_everything_must_be_survived() -> None:
    """`except Exception` stands in the named places only, each with its reason."""
    found = catch_alls()
    wrong = [f"{line} in {place}" for place, lines in found.items() if place not in CATCH_ALL_ALLOWED for line in lines]

    assert wrong == [], "\n".join(wrong)
    assert sorted(CATCH_ALL_ALLOWED.keys() - found.keys()) == [], "no longer needed"


def test_only_the_command_line_prints() -> None:
    """`print` is called in the modules of the command line alone: all else is logged or returned."""
    prints = [
        module.at(node)
        for module in MODULES
        if module.place not in {"cli.py", "commands.py", "following.py"}
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert prints == [], "\n".join(prints)
