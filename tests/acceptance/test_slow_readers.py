"""A crowd of clients that hardly read: what each costs the host's memory, and that a stream is whole in the end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.connection import Connection

MANY = 150
EACH = 200 * 1024  # bytes: with as much as a single slow client is given, it would be twice that
STREAM = """
    async def handle():
        for number in range(500):
            yield b"%04d" % number * 4096
    """
SETTINGS = f"""
    [defaults]
    timeout = "5m"
    [spaces.demo.functions.stream]
    max_workers = 1
    concurrency = {MANY}
    """


def resident(host: Running) -> int:
    """The host's resident set, in bytes."""
    return int(Path(f"/proc/{host.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_crowd_that_hardly_reads(site: Site, engine: str) -> None:
    """Each has a little in the host's memory, together a bounded amount; what they then read is complete."""
    site.write("spaces.toml", SETTINGS)
    site.write("demo/stream.py", STREAM)
    host = site.start(engine=engine)
    expected = b"".join(b"%04d" % number * 4096 for number in range(500))
    assert host.call("demo/stream").content == expected
    with ExitStack() as scopes:
        before = resident(host)
        crowd = [scopes.enter_context(Connection(host.url)) for _ in range(MANY)]
        for each in crowd:
            each.request(host.path("demo/stream"))
            assert each.head().status == 200
        eventually(lambda: host.status("demo/stream")["busy"] == MANY, "all are under way")
        grown = resident(host) - before
        body = b"".join(iter(lambda: crowd[-1].chunk() or b"", b""))

    assert grown / MANY < EACH
    assert body == expected
