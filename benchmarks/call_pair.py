"""Whether a call became slower: this checkout and another one, block for block in turn.

git worktree add --detach ../before COMMIT        # and build it, or copy the extension of one of the same schema
python -m benchmarks.call_pair ../before -o benchmarks/results/call-pair.csv

A process for each checkout keeps its own package and libraries; the two take turns in blocks of calls, each first as
often as second. The ratio of a case is the median over rounds of this checkout's block over the other's in the same
round; beside it the ratios of the medians and of the minima. A pair of one checkout with itself shows how far such a
ratio is from 1 by chance.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from incline_fast.bench.machine import commit, cpu_name

ROOT = Path(__file__).parents[1]
CASES = ((64, None, "float32", 100), (64, 8, "float32", 100), (2048, 64, "bfloat16", 20))
"""Hidden size, rank, dtype, calls of a block; one token, one thread."""
FORMS = ("in place", "functional", "layer", "layer, called")


def serve() -> None:
    """Answer ``case form`` on standard input with the nanoseconds of a call, from public names of the package alone."""
    import torch

    from incline_fast import AffineMap, AffineRMSNorm, ops

    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls: dict[tuple[int, int], tuple[Callable[[], Any], int]] = {}
    for number, (hidden, rank, dtype, count) in enumerate(CASES):
        kind = getattr(torch, dtype)
        x, weight, bias = torch.randn(1, hidden).to(kind), torch.ones(hidden, dtype=kind), torch.zeros(hidden)
        if rank is None:
            M = AffineMap.dense(1e-3 * torch.randn(hidden, hidden).to(kind))
        else:
            M = AffineMap.low_rank(*(1e-3 * torch.randn(s).to(kind) for s in ((rank, hidden), (hidden, rank))))
        layer = AffineRMSNorm(weight, M, bias=bias, alpha=0.3)
        options: dict[str, Any] = {"bias": bias, "alpha": 0.3, "eps": 1e-6}
        arguments = (x, weight, M, options, layer)
        ways = (
            lambda a=arguments: ops.affine_rms_norm_(a[0], a[1], a[2], **a[3]),
            lambda a=arguments: ops.affine_rms_norm(a[0], a[1], a[2], **a[3]),
            lambda a=arguments: a[4].forward(a[0]),
            lambda a=arguments: a[4](a[0]),
        )
        calls |= {(number, form): (way, count) for form, way in enumerate(ways)}
    print("ready", flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            call, count = calls[tuple(map(int, line.split()))]  # type: ignore[index]
            for _ in range(count // 10):
                call()
            begin = time.perf_counter_ns()
            for _ in range(count):
                call()
            print((time.perf_counter_ns() - begin) / count, flush=True)


class Checkout:
    """A process that runs the package of one checkout."""

    def __init__(self, path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path,
        )  # fmt: skip
        if self._answer() != "ready":
            raise RuntimeError(f"the package in {path} did not start")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def time(self, case: int, form: int) -> float:
        """Microseconds of a call."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case} {form}\n")
        self.process.stdin.flush()
        return float(self._answer()) / 1e3

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def compare(before: Checkout, now: Checkout, rounds: int) -> list[dict[str, Any]]:
    """One row per case and form."""
    rows = []
    for case, (hidden, rank, dtype, _) in enumerate(CASES):
        for form, name in enumerate(FORMS):
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(rounds + 3):
                taken = [0.0, 0.0]
                for which in (0, 1) if turn % 2 else (1, 0):
                    taken[which] = (before, now)[which].time(case, form)
                if turn >= 3:  # the first blocks fill caches
                    times[0].append(taken[0])
                    times[1].append(taken[1])
            was, is_now = times
            rows.append(
                {
                    "hidden_size": hidden,
                    "rank": "dense" if rank is None else rank,
                    "dtype": dtype,
                    "call": name,
                    "us_before": f"{statistics.median(was):.2f}",
                    "us_now": f"{statistics.median(is_now):.2f}",
                    "paired_ratio": f"{statistics.median(b / a for a, b in zip(was, is_now, strict=True)):.3f}",
                    "ratio_of_medians": f"{statistics.median(is_now) / statistics.median(was):.3f}",
                    "ratio_of_minima": f"{min(is_now) / min(was):.3f}",
                    "rounds": rounds,
                    "threads": 1,
                }
            )
            print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:] == ["--serve"]:
        serve()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=300, help="blocks of each checkout")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    import torch

    other, this = Checkout(arguments.before.resolve()), Checkout(ROOT)
    try:
        rows = compare(other, this, arguments.rounds)
    finally:
        other.close()
        this.close()
    about = {"device": cpu_name(), "torch": torch.__version__, "commit": commit()}
    rows = [{**row, **about} for row in rows]
    if arguments.output is not None:
        from incline_fast.files import write_table  # of this checkout: the other one may lack it

        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
