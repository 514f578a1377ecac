"""What handlers write down for a test to read: for the most part, which process they ran in."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.conftest import Running, Site, alive, eventually

#: A module for a space: `note("name")` in a handler, `noted(host, "name")` in a test.
MODULE = """
    import os

    def note(name, value=None):
        path = os.path.join(os.environ["NOTES"], name)
        with open(path + ".tmp", "w") as file:
            file.write(str(os.getpid() if value is None else value))
        os.rename(path + ".tmp", path)
"""


def take_notes(site: Site, space: str, settings: str) -> None:
    """Write spaces.toml with these settings below [defaults], a folder for notes, and the module `note`."""
    folder = site.root / "notes"
    folder.mkdir()
    head = f'[defaults]\nenv = {{ NOTES = "{folder}" }}\n'
    site.write("spaces.toml", head + "\n".join(line.strip() for line in settings.splitlines()))
    site.write(f"{space}/note.py", MODULE)


def path_of(host: Running, name: str) -> Path:
    """Where a note of this name is."""
    return host.root / "notes" / name


def noted(host: Running, name: str) -> int:
    """The number that a handler wrote down under this name, as soon as it has."""
    path = path_of(host, name)
    eventually(path.exists, f"a note {name!r}; the log:\n{host.log[-4000:]}")
    return int(path.read_text())


def gone(pid: int) -> None:
    """Wait for the end of a process."""
    eventually(lambda: not alive(pid), f"the end of process {pid}")


def parent_of(pid: int) -> int:
    """The process that has this one as its child."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
