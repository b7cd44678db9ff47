"""One row per provider and problem, and the CSV that holds them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from incline_fast.files import write_table

__all__ = ["Timing", "merged", "read_csv", "write_csv", "write_table"]


@dataclass(frozen=True)
class Timing:
    """One provider on one problem. A ratio is the median of (the other's time / this one's) over neighbouring calls."""

    op: str
    backend: str
    norm: str
    num_tokens: int
    hidden_size: int
    rank: int | None
    dtype: str
    map_dtype: str
    mode: str
    us_p50: float
    us_p20: float
    us_p80: float
    gb_s: float
    pct_roofline: float | None
    ratio_vs_eager: float | None
    ratio_vs_compile: float | None
    ratio_vs_hook: float | None
    ratio_vs_max_autotune: float | None
    ratio_vs_simd_ml_kernels: float | None
    max_err: float
    device: str
    threads: int
    torch: str
    commit: str
    table: str

    @property
    def shape(self) -> str:
        """The problem in the words of ``str(Problem)``."""
        rank = "dense" if self.rank is None else self.rank
        return f"{self.norm} {self.num_tokens} {self.hidden_size} {rank} {self.dtype} {self.map_dtype} {self.mode}"

    @property
    def key(self) -> tuple[Any, ...]:
        """The fields that identify a row within a file; a new row with the same key replaces the old one."""
        return self.table, self.backend, self.shape, self.threads


def merged(old: Sequence[Timing], new: Sequence[Timing]) -> list[Timing]:
    """The old rows, in their order; a new row replaces the old one with the same key, and the others follow."""
    return list(({row.key: row for row in old} | {row.key: row for row in new}).values())


def write_csv(rows: Sequence[Any], path: Path, kind: type = Timing) -> None:
    """Write rows that are instances of the dataclass ``kind``; numbers keep four digits, absent ones are empty."""
    lines = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows]
    write_table(lines, [field.name for field in fields(kind)], path)


def read_csv(path: Path) -> list[Timing]:
    """The rows that :func:`write_csv` wrote.

    Raises:
        ValueError: the columns are others.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = [field.name for field in fields(Timing)]
        if reader.fieldnames != names:
            raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {names}")
        return [Timing(**{name: _parsed(name, text) for name, text in line.items()}) for line in reader]


def _parsed(name: str, text: str) -> Any:
    kind = get_type_hints(Timing)[name]
    if text == "" and kind is not str:
        return None
    number = int if kind in (int, int | None) else float
    return text if kind is str else number(text)
