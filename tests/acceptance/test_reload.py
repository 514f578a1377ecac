"""Files are changed while the host runs: what is served next, and that no call fails meanwhile."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Running, Site, alive, error_of, eventually
from tests.acceptance.space import Space, version


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Running:
    """A host in production, for spaces of several tests."""
    shared_site.write("spaces.toml", '[defaults]\nload_timeout = "1s"\n')
    return shared_site.start("serve")


@pytest.fixture
def space(host: Running) -> Space:
    """A space of its own."""
    return Space(host)


def test_a_handler_can_be_added_edited_renamed_and_deleted(space: Space) -> None:
    """In a space that was not there at the start either."""
    assert space.call().status_code == 404
    space.write("stock.py", version(1))
    space.comes_to_serve(1)
    space.write("stock.py", version(2))
    space.serves(2)
    (space.folder / "stock.py").rename(space.folder / "renamed.py")
    space.comes_to_serve(2, "renamed")
    assert space.refuses(404).headers["content-type"] == "application/json"
    space.remove("renamed.py")
    assert "renamed" in error_of(space.refuses(404, "renamed"))["message"]


def test_a_function_in_a_folder_can_be_added_edited_renamed_and_deleted(space: Space) -> None:
    """As one in a file; the folder may go as a whole."""
    space.copy({"stock/handler.py": version(1), "other.py": version(0)})
    space.comes_to_serve(1)
    space.write("stock/handler.py", version(2))
    space.serves(2)
    (space.folder / "stock").rename(space.folder / "renamed")
    space.comes_to_serve(2, "renamed")
    space.refuses(404)
    space.remove("renamed")
    space.refuses(404, "renamed")
    assert space.answer("other") == 0


def test_a_function_may_move_between_a_file_and_a_folder(space: Space) -> None:
    """It is the same function: no call fails while it moves."""
    space.copy({"stock.py": version(1)})
    space.comes_to_serve(1)
    space.write("stock/handler.py", version(2))
    space.remove("stock.py")
    space.serves(2)
    space.write("stock.py", version(3))
    space.serves(3)
    space.remove("stock.py")
    space.serves(2)


HELPERS = {
    "absolute": ("stock.py", "import helper\ndef handle(data): return helper.X", "helper.py"),
    "from": ("stock.py", "from helper import X\ndef handle(data): return X", "helper.py"),
    "relative": ("stock.py", "from .helper import X\ndef handle(data): return X", "helper.py"),
    "sibling": ("stock.py", "from . import helper\ndef handle(data): return helper.X", "helper.py"),
    "package": ("stock.py", "import pack\ndef handle(data): return pack.X", "pack/__init__.py"),
    "submodule": ("stock.py", "import pack.deep.helper as h\ndef handle(data): return h.X", "pack/deep/helper.py"),
    "lazy": ("stock.py", "def handle(data):\n    import helper\n    return helper.X", "helper.py"),
    "lazy relative": ("stock.py", "def handle(data):\n    from .pack import sub\n    return sub.X", "pack/sub.py"),
    "by name": ("stock.py", "helper = __import__('helper')\ndef handle(data): return helper.X", "helper.py"),
    "made up": (
        "stock.py",
        "import importlib\ndef handle(data): return importlib.import_module(f'pack.{\"help\" + \"er\"}').X",
        "pack/helper.py",
    ),
    "own": ("stock/handler.py", "import helper\ndef handle(data): return helper.X", "stock/helper.py"),
    "own relative": ("stock/handler.py", "from . import helper\ndef handle(data): return helper.X", "stock/helper.py"),
    "of the space": ("stock/handler.py", "import helper\ndef handle(data): return helper.X", "helper.py"),
    "of the space, relative": ("stock/handler.py", "from ..helper import X\ndef handle(data): return X", "helper.py"),
    "own package": ("stock/handler.py", "from . import X\ndef handle(data): return X", "stock/__init__.py"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HELPERS)
def test_an_edit_of_a_helper_is_served(space: Space, kind: str) -> None:
    """However the handler imports it."""
    entry, code, helper = HELPERS[kind]
    space.copy({entry: code, helper: "X = 1\n"})
    space.comes_to_serve(1)
    for number in (2, 3):
        space.write(helper, f"X = {number}\n")
        space.serves(number)


def test_an_edit_of_what_a_helper_imports_is_served(space: Space) -> None:
    """Three steps away."""
    space.copy({
        "stock.py": "from a import X\ndef handle(data): return X",
        "a/__init__.py": "from .b import X",
        "a/b.py": "def __getattr__(name):\n    from c import X\n    return X",
        "c.py": "X = 1",
    })  # fmt: skip
    space.comes_to_serve(1)
    space.write("c.py", "X = 2")
    space.serves(2)


def test_a_helper_that_was_found_by_other_means_is_followed(space: Space) -> None:
    """A file that no import names is watched once it was loaded."""
    space.copy({
        "stock.py": "load = __import__\nodd = load('odd' + 'one')\ndef handle(data): return odd.X",
        "oddone.py": "X = 1",
    })  # fmt: skip
    space.comes_to_serve(1)
    space.write("oddone.py", "X = 2")
    space.serves(2)


def test_a_helper_that_was_missing_makes_the_function_load(space: Space) -> None:
    """Nobody needs to save the handler again."""
    space.copy({"stock.py": "import helper\ndef handle(data): return helper.X"})
    answer = space.refuses(503)
    assert "No module named 'helper'" in error_of(answer)["message"]
    eventually(lambda: space.status()["state"] == "failed", "its state")
    space.write("helper.py", "X = 1")
    space.comes_to_serve(1)
    assert space.status()["load_error"] is None


def test_a_helper_that_becomes_missing_leaves_the_old_generation(space: Space) -> None:
    """Also when a folder of them is moved away; it is loaded again when it comes back."""
    space.copy({"stock.py": "from pack.helper import X\ndef handle(data): return X", "pack/helper.py": "X = 1"})
    space.comes_to_serve(1)
    (space.folder / "pack").rename(space.folder / "away")
    assert "pack" in space.load_error()["message"]
    assert space.answer() == 1
    (space.folder / "away" / "helper.py").write_text("X = 2")
    (space.folder / "away").rename(space.folder / "pack")
    space.serves(2)
    assert space.status()["load_error"] is None


@pytest.mark.parametrize(
    ("before", "shadow"),
    [
        ("helper.py", "stock/helper.py"),
        ("helper.py", "helper/__init__.py"),
        ("stock/helper.py", "stock/helper/__init__.py"),
        ("helper/none.txt", "helper.py"),
    ],
)
def test_a_file_that_comes_to_be_found_first_is_served(space: Space, before: str, shadow: str) -> None:
    """A new module takes the place of one of its name that was found elsewhere until now, and gives it back."""
    code = "import helper\ndef handle(data): return getattr(helper, 'X', 1)"
    space.copy({"stock/handler.py": code, before: "X = 1"})
    space.comes_to_serve(1)
    space.write(shadow, "X = 2")
    space.serves(2)
    space.remove(shadow)
    space.serves(1)


def test_a_file_that_comes_to_hide_an_installed_package_is_served(space: Space) -> None:
    """A helper goes before an installed package of its name."""
    space.copy({"stock.py": "import h11\ndef handle(data): return getattr(h11, 'X', 1)"})
    space.comes_to_serve(1)
    space.write("h11.py", "X = 2")
    space.serves(2)
    space.remove("h11.py")
    space.serves(1)


def test_what_does_not_concern_a_function_leaves_it_alone(space: Space) -> None:
    """Other functions, helpers of others, files that are no code: the process stays."""
    handler = "import os, helper\ndef handle(data): return os.getppid()"
    space.copy({"stock.py": handler, "helper.py": "", "other.py": version(1), "unrelated.py": ""})
    space.comes_to_serve(1, "other")
    zygote = space.answer()
    space.write("unrelated.py", "X = 1")
    space.write("notes.txt", "X = 1")
    space.write("new.py", version(5))
    space.write("pack/inner.py", "X = 1")
    space.write("other.py", version(2))
    space.serves(2, "other")
    space.comes_to_serve(5, "new")
    assert space.answer() == zygote


def test_a_file_that_is_only_touched_is_not_loaded_again(space: Space) -> None:
    """Nor one that is saved unchanged."""
    space.copy({"stock.py": "import os, helper\ndef handle(data): return os.getppid()", "helper.py": ""})
    zygote = space.refuses(200).json()
    (space.folder / "stock.py").touch()
    (space.folder / "helper.py").touch()
    space.write("helper.py", "")
    space.write("clock.py", version(1))  # seen after them
    space.comes_to_serve(1, "clock")
    assert space.answer() == zygote


# Saves that cannot be served.

BROKEN = {
    "syntax": ("def handle(data):\n    return 1\n\ndef broken(:\n", 4, "SyntaxError"),
    "indentation": ("def handle(data):\n    x = 1\n  return x\n", 3, "IndentationError"),
    "raises": ("x = 1\n\ny = 1 / 0\n\ndef handle(data):\n    return 1\n", 3, "ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(3)\ndef handle(data): pass\n", 2, "SystemExit"),
    "interrupted": ("raise KeyboardInterrupt\ndef handle(data): pass\n", 1, "KeyboardInterrupt"),
    "ends its process": ("import os\nos._exit(3)\ndef handle(data): pass\n", 3, "status 3"),
    "killed": ("import os\nos.kill(os.getpid(), 11)\ndef handle(data): pass\n", 3, "SIGSEGV"),
    "handle removed": ("def handel(data):\n    return 2\n", 1, "no `handle`"),
    "handle deleted as it runs": ("def handle(data): pass\ndel handle\n", 1, "no `handle`"),
    "handle is no function": ("handle = 3\n", 1, "`handle` is not a function, but of the type int"),
    "unknown parameter": ("def handle(spam):\n    return 2\n", 1, "spam"),
    "emptied": ("", 1, "no `handle`"),
    "cut off": ("import os\n\ndef handle(data):\n    return [1, 2", 4, "SyntaxError"),
    "cut off before handle": ('"""What it does', 1, "no `handle`"),
    "not text": ("def handle(data): return '\udcff'\n", 1, "SyntaxError"),
    "missing module": ("\nfrom nowhere import x\ndef handle(data): pass\n", 2, "nowhere"),
    "never ends": ("def handle(data): pass\n\nwhile True: pass\n", 3, "did not finish within 1 s"),
    "sleeps": ("import time\ntime.sleep(1e6)\ndef handle(data): pass\n", 2, "did not finish within 1 s"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_save_leaves_the_old_generation_serving(space: Space, kind: str) -> None:
    """Log and status say what is wrong and where; the next good save is served."""
    code, line, message = BROKEN[kind]
    space.copy({"stock.py": version(1)})
    space.comes_to_serve(1)
    path = space.folder / "stock.py"
    beside = path.with_name(".new")
    beside.write_bytes(code.encode("utf-8", "surrogateescape"))
    beside.replace(path)
    error = space.load_error()
    assert message in error["message"]
    assert (error["file"], error["line"]) == (f"functions/{space.name}/stock.py", line)
    assert "traceback" not in error
    assert message in space.host.logged(f"{space.name}/stock.py:{line}: ")
    assert space.answer() == 1
    status = space.status()
    assert (status["state"], status["workers"]) == ("ready", 1)
    path.write_text(version(2))
    space.serves(2)
    assert space.status()["load_error"] is None


def test_a_broken_helper_is_named_with_its_line(space: Space) -> None:
    """The innermost place in the user's own files."""
    space.copy({"stock.py": "import helper\ndef handle(data): return helper.X", "helper.py": "X = 1"})
    space.comes_to_serve(1)
    space.write("helper.py", "import json\n\nX = json.loads('{')\n")
    error = space.load_error()
    assert (error["file"], error["line"]) == (f"functions/{space.name}/helper.py", 3)
    assert space.answer() == 1
    space.write("helper.py", "X = 2")
    space.serves(2)


def test_going_back_to_what_serves_ends_the_error(space: Space) -> None:
    """An undone edit needs no new generation."""
    space.copy({"stock.py": "import os\ndef handle(data): return os.getppid()"})
    zygote = space.refuses(200).json()
    text = (space.folder / "stock.py").read_text()
    space.write("stock.py", text + "(")
    space.load_error()
    space.write("stock.py", text)
    eventually(lambda: space.status()["load_error"] is None, "no error")
    assert space.answer() == zygote


def test_a_good_save_ends_an_import_that_never_ends(site: Site) -> None:
    """At once, whatever the load_timeout; also where nothing else could serve."""
    site.write("spaces.toml", '[defaults]\nload_timeout = "1h"\ntimeout = "1h"\n')
    site.write("demo/first.py", "import time\nprint('first begins', flush=True)\ntime.sleep(1e6)\n" + version(0))
    site.write("demo/stock.py", version(1))
    host = site.start("dev")
    assert host.call("demo/stock").json() == 1
    begins = "import os\nprint('stock begins as', os.getpid(), flush=True)\nwhile True: pass\n"
    site.write("demo/stock.py", begins + version(0))
    stuck = int(host.logged("stock begins as").split()[-1])
    assert host.call("demo/stock").json() == 1
    site.write("demo/stock.py", version(2))
    eventually(lambda: host.call("demo/stock").json() == 2, "the good save")
    eventually(lambda: not alive(stuck), "the end of the stuck import")

    site.write("demo/first.py", "import time\nprint('again begins', flush=True)\ntime.sleep(1e6)\n" + version(0))
    host.logged("again begins")
    site.write("demo/first.py", version(3))
    assert host.call("demo/first").json() == 3
    assert host.status("demo/stock")["load_error"] is None


def test_an_import_that_takes_long_is_not_begun_again_for_what_does_not_concern_it(site: Site) -> None:
    """Other files of the space may be saved while it loads."""
    site.write("spaces.toml", '[defaults]\nload_timeout = "1h"\ntimeout = "1h"\n')
    site.write("demo/stock.py", """
        import os, time
        print("begun", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
        def handle(data):
            return 1
        """)  # fmt: skip
    site.write("demo/other.py", version(1))
    host = site.start("dev")
    site.write("demo/stock.py", (site.root / "functions/demo/stock.py").read_text() + "\n# edited\n")
    host.logged("begun")
    for number in (2, 3):
        site.write("demo/other.py", version(number))
        eventually(lambda number=number: host.call("demo/other").json() == number, "the other one")
    (site.root / "functions/demo/go").touch()
    assert host.call("demo/stock").json() == 1
    assert sum(line.endswith("begun") for line in host.lines) == 1


def test_functions_that_never_load_hold_up_no_other(site: Site) -> None:
    """Not even more of them than are loaded at once."""
    site.write("spaces.toml", '[defaults]\nload_timeout = "1h"\ntimeout = "1h"\n')
    host = site.start("dev")
    for number in range(30):
        site.write(f"demo/stuck{number}.py", "import time\nprint('begun', flush=True)\ntime.sleep(1e6)\n" + version(0))
    eventually(lambda: host.log.count("begun") >= 8, "imports that do not end")
    site.write("demo/stock.py", version(1))
    eventually(lambda: host.call("demo/stock").status_code == 200, "the good one")


@pytest.mark.parametrize("command", ["dev", "serve"])
def test_who_calls_a_function_that_has_no_good_generation_sees_why(site: Site, command: str) -> None:
    """In dev with the traceback; in production without."""
    site.write("demo/stock.py", "import helper\n" + version(1))
    site.write("demo/helper.py", "def fail():\n    raise RuntimeError('not today')\n\nfail()\n")
    host = site.start(command)
    error = error_of(host.call("demo/stock"))
    assert error["status"] == 503
    assert error["code"] == "load_failed"
    assert error["message"] == "the function cannot be loaded: RuntimeError: not today"
    assert (error["details"]["file"], error["details"]["line"]) == ("functions/demo/helper.py", 2)
    if command == "serve":
        assert "traceback" not in error["details"]
        assert "Traceback" not in str(host.status("demo/stock"))
    else:
        trace = error["details"]["traceback"]
        assert trace.splitlines()[0] == "Traceback (most recent call last):"
        assert 'functions/demo/stock.py", line 1, in <module>' in trace
        assert "    raise RuntimeError('not today')" in trace
        assert "runtime/worker" not in trace
        assert "importlib" not in trace
    eventually(lambda: host.status("demo/stock")["state"] == "failed", "its state")
    site.write("demo/helper.py", "")
    eventually(lambda: host.call("demo/stock").status_code == 200, "the good save")


def test_in_dev_mistakes_are_told_before_anybody_calls(site: Site) -> None:
    """Of a new function and of one that was never called; with the traceback, and with what is good again."""
    site.write("demo/stock.py", version(1))
    host = site.start("dev")
    site.write("demo/stock.py", "1 / 0\n" + version(2))
    assert "ZeroDivisionError" in host.logged("demo/stock could not be loaded")
    host.logged("Traceback (most recent call last)")
    site.write("demo/new.py", "def handle(data):\n    return (\n")
    assert "new.py:2: SyntaxError" in host.logged("demo/new could not be loaded")
    eventually(lambda: host.status("demo/new")["state"] == "failed", "its state")
    for name in ("stock", "new"):
        site.write(f"demo/{name}.py", version(3))
        host.logged(f"demo/{name} loaded")
        assert host.call(f"demo/{name}").json() == 3


def test_a_generation_that_was_ended_while_idle_is_made_again_from_its_own_sources(site: Site) -> None:
    """Whatever is on disk by now: a broken handler and a newer helper."""
    site.write("spaces.toml", '[defaults]\nidle_timeout = "50ms"\n')
    site.write("demo/stock.py", "def handle(data):\n    import helper\n    return helper.X\n")
    site.write("demo/helper.py", "X = 1\n")
    host = site.start("serve")
    assert host.call("demo/stock").json() == 1
    eventually(lambda: len(host.descendants()) == 1, "the end of the idle zygote: only the base is left")
    site.write("demo/stock.py", "def handle(data:\n")
    host.logged("stock.py:1")
    site.write("demo/helper.py", "X = 2\n")
    for _ in range(2):
        assert host.call("demo/stock").json() == 1
        assert host.status("demo/stock")["load_error"]["line"] == 1
        eventually(lambda: len(host.descendants()) == 1, "the end of the idle zygote")
    site.write("demo/stock.py", "def handle(data):\n    import helper\n    return helper.X + 10\n")
    eventually(lambda: host.call("demo/stock").json() == 12, "the good save")


def test_reloads_are_counted(space: Space) -> None:
    """By function, and by how they ended."""

    def counted(outcome: str) -> float:
        start = f'spaces_reloads_total{{function="stock",outcome="{outcome}",space="{space.name}"}}'
        lines = space.host.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    space.copy({"stock.py": version(1)})
    space.comes_to_serve(1)
    assert (counted("ok"), counted("failed")) == (0, 0)
    for number in (2, 3):
        space.write("stock.py", version(number))
        space.serves(number)
    assert (counted("ok"), counted("failed")) == (2, 0)
    space.write("stock.py", "def handle(")
    space.load_error()
    assert (counted("ok"), counted("failed")) == (2, 1)
