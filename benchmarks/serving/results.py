"""CSV files that several runs add to: a line that is measured again replaces the old one."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from incline_fast.files import write_table

__all__ = ["add_lines"]


def add_lines(lines: Sequence[Mapping[str, Any]], key: Sequence[str], path: Path) -> None:
    """Add lines to a CSV, or start it.

    Args:
        lines: at least one, all with the same columns; floats keep four digits.
        key: the columns that tell a line from others.
        path: the file.
    """
    told = [{k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in line.items()} for line in lines]
    old: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            old = list(csv.DictReader(file))
    kept = {tuple(line[column] for column in key): line for line in [*old, *told]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(list(kept.values()), list(told[0]), path)
