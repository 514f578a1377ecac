"""The ids of what is taught: a prefix and 16 lower-case letters and digits, as Nyckel's clients know them.

Used by `lessons` and by the Nyckel dialect. A function's is its number in base 36, the others are hashes of what
they name, so the same thing has the same id on every host, and is known before it is recorded.
"""

from __future__ import annotations

import hashlib
import re
import secrets

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
LARGEST = (1 << 53) - 1  # of a function's number, see `calls.function_id`

_BARE = re.compile(r"[0-9a-z]{1,16}")


def function_text(number: int) -> str:
    """A function's number as an id."""
    return f"function_{_base36(number)}"


def function_number(text: str) -> int | None:
    """The number in a function's id, with or without its prefix; None where it is none."""
    bare = text.removeprefix("function_")
    if _BARE.fullmatch(bare) is None:
        return None
    number = int(bare, 36)
    return number if 0 < number <= LARGEST else None


def full(kind: str, text: str) -> str:
    """An id with its prefix, which clients may leave out."""
    return text if text.startswith(f"{kind}_") else f"{kind}_{text}"


def label_id(function: int, name: str, turn: int = 0) -> str:
    """The id of a label; with another `turn`, of one whose first id is taken by a label that was renamed."""
    return _hashed("label", f"{function}/{turn}/{name}".encode())


def field_id(function: int, name: str, turn: int = 0) -> str:
    """The id of a field; `turn` as for labels."""
    return _hashed("field", f"{function}/{turn}/{name}".encode())


def sample_id(function: int, data: bytes) -> str:
    """The id of a sample of this data: the same data is the same sample."""
    return _hashed("sample", b"%d/%s" % (function, data))


def random_text(length: int) -> str:
    """Letters and digits that nobody can guess."""
    return "".join(secrets.choice(DIGITS) for _ in range(length))


def _hashed(kind: str, data: bytes) -> str:
    return f"{kind}_{_base36(int.from_bytes(hashlib.blake2b(data, digest_size=10).digest(), 'big'))}"


def _base36(number: int) -> str:
    digits = []
    while number:
        number, rest = divmod(number, 36)
        digits.append(DIGITS[rest])
    return "".join(reversed(digits)).rjust(WIDTH, "0")
