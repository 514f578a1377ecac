"""The state folder, and where its host is: `host.json`, which says its URL and its process while it serves.

`server.py` writes that, `attach.py` reads it; the journal is in the same folder. A host that was killed leaves the
file behind: who reads it must ask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

log = logging.getLogger("spaces.server")


class Whereabouts(msgspec.Struct, frozen=True):
    """What the file says."""

    url: str
    pid: int

    @property
    def is_alive(self) -> bool:
        """Whether there is a process of that number; another host may have its port by now."""
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            return True
        except (ProcessLookupError, OverflowError):
            return False
        return True


def make_folder(state: Path) -> bool:
    """Make the state folder, which git is told to leave alone; whether it was not there before."""
    if state.exists():
        return False
    state.mkdir(mode=0o700, parents=True, exist_ok=True)  # what was sent and answered is nobody else's to read
    (state / ".gitignore").write_text("*\n")
    return True


@contextmanager
def told(state: Path, url: str) -> Iterator[None]:
    """Within this scope the state folder says where the host is. One that cannot be written to costs a warning."""
    file, ours = state / "host.json", Whereabouts(url, os.getpid())
    draft = file.with_name(f"host.json.{ours.pid}")
    try:
        make_folder(state)
        draft.write_bytes(msgspec.json.encode(ours))
        draft.replace(file)
    except OSError as error:
        log.warning("%s cannot be written (%s): `spaces calls` and `spaces logs` need --url", file, error.strerror)
    try:
        yield
    finally:
        if find(state) == ours:  # another host may have come to the same folder
            with suppress(OSError):
                file.unlink()


def find(state: Path) -> Whereabouts | None:
    """The host that was last started on this folder and has not ended in good order."""
    try:
        return msgspec.json.decode((state / "host.json").read_bytes(), type=Whereabouts)
    except (OSError, msgspec.DecodeError):
        return None
