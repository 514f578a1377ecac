"""Which part of the machine's limits is a host's, where several host processes serve one folder (`--processes`).

Made by `supervisor.py`, asked by whatever keeps a limit: `pool.py`, `dispatcher.py`.
"""

from __future__ import annotations

import msgspec


class Share(msgspec.Struct, frozen=True):
    """One of `of` equal parts; alone, the whole.

    Guarantee: the parts of all indices add up to the limit.
    """

    index: int = 0
    of: int = 1

    def part(self, limit: int) -> int:
        """Its part of a limit; the first ones have the remainder."""
        return limit // self.of + (self.index < limit % self.of)


WHOLE = Share()
