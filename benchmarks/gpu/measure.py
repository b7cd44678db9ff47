"""Measure all providers on a GPU: python -m benchmarks.gpu.measure FOLDER writes gpu.csv and skipped.csv there.

Within a round all providers take turns, and a ratio is the median over rounds of two times of the same round. Modes:

    dram    a CUDA graph in which every call reads another copy of the weights, a gigabyte of them in all
    cache   a CUDA graph in which all calls read the same weights, which L2 holds where they fit
    launch  as dram without a graph: what the host needs to submit a call counts
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.gpu.device import Cuda, Device
from benchmarks.gpu.providers import DeviceData, available, build
from incline_fast.bench import Problem, Row, write_csv
from incline_fast.bench.providers import Run
from incline_fast.bench.timing import largest_error, row_of
from incline_fast.solver.linalg import cholesky_ex

__all__ = ["CHOLESKY_SIZES", "PROBLEMS", "Skipped", "measure_all", "measure_cholesky", "measure_problem"]

BF16, FP32 = torch.bfloat16, torch.float32
PROBLEMS = (
    [Problem("rms", m, 4096, r, BF16, BF16, mode) for mode, r, m in product(("dram", "cache"), (None, 500), (1, 64))]
    + [Problem("rms", m, 4096, r, BF16, BF16) for r, m in product((None, 500), (4, 16, 2048))]
    + [Problem("rms", 1, d, r, BF16, BF16) for d, r in product((2048, 8192), (None, 64))]
    + [Problem("rms", m, 4096, None, BF16, torch.int8) for m in (1, 16)]
    + [Problem("rms", m, 4096, r) for r, m in product((None, 500), (1, 16))]
    + [Problem("layer", 1, 4096, r, BF16, BF16) for r in (None, 500)]
    + [Problem("rms", 1, 4096, r, BF16, BF16, "launch") for r in (None, 500)]
)
"""What is measured, the most important first: when the time is up the rest is left out and named."""

CHOLESKY_SIZES = (128, 512, 2048, 4096)
CALLS = 24
"""Fewest calls in one timed graph, so that starting it does not count."""
WARM_ROUNDS, ROUNDS = 2, 15

Skipped = tuple[str, str, str]
"""(problem, provider, reason)"""


def measure_problem(problem: Problem, device: Device, names: Sequence[str]) -> tuple[list[Row], list[Skipped]]:
    """Check each provider against the fp64 reference, then time those that are right."""
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    skipped: list[Skipped] = []
    torch._dynamo.reset()  # graphs of other shapes would keep their weights
    with torch.no_grad():
        data = DeviceData(problem, device.torch_device)
        expected = data.expected()
        for name in names:
            try:
                run = build(name, data)
                errors[name] = largest_error(run(data.x.clone(), 0), expected, problem)
                runs[name] = run
            except Exception as error:  # one provider that fails must not cost the others' measurements
                skipped.append((str(problem), name, f"{type(error).__name__}: {error}"))
        times = _take_turns({name: _batch(run, data, device) for name, run in runs.items()}, device)
    calls = _calls(problem)
    per_call = {name: [value / calls for value in values] for name, values in times.items()}
    return _rows(problem, per_call, errors, device), skipped


def _rows(problem: Problem, times: dict[str, list[float]], errors: dict[str, float], device: Device) -> list[Row]:
    return [
        row_of(name, problem, times, error=errors[name], label=name, device=device.name, table="gpu") for name in times
    ]


def _calls(problem: Problem) -> int:
    return max(CALLS, problem.copies if problem.mode == "dram" else 1)


def _batch(run: Run, data: DeviceData, device: Device) -> Callable[[], object]:
    """All calls of one measurement. In-place providers change x by a fifth per call, so each batch begins anew."""
    problem, x = data.problem, data.x.clone()

    def work() -> None:
        x.copy_(data.x)
        for call in range(_calls(problem)):
            run(x, call % problem.copies)

    return work if problem.mode == "launch" else device.capture(work)


def _take_turns(works: dict[str, Callable[[], object]], device: Device) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(WARM_ROUNDS + ROUNDS):
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            spent = device.microseconds(works[name])
            if turn >= WARM_ROUNDS:
                times[name].append(spent)
    return times


def measure_cholesky(size: int, dtype: torch.dtype, device: Device) -> tuple[list[Row], list[Skipped]]:
    """cuSOLVER through torch against our blocked factorisation; a row's tokens and bytes are the matrix's."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(size, size, generator=g, dtype=torch.float64)
    A = (X @ X.T / size + torch.eye(size, dtype=torch.float64)).to(device.torch_device, dtype)
    providers = {
        "cusolver": lambda: torch.linalg.cholesky_ex(A),
        "blocked": lambda: cholesky_ex(A, backend="blocked"),
    }
    works: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    skipped: list[Skipped] = []
    for name, work in providers.items():
        try:
            L, info = work()
            errors[name] = (L @ L.mT - A).abs().max().item()
            if info.item() != 0 or not errors[name] < 100 * size * torch.finfo(dtype).eps:
                raise ArithmeticError(f"info {info.item()}, largest error {errors[name]:.2g}")
            works[name] = work
        except Exception as error:
            skipped.append((f"cholesky {size} {dtype}", name, f"{type(error).__name__}: {error}"))
    problem = Problem("", 1, size, None, dtype, dtype, "launch")
    times = _take_turns(works, device)
    rows = [replace(row, op="cholesky_ex") for row in _rows(problem, times, errors, device)]
    moved = 2 * A.numel() * A.element_size()
    return [replace(row, gb_s=moved / row.us_p50 / 1e3) for row in rows], skipped


def with_roofline(rows: Sequence[Row], device: Device, elements: int = 1 << 28, side: int = 4096) -> list[Row]:
    """``pct_roofline`` of the rows that read from memory: bytes or flops over the best that this run has seen.

    The best bandwidth is that of a sum over a long vector or of any row, the best speed that of a square product.
    """
    vector = torch.ones(elements, device=device.torch_device)
    read = vector.nbytes / min(device.microseconds(vector.sum) for _ in range(5)) / 1e3
    read = max([read] + [row.gb_s for row in rows if row.mode == "dram"])
    speed = {}
    for dtype in {row.dtype for row in rows}:
        a = torch.ones(side, side, dtype=getattr(torch, dtype), device=device.torch_device)
        speed[dtype] = 2 * side**3 / min(device.microseconds(lambda a=a: a @ a) for _ in range(5)) / 1e3

    def percent(row: Row) -> float | None:
        if row.mode != "dram":
            return None
        flops = 2 * row.num_tokens * row.hidden_size * (2 * row.rank if row.rank else row.hidden_size)
        return 100 * max(row.gb_s / read, flops / row.us_p50 / 1e3 / speed[row.dtype])

    return [replace(row, pct_roofline=percent(row)) for row in rows]


def measure_all(
    device: Device, problems: Sequence[Problem], sizes: Sequence[int], seconds: float
) -> tuple[list[Row], list[Skipped]]:
    """Everything that fits into ``seconds``; what did not, and what failed, is in the second list."""
    end = time.monotonic() + seconds
    jobs: list[tuple[str, Callable[[], tuple[list[Row], list[Skipped]]]]] = []
    for problem in problems:
        reasons = available(problem, device.backends)
        names = [name for name, reason in reasons.items() if not reason]
        jobs.append((str(problem), lambda problem=problem, names=names: measure_problem(problem, device, names)))
    for size, dtype in product(sizes, (torch.float32, torch.float64)):
        jobs.append((f"cholesky {size} {dtype}", lambda n=size, t=dtype: measure_cholesky(n, t, device)))
    rows: list[Row] = []
    skipped = [("every problem", name, why) for name, why in available(problems[0], device.backends).items() if why]
    for name, job in tqdm(jobs, unit="shape"):
        if time.monotonic() > end:
            skipped.append((name, "all", f"the {seconds:.0f} s for measurements were used up"))
            continue
        try:
            new_rows, new_skipped = job()
        except Exception as error:  # out of memory on one shape, say
            new_rows, new_skipped = [], [(name, "all", f"{type(error).__name__}: {error}")]
        rows += new_rows
        skipped += new_skipped
    return with_roofline(rows, device), skipped


def main(output: Path, seconds: float, device: Device | None = None) -> int:
    """Measure and write; returns the exit status, 1 when one of our own backends is missing somewhere."""
    device = device or Cuda()
    rows, skipped = measure_all(device, PROBLEMS, CHOLESKY_SIZES, seconds)
    write_csv(rows, output / "gpu.csv")
    with (output / "skipped.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("problem", "provider", "reason"), *skipped])
    ours = {*device.backends, "blocked", "all"}
    for problem, provider, reason in skipped:
        print(f"left out: {provider} on {problem}: {reason}")
    return int(not rows or any(provider in ours for _, provider, _ in skipped))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=200)
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.output, arguments.seconds))
