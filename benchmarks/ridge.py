"""Time the fit of one layer's map against the usual solvers.

python -m benchmarks.ridge layer -o benchmarks/results/ridge-layer-2t

writes ridge-layer-2t.csv, and its plot to docs/benchmarks/plots.

Providers take turns, in a new order in every round, and every ratio is the median over rounds of the ratio within a
round, so that a machine that slows down slows both. A provider is timed only after its held-out predictions were
compared with those of a fp64 SVD.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from benchmarks.report.plots import PLOTS
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import commit
from incline_fast.files import write_table
from incline_fast.solver.accumulator import RidgeAccumulator
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge

# Rows that a provider predicts without having seen them, for its check.
HELD_OUT = 64
# Seconds before every timed call: the thread pool of the library before it spins for a while on the same cores.
_SETTLE = 0.2


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        name: its row in the table.
        run: does the work and returns predictions for the held-out rows, or anything where ``check`` is None.
        check: largest relative error of the predictions that is accepted; None where there is nothing to compare.
    """

    name: str
    run: Callable[[], Any]
    check: float | None = None


def one_layer(n: int, d: int) -> tuple[str, list[Case], np.ndarray | None, Callable[[Any], np.ndarray] | None]:
    """Least squares and ridge of one layer; states in fp32, as a model gives them, and in fp64."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g)
    Y = X @ torch.randn(d, d, generator=g).div_(d**0.5) + 0.1 * torch.randn(n, d, generator=g)
    held_out = torch.randn(HELD_OUT, d, generator=g).double()
    x64, y64 = X.double(), Y.double()
    a64, b64 = x64.numpy(), y64.numpy()
    lam = 1e-6 * float(x64.square().sum()) / d

    def predict(W: Any) -> np.ndarray:
        """W acts as X @ W."""
        return held_out.numpy() @ np.asarray(W, dtype=np.float64)

    def ours(lam: float, dense: bool) -> Callable[[], Any]:
        def run() -> Any:
            fitted = Ridge(lam, fit_intercept=False, relative=False, on_breakdown="raise").fit(X, Y)
            return fitted.coef_.T if dense else fitted

        return run

    cases = [
        Case("incline_fast, factors", ours(0.0, False), 1e-6),
        Case("incline_fast, dense W", ours(0.0, True), 1e-5),
        Case("incline_fast ridge, dense W", ours(lam, True), 1e-5),
        Case("numpy.linalg.lstsq fp64", lambda: np.linalg.lstsq(a64, b64, rcond=None)[0], 1e-6),
        Case("torch.linalg.lstsq gelsd fp64", lambda: torch.linalg.lstsq(x64, y64, driver="gelsd").solution, 1e-6),
        Case("scipy.linalg.lstsq gelsy fp64", lambda: scipy.linalg.lstsq(a64, b64, lapack_driver="gelsy")[0], 1e-6),
        *(
            Case(
                f"sklearn Ridge {solver} fp64",
                lambda solver=solver: SklearnRidge(lam, fit_intercept=False, solver=solver).fit(a64, b64).coef_.T,
                1e-6,
            )
            for solver in ("cholesky", "svd")
        ),
        *_himalaya(a64, b64, lam),
    ]
    # Not by any provider's own solver.
    U, S, Vh = torch.linalg.svd(x64, full_matrices=False)
    minimum_norm = predict((Vh.T / S) @ (U.T @ y64))

    def read(result: Any) -> np.ndarray:
        return result.predict(held_out).numpy() if isinstance(result, Ridge) else predict(result)

    return f"one layer, n={n}, d={d}, {d} targets", cases, minimum_norm, read


def _himalaya(X: np.ndarray, Y: np.ndarray, lam: float) -> list[Case]:
    try:
        from himalaya.kernel_ridge import KernelRidge
    except ImportError:
        return []

    def run() -> np.ndarray:
        fitted = KernelRidge(alpha=lam, kernel="linear").fit(X, Y)
        return fitted.get_primal_coef()

    return [Case("himalaya KernelRidge fp64", run, 1e-6)]


def selection(n: int, d: int) -> tuple[str, list[Case], None, None]:
    """A grid of lambdas against one lambda."""
    g = torch.Generator().manual_seed(0)
    X, Y = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)

    def fit(**options: Any) -> Callable[[], Ridge]:
        return lambda: Ridge(**options).fit(X, Y)

    cases = [
        Case("one lambda", fit(lam=0.3)),
        Case("20 lambdas by loo", fit(lam=DEFAULT_LAMS)),
        Case("20 lambdas by gcv", fit(lam=DEFAULT_LAMS, select="gcv")),
        Case("one lambda, standardised", fit(lam=0.3, standardize=True)),
        Case("20 lambdas by loo, standardised", fit(lam=DEFAULT_LAMS, standardize=True)),
    ]
    return f"choosing lambda, n={n}, d={d}, {d} targets", cases, None, None


def streaming(n: int, d: int) -> tuple[str, list[Case], None, None]:
    """Moments of n rows against the two fp64 products that they contain."""
    g = torch.Generator().manual_seed(0)
    X, Y = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    x64, y64 = X.double(), Y.double()
    chunk = 2 * d

    def accumulate() -> int:
        accumulator = RidgeAccumulator(d, d)
        for x, y in zip(X.split(chunk), Y.split(chunk), strict=True):
            accumulator.update(x, y)
        return accumulator.n

    def products() -> torch.Tensor:
        xx, xy = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
        for x, y in zip(x64.split(chunk), y64.split(chunk), strict=True):
            xx.addmm_(x.T, x)
            xy.addmm_(x.T, y)
        return xy

    cases = [Case("X^T X and X^T Y, fp64 GEMM", products), Case("RidgeAccumulator, fp32 rows", accumulate)]
    return f"streaming, n={n}, d={d}, {d} targets", cases, None, None


def measure(
    title: str, cases: list[Case], expected: np.ndarray | None, read: Callable[[Any], np.ndarray] | None, rounds: int
) -> list[dict[str, Any]]:
    """Check, then time in turn; ratios are to the first case."""
    errors: dict[str, float] = {}
    for case in cases:
        result = case.run()
        if case.check is not None:
            assert expected is not None
            assert read is not None
            errors[case.name] = float(np.linalg.norm(read(result) - expected) / np.linalg.norm(expected))
            if not errors[case.name] <= case.check:
                raise SystemExit(f"{case.name}: held-out error {errors[case.name]:.1e}, allowed {case.check:.0e}")
    calls = {case.name: lambda _, run=case.run: run for case in cases}
    taken = interleaved(calls, rounds=rounds, settle=_SETTLE)
    times = {name: [us / 1e3 for us in own] for name, own in taken.items()}
    first = times[cases[0].name]
    rows = []
    for case in cases:
        own = sorted(times[case.name])
        ratios = [time / base for time, base in zip(times[case.name], first, strict=True)]
        rows.append(
            {
                "work": title,
                "provider": case.name,
                "ms_p50": round(statistics.median(own), 1),
                "ms_p20": round(own[len(own) // 5], 1),
                "ms_p80": round(own[-1 - len(own) // 5], 1),
                "ratio_to_first": round(statistics.median(ratios), 2),
                "held_out_error": f"{errors[case.name]:.1e}" if case.name in errors else "",
                "rounds": rounds,
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                "torch": torch.__version__,
                "commit": commit(),
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the median times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    part = rows[::-1]
    bars = axes.barh([row["provider"] for row in part], [row["ms_p50"] for row in part], color="#4269d0")
    axes.bar_label(bars, [f"{row['ms_p50']:.0f} ms   {row['ratio_to_first']:g}x" for row in part], padding=3)
    axes.set_title(f"{rows[0]['work']}, {rows[0]['threads']} threads", loc="left", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(right=8 * max(row["ms_p50"] for row in part))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("median time in ms; ratio to the first")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("layer", "lambda", "streaming"))
    parser.add_argument("-o", "--output", type=Path, help="write OUTPUT.csv, and its plot to docs/benchmarks/plots")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.quick
    work = {
        "layer": lambda: one_layer(50, 256) if small else one_layer(500, 4096),
        "lambda": lambda: selection(50, 256) if small else selection(500, 4096),
        "streaming": lambda: streaming(1000, 128) if small else streaming(20000, 2048),
    }[arguments.work]()
    rows = measure(*work, arguments.rounds)
    print(rows[0]["work"])
    for row in rows:
        print(f"  {row['provider']:<34}{row['ms_p50']:>10} ms{row['ratio_to_first']:>9}x  {row['held_out_error']}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_table(rows, list(rows[0]), arguments.output.with_suffix(".csv"))
        PLOTS.mkdir(parents=True, exist_ok=True)
        plot(rows, PLOTS / f"{arguments.output.stem}.png")


if __name__ == "__main__":
    main()
