"""Scores of a grid of ridge parameters from one eigendecomposition of the smaller Gram matrix.

All functions take fp64 rows that are centred where there is an intercept, scaled, and multiplied by the square root of
their weight; ``q`` is then the unit vector of these square roots, the direction that centring has removed (None without
an intercept). With ``X X^T = U S U^T`` and ``C = (X X^T + lam I)^-1`` the residuals are ``lam C Y``, and

    leave-one-out   e_i = (C Y)_i / c_i,                     c_i = C_ii - q_i^2 / lam              (Allen's PRESS)
    GCV             n ||C Y||^2 / (sum_i c_i)^2              (Golub, Heath and Wahba 1979)

(without an intercept ``c_i = C_ii``). Both stay defined for lam -> 0. With n >= d the same is computed from
``X^T X = V S V^T`` through the hat matrix. ``kernel`` is the smaller of the two Gram matrices, which the solve that
follows needs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from incline_fast.solver.least_squares import gram

__all__ = ["FOLDS", "PreparedRows", "gcv_from_moments", "gcv_scores", "kfold_scores", "loo_scores"]

FOLDS = 5

_EPS = torch.finfo(torch.float64).eps
# Elements of a temporary of the leave-one-out scores, 8 MB: larger ones are new memory pages at every allocation.
_CHUNK = 1 << 20
# Columns of the leave-one-out scores' triangular product that are computed at once.
_WIDTH = 256


@dataclass(frozen=True)
class PreparedRows:
    """Prepared rows ``X [n, d]``, ``Y [n, t]`` and the direction ``q [n]`` that centring removed, or None."""

    X: Tensor
    Y: Tensor
    q: Tensor | None


def loo_scores(rows: PreparedRows, kernel: Tensor, lams: Tensor) -> Tensor:
    """``sum_i ||e_i||^2`` of the leave-one-out residuals for every absolute lam: fp64 ``[L]``; inf where undefined."""
    if len(rows.X) >= rows.X.shape[1]:
        return _loo_primal(rows, kernel, lams)
    S, U, shift = _dual_spectrum(kernel, rows.q)
    D = 1 / (S + lams.unsqueeze(-1))
    diagonal = D @ U.square().T
    if rows.q is not None:
        diagonal -= rows.q.square() / (shift + lams.unsqueeze(-1))
    squares = _squares_few(U, D, rows.Y) if rows.Y.shape[1] < len(U) else _squares_many(U, D, rows.Y)
    return _defined((squares / diagonal.square()).sum(1), S, lams)


def gcv_scores(rows: PreparedRows, kernel: Tensor, lams: Tensor) -> Tensor:
    """``n RSS / (n - trace H)^2`` for every absolute lam: fp64 ``[L]``; inf where undefined."""
    n, d = rows.X.shape
    if n >= d:
        return gcv_from_moments(kernel, rows.X.T @ rows.Y, rows.Y.square().sum(), n, rows.q is not None, lams)
    S, U, shift = _dual_spectrum(kernel, rows.q)
    D = 1 / (S + lams.unsqueeze(-1))
    trace = D.sum(1)
    if rows.q is not None:
        trace -= 1 / (shift + lams)
    squares = D.square() @ (U.T @ rows.Y).square().sum(1)
    return _defined(n * squares / trace.square(), S, lams)


def gcv_from_moments(G: Tensor, M: Tensor, yy: Tensor, n: int, intercept: bool, lams: Tensor) -> Tensor:
    """:func:`gcv_scores` from ``G = X^T X``, ``M = X^T Y`` and ``yy = ||Y||^2``.

    The difference ``RSS = yy - sum_j (2 / (s_j + lam) - s_j / (s_j + lam)^2) ||V^T M||_j^2`` loses as many of fp64's 16
    digits as ``yy / RSS`` has.

    Args:
        G: fp64 ``[d, d]``.
        M: fp64 ``[d, t]``.
        yy: fp64 scalar.
        n: number of rows.
        intercept: whether the rows were centred, which takes one degree of freedom.
        lams: fp64 ``[L]``, absolute.
    """
    S, V = torch.linalg.eigh(G)
    S = S.clamp(min=0)
    D = 1 / (S + lams.unsqueeze(-1))
    explained = (2 * D - S * D.square()) @ (V.T @ M).square().sum(1)
    freedom = n - int(intercept) - (S * D).sum(1)
    rss = (yy - explained).clamp(min=0)
    scores = torch.where(freedom > _EPS * n, n * rss / freedom.square(), torch.inf)
    return _defined(scores, S, lams)


def kfold_scores(
    n: int,
    lams: int,
    prepare: Callable[[Tensor, Tensor], tuple[PreparedRows, PreparedRows, Tensor]],
    device: torch.device,
) -> Tensor:
    """Sum over the folds of the squared errors on the rows left out: fp64 ``[L]``.

    Args:
        n: number of rows; at least 2.
        lams: number L of parameters.
        prepare: called with the indices of the fitted and of the held-out rows of a fold; returns the prepared rows of
            both, centred by the means of the fitted ones, and the absolute lams of the fold.
        device: of the rows.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    total = torch.zeros(lams, dtype=torch.float64, device=device)
    for held_out in order.tensor_split(min(FOLDS, n)):
        inside = torch.ones(n, dtype=torch.bool, device=device)
        inside[held_out] = False
        fitted, tested, fold_lams = prepare(inside.nonzero().squeeze(1), held_out)
        X, Y = fitted.X, fitted.Y
        if len(X) > X.shape[1]:
            S, V = torch.linalg.eigh(gram(X.T))
            basis, projected = tested.X @ V, V.T @ (X.T @ Y)
        else:
            S, V = torch.linalg.eigh(gram(X))
            basis, projected = tested.X @ X.T @ V, V.T @ Y
        S = S.clamp(min=0)
        # Directions in which the fitted rows do not vary predict nothing; their eigenvalues are rounding errors.
        known = _EPS * len(S) * S[-1] < S
        for index, lam in enumerate(fold_lams):
            gain = torch.where(known, 1 / (S + lam), 0.0)
            total[index] += (tested.Y - (basis * gain) @ projected).square().sum()
    return total


def _dual_spectrum(kernel: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues ``S [n]``, ascending, and eigenvectors ``U [n, n]`` of ``X X^T + shift q q^T``, and the shift.

    q is an eigenvector of ``X X^T`` to the eigenvalue 0. Other eigenvectors to 0 would come out mixed with it; with an
    eigenvalue of its own, its share of a sum is known and can be subtracted. The shift is at least as large as the
    largest eigenvalue, so that this share is small.
    """
    shift = kernel.trace()
    if q is not None:
        kernel = kernel + shift * torch.outer(q, q)
    S, U = torch.linalg.eigh(kernel)
    return S.clamp(min=0), U, shift


def _squares_few(U: Tensor, D: Tensor, Y: Tensor) -> Tensor:
    """``||(C Y)_i||^2`` ``[L, n]`` for ``C = U diag(D_l) U^T``, D ``[L, n]``, by products with all targets."""
    projected = U.T @ Y
    return torch.stack([((U * gain) @ projected).square().sum(1) for gain in D])


def _squares_many(U: Tensor, D: Tensor, Y: Tensor) -> Tensor:
    """:func:`_squares_few` as ``(C Y Y^T C)_ii``: with more targets than rows, ``Y Y^T [n, n]`` is smaller than Y."""
    inner = U.T @ gram(Y) @ U
    # z^T inner z = z^T lower z, which takes half as many multiplications.
    lower = 2 * inner.tril(-1) + inner.diag().diag()
    n = len(U)
    step = max(1, _CHUNK // (n * n))
    squares = []
    for first in range(0, len(D), step):
        half = (D[first : first + step].unsqueeze(1) * U).reshape(-1, n)
        parts = [
            ((half[:, start:] @ lower[start:, start : start + _WIDTH]) * half[:, start : start + _WIDTH]).sum(1)
            for start in range(0, n, _WIDTH)
        ]
        squares.append(torch.stack(parts).sum(0).reshape(-1, n))
    return torch.cat(squares)


def _loo_primal(rows: PreparedRows, kernel: Tensor, lams: Tensor) -> Tensor:
    S, V = torch.linalg.eigh(kernel)
    S = S.clamp(min=0)
    Z = rows.X @ V
    projected = Z.T @ rows.Y
    leverage = Z.square()
    fixed = 0.0 if rows.q is None else rows.q.square()
    scores = []
    # The largest arrays are used again for every lam: new memory would take as long as the arithmetic.
    scaled, residual = torch.empty_like(Z), torch.empty_like(rows.Y)
    for lam in lams:
        gain = 1 / (S + lam)
        free = 1 - leverage @ gain - fixed
        torch.mm(torch.mul(Z, gain, out=scaled), projected, out=residual)
        squares = torch.linalg.vector_norm(residual.sub_(rows.Y), dim=1).square()
        # Where a row alone determines a direction, the others do not predict it.
        scores.append(torch.where(free > _EPS * len(S), squares / free.square(), torch.inf).sum())
    return _defined(torch.stack(scores), S, lams)


def _defined(scores: Tensor, S: Tensor, lams: Tensor) -> Tensor:
    """``scores [L]`` with inf where one is NaN or the smallest eigenvalue, S[0], plus lam is mere rounding error."""
    singular = S[0] + lams <= _EPS * len(S) * S[-1]
    return torch.where(singular | scores.isnan(), torch.inf, scores)
