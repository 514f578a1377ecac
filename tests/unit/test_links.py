"""links: which there are on the way to a file, where they lead, what is seen through them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import links
from runtime.links import LinkBook, above, met, seen_through, way


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that no link leads to."""
    return Path(os.path.realpath(tmp_path))


def test_a_way_names_every_link_and_its_end(root: Path) -> None:
    """Relative and absolute ones, in the middle of the way, too; the end need not exist."""
    (root / "releases" / "1" / "functions").mkdir(parents=True)
    (root / "current").symlink_to("releases/1")
    (root / "served").mkdir()
    (root / "served" / "demo").symlink_to("../current/functions")
    (root / "again").symlink_to(root / "served" / "demo")
    (root / "nowhere").symlink_to("missing/file.py")
    end = str(root / "releases" / "1" / "functions")
    assert way(str(root / "served" / "demo")) == (str(root / "current"), end)
    assert way(str(root / "again")) == (str(root / "served" / "demo"), str(root / "current"), end)
    assert way(str(root / "nowhere")) == (str(root / "missing" / "file.py"),)


def test_a_circle_has_an_end(root: Path) -> None:
    """Although it leads nowhere."""
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert len(way(str(root / "one"))) == links.STEPS + 1


def test_links_up_to_a_folder_are_met(root: Path) -> None:
    """The folder itself, folders below it, files; not what is above it."""
    (root / "real" / "pack").mkdir(parents=True)
    (root / "real" / "file.py").touch()
    (root / "top").symlink_to("real")
    folder = root / "top" / "space"
    (root / "real" / "space").symlink_to(root / "real")
    (root / "real" / "linked.py").symlink_to("file.py")
    paths = [str(folder / name) for name in ("file.py", "linked.py", "pack/inner.py", "space/file.py")]
    assert met([*paths, "/elsewhere/x.py"], str(folder)) == {
        str(folder): (str(root / "real"),),
        str(folder / "linked.py"): (str(root / "real" / "file.py"),),
        str(folder / "space"): (str(root / "real"),),
    }
    assert above(str(folder)) == {
        str(folder): (str(root / "real"),),
        str(root / "top"): (str(root / "real"),),
    }


def test_a_change_is_seen_through_links_both_ways() -> None:
    """At their ends, on their way, and under the other name of what is seen by their own."""
    book = {"/f/a": ("/middle", "/end"), "/f/b.py": ("/end/b.py",)}
    assert set(seen_through(book, "/end/x/y.py")) == {"/f/a/x/y.py"}
    assert set(seen_through(book, "/end/b.py")) == {"/f/a/b.py", "/f/b.py"}
    assert set(seen_through(book, "/middle")) == {"/f/a"}
    assert set(seen_through(book, "/f/a/x.py")) == {"/end/x.py"}
    assert set(seen_through(book, "/ending/x.py")) == set()
    assert set(seen_through(book, "/f/b.py")) == set()


def test_a_book_keeps_what_each_met_last() -> None:
    """Until there is no such one any more."""
    book = LinkBook()
    book.note("one", {"/a": ("/x",), "/b": ("/y",)})
    book.note("two", {"/b": ("/y",)})
    book.note("one", {"/c": ("/z",)})
    assert book.all() == {"/b": ("/y",), "/c": ("/z",)}
    book.keep({"one", "three"})
    assert book.all() == {"/c": ("/z",)}
