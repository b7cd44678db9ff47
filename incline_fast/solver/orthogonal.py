"""Least squares by orthogonal decompositions of the data, whose condition is not squared: QR, and SVD where QR is open.

With ``A = X^T`` for n < d and ``A = X`` otherwise, below which ``sqrt(lam) I`` stands when lam > 0,

    A = Q R,      n < d:   down = R^-T X,   up = (R^-T Y)^T           n >= d:   W^T = R^-1 Q^T Y

Q of the first case is never formed: ``R^-T X`` are its rows up to ``eps cond(X)``, which :func:`corrected` makes up for
where lam = 0. QR without pivoting says nothing about a rank that is not full, but an estimate of
the smallest singular value of R says whether it is: far above the cut, below which lstsq counts a singular value as
zero. Everything else is left to the SVD. ``gelsy`` of ``torch.linalg.lstsq`` would be the way between, but up to torch
2.13 it hands LAPACK pivots that it has not set (pytorch/pytorch#187411), and its rank is then wrong at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from incline_fast.solver.reflections import reflect_
from incline_fast.solver.solution import Solution

__all__ = ["STEPS", "alternating", "corrected", "open_rank", "reciprocal_condition", "solve_by_qr", "solve_by_svd"]

_EPS = torch.finfo(torch.float64).eps
# How far above the cut the estimate of the smallest singular value must be for the rank to be full: more than it can be
# wrong (tests: 30).
_MARGIN = 1e3
_SQUARE_IS_ROUNDING = 1e-8
# Of the inverse iteration: with three the estimate is as good as with five in the tests.
STEPS = 3


def solve_by_qr(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]``, ``lam >= 0``; the reason where the rank may not be full."""
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
        down, up = (torch.linalg.solve_triangular(R.T, side, upper=False) for side in (X, Y))
        return Solution((corrected(up, down) if lam == 0 else up).T, down, "qr", rcond**2)
    right = Y.new_zeros(len(packed), Y.shape[1])
    right[:n] = Y
    rotated = reflect_(packed, tau, right)[:d]
    return Solution(torch.linalg.solve_triangular(R, rotated, upper=True).T, None, "qr", rcond**2)


def corrected(up: Tensor, down: Tensor) -> Tensor:
    """``(down down^T)^-1 up``: with ``L down = X`` and ``L up = Y`` the minimum norm, however inaccurate L is.

    The rows of down are orthonormal but for L's errors, so that a few terms of a Neumann series are the inverse.
    Without this, a massive dimension of X makes the errors of predictions larger by as much as it is larger.
    """
    missing = down @ down.T
    missing.diagonal().sub_(1)
    first = torch.addmm(up, missing, up, alpha=-1)
    return first if float(missing.norm()) <= _SQUARE_IS_ROUNDING else torch.addmm(up, missing, first, alpha=-1)


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
    """``[n, 1]``: alternating, slowly growing; far from orthogonal to the smallest eigenvector of any usual matrix."""
    n = len(like)
    v = torch.arange(n, dtype=like.dtype, device=like.device).div_(n).add_(1)
    v[1::2] *= -1
    return v.unsqueeze(-1)
