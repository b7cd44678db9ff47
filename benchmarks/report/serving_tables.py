"""Tables of docs/serving.md, from results/serving-parity.csv, serving-overhead.csv and serving-load.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["serving_blocks"]

RESULTS = Path(__file__).parents[1] / "results"

Rows = list[dict[str, str]]


def serving_blocks() -> dict[str, str]:
    """Every generated block by name."""
    tables = {"parity": _parity, "overhead": _overhead, "load": _load}
    blocks = {}
    for name, written in tables.items():
        rows = _read(RESULTS / f"serving-{name}.csv")
        module = f"python -m benchmarks.serving.{name} -o benchmarks/results/serving-{name}.csv"
        blocks[f"serving-{name}"] = written(rows) + _where(rows) if rows else f"Not yet measured: `{module}`.\n"
    return blocks


def _read(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _where(rows: Rows) -> str:
    return f"\nProcessor: {', '.join(dict.fromkeys(row['cpu'] for row in rows))}.\n"


def _parity(rows: Rows) -> str:
    maps = {"plain": "plain", "fr-en": "adding", "tr-en": "adding, a third of the sites", "de-en": "interpolating"}
    head = ["model, engine", "requests (edited)", "comparable", "equal"]
    head += [rf"\|dlogp\| {kind}" for kind in maps.values()] + ["preemptions", "cached tokens"]
    lines = [
        [
            f"{row['model']}, {row['configuration']}",
            f"{row['requests']} ({row['edited']})",
            row["comparable"],
            row["equal"],
            *(f"{float(row[f'max_dlogp {map}']):.1e} ({float(row[f'rounding {map}']):.1e})" for map in maps),
            row["preemptions"],
            row["cached_tokens"],
        ]
        for row in rows
    ]
    return markdown(head, lines)


def _overhead(rows: Rows) -> str:
    head = ["model, requests", "measure", "with / without, median", "20% to 80%", "without, s", "pairs"]
    lines = [
        [
            f"{row['model']}, {row['requests']}",
            row["measure"],
            f"{float(row['ratio']):.3f}",
            f"{float(row['ratio_p20']):.3f} to {float(row['ratio_p80']):.3f}",
            row["seconds_plain"],
            row["pairs"],
        ]
        for row in rows
    ]
    return markdown(head, lines)


def _load(rows: Rows) -> str:
    head = ["model, engine", "clients", "seconds", "answered", "refused, as expected", "loads", "errors"]
    head += ["plain texts changed", "memory early, late (MiB)"]
    lines = [
        [
            f"{row['model']}, {'compiled' if row['compiled'] == 'True' else 'eager'}",
            row["concurrent"],
            row["seconds"],
            row["answered"],
            str(int(row["refused"]) + int(row["gone"])),
            row["loads"],
            row["errors"],
            row["plain_changed"],
            f"{int(row['memory_early']) >> 20}, {int(row['memory_late']) >> 20}",
        ]
        for row in rows
    ]
    return markdown(head, lines)
