"""Time minimum norm, ridge and leave-one-out over all sites of a model against torch, NumPy and scikit-learn.

python -m benchmarks.solver min_norm --shape 18,500,640 18,1000,640 -o benchmarks/results/solver-min-norm-640

A shape is sites, rows, width. States are made up in the manner of a decoder's: a mean, one massive dimension and
singular values over four decades; ``--states FILE`` takes real ones instead, tensors ``x.SITE`` and ``y.SITE`` of a
safetensors file. As in benchmarks/ridge.py, providers take turns in a new order in every round, ratios are medians over
rounds, and a provider is timed only after its held-out predictions were compared with those of a QR with an explicit Q,
which is nobody's driver. Ours gets the states in fp32, the others in fp64: their conversion is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.ridge import HELD_OUT, Case, measure
from incline_fast.bench.machine import cpu_name
from incline_fast.files import write_table
from incline_fast.fitting.memory_plan import plan_fit
from incline_fast.fitting.side_by_side import side_by_side
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge

LAM = 0.3
# Multiplications of n d min(n, d) from which the providers that are far behind are left out.
SLOW = 5e8
Site = tuple[Tensor, Tensor]


def made_up(sites: int, n: int, d: int) -> list[Site]:
    """States in fp32, and those of translations: a linear map of them and noise."""
    g = torch.Generator().manual_seed(0)

    def site() -> Site:
        decay = torch.logspace(0, -4, d)[torch.randperm(d, generator=g)]
        signs = torch.randint(0, 2, (d,), generator=g) * 2 - 1
        # A cosine transform is orthonormal, as the Q of a random matrix is, and takes no d^3.
        mixed = scipy.fft.dct((torch.randn(n, d, generator=g) * decay * signs).numpy(), norm="ortho")
        X = torch.from_numpy(mixed) + 0.1 * torch.randn(d, generator=g)
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


def fit_sites(sites: list[Site], lam: Any) -> list[Ridge]:
    """Every site as ``fit`` does it: several at the same time where they are small."""
    numbers = range(len(sites))
    at_once = plan_fit(*sites[0][0].shape, numbers, threads=torch.get_num_threads()).at_once
    found = dict(side_by_side(lambda i: Ridge(lam, fit_intercept=False).fit(*sites[i]), numbers, at_once))
    return [found[i] for i in numbers]


def by_qr(X: Tensor, Y: Tensor, lam: float, held_out: Tensor) -> np.ndarray:
    """Predictions for held-out rows, from a QR of X over ``sqrt(lam) I``."""
    X, Y = X.double(), Y.double()
    n, d = X.shape
    A = X.T if n < d else X
    if lam > 0:
        A = torch.cat([A, torch.eye(A.shape[1], dtype=A.dtype).mul_(lam**0.5)])
    Q, R = torch.linalg.qr(A)
    if n < d:
        return ((held_out @ Q[:d]) @ torch.linalg.solve_triangular(R.T, Y, upper=False)).numpy()
    return (held_out @ torch.linalg.solve_triangular(R, Q[:n].T @ Y, upper=True)).numpy()


def torch_ridge(X: Tensor, Y: Tensor, lam: float) -> Tensor:
    """What one writes with torch alone: Cholesky of the smaller Gram matrix."""
    if len(X) < X.shape[1]:
        K = X @ X.T
        K.diagonal().add_(lam)
        return X.T @ torch.cholesky_solve(Y, torch.linalg.cholesky(K))
    K = X.T @ X
    K.diagonal().add_(lam)
    return torch.cholesky_solve(X.T @ Y, torch.linalg.cholesky(K))


def torch_augmented(X: Tensor, Y: Tensor, lam: float) -> Tensor:
    """Ridge as least squares of X over ``sqrt(lam) I``."""
    d = X.shape[1]
    A = torch.cat([X, torch.eye(d, dtype=X.dtype).mul_(lam**0.5)])
    return torch.linalg.lstsq(A, torch.cat([Y, Y.new_zeros(d, Y.shape[1])]), driver="gels").solution


def torch_loo(X: Tensor, Y: Tensor, lams: list[float]) -> Tensor:
    """What one writes with torch alone: residuals of every lam from one eigendecomposition, then W of the best."""
    if len(X) < X.shape[1]:
        S, U = torch.linalg.eigh(X @ X.T)
        P = U.T @ Y

        def residual(lam: float) -> Tensor:
            C = U / (S + lam)
            return (C @ P) / (C * U).sum(1, keepdim=True)

        best = min(lams, key=lambda lam: float(residual(lam).square().sum()))
        return X.T @ ((U / (S + best)) @ P)
    S, V = torch.linalg.eigh(X.T @ X)
    Z = X @ V
    P = Z.T @ Y

    def left_out(lam: float) -> Tensor:
        H = Z / (S + lam)
        return (Y - H @ P) / (1 - (H * Z).sum(1, keepdim=True))

    best = min(lams, key=lambda lam: float(left_out(lam).square().sum()))
    return (V / (S + best)) @ P


def cases_of(work: str, sites: list[Site]) -> list[Case]:
    """Ours first; each gives one result per site. Providers far behind are left out of shapes that take long."""
    doubles = [(X.double(), Y.double()) for X, Y in sites]
    arrays = [(x.numpy(), y.numpy()) for x, y in doubles]
    lams = [absolute(X, LAM) for X, _ in sites]
    n, d = sites[0][0].shape
    slow = len(sites) * n * d * min(n, d) > SLOW

    def case(name: str, solve: Callable[..., Any], *lists: list[Any]) -> Case:
        return Case(
            name, lambda: [solve(*parts) for parts in zip(*lists, strict=True)], 1e-6 if work == "loo" else 1e-8
        )

    def driver(name: str) -> Case:
        return case(f"torch.linalg.lstsq {name} fp64", lambda s: torch.linalg.lstsq(*s, driver=name).solution, doubles)

    def ours(lam: Any) -> Case:
        return Case("incline_fast", lambda: fit_sites(sites, lam), 1e-6 if work == "loo" else 1e-8)

    if work == "min_norm":
        far = [driver("gelsd"), case("numpy.linalg.lstsq fp64", lambda s: np.linalg.lstsq(*s, rcond=None)[0], arrays)]
        return [ours(0.0), driver("gelsy"), driver("gels"), *([] if slow else far)]
    if work == "ridge":

        def sklearn(s: Any, lam: float) -> np.ndarray:
            return SklearnRidge(lam, fit_intercept=False).fit(*s).coef_.T

        augmented = case(
            "torch.linalg.lstsq gels fp64, augmented", lambda s, lam: torch_augmented(*s, lam), doubles, lams
        )
        return [
            ours(LAM),
            case("torch Cholesky fp64", lambda s, lam: torch_ridge(*s, lam), doubles, lams),
            case("sklearn Ridge fp64", sklearn, arrays, lams),
            *([] if slow or d**3 > SLOW else [augmented]),  # its matrix has at least d rows
        ]
    grids = [[absolute(X, lam) for lam in DEFAULT_LAMS] for X, _ in sites]

    def ridge_cv(s: Any, grid: list[float]) -> np.ndarray:
        return RidgeCV(grid, fit_intercept=False).fit(*s).coef_.T

    return [
        ours(DEFAULT_LAMS),
        case("torch eigh fp64", lambda s, grid: torch_loo(*s, grid), doubles, grids),
        *([] if slow else [case("sklearn RidgeCV fp64", ridge_cv, arrays, grids)]),
    ]


def table_of(work: str, states: Path | None, shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """One shape, checked and timed.

    Raises:
        SystemExit: the file of states has another shape, or a provider's predictions are wrong.
    """
    count, n, d = shape
    rows = n + HELD_OUT
    data = made_up(count, rows, d) if states is None else real(states, count, rows)
    if {(len(data), *X.shape) for X, _ in data} != {(count, rows, d)}:
        raise SystemExit(f"{states} does not have {count} sites of {rows} rows, {d} wide (with the held-out rows)")
    fitted = [(X[:n].contiguous(), Y[:n].contiguous()) for X, Y in data]
    held_out = [X[n:].double() for X, _ in data]
    lams = [0.0 if work == "min_norm" else absolute(X, LAM) for X, _ in fitted]
    if work == "loo":
        lams = [absolute(X, Ridge(DEFAULT_LAMS, fit_intercept=False).fit(X, Y).lam_) for X, Y in fitted]

    def read(results: list[Any]) -> np.ndarray:
        return np.concatenate(
            [
                one.predict(x).numpy() if isinstance(one, Ridge) else x.numpy() @ np.asarray(one)
                for one, x in zip(results, held_out, strict=True)
            ]
        )

    expected = np.concatenate([by_qr(X, Y, lam, x) for (X, Y), lam, x in zip(fitted, lams, held_out, strict=True)])
    kind = "made-up" if states is None else "real"
    title = f"{work}, {count} sites of {kind} states, n={n}, d={d}"
    named = {"sites": count, "n": n, "d": d, "states": kind, "processor": cpu_name()}
    return [row | named for row in measure(title, cases_of(work, fitted), expected, read, rounds)]


def main() -> None:
    """Check, time, print, write after every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("min_norm", "ridge", "loo"))
    parser.add_argument("--shape", nargs="+", default=["18,500,640"], help="sites,rows,width; default 18,500,640")
    parser.add_argument("--states", type=Path, help="safetensors file of real states: x.SITE and y.SITE, [rows, width]")
    parser.add_argument("-o", "--output", type=Path, help="write OUTPUT.csv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table: list[dict[str, Any]] = []
    for shape in arguments.shape:
        count, n, d = map(int, shape.split(","))
        with threadpool_limits(arguments.threads):  # of NumPy's library too
            found = table_of(arguments.work, arguments.states, (count, n, d), arguments.rounds)
        print(found[0]["work"])
        for row in found:
            print(f"  {row['provider']:<42}{row['ms_p50']:>10} ms{row['ratio_to_first']:>9}x  {row['held_out_error']}")
        table += found
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            write_table(table, list(table[0]), arguments.output.with_suffix(".csv"))


if __name__ == "__main__":
    main()
