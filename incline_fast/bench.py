"""Timing of the fused ops against plain PyTorch.

Every provider computes the same problem. It is first checked against the fp64 reference; then all providers are timed
in turn, call by call, so that a ratio compares neighbours in time on a machine whose speed drifts. In mode ``dram``
every call reads another copy of the weights, as a model's layers do; in mode ``cache`` all calls read the same one.
"""

from __future__ import annotations

import csv
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from incline_fast._files import replacing
from incline_fast.bench_providers import PROVIDERS, Data, Problem, Run
from incline_fast.ops import explain

__all__ = ["FULL", "QUICK", "Row", "main", "measure", "with_roofline", "write_csv"]

RMS_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest accepted error of a provider before it is timed, relative to the reference's root mean square."""

LOW = (torch.float32, torch.bfloat16)
OVERHEAD = [Problem(hidden_size=64, mode="cache")]
"""So small that a call costs what calling costs."""
QUICK = OVERHEAD + [
    Problem(num_tokens=m, rank=rank, dtype=dtype, map_dtype=dtype)
    for rank, dtype, m in product((None, 64), LOW, (1, 4, 32))
]
TOKENS = (1, 2, 4, 8, 16, 32, 128)
FULL = (
    OVERHEAD
    + [Problem("rms", m, d, r, t, t) for d, r, t, m in product((640, 2048), (None, 64), LOW, TOKENS)]
    + [Problem("rms", m, d, r, t, t, "cache") for d, r, t, m in product((640, 2048), (None, 64), LOW, (1, 8))]
    + [Problem("rms", m, d, 500, t, t) for d, t, m in product((2048, 4096), LOW, (1, 8))]
    + [Problem("rms", 1, 4096, None, t, t) for t in LOW]
    + [Problem("rms", m, 2048, None, torch.float32, torch.bfloat16) for m in (1, 8)]
    + [Problem("layer", m, 2048, None, t, t) for t, m in product(LOW, (1, 8))]
)
"""Some 90 shapes, a quarter of an hour with compilation: dense and low rank, every number of tokens, mixed dtypes."""


@dataclass(frozen=True)
class Row:
    """One provider on one problem. Ratios are medians of (other's time / this one's) over neighbouring calls."""

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
    max_err: float
    device: str
    threads: int
    torch: str
    commit: str


def measure(problem: Problem, providers: Sequence[str], seconds: float = 1.0) -> list[Row]:
    """Check and time the providers on one problem.

    Args:
        problem: the shape.
        providers: names out of ``PROVIDERS``.
        seconds: time to spend on all providers together, after checking and warming up.

    Raises:
        ArithmeticError: a provider disagrees with the fp64 reference.
    """
    with torch.no_grad():
        data = Data(problem)
        runs = {name: PROVIDERS[name](data) for name in providers}
        errors = {name: _check(name, run, data) for name, run in runs.items()}
        times = _interleave(runs, data, seconds)
    return [_row(name, problem, times, errors[name]) for name in providers]


def with_roofline(rows: Sequence[Row], seconds: float = 0.5) -> list[Row]:
    """Fill ``pct_roofline``: the least time that the row's bytes and flops take at this machine's best, over its time.

    The best bandwidth is the highest that a matrix-vector product or any row of the run reached, the best speed that of
    a square matrix product in the row's dtype. Rows with cached weights are left out: no bandwidth bounds them.
    """
    matrix, vector = torch.ones(1 << 14, 1 << 12), torch.ones(1 << 12)
    read = matrix.nbytes / min(_repeat(lambda: matrix @ vector, seconds)) / 1e3
    read = max([read] + [row.gb_s for row in rows if row.mode == "dram"])
    speed: dict[str, float] = {}
    for dtype in {row.dtype for row in rows}:
        a, b = torch.randn(2, 1024, 1024).to(getattr(torch, dtype))
        speed[dtype] = 2 * 1024**3 / min(_repeat(lambda a=a, b=b: a @ b, seconds)) / 1e3  # type: ignore[misc]

    def percent(row: Row) -> float | None:
        if row.mode == "cache":
            return None
        flops = 2 * row.num_tokens * row.hidden_size * (2 * row.rank if row.rank else row.hidden_size)
        return 100 * max(row.gb_s / read, flops / row.us_p50 / 1e3 / speed[row.dtype])

    return [replace(row, pct_roofline=percent(row)) for row in rows]


def _check(name: str, run: Run, data: Data) -> float:
    """Largest absolute error of (y, r'); refuses a provider that computes something else."""
    worst = 0.0
    for actual, expected in zip(run(data.x.clone(), 0), data.expected(), strict=True):
        error = actual.double() - expected
        size = (error.square().mean() / expected.square().mean()).sqrt().item()
        if not size < RMS_ERROR[data.problem.dtype]:
            raise ArithmeticError(f"{name} is wrong on {data.problem}: relative error {size:.2g}; nothing was timed")
        worst = max(worst, error.abs().max().item())
    return worst


def _interleave(runs: dict[str, Run], data: Data, seconds: float) -> dict[str, list[float]]:
    """Microseconds of every call. Neighbouring calls read different copies, and who comes first takes turns."""
    names, copies = list(runs), data.problem.copies
    times: dict[str, list[float]] = {name: [] for name in names}
    call, warm, end = 0, False, 0.0
    while not warm or time.perf_counter() < end or len(times[names[0]]) < 7:
        shift = call % len(names)
        for name in names[shift:] + names[:shift]:
            run, x = runs[name], data.x.clone()
            begin = time.perf_counter_ns()
            run(x, call % copies)
            times[name].append((time.perf_counter_ns() - begin) / 1e3)
            call += 1
        call += 1  # so that the starting provider moves on when their number divides the calls
        if not warm and len(times[names[0]]) == 5:
            times = {name: [] for name in names}
            warm, end = True, time.perf_counter() + seconds
    return times


def _repeat(function: Callable[[], object], seconds: float) -> list[float]:
    """Microseconds of calls during ``seconds``."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        begin = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return times


def _row(name: str, problem: Problem, times: dict[str, list[float]], error: float) -> Row:
    mine = times[name]
    p20, p50, p80 = (statistics.quantiles(mine, n=10)[decile] for decile in (1, 4, 7))

    def ratio(other: str) -> float | None:
        if other not in times:
            return None
        return statistics.median(theirs / own for theirs, own in zip(times[other], mine, strict=True))

    return Row(
        op=f"affine_{problem.norm}_norm",
        backend=name,
        norm=problem.norm,
        num_tokens=problem.num_tokens,
        hidden_size=problem.hidden_size,
        rank=problem.rank,
        dtype=_name(problem.dtype),
        map_dtype=_name(problem.map_dtype),
        mode=problem.mode,
        us_p50=p50,
        us_p20=p20,
        us_p80=p80,
        gb_s=problem.bytes / p50 / 1e3,
        pct_roofline=None,
        ratio_vs_eager=ratio("eager"),
        ratio_vs_compile=ratio("compile"),
        ratio_vs_hook=ratio("hook"),
        max_err=error,
        device=_cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=_commit(),
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows; numbers keep four digits, absent ones are empty."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            cells = asdict(row)
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in cells.items()})


def main(*, quick: bool, output: Path | None, threads: int) -> None:
    """Body of ``incline-fast bench``: measure, show a table, write the CSV."""
    console = Console()
    providers = [name for name in PROVIDERS if not (quick and name == "compile")]
    rows: list[Row] = []
    with _threads(threads):
        console.print(explain(), highlight=False)
        for problem in tqdm(QUICK if quick else FULL, unit="shape"):
            rows += measure(problem, providers)
        rows = with_roofline(rows)
    console.print(_table(rows))
    if output is not None:
        write_csv(rows, output)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("backend", "us", "roofline", "vs eager", "vs hook", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    previous = ""
    for row in rows:
        dtypes = row.dtype if row.dtype == row.map_dtype else f"{row.dtype}/{row.map_dtype}"
        shape = f"{row.num_tokens} x {row.hidden_size} {'dense' if row.rank is None else f'rank {row.rank}'}"
        problem = f"{row.norm} {shape} {dtypes} {row.mode}"
        if problem != previous:
            table.add_section()
            table.add_row(problem)
        roofline = "" if row.pct_roofline is None else f"{row.pct_roofline:.0f}%"
        ratios = _times(row.ratio_vs_eager), _times(row.ratio_vs_hook)
        table.add_row(f"  {row.backend}", f"{row.us_p50:.1f}", roofline, *ratios)
        previous = problem
    return table


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def _commit() -> str:
    """The commit of the source tree that is running, empty for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(git, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
