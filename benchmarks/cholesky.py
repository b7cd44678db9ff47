"""Time incline_fast.linalg.cholesky_ex against torch.linalg.cholesky_ex.

python -m benchmarks.cholesky --threads 1 --output benchmarks/results

writes cholesky-<cpu>-<threads>t.csv there, and its plot to docs/benchmarks/plots.

Providers take turns call by call, so that a ratio compares neighbours in time; every provider's factor is checked
before it is timed. "auto" is what a call without arguments runs, "blocked" our algorithm whether it is faster or not.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from benchmarks.report.plots import PLOTS
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import commit, cpu_name, threads
from incline_fast.bench.rows import write_csv
from incline_fast.solver.linalg import cholesky_ex, explain

Factor = Callable[[Tensor], tuple[Tensor, Tensor]]
PROVIDERS: dict[str, Factor] = {
    "torch": torch.linalg.cholesky_ex,
    "auto": cholesky_ex,
    "blocked": lambda A: cholesky_ex(A, backend="blocked"),
}
# Powers of two, where LAPACK is slow, and sizes between them, where it is not.
SHAPES = {
    1: (*(2**i for i in range(4, 15)), *range(100, 1000, 100), 24, 48, 1000, 1200, 1500, 2000, 3000, 6000, 12000),
    8: (64, 128, 256, 512, 1024, 2048, 4096, 100, 300, 500, 1000, 1500, 3000),
    32: (64, 256, 1024, 100, 300, 1000),
}
# Numbers in the largest stack: a quarter of a machine with 24 GiB in fp64, and three more are needed.
_LARGEST = 16384**2
# Seconds after which no further round is begun.
_LONG = 10


@dataclass(frozen=True)
class CholeskyTiming:
    """One shape. Times are medians; a ratio is the median of torch's time over ours in neighbouring calls."""

    n: int
    batch: int
    dtype: str
    threads: int
    auto_is: str
    torch_us_p50: float
    auto_us_p50: float
    auto_us_p20: float
    auto_us_p80: float
    blocked_us_p50: float
    auto_gflop_s: float
    ratio_auto: float
    ratio_blocked: float
    rounds: int
    error: float
    load_average: float
    device: str
    torch: str
    commit: str


def measure(n: int, batch: int, dtype: torch.dtype, seconds: float) -> CholeskyTiming:
    """Check and time the providers on one shape."""
    auto_is = explain(n, dtype, batch=batch).partition(":")[0]
    generator = torch.Generator().manual_seed(n)
    # n / 8 columns are enough beside the identity, and quicker to multiply.
    X = torch.randn(*((batch,) if batch > 1 else ()), n, n // 8, generator=generator, dtype=dtype)
    A = (X @ X.mT).mul_(8 / n)
    A.diagonal(dim1=-2, dim2=-1).add_(1)
    names = [name for name in PROVIDERS if name != auto_is]  # no need to time the same thing twice
    names = ["torch", *names] if "torch" not in names else names
    error = max(check(name, PROVIDERS[name], A) for name in names)
    calls = {name: lambda _, factor=PROVIDERS[name]: partial(factor, A) for name in names}
    times = interleaved(calls, rounds=3, seconds=seconds, longest=_LONG)
    times.setdefault("blocked", times["auto"])
    ratio = {name: statistics.median(t / o for t, o in zip(times["torch"], times[name], strict=True)) for name in times}
    p50 = {name: statistics.median(times[name]) for name in times}
    p20, _, _, p80 = statistics.quantiles(times["auto"] * 2, n=5)  # of one round, itself
    return CholeskyTiming(
        n=n,
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        auto_is=auto_is,
        torch_us_p50=p50["torch"],
        auto_us_p50=p50["auto"],
        auto_us_p20=p20,
        auto_us_p80=p80,
        blocked_us_p50=p50["blocked"],
        auto_gflop_s=batch * n**3 / 3 / p50["auto"] / 1e3,
        ratio_auto=ratio["auto"],
        ratio_blocked=ratio["blocked"],
        rounds=len(times["auto"]),
        error=error,
        load_average=os.getloadavg()[0],
        device=cpu_name(),
        torch=torch.__version__,
        commit=commit(),
    )


def check(name: str, factor: Factor, A: Tensor) -> float:
    """``||L L^T v - A v|| / (||A v|| n eps)`` for a random v; a provider that is wrong is not timed."""
    n = A.shape[-1]
    L, info = factor(A)
    v = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=A.dtype).double()
    worst = 0.0
    for matrix, lower in zip(A.view(-1, n, n), L.view(-1, n, n), strict=True):
        expected = _times(matrix, v)
        residual = (_times(lower, _times(lower.T, v)) - expected).norm() / expected.norm()
        worst = max(worst, float(residual) / (n * torch.finfo(A.dtype).eps))
    if bool(info.any()) or not worst < 1:
        raise ArithmeticError(f"{name} is wrong for n = {n}: info {info.tolist()}, residual {worst:.2g} n eps")
    return worst


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    """``matrix v`` in fp64, some rows at a time: a fp64 copy of the largest stacks does not fit."""
    return torch.cat([rows.double() @ v for rows in matrix.split(1024)])


def shapes(largest: int) -> Iterator[tuple[int, int, torch.dtype]]:
    """Every shape of the table up to a largest n."""
    for dtype in (torch.float32, torch.float64):
        for batch, sizes in SHAPES.items():
            for n in sorted(sizes):
                if n <= largest and batch * n * n <= _LARGEST:
                    yield n, batch, dtype


def write(rows: list[CholeskyTiming], folder: Path) -> None:
    """CSV and plot, named after the processor and the number of threads."""
    cpu = re.sub(r"[^a-z0-9]+", "-", rows[0].device.lower()).strip("-")
    name = f"cholesky-{cpu}-{rows[0].threads}t"
    write_csv(rows, folder / f"{name}.csv", CholeskyTiming)
    PLOTS.mkdir(parents=True, exist_ok=True)
    plot(rows, PLOTS / f"{name}.png")


def plot(rows: list[CholeskyTiming], path: Path) -> None:
    """Ratio over n, one line per dtype and batch."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for dtype in ("float32", "float64"):
        for batch, style in zip(SHAPES, ("-o", "--s", ":^"), strict=True):
            line = [row for row in rows if row.dtype == dtype and row.batch == batch]
            axes.plot([r.n for r in line], [r.ratio_auto for r in line], style, label=f"{dtype}, batch {batch}")
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel="time of torch.linalg / ours (auto)")
    axes.set_title(f"Cholesky, {rows[0].device}, {rows[0].threads} thread(s), torch {rows[0].torch}", fontsize=10)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: list[CholeskyTiming]) -> Table:
    """What the CSV says, short."""
    shown = Table(
        "n", "batch", "dtype", "torch us", "auto us", "auto is", "GFLOP/s", "auto vs torch", "blocked vs torch"
    )
    for r in rows:
        cells = (r.n, r.batch, r.dtype, f"{r.torch_us_p50:.0f}", f"{r.auto_us_p50:.0f}", r.auto_is)
        ratios = (f"{r.auto_gflop_s:.0f}", f"{r.ratio_auto:.2f}x", f"{r.ratio_blocked:.2f}x")
        shown.add_row(*map(str, cells), *ratios)
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's pool")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per shape; at least three rounds are made")
    parser.add_argument("--largest", type=int, default=16384, help="no n above this; the largest takes minutes")
    parser.add_argument("--output", type=Path, help="folder for the CSV; the plot goes to docs/benchmarks/plots")
    arguments = parser.parse_args()
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    with threads(arguments.threads):
        results = [
            measure(n, batch, dtype, arguments.seconds) for n, batch, dtype in tqdm(list(shapes(arguments.largest)))
        ]
    Console(width=140).print(table(results))
    if arguments.output is not None:
        write(results, arguments.output)
