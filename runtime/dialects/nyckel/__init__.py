"""The Nyckel dialect: invoke a function for a label, and teach one that is trained here. `/v1/…` and `/v0.9/…`.

Mounted by `app.py`, asks `host.py` and its `training`. The same is found below `/nyckel.com`, because Nyckel's SDK can
list things only where the address has `.com` or the port 5000 in it. See docs/reference/dialects/nyckel.md.
"""

from __future__ import annotations

import msgspec
from starlette.routing import BaseRoute, Route

from ...calls import Headers
from ...errors import HostError
from ...host import Host
from .functions import Functions
from .invoke import Invoke
from .reach import Reach
from .samples import Samples
from .vocabulary import Vocabulary

NAME = "nyckel"

MOUNT = "/nyckel.com"
VERSIONS = ("/v1", "/v0.9")
JSON = (b"content-type", b"application/json")
SHOWN = ("id", "existingSampleId")  # details that clients read
STATUSES = {422: 400, 502: 503, 504: 503}  # those that its clients do not know


def owns(path: str) -> bool:
    """What is below one of the versions, with the mount's name before it or without."""
    rest = path.removeprefix(MOUNT)
    return any(rest == version or rest.startswith(f"{version}/") for version in VERSIONS)


def to_error(error: HostError, debug: bool) -> tuple[int, Headers, bytes]:
    """`{"message": …}`, whatever went wrong; of a conflict also the id of what there is."""
    shown = {name: error.details[name] for name in SHOWN if error.status == 409 and name in error.details}
    body = msgspec.json.encode({"message": error.message, **shown})
    status = STATUSES.get(error.status, error.status)
    if status in (429, 503):
        error.headers.setdefault("Retry-After", "1")
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return status, [JSON, (b"content-length", b"%d" % len(body)), *headers], body


def routes(host: Host) -> list[BaseRoute]:
    """Every address in both versions: clients mix them."""
    reach = Reach(host)
    invoke, functions = Invoke(host, reach), Functions(host, reach)
    samples, vocabulary = Samples(host, reach), Vocabulary(host, reach)
    inner: list[BaseRoute] = [
        *functions.routes(),
        Route("/functions/{function}/invoke", invoke.answer, methods=["POST"]),
        *samples.routes(),
        *vocabulary.routes(),
    ]
    return [_below(f"{mount}{version}", route) for mount in ("", MOUNT) for version in VERSIONS for route in inner]


def _below(prefix: str, route: BaseRoute) -> BaseRoute:
    assert isinstance(route, Route)
    return Route(f"{prefix}{route.path}", route.endpoint, methods=sorted(route.methods or ()))
