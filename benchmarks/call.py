"""What a call costs where there is nothing to compute: the fused op at d = 64, one token, split into its layers.

python -m benchmarks.call -o benchmarks/results/call.csv

Each way is called 300 times in a row, so that its code and data are in the caches; the ways take turns, and the table
has the median over the turns. Between the blocks of a model caches are cold, and a call takes several times as long.

What starting and joining a second thread of torch's pool costs is the time of an elementwise op that two threads share
over that of the same op on half as many numbers with one: each thread has the same work.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from incline_fast import AffineMap, AffineRMSNorm, ops
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import commit, cpu_name, threads
from incline_fast.files import write_table
from incline_fast.ops._arguments import op_tail

HIDDEN, CALLS, ALPHA, EPS = 64, 300, 0.3, 1e-6
GRAIN = 32768
"""Numbers below which torch leaves an elementwise op to one thread."""
FORK_JOIN = "starting and joining two threads"


def ways() -> dict[str, Callable[[], object]]:
    """Name -> one call. The in-place forms write over the same x again and again; alpha M is too small to matter."""
    x, weight, bias = torch.randn(1, HIDDEN), torch.ones(HIDDEN), torch.zeros(HIDDEN)
    map = AffineMap.dense(1e-3 * torch.randn(HIDDEN, HIDDEN))
    y, W = torch.empty_like(x), map.up[0]
    tail = op_tail("cpu", map, bias, ALPHA, 1.0, None, EPS, 0.0)
    compiled_in_place = torch.ops.incline_fast.affine_rms_norm_.default
    layer = AffineRMSNorm(weight, map, bias=bias, alpha=ALPHA, eps=EPS)

    def unfused() -> torch.Tensor:
        edited = torch.add(x, F.linear(x, W, bias), alpha=ALPHA)
        return F.rms_norm(edited, (HIDDEN,), weight, EPS)

    return {
        "eager `F.rms_norm` alone": lambda: F.rms_norm(x, (HIDDEN,), weight, EPS),
        "eager `F.linear`, `add`, `F.rms_norm`": unfused,
        "`torch.ops.incline_fast.cpu_isa`: an op without arguments": torch.ops.incline_fast.cpu_isa.default,
        "`torch.ops.incline_fast.affine_rms_norm_`, y given": lambda: compiled_in_place(y, x, False, weight, *tail),
        "`ops.affine_rms_norm_`": lambda: ops.affine_rms_norm_(x, weight, map, bias=bias, alpha=ALPHA, eps=EPS),
        "`ops.affine_rms_norm`": lambda: ops.affine_rms_norm(x, weight, map, bias=bias, alpha=ALPHA, eps=EPS),
        "`AffineRMSNorm.forward`": lambda: layer.forward(x),
        "`AffineRMSNorm(...)`, through `Module.__call__`": lambda: layer(x),
    }


def measure(turns: int) -> dict[str, float]:
    """Name -> microseconds of a call, the median over the turns."""
    calls = {name: lambda _, call=call: ready(call) for name, call in ways().items()}
    with torch.no_grad(), threads(1):
        times = interleaved(calls, rounds=turns)
    return {name: statistics.median(values) / CALLS for name, values in times.items()}


def ready(call: Callable[[], object]) -> Callable[[], None]:
    """``CALLS`` calls in a row, after a few that are not counted."""

    def repeated() -> None:
        for _ in range(CALLS):
            call()

    for _ in range(CALLS // 10):
        call()
    return repeated


def fork_join(turns: int) -> float:
    """Microseconds that a second thread costs before and after its work: the median over the turns."""
    numbers = torch.zeros(2 * GRAIN)

    def prepare(count: int, call: Callable[[], object]) -> Callable[[], None]:
        torch.set_num_threads(count)
        return ready(call)

    calls = {
        "alone": lambda _: prepare(1, numbers[:GRAIN].neg_),
        "together": lambda _: prepare(2, numbers.neg_),
    }
    with threads(2):
        times = interleaved(calls, rounds=turns)
    return statistics.median(b - a for a, b in zip(times["alone"], times["together"], strict=True)) / CALLS


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100, help="blocks of 300 calls for each way")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    about = {"device": cpu_name(), "torch": torch.__version__, "commit": commit()}
    times = measure(arguments.turns)
    rows = [{"call": name, "us_p50": f"{us:.2f}", "threads": 1, **about} for name, us in times.items()]
    rows.append({"call": FORK_JOIN, "us_p50": f"{fork_join(arguments.turns):.2f}", "threads": 2, **about})
    for row in rows:
        print(f"{row['us_p50']:>6} us  {row['call']}")
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
