"""The solver: every path solves the same problem, and the estimate that chooses between them can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incline_fast.solver import least_squares
from incline_fast.solver.least_squares import solve


def dense(solution) -> torch.Tensor:
    return solution.up if solution.down is None else solution.up @ solution.down


def with_spectrum(n: int, d: int, values: torch.Tensor, seed: int) -> torch.Tensor:
    """``[n, d]`` with the given singular values."""
    g = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(n, len(values), generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(d, len(values), generator=g, dtype=torch.float64))
    return U * values @ V.T


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 24),
    decades=st.floats(0, 6),
    lam_exponent=st.floats(-8, 3),
    scale=st.floats(-6, 6),
    seed=st.integers(0, 10**6),
)
def test_ridge_is_the_formula_on_singular_values(n, d, decades, lam_exponent, scale, seed):
    """``W = Y^T U diag(s / (s^2 + lam)) V^T`` whatever the shape, conditioning and scale, with whichever path."""
    s = torch.logspace(0, -decades, min(n, d), dtype=torch.float64) * 10**scale
    X = with_spectrum(n, d, s, seed)
    Y = torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    lam = float(s[0]) ** 2 * 10**lam_exponent
    solution = solve(X, Y, lam)
    U, S, Vh = np.linalg.svd(X.numpy(), full_matrices=False)
    expected = (Y.numpy().T @ U) * (S / (S**2 + lam)) @ Vh
    assert np.abs(dense(solution).numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
    assert (solution.down is not None) == (n < d)
    assert (solution.path in ("dual", "primal")) == (not solution.notes)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 20), d=st.integers(1, 20), rank=st.integers(0, 20), seed=st.integers(0, 10**6))
def test_minimum_norm_is_lstsq_for_every_shape_and_rank(n, d, rank, seed):
    rank = min(rank, n, d)
    X = with_spectrum(n, d, torch.linspace(1, 2, rank, dtype=torch.float64), seed)
    Y = torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    expected = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(dense(solve(X, Y, 0.0)).numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("decades", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_condition_estimate(decades, seed):
    """Within a factor of 30 of the true condition of the equilibrated matrix: it steers a choice, no more."""
    X = with_spectrum(40, 40, torch.logspace(0, -decades / 2, 40, dtype=torch.float64), seed)
    gram = X @ X.T
    scale = gram.diagonal().sqrt()
    true = np.linalg.cond((gram / scale / scale[:, None]).numpy())
    estimate = least_squares._condition(gram, torch.linalg.cholesky(gram))
    assert true / 30 < estimate < true * 30


def test_the_scale_of_dimensions_does_not_count_as_bad_conditioning():
    """A massive dimension is harmless to Cholesky in the primal form."""
    X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X[:, 3] *= 1e8
    assert solve(X, X, 0.0, form="primal").path == "primal"


def test_factors_stay_near_orthonormal():
    """Which is what lets them be rounded to fp32; the product ``Y^T K^-1`` and X would cancel."""
    X = with_spectrum(10, 30, torch.logspace(0, -3, 10, dtype=torch.float64), 0)
    Y = torch.randn(10, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for lam, path in ((1e-9, "dual"), (0.0, "qr"), (1e-12, "dual")):
        solution = solve(X, Y, lam)
        assert solution.path == path
        assert float(torch.linalg.matrix_norm(solution.down, 2)) <= 1 + 1e-9
        rounded = solution.up.float() @ solution.down.float()
        assert float((rounded - dense(solution)).abs().max() / dense(solution).abs().max()) < 1e-6


@pytest.mark.parametrize("n", [5, 30])
def test_an_inaccurate_factorisation_is_not_accepted(monkeypatch, n):
    """As a faulty LAPACK would give; the residual finds it, and the result is right all the same."""
    g = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(n, 12, generator=g, dtype=torch.float64) for _ in range(2))
    right = dense(solve(X, Y, 0.5))
    original = least_squares.cholesky_ex

    def faulty(matrix):
        factor, info = original(matrix)
        factor[-1, -1] *= 1.001
        return factor, info

    monkeypatch.setattr(least_squares, "cholesky_ex", faulty)
    solution = solve(X, Y, 0.5)
    assert solution.path == "qr"
    assert "relative residual" in solution.notes[0]
    torch.testing.assert_close(dense(solution), right)


def test_a_nan_condition_is_not_accepted(monkeypatch):
    monkeypatch.setattr(least_squares, "_condition", lambda gram, factor: float("nan"))
    X = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert solve(X, X, 0.5).path == "qr"


def test_zero_targets():
    X = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solve(X, torch.zeros(5, 12, dtype=torch.float64), 0.5)
    assert solution.path == "dual"
    assert not dense(solution).any()


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
def test_gram_is_symmetric_and_right(rows):
    X = torch.randn(rows, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = least_squares.gram(X)
    torch.testing.assert_close(product, X @ X.T)
    torch.testing.assert_close(product, product.T, rtol=0, atol=1e-13)
