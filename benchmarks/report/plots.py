"""Plots of the fused op's CSV, one per table: the ratio over the tokens, the share of the roofline over the width.

python -m benchmarks.report.plots benchmarks/results/cpu-intel-xeon.csv

writes docs/benchmarks/plots/cpu-intel-xeon-<table>-<threads>t.png, for the tables that have three widths or more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from incline_fast.bench import Timing, read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOTS", "picture_of", "plot"]

PLOTS = Path(__file__).parents[2] / "docs" / "benchmarks" / "plots"

OURS = "fused_in_place["


def plot(path: Path, folder: Path = PLOTS) -> list[Path]:
    """One picture per table and number of threads, in ``folder``; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = [row for row in read_csv(path) if row.backend.startswith(OURS) and row.mode == "dram"]
    written = []
    for table, threads in sorted({(row.table, row.threads) for row in mine}):
        rows = [row for row in mine if (row.table, row.threads) == (table, threads)]
        # One rank and one dtype per picture: those that most of the table has.
        kinds = [(row.rank, row.dtype, row.map_dtype, row.norm) for row in rows]
        kind = max(kinds, key=kinds.count)
        rows = [row for row, own in zip(rows, kinds, strict=True) if own == kind]
        if len({row.hidden_size for row in rows}) >= 3:
            written.append(_picture(rows, folder / picture_of(path, table, threads)))
    return written


def picture_of(path: Path, table: str, threads: int) -> str:
    """The name of a table's picture, if it has one."""
    return f"{path.stem}-{table.replace('@', '-')}-{threads}t.png"


def _picture(rows: Sequence[Timing], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for width in sorted({row.hidden_size for row in rows}):
        line = sorted((row.num_tokens, row.ratio_vs_eager) for row in rows if row.hidden_size == width)
        left.plot(*zip(*line, strict=True), "-o", label=f"d = {width}")
    for tokens in sorted({row.num_tokens for row in rows}):
        line = sorted((row.hidden_size, row.pct_roofline) for row in rows if row.num_tokens == tokens)
        right.plot(*zip(*line, strict=True), "-o", label=f"M = {tokens}")
    left.axhline(1, color="grey", linewidth=1)
    _finish(left, "tokens M", "eager's time / ours", rows)
    _finish(right, "hidden size", "percent of the roofline", rows)
    right.set_ylim(0, 105)
    first = rows[0]
    rank = "dense" if first.rank is None else f"rank {first.rank}"
    title = f"{first.op}, {rank}, {first.dtype}, map {first.map_dtype}, {first.backend[len(OURS) : -1]}"
    figure.suptitle(f"{title}, {first.threads} thread(s), {first.device}, torch {first.torch}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return path


def _finish(axes: Axes, xlabel: str, ylabel: str, rows: Sequence[Timing]) -> None:
    ticks = sorted({row.num_tokens if xlabel == "tokens M" else row.hidden_size for row in rows})
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(*plot(Path(name)), sep="\n")
