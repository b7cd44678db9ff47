"""The demo's pictures, drawn once as figures and written as inline SVG for the page and as PNG."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from incline_fast.evaluation.comparison import INCLINE, TARGET, UNLABELLED

__all__ = ["accuracy", "divergence", "latency", "oracle", "row_of", "to_png", "to_svg"]

INK, MUTED, GRID = "#1c2530", "#6b7684", "#e3e7ec"
OURS, WARN = "#0b7285", "#c2410c"
PLAIN, ENGLISH = "#8a94a3", "#c9a227"

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": "#b9c1cb",
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "legend.frameon": False,
    }
)


def accuracy(numbers: dict[str, Any], calibration: str = "raw") -> Figure:
    """Three bars per language: plain, INCLINE with the interval of its gain over plain, and the English prompt."""
    figure = Figure(figsize=(11, 3.4))
    axes = figure.subplots()
    bars = (("plain", PLAIN), (INCLINE, OURS), (TARGET, ENGLISH))
    for place, (code, name) in enumerate({"all": "all", **numbers["languages"]}.items()):
        rows = {line: row_of(numbers, code, line, calibration) for line, _ in bars}
        plain = 100 * rows["plain"]["accuracy"]
        for offset, (line, color) in enumerate(bars):
            x, row = place + 0.27 * (offset - 1), rows[line]
            axes.bar(x, 100 * row["accuracy"], width=0.25, color=color, label=line if place == 0 else None)
            if line == INCLINE:
                axes.plot([x, x], [plain + 100 * row["low"], plain + 100 * row["high"]], color=INK, linewidth=1.6)
                axes.annotate(
                    f"{100 * row['difference']:+.0f}".replace("-", "\u2212"), (x, plain + 100 * row["high"]),
                    xytext=(0, 4), textcoords="offset points", ha="center", weight="bold", color=OURS,
                )  # fmt: skip
        axes.text(place, -0.02, name, transform=axes.get_xaxis_transform(), ha="center", va="top", color=INK)
    axes.set_xticks([])
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.06))
    return figure


def divergence(numbers: dict[str, Any]) -> Figure:
    """Bars per language: KL from the English prompt's label distribution, plain and intervened."""
    figure = Figure(figsize=(11, 2.6))
    axes = figure.subplots()
    lines = (("plain", PLAIN), (INCLINE, OURS), (UNLABELLED, WARN))
    for place, (code, name) in enumerate({"all": "all", **numbers["languages"]}.items()):
        for offset, (line, color) in enumerate(lines):
            value = row_of(numbers, code, line)["kl"]
            axes.bar(place + 0.27 * (offset - 1), value, width=0.25, color=color, label=line if place == 0 else None)
        axes.text(place, -0.03, name, transform=axes.get_xaxis_transform(), ha="center", va="top", color=INK)
    axes.set_xticks([])
    axes.set_ylabel("KL to the English prompt, nats")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.1))
    return figure


def oracle(numbers: dict[str, Any]) -> Figure:
    """A line per language: what the true English state gains at each site."""
    figure = Figure(figsize=(11, 2.6))
    axes = figure.subplots()
    for (code, sites), style in zip(numbers["oracle"].items(), ("-", "--", "-.", ":", (0, (1, 3))) * 9, strict=False):
        places = sorted(map(int, sites))
        gains = [100 * sites[str(place)][0] for place in places]
        axes.plot(
            places, gains, color=OURS, linestyle=style, marker="o", markersize=3, label=numbers["languages"][code]
        )
    axes.axhline(0, color="#9aa4b0", linewidth=1)
    axes.set(xlabel="site", ylabel="gain, points")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best", ncols=2)
    return figure


def row_of(numbers: dict[str, Any], language: str, line: str, calibration: str = "raw") -> dict[str, Any]:
    """One row of the table of results."""
    wanted = {"language": language, "line": line, "calibration": calibration}
    return next(row for row in numbers["rows"] if wanted.items() <= row.items())


def latency(numbers: dict[str, Any]) -> Figure:
    """Bars: seconds of one generation, plain, fused and with two passes and hooks."""
    measured = numbers["latency"]
    figure = Figure(figsize=(8, 1.9))
    axes = figure.subplots()
    for place, (way, color) in enumerate(zip(measured["ways"], ("#8a94a3", OURS, WARN), strict=True)):
        taken = measured["ways"][way]
        axes.barh(place, taken["p50"], color=color, height=0.62)
        axes.plot([taken["p20"], taken["p80"]], [place, place], color=INK, linewidth=1.2)
        ratio = "" if way == "plain" else f"   {_percent(100 * (taken['ratio'] - 1), 1)}"
        axes.annotate(
            f"{taken['p50']:.2f} s{ratio}", (max(taken["p50"], taken["p80"]), place), xytext=(8, 0),
            textcoords="offset points", va="center", weight="bold", color=color if way != "plain" else INK,
        )  # fmt: skip
    axes.set_yticks(range(len(measured["ways"])), list(measured["ways"]), color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"seconds for {measured['new_tokens']} tokens; line: 20th to 80th percentile")
    axes.set_xlim(0, 1.22 * max(taken["p80"] for taken in measured["ways"].values()))
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    head, body = svg[svg.index("<svg") :].split(">", 1)
    # Sizes of the element itself would keep it from shrinking on a narrow screen; the viewBox stays.
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body


def to_png(figure: Figure, path: Path) -> None:
    """The figure as a picture on white."""
    figure.savefig(path, format="png", bbox_inches="tight", dpi=130, facecolor="white")


def _percent(value: float, digits: int = 0) -> str:
    return f"{value:+.{digits}f}%".replace("-", "\u2212")
