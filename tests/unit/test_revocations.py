"""Revoked tokens: known at once to every host on the folder, after a restart too, forgotten when they have expired."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.revocations import HOUR, Revocations

LATER = int(time.time()) + 600


def test_what_is_revoked_is_known_everywhere(tmp_path: Path) -> None:
    """To this host, to one beside it that has looked before, and to one that comes later."""
    one, other = Revocations(lambda: tmp_path), Revocations(lambda: tmp_path)
    claims, kept = {"jti": "aa", "exp": LATER}, {"jti": "bb", "exp": LATER}
    assert not other.has(claims)

    one.add(claims)
    assert one.has(claims)
    assert other.has(claims)
    other.add({"jti": "cc", "exp": LATER})

    assert one.has({"jti": "cc", "exp": LATER})
    assert Revocations(lambda: tmp_path).has(claims)
    assert not one.has(kept)
    assert not other.has(kept)


def test_what_is_revoked_again_takes_no_room(tmp_path: Path) -> None:
    """Whoever has one token cannot fill the disk with it; also where another host was the first."""
    one, other = Revocations(lambda: tmp_path), Revocations(lambda: tmp_path)
    claims = {"jti": "aa", "exp": LATER}
    one.add(claims)
    file = tmp_path / "revoked" / str(LATER // HOUR)
    size = file.stat().st_size

    for each in (one, other, one):
        each.add(claims)

    assert file.stat().st_size == size


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    """This host knows of it at once, the others when it was told again."""
    one = Revocations(lambda: tmp_path)
    claims = {"jti": "aa", "exp": LATER}
    (tmp_path / "revoked").touch()
    with pytest.raises(OSError, match="revoked"):
        one.add(claims)
    assert one.has(claims)
    (tmp_path / "revoked").unlink()

    one.add(claims)

    assert Revocations(lambda: tmp_path).has(claims)


def test_a_torn_line_costs_nothing(tmp_path: Path) -> None:
    """Of a host that was killed while it wrote; a line that is just being written is read when it is whole."""
    one, other = Revocations(lambda: tmp_path), Revocations(lambda: tmp_path)
    one.add({"jti": "aa", "exp": LATER})
    file = tmp_path / "revoked" / str(LATER // HOUR)
    with file.open("a") as torn:
        torn.write("bb")
    assert not other.has({"jti": "bb", "exp": LATER})

    one.add({"jti": "cc", "exp": LATER})

    assert other.has({"jti": "aa", "exp": LATER})
    assert other.has({"jti": "cc", "exp": LATER})


def test_past_hours_go(tmp_path: Path) -> None:
    """Those files whose tokens have all expired; anything else in the folder is left alone."""
    revoked = Revocations(lambda: tmp_path)
    past = LATER - 4 * HOUR
    revoked.add({"jti": "old", "exp": past})
    (tmp_path / "revoked" / "notes").touch()

    revoked.add({"jti": "new", "exp": LATER})

    assert sorted(file.name for file in (tmp_path / "revoked").iterdir()) == sorted([str(LATER // HOUR), "notes"])
    assert revoked.has({"jti": "new", "exp": LATER})
