"""What a bench found: printed as a table, kept as JSON, gathered into README.md.

Benches return a `Report`; `__main__` prints and saves it. A `Check` is one number against its floor and aim.
`draw` makes the pictures, from what was kept.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

NUMBER = re.compile(r"(-?[\d,.]+)?")
HERE = Path(__file__).parent
BENCHES = ("throughput", "rising", "cold", "memory", "reload", "many", "overload", "durable", "cores", "budget")
LONG = ("soak",)  # only when asked for by name
ALL = (*BENCHES, *LONG)
RESULTS = HERE / "results"
README = HERE / "README.md"
BUDGET = HERE.parent / "docs" / "explanation" / "performance.md"  # the page that explains `budget` has its table too
BEGIN, END = "<!-- results: written by `python -m bench --write-readme` -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Options:
    """How long and how often to measure."""

    seconds: float = 8
    rounds: int = 3
    tries: int = 30
    edits: int = 20
    calls: int = 5_000_000  # of `soak`
    brief: bool = False  # small sizes, to see that it works

    @classmethod
    def quick(cls) -> Options:
        return cls(seconds=2, rounds=1, tries=5, edits=5, calls=20_000, brief=True)


@dataclass(frozen=True)
class Check:
    """One number against its floor and its aim; `at_most` says which side is the good one."""

    name: str
    value: float
    unit: str
    floor: float
    aim: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.floor if self.at_most else self.value >= self.floor

    @property
    def reached(self) -> bool:
        return self.value <= self.aim if self.at_most else self.value >= self.aim

    def verdict(self) -> str:
        return "aim reached" if self.reached else "floor met" if self.met else "FLOOR MISSED"

    def cells(self) -> list[str]:
        sign = "<=" if self.at_most else ">="
        limits = [f"{sign} {number:g} {self.unit}".strip() for number in (self.floor, self.aim)]
        return [self.name, f"{self.value:.3g} {self.unit}".strip(), *limits, self.verdict()]


@dataclass
class Report:
    """A table, the checks drawn from it, and what could not be measured."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    note: str = ""
    # Points for a picture, where the table has less.
    series: dict[str, list[list[float]]] = field(default_factory=dict)

    def complete(self) -> bool:
        return not self.failed and bool(self.rows)

    def markdown(self, *, pictures: bool = False) -> str:
        parts = [f"### {self.title}", table(self.columns, self.rows)]
        if pictures and (RESULTS / f"{self.name}.svg").exists():
            parts.insert(1, f"![{self.title}: the figures of the table below](results/{self.name}.svg)")
        if self.checks:
            parts.append(table(["number", "measured", "floor", "aim", ""], [c.cells() for c in self.checks]))
        parts += [f"Not measured: {name}: {reason}" for name, reason in self.failed.items()]
        return "\n\n".join([*parts, self.note] if self.note else parts) + "\n"

    def save(self, options: Options) -> Path:
        RESULTS.mkdir(exist_ok=True)
        kept = {"date": now(), "machine": machine(), "options": asdict(options), **asdict(self)}
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return path


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A markdown table, padded so that it also reads well in a terminal; columns of numbers to the right."""
    across = range(len(columns))
    widths = [max(3, *(len(row[i]) for row in [columns, *rows])) for i in across]
    right = [bool(rows) and all(NUMBER.fullmatch(row[i]) for row in rows) for i in across]

    def line(cells: list[str]) -> str:
        padded = [cells[i].rjust(widths[i]) if right[i] else cells[i].ljust(widths[i]) for i in across]
        return "| " + " | ".join(padded) + " |"

    rule = "|".join("-" * (widths[i] + 1) + ("-:"[right[i]]) for i in across)
    return "\n".join([line(columns), f"|{rule}|", *map(line, rows)])


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> dict[str, str]:
    """The facts that a reader needs to judge a figure; nothing that tells one machine from its twin."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "cpu": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {kernel}, Python {platform.python_version()}",
        "commit": commit(),
    }


def commit() -> str:
    """The commit that was measured, with a `+` when files had changed since."""
    git = ["git", "-C", str(HERE)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    status = [*git, "status", "--porcelain", "--", "../runtime"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout
    return "none yet" if found.returncode else found.stdout.strip() + ("+" if changed else "")


def kept_reports() -> dict[str, tuple[Report, dict]]:
    """The kept reports by name, each with the facts of its run."""
    found = {}
    for name in ALL:
        path = RESULTS / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            facts = {fact: kept.pop(fact) for fact in ("date", "machine", "options")}
            found[name] = Report(**{**kept, "checks": [Check(**check) for check in kept["checks"]]}), facts
    return found


def summary(reports: Iterable[Report]) -> str:
    """All checks of these reports as one table."""
    rows = [[report.name, *check.cells()] for report in reports for check in report.checks]
    return table(["bench", "number", "measured", "floor", "aim", ""], rows)


def write_readme() -> None:
    """Replaces the generated block of README.md with what bench/results holds."""
    parts = []
    reports = kept_reports()
    for report, facts in reports.values():
        source = f"{facts['date']}, commit {facts['machine'].pop('commit')}; "
        parts.append(report.markdown(pictures=True) + "\n" + source + "; ".join(facts["machine"].values()) + ".\n")
    replace_block(README, BEGIN, END, "\n".join(parts) or "No results yet.\n")
    if "budget" in reports:
        budget = reports["budget"][0]
        replace_block(BUDGET, "<!-- budget -->", "<!-- /budget -->", table(budget.columns, budget.rows) + "\n")


def replace_block(page: Path, begin: str, end: str, block: str) -> None:
    """Put this between the two comments."""
    text = page.read_text()
    before, after = text.partition(begin)[0], text.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{block}\n{end}{after}")
