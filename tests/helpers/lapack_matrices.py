"""Symmetric test matrices with known properties, of the kinds that LAPACK's acceptance tests prescribe for Cholesky.

Written from the description of the tests in LAPACK Working Note 41 (Blackford and Dongarra, "Installation Guide for
LAPACK"), table of test matrices for symmetric positive definite routines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = (0, 1, 2, 3, 5, 10, 50, 129, 515)
THRESHOLD = 30.0


@dataclass(frozen=True)
class Kind:
    """One matrix type.

    Attributes:
        name: as a test id.
        condition: of the spectrum, as a function of the unit roundoff.
        norm: largest eigenvalue, as a function of dtype.
        zeroed: which row and column is zero: "first", "middle" (index n/2, counted from 0), "last" or None.
        diagonal: whether the matrix is diagonal.
    """

    name: str
    condition: str = "two"
    norm: str = "one"
    zeroed: str | None = None
    diagonal: bool = False


KINDS = (
    Kind("diagonal", diagonal=True),
    Kind("random"),
    Kind("zero_first", zeroed="first"),
    Kind("zero_last", zeroed="last"),
    Kind("zero_middle", zeroed="middle"),
    Kind("ill_conditioned", condition="root"),
    Kind("nearly_singular", condition="full"),
    Kind("near_underflow", norm="small"),
    Kind("near_overflow", norm="large"),
)


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff, half the distance from 1 to the next number: the eps of the test ratios."""
    return torch.finfo(dtype).eps / 2


def zeroed_index(kind: Kind, n: int) -> int | None:
    """Index, from 0, of the row and column of zeros."""
    return {None: None, "first": 0, "middle": n // 2, "last": n - 1}[kind.zeroed]


def matrix(kind: Kind, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """``Q diag(s) Q^T`` with Q a random orthogonal matrix and s falling geometrically from norm to norm / condition."""
    generator = torch.Generator().manual_seed(seed)
    # Built in fp64 and rounded once; in fp32 that costs a relative error of eps, as a matrix given in fp32 would have.
    s = _norm(kind, dtype) * _spectrum(kind, n, dtype)
    if kind.diagonal:
        A = torch.diag(s[torch.randperm(n, generator=generator)])
    else:
        Q, R = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal().sign()  # uniformly distributed over the orthogonal group
        A = Q * s @ Q.T
    A = ((A + A.T) / 2).to(dtype)
    zero = zeroed_index(kind, n)
    if zero is not None and n > 0:
        A[zero] = 0
        A[:, zero] = 0
    return A


def _norm(kind: Kind, dtype: torch.dtype) -> float:
    small = 0.25 * torch.finfo(dtype).tiny / roundoff(dtype)
    return {"one": 1.0, "small": small, "large": 1 / small}[kind.norm]


def _spectrum(kind: Kind, n: int, dtype: torch.dtype) -> Tensor:
    full = 0.1 / roundoff(dtype)
    condition = {"two": 2.0, "root": full**0.5, "full": full}[kind.condition]
    exponents = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    return condition**-exponents


def factor_ratio(L: Tensor, A: Tensor) -> float:
    """``||L L^T - A||_1 / (n ||A||_1 eps)``."""
    L64, A64 = L.double(), A.double()
    return _one_norm(L64 @ L64.T - A64) / (len(A) * _one_norm(A64) * roundoff(A.dtype))


def solve_ratio(A: Tensor, X: Tensor, B: Tensor) -> float:
    """Largest ``||b - A x||_1 / (||A||_1 ||x||_1 eps)`` over the columns."""
    # Scaled so that the norms of matrices near the limits of fp64 do not overflow.
    scale = _one_norm(A.double())
    A64, X64, B64 = A.double() / scale, X.double(), B.double() / scale
    residual = (B64 - A64 @ X64).abs().sum(0)
    return float((residual / (X64.abs().sum(0) * roundoff(A.dtype))).max())


def _one_norm(A: Tensor) -> float:
    return float(A.abs().sum(0).max())
