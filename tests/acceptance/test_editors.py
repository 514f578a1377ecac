"""The ways in which editors and tools save, move and leave files: all are served, none costs a request."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.conftest import Running, Site, error_of, eventually
from tests.acceptance.hammer import Hammer
from tests.acceptance.space import Space, version


@pytest.fixture(scope="module")
def host(shared_site: Site) -> Running:
    """A host in production, for spaces of several tests."""
    return shared_site.start("serve")


@pytest.fixture
def space(host: Running) -> Space:
    """A space of its own."""
    return Space(host)


# One save each, as these programs do it (seen with strace, or written in their sources).


def vim(path: Path, text: str) -> None:
    """The probe for a file that it may create, a swap file, a backup by renaming, a new file, the end of the backup."""
    probe = path.with_name("4913")
    swap = path.with_name(f".{path.name}.swp")
    backup = path.with_name(f"{path.name}~")
    swap.write_bytes(b"b0VIM 9.0")
    probe.touch()
    probe.unlink()
    path.rename(backup)
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    backup.unlink()
    swap.unlink()


def vim_backupcopy(path: Path, text: str) -> None:
    """A copy as the backup, then the file itself is emptied and written."""
    backup = path.with_name(f"{path.name}~")
    shutil.copy2(path, backup)
    with path.open("w") as file:
        file.write(text)
    backup.unlink()


def emacs(path: Path, text: str) -> None:
    """A lock that is a link to nowhere, an auto-save file, the old file renamed to the backup, a new one."""
    lock = path.with_name(f".#{path.name}")
    auto = path.with_name(f"#{path.name}#")
    os.symlink("somebody@somewhere.1234:5678", lock)
    auto.write_text("def handle(data):\n    return 'half-')")
    path.rename(path.with_name(f"{path.name}~"))
    path.write_text(text)
    auto.unlink()
    lock.unlink()


def jetbrains(path: Path, text: str) -> None:
    """Safe write: a new file beside it, the old one renamed away, the new one renamed to it."""
    new, old = path.with_name(f"{path.name}___jb_tmp___"), path.with_name(f"{path.name}___jb_old___")
    new.write_text(text)
    path.rename(old)
    new.rename(path)
    old.unlink()


def visual_studio_code(path: Path, text: str) -> None:
    """In place: opened, emptied, written, closed in four steps."""
    file = os.open(path, os.O_WRONLY)
    os.ftruncate(file, 0)
    os.write(file, text.encode())
    os.fsync(file)
    os.close(file)


def atomic(path: Path, text: str) -> None:
    """A temporary file with a name of no meaning takes its place, as of many tools."""
    beside = path.with_name(f"tmp{os.getpid()}abc")
    beside.write_text(text)
    os.replace(beside, path)


def atomic_with_suffix(path: Path, text: str) -> None:
    """The temporary file looks like a module itself."""
    beside = path.with_name(f"{path.stem}_tmp_12.py")
    beside.write_text(text)
    os.replace(beside, path)


def rsync(path: Path, text: str) -> None:
    """A dotted temporary file with a random end, with the time of the original, takes its place."""
    beside = path.with_name(f".{path.name}.Xa8fQ2")
    with beside.open("w") as file:
        for line in text.splitlines(keepends=True):
            file.write(line)
            file.flush()
    os.utime(beside, (1_500_000_000, 1_500_000_000))
    os.replace(beside, path)


def copied_over(path: Path, text: str) -> None:
    """`cp`: in place, from a file elsewhere, keeping an old time."""
    source = path.parent.parent.parent / "source"
    source.write_text(text)
    os.utime(source, (1_400_000_000, 1_400_000_000))
    subprocess.run(["cp", "-p", str(source), str(path)], check=True)


def sed(path: Path, text: str) -> None:
    """`sed -i`, which writes a file `sedXXXXXX` and renames it."""
    number = text.split()[-1]
    subprocess.run(["sed", "-i", f"s/return .*/return {number}/", str(path)], check=True)


def removed_and_written(path: Path, text: str) -> None:
    """The old file is deleted first."""
    path.unlink()
    path.write_text(text)


def emptied_and_appended(path: Path, text: str) -> None:
    """`> file`, then line after line with `>>`."""
    path.write_text("")
    for line in text.splitlines(keepends=True):
        with path.open("a") as file:
            file.write(line)


def hard_link(path: Path, text: str) -> None:
    """A new file is linked over the old name."""
    beside = path.with_name(".linked")
    beside.write_text(text)
    path.unlink()
    os.link(beside, path)
    beside.unlink()


SAVES: dict[str, Callable[[Path, str], None]] = {
    save.__name__: save
    for save in (
        vim, vim_backupcopy, emacs, jetbrains, visual_studio_code, atomic, atomic_with_suffix, rsync, copied_over,
        sed, removed_and_written, emptied_and_appended, hard_link,
    )
}  # fmt: skip


@pytest.mark.parametrize("program", SAVES)
def test_every_way_of_saving_is_served(space: Space, program: str) -> None:
    """Handler and helper, without a failed request, and no temporary file becomes a function."""
    space.copy({"stock.py": version(0), "other.py": "import helper\ndef handle(data): return helper.handle(0)",
                "helper.py": version(0)})  # fmt: skip
    space.comes_to_serve(0)
    space.comes_to_serve(0, "other")
    with Hammer(space.host, f"{space.name}/stock", 2) as stock, Hammer(space.host, f"{space.name}/other", 2) as other:
        for number in (1, 2, 3):
            SAVES[program](space.folder / "stock.py", version(number))
            stock.until(number)
            SAVES[program](space.folder / "helper.py", version(number))
            other.until(number)
    for hammer in (stock, other):
        assert all(run == [0, 1, 2, 3] for run in hammer.runs())
    functions = space.host.client.get(f"/spaces/{space.name}/functions").json()["functions"]
    assert {function["name"] for function in functions} == {"stock", "other", "helper"}


def test_a_touched_file_is_not_loaded_again(space: Space) -> None:
    """Nor one that is saved as it was, in any way; nor for other times, rights or owners."""
    space.copy({"stock.py": "import os\ndef handle(data): return os.getppid()\n", "clock.py": version(0)})
    space.comes_to_serve(0, "clock")
    zygote, path = space.answer(), space.folder / "stock.py"
    text = path.read_text()
    changes: list[Callable[[], object]] = [
        path.touch,
        lambda: os.utime(path, (0, 0)),
        lambda: path.chmod(0o600),
        lambda: path.write_text(text),
        lambda: rsync(path, text),
        lambda: vim(path, text),
        lambda: jetbrains(path, text),
    ]
    for number, change in enumerate(changes, 1):
        change()
        space.write("clock.py", version(number))  # seen after it, or together with it
        space.serves(number, "clock")
    assert space.answer() == zygote


# Links


def test_a_function_that_is_a_link_is_followed_to_its_target(space: Space) -> None:
    """A handler, a folder, a helper; targets are edited where they are, and links are led elsewhere."""
    far = space.host.root / "far"
    (far / "folder").mkdir(parents=True)
    targets = {"stock.py": far / "one.py", "folder": far / "folder", "helper.py": far / "deep-helper.py"}
    for target in (far / "one.py", far / "folder" / "handler.py"):
        target.write_text(version(1))
    targets["helper.py"].write_text("X = 1\n")
    space.copy({"user.py": "import helper\ndef handle(data): return helper.X"})
    for name, target in targets.items():
        (space.folder / name).symlink_to(target)
    names = {"stock": far / "one.py", "folder": far / "folder" / "handler.py", "user": targets["helper.py"]}
    for name in names:
        space.comes_to_serve(1, name)
    for save in (visual_studio_code, vim, atomic, removed_and_written):
        number = space.answer("stock") + 1
        for name, path in names.items():
            save(path, f"X = {number}\n" if name == "user" else version(number))
            space.serves(number, name)
    other = far / "two.py"
    other.write_text(version(100))
    beside = space.folder / ".beside"
    beside.symlink_to(other)
    beside.replace(space.folder / "stock.py")
    space.serves(100)
    other.write_text(version(101))
    space.serves(101)


def test_a_space_that_is_a_link_is_followed_to_its_target(space: Space) -> None:
    """Edits there, new functions there, and the link led elsewhere."""
    far = space.host.root / "elsewhere" / space.name
    for place, number in (("one", 1), ("two", 10)):
        (far / place).mkdir(parents=True)
        (far / place / "stock.py").write_text(version(number))
    space.folder.symlink_to(far / "one")
    space.comes_to_serve(1)
    visual_studio_code(far / "one" / "stock.py", version(2))
    space.serves(2)
    vim(far / "one" / "stock.py", version(3))
    space.serves(3)
    (far / "one" / "new.py").write_text(version(4))
    space.comes_to_serve(4, "new")
    beside = space.folder.with_name(".beside")
    beside.symlink_to(far / "two")
    beside.replace(space.folder)
    space.serves(10)
    visual_studio_code(far / "two" / "stock.py", version(11))
    space.serves(11)


def test_a_root_that_is_a_link_is_followed_to_its_target(site: Site) -> None:
    """As with releases in folders of their own, and a link to the current one."""
    for number in (1, 2):
        (site.root / f"release{number}" / "functions" / "demo").mkdir(parents=True)
        (site.root / f"release{number}" / "functions" / "demo" / "stock.py").write_text(version(number))
    current = site.root / "current"
    current.symlink_to("release1")
    site.root = current
    host = site.start("serve")
    assert host.call("demo/stock").json() == 1
    with Hammer(host, "demo/stock", 2) as hammer:
        beside = current.with_name("beside")
        beside.symlink_to("release2")
        beside.replace(current)
        hammer.until(2)
        visual_studio_code(current.resolve() / "functions" / "demo" / "stock.py", version(3))
        hammer.until(3)


def mount(folder: Path, number: int, files: dict[str, str]) -> None:
    """As Kubernetes mounts and updates a ConfigMap: files are links into `..data`, a link led to a new folder."""
    target = folder / f"..2024_0{number}"
    target.mkdir(parents=True)
    for name, text in files.items():
        (target / name).write_text(text)
    beside = folder / "..data_tmp"
    beside.symlink_to(target.name)
    beside.replace(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    shutil.rmtree(folder / f"..2024_0{number - 1}", ignore_errors=True)


def test_a_mounted_configmap_is_followed(space: Space) -> None:
    """Handler and helper change together."""
    for number in (1, 2, 3):
        code = "import helper\n" + version(number).replace("return", "return helper.X +")
        mount(space.folder, number, {"helper.py": f"X = {number * 10}\n", "stock.py": code})
        space.comes_to_serve(11) if number == 1 else space.serves(number * 11)


BESIDE_A_MOUNT = {
    "imported": "from lib.helper import X\ndef handle(data): return X\n",
    "relative": "from .lib import helper\ndef handle(data): return helper.X\n",
    "found by other means": "load = __import__\nodd = load('li' + 'b.helper')\ndef handle(data): return odd.helper.X",
}


def test_a_mounted_configmap_in_which_only_a_helper_changes(space: Space) -> None:
    """The handler is mounted with it, and stays as it is."""
    for number in (1, 2, 3):
        code = "import helper\ndef handle(data): return helper.X\n"
        mount(space.folder, number, {"helper.py": f"X = {number}\n", "stock.py": code})
        space.comes_to_serve(1) if number == 1 else space.serves(number)


@pytest.mark.parametrize("kind", BESIDE_A_MOUNT)
def test_a_mounted_configmap_of_helpers(space: Space, kind: str) -> None:
    """In a folder beside the handler, which is an ordinary file."""
    space.copy({"stock.py": BESIDE_A_MOUNT[kind]})
    for number in (1, 2, 3):
        mount(space.folder / "lib", number, {"helper.py": f"X = {number}\n"})
        space.comes_to_serve(1) if number == 1 else space.serves(number)


# Folders


def test_a_space_may_be_renamed(space: Space) -> None:
    """Its functions are served under the new name and no longer under the old."""
    space.copy({"stock.py": "from . import helper\ndef handle(data): return helper.X", "helper.py": "X = 1"})
    space.comes_to_serve(1)
    other = Space(space.host)
    space.folder.rename(other.folder)
    other.comes_to_serve(1)
    assert "no space" in error_of(space.refuses(404))["message"]
    other.write("helper.py", "X = 2")
    other.serves(2)


def test_the_functions_folder_may_come_late_go_and_come_again(site: Site) -> None:
    """And be another one by then."""
    (site.root / "functions").rmdir()
    elsewhere = site.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stock.py").write_text(version(1))
    site.write("spaces.toml", f'[spaces.far]\npath = "{elsewhere}"\n')
    host = site.start("serve")
    assert host.call("far/stock").json() == 1
    for number in (1, 2, 3):
        aside = site.root / "aside"
        (aside / "demo").mkdir(parents=True)
        (aside / "demo" / "stock.py").write_text(version(number))
        (aside / "demo" / f"only{number}.py").write_text(version(number))
        if number == 2:  # made where it is
            (site.root / "functions" / "demo").mkdir(parents=True)
            for path in (aside / "demo").iterdir():
                path.rename(site.root / "functions" / "demo" / path.name)
            shutil.rmtree(aside)
        else:
            aside.rename(site.root / "functions")
        eventually(lambda number=number: host.call(f"demo/only{number}").status_code == 200, "the new folder")
        assert host.call("demo/stock").json() == number
        site.write("demo/stock.py", version(number + 10))
        eventually(lambda number=number: host.call("demo/stock").json() == number + 10, "the edit in it")
        shutil.rmtree(site.root / "functions")
        eventually(lambda: host.call("demo/stock").status_code == 404, "the folder to be gone")
    (elsewhere / "stock.py").write_text(version(2))
    eventually(lambda: host.call("far/stock").json() == 2, "the other space")


# What is no function


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("my stock.py", "call it `my_stock.py`"),
        ("prix-à-payer.py", "names are 1 to 63 letters"),
        (f"{'x' * 64}.py", "names are 1 to 63 letters"),
        ("two.dots.py", "call it `two_dots.py`"),
        ("folder/main.py", "a function is in `handler.py`"),
        ("stock/handler.py", "because stock.py beside the folder is that function"),
        ("__init__.py", "an `__init__.py` is never a function"),
    ],
)
def test_what_seems_to_be_meant_as_a_function_but_is_none_is_hinted_at(space: Space, path: str, hint: str) -> None:
    """As soon as it is saved; it is not served, and what is beside it is."""
    space.copy({"stock.py": version(1)})
    space.comes_to_serve(1)
    space.write(path, version(2))
    assert hint in space.host.logged(f"{space.name}/{path}: ")
    names = space.host.client.get(f"/spaces/{space.name}/functions").json()["functions"]
    assert [function["name"] for function in names] == ["stock"]
    assert space.answer() == 1


def test_what_is_plainly_no_function_is_passed_over_in_silence(space: Space) -> None:
    """Caches, dotfiles, backups, data, helpers."""
    names = ["__pycache__/x.py", ".hidden.py", ".git/x.py", "stock.py~", "#stock.py#", ".#stock.py", "x.pyc",
             "data.json", "node_modules/x.py", "stock.py.orig", "README.md", "helper.py"]  # fmt: skip
    space.copy({"stock.py": "import helper\n" + version(1), **dict.fromkeys(names, version(2)), "helper.py": "X = 1"})
    space.comes_to_serve(1)
    for name in names:
        space.write(name, version(3) if name != "helper.py" else "X = 2")
    space.write("seen.py", version(4))
    space.comes_to_serve(4, "seen")
    functions = space.host.client.get(f"/spaces/{space.name}/functions").json()["functions"]
    assert [function["name"] for function in functions] == ["seen", "stock"]
    assert not [line for line in space.host.lines if space.name in line and '"warning"' in line]


@pytest.mark.parametrize("name", ["a", "A-b_9", "9", "-", "_", "x" * 63])
def test_names_that_are_allowed(space: Space, name: str) -> None:
    """Letters, digits, `_` and `-`, 1 to 63 of them."""
    space.write(f"{name}.py", version(1))
    space.comes_to_serve(1, name)
