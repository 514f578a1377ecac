"""Modules that are imported before any function, by `spaces serve`."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Site, eventually

LOOKS = """
    import os, sys
    at_import = "colorsys" in sys.modules
    def handle(data):
        return {"found": at_import, "base": open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1]}
    """


def configured(modules: str) -> str:
    return f"[spaces.demo]\npreload = {modules}\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_functions_find_imported_what_their_space_preloads(site: Site, processes: int) -> None:
    """Those of other spaces do not; what cannot be imported is said, and nothing else happens."""
    site.write("demo/one.py", LOOKS)
    site.write("demo/two.py", LOOKS)
    site.write("plain/one.py", LOOKS)
    site.write("spaces.toml", configured('["colorsys", "not_there"]'))
    host = site.start("serve", "--processes", str(processes))
    one, two, plain = (host.call(name).json() for name in ("demo/one", "demo/two", "plain/one"))

    assert (one["found"], two["found"], plain["found"]) == (True, True, False)
    assert one["base"] == two["base"] != plain["base"]
    host.logged("preload = [colorsys, not_there]: functions do without not_there: ModuleNotFoundError")
    host.stop()
    assert sum("do without" in line for line in host.lines) == 1


def test_a_changed_preload_makes_a_new_generation(site: Site) -> None:
    """Of the functions that are in use; and the process with what is preloaded no more ends."""
    site.write("demo/one.py", LOOKS)
    site.write("spaces.toml", configured('["colorsys"]'))
    host = site.start("serve")
    before = host.call("demo/one").json()
    assert before["found"]
    site.write("spaces.toml", configured("[]"))

    eventually(lambda: not host.call("demo/one").json()["found"], "the new generation")
    eventually(lambda: int(before["base"]) not in host.descendants(), "the end of the old base zygote")
