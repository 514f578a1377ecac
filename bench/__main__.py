"""Runs benches, prints their tables and whether the floors are met, keeps the results in bench/results.

`python -m bench [NAME ...]`, or `make bench`. The peers that a bench needs are installed first.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from dataclasses import replace
from types import ModuleType

from bench import peers, report
from bench.servers import LOAD_CORE, SERVER_CORE, Unavailable


def main() -> int:
    options = arguments()
    if options.draw:
        return draw(report.kept_reports())
    if options.write_readme:
        report.write_readme()
        return 0
    benches = [importlib.import_module(f"bench.{name}") for name in options.names or report.BENCHES]
    try:
        peers.install(*{needed: None for bench in benches for needed in bench.NEEDS})
    except Unavailable as problem:
        sys.exit(f"bench: {problem}")
    if options.install:
        return 0
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"bench: this machine is not idle (load {busy:.1f}): expect uneven figures", file=sys.stderr)
    os.sched_setaffinity(0, {LOAD_CORE})
    return run(benches, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of: {', '.join(report.BENCHES)}; all by default; {', '.join(report.LONG)} only by name",
    )
    parser.add_argument("--quick", action="store_true", help="short runs, to see that it works; not kept")
    parser.add_argument("--install", action="store_true", help="only install the peers")
    parser.add_argument("--draw", action="store_true", help="only draw the pictures of the kept results")
    parser.add_argument("--write-readme", action="store_true", help="only put the kept results into README.md")
    parser.add_argument("--calls", type=int, metavar="N", help="how many calls `soak` makes (default: 5 million)")
    parsed = parser.parse_args()
    if unknown := set(parsed.names) - set(report.ALL):
        parser.error(f"no such bench: {', '.join(sorted(unknown))} (there are: {', '.join(report.ALL)})")
    return parsed


def run(benches: list[ModuleType], options: argparse.Namespace) -> int:
    """Each bench in turn; 1 when a floor was missed or something could not be measured."""
    chosen = report.Options.quick() if options.quick else report.Options()
    if options.calls:
        chosen = replace(chosen, calls=options.calls)
    good, all_found = True, []
    for bench in benches:
        print(f"\n== {bench.__name__.removeprefix('bench.')}", flush=True)
        found = bench.run(chosen)
        all_found.append(found)
        print(f"\n{found.markdown()}", flush=True)
        good = good and found.complete() and all(check.met for check in found.checks)
        if found.complete() and not options.quick:
            print(f"kept in {found.save(chosen)}")
            draw({found.name: report.kept_reports()[found.name]})
        else:
            print("not kept: a quick run" if options.quick else "not kept: incomplete")
    if options.quick:
        print(f"\n== all numbers of this quick run\n\n{report.summary(all_found)}")
    else:
        kept = (one for one, _ in report.kept_reports().values())
        print(f"\n== all numbers kept in bench/results\n\n{report.summary(kept)}")
    return 0 if good else 1


def draw(reports: dict[str, tuple[report.Report, dict]]) -> int:
    """The pictures of these reports; without matplotlib it says what is missing, and draws nothing."""
    try:
        from bench import pictures
    except ModuleNotFoundError as missing:
        print(f"not drawn: {missing.name} is not installed (`make bench` does: dependency group bench)")
        return 1
    for found, _ in reports.values():
        if path := pictures.draw(found):
            print(f"drawn: {path}")
    return 0


if __name__ == "__main__":
    if not {LOAD_CORE, SERVER_CORE} <= os.sched_getaffinity(0):
        sys.exit(f"bench: needs cores {SERVER_CORE} (servers) and {LOAD_CORE} (load)")
    sys.exit(main())
