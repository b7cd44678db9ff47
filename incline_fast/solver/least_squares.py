"""Least squares in fp64: Cholesky of the smaller Gram matrix, checked, or a decomposition where that is unsafe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from incline_fast.solver.linalg import cholesky_ex

__all__ = [
    "BLOCK",
    "Form",
    "OnBreakdown",
    "RidgeBreakdownError",
    "Solution",
    "SolvePath",
    "add_gram",
    "gram",
    "is_dual",
    "solve",
    "solve_moments",
    "symmetric",
]

SolvePath = Literal["dual", "primal", "svd", "eigh"]
Form = Literal["auto", "dual", "primal"]
OnBreakdown = Literal["raise", "fp64", "eigh"]

_EPS = torch.finfo(torch.float64).eps
# A Gram matrix has the square of the data's condition number. Up to this estimate Cholesky leaves about 8 of fp64's 16
# digits, as many as the fp32 result can hold; above it the data themselves are decomposed, which is reported.
_MAX_CONDITION = 1e8
_MAX_RESIDUAL = 1e-8
# Columns of a symmetric or triangular product that are computed at once: less of the other half is computed in vain
# with a smaller block, and GEMM is slower.
BLOCK = 256


class RidgeBreakdownError(ArithmeticError):
    """Cholesky cannot solve this problem and ``on_breakdown`` forbids another way; the message says what happened."""


@dataclass(frozen=True)
class Solution:
    """W of ``W^T = argmin ||X W^T - Y||^2 + lam ||W||^2``, dense or as ``up @ down``.

    Attributes:
        up: fp64 ``[d_out, r]``, or W itself ``[d_out, d_in]`` when ``down`` is None.
        down: fp64 ``[r, d_in]`` or None.
        path: how it was solved.
        rcond: estimated reciprocal condition of the system that was solved, in the 2-norm: of the Gram matrix plus lam
            scaled to a unit diagonal for Cholesky; smallest over largest kept eigenvalue plus lam otherwise.
        notes: why, if Cholesky was not used.
    """

    up: Tensor
    down: Tensor | None
    path: SolvePath
    rcond: float
    notes: tuple[str, ...] = ()


def solve(
    X: Tensor,
    Y: Tensor,
    lam: float,
    *,
    form: Form = "auto",
    on_breakdown: OnBreakdown = "fp64",
    kernel: Tensor | None = None,
) -> Solution:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]`` and an absolute ``lam >= 0``.

    ``kernel`` is the Gram matrix of the form that is taken, where it is known already.

    * dual (``"auto"``: n < d_in): ``X X^T + lam I = L L^T``, ``down = L^-1 X``, ``up = (L^-1 Y)^T``. Splitting the
      inverse between the factors keeps the rows of ``down`` nearly orthonormal (its singular values are at most 1), so
      that the factors survive the rounding to fp32, where the product of ``Y^T (L L^T)^-1`` and X would cancel.
    * primal: ``X^T X + lam I = L L^T``, ``W = (L^-T L^-1 X^T Y)^T``.
    * If a pivot is not positive, the estimated condition exceeds 1e8 or the residual is not small, ``on_breakdown``:
      ``"raise"`` gives up; ``"fp64"`` decomposes the data, ``X = U S V^T``, ``W = Y^T U S / (S^2 + lam) V^T``, where
      for lam = 0 singular values up to ``eps max(n, d_in) S_1`` count as zero, which is the rule of
      ``numpy.linalg.lstsq`` and gives its minimum-norm solution; ``"eigh"`` decomposes the Gram matrix, which is
      cheaper and has half the digits: eigenvalues plus lam up to ``eps m`` of the largest (m rows) count as zero.

    Raises:
        RidgeBreakdownError: Cholesky broke down and ``on_breakdown`` is ``"raise"``.
    """
    dual = is_dual(X, form)
    kernel = gram(X if dual else X.T) if kernel is None else kernel.clone()
    kernel.diagonal().add_(lam)
    moment = Y if dual else X.T @ Y
    attempt = _dual(kernel, X, Y) if dual else _primal(kernel, moment)
    if isinstance(attempt, Solution):
        return attempt
    _forbid(attempt, on_breakdown)
    if on_breakdown == "fp64":
        return _svd(X, Y, lam, attempt)
    return _eigh(kernel, moment, attempt, X if dual else None)


def solve_moments(G: Tensor, M: Tensor, lam: float, *, on_breakdown: OnBreakdown = "eigh") -> Solution:
    """The primal solution from ``G = X^T X`` and ``M = X^T Y`` alone, fp64; see :func:`solve`.

    Raises:
        RidgeBreakdownError: Cholesky broke down and ``on_breakdown`` is ``"raise"``, or ``"fp64"``, which needs rows.
    """
    kernel = G.clone()
    kernel.diagonal().add_(lam)
    attempt = _primal(kernel, M)
    if isinstance(attempt, Solution):
        return attempt
    if on_breakdown == "fp64":
        attempt += "; the rows that 'fp64' would decompose are not kept"
    _forbid(attempt, "raise" if on_breakdown == "fp64" else on_breakdown)
    return _eigh(kernel, M, attempt, None)


def is_dual(X: Tensor, form: Form) -> bool:
    """Whether this form solves with the n x n Gram matrix."""
    return X.shape[0] < X.shape[1] if form == "auto" else form == "dual"


def gram(X: Tensor) -> Tensor:
    """``X X^T``, exactly symmetric."""
    return symmetric(add_gram(X.new_zeros(len(X), len(X)), X))


def add_gram(lower: Tensor, X: Tensor) -> Tensor:
    """Add ``X X^T`` to ``lower`` in place, block by block on and below the diagonal; what is above is undefined."""
    for start in range(0, len(X), BLOCK):
        end = min(start + BLOCK, len(X))
        lower[start:end, :end].addmm_(X[start:end], X[:end].T)
    return lower


def symmetric(lower: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle."""
    return lower.tril() + lower.tril(-1).T


def _forbid(reason: str, on_breakdown: OnBreakdown) -> None:
    if on_breakdown == "raise":
        allowed = ", ".join(get_args(OnBreakdown)[1:])
        raise RidgeBreakdownError(f"{reason}; raise lam, or let on_breakdown be another of {allowed}")


def _dual(kernel: Tensor, X: Tensor, Y: Tensor) -> Solution | str:
    factor = _cholesky(kernel)
    if isinstance(factor, str):
        return factor
    inverse, rcond = factor
    probe = _probe(kernel)
    reason = _residual(kernel @ (inverse.T @ (inverse @ probe)) - probe, probe)
    return reason or Solution(_lower_times(inverse, Y).T, _lower_times(inverse, X), "dual", rcond)


def _primal(kernel: Tensor, moment: Tensor) -> Solution | str:
    factor = _cholesky(kernel)
    if isinstance(factor, str):
        return factor
    inverse, rcond = factor
    weight = inverse.T @ (inverse @ moment)
    # Not refined: a residual in the same precision gains no digit (measured on NIST's sets).
    reason = _residual(kernel @ weight - moment, moment)
    return reason or Solution(weight.T, None, "primal", rcond)


def _svd(X: Tensor, Y: Tensor, lam: float, reason: str) -> Solution:
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


def _eigh(kernel: Tensor, moment: Tensor, reason: str, X: Tensor | None) -> Solution:
    """From ``kernel`` (lam included) and its right-hand side; X is given in the dual form, whose factors are kept."""
    S, U = torch.linalg.eigh(kernel)
    # What is below is rounding, of either sign; a lam so small cannot be told from 0.
    keep = _EPS * len(S) * S[-1] < S
    keep[-1] = True
    S, U = S[keep], U[:, keep]
    rank = int((S > 0).sum())
    notes = (f"{reason}; solved by eigenvalues of the Gram matrix, rank {rank} of {len(kernel)}",)
    rcond = float(S[0] / S[-1]) if rank else 0.0
    half = U * torch.where(S > 0, S.rsqrt(), 0.0)
    if X is None:
        return Solution((half @ (half.T @ moment)).T, None, "eigh", rcond, notes)
    return Solution((half.T @ moment).T, half.T @ X, "eigh", rcond, notes)


def _cholesky(kernel: Tensor) -> tuple[Tensor, float] | str:
    """Inverse of the lower factor and the estimated reciprocal condition, or the reason why it must not be used.

    The inverse turns every solve into a product, which a GEMM does at twice the speed of a triangular solve. Its error
    grows with the condition of the factor, the square root of the one that is checked here.
    """
    factor, info = cholesky_ex(kernel)
    if int(info):
        return f"Cholesky: pivot {int(info)} of {len(kernel)} is not positive"
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    condition = _condition(kernel, inverse)
    # Written so that NaN is refused as well.
    return (inverse, 1 / condition) if condition <= _MAX_CONDITION else f"Cholesky: condition about {condition:.0e}"


def _lower_times(lower: Tensor, right: Tensor) -> Tensor:
    """``lower @ right`` without the zeros above the diagonal blocks."""
    product = right.new_empty(len(lower), right.shape[1])
    for start in range(0, len(lower), BLOCK):
        end = min(start + BLOCK, len(lower))
        torch.mm(lower[start:end, :end], right[:end], out=product[start:end])
    return product


def _condition(kernel: Tensor, inverse: Tensor) -> float:
    """Estimate the condition of the matrix scaled to a unit diagonal, which is what limits Cholesky.

    Args:
        kernel: the matrix.
        inverse: the inverse of its lower factor. The norm of the matrix's inverse is found by five steps of inverse
            iteration (it approaches the true norm from below), n^2 each.
    """
    scale = kernel.diagonal().sqrt()
    size = torch.linalg.matrix_norm(kernel / scale / scale.unsqueeze(-1))
    n = len(kernel)
    # Alternating, slowly growing: far from orthogonal to the smallest eigenvector of any usual matrix, and fixed.
    v = torch.arange(n, dtype=kernel.dtype, device=kernel.device).div_(n).add_(1)
    v[1::2] *= -1
    growth = v.norm()
    for _ in range(5):
        v = scale * (inverse.T @ (inverse @ (scale * (v / v.norm()))))
        growth = v.norm()
    return float(size * growth)


def _probe(kernel: Tensor) -> Tensor:
    """Four fixed random right-hand sides ``[n, 4]``: a wrong factor leaves a residual in them with probability 1."""
    probe = torch.randn(len(kernel), 4, dtype=kernel.dtype, device="cpu", generator=torch.Generator().manual_seed(0))
    # In units of the matrix's own scale, so that a massive row does not hide the others.
    return probe.to(kernel.device) * kernel.diagonal().sqrt().unsqueeze(-1)


def _residual(residual: Tensor, right: Tensor) -> str:
    """Reason for not accepting a solution with this residual, empty if it is small beside the right-hand side."""
    error, size = float(residual.norm()), float(right.norm())
    return "" if error <= _MAX_RESIDUAL * size else f"Cholesky: relative residual {error / size:.0e}"
