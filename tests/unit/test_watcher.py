"""Watcher on real folders: which changes are told, of what kind they may be, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import watchfiles

from runtime import watcher
from runtime.watcher import Watcher, is_ignored

Batches = AsyncGenerator[frozenset[Path] | None, None]
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Root:
    """A folder with functions/demo/stock.py in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "spaces.toml"
        self.functions = folder / "functions"
        self.demo = self.functions / "demo"
        self.stock = self.demo / "stock.py"
        self.demo.mkdir(parents=True)
        self.stock.write_text("old")

    @asynccontextmanager
    async def watched(self, trees: Collection[Path] | None = None) -> AsyncIterator[Batches]:
        """Watching, once it has begun."""
        async with aclosing(Watcher(self.file, trees or [self.functions]).batches()) as batches:
            assert await following(batches) is None
            yield batches


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


async def following(batches: Batches) -> frozenset[Path] | None:
    """The next batch."""
    with anyio.fail_after(10):
        return await anext(batches)


async def until(batches: Batches, path: Path) -> set[Path]:
    """All paths told until this one is."""
    told: set[Path] = set()
    while path not in told:
        batch = await following(batches)
        assert batch is not None
        told |= batch
    return told


async def until_everything(batches: Batches) -> None:
    while await following(batches) is not None:
        pass


def write_in_place(path: Path) -> None:
    path.write_text("new")


def write_twice(path: Path) -> None:
    path.write_text("")
    path.write_text("new")


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("new")


def rename_over(path: Path) -> None:
    temporary = path.with_name("tmp1234")
    temporary.write_text("new")
    temporary.replace(path)


def rename_over_from_elsewhere(path: Path) -> None:
    temporary = path.parents[3] / "elsewhere"
    temporary.write_text("new")
    temporary.replace(path)


def save_as_vim_does(path: Path) -> None:
    (path.parent / "4913").write_text("")
    (path.parent / "4913").unlink()
    path.rename(path.with_name(path.name + "~"))
    path.write_text("new")
    path.with_name(path.name + "~").unlink()


def remove_and_write(path: Path) -> None:
    path.unlink()
    path.write_text("new")


def link(path: Path) -> None:
    target = path.parents[3] / "elsewhere"
    target.write_text("new")
    path.unlink()
    path.symlink_to(target)


WAYS = [write_in_place, write_twice, append, rename_over, rename_over_from_elsewhere, save_as_vim_does,
        remove_and_write, link, os.utime, Path.unlink]  # fmt: skip


@pytest.mark.parametrize("save", WAYS)
async def test_every_way_of_saving_is_told(root: Root, save: Callable[[Path], object]) -> None:
    """The file itself is among the paths."""
    async with root.watched() as batches:
        save(root.stock)
        await until(batches, root.stock)


@pytest.mark.parametrize("save", WAYS[:-2])
async def test_the_single_file_is_told(root: Root, save: Callable[[Path], object]) -> None:
    """Whether or not it was there before."""
    file = root.file = root.folder / "a" / "b" / "c" / "spaces.toml"
    file.parent.mkdir(parents=True)
    async with root.watched() as batches:
        file.write_text("first")
        assert await until(batches, file) == {file}
        save(file)
        await until(batches, file)


async def test_many_files_at_once_are_told(root: Root) -> None:
    """All of them, in however many batches."""
    paths = [root.demo / f"f{number}.py" for number in range(200)]
    async with root.watched() as batches:
        for path in paths:
            path.write_text("new")
        told: set[Path] = set()
        while not told.issuperset(paths):
            told |= await following(batches) or set()


async def test_what_cannot_be_code_is_not_told(root: Root) -> None:
    """Caches, data, editors' files, what is beside the tree; whatever comes before the last is left out."""
    names = ["__pycache__/x.py", ".git/x.py", ".x.py.swp", "x.py~", "#x.py#", ".#x.py", "4913", "data.json", "x.pyc",
             "flycheck_x.py", "log", "node_modules/m/x.py"]  # fmt: skip
    beside = root.folder / ".venv"
    for folder in ("__pycache__", ".git", "node_modules/m"):
        (root.demo / folder).mkdir(parents=True)
    beside.mkdir()
    async with root.watched() as batches:
        for path in (*(root.demo / name for name in names), beside / "x.py", root.folder / "main.py"):
            path.write_text("new")
        root.stock.write_text("new")
        assert await until(batches, root.stock) == {root.stock}


async def test_new_folders_are_watched(root: Root) -> None:
    """With all that comes into them."""
    new = root.functions / "new" / "fn"
    async with root.watched() as batches:
        new.mkdir(parents=True)
        await until(batches, root.functions / "new")
        (new / "handler.py").write_text("new")
        await until(batches, new / "handler.py")


async def test_folders_that_move_or_go_are_told(root: Root) -> None:
    """By their own path."""
    async with root.watched() as batches:
        root.demo.rename(root.functions / "other")
        told = await until(batches, root.functions / "other")
        assert root.demo in told or await until(batches, root.demo)
        shutil.rmtree(root.functions / "other")
        await until(batches, root.functions / "other")


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_tree_may_come_and_go_and_come_again(root: Root, depth: int, caplog: pytest.LogCaptureFixture) -> None:
    """Also together with the folders above it. Everything may have changed then, and it is watched as before."""
    tree = root.folder.joinpath(*"abc"[:depth])
    async with root.watched([tree]) as batches:
        for _ in range(2):
            tree.mkdir(parents=True)
            await until_everything(batches)
            while True:
                (tree / "x.py").write_text("new")
                batch = await following(batches)
                if batch is not None and tree / "x.py" in batch:
                    break
            shutil.rmtree(root.folder / "a")
            await until_everything(batches)
    assert not caplog.records


async def test_a_changed_mode_of_the_tree_is_no_reason_to_look_at_everything(root: Root) -> None:
    """Only its coming and going is."""
    async with root.watched() as batches:
        root.functions.chmod(0o700)
        root.stock.write_text("new")
        assert await until(batches, root.stock) == {root.stock}


async def test_a_tree_elsewhere_is_watched(root: Root, tmp_path: Path) -> None:
    """And another one when told so."""
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        tree.mkdir()
    watching = Watcher(root.file, [root.functions, trees[0]])
    async with aclosing(watching.batches()) as batches:
        await until_everything(batches)
        (trees[0] / "x.py").write_text("new")
        await until(batches, trees[0] / "x.py")
        watching.aim([root.functions, trees[1]])
        await until_everything(batches)
        (trees[0] / "x.py").write_text("newer")
        (trees[1] / "x.py").write_text("new")
        assert trees[0] / "x.py" not in await until(batches, trees[1] / "x.py")


async def test_aiming_at_the_same_changes_nothing(root: Root) -> None:
    """No look at everything for nothing."""
    watching = Watcher(root.file, [root.functions])
    async with aclosing(watching.batches()) as batches:
        await until_everything(batches)
        watching.aim([root.functions])
        root.stock.write_text("new")
        assert await following(batches) == frozenset([root.stock])


async def test_what_links_lead_to_is_watched(root: Root, tmp_path: Path) -> None:
    """A change there, or of a link on the way, is told as one of the link; what is in a linked folder, twice."""
    far = Path(os.path.realpath(tmp_path)) / "far"
    (far / "folder").mkdir(parents=True)
    links = {
        root.demo / "file.py": (far / "middle", far / "file.py"),
        root.functions / "space": (far / "folder",),
    }
    (root.functions / "space").symlink_to(far / "folder")
    watching = Watcher(root.file, [root.functions])
    async with aclosing(watching.batches()) as batches:
        await until_everything(batches)
        watching.aim([root.functions], {str(link): tuple(map(str, way)) for link, way in links.items()})
        await until_everything(batches)
        for path, told in (
            (far / "file.py", root.demo / "file.py"),
            (far / "middle", root.demo / "file.py"),
            (far / "folder" / "x.py", root.functions / "space" / "x.py"),
            (root.functions / "space" / "y.py", far / "folder" / "y.py"),
        ):
            path.write_text("new")
            if told.is_relative_to(root.functions):
                await until(batches, told)
            else:
                assert told not in await until(batches, path)  # it is in no tree


async def test_a_tree_that_comes_as_watching_begins_is_not_missed(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was seen to be missing, before the folder above was watched."""
    late = root.folder / "late"
    real = watcher._Thread.start

    def start(thread: threading.Thread) -> None:
        late.mkdir(exist_ok=True)
        real(thread)

    monkeypatch.setattr(watcher._Thread, "start", start)
    async with root.watched([late]) as batches:
        await until_everything(batches)
        (late / "x.py").write_text("new")
        await until(batches, late / "x.py")


async def test_a_configmap_swap_is_told(root: Root) -> None:
    """Kubernetes replaces one hidden link, and all files that point through it are other ones."""
    for folder in (root.demo, root.folder):
        (folder / "..2024").mkdir()
        (folder / "..data").symlink_to("..2024")
    async with root.watched() as batches:
        for folder in (root.demo, root.folder):
            (folder / "..data_tmp").symlink_to("..2024")
            (folder / "..data_tmp").rename(folder / "..data")
            await until(batches, folder / "..data")


async def test_a_flood_means_everything(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system may have dropped some of it."""
    monkeypatch.setattr(watcher, "MANY", 20)
    monkeypatch.setattr(watcher, "DEBOUNCE", 5000)
    async with root.watched() as batches:
        for number in range(200):
            (root.demo / f"f{number}.py").write_text("new")
        await until_everything(batches)


async def test_a_file_name_that_is_no_text_does_no_harm(root: Root) -> None:
    """watchfiles gives up at one; watching begins anew."""
    async with root.watched() as batches:
        with open(os.fsencode(root.demo) + b"/\xff.py", "w"):
            pass
        await until_everything(batches)
        root.stock.write_text("new")
        await until(batches, root.stock)


async def test_a_git_operation_holds_back_until_it_is_over(root: Root) -> None:
    """Two files that change one after the other come in one batch."""
    lock = root.folder / ".git" / "index.lock"
    lock.parent.mkdir()
    watching = Watcher(root.file, [root.functions])
    held = threading.Event()
    real = watching._closed.wait

    def wait(timeout: float | None = None) -> bool:
        held.set()
        return real(timeout)

    watching._closed.wait = wait  # type: ignore[method-assign]
    async with aclosing(watching.batches()) as batches:
        await until_everything(batches)
        git = lock.open("w")
        root.stock.write_text("new")
        told: list[frozenset[Path] | None] = []

        async def follow() -> None:
            told.append(await following(batches))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.to_thread.run_sync(held.wait, 10)
            second = root.demo / "second.py"
            second.write_text("new")
            while watching._queue.empty():
                await anyio.sleep(0)
            assert not told
            git.close()
            lock.unlink()
        assert told == [frozenset([root.stock, second])]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
async def test_a_checkout_is_told(root: Root) -> None:
    """By git itself."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=root.folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    root.stock.write_text("two")
    git("commit", "-q", "-a", "-m", "two")
    async with root.watched() as batches:
        await anyio.to_thread.run_sync(git, "checkout", "-q", "HEAD~1")
        await until(batches, root.stock)
        assert root.stock.read_text() == "old"


@pytest.mark.parametrize(
    ("error", "setting"),
    [(OSError("OS file watch limit reached"), "fs.inotify.max_user_watches"),
     (RuntimeError("Too many open files (os error 24)"), "fs.inotify.max_user_instances")],
)  # fmt: skip
async def test_without_inotify_it_looks_for_itself(
    root: Root,
    error: Exception,
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And says which setting would help."""

    def refuse(*paths: str, **options: object) -> None:
        raise error

    monkeypatch.setattr(watchfiles, "watch", refuse)
    monkeypatch.setattr(watcher, "POLL", 0.005)
    async with root.watched() as batches:
        await until_all_is_seen(root, batches)
    assert [record.name for record in caplog.records] == ["spaces.loader"]
    assert setting in caplog.text
    assert str(error) in caplog.text


async def test_looking_can_be_asked_for(
    root: Root, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For folders that send no events; there is nothing to warn of then."""
    monkeypatch.setattr(watchfiles, "watch", None)
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "true")
    monkeypatch.setattr(watcher, "POLL", 0.005)
    async with root.watched() as batches:
        await until_all_is_seen(root, batches)
    assert not caplog.records


async def until_all_is_seen(root: Root, batches: Batches) -> None:
    """Saves within one second of each other, new folders behind links in circles, removals, the single file."""
    (root.demo / "circle").symlink_to(root.functions)
    (root.demo / "another").symlink_to(root.functions)
    for text in ("one", "two", "one"):
        root.stock.write_text(text)
        await until(batches, root.stock)
    new = root.functions / "new" / "handler.py"
    new.parent.mkdir()
    new.write_text("new")
    await until(batches, new)
    new.unlink()
    await until(batches, new)
    root.file.write_text("new")
    await until(batches, root.file)
    shutil.rmtree(root.functions)
    await until_everything(batches)
    root.demo.mkdir(parents=True)
    await until_everything(batches)
    root.stock.write_text("new")
    await until(batches, root.stock)


async def test_when_watching_breaks_it_begins_anew(
    root: Root, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is missed."""
    real = watchfiles.watch
    breaks = [True]

    def watch(*paths: str, stop_event: Any, **options: Any) -> Any:
        if str(root.functions) in paths and breaks:
            breaks.clear()
            stop_event.is_set()
            raise RuntimeError("broken")
        return real(*paths, stop_event=stop_event, **options)

    monkeypatch.setattr(watchfiles, "watch", watch)
    async with root.watched() as batches:
        await until_everything(batches)
        assert "interrupted (broken)" in caplog.text
        root.stock.write_text("new")
        await until(batches, root.stock)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "spaces watcher"]


async def test_it_ends_when_cancelled(root: Root) -> None:
    """At once, although its threads wait without limit, and leaves none of them."""
    began = anyio.Event()

    async def follow() -> None:
        async with root.watched() as batches:
            assert len(threads()) == 2
            began.set()
            await anext(batches)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await began.wait()
            tasks.cancel_scope.cancel()
    assert not threads()


def test_no_thread_is_left_behind(root: Root) -> None:
    """Neither one that watches nor one that waits for changes: a process with one could not end."""
    before = set(threading.enumerate())

    async def follow() -> None:
        async with root.watched() as batches:
            with anyio.move_on_after(0.05):  # time for it to begin to wait
                await anext(batches)

    anyio.run(follow)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


async def test_it_ends_when_closed_before_it_began(root: Root) -> None:
    """Nothing is left then either."""
    batches = Watcher(root.file, [root.functions]).batches()
    await batches.aclose()
    with anyio.move_on_after(0):
        await anext(Watcher(root.file, [root.functions]).batches(), None)
    with anyio.fail_after(10):
        while threads():
            await anyio.sleep(0)


@pytest.mark.parametrize(
    "name", ["__pycache__", ".venv", ".stock.py.swp", "stock.py~", "#stock.py#", ".#stock.py", "4913"]
)
def test_is_ignored_knows_what_editors_and_tools_leave(name: str) -> None:
    """None of it is ever code."""
    assert is_ignored(name)
    assert not is_ignored("stock.py")
