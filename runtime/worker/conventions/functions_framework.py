"""Google's convention: functions decorated by `functions_framework`, called with a Flask request, data or an event.

Asked by `handler.load`. Flask, cloudevents and functions_framework are those that the user's file imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from types import ModuleType
from typing import Any

from ..context import CallInfo
from ..faults import Refused
from ..handler import LoadError, kind_of
from ..head import Answer, headers_of, whole
from . import Adapted, client_of, server_of

Run = Callable[[CallInfo], Any]


def prepare(spec: dict[str, Any]) -> None:
    """The framework is imported by the file itself."""


def adapt(module: ModuleType, spec: dict[str, Any]) -> Adapted:
    """The decorated function; its results become answers the way Flask does that."""
    handle: Callable[..., Any] | None = getattr(module, spec["target"], None)
    if not callable(handle):
        raise LoadError(f"`{spec['target']}` is no function once the file has been imported")
    if kind_of(handle).startswith("async"):
        raise LoadError(f"`{spec['target']}` is async, which functions_framework's decorators do not take")
    flask = import_module("flask")
    app = flask.Flask(spec["target"], root_path=spec["folder"])
    run, limit = _run(handle, flask, spec["target"]), spec["max_response"]

    def call(info: CallInfo) -> Answer:
        with app.request_context(environ(info)):
            # Flask's routes play no part: whatever the path, it is this function's.
            app.dispatch_request = lambda *_: run(info)
            response = app.full_dispatch_request()
            response.direct_passthrough = False  # of a file: it is to be read here
            try:
                body = response.get_data()
            finally:
                response.close()
        return whole(response.status_code, headers_of(list(response.headers)), b"", body, limit)

    return Adapted(handle, call)


def _run(handle: Callable[..., Any], flask: ModuleType, name: str) -> Run:
    """What gives the function what it was decorated to take."""
    registry = import_module("functions_framework._function_registry")
    kind = registry.REGISTRY_MAP.get(name, "http")
    if kind == "typed":
        return _typed(handle, registry.INPUT_TYPE_MAP[name])
    if kind == "cloudevent":
        return _cloud_event(handle)
    return lambda info: handle(flask.request._get_current_object())


def _typed(handle: Callable[..., Any], kind: Any) -> Run:
    def run(info: CallInfo) -> Any:
        result = handle(kind.from_dict(info.json()))
        if result is None:
            return "", 200
        return result if type(result).__module__ == "builtins" else result.to_dict()

    return run


def _cloud_event(handle: Callable[..., Any]) -> Run:
    read: Callable[..., Any] = import_module("cloudevents.http").from_http
    unfit = import_module("cloudevents.exceptions").GenericException

    def run(info: CallInfo) -> str:
        try:
            event = read(dict(info.headers), info.body)
        except (unfit, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise Refused(400, "bad_event", f"the request is no CloudEvent: {error}"[:1000]) from None
        handle(event)
        return "OK"

    return run


def environ(info: CallInfo) -> dict[str, Any]:
    """The call as WSGI has it."""
    headers = info.headers
    host, port = server_of(info)
    variables: dict[str, Any] = {
        "REQUEST_METHOD": info.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": info.path.encode().decode("latin-1"),
        "RAW_URI": info.raw_path,
        "QUERY_STRING": info.wire_query.decode("latin-1"),
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(info.body)),
        "REMOTE_ADDR": client_of(info),
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": headers.get("x-forwarded-proto", "http"),
        "wsgi.input": BytesIO(info.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name in headers:
        # "_" and "-" are the same here: with one, a client could set anew what a proxy has set with the other.
        if name not in ("content-type", "content-length") and "_" not in name:
            variables["HTTP_" + name.upper().replace("-", "_")] = ",".join(headers.getlist(name))
    return variables
