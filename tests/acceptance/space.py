"""A space of its own for a test on a host that several tests share: its files, its functions, what they answer."""

from __future__ import annotations

import itertools
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import httpx2

from tests.acceptance.conftest import Running, eventually

_numbers = itertools.count(1)


def version(number: int) -> str:
    """A handler that answers a number."""
    return f"def handle(data):\n    return {number}\n"


class Space:
    """A folder under functions/ that no other test uses."""

    def __init__(self, host: Running) -> None:
        self.host = host
        self.name = f"space{next(_numbers)}"
        self.folder = host.root / "functions" / self.name

    def write(self, path: str, text: str) -> Path:
        """Write a file as most editors do: a new one beside it takes its place. Indentation is removed."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        beside.write_text(textwrap.dedent(text))
        beside.replace(target)
        return target

    def copy(self, files: dict[str, str]) -> None:
        """Bring the space about as a whole, so that the host never sees it with some of the files."""
        aside = self.host.root / f"{self.name}.aside"
        for path, text in files.items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(textwrap.dedent(text))
        aside.rename(self.folder)

    def remove(self, path: str) -> None:
        """Remove a file or a folder."""
        target = self.folder / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            os.remove(target)

    def call(self, function: str = "stock", rest: str = "", **arguments: Any) -> httpx2.Response:
        """One call, whatever comes of it."""
        return self.host.call(f"{self.name}/{function}", rest, **arguments)

    def answer(self, function: str = "stock", rest: str = "") -> Any:
        """What a call answers; it must not fail."""
        answer = self.call(function, rest)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.host.log}"
        return answer.json()

    def serves(self, expected: Any, function: str = "stock") -> None:
        """Wait until the function answers what is expected; not one call may fail before it does."""
        eventually(lambda: self.answer(function) == expected, f"{self.name}/{function} answering {expected!r}")

    def comes_to_serve(self, expected: Any, function: str = "stock") -> None:
        """The same where there was nothing that could answer."""

        def answered() -> bool:
            answer = self.call(function)
            return answer.status_code == 200 and bool(answer.json() == expected)

        eventually(answered, f"{self.name}/{function} answering {expected!r}")

    def refuses(self, status: int, function: str = "stock") -> httpx2.Response:
        """Wait until calls are answered by this status; the answer."""

        def refused() -> httpx2.Response | None:
            answer = self.call(function)
            return answer if answer.status_code == status else None

        found: httpx2.Response = eventually(refused, f"{self.name}/{function} answered by {status}")
        return found

    def status(self, function: str = "stock") -> dict[str, Any]:
        """What the host says of the function."""
        return self.host.status(f"{self.name}/{function}")

    def load_error(self, function: str = "stock") -> dict[str, Any]:
        """Wait until the host says that what is on disk cannot be loaded; what it says."""
        found: dict[str, Any] = eventually(
            lambda: self.status(function)["load_error"], f"a load error of {self.name}/{function}"
        )
        return found
