"""Least squares in fp64: Cholesky of the smaller Gram matrix, checked, or QR or SVD of the data where it is unsafe."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from incline_fast.solver.linalg import cholesky_ex, cholesky_solve
from incline_fast.solver.orthogonal import (
    STEPS,
    alternating,
    corrected,
    open_rank,
    reciprocal_condition,
    solve_by_qr,
    solve_by_svd,
)
from incline_fast.solver.solution import Solution

__all__ = [
    "BLOCK",
    "OnBreakdown",
    "RidgeBreakdownError",
    "SolveForm",
    "add_gram",
    "gram",
    "is_dual",
    "solve",
    "solve_moments",
    "starts_with_qr",
    "symmetric",
]

SolveForm = Literal["auto", "dual", "primal"]
OnBreakdown = Literal["raise", "fp64", "eigh"]

_EPS = torch.finfo(torch.float64).eps
# A Gram matrix has the square of the data's condition number. Up to this estimate Cholesky leaves about 8 of fp64's 16
# digits, as many as the fp32 result can hold; above it the data themselves are decomposed, which is reported.
_MAX_CONDITION = 1e8
_MAX_RESIDUAL = 1e-8
# Up to this distance from the identity a Gram matrix has a condition below 1.3: no digit is lost to its Cholesky.
_MAX_MISSING = 0.1
# Rows per feature from which Cholesky QR was measured to be faster than Householder's, on the processor where that is
# latest (AMD EPYC; on an Intel Xeon from 2).
_TALL = 4
# Up to so many rows or features QR costs next to nothing.
_SMALL = 64
# Columns of a symmetric product that are computed at once. A smaller block computes less of the other half, which is
# thrown away, but its GEMM is slower.
BLOCK = 128


class RidgeBreakdownError(ArithmeticError):
    """Cholesky cannot solve this problem and ``on_breakdown`` forbids another way; the message says what happened."""


def solve(
    X: Tensor,
    Y: Tensor,
    lam: float,
    *,
    form: SolveForm = "auto",
    on_breakdown: OnBreakdown = "fp64",
    kernel: Tensor | None = None,
) -> Solution:
    """Solve for fp64 ``X [n, d_in]``, ``Y [n, d_out]`` and an absolute ``lam >= 0``.

    ``kernel`` is the Gram matrix of the form that is taken, where it is known already; it is overwritten.

    * dual (``"auto"``: n < d_in): ``X X^T + lam I = L L^T``, ``down = L^-1 X``, ``up = (L^-1 Y)^T``. Splitting the
      inverse between the factors keeps the rows of ``down`` nearly orthonormal (its singular values are at most 1), so
      that the factors survive the rounding to fp32, where the product of ``Y^T (L L^T)^-1`` and X would cancel. For
      lam = 0 ``up`` is corrected by what the rows of ``down`` lack of being orthonormal.
    * primal: ``X^T X + lam I = L L^T``, ``W = (L^-T L^-1 X^T Y)^T``.
    * If a pivot is not positive, the estimated condition exceeds 1e8 or the residual is not small, ``on_breakdown``:
      ``"raise"`` gives up; ``"fp64"`` decomposes the data by QR (for lam = 0 and ``n >= 4 d_in`` by two rounds of
      Cholesky QR, if they are accurate) or, where the rank may not be full, by SVD
      (:mod:`incline_fast.solver.orthogonal`), where for lam = 0 singular values up to ``eps max(n, d_in) S_1`` count as
      zero, which is the rule of
      ``numpy.linalg.lstsq`` and gives its minimum-norm solution; ``"eigh"`` decomposes the Gram matrix, which is
      cheaper and has half the digits: eigenvalues plus lam up to ``eps m`` of the largest (m rows) count as zero.
    * With lam = 0, ``"auto"`` and ``"fp64"``, QR is tried first where it costs about as much as Cholesky would, for
      ``d_in / 2 <= n < 4 d_in``, or little, up to 64 rows or features.

    Raises:
        RidgeBreakdownError: Cholesky broke down and ``on_breakdown`` is ``"raise"``.
    """
    if starts_with_qr(X, lam, form, on_breakdown):
        return _by_data(X, Y, lam, "")
    dual = is_dual(X, form)
    kernel = gram(X if dual else X.T) if kernel is None else kernel
    kernel.diagonal().add_(lam)
    factor, rcond, reason = _cholesky(kernel)
    attempt: Solution | str = reason
    if factor is not None and not reason:
        attempt = _dual(kernel, factor, rcond, X, Y, lam) if dual else _primal(kernel, factor, rcond, Y.T @ X)
    if isinstance(attempt, Solution):
        return attempt
    _forbid(attempt, on_breakdown)
    if on_breakdown == "eigh":
        return _eigh(kernel, Y if dual else X.T @ Y, attempt, X if dual else None)
    if factor is not None and lam == 0 and len(X) >= _TALL * X.shape[1]:
        solution = _by_cholesky_qr(X, Y, factor)
        if isinstance(solution, Solution):
            return replace(solution, notes=(f"{attempt}; solved by QR",))
    return _by_data(X, Y, lam, attempt)


def starts_with_qr(X: Tensor, lam: float, form: SolveForm, on_breakdown: OnBreakdown) -> bool:
    """Whether QR of X is tried before Cholesky: it keeps more digits, where it costs about as much or very little."""
    n, d = X.shape
    cheap = min(n, d) <= _SMALL or (d <= 2 * n and n < _TALL * d)
    return lam == 0 and form == "auto" and on_breakdown == "fp64" and cheap


def _by_data(X: Tensor, Y: Tensor, lam: float, reason: str) -> Solution:
    """By QR, or by SVD if QR shows no full rank; ``reason``: why not by Cholesky, empty if that was not tried."""
    attempt = solve_by_qr(X, Y, lam)
    if isinstance(attempt, Solution):
        return replace(attempt, notes=(f"{reason}; solved by QR",)) if reason else attempt
    return solve_by_svd(X, Y, lam, "; ".join(part for part in (reason, attempt) if part))


def solve_moments(G: Tensor, M: Tensor, lam: float, *, on_breakdown: OnBreakdown = "eigh") -> Solution:
    """The primal solution from ``G = X^T X`` and ``M = X^T Y`` alone, fp64; see :func:`solve`.

    Raises:
        RidgeBreakdownError: Cholesky broke down and ``on_breakdown`` is ``"raise"``, or ``"fp64"``, which needs rows.
    """
    kernel = G.clone()
    kernel.diagonal().add_(lam)
    factor, rcond, reason = _cholesky(kernel)
    attempt: Solution | str = reason
    if factor is not None and not reason:
        attempt = _primal(kernel, factor, rcond, M.T)
    if isinstance(attempt, Solution):
        return attempt
    if on_breakdown == "fp64":
        attempt += "; the rows that 'fp64' would decompose are not kept"
    _forbid(attempt, "raise" if on_breakdown == "fp64" else on_breakdown)
    return _eigh(kernel, M, attempt, None)


def is_dual(X: Tensor, form: SolveForm) -> bool:
    """Whether this form solves with the n x n Gram matrix."""
    return X.shape[0] < X.shape[1] if form == "auto" else form == "dual"


def gram(X: Tensor) -> Tensor:
    """``X X^T``; of the half above the diagonal, what lies outside the diagonal's blocks is copied from below."""
    product = X.new_empty(len(X), len(X))
    for start in range(0, len(X), BLOCK):
        end = min(start + BLOCK, len(X))
        torch.mm(X[start:end], X[:end].T, out=product[start:end, :end])
        product[:start, start:end] = product[start:end, :start].T
    return product


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
    """Raise RidgeBreakdownError, with the reason why Cholesky was not used, if that is what was asked for."""
    if on_breakdown == "raise":
        allowed = ", ".join(get_args(OnBreakdown)[1:])
        raise RidgeBreakdownError(f"{reason}; raise lam, or let on_breakdown be another of {allowed}")


def _dual(kernel: Tensor, factor: Tensor, rcond: float, X: Tensor, Y: Tensor, lam: float) -> Solution | str:
    """The solution by ``kernel = X X^T + lam I [n, n]`` and its Cholesky factor, or why it is not accurate."""
    probe = _probe(kernel)
    reason = _residual(kernel @ cholesky_solve(probe, factor) - probe, probe)
    if reason:
        return reason
    down, up = (torch.linalg.solve_triangular(factor, side, upper=False) for side in (X, Y))
    return Solution((corrected(up, down) if lam == 0 else up).T, down, "dual", rcond)


def _primal(kernel: Tensor, factor: Tensor, rcond: float, moment: Tensor) -> Solution | str:
    """The same by ``kernel = X^T X + lam I [d_in, d_in]``; ``moment`` is ``Y^T X [d_out, d_in]``."""
    half = torch.linalg.solve_triangular(factor.T, moment, upper=True, left=False)
    weight = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    # Not refined: a residual in the same precision gains no digit (measured on NIST's sets). It is looked at in a few
    # random combinations of the targets, which a wrong row of the solution changes with probability 1.
    mix = _random(len(moment), moment)
    right = moment.T @ mix
    reason = _residual(kernel @ (weight.T @ mix) - right, right)
    return reason or Solution(weight, None, "primal", rcond)


def _by_cholesky_qr(X: Tensor, Y: Tensor, factor: Tensor) -> Solution | str:
    """Solve by a QR of a tall X made from the Cholesky factor L of its Gram matrix, which may be inaccurate.

    ``Q_1 = X L^-T`` is orthonormal up to ``eps cond(X)^2``; the Gram matrix of Q_1 shows how much is missing and, if it
    is near the identity, its own factor makes the QR accurate (CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya
    2015). If not, the reason is returned. All steps are products of matrices: with many rows much faster than
    reflections, with few slower, because there are more multiplications.
    """
    Q = torch.linalg.solve_triangular(factor, X.T, upper=False)
    overlap = gram(Q)
    second, info = cholesky_ex(overlap)
    overlap.diagonal().sub_(1)
    missing = float(overlap.norm())
    if int(info) or not missing <= _MAX_MISSING:
        return f"Cholesky QR: {missing:.0e} is missing to an orthonormal basis"
    rcond = reciprocal_condition(factor.T)
    if reason := open_rank(rcond, len(X)):
        return reason
    half = cholesky_solve(Q @ Y, second)
    return Solution(torch.linalg.solve_triangular(factor.T, half, upper=True).T, None, "qr", rcond**2)


def _eigh(kernel: Tensor, moment: Tensor, reason: str, X: Tensor | None) -> Solution:
    """Solve by eigenvalues of ``kernel [m, m]`` (lam included).

    ``moment [m, d_out]`` is its right-hand side: Y in the dual form, where X is given and the factors are kept, and
    ``X^T Y`` in the primal one. ``reason`` is why not by Cholesky.
    """
    S, U = torch.linalg.eigh(kernel)
    # Eigenvalues below this bound are rounding errors, of either sign; a lam below it makes no difference.
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


def _cholesky(kernel: Tensor) -> tuple[Tensor | None, float, str]:
    """The lower factor if there is one, its estimated reciprocal condition, and the reason why not to solve with it."""
    factor, info = cholesky_ex(kernel)
    if int(info):
        return None, 0.0, f"Cholesky: pivot {int(info)} of {len(kernel)} is not positive"
    condition = _condition(kernel, factor)
    # Written so that NaN is refused as well.
    return factor, 1 / condition, "" if condition <= _MAX_CONDITION else f"Cholesky: condition about {condition:.0e}"


def _condition(kernel: Tensor, factor: Tensor) -> float:
    """Estimate the condition of the matrix scaled to a unit diagonal, which is what limits Cholesky.

    Args:
        kernel: the matrix.
        factor: its lower factor. The norm of the matrix's inverse is found by a few steps of inverse iteration (it
            approaches the true norm from below), n^2 each.
    """
    scale = kernel.diagonal().sqrt()
    # Of the scaled matrix, Frobenius; rows are scaled after their squares were summed.
    size = kernel.div(scale).square_().sum(1).div(scale).div(scale).sum().sqrt()
    scale = scale.unsqueeze(-1)
    v = alternating(kernel)
    growth = v.norm()
    for _ in range(STEPS):
        # Not cholesky_solve, which copies the factor for every column that it is given.
        v = torch.linalg.solve_triangular(factor, scale * (v / v.norm()), upper=False)
        v = scale * torch.linalg.solve_triangular(factor.T, v, upper=True)
        growth = v.norm()
    return float(size * growth)


def _probe(kernel: Tensor) -> Tensor:
    """Four fixed random right-hand sides ``[n, 4]``: a wrong factor leaves a residual in them with probability 1."""
    # In units of the matrix's own scale, so that a massive row does not hide the others.
    return _random(len(kernel), kernel) * kernel.diagonal().sqrt().unsqueeze(-1)


def _random(rows: int, like: Tensor) -> Tensor:
    probe = torch.randn(rows, 4, dtype=like.dtype, device="cpu", generator=torch.Generator().manual_seed(0))
    return probe.to(like.device)


def _residual(residual: Tensor, right: Tensor) -> str:
    """Reason for not accepting a solution with this residual, empty if it is small beside the right-hand side.

    Both are matrices of one shape; their Frobenius norms are compared.
    """
    error, size = float(residual.norm()), float(right.norm())
    return "" if error <= _MAX_RESIDUAL * size else f"Cholesky: relative residual {error / size:.0e}"
