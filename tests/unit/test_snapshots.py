"""take: which files are a function's, under which names, and that they are from one moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from runtime import snapshots, stillness
from runtime.errors import LoadFailed

HANDLE = "def handle(): ...\n"


class Space:
    """The folder of the space `demo`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def age(self, ns: int = 10_000_000_000) -> None:
        """Make the clock such that every file seems to have been left alone for long."""
        for path in self.folder.rglob("*.py"):
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - ns))

    def take(self, name: str = "stock") -> snapshots.Snapshot:
        return snapshots.take("demo", name, str(self.folder))

    def names(self, files: Mapping[str, str], name: str = "stock") -> dict[str, str]:
        """Full names of what is taken, without the common part, and their files."""
        self.write(files)
        return {
            module.name.removeprefix("functions.demo."): os.path.relpath(module.path, self.folder)
            for module in self.take(name).modules
        }


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Space(tmp_path)


def test_a_snapshot_says_all_that_a_worker_needs(space: Space) -> None:
    """Entry first, contents as they are, folders, files."""
    space.write({"stock.py": "import helper\n" + HANDLE, "helper.py": "# ünïcode"})
    taken = space.take()
    entry, helper = str(space.folder / "stock.py"), str(space.folder / "helper.py")
    assert (taken.space, taken.name, taken.entry, taken.folder) == ("demo", "stock", entry, str(space.folder))
    assert taken.search == (str(space.folder),)
    assert taken.files == {entry, helper}
    assert taken.modules == (
        snapshots.Module("functions.demo.stock", entry, f"import helper\n{HANDLE}".encode(), False, True),
        snapshots.Module("functions.demo.helper", helper, "# ünïcode".encode(), False, False),
    )


def test_a_folder_functions_modules_are_its_own_and_the_spaces(space: Space) -> None:
    """Short names are looked for in its folder, then in the space's."""
    files = {
        "stock/handler.py": "import own, both, shared, bare.mod\nfrom .. import both\n" + HANDLE,
        "stock/__init__.py": "",
        "stock/own.py": "",
        "stock/both.py": "",
        "both.py": "",
        "shared.py": "import own",
        "bare/mod.py": "",
    }
    assert space.names(files) == {
        "bare.mod": "bare/mod.py",
        "stock.handler": "stock/handler.py",
        "stock": "stock/__init__.py",
        "stock.own": "stock/own.py",
        "stock.both": "stock/both.py",
        "both": "both.py",
        "shared": "shared.py",
    }
    assert space.take().folder == str(space.folder / "stock")
    assert space.take().search == (str(space.folder / "stock"), str(space.folder))


def test_imports_are_followed_wherever_they_are(space: Space) -> None:
    """In functions, in what is imported, to submodules, by every way of writing it."""
    files = {
        "stock.py": """
import a.b
from c import d, attribute
from . import e
from .f.g import h
from functions.demo import i
from star import *
def handle():
    import lazy
    importlib.import_module("dynamic")
""",
        "a/__init__.py": "",
        "a/b.py": "from . import b2",
        "a/b2.py": "from .. import top",
        "a/unused.py": "",
        "c/__init__.py": "",
        "c/d.py": "import again",
        "again.py": "import stock",
        "e.py": "",
        "f/g/h.py": "",
        "i.py": "",
        "star/__init__.py": "__all__ = ['listed']",
        "star/listed.py": "",
        "star/unlisted.py": "",
        "lazy.py": "",
        "dynamic.py": "",
        "top.py": "",
        "unused.py": "",
    }
    left_out = {"a/unused.py", "star/unlisted.py", "unused.py"}
    assert set(space.names(files).values()) == set(files) - left_out


def test_an_import_of_a_made_up_name_takes_all_that_it_may_mean(space: Space) -> None:
    """Below the packages that the name is known to begin with; else all that is no function of its own."""
    files = {
        "stock.py": 'def handle(data): importlib.import_module(f"plugins.{data}")',
        "plugins/__init__.py": "import helper",
        "plugins/one.py": "",
        "plugins/deep/er/two.py": "",
        "plugins/not-a-module.py": "",
        "plugins/__pycache__/cached.py": "",
        "helper.py": "",
        "unused.py": "",
        "other.py": HANDLE,
        "folder/handler.py": HANDLE,
    }
    expected = {"stock.py", "plugins/__init__.py", "plugins/one.py", "plugins/deep/er/two.py", "helper.py"}
    assert set(space.names(files).values()) == expected
    files = {"stock.py": "def handle(data): __import__(data)"}
    assert set(space.names(files).values()) == expected | {"unused.py"}


def test_no_more_is_taken_on_suspicion_than_can_be_borne(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported by name is taken all the same."""
    monkeypatch.setattr(snapshots, "MANY", 3)
    files = {"stock.py": "__import__(x)\n" + HANDLE, **{f"m{number}.py": "" for number in range(9)}, "z.py": ""}
    assert len(space.names(files)) == 3
    files["stock.py"] = "import z\n" + files["stock.py"]
    assert "z" in space.names(files)


@pytest.mark.parametrize("path", ["helper.py", "pkg", "pkg/__init__.py", "pkg/x/y.py", "x/inner.py", "functions.py"])
def test_what_has_a_name_that_is_imported_may_be_imported(space: Space, path: str) -> None:
    """Whether or not it was there when the snapshot was taken."""
    space.write({"stock.py": "import helper\nfrom pkg import inner\n" + HANDLE})
    folder = str(space.folder)
    assert space.take().may_import(os.path.join(folder, path), folder)
    assert space.take().may_import(folder, folder)


def test_what_has_no_name_that_is_imported_is_not(space: Space) -> None:
    """Unless it imports what cannot be told."""
    space.write({"stock.py": "import helper\n" + HANDLE, "other.py": "import helper\n__import__(x)\n" + HANDLE})
    folder = str(space.folder)
    assert not space.take().may_import(os.path.join(folder, "other.py"), folder)
    assert space.take("other").may_import(os.path.join(folder, "anything.py"), folder)


def test_a_folder_without_init_gives_way_to_a_file(space: Space) -> None:
    """Wherever on the way they are, as with sys.path."""
    files = {"stock/handler.py": "import data\n" + HANDLE, "stock/data/x.py": "", "data.py": ""}
    assert "data.py" in space.names(files).values()


@pytest.mark.parametrize(
    "statement",
    ["import json", "import email.mime.text", "import stock", "from stock import x", "import nothing",
     "from ... import x", "from .... import helper", "from ....... import helper", "from . import nothing",
     "import nothing.helper", "__import__('')", "__import__('sub/inner')", "__import__('.')"],
)  # fmt: skip
def test_what_is_not_local_is_left_out(space: Space, statement: str) -> None:
    """The standard library, the function's own name, what does not exist, what leads out of the space."""
    files = {"stock.py": f"{statement}\n{HANDLE}", "json.py": "", "email/mime/text.py": "", "helper.py": ""}
    (space.folder.parent / "x.py").write_text("")
    assert space.names({**files, "sub/inner.py": ""}) == {"stock": "stock.py"}


def test_as_much_is_taken_as_there_is(space: Space) -> None:
    """Of an import that will fail, or whose end is a name in a module."""
    names = space.names({"stock.py": "import helper.nothing.at.all\n" + HANDLE, "helper.py": ""})
    assert set(names) == {"stock", "helper"}


def test_a_file_called_handler_is_not_its_own_module(space: Space) -> None:
    """In a folder the entry's own name is `handler`."""
    assert space.names({"stock/handler.py": "import handler\n" + HANDLE}) == {"stock.handler": "stock/handler.py"}


def test_functions_are_late_and_helpers_are_not(space: Space) -> None:
    """What is a function is decided as the loader does: a file with `handle`, a folder with handler.py."""
    files = {
        "stock.py": "import helper, other, folder, pkg.mod\n" + HANDLE,
        "helper.py": "",
        "other.py": HANDLE,
        "folder/__init__.py": "",
        "folder/handler.py": HANDLE,
        "pkg/__init__.py": "",
        "pkg/mod.py": HANDLE,
    }
    space.write(files)
    late = {module.name.removeprefix("functions.demo."): module.late for module in space.take().modules}
    expected = {"stock": True, "helper": False, "other": True, "folder": True, "pkg": False, "pkg.mod": False}
    assert late == expected


def test_a_file_with_a_syntax_error_is_in_it(space: Space) -> None:
    """The process that runs it reports the error."""
    files = {"stock.py": "import helper\n" + HANDLE, "helper.py": "import other\ndef (", "other.py": ""}
    assert set(space.names(files)) == {"stock", "helper"}
    assert set(space.names({"stock.py": HANDLE + "def ("})) == {"stock"}


def test_a_module_called_functions_takes_the_name(space: Space) -> None:
    """The package that the modules are put into is named otherwise then."""
    space.write({"stock.py": "import functions\n" + HANDLE, "functions.py": ""})
    assert [module.name for module in space.take().modules] == ["functions_.demo.stock", "functions_.demo.functions"]


def test_the_digest_changes_with_contents_and_files(space: Space) -> None:
    """And with nothing else: not with times, not with files that are not the function's."""
    space.write({"stock.py": "import helper\n" + HANDLE, "helper.py": ""})
    digests = [space.take().digest]
    space.write({"unused.py": "x = 1", "stock.py": "import helper\n" + HANDLE})
    os.utime(space.folder / "helper.py")
    assert space.take().digest == digests[0]
    for change in ({"helper.py": "x = 1"}, {"helper.py": "import more"}, {"more.py": ""}, {"stock.py": HANDLE}):
        space.write(change)
        digests.append(space.take().digest)
    assert len(set(digests)) == len(digests)
    (space.folder / "stock.py").unlink()
    space.write({"stock/handler.py": HANDLE})
    assert space.take().digest not in digests


@pytest.mark.parametrize(
    ("files", "problem", "file"),
    [({}, "stock.py was deleted", None), ({"stock.py/x.py": ""}, "stock.py was deleted", None),
     ({"stock.py": "x = 1"}, "it has no `handle`", "stock.py"),
     ({"stock/handler.py": ""}, "it has no `handle`", "stock/handler.py")],
)  # fmt: skip
def test_without_an_entry_it_fails(space: Space, files: Mapping[str, str], problem: str, file: str | None) -> None:
    """And says what is missing, and where."""
    space.write(files)
    with pytest.raises(LoadFailed, match=problem) as caught:
        space.take()
    assert caught.value.details.get("file") == (str(space.folder / file) if file else None)


def test_a_file_that_cannot_be_read_is_named(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason."""
    space.write({"stock.py": HANDLE})

    def refuse(path: str) -> tuple[bytes, None]:
        if path.endswith("stock.py"):
            raise PermissionError(13, "Permission denied", path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(snapshots, "read", refuse)
    with pytest.raises(LoadFailed, match="it cannot be read: Permission denied") as caught:
        space.take()
    assert caught.value.details["file"] == str(space.folder / "stock.py")


def test_what_is_no_file_is_not_read(space: Space) -> None:
    """A pipe would keep the reader waiting for ever."""
    os.mkfifo(space.folder / "helper.py")
    assert set(space.names({"stock.py": "import helper\n" + HANDLE})) == {"stock"}


def test_the_file_beside_wins_over_the_folder(space: Space) -> None:
    """As in the catalog; a file without a handle does not count."""
    both = {"stock.py": HANDLE, "stock/handler.py": HANDLE}
    assert space.names(both) == {"stock": "stock.py"}
    assert space.names({"stock.py": ""})["stock.handler"] == "stock/handler.py"


class Meddler:
    """Does something after a file was read, once for each of `deeds`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: str, deeds: list[Callable[[], object]]) -> None:
        self.real, self.after, self.deeds = snapshots.read, after, deeds
        self.reads: list[str] = []
        monkeypatch.setattr(snapshots, "read", self.read)

    def read(self, path: str) -> tuple[bytes, snapshots.Stamp | None]:
        result = self.real(path)
        self.reads.append(os.path.basename(path))
        if self.deeds and path.endswith(self.after):
            self.deeds.pop(0)()
        return result


@pytest.mark.parametrize("aged", [True, False])
def test_a_change_while_reading_is_in_it_as_a_whole(space: Space, monkeypatch: pytest.MonkeyPatch, aged: bool) -> None:
    """Old and new files never mix, also when nothing but the content tells them apart."""
    versions = [{"stock.py": f"import a, b\nV = {v}\n{HANDLE}", "a.py": f"V = {v}", "b.py": f"V = {v}"} for v in (1, 2)]
    space.write(versions[0])
    if aged:
        space.age()
    # find_entry reads the entry first, then the reading itself does: so the change falls between two files.
    Meddler(monkeypatch, "a.py", [lambda: space.write(versions[1])])
    contents = {os.path.relpath(module.path, space.folder): module.code.decode() for module in space.take().modules}
    assert contents == versions[1]


def test_a_change_that_keeps_time_and_size_is_seen(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks of file systems are coarse: a young file is compared by its content."""
    space.write({"stock.py": HANDLE + "import a", "a.py": "V = 1"})
    monkeypatch.setattr(snapshots, "stamp", lambda status: None)
    Meddler(monkeypatch, "a.py", [lambda: space.write({"a.py": "V = 2"})])
    assert [module.code for module in space.take().modules][1] == b"V = 2"


def test_a_touch_while_reading_does_no_harm(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read again and is the same has not changed."""
    space.write({"stock.py": HANDLE})
    space.age()
    meddler = Meddler(monkeypatch, "stock.py", [lambda: os.utime(space.folder / "stock.py")] * 2)
    assert space.take().modules[0].code == HANDLE.encode()
    assert meddler.reads == ["stock.py"] * 3


def test_files_that_never_rest_make_it_fail(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not go on for ever."""
    space.write({"stock.py": HANDLE})
    counter = iter(range(1000))
    change = lambda: space.write({"stock.py": f"{HANDLE}# {next(counter)}"})  # noqa: E731
    Meddler(monkeypatch, "stock.py", [change] * 1000)
    with pytest.raises(LoadFailed, match="kept changing"):
        space.take()


def test_an_entry_that_is_away_for_a_moment_is_waited_for(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between the two steps of an editor that moves the old file away first."""
    naps: list[float] = []

    def come_back(seconds: float) -> None:
        if not naps:
            space.write({"stock.py": HANDLE})
        naps.append(seconds)

    monkeypatch.setattr(time, "sleep", come_back)
    assert space.take().name == "stock"
    assert naps[0] == stillness.QUIET


def test_a_file_that_was_just_written_is_given_time(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow save is not read half-way: what comes within QUIET still counts."""
    space.write({"stock.py": HANDLE})
    later = ["# more\n", ""]

    def sleep(seconds: float) -> None:
        assert 0 <= seconds <= stillness.QUIET
        with (space.folder / "stock.py").open("a") as file:
            file.write(later.pop(0) if later else "")

    monkeypatch.setattr(time, "sleep", sleep)
    assert space.take().modules[0].code.decode() == HANDLE + "# more\n"


def test_stamp_is_none_for_a_young_file(space: Space) -> None:
    """Two changes in one tick of the file system's clock look the same."""
    space.write({"stock.py": HANDLE})
    assert snapshots.stamp((space.folder / "stock.py").stat()) is None
