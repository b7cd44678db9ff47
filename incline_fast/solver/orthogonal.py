"""Least squares by orthogonal decompositions of the data, whose condition is not squared: QR, and SVD where QR is open.

With ``A = X^T`` for n < d and ``A = X`` otherwise, below which ``sqrt(lam) I`` stands when lam > 0,

    A = Q R,      n < d:   down = R^-T X,   up = (R^-T Y)^T           n >= d:   W^T = R^-1 Q^T Y

Q of the first case is never formed: ``R^-T X`` are its rows up to the rounding that the minimum-norm solution has
anyway, ``eps cond(X)`` (Paige 1973). QR without pivoting says nothing about a rank that is not full, but an estimate of
the smallest singular value of R says whether it is: far above the cut, below which lstsq counts a singular value as
zero. Everything else is left to the SVD. ``gelsy`` of ``torch.linalg.lstsq`` would be the way between, but up to torch
2.13 it hands LAPACK pivots that it has not set (pytorch/pytorch#187411), and its rank is then wrong at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from incline_fast.solver.blocked_qr import triangularise_
from incline_fast.solver.solution import Solution

__all__ = ["STEPS", "alternating", "open_rank", "reciprocal_condition", "solve_by_qr", "solve_by_svd"]

_EPS = torch.finfo(torch.float64).eps
# How far above the cut the estimate of the smallest singular value must be for the rank to be full: more than it can be
# wrong (tests: 30).
_MARGIN = 1e3
# Of the inverse iteration: with three the estimate is as good as with five in the tests.
STEPS = 3


def solve_by_qr(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]``, ``lam >= 0``; the reason where the rank may not be full."""
    n, d = X.shape
    if n >= d:
        return _solve_tall(X, Y, lam)
    A = X.T if lam == 0 else torch.cat([X.T, torch.eye(n, dtype=X.dtype, device=X.device).mul_(lam**0.5)])
    lower = torch.geqrf(A)[0][:n].triu().T
    rcond = reciprocal_condition(lower)
    if reason := open_rank(rcond, d):
        return reason
    down, up = (torch.linalg.solve_triangular(lower, side, upper=False) for side in (X, Y))
    return Solution(up.T, down, "qr", rcond**2)


def _solve_tall(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    """QR of the features and the targets side by side, which gives ``R`` and ``Q^T Y``."""
    n, d = X.shape
    columns = X.new_empty(d + Y.shape[1], n if lam == 0 else n + d)
    columns[:d, :n] = X.T
    columns[d:, :n] = Y.T
    if lam > 0:
        columns[:, n:].zero_().diagonal().fill_(lam**0.5)
    lower = triangularise_(columns, d)
    rcond = reciprocal_condition(lower)
    if reason := open_rank(rcond, n):
        return reason
    W = torch.linalg.solve_triangular(lower, columns[d:, :d], upper=False, left=False)
    return Solution(W, None, "qr", rcond**2)


def open_rank(rcond: float, size: int) -> str:
    """Why the rank may not be full, empty if it is; ``size`` is the larger one of the matrix."""
    # Written so that NaN is refused as well.
    return "" if rcond >= _MARGIN * _EPS * size else f"QR: smallest singular value about {rcond:.0e} of the largest"


def solve_by_svd(X: Tensor, Y: Tensor, lam: float, reason: str) -> Solution:
    """``W = Y^T U S / (S^2 + lam) V^T`` from ``X = U S V^T``; ``reason`` begins the note that it leaves."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    keep = _EPS * max(X.shape) * S[0] < S if lam == 0 else S > 0
    # A map of rank 0 has no factors; one zero column stands for it.
    keep[0] = True
    U, S, Vh = U[:, keep], S[keep], Vh[keep]
    gain = torch.where(S > 0, S / (S.square() + lam), 0.0)
    up = (Y.T @ U) * gain
    rank = int((S > 0).sum())
    notes = (f"{reason}; solved by SVD, rank {rank} of {min(X.shape)}",)
    # The smallest singular value of X is 0 where it was not kept.
    last = S[-1].square() if rank == min(X.shape) or lam == 0 else 0.0
    rcond = float((last + lam) / (S[0].square() + lam)) if rank else 0.0
    if X.shape[0] < X.shape[1]:
        return Solution(up, Vh, "svd", rcond, notes)
    return Solution(up @ Vh, None, "svd", rcond, notes)


def reciprocal_condition(lower: Tensor) -> float:
    """Smallest singular value over largest, the first by inverse iteration (it approaches the true one from above)."""
    if not bool(lower.diagonal().all()):
        return 0.0
    v = alternating(lower)
    growth = v.norm()
    for _ in range(STEPS):
        # Not cholesky_solve, which copies the factor for every column that it is given.
        v = torch.linalg.solve_triangular(lower, v / v.norm(), upper=False)
        v = torch.linalg.solve_triangular(lower.T, v, upper=True)
        growth = v.norm()
    return float(growth.rsqrt()) / _largest(lower)


def _largest(matrix: Tensor) -> float:
    """Largest singular value, by power iteration (it approaches the true one from below)."""
    v = torch.ones_like(matrix[0])
    growth = v.norm()
    for _ in range(STEPS):
        v = matrix.mv(matrix.T.mv(v / v.norm()))
        growth = v.norm()
    return float(growth.sqrt())


def alternating(like: Tensor) -> Tensor:
    """``[n, 1]``: alternating, slowly growing; far from orthogonal to the smallest eigenvector of any usual matrix."""
    n = len(like)
    v = torch.arange(n, dtype=like.dtype, device=like.device).div_(n).add_(1)
    v[1::2] *= -1
    return v.unsqueeze(-1)
