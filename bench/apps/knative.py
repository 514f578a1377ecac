"""The peer Knative func-python: an ASGI handler under its middleware, on the hypercorn it brings."""

from __future__ import annotations

from asgi import app as handle_http
from func_python.http import serve


async def handle(scope, receive, send):
    await handle_http(scope, receive, send)


if __name__ == "__main__":
    serve(handle)
