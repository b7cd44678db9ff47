"""The demo's pictures, drawn once as figures and written as inline SVG for the page and as PNG."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["fit_error", "kl_over_alpha", "latency", "to_png", "to_svg"]

INK, MUTED, GRID = "#1c2530", "#6b7684", "#e3e7ec"
OURS, WARN = "#0b7285", "#c2410c"
CONTROLS = {"constant mean": "#8a94a3", "shuffled pairs": "#b08bb8", "mean difference": "#c9a227"}
ESTIMATORS = (OURS, "#c2410c", "#8a94a3")

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


def kl_over_alpha(numbers: dict[str, Any]) -> Figure:
    """One panel per language: change of the held-out KL over alpha, with its interval, and the controls."""
    languages = numbers["languages"]
    figure, panels = _panels(len(languages), 3.1)
    for axes, language in zip(panels, languages.values(), strict=True):
        for name, color in CONTROLS.items():
            x, y = _curve(language["held_out"][name], "change")
            axes.plot(x, y, color=color, linewidth=1.4, label=name)
        rows = language["held_out"][numbers["lines"]["ours"]]
        x, y = _curve(rows, "change")
        _, low = _curve(rows, "change_low")
        _, high = _curve(rows, "change_high")
        axes.fill_between(x, low, high, color=OURS, alpha=0.16, linewidth=0)
        axes.plot(x, y, color=OURS, linewidth=2.4, label="affine ridge (robust)")
        chosen = y[x.index(language["alpha"])]
        axes.plot([language["alpha"]], [chosen], "o", color=OURS, markersize=8, markeredgecolor="white")
        axes.annotate(
            _percent(chosen),
            (language["alpha"], chosen),
            xytext=(0, -20),
            textcoords="offset points",
            ha="center",
            color=OURS,
            weight="bold",
            size=12,
        )
        axes.axhline(0, color="#9aa4b0", linewidth=1)
        axes.set(title=language["name"], xlabel="alpha", xlim=(0, 0.5), ylim=(-70, 20))
        axes.yaxis.set_major_formatter(lambda value, _: _percent(value))
    panels[0].set_ylabel("change of KL to the English prompt")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="lower center", ncols=4, bbox_to_anchor=(0.5, -0.02))
    figure.subplots_adjust(bottom=0.27, wspace=0.12)
    return figure


def fit_error(numbers: dict[str, Any]) -> Figure:
    """One panel per language: held-out error of the maps, layer by layer."""
    languages = numbers["languages"]
    figure, panels = _panels(len(languages), 2.8)
    for axes, language in zip(panels, languages.values(), strict=True):
        for (name, errors), color in zip(language["fit_error"].items(), ESTIMATORS, strict=True):
            layers = sorted(map(int, errors))
            values = [errors[str(layer)] for layer in layers]
            axes.plot(layers, values, color=color, linewidth=2.2 if color == OURS else 1.4, marker="o", markersize=3)
            axes.annotate(
                name.split(",")[0], (layers[-1], values[-1]), xytext=(5, 0), textcoords="offset points", color=color,
                va="center", size=8,
            )  # fmt: skip
        axes.axhline(1, color="#9aa4b0", linewidth=1, linestyle=(0, (4, 3)))
        axes.set(title=language["name"], xlabel="layer", yscale="log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(x=0.03)
    panels[0].set_ylabel("held-out error (1 = predicting the mean)")
    figure.subplots_adjust(bottom=0.2, wspace=0.45)
    return figure


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


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, height))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)
    return figure, list(panels[0])


def _curve(rows: list[dict[str, Any]], column: str) -> tuple[list[float], list[float]]:
    """alpha and a column in percent, where the states did not blow up."""
    shown = [row for row in rows if not row["blown_up"]]
    return [row["alpha"] for row in shown], [100 * row[column] for row in shown]


def _percent(value: float, digits: int = 0) -> str:
    return f"{value:+.{digits}f}%".replace("-", "\u2212")
