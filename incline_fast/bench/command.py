"""The command: choose problems and providers, measure table by table, show and store the rows."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table as Shown
from tqdm import tqdm

from incline_fast.bench.machine import threads as torch_threads
from incline_fast.bench.problems import Problem
from incline_fast.bench.providers import PROVIDERS
from incline_fast.bench.rows import Timing, merged, read_csv, write_csv
from incline_fast.bench.tables import TABLES, Table
from incline_fast.bench.timing import measure, with_roofline
from incline_fast.ops import explain
from incline_fast.ops._extension import EXTENSION

__all__ = ["main"]


def main(
    *,
    tables: Sequence[str] = (),
    shapes: Sequence[str] = (),
    providers: Sequence[str] = (),
    output: Path | None = None,
    threads: int = 1,
) -> None:
    """Body of ``incline-fast bench``.

    Args:
        tables: names out of ``TABLES``; all but "quick" when neither tables nor shapes are given.
        shapes: problems in words, as the printed table heads them; they form a table named "shapes".
        providers: names out of ``PROVIDERS`` instead of those of each table.
        output: CSV that is written after every table; rows that it has already are replaced, others are kept.
        threads: of torch's pool.

    Raises:
        ValueError: an unknown table or provider, a malformed shape.
        ArithmeticError: a provider disagrees with the fp64 reference.
    """
    console = Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)
    plan = _plan(tables, shapes, providers)
    with torch_threads(threads):
        console.print(explain(), highlight=False)
        for name, table in plan.items():
            rows, left_out = _run(_table_name(name), table)
            console.print(f"\n{name}: {table.about}")
            console.print(_shown(rows))
            for (provider, reason), count in left_out.items():
                console.print(f"{provider} is left out of {count} shapes: {reason}", highlight=False)
            if output is not None:
                write_csv(merged(read_csv(output) if output.exists() else [], rows), output)
    console.print(_repeat_command(plan, threads), highlight=False, soft_wrap=True)


def _plan(tables: Sequence[str], shapes: Sequence[str], providers: Sequence[str]) -> dict[str, Table]:
    """The tables to run, by name."""
    _known("table", tables, TABLES)
    _known("provider", providers, PROVIDERS)
    everything = [name for name in TABLES if name != "quick"]
    plan = {name: TABLES[name] for name in (tables or ([] if shapes else everything))}
    if shapes:
        fast = tuple(name for name, provider in PROVIDERS.items() if not provider.compiles)
        plan["shapes"] = Table("as asked for", tuple(map(Problem.parse, shapes)), fast, 1.0)
    return {name: replace(table, providers=tuple(providers) or table.providers) for name, table in plan.items()}


def _table_name(name: str) -> str:
    """The table's name, with the instruction set added where one is forced: its rows must not replace the others."""
    forced = os.environ.get("INCLINE_FAST_CPU_ISA")
    return f"{name}@{forced}" if forced else name


def _known(what: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f'{what} is "{name}"; allowed: {", ".join(known)}')


def _run(name: str, table: Table) -> tuple[list[Timing], Counter[tuple[str, str]]]:
    """The rows of a table, and the number of shapes for which some provider was left out."""
    rows: list[Timing] = []
    left_out: Counter[tuple[str, str]] = Counter()
    for problem in tqdm(table.problems, unit="shape", desc=name):
        unfit = {provider: PROVIDERS[provider].unfit(problem) for provider in table.providers}
        left_out.update((provider, reason) for provider, reason in unfit.items() if reason is not None)
        fit = [provider for provider, reason in unfit.items() if reason is None]
        rows += measure(problem, fit, table.seconds, name) if fit else []
    return with_roofline(rows), left_out


def _repeat_command(plan: dict[str, Table], threads: int) -> str:
    """How to measure one row again."""
    table = next(iter(plan.values()))
    isa = "" if EXTENSION is None else f"INCLINE_FAST_CPU_ISA={torch.ops.incline_fast.cpu_isa()} "
    return (
        "\nTo repeat a row, put the words above it into --shape:\n"
        f"{isa}incline-fast bench --threads {threads} "
        f"--providers {','.join(table.providers)} --shape '{table.problems[0]}'"
    )


def _shown(rows: Sequence[Timing]) -> Shown:
    ratios = {
        "eager": "ratio_vs_eager",
        "compile": "ratio_vs_compile",
        "autotune": "ratio_vs_max_autotune",
        "hook": "ratio_vs_hook",
        "simd-ml": "ratio_vs_simd_ml_kernels",
    }
    measured = {title: name for title, name in ratios.items() if any(getattr(row, name) is not None for row in rows)}
    shown = Shown(
        "backend",
        "us",
        "roof",
        *measured,
        box=box.SIMPLE_HEAD,
        caption="Ratios: time of the column over time of the row.",
    )
    for column in shown.columns:
        column.no_wrap = True
    previous = ""
    for row in rows:
        if row.shape != previous:
            shown.add_section()
            shown.add_row(row.shape)
        roofline = "" if row.pct_roofline is None else f"{row.pct_roofline:.0f}%"
        values = (getattr(row, name) for name in measured.values())
        cells = ("" if ratio is None else f"{ratio:.2f}x" for ratio in values)
        shown.add_row(f"  {row.backend}", f"{row.us_p50:.1f}", roofline, *cells)
        previous = row.shape
    return shown
