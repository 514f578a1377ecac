"""The peer functions-framework, async (`--asgi`): Starlette under gunicorn, as in production."""

from __future__ import annotations


async def handle(request):
    data = await request.json()
    return {"sum": data["a"] + data["b"]}
