"""Which function a request is about, what is kept of it, and whether whoever asks may do this.

Asked by every endpoint of the dialect; asks `host.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...authority import Access
from ...config import TRAINED
from ...errors import NotFound
from ...host import Host
from ...lessons import Profile, ids
from ...registry import Function
from ...request import bearer

SCOPES = ("invoke", "read", "deploy")


class Subject(NamedTuple):
    """What a request is about."""

    function: Function
    profile: Profile


class Reach:
    """Finds what may be reached.

    Guarantee: of a function that one may do nothing with, one does not hear that it exists.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    async def access(self, request: Request) -> Access:
        """Who asks; Unauthorized."""
        return await self._host.identify(bearer(request.headers.get("authorization")))

    async def function(self, request: Request, scope: str) -> Subject:
        """The function in the address; Unauthorized, Forbidden, NotFound."""
        id: str = request.path_params["function"]
        function = self._found(id)
        if function is not None and scope == "invoke" and function.settings.public:
            return await self.subject(function)
        access = await self.access(request)
        if function is None or not any(access.may(each, function.space, function.name) for each in SCOPES):
            if not access.subject and not self._is_open():
                raise access.refusal(scope, function.space if function else TRAINED)
            raise NotFound(f"there is no function {id[:100]} here", details={"function": id})
        access.require(scope, function.space, function.name)
        return await self.subject(function)

    async def functions(self, request: Request) -> list[Function]:
        """All that may be read, by name."""
        access = await self.access(request)
        found = [one for one in self._host.registry.functions.values() if access.may("read", one.space, one.name)]
        return sorted(found, key=lambda function: function.label)

    async def subject(self, function: Function) -> Subject:
        """The function with what is kept of it."""
        return Subject(function, await self._host.training.lessons.profile(function))

    def _found(self, id: str) -> Function | None:
        number = ids.function_number(id)
        if number is None:
            return self._named(id)
        try:
            return self._host.find(number)
        except NotFound:
            return None

    def _named(self, slug: str) -> Function | None:
        """The function that is called `space-name`: an id that a person can write. Both may have hyphens in them."""
        functions = self._host.registry.functions
        places = [at for at, character in enumerate(slug) if character == "-"]
        return next((found for at in places if (found := functions.get((slug[:at], slug[at + 1 :])))), None)

    def _is_open(self) -> bool:
        """Whether nobody needs a token for anything: then there is none to ask for."""
        return all(self._host.authority.is_open(space) for space in (*self._host.registry.spaces, TRAINED))


def told(value: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; every success is 200, which is the only one that Nyckel's SDK takes for one."""
    return Response(msgspec.json.encode(value), 200, headers, media_type="application/json")
