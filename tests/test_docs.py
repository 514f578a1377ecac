"""The docs hold what the code has: links lead somewhere, examples parse, and every command, setting and
error is described. spaces.toml at the top level counts as docs: it shows every setting with its default.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
import pytest

from runtime.config import FunctionSettings, ServerSettings, load
from runtime.errors import HostError

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "docs" / "reference"

FENCE = re.compile(r"^( *)(```+|~~~+)([^\n`]*)\n(.*?)^\1\2`*~* *$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", re.DOTALL)  # ends with its paragraph
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?[^)]*\)       # [text](target "title")
    | ^\ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)   # [text]: target
    | (?:href|src)="([^"]+)"             # HTML in Markdown
    """,
    re.MULTILINE | re.VERBOSE,
)
HEADING = re.compile(r"^ {0,3}#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
EXPLICIT_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")
COMMENTED_SETTING = re.compile(r"^# (?:e\.g\. )?(\w+) = ", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    place: str
    language: str
    text: str


def pages() -> list[Path]:
    patterns = ("*.md", "bench/*.md", "docs/**/*.md")
    return [page for pattern in patterns for page in sorted(REPOSITORY.glob(pattern))]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def place(page: Path, line: int) -> str:
    return f"{page.relative_to(REPOSITORY)}:{line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = read(page)
    for fence in FENCE.finditer(text):
        words = fence[3].split()
        if words and words[0] in languages:
            yield Block(place(page, line_of(text, fence.start()) + 1), words[0], textwrap.dedent(fence[4]))


def blanked(pattern: re.Pattern[str], text: str) -> str:
    """`text` with what matches made empty, its lines kept."""
    return pattern.sub(lambda found: "\n" * found[0].count("\n"), text)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page, and those set by hand."""
    text = blanked(FENCE, read(page))
    found = set(EXPLICIT_ANCHOR.findall(text))
    seen: Counter[str] = Counter()
    for heading in HEADING.findall(text):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Line and target of every link that stays in the repository."""
    text = blanked(INLINE_CODE, blanked(FENCE, read(page)))
    for link in LINK.finditer(text):
        target = unquote(next(filter(None, link.groups())))
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield line_of(text, link.start()), target


def aim(page: Path, target: str) -> tuple[Path, str]:
    """The file and the fragment that a link on this page means."""
    path, _, fragment = target.partition("#")
    return ((page.parent / path).resolve() if path else page), fragment


def dead_links(page: Path) -> Iterator[str]:
    for line, target in links(page):
        file, fragment = aim(page, target)
        if not file.is_relative_to(REPOSITORY) or not file.exists():
            yield f"{place(page, line)}: {target}"
        elif fragment and file.suffix == ".md" and fragment not in anchors(file):
            yield f"{place(page, line)}: {target} is none of its headings: {', '.join(sorted(anchors(file)))}"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each `spaces` command, by its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def explains(page: Path, name: str) -> bool:
    """Whether the page has `name` in backticks, alone or first in them."""
    return re.search(rf"`{re.escape(name)}(?![\w-])", read(page)) is not None


def shows(page: Path, words: str) -> bool:
    """Whether the page has the words somewhere in code, inline or in a block."""
    text = read(page)
    code = [fence[4] for fence in FENCE.finditer(text)]
    code += [inline[0] for inline in INLINE_CODE.finditer(blanked(FENCE, text))]
    return any(re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", part) for part in code)


def error_codes(cls: type[HostError]) -> set[str]:
    """The code of this class and of all below it."""
    return {cls.code}.union(*map(error_codes, cls.__subclasses__()))


def refusals(source: Path) -> Iterator[tuple[str, int]]:
    """Code and status of every `Refused` that a module of the worker side or of trained functions makes."""
    for node in ast.walk(ast.parse(read(source))):
        match node:
            case ast.Call(
                func=ast.Name(id="Refused"), args=[ast.Constant(value=int(status)), ast.Constant(value=code), *_]
            ):
                yield code, status
            case ast.Call(func=ast.Name(id="Refused"), args=[ast.Constant(value=str(code)), _, *status]):
                yield code, ast.literal_eval(status[0]) if status else 400


def settings(table: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(table)]


def metric_names(source: Path) -> set[str]:
    """The names of the Prometheus metrics that a module makes, as they are exposed."""
    names = set()
    for node in ast.walk(ast.parse(read(source))):
        match node:
            case ast.Call(
                func=ast.Name(id="Family"), args=[ast.Constant(value=str(name)), ast.Constant(value=kind), *_]
            ):
                names.add(f"{name}_total" if kind == "counter" else name)
    return names


def compile_problem(block: Block) -> str | None:
    """What is wrong with a Python block; statements outside a function may await."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"{block.place}: {error}"
    return None


def toml_problem(block: Block) -> str | None:
    try:
        tomllib.loads(block.text)
    except ValueError as error:
        return f"{block.place}: {error}"
    return None


def test_links_lead_somewhere() -> None:
    """Every relative link points to a file of the repository and, where it names one, to a heading in it."""
    dead = [link for page in pages() for link in dead_links(page)]

    assert dead == [], "\n".join(dead)


def test_every_page_can_be_found() -> None:
    """Every page of docs/ is linked from README or from another page."""
    linked = {aim(page, target)[0] for page in pages() for _, target in links(page) if not target.startswith("#")}
    lost = [place(page, 1) for page in REPOSITORY.glob("docs/**/*.md") if page not in linked]

    assert lost == [], "\n".join(sorted(lost))


def test_python_examples_compile() -> None:
    """Every Python block in the docs is valid Python."""
    found = [block for page in pages() for block in blocks(page, "python", "py")]
    problems = list(filter(None, map(compile_problem, found)))

    assert found
    assert problems == [], "\n".join(problems)


def test_toml_examples_parse() -> None:
    """Every TOML block in the docs is valid TOML."""
    found = [block for page in pages() for block in blocks(page, "toml")]
    problems = list(filter(None, map(toml_problem, found)))

    assert found
    assert problems == [], "\n".join(problems)


def test_every_command_is_described() -> None:
    """docs/reference/command-line.md has every `spaces` command and every long option of each."""
    from runtime.cli import build_parser

    page = REFERENCE / "command-line.md"
    commands = subcommands(build_parser())
    options = {
        option
        for parser in commands.values()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and action.help != argparse.SUPPRESS
    }
    missing = [name for name in commands if not shows(page, f"spaces {name}")]
    missing += sorted(option for option in options - {"--help"} if not shows(page, option))

    assert {"dev", "serve"} <= commands.keys()
    assert missing == []


@pytest.mark.parametrize("table", [ServerSettings, FunctionSettings])
def test_every_setting_is_described(table: type[msgspec.Struct]) -> None:
    """docs/reference/configuration.md has every setting, in backticks."""
    page = REFERENCE / "configuration.md"
    names = settings(table)

    assert names
    assert [name for name in names if not explains(page, name)] == []


def test_every_error_code_is_described() -> None:
    """docs/reference/errors.md has the code of every error, in backticks."""
    page = REFERENCE / "errors.md"
    codes = sorted(error_codes(HostError))

    assert "not_found" in codes
    assert [code for code in codes if not explains(page, code)] == []


def test_every_refusal_is_described() -> None:
    """docs/reference/errors.md has a row for each code and status with which a worker refuses data."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", read(REFERENCE / "errors.md"), re.MULTILINE)
    sources = [path for folder in ("worker", "classify") for path in (REPOSITORY / "runtime" / folder).rglob("*.py")]
    found = {refusal for source in sources for refusal in refusals(source)}

    assert {("bad_json", 400), ("not_trained", 400)} <= found
    assert found - {(code, int(status)) for code, status in rows} == set()


def test_every_metric_is_described() -> None:
    """docs/reference/metrics.md has the name of every metric, in backticks."""
    page = REFERENCE / "metrics.md"
    names = metric_names(REPOSITORY / "runtime" / "exposition.py")

    assert "spaces_calls_total" in names
    assert sorted(name for name in names if not explains(page, name)) == []


def test_the_example_configuration_is_complete() -> None:
    """spaces.toml shows every setting of [server] and [defaults], and no other."""
    shown = COMMENTED_SETTING.findall(read(REPOSITORY / "spaces.toml"))

    assert sorted(shown) == sorted(settings(ServerSettings) + settings(FunctionSettings))


def test_the_example_configuration_tells_the_defaults(tmp_path: Path) -> None:
    """The settings that spaces.toml shows commented out are what holds without them."""
    (tmp_path / "functions").mkdir()
    plain = load(tmp_path, environ={})
    example = read(REPOSITORY / "spaces.toml")
    (tmp_path / "spaces.toml").write_text(re.sub(r"^# (?=\w+ = )", "", example, flags=re.MULTILINE))
    uncommented = load(tmp_path, environ={})

    assert uncommented.server == plain.server
    assert uncommented.defaults == plain.defaults
