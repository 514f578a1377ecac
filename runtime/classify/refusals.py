"""Why a call of a trained function is refused. Raised anywhere in this package, answered by `serving.py`."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """The call cannot be answered as it is; nobody's code is at fault. The codes are those of `__init__.py`."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def answer(self) -> tuple[dict[str, Any], int]:
        """In the envelope of the host's own errors."""
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}, self.status
