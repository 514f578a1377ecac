"""What `sources` reads in the text of a file, against what Python makes of it when it runs it."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import sources
from runtime.sources import ALL_BELOW, Import, exported, imports, mentioned, signature


def code(text: str) -> bytes:
    return textwrap.dedent(text).encode()


def kind(text: str) -> str | None:
    found = signature(code(text))
    return found.kind if found else None


@pytest.mark.parametrize(
    "text",
    [
        "def handle(data): pass",
        "async def handle(data): pass",
        "import os\n\ndef\thandle ( data ) :\n  pass",
        "def handle[T](data: T) -> T: ...",
        "@decorate\ndef handle(data): pass",
        "handle = make()",
        "handle: Callable = make()",
        "handle=1",
        "from elsewhere import handle",
        "from elsewhere import a, handle",
        "from elsewhere import (\n    a,\n    handle,\n)",
        "from elsewhere import serve as handle",
        "import elsewhere as handle",
        "class handle: pass",
        "a, handle = make()",
        "if True:\n    def handle(data): pass",
        "try:\n    from a import handle\nexcept ImportError:\n    def handle(data): pass",
        "with x as handle: pass",
        "for handle in x: pass",
        "print(handle := 1)",
        '"""def handle(data): text."""\n\ndef handle(data): pass',
        "\r\ndef handle(data):\r\n    pass\r\n",
        "\ufeffdef handle(data): pass",
    ],
)
def test_what_binds_handle_in_the_modules_scope_makes_a_function(text: str) -> None:
    """Every way of binding the name counts."""
    assert signature(text.encode()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "def handler(data): pass",
        "def handle_error(error): pass",
        "handle.x = 1",
        "handle[0] = 1",
        "handle == 1",
        "print(handle)",
        "handle: Callable",
        "# def handle(data): pass",
        "def outer():\n    def handle(data): pass",
        "class Outer:\n    def handle(self): pass",
        "lambda: (handle := 1)",
        "from elsewhere import handle as other",
        "from elsewhere import *",
        "import handle.x",
        '"""Example:\n\ndef handle(data): pass\n"""',
        "'''\nhandle = 1\n'''",
    ],
)
def test_what_only_mentions_the_word_makes_none(text: str) -> None:
    """Text, other scopes and longer names do not bind it."""
    assert signature(text.encode()) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import os\n\ndef handle(data):\n    return (\n", 3),
        ("def broken(:\nasync def handle(data):\n    pass", 2),
        ("from x import handle\ndef broken(:", 1),
        ("'''\nhandle = 1\n'''\n)", 2),
    ],
)
def test_a_file_with_a_syntax_error_still_has_a_handle(text: str, line: int) -> None:
    """So the function stays known, and the error can be shown."""
    found = signature(text.encode())
    assert found is not None
    assert found.line == line


@pytest.mark.parametrize("text", ["def broken(:\n    handle", "handle\0", "(" * 10_000 + " handle", "\xff handle"])
def test_a_broken_file_that_mentions_the_word_has_none(text: str) -> None:
    """Nothing at the left margin says that it would be bound."""
    assert signature(text.encode("latin-1")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def handle(data): return 1", "sync"),
        ("async def handle(data): return 1", "async"),
        ("def handle(data):\n    yield 1", "generator"),
        ("def handle(data):\n    yield from data", "generator"),
        ("async def handle(data):\n    if data:\n        yield 1", "async_generator"),
        ("def handle(data):\n    def inner():\n        yield 1\n    return inner()", "sync"),
        ("def handle(data):\n    return lambda: (yield)", "sync"),
        ("def other():\n    yield 1\ndef handle(data):\n    return 1", "sync"),
        ("def handle(data):\n    return 1\ndef other():\n    yield 1", "sync"),
        ("handle = make()", "unknown"),
        ("def handle(data): pass\nhandle = wrap(handle)", "unknown"),
        ("from elsewhere import handle", "unknown"),
        ("class handle:\n    def __call__(self): ...", "unknown"),
        ("def handle(data): pass\nasync def handle(req): pass", "async"),
        ("if x:\n    async def handle(req): pass", "async"),
        ("def handle(:", "unknown"),
    ],
)
def test_kind_is_that_of_the_last_def(text: str, expected: str) -> None:
    """A `yield` counts in the function's own scope only."""
    assert kind(text) == expected


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("def handle(): ...", ()),
        ("def handle(data, function_call_info): ...", ("data", "function_call_info")),
        ("def handle(\n    data: Order,\n    secrets=None,\n) -> dict[str, int]: ...", ("data", "secrets")),
        ("def handle(data: dict[str, int] = {}, *, secrets): ...", ("data", "secrets")),
        ("def handle(a, /, b, *args, c=',', **kwargs): ...", ("a", "b", "*args", "c", "**kwargs")),
        ("def handle(a,/,b,*,c=1,**kwargs): ...", ("a", "b", "c", "**kwargs")),
        ("def handle(data: int | None = None): ...", ("data",)),
        ("def handle(data, # the data\n  secrets): ...", ("data", "secrets")),
        ("def handle(größe): ...", ("größe",)),
    ],
)
def test_takes_has_the_parameters_names(text: str, takes: tuple[str, ...]) -> None:
    """Whatever annotations, defaults and comments there are."""
    found = signature(text.encode())
    assert found is not None
    assert found.takes == takes


def test_the_line_is_that_of_the_def() -> None:
    """Not that of its decorator or of an earlier one."""
    found = signature(code("def handle(): pass\n\n@decorate\ndef handle(): pass"))
    assert found is not None
    assert found.line == 4


def test_reading_does_not_warn_of_the_files_own_faults() -> None:
    """The warning belongs into the log of the worker that imports the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind('"""\\d"""\nif x:\n    def handle(data): ...') == "sync"


names = st.sampled_from(["data", "req", "secrets", "b", "c_2", "größe"])
parameters = st.lists(names, unique=True, max_size=4).flatmap(
    lambda chosen: st.tuples(
        *(
            st.tuples(
                st.just(name),
                st.sampled_from(["", ": int", ": dict[str, int]", ": 'A, B'", ": int | None"]),
                st.sampled_from([" = 1", " = (1, 2)", " = 'x, y'", " = None"]),
            )
            for name in chosen
        )
    )
)
bodies = st.sampled_from(["pass", "yield 1", "return 1", "x = 'yield'", "def f(): yield 1", "(yield)", "return"])
befores = st.sampled_from(["", '"""Doc."""', "import os", "x = '''\ndef handle(no): ...\n'''", "handle = 1", "# '''"])


@given(parameters, bodies, befores, st.booleans(), st.booleans(), st.sampled_from(["", "/, ", "*, "]))
def test_reading_agrees_with_running(
    chosen: tuple[tuple[str, str, str], ...], body: str, before: str, is_async: bool, spread: bool, mark: str
) -> None:
    """Line, kind and parameters are those of the function that Python makes of the text."""
    written = ["".join(parts) for parts in chosen]
    if written and mark:
        written.insert(1 if mark == "/, " else 0, mark.strip(", "))
    separator = ",\n    " if spread else ", "
    header = f"{'async ' if is_async else ''}def handle({separator.join(written)}):\n    {body}\n"
    text = f"{before}\n{header}"
    if is_async and body == "return 1" and "yield" in text:
        return
    found = signature(text.encode())
    module = types.ModuleType("handler")
    exec(compile("from __future__ import annotations\n" + text, "x.py", "exec"), module.__dict__)
    handle = module.handle
    assert found is not None
    assert found.line == handle.__code__.co_firstlineno - 1
    assert found.takes == tuple(inspect.signature(handle).parameters)
    kinds = {
        "async_generator": inspect.isasyncgenfunction(handle),
        "async": inspect.iscoroutinefunction(handle),
        "generator": inspect.isgeneratorfunction(handle),
        "sync": not inspect.iscoroutinefunction(handle),
    }
    assert found.kind == next(kind for kind, holds in kinds.items() if holds)


@given(st.text(alphabet="handle =def(:)\n\t\"'#\\asyncimport", max_size=60).map(lambda text: text + "handle"))
def test_any_text_can_be_read(text: str) -> None:
    """Nothing that is in a file makes reading fail."""
    signature(text.encode())
    imports(text.encode())
    mentioned(text.encode())
    exported(text.encode())


@pytest.mark.parametrize("depth", [900, 2_000, 4_000])
def test_very_deep_code_can_be_read(depth: int) -> None:
    """A long chain of operators nests deeper than Python may recurse."""
    signature(f"x = {' + '.join('1' * depth)}\nif x:\n    def handle(data): ...".encode())


def test_imports_are_found_wherever_they_are() -> None:
    """In functions, under conditions, in other imports' company."""
    text = """
        import a.b, c as d
        from . import e
        from ..f.g import h, i as j
        from k import *
        def handle(data):
            import l
            if data:
                from m import n
            importlib.import_module("o.p")
            import_module(".q", __package__)
            __import__("r")
            importlib.import_module(name)
            import_module(f"t.u.{name}")
            import_module("v." + name)
            import_module(f".{name}", __package__)
            load("s")
    """
    assert set(imports(code(text))) == {
        Import("a.b"),
        Import("c"),
        Import("", ("e",), 1),
        Import("f.g", ("h", "i"), 2),
        Import("k", ("*",)),
        Import("l"),
        Import("m", ("n",)),
        Import("o.p"),
        Import("q", (), 1),
        Import("r"),
        Import("", (ALL_BELOW,)),
        Import("t.u", (ALL_BELOW,)),
        Import("v", (ALL_BELOW,)),
    }


def test_a_file_with_a_syntax_error_has_no_imports() -> None:
    """They are not known, and it will not run anyway."""
    assert imports(b"import a\ndef") == ()


def test_of_a_large_file_the_lines_that_import_are_read() -> None:
    """The others are data: to parse them would hold up everything else."""
    data = "DATA = [\n" + "    {'name': 'import nothing', 'more': 1},\n" * 20_000 + "]\n"
    head = "import one\nfrom .two import (\n    three,\n    four as five,\n)\n"
    text = f"{head}{data}\ndef handle(data):\n    from six import *\n"
    assert len(text) > sources.LARGE
    assert sources.parse(text.encode()) is None
    assert imports(text.encode()) == (
        Import("one"), Import("two", ("three", "four"), 1), Import("six", ("*",)),
    )  # fmt: skip
    assert signature(text.encode()) == signature(text.replace(data, "\n" * data.count("\n")).encode())


def test_exported_is_what_all_lists() -> None:
    """As far as it is written out."""
    assert exported(b"__all__ = ['a', 'b']\n__all__ += ('c', x)\n__all__ = other") == ("a", "b", "c")
    assert exported(b"def") == ()


words = st.sampled_from(["alpha", "beta", "pkg.gamma", "delta"])
statements = st.one_of(
    words.map(lambda word: f"import {word}"),
    st.tuples(words, words).map(lambda pair: f"import {pair[0]}, {pair[1]} as x"),
    words.map(lambda word: f"    import {word}"),
    words.map(lambda word: f"from .{word} import y"),
    words.map(lambda word: f"from . import {word.split('.')[0]}"),
    words.map(lambda word: f"from . import (\n    z,\n    {word.split('.')[0]},\n)"),
)


@given(st.lists(statements, max_size=4))
def test_mentioned_misses_no_import(lines: list[str]) -> None:
    """Every local module that an import names is among the words."""
    indented = ["if True:\n" + line if line.startswith("    ") else line for line in lines]
    text = "\n".join(["import json", *indented])
    found = mentioned(text.encode())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert all(alias.name == "json" or set(alias.name.split(".")) <= found for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert {alias.name for alias in node.names} <= found
            assert set((node.module or "x").split(".")) <= found | {"x"}
    assert "json" not in found
