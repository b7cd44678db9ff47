"""One page and one plot of a run: python -m benchmarks.gpu.report --output FOLDER --work FOLDER.

Reads the tables in the first folder, also those of a run that was cut short, and writes gpu.md and gpu.png to report/
in the second: what passed, what was measured, and what the roofline model had predicted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.tables import read
from benchmarks.roofline import Gpu, find_gpu, predict
from incline_fast.bench import Problem
from incline_fast.files import replacing

__all__ = ["write_report"]

Rows = Sequence[dict[str, str]]


def write_report(tables: Path, target: Path) -> None:
    """Write ``gpu.md`` and, where something was measured, ``gpu.png``."""
    target.mkdir(parents=True, exist_ok=True)
    rows = read(tables / "measurements.csv")
    page = ["# A run on a GPU", "", *_stage_lines(read(tables / "stages.csv")), ""]
    if rows:
        page += [f"Measured on {rows[0]['device']}, torch {rows[0]['torch']}, commit {rows[0]['commit']}."]
        page += ["All numbers: measurements.csv.", "", "![Times by number of tokens](gpu.png)", ""]
        page += [*_ceiling_lines(read(tables / "environment.csv")), "", *_prediction_lines(rows), ""]
        page += _problem_lines(rows)
    else:
        page += ["Nothing was measured."]
    page += ["", *_check_lines(read(tables / "checks.csv")), *_skipped_lines(read(tables / "skipped.csv"))]
    with replacing(target / "gpu.md") as temporary:
        temporary.write_text("\n".join(page).rstrip() + "\n")
    if rows:
        _draw(rows, target / "gpu.png")


def _stage_lines(stages: Rows) -> list[str]:
    lines = ["| stage | result | seconds |", "|---|---|---|"]
    lines += [f"| {row['stage']} | {row['status']} | {float(row['seconds']):.0f} |" for row in stages]
    for row in stages:
        if row["detail"]:
            lines += ["", f"**{row['stage']} {row['status']}**: {row['detail']}"]
    return lines


def _ceiling_lines(environment: Rows) -> list[str]:
    return [f"{row['name']}: {row['value']}  " for row in environment if row["stage"] == "environment"]


def _check_lines(checks: Rows) -> list[str]:
    if not checks:
        return []
    failed = [row for row in checks if row["result"] != "passed"]
    lines = ["## Checks", "", f"{len(checks) - len(failed)} of {len(checks)} passed.", ""]
    return lines + [f"- {row['stage']}, {row['check']}: {row['reason']}" for row in failed] + [""]


def _problem_of(row: dict[str, str]) -> Problem:
    rank = int(row["rank"]) if row["rank"] else None
    dtypes = (getattr(torch, row["dtype"]), getattr(torch, row["map_dtype"]))
    return Problem(row["norm"], int(row["num_tokens"]), int(row["hidden_size"]), rank, *dtypes, row["mode"])


def _prediction_lines(rows: Rows) -> list[str]:
    """Measured against predicted for our backends where the weights come from memory."""
    gpu = find_gpu(rows[0]["device"])
    if gpu is None:
        return [f"The roofline model has no figures for {rows[0]['device']}, so nothing is predicted."]
    lines = ["## Measured and predicted", "", f"Predictions are the roofline model's for an {gpu.name} ({gpu.source})."]
    lines += ["", "| problem | backend | measured us | predicted us | measured / predicted | roofline us |"]
    lines += ["|---|---|---|---|---|---|"]
    return lines + [_prediction_line(row, gpu) for row in rows if row["kind"] == "ours" and row["mode"] == "dram"]


def _prediction_line(row: dict[str, str], gpu: Gpu) -> str:
    prediction = predict(gpu, _problem_of(row))
    measured, predicted = float(row["us_p50"]), prediction.us_predicted
    numbers = f"{measured:.2f} | {predicted:.2f} | {measured / predicted:.2f} | {prediction.us_roofline:.2f}"
    return f"| {_title(row)} | {row['backend']} | {numbers} |"


def _problem_lines(rows: Rows) -> list[str]:
    """Per problem every provider's time; where one of another library is faster than ours the line says so."""
    lines = ["## All providers", "", "| problem | microseconds, fastest first | parts |", "|---|---|---|"]
    for title in dict.fromkeys(_title(row) for row in rows):
        group = sorted((row for row in rows if _title(row) == title), key=lambda row: float(row["us_p50"]))
        whole = [row for row in group if row["kind"] != "part"]
        times, parts = _times(whole), _times([row for row in group if row["kind"] == "part"])
        losing = "" if not whole or whole[0]["kind"] == "ours" else " (**we lose**)"
        lines.append(f"| {title} | {times}{losing} | {parts} |")
    return lines


def _times(rows: Rows) -> str:
    return ", ".join(f"{row['backend']} {float(row['us_p50']):.2f}" for row in rows)


def _skipped_lines(skipped: Rows) -> list[str]:
    if not skipped:
        return []
    lines = ["## Left out", "", "| problem | provider | reason |", "|---|---|---|"]
    return lines + [f"| {row['problem']} | {row['provider']} | {row['reason']} |" for row in skipped]


def _title(row: dict[str, str]) -> str:
    if row["op"] == "cholesky_ex":
        return f"Cholesky {row['hidden_size']} {row['dtype']}"
    form = f"rank {row['rank']}" if row["rank"] else "dense"
    dtypes = row["dtype"] if row["dtype"] == row["map_dtype"] else f"{row['dtype']}/{row['map_dtype']}"
    where = (
        f" ({row['stage']})" if row["stage"] in ("triton", "compiled") else ""
    )  # not of the same rounds as the others
    return f"{row['norm']} {row['num_tokens']} x {row['hidden_size']} {form} {dtypes} {row['mode']}{where}"


def _draw(rows: Rows, path: Path) -> None:
    import matplotlib.pyplot as plt

    shown = [
        row
        for row in rows
        if (row["norm"], row["hidden_size"], row["map_dtype"], row["mode"]) == ("rms", "4096", "bfloat16", "dram")
        and row["kind"] != "part"
        and (row["backend"] == "triton" or row["stage"] not in ("triton", "compiled"))
    ]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, rank in zip(axes, ("", "500"), strict=True):
        lines = [row for row in shown if row["rank"] == rank]
        for backend in dict.fromkeys(row["backend"] for row in lines):
            points = sorted((int(r["num_tokens"]), float(r["us_p50"])) for r in lines if r["backend"] == backend)
            axis.plot(*zip(*points, strict=True), "o-" if backend in ("cuda", "triton") else ".--", label=backend)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--work", type=Path, required=True, help="the page goes to its folder report/")
    arguments = parser.parse_args()
    write_report(arguments.output, arguments.work / "report")
    print(arguments.work / "report" / "gpu.md")
