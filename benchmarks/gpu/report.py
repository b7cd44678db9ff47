"""One page and one plot of a run: what passed, what was measured, and what the roofline model had predicted."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.stages import Outcome
from benchmarks.roofline import Gpu, find_gpu, predict
from incline_fast.bench import Problem
from incline_fast.files import replacing

__all__ = ["write_report"]

_OURS = ("cuda", "triton")


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``gpu.md`` and, where something was measured, ``gpu.png`` from ``gpu.csv`` and ``skipped.csv``."""
    rows = _read(folder / "gpu.csv")
    page = ["# A run on a GPU", "", *_stage_lines(outcomes), ""]
    if rows:
        _draw(rows, folder / "gpu.png")
        page += [f"Measured on {rows[0]['device']}, torch {rows[0]['torch']}, commit {rows[0]['commit'] or 'unknown'}."]
        page += ["All numbers: [gpu.csv](gpu.csv).", "", "![Times by number of tokens](gpu.png)", ""]
        page += [*_prediction_lines(rows), "", *_problem_lines(rows)]
    else:
        page += ["Nothing was measured."]
    page += ["", *_skipped_lines(_read(folder / "skipped.csv"))]
    with replacing(folder / "gpu.md") as temporary:
        temporary.write_text("\n".join(page).rstrip() + "\n")


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def _stage_lines(outcomes: Sequence[Outcome]) -> list[str]:
    lines = ["| stage | result | seconds |", "|---|---|---|"]
    lines += [f"| {o.stage} | {o.status} | {o.seconds:.0f} |" for o in outcomes]
    for outcome in outcomes:
        if outcome.detail:
            lines += ["", f"**{outcome.stage} {outcome.status}**:", "", "```", outcome.detail, "```"]
    return lines


def _problem_of(row: dict[str, str]) -> Problem:
    rank = int(row["rank"]) if row["rank"] else None
    dtypes = (getattr(torch, row["dtype"]), getattr(torch, row["map_dtype"]))
    return Problem(row["norm"], int(row["num_tokens"]), int(row["hidden_size"]), rank, *dtypes, row["mode"])


def _prediction_lines(rows: Sequence[dict[str, str]]) -> list[str]:
    """Measured against predicted for our backends where the weights come from memory."""
    gpu = find_gpu(rows[0]["device"])
    if gpu is None:
        return [f"The roofline model has no figures for {rows[0]['device']}, so nothing is predicted."]
    lines = ["## Measured and predicted", "", f"Predictions are the roofline model's for an {gpu.name} ({gpu.source})."]
    lines += ["", "| problem | backend | measured us | predicted us | measured / predicted | roofline us |"]
    lines += ["|---|---|---|---|---|---|"]
    return lines + [_prediction_line(row, gpu) for row in rows if row["backend"] in _OURS and row["mode"] == "dram"]


def _prediction_line(row: dict[str, str], gpu: Gpu) -> str:
    prediction = predict(gpu, _problem_of(row))
    measured, predicted = float(row["us_p50"]), prediction.us_predicted
    numbers = f"{measured:.2f} | {predicted:.2f} | {measured / predicted:.2f} | {prediction.us_roofline:.2f}"
    return f"| {_title(row)} | {row['backend']} | {numbers} |"


def _problem_lines(rows: Sequence[dict[str, str]]) -> list[str]:
    """Per problem every provider's time; where one of another library is faster than ours the line says so."""
    lines = ["## All providers", "", "| problem | microseconds, fastest first |", "|---|---|"]
    for title in dict.fromkeys(_title(row) for row in rows):
        group = sorted((row for row in rows if _title(row) == title), key=lambda row: float(row["us_p50"]))
        times = ", ".join(f"{row['backend']} {float(row['us_p50']):.2f}" for row in group)
        losing = "" if group[0]["backend"] in (*_OURS, "blocked") else " (**we lose**)"
        lines.append(f"| {title} | {times}{losing} |")
    return lines


def _skipped_lines(skipped: Sequence[dict[str, str]]) -> list[str]:
    if not skipped:
        return []
    lines = ["## Left out", "", "| problem | provider | reason |", "|---|---|---|"]
    return lines + [f"| {row['problem']} | {row['provider']} | {row['reason']} |" for row in skipped]


def _title(row: dict[str, str]) -> str:
    if row["op"] == "cholesky_ex":
        return f"Cholesky {row['hidden_size']} {row['dtype']}"
    form = f"rank {row['rank']}" if row["rank"] else "dense"
    dtypes = row["dtype"] if row["dtype"] == row["map_dtype"] else f"{row['dtype']}/{row['map_dtype']}"
    return f"{row['norm']} {row['num_tokens']} x {row['hidden_size']} {form} {dtypes} {row['mode']}"


def _draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    import matplotlib.pyplot as plt

    shown = [r for r in rows if (r["norm"], r["hidden_size"], r["map_dtype"]) == ("rms", "4096", "bfloat16")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, rank in zip(axes, ("", "500"), strict=True):
        lines = [row for row in shown if row["rank"] == rank and row["mode"] == "dram"]
        for backend in dict.fromkeys(row["backend"] for row in lines):
            points = sorted((int(r["num_tokens"]), float(r["us_p50"])) for r in lines if r["backend"] == backend)
            axis.plot(*zip(*points, strict=True), "o-" if backend in _OURS else ".--", label=backend)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=f"rank {rank}" if rank else "dense")
        axis.grid(alpha=0.3)
        if lines:
            axis.legend()
    axes[0].set_ylabel("µs, measured")
    figure.suptitle(f"{rows[0]['device']}: d = 4096, bf16, weights from memory, CUDA graphs")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
