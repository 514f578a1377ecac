"""What `entrypoints` finds in the text of a file: which functions, by which convention, under which names."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.entrypoints import functions, read

KERNEL = """
    import kernel
    app = kernel.App("shop")

    @app.action("buy")
    async def buy_it(ctx, payload): ...

    @app.action(name="sell")
    @traced
    def sell(ctx): ...
"""
TWO_APPS = """
    from kernel import App
    a, b = App("a"), 0
    x = App("x")
    y = App("y")
    @x.action("f")
    def g(c): ...
    @y.action("f")
    def h(c): ...
    @a.action("z")
    def i(c): ...
"""
FRAMEWORK = """
    import functions_framework

    @functions_framework.http
    def one(request): ...
"""


def found(text: str) -> list[tuple[str, str, str]]:
    """Convention, target and app of each function in a file."""
    contents = read(textwrap.dedent(text).encode())
    return [(entry.convention, entry.target, entry.app) for entry in contents.found]


def named(text: str, path: str = "/demo/stock.py") -> set[str]:
    """The names of the functions in a file of the space in /demo."""
    return set(functions(path, "/demo", read(textwrap.dedent(text).encode())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def handle(data): ...", [("handle", "", "")]),
        ("def lambda_handler(event, context): ...", [("lambda", "lambda_handler", "")]),
        ("lambda_handler = make()", [("lambda", "lambda_handler", "")]),
        ("from elsewhere import lambda_handler", [("lambda", "lambda_handler", "")]),
        (FRAMEWORK, [("functions_framework", "one", "")]),
        ("from functions_framework import http\n@http\ndef f(r): ...", [("functions_framework", "f", "")]),
        ("import functions_framework as ff\n@ff.typed(T)\ndef f(r): ...", [("functions_framework", "f", "")]),
        ("from functions_framework import typed as t\n@t\ndef f(r): ...", [("functions_framework", "f", "")]),
        (KERNEL, [("kernel", "buy", "shop"), ("kernel", "sell", "shop")]),
        ("from kernel import App\nNAME = 'n'\na = App(NAME)\n@a.action(NAME)\ndef f(c): ...", [("kernel", "n", "n")]),
        ("import kernel as k\na: k.KernelApp = k.App(name='n')\n@a.action('f')\ndef g(c): ...", [("kernel", "f", "n")]),
        (TWO_APPS, [("kernel", "f", "x"), ("kernel", "f", "y")]),
    ],
)
def test_each_convention_is_told_by_its_own_signs(text: str, expected: list[tuple[str, str, str]]) -> None:
    """However the names were imported."""
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# lambda_handler",
        "lambda_handler()",
        "def outer():\n    def lambda_handler(event, context): ...",
        "import functions_framework\ndef f(request): ...",
        "from flask import http\nimport functions_framework\n@http\ndef f(r): ...",
        "import kernel\n@app.action('f')\ndef f(ctx): ...",
        "from other import kernel\napp = kernel.App('a')\n@app.action('f')\ndef f(ctx): ...",
        "from .kernel import App\napp = App('a')\n@app.action('f')\ndef f(ctx): ...",
        "'''\n@functions_framework.http\ndef f(r): ...\n'''",
    ],
)
def test_what_only_looks_alike_is_none(text: str) -> None:
    """It is a helper module then."""
    assert found(text) == []


def test_a_handle_goes_first() -> None:
    """Over whatever else is in the file; unless it is decorated as another platform's."""
    assert found(textwrap.dedent(KERNEL) + "def handle(data): ...") == [("handle", "", "")]
    assert found("def lambda_handler(e, c): ...\ndef handle(data): ...") == [("handle", "", "")]
    assert found(FRAMEWORK.replace("one", "handle")) == [("functions_framework", "handle", "")]


def test_the_last_of_a_name_counts() -> None:
    """As it does when Python runs the file."""
    text = textwrap.dedent(KERNEL) + "@app.action('buy')\ndef other(ctx): ...\n"
    contents = read(text.encode())
    assert [(entry.target, entry.signature.takes) for entry in contents.found] == [
        ("buy", ("ctx",)),
        ("sell", ("ctx",)),
    ]


def test_kind_and_parameters_are_read() -> None:
    """Of the `def` below the decorators."""
    buy, sell = read(textwrap.dedent(KERNEL).encode()).found
    assert (buy.signature.kind, buy.signature.takes, buy.signature.line) == ("async", ("ctx", "payload"), 6)
    assert (sell.signature.kind, sell.signature.takes) == ("sync", ("ctx",))


def test_names() -> None:
    """One function of a file has the file's name, several their own, actions always their own."""
    two = textwrap.dedent(FRAMEWORK) + "@functions_framework.http\ndef stock(request): ...\n"
    assert named(FRAMEWORK) == {"stock"}
    assert named(two) == {"one", "stock"}
    assert named(KERNEL) == {"buy", "sell"}
    assert named("import kernel\na = kernel.App('a')\n@a.action('only')\ndef f(c): ...") == {"only"}
    assert named("def lambda_handler(e, c): ...") == {"stock"}


def test_names_in_a_folder() -> None:
    """That of the folder, for the files that platforms deploy from; a `handle` is in handler.py only."""
    assert named(FRAMEWORK, "/demo/far/main.py") == {"far"}
    assert named("def lambda_handler(e, c): ...", "/demo/far/lambda_function.py") == {"far"}
    assert named("def lambda_handler(e, c): ...", "/demo/far/handler.py") == {"far"}
    assert named(KERNEL, "/demo/far/handler.py") == {"buy", "sell"}
    assert named("def handle(): ...", "/demo/far/handler.py") == {"far"}
    assert named("def handle(): ...", "/demo/far/main.py") == set()
    assert named(FRAMEWORK, "/demo/far/other.py") == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KERNEL, [("kernel", "buy", "shop"), ("kernel", "sell", "shop")]),
        (FRAMEWORK, [("functions_framework", "one", "")]),
        ("async def lambda_handler(event, context): ...", [("lambda", "lambda_handler", "")]),
        ("def handle(data): ... # lambda_handler", [("handle", "", "")]),
    ],
)
def test_a_broken_file_is_guessed_at(text: str, expected: list[tuple[str, str, str]]) -> None:
    """By what stands at the left margin."""
    broken = textwrap.dedent(text) + "\ndef x(:\n"
    assert found(broken) == expected
    assert read(broken.encode()).broken
    assert not read(textwrap.dedent(text).encode()).broken


def test_what_cannot_be_served_says_why() -> None:
    """With its line."""
    text = "from functions_framework import aio\n\n@aio.http\nasync def f(request): ...\n"
    assert read(text.encode()).unserved == ((4, read(text.encode()).unserved[0][1]),)
    assert "functions_framework.aio" in read(text.encode()).unserved[0][1]
    text = "import kernel\na = kernel.App('a')\n@a.action(f'{x}')\ndef f(ctx): ...\n"
    [(line, why)] = read(text.encode()).unserved
    assert line == 4
    assert "write it out" in why


def test_names_that_json_does_not_have_are_none() -> None:
    """Of an app or an action: one of them would spoil every list that it is in."""
    text = "import kernel\na = kernel.App('\\ud800')\n@a.action('x\\udfff')\ndef f(ctx): ...\n"
    assert read(text.encode()).found == ()
    [entry] = read(text.replace(r"x\udfff", "x").encode()).found
    assert (entry.app, entry.target) == ("", "x")


@given(st.lists(st.sampled_from(["import kernel\n", "app = kernel.App('a')\n", "@app.action(", "'f'", ")\n", "def f(c)",
                                 ": ...\n", "import functions_framework\n", "@functions_framework.http\n",
                                 "def lambda_handler(e, c)", "'''", "\0", "\udcff", " "]), max_size=12))  # fmt: skip
def test_any_text_can_be_read(pieces: list[str]) -> None:
    """Whatever is in the file, and reading it twice says the same."""
    code = "".join(pieces).encode("utf-8", "surrogateescape")
    assert read(code) == read(code)
