"""Ridge-type least squares in fp64: Cholesky of the smaller Gram matrix, checked, or the SVD where that is not safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Solution", "SolvePath", "solve"]

SolvePath = Literal["dual", "primal", "svd"]

_EPS = torch.finfo(torch.float64).eps
# A Gram matrix has the square of the data's condition number. Up to this estimate Cholesky leaves about 8 of fp64's 16
# digits, as many as the fp32 result can hold; above it the SVD, which works on the data itself, is used and reported.
_MAX_CONDITION = 1e8
_MAX_RESIDUAL = 1e-8


@dataclass(frozen=True)
class Solution:
    """W of ``W^T = argmin ||X W^T - Y||^2 + lam ||W||^2``, dense or as ``up @ down``.

    Attributes:
        up: fp64 ``[d_out, r]``, or W itself ``[d_out, d_in]`` when ``down`` is None.
        down: fp64 ``[r, d_in]`` or None.
        path: how it was solved.
        notes: why, if Cholesky was not used.
    """

    up: Tensor
    down: Tensor | None
    path: SolvePath
    notes: tuple[str, ...] = ()


def solve(X: Tensor, Y: Tensor, lam: float) -> Solution:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]`` and an absolute ``lam >= 0``.

    * n < d_in (dual): ``X X^T + lam I = L L^T``, ``down = L^-1 X``, ``up = (L^-1 Y)^T``. Splitting the inverse between
      the factors keeps the rows of ``down`` nearly orthonormal (its singular values are at most 1), so that the factors
      survive the rounding to fp32, where the product of ``Y^T (L L^T)^-1`` and X would cancel.
    * n >= d_in (primal): ``X^T X + lam I = L L^T``, ``W = (L^-T L^-1 X^T Y)^T``.
    * If a pivot is not positive, the estimated condition exceeds 1e8 or the residual is not small:
      ``X = U S V^T``, ``W = Y^T U S / (S^2 + lam) V^T``. For lam = 0 singular values up to ``eps max(n, d_in) S_1``
      count as zero, which is the rule of ``numpy.linalg.lstsq`` and gives its minimum-norm solution.
    """
    attempt = _dual(X, Y, lam) if X.shape[0] < X.shape[1] else _primal(X, Y, lam)
    return attempt if isinstance(attempt, Solution) else _svd(X, Y, lam, attempt)


def _dual(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    gram = _plus_diagonal(X @ X.T, lam)
    factor = _cholesky(gram)
    if isinstance(factor, str):
        return factor
    down = torch.linalg.solve_triangular(factor, X, upper=False)
    half = torch.linalg.solve_triangular(factor, Y, upper=False)
    dual = torch.linalg.solve_triangular(factor.T, half, upper=True)
    return _residual(gram, dual, Y) or Solution(half.T, down, "dual")


def _primal(X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    gram = _plus_diagonal(X.T @ X, lam)
    factor = _cholesky(gram)
    if isinstance(factor, str):
        return factor
    moment = X.T @ Y
    weight = torch.cholesky_solve(moment, factor)
    return _residual(gram, weight, moment) or Solution(weight.T, None, "primal")


def _svd(X: Tensor, Y: Tensor, lam: float, reason: str) -> Solution:
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    keep = _EPS * max(X.shape) * S[0] < S if lam == 0 else S > 0
    # A map of rank 0 has no factors; one zero column stands for it.
    keep[0] = True
    U, S, Vh = U[:, keep], S[keep], Vh[keep]
    gain = torch.where(S > 0, S / (S.square() + lam), 0.0)
    up = (Y.T @ U) * gain
    notes = (f"{reason}; solved by SVD, rank {int((S > 0).sum())} of {min(X.shape)}",)
    return Solution(up, Vh, "svd", notes) if X.shape[0] < X.shape[1] else Solution(up @ Vh, None, "svd", notes)


def _plus_diagonal(gram: Tensor, lam: float) -> Tensor:
    gram.diagonal().add_(lam)
    return gram


def _cholesky(gram: Tensor) -> Tensor | str:
    """Lower factor, or the reason why it must not be used."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        return f"Cholesky: pivot {int(info)} of {len(gram)} is not positive"
    condition = _condition(gram, factor)
    # Written so that NaN is refused as well.
    return factor if condition <= _MAX_CONDITION else f"Cholesky: condition about {condition:.0e}"


def _condition(gram: Tensor, factor: Tensor) -> float:
    """Estimate the condition of the gram matrix scaled to a unit diagonal, which is what limits Cholesky.

    The norm of the inverse by five steps of inverse iteration (it approaches the true norm from below), n^2 each.
    """
    scale = gram.diagonal().sqrt()
    size = torch.linalg.matrix_norm(gram / scale / scale.unsqueeze(-1))
    n = len(gram)
    # Alternating, slowly growing: far from orthogonal to the smallest eigenvector of any usual matrix, and fixed.
    v = torch.arange(n, dtype=gram.dtype, device=gram.device).div_(n).add_(1)
    v[1::2] *= -1
    growth = v.norm()
    for _ in range(5):
        v = scale * torch.cholesky_solve((scale * (v / v.norm())).unsqueeze(-1), factor).squeeze(-1)
        growth = v.norm()
    return float(size * growth)


def _residual(gram: Tensor, solution: Tensor, right: Tensor) -> str:
    """Reason for not accepting ``gram @ solution = right``, empty if the relative residual is small."""
    residual = float((gram @ solution - right).norm())
    size = float(right.norm())
    return "" if residual <= _MAX_RESIDUAL * size else f"Cholesky: relative residual {residual / size:.0e}"
