"""The tables of docs/benchmarks/cholesky.md, least_squares.md and solver.md, from the CSVs of their scripts."""

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
    return {"cholesky": cholesky(), "least-squares": least_squares(), "solver": solver()}


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


_WORKS = {"min_norm": "Minimum norm", "ridge": "Ridge", "loo": "Leave-one-out, 20 lambdas"}


def solver() -> str:
    """A table for each work: our time and torch's best over ours, for every shape that has been measured."""
    files = sorted(path.stem for path in RESULTS.glob("solver-*.csv"))
    rows = [row for name in files for row in read(name)]
    parts = [_work(rows, work, words) for work, words in _WORKS.items()]
    loads = sorted(float(row["load"]) for row in rows)
    run = f"{', '.join(sorted({row['processor'] for row in rows}))}, load average {loads[0]:.0f} to {loads[-1]:.0f}"
    links = ", ".join(f"[{name.removeprefix('solver-')}]({LINK}/{name}.csv)" for name in files)
    return "\n".join([*parts, f"{run}. Files: {links}."])


def _work(rows: Lines, work: str, words: str) -> str:
    shapes: dict[tuple[int, ...], Lines] = {}
    for row in rows:
        if row["work"].startswith(f"{work},"):
            shape = tuple(int(row[name]) for name in ("d", "n", "sites", "threads"))
            shapes.setdefault(shape, []).append(row)
    lines, lost = [], []
    for (d, n, sites, threads), providers in sorted(shapes.items()):
        ours, *others = providers
        best = min((row for row in others if "torch" in row["provider"]), key=_rank)
        rest = [f"{row['provider']} {_rank(row):.3g}x" for row in others if row is not best]
        errors = f"{ours['held_out_error']} / {best['held_out_error']}"
        where = f"{sites} x {n} x {d}"
        head = [where, str(threads), f"{float(ours['ms_p50']):.0f} ms", f"{_rank(best):.2f}x"]
        lines.append([*head, best["provider"], errors, ", ".join(rest), ours["rounds"]])
        if _rank(best) < 1:
            lost.append(f"{where}, threads: {threads} ({_rank(best):.2f}x)")
    heads = ["sites x n x d", "threads", "ours", "torch's best", "which", "errors, ours / its", "others", "rounds"]
    summary = f"Slower than torch's best: {'; '.join(lost)}." if lost else "No shape is slower than torch's best."
    return f"**{words}**\n\n{table(heads, lines)}\n{summary}\n"


def _rank(row: dict[str, str]) -> float:
    return float(row["ratio_to_first"])
