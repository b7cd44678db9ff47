"""The tables of docs/benchmarks/cholesky.md and least_squares.md, from the CSVs of cholesky.py and ridge.py."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table

__all__ = ["solver_blocks"]

RESULTS = Path(__file__).parents[1] / "results"
LINK = "../../benchmarks/results"
"""The same folder, seen from docs/benchmarks."""
CPU = "intel-r-xeon-r-processor"
STACKS = (("1", "one"), ("8", "eight"), ("32", "32"))
DTYPES = (("float32", "fp32"), ("float64", "fp64"))
THREADS = (("1t", "one thread"), ("2t", "two threads"))

Lines = list[dict[str, str]]


def solver_blocks() -> dict[str, str]:
    """Every generated block by name."""
    return {"cholesky": cholesky(), "least-squares": least_squares()}


def read(name: str) -> Lines:
    """A CSV's rows by column name."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cholesky() -> str:
    """Torch's time over ours for every shape, and the shapes that miss what is asked of them."""
    return "\n\n".join(_cholesky(suffix, words) for suffix, words in THREADS)


def _cholesky(suffix: str, words: str) -> str:
    rows = read(f"cholesky-{CPU}-{suffix}")
    cells = {(row["n"], row["batch"], row["dtype"]): row for row in rows}
    columns = [(batch, dtype) for dtype, _ in DTYPES for batch, _ in STACKS]
    head = ["n", *(f"{short}, {name}" for _, short in DTYPES for _, name in STACKS)]
    lines = []
    for n in sorted({row["n"] for row in rows}, key=int):
        found = [cells.get((n, batch, dtype)) for batch, dtype in columns]
        lines.append([n, *("" if row is None else _ratio(row) for row in found)])
    name = f"cholesky-{CPU}-{suffix}"
    loads = sorted(float(row["load_average"]) for row in rows)
    title = (
        f"**{words[0].upper()}{words[1:]}** ([CSV]({LINK}/{name}.csv)), load average {loads[0]:.1f} to {loads[-1]:.1f}"
    )
    picture = f"![Cholesky, {words}](plots/{name}.png)\n\n" if suffix == "1t" else ""
    return f"{title}\n\n{table(head, lines)}\n{picture}{_missed(rows)}"


def _ratio(row: dict[str, str]) -> str:
    return f"{float(row['ratio_auto']):.2f}x" + (" (torch)" if row["auto_is"] == "torch" else "")


def _missed(rows: Lines) -> str:
    missed = [
        f"{row['dtype']} n = {row['n']}, {row['batch']} matrices: {_ratio(row)}"
        for row in rows
        if float(row["ratio_auto"]) < (0.95 if int(row["n"]) >= 256 else 0.85)
    ]
    if not missed:
        return "No shape is below 0.95x (0.85x below n = 256)."
    return "Below 0.95x (0.85x below n = 256): " + "; ".join(missed) + "."


def least_squares() -> str:
    """One layer against the other solvers, then lambda's choice and streaming."""
    runs = {suffix: {row["provider"]: row for row in read(f"ridge-layer-{suffix}")} for suffix, _ in THREADS}
    head = ["one layer", *(f"{words}{what}" for _, words in THREADS for what in ("", ", ratio"))]
    lines = [
        [provider, *(cell for suffix, _ in THREADS for cell in _time(runs[suffix].get(provider)))]
        for provider in runs["2t"]
    ]
    links = [f"[{name}]({LINK}/ridge-{name}.csv)" for name in _FILES]
    rest = [[row["work"], row["provider"], *_time(row)] for name in _FILES[2:] for row in read(f"ridge-{name}")]
    picture = "![One layer, two threads](plots/ridge-layer-2t.png)\n"
    return "\n".join(
        [table(head, lines), picture, table(["two threads", "", "time", "ratio"], rest), f"Files: {', '.join(links)}."]
    )


_FILES = ("layer-1t", "layer-2t", "lambda-2t", "streaming-2t")


def _time(row: dict[str, str] | None) -> list[str]:
    return ["", ""] if row is None else [f"{float(row['ms_p50']):.0f} ms", f"{float(row['ratio_to_first']):.3g}x"]
