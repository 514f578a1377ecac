"""Calls that are served to nobody, so that the first one that somebody waits for finds everything as the second would.

Called by `base_zygote.py` once, and by `zygote.py` in each process that is forked before it is wanted. Whatever is
used here and not by a call costs each of those processes a page or two: so most of it is made at import.
"""

from __future__ import annotations

from _socket import socketpair  # plainer than those of `socket`, whose classes are written in Python
from socket import AF_UNIX, SHUT_WR, SOCK_SEQPACKET, SOCK_STREAM

from . import loop, wire
from .handler import Handler

BODY = b'{"some":["json",1,null]}'
HEADERS = b"content-type\0application/json"
CALL = wire.call_frame(1, 1, 0.0, 1, b"POST", b"/", b"a=b", HEADERS, len(BODY), BODY)
SPEC = {
    "space": "", "name": "", "function_id": 0, "entry": "", "debug": False, "secrets": {}, "memory": None,
    "concurrency": 1, "max_body": 1024, "max_response": 1024,
}  # fmt: skip
HANDLER = Handler(SPEC, lambda data: data)
STREAM, PACKETS, END = int(SOCK_STREAM), int(SOCK_SEQPACKET), int(SHUT_WR)  # the members of an enum run code of theirs
FAMILY = int(AF_UNIX)


def warm_up(times: int = 12) -> None:
    """Before the first fork. The interpreter rewrites code as it runs it for the first times.

    Done here, that happens once, in pages that every worker shares, instead of in each worker's own. It counts how
    often code is entered: as a worker enters its loop once, this is the only occasion for that.
    """
    worker = loop.unconnected(HANDLER)
    for _ in range(times):
        rehearse(worker)
    worker.let_go()


def rehearse(worker: loop.SyncWorker, calls: int = 2) -> None:
    """In a child that nobody waits for: what a call writes to is this process's own then. OSError: no sockets left."""
    handler, worker.handler = worker.handler, HANDLER
    try:
        host, channel = socketpair(FAMILY, STREAM)
        ahead, queue = socketpair(FAMILY, PACKETS)
        worker.connect(channel.detach(), queue.detach())
        for _ in range(calls):
            ahead.send(CALL)
        ahead.shutdown(END)
        worker.serve_queue()
        host.close()
        ahead.close()
    finally:
        worker.handler = handler
