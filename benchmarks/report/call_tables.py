"""The table of docs/benchmarks/call.md that compares with an earlier commit, from results/call-pair.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["call_blocks"]

RESULTS = Path(__file__).parents[1] / "results" / "call-pair.csv"


def call_blocks() -> dict[str, str]:
    """Every generated block by name."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    cases = list(dict.fromkeys((row["hidden_size"], row["rank"], row["dtype"]) for row in rows))
    cells = {
        (
            row["call"],
            row["hidden_size"],
            row["rank"],
            row["dtype"],
        ): f"{row['paired_ratio']} ({row['ratio_of_medians']})"
        for row in rows
    }
    calls = dict.fromkeys(row["call"] for row in rows)
    heads = [f"d = {d}, {rank if rank == 'dense' else f'rank {rank}'}, {dtype}" for d, rank, dtype in cases]
    lines = [[call, *(cells[call, *case] for case in cases)] for call in calls]
    where = f"{first['device']}, {first['threads']} thread, torch {first['torch']}, {first['rounds']} rounds.\n\n"
    return {"call-pair": where + markdown(["call", *heads], lines)}
