"""LocalImporter in processes of its own, on sources that `snapshots` took: what they import, and from where."""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import snapshots
from runtime.worker import importer as module_under_test

DRIVER = """
import importlib.util, json, sys
given = json.loads(sys.stdin.read())
spec = importlib.util.spec_from_file_location("_importer", given["importer"])
module = importlib.util.module_from_spec(spec)
sys.modules["_importer"] = module
spec.loader.exec_module(module)
sys.path.insert(0, given["installed"])
importer = module.LocalImporter(given["modules"], space="demo", name="stock")
importer.install(given["search"])
said = []
scope = {"importer": importer, "say": said.append}
exec(compile(given["script"], "<script>", "exec"), scope)
print(json.dumps(said))
"""

Say = Callable[..., list[Any]]


class Place:
    """A space `demo` with a function `stock`, and a folder of installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space = folder / "functions" / "demo"
        self.installed = folder / "installed"
        self.installed.mkdir()
        self.space.mkdir(parents=True)

    def write(self, files: Mapping[str, str], *, below: Path | None = None) -> None:
        for name, text in files.items():
            path = (below or self.space) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def install(self, **packages: str) -> None:
        self.write({f"{name}.py": text for name, text in packages.items()}, below=self.installed)

    def take(self) -> snapshots.Snapshot:
        return snapshots.take("demo", "stock", str(self.space))

    def run(
        self,
        files: Mapping[str, str] | None = None,
        script: str = "say(importer.load_entry().handle())",
        *,
        meanwhile: Callable[[], object] = lambda: None,
        options: tuple[str, ...] = (),
    ) -> list[Any]:
        """What the script says in a new process; `meanwhile` happens after the sources were taken."""
        self.write(files or {})
        snapshot = self.take()
        meanwhile()
        sent = {
            "importer": module_under_test.__file__,
            "installed": str(self.installed),
            "modules": [
                [module.name, module.path, module.code.decode("latin-1"), module.package, module.late]
                for module in snapshot.modules
            ],
            "search": snapshot.search,
            "script": textwrap.dedent(script),
        }
        done = subprocess.run(
            [sys.executable, "-P", "-S", *options, "-c", DRIVER],
            input=json.dumps(sent),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said: list[Any] = json.loads(done.stdout)
        return said


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_entry_runs_as_a_module_of_its_space(place: Place) -> None:
    """Its name, package, file and spec are what a file of a package has."""
    text = "def handle(): return [__name__, __package__, __file__, __spec__.origin, __spec__.parent]"
    path = str(place.space / "stock.py")
    assert place.run({"stock.py": text}) == [["functions.demo.stock", "functions.demo", path, path, "functions.demo"]]


def test_the_sources_run_that_were_sent(place: Place) -> None:
    """Not what the files have become since, in lazy imports neither."""
    files = {
        "stock.py": """
            import helper
            def handle():
                import lazy
                from pkg import inner
                return [helper.VALUE, lazy.VALUE, inner.VALUE]
        """,
        "helper.py": "VALUE = 'old'",
        "lazy.py": "VALUE = 'old'",
        "pkg/__init__.py": "",
        "pkg/inner.py": "VALUE = 'old'",
    }

    def spoil() -> None:
        place.write(dict.fromkeys(files, "raise SystemExit('read from disk')"))

    assert place.run(files, meanwhile=spoil) == [["old", "old", "old"]]


def test_the_sources_run_after_the_files_are_gone(place: Place) -> None:
    """A generation can be started again whatever happened to its files."""
    files = {"stock.py": "import pkg.mod, bare.mod\ndef handle(): return pkg.mod.X + bare.mod.X", "pkg/__init__.py": ""}
    files |= {"pkg/mod.py": "X = 1", "bare/mod.py": "X = 2"}

    def remove() -> None:
        for name in files:
            (place.space / name).unlink()
        (place.space / "bare").rmdir()

    assert place.run(files, meanwhile=remove) == [3]


def test_one_module_has_one_object_by_every_name(place: Place) -> None:
    """So that there is one state, however a module is imported and whoever comes first."""
    files = {
        "stock.py": """
            from . import helper as a
            import helper as b
            from functions.demo import helper as c
            import pkg.mod
            from .pkg import mod as d
            import functions.demo.pkg.mod as e
            import user
            def handle():
                import sys
                return [a is b is c is user.helper, pkg.mod is d is e, pkg.mod.__name__,
                        sys.modules["helper"] is sys.modules["functions.demo.helper"],
                        a.__spec__.name, a.__spec__.origin == a.__file__]
        """,
        "helper.py": "",
        "user.py": "import helper",
        "pkg/__init__.py": "",
        "pkg/mod.py": "",
    }
    full = "functions.demo.pkg.mod"
    assert place.run(files) == [[True, True, full, True, "functions.demo.helper", True]]


def test_helpers_may_import_relatively_too(place: Place) -> None:
    """A dot is the module's folder, two are the one above, up to the space's."""
    files = {
        "stock.py": "import helper\nfrom pkg.mod import Y\ndef handle(): return [helper.X, Y]",
        "helper.py": "from .other import X",
        "other.py": "X = 1",
        "pkg/__init__.py": "",
        "pkg/mod.py": "from ..other import X\nfrom . import sibling\nY = X + sibling.Z",
        "pkg/sibling.py": "Z = 1",
    }
    assert place.run(files) == [[1, 2]]


def test_circular_imports_work_as_ever(place: Place) -> None:
    """Also when one module of the circle uses short names, and another relative ones."""
    files = {
        "stock.py": "import a\ndef handle(): return [a.b.a is a, a.b.c.a is a, a.b.c.b is a.b]",
        "a.py": "import b",
        "b.py": "from . import a\nimport c",
        "c.py": "import a, b",
    }
    assert place.run(files) == [[True, True, True]]


def test_a_folder_function_is_a_module_of_its_folder(place: Place) -> None:
    """A dot is the function's folder, two are the space's; both are searched for short names, its own first."""
    files = {
        "stock/handler.py": """
            from . import helper as a
            from .. import helper as b
            import helper as c
            import shared
            from .pkg import x
            def handle(): return [__name__, a.X, b.X, c is a, shared.X, x]
        """,
        "stock/helper.py": "X = 'own'",
        "stock/pkg/__init__.py": "x = 'pkg'",
        "helper.py": "X = 'space'",
        "shared.py": "X = 'shared'",
    }
    assert place.run(files) == [["functions.demo.stock.handler", "own", "space", True, "shared", "pkg"]]


def test_a_folder_functions_init_is_run_first(place: Place) -> None:
    """It is a package's then, as everywhere in Python; the space's own is not run."""
    files = {
        "stock/handler.py": "from . import X\ndef handle(): return X",
        "stock/__init__.py": "X = 1",
        "__init__.py": "raise SystemExit('run')",
    }
    assert place.run(files) == [1]


def test_the_standard_library_always_wins(place: Place) -> None:
    """A file that happens to be called as one of its modules changes nothing; relatively it can be reached."""
    files = {
        "stock.py": """
            import json, email.message
            from . import json as own, email as mail
            def handle(): return [json.dumps([1]), hasattr(email.message, "Message"), own.X, mail.X]
        """,
        "json.py": "X = 1",
        "email.py": "X = 2",
    }
    assert place.run(files) == [["[1]", True, 1, 2]]


def test_no_way_leads_to_another_space(place: Place) -> None:
    """By no name, although they are beside each other on disk."""
    files = {
        "stock.py": """
            def handle():
                try:
                    from functions.other import helper
                except ImportError as error:
                    return error.name
        """,
        "../other/helper.py": "",
    }
    assert place.run(files) == ["functions.other"]


def test_a_helper_wins_over_an_installed_package(place: Place) -> None:
    """What is beside the handler is nearer."""
    place.install(helper="X = 'installed'")
    assert place.run({"stock.py": "import helper\ndef handle(): return helper.X", "helper.py": "X = 'own'"}) == ["own"]


def test_an_installed_package_wins_over_another_function(place: Place) -> None:
    """A function called as the package that it wraps must not take its place in the others."""
    place.install(stripe="X = 'installed'")
    files = {
        "stock.py": """
            import stripe, twilio, billing
            from . import stripe as own
            def handle(): return [stripe.X, twilio.X, own.X, billing.X]
        """,
        "stripe.py": "X = 'function'\ndef handle(): ...",
        "twilio.py": "X = 'function'\ndef handle(): ...",
        "billing/handler.py": "def handle(): ...",
        "billing/__init__.py": "X = 'function'",
    }
    assert place.run(files) == [["installed", "function", "function", "function"]]


def test_an_installed_package_wins_over_a_bare_folder(place: Place) -> None:
    """As with sys.path; and then its modules are its own, whatever is in the folder."""
    place.write({"wide/__init__.py": "", "wide/mod.py": "X = 'installed'"}, below=place.installed)
    files = {
        "stock.py": "import wide.mod, near.mod\ndef handle(): return [wide.mod.X, near.mod.X]",
        "wide/mod.py": "X = 'own'",
        "near/mod.py": "X = 'own'",
    }
    assert place.run(files) == [["installed", "own"]]
    (place.installed / "wide" / "__init__.py").unlink()
    assert place.run(files) == [["own", "own"]]


def test_a_function_never_imports_itself_by_its_own_name(place: Place) -> None:
    """The name means the installed package; without one it is not found, and the message says why."""
    files = {"stock.py": "import stock\ndef handle(): return stock.X"}
    script = """
        try:
            importer.load_entry()
        except ModuleNotFoundError as error:
            say([error.name, str(error)])
    """
    [[name, message]] = place.run(files, script)
    assert name == "stock"
    assert message.startswith("No module named 'stock'")
    assert "demo/stock" in message
    place.install(stock="X = 'installed'")
    assert place.run(files) == ["installed"]


def test_a_users_module_called_functions_can_be_imported(place: Place) -> None:
    """The package that the modules are put into makes way for it."""
    files = {
        "stock.py": "import functions\nfrom .helper import Y\ndef handle(): return [functions.X, Y, __name__]",
        "functions.py": "X = 1",
        "helper.py": "Y = 2",
    }
    assert place.run(files) == [[1, 2, "functions_.demo.stock"]]


def test_what_was_not_seen_in_the_text_is_imported_from_disk(place: Place) -> None:
    """What is imported in ways that are not looked for goes the ordinary way, and is told as extras."""
    files = {
        "stock.py": """
            import importlib
            import pkg
            load = importlib.import_module
            made = load("hid" + "den")
            inner = load("pkg.in" + "ner")
            def handle(): return [made.X, inner.X, inner is pkg.inner, inner.__name__]
        """,
        "hidden.py": "X = 1",
        "pkg/__init__.py": "",
        "pkg/inner.py": "X = 2",
    }
    script = """
        say(importer.load_entry().handle())
        say(importer.extras(importer._search))
    """
    said, extras = place.run(files, script)
    assert said == [1, 2, True, "functions.demo.pkg.inner"]
    hidden, inner = place.space / "hidden.py", place.space / "pkg" / "inner.py"
    assert extras == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (hidden, inner)}


def test_what_is_imported_from_disk_is_what_is_there(place: Place) -> None:
    """Not what bytecode says that was made in the same second; and none is made."""
    place.write({"hidden.py": "X = 1", "pkg/inner.py": "X = 1", "sub/data.py": "X = 1"})
    stale = place.space / "hidden.py"
    py_compile.compile(str(stale))
    status = stale.stat()
    stale.write_text("X = 2")
    os.utime(stale, ns=(status.st_atime_ns, status.st_mtime_ns))
    text = """
        load = __import__
        hidden, inner = load("hid" + "den"), load("pkg.in" + "ner").inner
        def handle(): return [hidden.X, inner.X]
    """
    assert place.run({"stock.py": text}, "say(importer.load_entry().handle())") == [[2, 1]]
    assert not (place.space / "pkg" / "__pycache__").exists()


def test_extras_leave_out_what_is_not_the_users_own(place: Place) -> None:
    """Installed packages, in an environment below the space too, and what came with the snapshot."""
    place.install(package="")
    place.write({".venv/lib/site-packages/venv_one.py": "", "vendored/site-packages/venv_two.py": "", "gone.py": ""})
    text = """
        import importlib, os, sys
        import helper, package, json
        sys.path += [os.path.dirname(__file__) + "/.venv/lib/site-packages",
                     os.path.dirname(__file__) + "/vendored/site-packages"]
        load = importlib.import_module
        for name in ["venv" + "_one", "venv" + "_two", "go" + "ne"]:
            load(name)
        os.remove(sys.modules["gone"].__file__)
        def handle(): pass
    """
    script = "importer.load_entry()\nsay(importer.extras(importer._search))"
    assert place.run({"stock.py": text, "helper.py": ""}, script) == [{str(place.space / "gone.py"): ""}]


def test_a_name_that_does_not_exist_is_not_found(place: Place) -> None:
    """By import and by find_spec, at the top and in a package."""
    files = {
        "stock.py": """
            import importlib.util
            import pkg
            def handle():
                found = [importlib.util.find_spec(name) for name in ("nothing", "pkg.nothing")]
                try:
                    import pkg.nothing
                except ModuleNotFoundError as error:
                    return [*found, error.name]
        """,
        "pkg/__init__.py": "",
    }
    assert place.run(files) == [[None, None, "pkg.nothing"]]


def test_the_search_folders_come_last_on_sys_path_and_once(place: Place) -> None:
    """For all that looks there."""
    files = {"stock/handler.py": "def handle(): pass"}
    script = """
        import sys
        importer.install(importer._search)
        say(sys.path[-2:])
        say([sys.path.count(folder) for folder in sys.path[-2:]])
    """
    assert place.run(files, script) == [[str(place.space / "stock"), str(place.space)], [1, 1]]


def test_a_module_can_be_inspected(place: Place) -> None:
    """inspect, linecache, pkgutil and importlib.resources see the sources and the files beside them."""
    files = {
        "stock.py": """
            import inspect, importlib.resources, importlib.util, pkgutil
            import helper, pkg
            def handle():
                return [
                    inspect.getsource(helper.f),
                    inspect.getsourcefile(helper),
                    helper.__loader__.get_source(helper.__name__),
                    helper.__loader__.is_package(helper.__name__), pkg.__loader__.is_package(pkg.__name__),
                    pkgutil.get_data("pkg", "data.txt").decode(),
                    importlib.resources.files(pkg).joinpath("data.txt").read_text(),
                    importlib.resources.files(__package__).joinpath("data.txt").read_text(),
                    [each.name for each in pkgutil.iter_modules(pkg.__path__)],
                ]
        """,
        "helper.py": "# -*- coding: latin-1 -*-\ndef f():\n    return 1\n",
        "data.txt": "space",
        "pkg/__init__.py": "",
        "pkg/mod.py": "",
        "pkg/data.txt": "package",
    }

    def spoil() -> None:
        place.write({"helper.py": "\n\n\n\nnothing"})

    text = files["helper.py"]
    function = "def f():\n    return 1\n"
    path = str(place.space / "helper.py")
    expected = [function, path, text, False, True, "package", "package", "space", ["mod"]]
    assert place.run(files, meanwhile=spoil) == [expected]


def test_a_traceback_shows_the_lines_that_ran(place: Place) -> None:
    """Not those that are at these places in the files by now; form feeds do not shift them."""
    files = {"stock.py": "import helper\n\ndef handle():\n    helper.f()\n", "helper.py": "# \f\ndef f():\n    1 / 0\n"}
    script = """
        import traceback
        try:
            importer.load_entry().handle()
        except ZeroDivisionError:
            say(traceback.format_exc())
    """
    [text] = place.run(files, script, meanwhile=lambda: place.write({"helper.py": "a\nb\nc\n", "stock.py": ""}))
    assert f'{place.space}/helper.py", line 3, in f\n    1 / 0\n' in text
    assert f'{place.space}/stock.py", line 4, in handle\n    helper.f()\n' in text


def test_a_failing_import_leaves_nothing_behind(place: Place) -> None:
    """It can be caught, and fails again the next time."""
    files = {
        "stock.py": """
            import sys
            tried = []
            for _ in range(2):
                try:
                    import helper
                except ValueError as error:
                    tried.append(str(error))
            def handle(): return [*tried, "helper" in sys.modules, "functions.demo.helper" in sys.modules]
        """,
        "helper.py": "raise ValueError('no')",
    }
    assert place.run(files) == [["no", "no", False, False]]


@pytest.mark.parametrize("text", ["def broken(:", "x = '\udcff'", "# coding: nonsense", "\0"])
def test_a_file_that_is_not_python_raises_what_python_raises(place: Place, text: str) -> None:
    """With the file's name in it."""
    place.write({"stock.py": "import helper\ndef handle(): pass"})
    path, code = str(place.space / "helper.py"), text.encode("utf-8", "surrogateescape")
    Path(path).write_bytes(code)
    script = """
        try:
            importer.load_entry()
        except Exception as error:
            say([type(error).__name__, str(error), getattr(error, "filename", None)])
    """
    with pytest.raises((SyntaxError, ValueError)) as caught:
        compile(code, path, "exec")
    expected = [type(caught.value).__name__, str(caught.value), getattr(caught.value, "filename", None)]
    assert place.run({}, script) == [expected]


def test_no_bytecode_is_written_or_read(place: Place) -> None:
    """In the user's folder nothing appears, and what is there is not taken for the source's."""
    files = {"stock.py": "import helper\ndef handle(): return helper.X", "helper.py": "X = 1"}
    assert place.run(files) == [1]
    assert not list(place.space.rglob("__pycache__"))
    place.write({"helper.py": "X = 2"})
    always = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(place.space / "helper.py"), invalidation_mode=always)
    assert place.run(files) == [1]


def test_memory_without_the_name_of_the_function_is_enough() -> None:
    """`space` and `name` are only for messages; code may be bytes."""
    importer = module_under_test.LocalImporter([("functions.demo.stock", "/x/stock.py", b"", False, True)])
    assert importer.entry == "functions.demo.stock"
    assert importer.label == "demo/stock"


# Generated trees of modules, against what Python does with the same files on sys.path.

parts = st.sampled_from(["alpha", "beta", "gamma"])
dotted = st.lists(parts, min_size=1, max_size=3).map(".".join)
lines = st.one_of(
    dotted.map(lambda name: f"import {name}"),
    st.tuples(dotted, parts).map(lambda pair: f"from {pair[0]} import {pair[1]}"),
    dotted.map(lambda name: f"from {name} import *"),
)
relative = st.one_of(
    dotted.map(lambda name: f"import functions.demo.{name}"),
    st.tuples(dotted, parts).map(lambda pair: f"from functions.demo.{pair[0]} import {pair[1]}"),
    parts.map(lambda name: f"from functions.demo import {name}"),
    st.tuples(st.sampled_from([".", "..", "..."]), dotted, parts).map(
        lambda three: f"from {three[0]}{three[1]} import {three[2]}"
    ),
    st.tuples(st.sampled_from([".", "..", "..."]), parts).map(lambda pair: f"from {pair[0]} import {pair[1]}"),
)
paths = st.tuples(st.lists(parts, max_size=2).map("/".join), st.one_of(parts, st.just("__init__")))


def trees(statement: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, list[str]]]:
    """Files and the import statements in them; packages with and without `__init__.py` come of themselves."""
    names = paths.map(lambda pair: f"{pair[0]}/{pair[1]}.py".lstrip("/"))
    return st.dictionaries(names, st.lists(statement, max_size=2), max_size=7)


TRY = "try:\n    {}\nexcept ImportError:\n    pass\n"


PLAIN = """
import importlib, json, sys
sys.path.append(sys.argv[1])
importlib.import_module(sys.argv[2])
print(json.dumps([getattr(m, "__file__", None) for m in sys.modules.values()]))
"""
OURS = """
import sys
importer.load_entry()
say([getattr(m, "__file__", None) for m in sys.modules.values()])
say(importer.extras(importer._search))
"""


def assert_like_python(place: Place, files: dict[str, list[str]], entry: list[str], path: Path, name: str) -> None:
    """What `import name` loads with `path` on sys.path is what was taken, and nothing is read from disk."""
    texts = {name: "".join(map(TRY.format, found)) for name, found in files.items() if name != "__init__.py"}
    place.write({**texts, "stock.py": "".join(map(TRY.format, entry)) + "def handle(): ..."})
    plain = subprocess.run(
        [sys.executable, "-P", "-S", "-B", "-c", PLAIN, str(path), name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    ours, extras = place.run({}, OURS)
    assert below(place.space, ours) == below(place.space, json.loads(plain.stdout))
    assert extras == {}


def below(folder: Path, files: list[str | None]) -> set[str]:
    return {file for file in files if file and file.startswith(f"{folder}/")}


@settings(max_examples=25, deadline=None)
@given(trees(lines), st.lists(lines, min_size=1, max_size=4))
def test_short_names_load_what_they_load_in_python(files: dict[str, list[str]], entry: list[str]) -> None:
    """With the space's folder on sys.path."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        assert_like_python(place, files, entry, place.space, "stock")


@settings(max_examples=25, deadline=None)
@given(trees(relative), st.lists(relative, min_size=1, max_size=4))
def test_relative_and_full_names_load_what_they_load_in_python(files: dict[str, list[str]], entry: list[str]) -> None:
    """With ROOT on sys.path."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        assert_like_python(place, files, entry, place.folder, "functions.demo.stock")
