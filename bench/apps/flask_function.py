"""The peer functions-framework, sync: Flask under gunicorn, its production default."""

from __future__ import annotations


def handle(request):
    data = request.get_json()
    return {"sum": data["a"] + data["b"]}
