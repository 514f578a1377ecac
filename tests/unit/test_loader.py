"""Loader on real folders: what is a function, what is hinted at, what is read again, what changes concern."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import config as configuration
from runtime import loader as module_under_test
from runtime import snapshots, watcher
from runtime.errors import LoadFailed
from runtime.loader import Catalog, Loader
from runtime.search import Found

HANDLE = "def handle(data): ...\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Root:
    """A folder with functions/, and a Loader on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.functions = folder / "functions"
        self.functions.mkdir(parents=True)
        self.loader = Loader(self.configuration())

    def configuration(self, text: str | None = None) -> configuration.Config:
        if text is not None:
            (self.folder / "spaces.toml").write_text(text)
        return configuration.load(self.folder, environ={})

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.functions / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def names(self, files: Mapping[str, str] | None = None) -> set[str]:
        """The functions there are, as space/name."""
        self.write(files or {})
        return {"/".join(key) for key in self.loader.scan().functions}

    def hints(self, files: Mapping[str, str], *, important: bool = True) -> dict[str, str]:
        """Messages by path below functions/, when these files are added."""
        self.write(files)
        hints = self.loader.scan().hints
        return {
            os.path.relpath(hint.path, self.functions): hint.message for hint in hints if hint.important is important
        }


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


# What is found


def test_a_file_and_a_folder_are_functions(root: Root) -> None:
    """With what can be read of them."""
    text = "import x\n\nasync def handle(data, secrets):\n    yield 1\n"
    root.write({"demo/stock.py": text, "demo/greeting/handler.py": HANDLE, "other/A-b_1.py": HANDLE})
    catalog = root.loader.scan()
    stock = catalog.functions["demo", "stock"]
    path, digest = (
        root.functions / "demo" / "stock.py",
        snapshots.file_digest(str(root.functions / "demo" / "stock.py")),
    )
    assert stock == Found("demo", "stock", path, 3, "async_generator", ("data", "secrets"), digest)
    assert catalog.functions["demo", "greeting"].path == root.functions / "demo" / "greeting" / "handler.py"
    assert set(catalog.functions) == {("demo", "stock"), ("demo", "greeting"), ("other", "A-b_1")}
    assert catalog.spaces == ("demo", "other")
    assert catalog.hints == ()


def test_the_configuration_names_spaces_too(root: Root, tmp_path: Path) -> None:
    """With folders elsewhere, which need not exist; functions/ is not needed then."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.py").write_text(HANDLE)
    root.write({"demo/stock.py": HANDLE, "away/x.py": HANDLE})
    text = f'[spaces.away]\npath = "{elsewhere}"\n[spaces.none]\n[spaces.demo]\n'
    root.loader.configure(root.configuration(text))
    catalog = root.loader.scan()
    assert set(catalog.functions) == {("demo", "stock"), ("away", "far")}
    assert catalog.spaces == ("away", "demo", "none")
    hints = {str(hint.path): hint.message for hint in catalog.hints}
    assert "spaces.toml gives the space `away` another folder" in hints[str(root.functions / "away")]
    assert "no such folder" in hints[str(root.functions / "none")]
    shutil.rmtree(root.functions)
    assert set(root.loader.scan().functions) == {("away", "far")}


def test_settings_of_a_function_that_no_file_has_are_hinted_at(root: Root) -> None:
    """With the nearest name that one has; where a folder has none at all, that is the hint."""
    root.write({"shop/other.py": HANDLE, "shop/stock.py": HANDLE, "shop/__init__.py": "", "bare/helper.py": "x = 1"})
    functions = ("shop.functions.stock", "shop.functions.othr", "shop.functions.zzz", "bare.functions.helper")
    text = "".join(f"[spaces.{name}]\n" for name in functions)
    root.loader.configure(root.configuration(text))
    hints = [hint for hint in root.loader.scan({"bare"}).hints if hint.important]
    assert {hint.path for hint in hints} == {root.folder / "spaces.toml", root.functions / "bare"}
    assert [hint.message for hint in hints if hint.path.suffix] == [
        "[spaces.shop.functions.othr] is for a function that no file has; did you mean `other`?",
        "[spaces.shop.functions.zzz] is for a function that no file has",
    ]
    root.write({"shop/othr.py": HANDLE})
    assert [hint for hint in root.loader.scan().hints if hint.path.name == "spaces.toml"] == [hints[-1]]
    root.loader.configure(root.configuration(""))
    assert root.hints({}) == {"bare": "there is no function in it: no file here has a `handle`"}


def test_links_are_followed(root: Root, tmp_path: Path) -> None:
    """Of files and of folders, as when a ConfigMap is mounted."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.py").write_text(HANDLE)
    (root.functions / "linked").symlink_to(tmp_path / "elsewhere")
    root.write({"demo/stock.py": HANDLE})
    (root.functions / "demo" / "far.py").symlink_to(tmp_path / "elsewhere" / "far.py")
    assert root.names() == {"demo/stock", "demo/far", "linked/far"}


def test_links_are_kept_in_mind(root: Root, tmp_path: Path) -> None:
    """Of spaces, folders, handlers, of what a function imports, of what lies above; as long as they are there."""
    far = tmp_path / "elsewhere"
    root.write({"demo/stock.py": "import pack.helper\n" + HANDLE, "other/a.py": HANDLE})
    for name in ("space", "folder", "pack"):
        (far / name).mkdir(parents=True)
    for name in ("space/x.py", "folder/handler.py", "one.py", "handler.py"):
        (far / name).write_text(HANDLE)
    (far / "pack" / "helper.py").touch()
    demo = root.functions / "demo"
    (demo / "inner").mkdir()
    expected = {
        root.functions / "linked": far / "space",
        demo / "folder": far / "folder",
        demo / "one.py": far / "one.py",
        demo / "inner" / "handler.py": far / "handler.py",
        demo / "gone.py": far / "gone.py",
        demo / "pack": far / "pack",
    }
    for link, target in expected.items():
        link.symlink_to(target)

    def ends() -> dict[str, str]:
        return {link: way[-1] for link, way in root.loader._links.all().items()}

    root.loader.scan()
    assert ends().items() >= {str(link): os.path.realpath(target) for link, target in expected.items()}.items()
    (demo / "pack").unlink()
    (demo / "pack").mkdir()
    (demo / "pack" / "helper.py").symlink_to(far / "pack" / "helper.py")
    root.loader.snapshot("demo", "stock")
    assert str(demo / "pack" / "helper.py") in ends()
    (demo / "extra").mkdir()
    (demo / "extra" / "odd.py").symlink_to(far / "one.py")
    root.loader.changed(root.loader.snapshot("demo", "stock"), {str(demo / "extra" / "odd.py"): ""})
    assert ends().keys() >= {str(demo / "pack" / "helper.py"), str(demo / "extra" / "odd.py")}
    shutil.rmtree(demo)
    root.loader.scan()
    assert not [link for link in ends() if link.startswith(str(demo))]


@pytest.mark.parametrize(
    "name",
    ["demo/__pycache__/x.py", "demo/.hidden.py", "demo/.venv/handler.py", "demo/x.py~", "demo/.x.py.swp", "demo/#x.py#",
     "demo/4913", "demo/flycheck_x.py", "demo/x.txt", "demo/x.pyc", ".git/x.py", "__pycache__/x.py", "demo/data/a/b.py",
     "__init__.py", "demo/__init__.py", "notes.txt", "demo/x.py/readme.txt"],
)  # fmt: skip
def test_what_tools_and_editors_leave_is_passed_over_silently(root: Root, name: str) -> None:
    """Neither a function nor a hint."""
    text = "x = 1" if name.endswith("__init__.py") else HANDLE
    root.write({"demo/stock.py": HANDLE, name: text})
    catalog = root.loader.scan()
    assert set(catalog.functions) == {("demo", "stock")}
    assert catalog.spaces == ("demo",)
    assert catalog.hints == ()


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=70))
def test_any_name_is_a_function_or_a_hint(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Never both, never neither; and the name that a hint proposes can be served."""
    if len(name.encode()) > 250 or watcher.is_ignored(f"{name}.py") or name in ("__init__", ".", ".."):
        return
    root = Root(tmp_path_factory.mktemp("names") / "root")
    root.write({f"demo/{name}.py": HANDLE})
    catalog = root.loader.scan()
    valid = name.isascii() and len(name) <= 63 and name.replace("-", "a").replace("_", "a").isalnum()
    assert bool(catalog.functions) is valid
    if not valid:
        hint = next(hint for hint in catalog.hints if hint.path.name == f"{name}.py")
        better = hint.message.partition("call it `")[2].partition(".py`")[0]
        assert root.names({f"demo/{better}.py": HANDLE}) == {f"demo/{better}"}


# What is hinted at


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("demo/my stock.py", HANDLE, "call it `my_stock.py`"),
        ("demo/größe/handler.py", HANDLE, "call it `gr_e`"),
        (f"demo/{'x' * 64}.py", HANDLE, f"call it `{'x' * 63}.py`"),
        ("my space/x.py", HANDLE, "call it `my_space`"),
        ("stock.py", HANDLE, "the folder of a space, such as demo/stock.py"),
        ("demo/stock/handler.py", HANDLE, "it is ignored, because stock.py beside"),
        ("demo/other/handler.py", "x = 1", "it has no `handle`"),
        ("demo/other/main.py", HANDLE, "in `handler.py`"),
        ("demo/__init__.py", HANDLE, "a file of its own"),
        ("empty/notes.txt", "", "no function in it"),
    ],
)
def test_a_near_miss_gets_an_important_hint(root: Root, name: str, text: str, message: str) -> None:
    """It says what to do; and nothing is served that was not before."""
    names = root.names({"demo/stock.py": HANDLE})
    hints = root.hints({name: text})
    [(path, said)] = hints.items()
    assert name.startswith(path)
    assert message in said
    assert root.names() == names


def test_a_helper_that_nothing_imports_gets_a_small_hint(root: Root) -> None:
    """One that something beside it imports gets none; neither do a function's own modules in its folder."""
    files = {
        "demo/stock.py": "import used\nfrom . import also\n" + HANDLE,
        "demo/greeting/handler.py": "def handle():\n    from third import x\n",
        "demo/greeting/own.py": "",
        "demo/used.py": "from .fourth import y",
        "demo/also.py": "",
        "demo/third.py": "",
        "demo/fourth.py": "",
        "demo/unused.py": "",
        "demo/package/__init__.py": "",
        "demo/package/main.py": HANDLE,
    }
    assert root.hints(files, important=False) == {
        "demo/unused.py": "it has no `handle`: it is a helper module, not a function"
    }
    assert root.hints({"loose.py": "x = 1"}, important=False)["loose.py"].startswith("it is in no space")
    assert root.hints({}) == {}


def test_a_folder_goes_first_when_the_file_is_a_helper(root: Root) -> None:
    """Only functions compete for a name."""
    assert root.names({"demo/stock.py": "x = 1", "demo/stock/handler.py": HANDLE}) == {"demo/stock"}
    assert root.loader.scan().functions["demo", "stock"].path.name == "handler.py"


def test_what_cannot_be_read_is_said(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, for files, folders and links."""
    root.write({"demo/stock.py": HANDLE, "closed/x.py": HANDLE, "demo/secret.py": HANDLE})
    (root.functions / "demo" / "link.py").symlink_to("nowhere.py")
    os.mkfifo(root.functions / "demo" / "pipe.py")
    read, scandir = snapshots.read, os.scandir

    def refuse_file(path: str) -> tuple[bytes, snapshots.Stamp | None]:
        if path.endswith("secret.py"):
            raise PermissionError(13, "Permission denied")
        return read(path)

    def refuse_folder(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(snapshots, "read", refuse_file)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    assert root.hints({}) == {
        "demo/secret.py": "it cannot be read: Permission denied",
        "demo/link.py": "it is a link to a file that does not exist",
        "closed": "it cannot be read: Permission denied",
    }
    assert root.names() == {"demo/stock"}


def test_links_that_lead_nowhere_are_said(root: Root) -> None:
    """They end no look: in a circle, through a file, to a name that is too long; among spaces, too."""
    root.write({"demo/stock.py": HANDLE})
    demo = root.functions / "demo"
    for name, target in {"circle": "circle.py", "through": "stock.py/x.py", "long": f"{'a' * 300}.py"}.items():
        (demo / f"{name}.py").symlink_to(target)
    (demo / "folder").symlink_to("folder")
    (root.functions / "space").symlink_to("space")
    assert root.hints({}) == {
        "demo/circle.py": "it cannot be read: Too many levels of symbolic links",
        "demo/through.py": "it cannot be read: Not a directory",
        "demo/long.py": "it cannot be read: File name too long",
    }
    assert root.names() == {"demo/stock"}


def test_what_is_too_large_for_code_is_said(root: Root) -> None:
    """It is not read at all."""
    root.write({"demo/stock.py": HANDLE, "demo/large.py": ""})
    os.truncate(root.functions / "demo" / "large.py", 10**12)
    [said] = root.hints({}).values()
    assert said == f"it cannot be read: it has {10**12} bytes, and a file of Python may have {snapshots.LARGEST}"
    assert root.names() == {"demo/stock"}


# Scanning again


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read from now on."""
    reads: list[str] = []
    real = snapshots.read

    def read(path: str) -> tuple[bytes, snapshots.Stamp | None]:
        reads.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(snapshots, "read", read)
    return reads


def grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all files count as written long ago."""
    monkeypatch.setattr(snapshots, "_RACY", -1)


def test_only_changed_files_are_read_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """By size, time, or another file in their place."""
    grow_old(monkeypatch)
    names = [f"demo/{name}.py" for name in "abcd"]
    root.names(dict.fromkeys(names, HANDLE))
    reads = reads_of(monkeypatch)
    before = root.loader.scan()
    assert reads == []
    root.write({"demo/a.py": HANDLE + "# more"})
    os.utime(root.functions / "demo" / "b.py", (1, 1))
    root.write({"demo/new": HANDLE})
    (root.functions / "demo" / "new").rename(root.functions / "demo" / "c.py")
    after = root.loader.scan()
    assert reads == ["a.py", "b.py", "c.py"]
    changed = {key for key, found in after.functions.items() if found.digest != before.functions[key].digest}
    assert changed == {("demo", "a")}


def test_a_young_file_is_read_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have changed within one tick of the file system's clock."""
    monkeypatch.setattr(snapshots, "_RACY", 10**18)
    root.names({"demo/a.py": HANDLE})
    reads = reads_of(monkeypatch)
    root.loader.scan()
    assert reads == ["a.py"]


def test_only_the_spaces_asked_for_are_looked_at(root: Root) -> None:
    """The others are as they were, new ones are found all the same, and the catalog is whole."""
    root.names({"one/a.py": HANDLE, "two/a.py": HANDLE})
    root.write({"one/b.py": HANDLE, "two/b.py": HANDLE, "new/a.py": HANDLE})
    assert set(root.loader.scan({"one"}).functions) == {("one", "a"), ("one", "b"), ("two", "a"), ("new", "a")}
    assert ("two", "b") in root.loader.scan({"two", "nothing"}).functions
    shutil.rmtree(root.functions / "two")
    assert root.loader.scan(set()).spaces == ("new", "one")


def test_a_space_whose_folder_is_another_is_looked_at(root: Root, tmp_path: Path) -> None:
    """After the configuration changed."""
    root.names({"demo/a.py": HANDLE, "other/b.py": HANDLE})
    root.loader.configure(root.configuration(f'[spaces.demo]\npath = "{root.functions / "other"}"\n'))
    assert set(root.loader.scan(set()).functions) == {("demo", "b"), ("other", "b")}


def away_for(root: Root, monkeypatch: pytest.MonkeyPatch, looks: int, back: Callable[[], object]) -> list[float]:
    """Do `back` after so many looks; time goes by only with them."""
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == looks:
            back()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(naps))
    return naps


@pytest.mark.parametrize("moment", ["removed", "emptied", "folder moved"])
def test_a_function_that_is_away_for_a_moment_stays(root: Root, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while it is being saved."""
    root.names({"demo/stock.py": HANDLE, "demo/other.py": HANDLE})
    path = root.functions / "demo" / "stock.py"
    if moment == "removed":
        path.unlink()
    elif moment == "emptied":
        path.write_text("")
    else:
        path.parent.rename(root.functions / "moved")
    away_for(root, monkeypatch, 3, lambda: root.write({"demo/stock.py": HANDLE, "demo/other.py": HANDLE}))
    assert {"demo/stock", "demo/other"} <= root.names()


def test_a_function_that_stays_away_is_gone(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was looked for again for some time, and no sooner; others need not wait."""
    root.names({"demo/stock.py": HANDLE})
    naps = away_for(root, monkeypatch, 0, lambda: None)
    assert root.names({"demo/new.py": HANDLE}) == {"demo/stock", "demo/new"}
    assert naps == []
    (root.functions / "demo" / "stock.py").unlink()
    assert root.names() == {"demo/new"}
    assert naps == [module_under_test.LOOK] * module_under_test.LOOKS


@pytest.mark.parametrize("name", ["stock.py", "stock/handler.py"])
def test_a_function_without_its_handle_stays_one_until_the_file_goes(root: Root, name: str) -> None:
    """It is another content; that it is none is for the load error to say, not for a hint."""
    path = root.functions / "demo" / name
    root.names({f"demo/{name}": HANDLE, "demo/other.py": HANDLE})
    before = root.loader.scan().functions["demo", "stock"]
    for text in ("", "def handel(): ...", "x = "):
        path.write_text(text)
        after = root.loader.scan()
        assert after.functions["demo", "stock"].path == path
        assert after.functions["demo", "stock"].digest != before.digest
        assert after.hints == ()
    path.write_text(HANDLE)
    assert root.loader.scan().functions["demo", "stock"] == before
    path.write_text("")
    path.unlink()
    assert root.names() == {"demo/other"}


def test_a_function_does_not_stay_where_its_space_is_no_more(root: Root, tmp_path: Path) -> None:
    """When the configuration gives the space another folder."""
    root.names({"demo/stock.py": HANDLE, "other/b.py": HANDLE})
    root.loader.configure(root.configuration(f'[spaces.demo]\npath = "{root.functions / "other"}"\n'))
    assert ("demo", "stock") not in root.loader.scan().functions


# Snapshots, and what changed


def test_changed_tells_whether_a_snapshot_still_holds(root: Root) -> None:
    """By its files, by what else was imported, by files that would be imported now."""
    root.write({"demo/stock.py": "import helper, later\n" + HANDLE, "demo/helper.py": "", "demo/extra.py": ""})
    snapshot = root.loader.snapshot("demo", "stock")
    extra = str(root.functions / "demo" / "extra.py")
    extras = {extra: snapshots.file_digest(extra)}
    assert snapshot.files == {str(root.functions / "demo" / name) for name in ("stock.py", "helper.py")}

    def changed() -> bool:
        return root.loader.changed(snapshot, extras)

    assert not changed()
    root.write({"demo/unused.py": ""})
    os.utime(root.functions / "demo" / "helper.py")
    assert not changed()
    for name in ("helper", "extra", "later"):
        root.write({f"demo/{name}.py": "x = 1"})
        assert changed()
        root.write({"demo/helper.py": "", "demo/extra.py": ""})
    (root.functions / "demo" / "later.py").unlink()
    assert not changed()
    (root.functions / "demo" / "stock.py").unlink()
    assert changed()


def test_a_git_operation_is_waited_for(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before sources are taken, and before they are said to be unchanged."""
    root.write({"demo/stock.py": HANDLE})
    lock = root.functions / "demo" / ".git" / "index.lock"
    lock.parent.mkdir()
    snapshot = root.loader.snapshot("demo", "stock")

    def sleep(seconds: float) -> None:
        if lock.exists():
            root.write({"demo/stock.py": "# edited\n" + HANDLE})
            lock.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    with lock.open("w"):
        assert root.loader.changed(snapshot, {})
    with lock.open("w"):
        assert root.loader.snapshot("demo", "stock").modules[0].code.startswith(b"# edited")


def test_a_function_is_not_lost_while_git_is_at_work(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that comes in the middle of an operation waits for its end, however long a file is away."""
    root.write({"demo/stock.py": HANDLE})
    root.loader.scan()
    lock = root.functions / "demo" / ".git" / "index.lock"
    lock.parent.mkdir()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 5 * module_under_test.LOOKS:
            root.write({"demo/stock.py": HANDLE})
            lock.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    (root.functions / "demo" / "stock.py").unlink()
    with lock.open("w"):
        found = root.loader.scan()

    assert ("demo", "stock") in found.functions


def test_the_configuration_is_read_once_it_is_saved(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while it is empty because somebody is about to write it."""
    file = root.folder / "spaces.toml"
    writer = file.open("w")

    def write(seconds: float) -> None:
        writer.write('[defaults]\ntimeout = "3s"\n')
        writer.close()
        monkeypatch.undo()

    monkeypatch.setattr(time, "sleep", write)
    assert root.loader.reconfigured().defaults.timeout == 3.0


def test_a_snapshot_is_of_the_spaces_folder(root: Root, tmp_path: Path) -> None:
    """Wherever the configuration says it is."""
    (tmp_path / "far.py").write_text(HANDLE)
    root.loader.configure(root.configuration(f'[spaces.demo]\npath = "{tmp_path}"\n'))
    assert root.loader.snapshot("demo", "far").entry == str(tmp_path / "far.py")


def test_affected_names_the_spaces(root: Root, tmp_path: Path) -> None:
    """By folder, new ones too; all when the configuration or a folder above has changed."""
    (tmp_path / "far").mkdir()
    root.write({"a/b/x.py": HANDLE})
    text = f'[spaces.far]\npath = "{tmp_path / "far"}"\n[spaces.deep]\npath = "{root.functions / "a" / "b"}"\n'
    root.loader.configure(root.configuration(text))

    def affected(*paths: Path) -> set[str] | None:
        return root.loader.affected(paths)

    functions = root.functions
    assert affected() == set()
    assert affected(functions / "new") == {"new"}
    assert affected(functions / "one" / "x.py", functions / "two" / "y" / "z.py") == {"one", "two"}
    assert affected(tmp_path / "far" / "x.py") == {"far"}
    assert affected(functions / "a" / "b" / "x.py") == {"a", "deep"}
    assert affected(functions / "x.py") == set()
    for path in (functions, root.folder, tmp_path, root.folder / "spaces.toml", functions / "a"):
        assert affected(path, functions / "one" / "x.py") is None


# Watching


async def following(loader: Loader, change: Callable[[], object], path: Path) -> set[str] | None:
    """What is affected, as soon as this path is told of after the change."""
    async with aclosing(loader.watch()) as batches:
        with anyio.fail_after(10):
            first = await anext(batches)
            assert loader.affected(first) is None
            change()
            async for paths in batches:
                if path in paths:
                    return loader.affected(paths)
    raise AssertionError


@pytest.mark.anyio
async def test_watching_tells_which_space_changed(root: Root) -> None:
    """From the moment of the first batch on."""
    root.write({"demo/stock.py": HANDLE})
    path = root.functions / "demo" / "stock.py"
    assert await following(root.loader, lambda: path.write_text("new"), path) == {"demo"}


@pytest.mark.anyio
async def test_watching_tells_of_the_configuration(root: Root) -> None:
    """Which concerns all."""
    path = root.folder / "spaces.toml"
    assert await following(root.loader, lambda: path.write_text(""), path) is None


@pytest.mark.anyio
async def test_the_first_batch_is_the_functions_folder(root: Root) -> None:
    """And spaces.toml, if it changed since the configuration was made."""
    async with aclosing(root.loader.watch()) as batches:
        assert await anext(batches) == {root.functions}
    (root.folder / "spaces.toml").write_text("[server]\n")
    async with aclosing(root.loader.watch()) as batches:
        assert await anext(batches) == {root.functions, root.folder / "spaces.toml"}
    root.loader.configure(root.configuration())
    async with aclosing(root.loader.watch()) as batches:
        assert await anext(batches) == {root.functions}


@pytest.mark.anyio
async def test_watching_follows_the_configuration(root: Root, tmp_path: Path) -> None:
    """A space's folder elsewhere is watched from when it is configured."""
    far = tmp_path / "far"
    far.mkdir()
    with anyio.fail_after(10):
        async with aclosing(root.loader.watch()) as batches:
            await anext(batches)
            root.loader.configure(root.configuration(f'[spaces.far]\npath = "{far}"\n'))
            while root.functions not in await anext(batches):
                pass
            (far / "x.py").write_text(HANDLE)
            async for paths in batches:
                if far / "x.py" in paths:
                    break
    assert root.loader.affected(paths) == {"far"}


@pytest.mark.anyio
async def test_functions_may_be_missing_at_first(root: Root, tmp_path: Path) -> None:
    """They are found and watched when they come."""
    (tmp_path / "far").mkdir()
    root.loader.configure(root.configuration(f'[spaces.far]\npath = "{tmp_path / "far"}"\n'))
    root.functions.rmdir()
    with anyio.fail_after(10):
        async with aclosing(root.loader.watch()) as batches:
            await anext(batches)
            root.write({"demo/stock.py": HANDLE})
            catalog = Catalog({}, (), ())
            while ("demo", "stock") not in catalog.functions:
                catalog = root.loader.scan(root.loader.affected(await anext(batches)))


# Files of other platforms

APP = "import kernel\napp = kernel.App('shop')\n"
BUY = "@app.action('buy')\ndef buy(ctx): ...\n"
SELL = "@app.action('sell')\nasync def sell(ctx, payload): ...\n"


def test_a_file_may_be_several_functions(root: Root) -> None:
    """Each with what is known of it; they come and go with what is in the file."""
    assert root.names({"demo/agents.py": APP + BUY + SELL}) == {"demo/buy", "demo/sell"}
    sell = root.loader.scan().functions["demo", "sell"]
    path = root.functions / "demo" / "agents.py"
    digest = snapshots.file_digest(str(path))
    assert sell == Found(
        "demo", "sell", path, 6, "async", ("ctx", "payload"), digest, convention="kernel", target="sell", app="shop"
    )
    assert root.names({"demo/agents.py": APP + SELL}) == {"demo/sell"}
    assert root.names({"demo/agents.py": APP + BUY + SELL}) == {"demo/buy", "demo/sell"}
    assert root.names({"demo/agents.py": "def handle(): ..."}) == {"demo/agents"}


def test_a_file_that_cannot_be_parsed_keeps_its_functions(root: Root) -> None:
    """All that it had, and no others, until it says again what it has; so does one that has lost them all."""
    root.names({"demo/agents.py": APP + BUY + SELL})
    assert root.names({"demo/agents.py": APP + SELL + "@app.action('new')\ndef new(:"}) == {"demo/buy", "demo/sell"}
    assert root.loader.scan().hints == ()
    snapshot = root.loader.snapshot("demo", "buy")
    assert (snapshot.entrypoint.convention, snapshot.entrypoint.target) == ("kernel", "buy")
    assert root.names({"demo/agents.py": "x = 1"}) == {"demo/buy", "demo/sell"}
    with pytest.raises(LoadFailed, match="no Kernel action of this name any more"):
        root.loader.snapshot("demo", "buy")
    (root.functions / "demo" / "agents.py").unlink()
    assert root.names({"demo/other.py": HANDLE}) == {"demo/other"}


def test_a_broken_file_is_its_functions_from_the_start(root: Root) -> None:
    """As far as can be told."""
    assert root.names({"demo/agents.py": APP + BUY + "def x(:"}) == {"demo/buy"}


def test_a_snapshot_says_which_function_of_the_file_it_is(root: Root) -> None:
    """Its modules have the file's name, wherever that is."""
    root.names({"demo/agents.py": APP + BUY, "demo/far/main.py": FRAMEWORK, "demo/far/lines.py": ""})
    buy = root.loader.snapshot("demo", "buy")
    assert (buy.modules[0].name, buy.entrypoint.app) == ("functions.demo.agents", "shop")
    assert not root.loader.changed(buy, {})
    far = root.loader.snapshot("demo", "far")
    assert (far.modules[0].name, far.entrypoint.target) == ("functions.demo.far.main", "entry")
    assert far.folder == str(root.functions / "demo" / "far")
    root.write({"demo/agents.py": APP + SELL})
    assert root.loader.changed(buy, {})


FRAMEWORK = "import functions_framework\n@functions_framework.http\ndef entry(request): ...\n"
LAMBDA = "def lambda_handler(event, context): ...\n"


def test_folders_that_platforms_deploy_from_are_functions(root: Root) -> None:
    """Where there is no handler.py that is one; a package with such a file is a package."""
    files = {
        "demo/a/main.py": FRAMEWORK,
        "demo/b/lambda_function.py": LAMBDA,
        "demo/c/main.py": HANDLE,
        "demo/d/main.py": FRAMEWORK,
        "demo/d/handler.py": HANDLE,
    }
    assert root.names(files) == {"demo/a", "demo/b", "demo/d"}
    assert root.loader.scan().functions["demo", "d"].path.name == "handler.py"
    hints = root.hints({})
    assert list(hints) == ["demo/c/main.py"]


@pytest.mark.parametrize(
    ("files", "winner", "hinted"),
    [
        ({"buy.py": HANDLE, "agents.py": APP + BUY}, "buy.py", "agents.py"),
        ({"b.py": APP + BUY, "a.py": APP + BUY}, "a.py", "b.py"),
        ({"buy/handler.py": HANDLE, "agents.py": APP + BUY}, "buy/handler.py", "agents.py"),
        ({"buy.py": LAMBDA, "buy/handler.py": HANDLE}, "buy.py", "buy/handler.py"),
    ],
)
def test_of_two_files_with_a_function_of_one_name_the_one_called_so_is_it(
    root: Root, files: dict[str, str], winner: str, hinted: str
) -> None:
    """Otherwise the first; the other is told of."""
    root.write({f"demo/{name}": text for name, text in files.items()})
    catalog = root.loader.scan()
    assert catalog.functions["demo", "buy"].path == root.functions / "demo" / winner
    [hint] = catalog.hints
    assert (hint.path, hint.important) == (root.functions / "demo" / hinted, True)
    assert f"because {winner}" in hint.message
    assert str(root.loader.snapshot("demo", "buy").entry) == str(root.functions / "demo" / winner)


def test_what_cannot_be_served_is_hinted_at(root: Root) -> None:
    """With what to do about it."""
    text = "@app.action('two words')\ndef x(ctx): ...\n@app.action(f'{y}')\ndef y(ctx): ...\n"
    other = "app2 = kernel.App('two')\n@app2.action('buy')\ndef z(ctx): ...\n"
    root.write({"demo/agents.py": APP + BUY + text + other})
    messages = [hint.message for hint in root.loader.scan().hints]
    assert len(messages) == 3
    assert any("`two words` cannot be served" in message and "call it `two_words`" in message for message in messages)
    assert any("write it out" in message for message in messages)
    assert any("of the app `two` is ignored" in message for message in messages)
