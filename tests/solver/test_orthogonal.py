"""QR before SVD: the solution of numpy.linalg.lstsq whatever the rank, and no full rank taken that is not certain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from incline_fast.solver import least_squares, orthogonal
from incline_fast.solver.least_squares import solve

SHAPES = ((100, 150), (150, 100), (100, 100), (70, 400), (400, 70))
EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(n: int, d: int, values: torch.Tensor) -> torch.Tensor:
    left, right = (torch.linalg.qr(normal(size, len(values), seed=size))[0] for size in (n, d))
    return left * values @ right.T


def spectrum(n: int, d: int, smallest: float) -> torch.Tensor:
    """Half of the singular values near 1, the others down to the smallest."""
    values = torch.ones(min(n, d), dtype=torch.float64)
    values[len(values) // 2 :] = torch.logspace(0, np.log10(smallest), len(values) - len(values) // 2)
    return with_spectrum(n, d, values)


def duplicated(n: int, d: int) -> torch.Tensor:
    X = normal(n, d)
    X[-5:] = X[:5]
    X[:, -5:] = X[:, :5]
    return X


def with_zeros(n: int, d: int) -> torch.Tensor:
    X = normal(n, d)
    X[3] = 0
    X[:, 7] = 0
    X[-1] = 0
    return X


def massive(n: int, d: int) -> torch.Tensor:
    """States with one dimension a thousand times as large as the others, and a mean."""
    X = normal(n, d) + 3
    X[:, 5] *= 1e3
    return X


KINDS = {
    "duplicated": duplicated,
    "zeros": with_zeros,
    "massive": massive,
    "three quarters": lambda n, d: with_spectrum(n, d, torch.linspace(1, 2, 3 * min(n, d) // 4, dtype=torch.float64)),
    "condition 1e6": lambda n, d: spectrum(n, d, 1e-6),
    "condition 1e9": lambda n, d: spectrum(n, d, 1e-9),
    "centred": lambda n, d: normal(n, d) - normal(n, d).mean(0),
}


def dense(solution) -> torch.Tensor:
    return solution.up if solution.down is None else solution.up @ solution.down


def error(solution, X: torch.Tensor, Y: torch.Tensor) -> float:
    expected = torch.from_numpy(np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0]).T
    return float((dense(solution) - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_minimum_norm(kind, n, d):
    """Exact to ``eps`` times the condition, as every stable solver; an SVD only where the rank is not full."""
    X, Y = KINDS[kind](n, d), normal(n, 30, seed=1)
    values = np.linalg.svd(X.numpy(), compute_uv=False)
    kept = values[values > EPS * max(n, d) * values[0]]
    solution = solve(X, Y, 0.0)
    assert (solution.path == "svd") == (len(kept) < min(n, d))
    condition = float(values[0] / kept[-1])
    assert error(solution, X, Y) <= 1e3 * EPS * (condition**2 if solution.path in ("dual", "primal") else condition)
    assert (solution.down is not None) == (n < d)
    if solution.path == "qr":
        assert condition**-2 / 1e3 <= solution.rcond <= condition**-2 * 1e3
    if solution.path == "svd":
        assert f"rank {len(kept)} of {min(n, d)}" in solution.notes[0]


@pytest.mark.parametrize("factor", [1e-3, 0.3, 0.8, 1.3, 3, 30, 300, 1e5])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_singular_value_near_the_cut_is_kept_or_dropped_as_lstsq_does(factor, n, d):
    cut = EPS * max(n, d)
    values = torch.ones(min(n, d), dtype=torch.float64)
    values[-1] = factor * cut
    X, Y = with_spectrum(n, d, values), normal(n, 3, seed=1)
    solution = solve(X, Y, 0.0)
    rank = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[2]
    assert rank == len(values) - (factor < 1)
    assert (float(dense(solution).norm()) > 1e-3 / (factor * cut)) == (factor > 1)
    assert solution.path == ("qr" if factor == 1e5 else "svd")
    if solution.path == "svd":
        assert f"rank {rank} of {len(values)}" in solution.notes[0]
    assert error(solution, X, Y) <= 1e3 * EPS * (1 if factor < 1 else 1 / float(values[-1]))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_tiny_lam_on_ill_conditioned_rows(n, d):
    """``sqrt(lam) I`` below the rows instead of lam on the diagonal of a Gram matrix that has lost it."""
    X, Y, lam = spectrum(n, d, 1e-9), normal(n, 30, seed=1), 1e-13
    solution = solve(X, Y, lam)
    assert solution.path == "qr"
    assert solution.notes[0].startswith("Cholesky")
    U, S, Vh = np.linalg.svd(X.numpy(), full_matrices=False)
    expected = (Y.numpy().T @ U) * (S / (S**2 + lam)) @ Vh
    assert np.linalg.norm(dense(solution).numpy() - expected) <= 1e-8 * np.linalg.norm(expected)


@pytest.mark.parametrize("decades", [0, 2, 4, 8, 11])
@pytest.mark.parametrize("seed", range(4))
def test_condition_of_a_triangle(decades, seed):
    """Within the factor of 30 that the margin to the cut allows for."""
    R = torch.linalg.qr(with_spectrum(80, 80, torch.logspace(0, -decades, 80, dtype=torch.float64)))[1]
    R = torch.linalg.qr(R @ torch.linalg.qr(normal(80, 80, seed=seed))[0])[1]
    true = 1 / float(np.linalg.cond(R.numpy()))
    assert true / 1.01 <= orthogonal.reciprocal_condition(R) <= 30 * true


@pytest.mark.parametrize("decades", [4.5, 5, 6, 7])
@pytest.mark.parametrize(("n", "d"), [(800, 190), (1000, 70)])
def test_many_rows_whose_gram_matrix_is_open(monkeypatch, decades, n, d):
    """Cholesky QR, twice: exact to eps times the condition, where Cholesky is to its square."""
    monkeypatch.setattr(least_squares, "solve_by_qr", None)
    X, Y = with_spectrum(n, d, torch.logspace(0, -decades, d, dtype=torch.float64)), normal(n, 30, seed=1)
    solution = solve(X, Y, 0.0)
    assert solution.path == "qr"
    assert solution.notes[0].startswith("Cholesky: condition about")
    assert error(solution, X, Y) <= 10 * EPS * 10**decades
    assert 10 ** (-2 * decades) / 1e3 <= solution.rcond <= 10 ** (-2 * decades) * 1e3


def test_a_gram_matrix_that_cannot_be_repaired_is_left_to_householder():
    values = torch.ones(100, dtype=torch.float64)
    values[-1] = 1e-9
    X, Y = with_spectrum(500, 100, values), normal(500, 30, seed=1)
    wrong = torch.linalg.cholesky(X.T @ X + 1e-14 * torch.eye(100, dtype=torch.float64))
    refused = least_squares._by_cholesky_qr(X, Y, wrong)
    assert isinstance(refused, str)
    assert refused.startswith("Cholesky QR: ")
    solution = solve(X, Y, 0.0)
    assert solution.path == "qr"
    assert error(solution, X, Y) <= 1e3 * EPS * 1e9


def test_a_scale_that_lstsq_takes_for_zero_is_not_kept_by_cholesky_qr():
    """Cholesky does not see how columns are scaled; lstsq does."""
    X = normal(500, 100)
    X[:, 7] *= 1e-15
    Y = normal(500, 30, seed=1)
    refused = least_squares._by_cholesky_qr(X, Y, torch.linalg.cholesky(X.T @ X))
    assert isinstance(refused, str)
    assert refused.startswith("QR: smallest singular value about")


@pytest.mark.parametrize("n", [60, 100, 150])
def test_predictions_along_a_massive_dimension_are_as_exact_as_those_of_lstsq(n):
    """An error of the map that is small beside the map is not small once a thousand multiplies it."""
    X = spectrum(n + 20, 250, 1e-3) + 0.1 * normal(250)
    X[:, 5] *= 1e4
    Y = normal(n, 30, seed=1)
    W = dense(solve(X[:n], Y, 0.0))
    expected = torch.from_numpy(np.linalg.lstsq(X[:n].numpy(), Y.numpy(), rcond=None)[0]).T
    assert float(((W - expected) @ X[n:].T).norm()) <= 1e-9 * float((expected @ X[n:].T).norm())
    assert float((X[:n] @ W.T - Y).norm()) <= 1e-9 * float(Y.norm())
