"""Many functions: what is shown of them is bounded and adds up, and a change that concerns many reaches all."""

from __future__ import annotations

import os
import signal
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import Running, Site, eventually
from tests.acceptance.members import members, one_to_each, replaced

PLAIN = "def handle(data):\n    return {number}\n"
WITH_HELPER = "import helper\ndef handle(data):\n    return [{number}, helper.VERSION]\n"


def calls(text: str) -> Counter[tuple[str, str]]:
    """How many calls /metrics shows, by space and function."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        if family.name == "spaces_calls":
            for sample in family.samples:
                found[sample.labels["space"], sample.labels["function"]] += int(sample.value)
    return found


def metrics(host: Running) -> str:
    answer = host.client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


def test_the_first_functions_have_series_of_their_own(site: Site) -> None:
    """The others of a space are one, and all calls are counted, however many functions there are."""
    site.write("spaces.toml", "[server]\nmetrics_functions = 2\n")
    for space in ("a", "b"):
        for number in range(4):
            site.write(f"{space}/f{number}.py", PLAIN.format(number=number))
    host = site.start()
    for name in ("a/f0", "b/f1", "a/f1", "a/f2", "b/f0", "a/f0", "b/f2", "b/f3"):
        assert host.call(name).status_code == 200

    assert calls(metrics(host)) == {("a", "f0"): 2, ("b", "f1"): 1, ("a", "_other"): 2, ("b", "_other"): 3}


def test_a_function_that_was_deleted_is_still_counted(site: Site) -> None:
    """No counter falls; of one that comes back it goes on."""
    path = site.write("a/f0.py", PLAIN.format(number=0))
    host = site.start()
    host.call("a/f0")
    path.unlink()
    eventually(lambda: host.call("a/f0").status_code == 404, "the end of the function")
    without = calls(metrics(host))
    site.write("a/f0.py", PLAIN.format(number=1))
    eventually(lambda: host.call("a/f0").status_code == 200, "the function again")

    assert without["a", "f0"] >= 1
    assert calls(metrics(host))["a", "f0"] > without["a", "f0"]


def test_thousands_of_functions_are_listed(site: Site) -> None:
    """Each once, in its space, by name."""
    for space in range(50):
        for number in range(40):
            site.write(f"s{space}/f{number:02}.py", PLAIN.format(number=number))
    host = site.start()
    spaces = host.client.get("/spaces").json()["spaces"]
    names = [function["name"] for function in host.client.get("/spaces/s7/functions").json()["functions"]]

    assert spaces == [{"name": name, "functions": 40} for name in sorted(f"s{space}" for space in range(50))]
    assert names == [f"f{number:02}" for number in range(40)]


def test_a_helper_of_many_functions(site: Site) -> None:
    """An edit of it reaches all that are loaded, and no call fails meanwhile."""
    helper = site.write("a/helper.py", "VERSION = 1\n")
    for number in range(20):
        site.write(f"a/f{number}.py", WITH_HELPER.format(number=number))
    host = site.start()
    assert [host.call(f"a/f{number}").json() for number in range(20)] == [[number, 1] for number in range(20)]
    helper.write_text("VERSION = 2\n")

    for number in range(20):
        eventually(lambda number=number: host.call(f"a/f{number}").json() == [number, 2], f"f{number} to be reloaded")


def test_counters_outlive_a_host_process(site: Site) -> None:
    """What was shown once is shown ever after, by the other processes and by the one in its place."""
    site.write("a/f0.py", PLAIN.format(number=0))
    host = site.start("serve", "--processes", "2")
    with one_to_each(host) as clients:
        (victim, its), (_, others) = clients.items()
        for client in (its, its, others):
            client.call("a/f0")
        before = calls(its.ask("GET", "/metrics")[1])
        os.kill(victim, signal.SIGKILL)
        replaced(host, victim)
        others.call("a/f0")
        after = calls(others.ask("GET", "/metrics")[1])
    with one_to_each(host) as clients:
        shown = [calls(client.ask("GET", "/metrics")[1]) for client in clients.values()]

    assert victim not in members(host)
    assert before == {("a", "f0"): 3}
    assert after == {("a", "f0"): 4}
    assert shown == [after, after]


def test_nothing_is_lost_of_a_host_process_that_is_told_to_end(site: Site) -> None:
    """Though nobody has asked it: the others and the one in its place have all that it had counted."""
    site.write("a/f0.py", PLAIN.format(number=0))
    host = site.start("serve", "--processes", "2")
    with one_to_each(host) as clients:
        (victim, its), (_, others) = clients.items()
        for client in (its, its, others):
            client.call("a/f0")
    os.kill(victim, signal.SIGTERM)
    replaced(host, victim)

    with one_to_each(host) as clients:
        for client in clients.values():
            eventually(lambda client=client: calls(client.ask("GET", "/metrics")[1]) == {("a", "f0"): 3}, "all calls")
