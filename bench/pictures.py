"""One SVG picture for a kept report, into bench/results: drawn of its rows and series, of nothing else.

Used by `__main__` after each kept run and for `--draw`. Transparent, in greys and colours that read on a white and
on a dark page alike; the same report gives the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from bench import report
from bench.report import Report

TEXT, FAINT = "#7d8590", "#7d859040"
OURS, OURS_TOO = "#e8590c", "#f59f5f"
THEIRS = "#8b98a980"
# Of lines, where a colour has to say whose it is.
LINES = {
    "spaces, engine uvicorn": OURS,
    "spaces, engine hypercorn": OURS_TOO,
    "workerd, JavaScript": "#4c8bf5",
    "functions-framework, async (+ httptools, uvloop)": "#2f9e6e",
    "functions-framework, async": "#9c6ade",
}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and the same bytes everywhere
    "svg.hashsalt": "bench",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": TEXT,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH = 8.6  # inches
KEEPS_UP = 0.9  # of the offered load; beyond it a latency says only how long the run was


def draw(found: Report) -> Path | None:
    """The picture of this report, for those that have one."""
    if not (painter := PAINTERS.get(found.name)):
        return None
    path = report.RESULTS / f"{found.name}.svg"
    with mpl.rc_context(STYLE):
        figure = painter(found)
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.15)
    return path


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def column(found: Report, name: str) -> int:
    return found.columns.index(name)


def throughput(found: Report) -> Figure:
    """Calls a second, the fastest first."""
    at = column(found, "req/s")
    bars = [(row[0], number(row[at])) for row in found.rows]
    figure, axes = panel(len(bars))
    horizontal(axes, bars, "{:,.0f}")
    axes.set_title("Calls a second on one core, server and user code together")
    return figure


def memory(found: Report) -> Figure:
    """What each further warm worker takes."""
    at = column(found, "each further worker MiB")
    bars = [(f"{row[0]}, {row[1]} handler", number(row[at])) for row in found.rows]
    figure, axes = panel(len(bars))
    horizontal(axes, sorted(bars, key=lambda bar: bar[1]), "{:.1f} MiB")
    axes.set_title("Memory of each further warm worker (PSS): less is better")
    return figure


def cold(found: Report) -> Figure:
    """Milliseconds to the first answer; a logarithmic axis, so points and not bars."""
    at = column(found, "p50 ms")
    points = sorted(((f"{row[0]} · {row[1]}", number(row[at])) for row in found.rows), key=lambda point: point[1])
    figure, axes = panel(len(points))
    least = min(value for _, value in points)
    for place, (name, value) in enumerate(points):
        colour = OURS if is_ours(name) else TEXT
        axes.plot([least / 3, value], [place, place], color=colour, alpha=0.35, linewidth=1)
        axes.plot(value, place, "o", color=colour, markersize=7)
        axes.annotate(f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms", (value, place), (9, 0),
                      textcoords="offset points", va="center", color=colour, weight=weight(name))  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(least / 3, max(value for _, value in points) * 4)
    plain_log(axes.xaxis, "{:,g} ms")
    names(axes, [name for name, _ in points])
    axes.grid(axis="x")
    axes.set_title("Time to the first answer (p50, logarithmic): less is better")
    return figure


def rising(found: Report) -> Figure:
    """p50 and p99 over the offered load, up to where a server no longer keeps up."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, place, title in ((panels[0], 2, "p50"), (panels[1], 4, "p99")):
        for name, curve in found.series.items():
            points = [step for step in curve if step[1] >= KEEPS_UP * step[0]]
            axes.plot(
                [step[0] for step in points],
                [step[place] for step in points],
                color=LINES.get(name, TEXT),
                linewidth=2.4 if is_ours(name) else 1.5,
                marker="o",
                markersize=4,
                zorder=3 if is_ours(name) else 2,
                label=name,
            )
        axes.set_yscale("log")
        plain_log(axes.yaxis, "{:,g} ms")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel("requests due a second")
        axes.set_title(f"{title} from the moment a request was due")
        axes.grid()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def many(found: Report) -> Figure:
    """Small pictures of one figure each, over the number of functions on disk."""
    shown = (
        ("start s", "start to listening, s"),
        ("host RSS MiB", "memory of the host, MiB"),
        ("reload ms", "reload of one function, ms"),
        ("req/s of one", "calls a second of one"),
    )
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        at = column(found, name) if name in found.columns else None
        points = [(number(row[0]), number(row[at])) for row in found.rows if at is not None and row[at]]
        axes.set_title(title, fontsize=9)
        if points:
            axes.plot(*zip(*points, strict=True), color=OURS, marker="o", markersize=5, linewidth=2)
            axes.set_ylim(0, max(value for _, value in points) * 1.3)
        axes.set_xscale("log")
        axes.set_xlim(0.6, 20_000)
        axes.set_xticks([1, 100, 10_000], ["1", "100", "10,000"], fontsize=8.5)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", labelsize=8.5)
        axes.yaxis.set_major_formatter(FuncFormatter(thousands))
        axes.grid(axis="y")
    figure.supxlabel("functions on disk", fontsize=9, color=TEXT)
    return figure


def overload(found: Report) -> Figure:
    """Answers a second and their p99, before, during and after."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    kinds = (("accepted", "accepted (200)", OURS), ("refused", "refused (429)", TEXT))
    for axes, place, title in ((panels[0], 1, "answers a second"), (panels[1], 2, "p99 of them")):
        for (begin, end), *_ in [found.series["overload"]]:
            axes.axvspan(begin, end, color=THEIRS, alpha=0.15, linewidth=0)
        for name, label, colour in kinds:
            points = found.series[name]
            axes.plot([p[0] for p in points], [p[place] for p in points], color=colour, linewidth=2, label=label)
        axes.set_title(title)
        axes.grid(axis="y")
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter(FuncFormatter(thousands))
    panels[1].set_yscale("log")
    plain_log(panels[1].yaxis, "{:,g} ms")
    panels[1].set_xlabel("seconds since ten times as many calls came as can be served")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


PAINTERS: dict[str, Callable[[Report], Figure]] = {
    "throughput": throughput,
    "rising": rising,
    "cold": cold,
    "memory": memory,
    "many": many,
    "overload": overload,
}


def is_ours(name: str) -> bool:
    return name.startswith("spaces")


def weight(name: str) -> str:
    return "bold" if is_ours(name) else "normal"


def panel(lines: int) -> tuple[Figure, Axes]:
    """A figure with room for so many lines of text beside it."""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.34 * lines), layout="constrained")
    return figure, figure.subplots()


def horizontal(axes: Axes, bars: list[tuple[str, float]], wording: str) -> None:
    """A bar for each, the first on top, its figure at its end."""
    most = max(value for _, value in bars)
    for place, (name, value) in enumerate(bars):
        axes.barh(place, value, height=0.62, color=OURS if is_ours(name) else THEIRS, linewidth=0)
        axes.text(value + most * 0.012, place, wording.format(value), va="center",
                  color=OURS if is_ours(name) else TEXT, weight=weight(name))  # fmt: skip
    axes.set_xlim(0, most * 1.13)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    names(axes, [name for name, _ in bars])


def names(axes: Axes, found: list[str]) -> None:
    """Names as the labels of the lines, from the top, ours set off."""
    axes.set_yticks(range(len(found)), found)
    for label, name in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(OURS if is_ours(name) else TEXT)
        label.set_weight(weight(name))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def thousands(value: float, _) -> str:
    return f"{value:,g}"


def plain_log(axis, wording: str) -> None:
    """Powers of ten in plain digits."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: wording.format(value)))
    axis.set_minor_formatter(NullFormatter())
