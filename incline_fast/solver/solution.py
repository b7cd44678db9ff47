"""What a least-squares solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Solution", "SolvePath"]

SolvePath = Literal["dual", "primal", "qr", "svd", "eigh"]


@dataclass(frozen=True)
class Solution:
    """W of ``W^T = argmin ||X W^T - Y||^2 + lam ||W||^2``, dense or as ``up @ down``.

    Attributes:
        up: fp64 ``[d_out, r]``, or W itself ``[d_out, d_in]`` when ``down`` is None.
        down: fp64 ``[r, d_in]`` or None.
        path: how it was solved.
        rcond: estimated reciprocal condition of the system that was solved, in the 2-norm: of the Gram matrix plus lam
            scaled to a unit diagonal for Cholesky; the smallest kept singular value squared over the largest squared,
            both plus lam, otherwise.
        notes: why, if what was tried first was not used.
    """

    up: Tensor
    down: Tensor | None
    path: SolvePath
    rcond: float
    notes: tuple[str, ...] = ()
