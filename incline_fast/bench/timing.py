"""Checking and timing. Every provider is first checked against the fp64 reference; then all are timed in turn, call by
call, so that a ratio compares neighbours in time on a machine whose speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from incline_fast.bench.loops import Prepare, interleaved
from incline_fast.bench.machine import commit, cpu_name
from incline_fast.bench.problems import Data, Problem, dtype_name
from incline_fast.bench.providers import PROVIDERS, Run
from incline_fast.bench.rows import Timing

__all__ = ["RMS_ERROR", "largest_error", "measure", "row_of", "with_roofline"]

RMS_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest accepted error of a provider before it is timed, relative to the reference's root mean square."""


def measure(problem: Problem, providers: Sequence[str], seconds: float = 1.0, table: str = "") -> list[Timing]:
    """Check and time the providers on one problem.

    Providers that slow down the calls after them (``Provider.disturbs``) take no part in the rounds that give the times
    and ratios of the others. Their own ratios come from further rounds with all providers.

    Args:
        problem: the shape.
        providers: names out of ``PROVIDERS``, all fit for the problem.
        seconds: time to spend on all providers together, after checking and warming up.
        table: name of the table that the rows belong to.

    Raises:
        ArithmeticError: a provider disagrees with the fp64 reference.
    """
    torch._dynamo.reset()  # graphs of other shapes would count against the recompile limit, and keep their weights
    with torch.no_grad():
        data = Data(problem)
        runs = {name: PROVIDERS[name].make(data) for name in providers}
        errors = {name: _check(name, run, data) for name, run in runs.items()}
        calm = {name: run for name, run in runs.items() if not PROVIDERS[name].disturbs}
        groups = [runs] if len(calm) in (0, len(runs)) else [calm, runs]
        times = [_interleave(group, data, seconds / len(groups)) for group in groups]

    def rows(times: dict[str, list[float]]) -> dict[str, Timing]:
        about = {"device": cpu_name(), "table": table}
        return {name: row_of(name, problem, times, error=errors[name], label=_label(name), **about) for name in times}

    alone, among_all = rows(times[0]), rows(times[-1])
    disturbed = [f"ratio_vs_{name}" for name in providers if PROVIDERS[name].disturbs]
    return [
        replace(alone.get(name, among_all[name]), **{ratio: getattr(among_all[name], ratio) for ratio in disturbed})
        for name in providers
    ]


def with_roofline(rows: Sequence[Timing], seconds: float = 0.5) -> list[Timing]:
    """Fill ``pct_roofline``: the least time that the row's bytes and flops take at this machine's best, over its time.

    The best bandwidth is the highest that a sum, a matrix-vector product or any row of the run reached, the best speed
    that of a square matrix product in the row's dtype. Rows with cached weights are left out: no bandwidth bounds them.
    """
    matrix, vector = torch.ones(1 << 14, 1 << 12), torch.ones(1 << 12)
    readers: tuple[Callable[[], Tensor], ...] = (matrix.sum, lambda: matrix @ vector)
    read = max(matrix.nbytes / min(_repeat(reader, seconds)) / 1e3 for reader in readers)
    read = max([read] + [row.gb_s for row in rows if row.mode == "dram"])
    speed: dict[str, float] = {}
    for dtype in {row.dtype for row in rows}:
        a, b = torch.randn(2, 1024, 1024).to(getattr(torch, dtype))
        speed[dtype] = 2 * 1024**3 / min(_repeat(lambda a=a, b=b: a @ b, seconds)) / 1e3  # type: ignore[misc]

    def percent(row: Timing) -> float | None:
        if row.mode == "cache":
            return None
        flops = 2 * row.num_tokens * row.hidden_size * (2 * row.rank if row.rank else row.hidden_size)
        return 100 * max(row.gb_s / read, flops / row.us_p50 / 1e3 / speed[row.dtype])

    return [replace(row, pct_roofline=percent(row)) for row in rows]


def largest_error(results: Sequence[Tensor], right: Sequence[Tensor], problem: Problem) -> float:
    """Largest absolute error of a provider's ``results`` against the fp64 tensors ``right``, for messages ``problem``.

    Raises:
        ArithmeticError: it computes something else than the fp64 reference did.
    """
    worst = 0.0
    for actual, expected in zip(results, right, strict=True):
        error = actual.double() - expected
        size = (error.square().mean() / expected.square().mean()).sqrt().item()
        if not size < RMS_ERROR[problem.dtype]:
            raise ArithmeticError(f"wrong on {problem}: relative error {size:.2g}; nothing was timed")
        worst = max(worst, error.abs().max().item())
    return worst


def _check(name: str, run: Run, data: Data) -> float:
    """:func:`largest_error` of one call of provider ``name``."""
    right = (data.mapped(),) if PROVIDERS[name].gemm_only else data.expected()
    try:
        return largest_error(run(data.x.clone(), 0), right, data.problem)
    except ArithmeticError as error:
        raise ArithmeticError(f"{name} is {error}") from None


def _interleave(runs: dict[str, Run], data: Data, seconds: float) -> dict[str, list[float]]:
    """Provider -> microseconds of every call within ``seconds``; neighbouring calls read other copies of the map."""

    def prepare(run: Run) -> Prepare:
        def ready(made: int) -> Callable[[], object]:
            x = data.x.clone()
            return lambda: run(x, made % data.problem.copies)

        return ready

    return interleaved({name: prepare(run) for name, run in runs.items()}, rounds=7, seconds=seconds, warm_up=5)


def _repeat(function: Callable[[], object], seconds: float) -> list[float]:
    """Microseconds of calls during ``seconds``."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        begin = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return times


def row_of(
    name: str, problem: Problem, times: dict[str, list[float]], *, error: float, label: str, device: str, table: str
) -> Timing:
    """The row of provider ``name``.

    Args:
        name: a key of ``times``.
        problem: what was measured.
        times: provider -> microseconds of its calls; the i-th times of all providers are neighbours.
        error: largest absolute error.
        label: the provider's name in the table.
        device: name of the processor.
        table: name of the table.
    """
    mine = times[name]
    p20, p50, p80 = (statistics.quantiles(mine, n=10)[decile] for decile in (1, 4, 7))

    def ratio(other: str) -> float | None:
        if other not in times:
            return None
        return statistics.median(theirs / own for theirs, own in zip(times[other], mine, strict=True))

    return Timing(
        op=f"affine_{problem.norm}_norm",
        backend=label,
        norm=problem.norm,
        num_tokens=problem.num_tokens,
        hidden_size=problem.hidden_size,
        rank=problem.rank,
        dtype=dtype_name(problem.dtype),
        map_dtype=dtype_name(problem.map_dtype),
        mode=problem.mode,
        us_p50=p50,
        us_p20=p20,
        us_p80=p80,
        gb_s=problem.bytes / p50 / 1e3,
        pct_roofline=None,
        ratio_vs_eager=ratio("eager"),
        ratio_vs_compile=ratio("compile"),
        ratio_vs_hook=ratio("hook"),
        ratio_vs_max_autotune=ratio("max_autotune"),
        ratio_vs_simd_ml_kernels=ratio("simd_ml_kernels"),
        max_err=error,
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
        table=table,
    )


def _label(name: str) -> str:
    """A provider's name in the rows, with the instruction set or remark that its numbers depend on."""
    if PROVIDERS[name].gemm_only:
        return f"{name} (gemm alone)"
    return f"{name}[{torch.ops.incline_fast.cpu_isa()}]" if PROVIDERS[name].ours else name
