"""A Kernel app file as Kernel's own templates have them: nothing in it is of this project."""

from typing import TypedDict

import kernel
from kernel import Kernel

client = Kernel()

app = kernel.App("research")


class Question(TypedDict):
    topic: str


@app.action("summarise")
async def summarise(ctx: kernel.KernelContext, payload: Question):
    print("asked about", payload)
    return {"invocation": ctx.invocation_id, "payload": payload, "status_code": 404}


@app.action(name="ping-back")
def ping(ctx: kernel.KernelContext):
    return "pong"


@app.action("fail")
def fail(ctx, payload):
    raise ValueError(f"no {payload['topic']}")
