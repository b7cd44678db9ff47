"""Least squares by orthogonal decompositions of the data, whose condition is not squared: QR, or SVD for unclear ranks.

With ``A = X^T`` for n < d and ``A = X`` otherwise, and the rows of ``sqrt(lam) I`` appended when lam > 0,

    A = Q R,      n < d:   down = R^-T X,   up = (R^-T Y)^T           n >= d:   W^T = R^-1 Q^T Y

In the first case ``R^-T X`` is ``Q^T`` (the columns that belong to X), and Q is what is formed: it costs as much and is
orthonormal whatever the condition. QR without pivoting does not find the rank. But if the estimated smallest singular
value of R is far above the bound below which ``lstsq`` counts one as zero, the rank is full. Otherwise the SVD is
taken. QR with pivoting, ``gelsy`` of ``torch.linalg.lstsq``, would be faster, but up to torch 2.13 it gives LAPACK
pivots that it has not set (pytorch/pytorch#187411), so that its rank is sometimes wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from incline_fast.solver.solution import Solution

__all__ = ["STEPS", "alternating", "corrected", "open_rank", "reciprocal_condition", "solve_by_qr", "solve_by_svd"]

_EPS = torch.finfo(torch.float64).eps
# How many times the bound for zero the estimated smallest singular value must be for the rank to count as full: more
# than the estimate can be wrong by (in the tests up to 30 times).
_MARGIN = 1e3
# A matrix of at most this norm has a square that is below the rounding of fp64.
_SQUARE_IS_ROUNDING = 1e-8
# Steps of the inverse iteration: with three the estimate is as good as with five in the tests.
STEPS = 3


def solve_by_qr(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]``, ``lam >= 0``; a reason instead if the rank may not be full."""
    n, d = X.shape
    A = X.T if n < d else X
    if lam > 0:
        A = torch.cat([A, torch.eye(A.shape[1], dtype=A.dtype, device=A.device).mul_(lam**0.5)])
    packed, tau = torch.geqrf(A)
    R = packed[: A.shape[1]].triu()
    rcond = reciprocal_condition(R)
    if reason := open_rank(rcond, max(n, d)):
        return reason
    if n < d:
        down = torch.linalg.householder_product(packed, tau)[:d].T
        up = torch.linalg.solve_triangular(R.T, Y, upper=False)
        return Solution(up.T, down, "qr", rcond**2)
    right = Y if lam == 0 else torch.cat([Y, Y.new_zeros(d, Y.shape[1])])
    rotated = torch.ormqr(packed, tau, right, transpose=True)[:d]
    return Solution(torch.linalg.solve_triangular(R, rotated, upper=True).T, None, "qr", rcond**2)


def corrected(up: Tensor, down: Tensor) -> Tensor:
    """``(down down^T)^-1 up`` for ``up [n, d_out]`` and ``down [n, d_in]``.

    With ``L down = X`` and ``L up = Y``, L a Cholesky factor, it makes ``up^T down`` the minimum-norm solution. The
    rows of down are orthonormal but for L's errors, so that a few terms of a Neumann series give the inverse. Without
    this, errors of predictions grow in proportion to the largest dimension of X.
    """
    missing = down @ down.T
    missing.diagonal().sub_(1)
    first = torch.addmm(up, missing, up, alpha=-1)
    return first if float(missing.norm()) <= _SQUARE_IS_ROUNDING else torch.addmm(up, missing, first, alpha=-1)


def open_rank(rcond: float, size: int) -> str:
    """Why the rank may not be full, empty if it is; ``size`` is the larger dimension of the matrix."""
    # Written so that NaN is refused as well.
    return "" if rcond >= _MARGIN * _EPS * size else f"QR: smallest singular value about {rcond:.0e} of the largest"


def solve_by_svd(X: Tensor, Y: Tensor, lam: float, reason: str) -> Solution:
    """``W = Y^T U S / (S^2 + lam) V^T`` from ``X = U S V^T``; arguments as in :func:`solve_by_qr`.

    ``reason``, why nothing else was used, begins the solution's note.
    """
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


def reciprocal_condition(R: Tensor) -> float:
    """Smallest singular value over largest, the first by inverse iteration (it approaches the true one from above).

    Args:
        R: upper triangular.
    """
    if not bool(R.diagonal().all()):
        return 0.0
    v = alternating(R)
    growth = v.norm()
    for _ in range(STEPS):
        # Not cholesky_solve, which copies R for every column that it is given.
        v = torch.linalg.solve_triangular(R.T, v / v.norm(), upper=False)
        v = torch.linalg.solve_triangular(R, v, upper=True)
        growth = v.norm()
    return float(growth.rsqrt()) / _largest(R)


def _largest(R: Tensor) -> float:
    """Largest singular value, by power iteration (it approaches the true one from below)."""
    v = torch.ones_like(R[0])
    growth = v.norm()
    for _ in range(STEPS):
        v = R.T.mv(R.mv(v / v.norm()))
        growth = v.norm()
    return float(growth.sqrt())


def alternating(like: Tensor) -> Tensor:
    """``[n, 1]`` with alternating signs and slowly growing magnitudes, the start of an inverse iteration.

    It is far from orthogonal to the last singular vector of usual matrices. ``like`` is ``[n, ...]``.
    """
    n = len(like)
    v = torch.arange(n, dtype=like.dtype, device=like.device).div_(n).add_(1)
    v[1::2] *= -1
    return v.unsqueeze(-1)
