"""Google's functions framework: what each decorator's function is given, and how Flask's answers become ours."""

from __future__ import annotations

import inspect

import pytest

from runtime.worker.conventions.functions_framework import environ
from runtime.worker.faults import Refused
from runtime.worker.handler import Handler, LoadError
from tests.unit.worker.conventions.imported import call, loaded, shown

pytest.importorskip("functions_framework")

FILE = """
    import io
    import flask
    import functions_framework
    closed = []

    @functions_framework.http
    def page(request):
        if request.path == "/teapot": flask.abort(418)
        if request.path == "/raise": raise KeyError("x")
        if request.path == "/cookies":
            response = flask.make_response("", 204)
            response.set_cookie("a", "1")
            response.set_cookie("b", "2")
            return response
        if request.path == "/file":
            return flask.send_file(io.BytesIO(b"of a file"), mimetype="image/png")
        if request.path == "/close":
            response = flask.make_response("open")
            response.call_on_close(lambda: closed.append(request.path))
            return response
        if request.path == "/closed": return closed
        if request.path == "/stream": return flask.stream_with_context(iter([request.method, "!"]))
        return {"path": request.path, "args": request.args.getlist("a"), "json": request.get_json(silent=True),
                "header": request.headers["X-A"], "url": request.url, "from": request.remote_addr}

    class Point:
        def __init__(self, x): self.x = x
        from_dict = classmethod(lambda cls, given: cls(given["x"]))
        def to_dict(self): return {"y": self.x}

    @functions_framework.typed(Point)
    def move(point): return {1: point, 2: None, 3: "text"}[point.x]

    @functions_framework.cloud_event
    def stored(event):
        global last
        last = event["type"], event.data

    @functions_framework.http
    async def late(request): ...
"""
EVENT = {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-specversion": "1.0", "content-type": "application/json"}


def function(name: str) -> Handler:
    """One function of the file above."""
    return loaded("functions_framework", name, FILE)


def test_http_gets_flasks_request() -> None:
    """Whatever the path; nothing of it is lost on the way."""
    headers = {"x-a": "b", "host": "h.test:80", "x-forwarded-for": "1.2.3.4", "content-type": "application/json"}
    page = function("page")
    status, fields, body = shown(page.call(call(b"[1]", b"/a%20b//c%C3%A9", b"a=1&a=2", headers)))
    assert (status, fields) == (200, [("content-type", "application/json")])
    url = body.pop("url")
    assert body == {"path": "/a b//cé", "args": ["1", "2"], "json": [1], "header": "b", "from": "1.2.3.4"}
    assert url.startswith("http://h.test/a%20b//c")
    assert (page.kind, page.describe()["takes"]) == ("sync", ["request"])


def test_http_answers_as_flask_does() -> None:
    """Its errors, responses and streams; other exceptions are the function's."""
    page = function("page")
    assert page.call(call(path=b"/teapot")).status == 418
    assert page.call(call(path=b"/stream", method="PUT")).body == b"PUT!"
    status, headers, _ = shown(page.call(call(path=b"/cookies")))
    assert status == 204
    assert [value for name, value in headers if name == "set-cookie"] == ["a=1; Path=/", "b=2; Path=/"]
    with pytest.raises(KeyError):
        page.call(call(path=b"/raise"))


def test_a_file_is_sent_and_what_is_to_be_closed_is_closed() -> None:
    """As a WSGI server does."""
    page = function("page")
    answer = page.call(call(path=b"/file"))
    assert (answer.status, answer.body) == (200, b"of a file")
    assert page.call(call(path=b"/close")).body == b"open"
    assert shown(page.call(call(path=b"/closed")))[2] == ["/close"]


def test_a_header_cannot_pass_for_another() -> None:
    """WSGI has no difference between `-` and `_`: what a proxy has set could be set anew by its clients."""
    variables = environ(call(headers={"x-user": "alice", "x_user": "mallory", "content_length": "7"}))
    assert variables["HTTP_X_USER"] == "alice"
    assert "HTTP_CONTENT_LENGTH" not in variables


def test_typed_gets_its_type() -> None:
    """Made by from_dict of the body, and answered by to_dict of the result, where that is no plain value."""
    move = function("move")
    assert shown(move.call(call(b'{"x":1}')))[2] == {"y": 1}
    assert move.call(call(b'{"x":2}')).body == b""
    assert move.call(call(b'{"x":3}')).body == b"text"
    with pytest.raises(Refused, match="not valid JSON"):
        move.call(call(b"{"))


def test_cloud_event_gets_the_event() -> None:
    """And answers OK."""
    stored = function("stored")
    assert stored.call(call(b'{"a":1}', headers=EVENT)).body == b"OK"
    assert inspect.unwrap(stored.handle).__globals__["last"] == ("t", {"a": 1})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff", b'{"specversion":["1.0"]}', b'{"specversion":"1.0"}', b"[" * 5000, b"null",
             b'{"specversion":"1.0","id":1,"source":2,"type":3,"data_base64":5}']
)  # fmt: skip
def test_what_is_no_event_is_refused(body: bytes) -> None:
    """It never looks like a failure of the function, which is not called."""
    with pytest.raises(Refused) as caught:
        function("stored").call(call(body))
    assert (caught.value.status, caught.value.code) == (400, "bad_event")


def test_what_cannot_be_called_cannot_be_loaded() -> None:
    """Flask's functions are not async."""
    with pytest.raises(LoadError, match="async"):
        function("late")
    with pytest.raises(LoadError, match="gone"):
        function("gone")


def test_a_call_without_a_client_is_one_too() -> None:
    """Its environment has all that WSGI asks for."""
    found = environ(call())
    assert (found["SERVER_NAME"], found["SERVER_PORT"], found["PATH_INFO"]) == ("localhost", "80", "/")
    assert environ(call(headers={"host": "[::1]:8000"}))["SERVER_NAME"] == "[::1]"
