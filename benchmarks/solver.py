"""Time minimum norm, ridge and leave-one-out over all sites of a model against torch, NumPy and scikit-learn.

python -m benchmarks.solver min_norm --shape 18,500,640 -o benchmarks/results/solver-min-norm-18x500x640

A shape is sites, rows, width. States are made up to resemble a decoder's: a mean, one massive dimension and singular
values over four decades; ``--states FILE`` takes real ones instead, tensors ``x.SITE`` and ``y.SITE`` of a safetensors
file. As in benchmarks/ridge.py, providers take turns in a new order in every round, ratios are medians over rounds, and
a provider is timed only after its held-out predictions were compared with those of a fp64 SVD.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from torch import Tensor

from benchmarks.ridge import HELD_OUT, Case, measure
from incline_fast.files import write_table
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge

LAM = 0.3
Site = tuple[Tensor, Tensor]


def made_up(sites: int, n: int, d: int) -> list[Site]:
    """States in fp32, and those of translations: a linear map of them and noise."""
    g = torch.Generator().manual_seed(0)

    def site() -> Site:
        decay = torch.logspace(0, -4, d)[torch.randperm(d, generator=g)]
        mix = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
        X = (torch.randn(n, d, generator=g) * decay) @ mix + 0.1 * torch.randn(d, generator=g)
        X[:, 7] *= 300
        return X, X @ torch.randn(d, d, generator=g).div_(d**0.5) + 0.01 * torch.randn(n, d, generator=g)

    return [site() for _ in range(sites)]


def real(path: Path, sites: int, n: int) -> list[Site]:
    """The first rows of the first sites of a file."""
    states = load_file(path)
    names = sorted(int(name[2:]) for name in states if name.startswith("x."))[:sites]
    return [(states[f"x.{name}"][:n], states[f"y.{name}"][:n]) for name in names]


def absolute(X: Tensor, lam: float) -> float:
    """The ridge parameter in scikit-learn's units."""
    return lam * float(X.double().square().sum()) / X.shape[1]


def by_svd(X: Tensor, Y: Tensor, lam: float) -> np.ndarray:
    """``W`` for ``X @ W`` by an SVD that is no provider's own solver."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    keep = torch.finfo(torch.float64).eps * max(X.shape) * S[0] < S if lam == 0 else S > 0
    gain = torch.where(keep, S / (S.square() + lam), 0.0)
    return ((Vh.T * gain) @ (U.T @ Y.double())).numpy()


def torch_ridge(X: Tensor, Y: Tensor, lam: float) -> Tensor:
    """What one writes with torch alone: Cholesky of the smaller Gram matrix."""
    if len(X) < X.shape[1]:
        K = X @ X.T
        K.diagonal().add_(lam)
        return X.T @ torch.cholesky_solve(Y, torch.linalg.cholesky(K))
    K = X.T @ X
    K.diagonal().add_(lam)
    return torch.cholesky_solve(X.T @ Y, torch.linalg.cholesky(K))


def cases_of(work: str, sites: list[Site]) -> list[Case]:
    """Ours first; each gives one result per site."""
    doubles = [(X.double(), Y.double()) for X, Y in sites]
    arrays = [(x.numpy(), y.numpy()) for x, y in doubles]
    lams = [absolute(X, LAM) for X, _ in sites]

    def each(solve: Callable[..., Any], *lists: list[Any]) -> Callable[[], Any]:
        return lambda: [solve(*parts) for parts in zip(*lists, strict=True)]

    if work == "min_norm":
        return [
            Case("incline_fast", each(lambda s: Ridge(0.0, fit_intercept=False).fit(*s), sites), 1e-8),
            *(
                Case(
                    f"torch.linalg.lstsq {driver} fp64",
                    each(lambda s, driver=driver: torch.linalg.lstsq(*s, driver=driver).solution, doubles),
                    1e-8,
                )
                for driver in ("gelsy", "gels", "gelsd")
            ),
            Case("numpy.linalg.lstsq fp64", each(lambda s: np.linalg.lstsq(*s, rcond=None)[0], arrays), 1e-8),
        ]
    if work == "ridge":
        return [
            Case("incline_fast", each(lambda s: Ridge(LAM, fit_intercept=False).fit(*s), sites), 1e-8),
            Case("torch Cholesky fp64", each(lambda s, lam: torch_ridge(*s, lam), doubles, lams), 1e-8),
            Case(
                "sklearn Ridge fp64",
                each(lambda s, lam: SklearnRidge(lam, fit_intercept=False).fit(*s).coef_.T, arrays, lams),
                1e-8,
            ),
        ]
    grids = [[absolute(X, lam) for lam in DEFAULT_LAMS] for X, _ in sites]
    return [
        Case("incline_fast", each(lambda s: Ridge(DEFAULT_LAMS, fit_intercept=False).fit(*s), sites), 1e-6),
        Case(
            "sklearn RidgeCV fp64",
            each(lambda s, grid: RidgeCV(grid, fit_intercept=False).fit(*s).coef_.T, arrays, grids),
            1e-6,
        ),
    ]


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("min_norm", "ridge", "loo"))
    parser.add_argument("--shape", default="18,500,640", help="sites, rows, width; default %(default)s")
    parser.add_argument("--states", type=Path, help="safetensors file of real states: x.SITE and y.SITE, [rows, width]")
    parser.add_argument("-o", "--output", type=Path, help="write OUTPUT.csv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, n, d = map(int, arguments.shape.split(","))
    rows = n + HELD_OUT
    data = made_up(count, rows, d) if arguments.states is None else real(arguments.states, count, rows)
    if {(len(data), *X.shape) for X, _ in data} != {(count, rows, d)}:
        parser.error(
            f"{arguments.states} does not have {count} sites of {rows} rows, {d} wide (with the held-out rows)"
        )
    fitted = [(X[:n].contiguous(), Y[:n].contiguous()) for X, Y in data]
    held_out = [X[n:].double() for X, _ in data]
    lams = [0.0 if arguments.work == "min_norm" else absolute(X, LAM) for X, _ in fitted]
    if arguments.work == "loo":
        lams = [absolute(X, Ridge(DEFAULT_LAMS, fit_intercept=False).fit(X, Y).lam_) for X, Y in fitted]

    def read(results: list[Any]) -> np.ndarray:
        return np.concatenate(
            [
                one.predict(x).numpy() if isinstance(one, Ridge) else x.numpy() @ np.asarray(one)
                for one, x in zip(results, held_out, strict=True)
            ]
        )

    expected = read([by_svd(X, Y, lam) for (X, Y), lam in zip(fitted, lams, strict=True)])
    kind = "made-up" if arguments.states is None else "real"
    title = f"{arguments.work}, {count} sites of {kind} states, n={n}, d={d}"
    table = measure(title, cases_of(arguments.work, fitted), expected, read, arguments.rounds)
    print(title)
    for row in table:
        print(f"  {row['provider']:<34}{row['ms_p50']:>10} ms{row['ratio_to_first']:>9}x  {row['held_out_error']}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, list(table[0]), arguments.output.with_suffix(".csv"))


if __name__ == "__main__":
    main()
