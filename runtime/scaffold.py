"""Handlers to start from: what `spaces new` writes. Called by `cli.py`."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError

JSON = '''\
"""Try: curl 'http://127.0.0.1:8000/spaces/{space}/functions/{name}/invoke?who=you'"""


def handle(data):
    return {{"hello": data.get("who", "world")}}
'''

TYPED = '''\
"""Try: curl -X POST http://127.0.0.1:8000/spaces/{space}/functions/{name}/invoke -d '{{"item": "tea", "count": 2}}'"""

from dataclasses import dataclass


@dataclass
class Order:
    item: str
    count: int = 1


def handle(data: Order):
    return {{"ordered": f"{{data.count}} x {{data.item}}"}}
'''

ASYNC = '''\
"""Try: curl http://127.0.0.1:8000/spaces/{space}/functions/{name}/invoke"""

import asyncio


async def handle(data):
    first, second = await asyncio.gather(fetch("first"), fetch("second"))
    return [first, second]


async def fetch(what):
    await asyncio.sleep(0.1)  # stands for a request to somewhere
    return what
'''

STREAM = '''\
"""Try: curl -N 'http://127.0.0.1:8000/spaces/{space}/functions/{name}/invoke?count=5'"""

import asyncio


async def handle(data):
    for number in range(int(data.get("count", 10))):
        yield {{"event": "tick", "data": {{"number": number}}}}
        await asyncio.sleep(0.5)
'''

HTTP = '''\
"""Try: curl -i http://127.0.0.1:8000/spaces/{space}/functions/{name}/invoke/some/path"""


def handle(data, function_call_info):
    info = function_call_info
    return {{
        "status_code": 200 if info.method == "GET" else 201,
        "headers": {{"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}},
        "body": f"<h1>{{info.method}} {{info.path}}</h1>",
    }}
'''

KINDS = {"json": JSON, "typed": TYPED, "async": ASYNC, "stream": STREAM, "http": HTTP}


def write(functions: Path, space: str, name: str, kind: str) -> Path:
    """A new handler file; ConfigError when there is one of that name."""
    path = functions / space / f"{name}.py"
    for taken in (path, functions / space / name / "handler.py"):
        if taken.exists():
            raise ConfigError(f"{taken} exists already: choose another name, or edit it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(KINDS[kind].format(space=space, name=name), encoding="utf-8")
    return path
