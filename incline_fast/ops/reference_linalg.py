"""Cholesky in plain PyTorch, column by column: the definition that the blocked factorisation is checked against.

A = L L^T,      l_jj = sqrt(a_jj - sum_k l_jk^2),      l_ij = (a_ij - sum_k l_ik l_jk) / l_jj      (k < j < i)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cholesky_ex", "cholesky_inverse_diagonal", "cholesky_solve", "triangular_inverse"]


def cholesky_ex(A: Tensor) -> tuple[Tensor, Tensor]:
    """``(L, info)`` of ``[..., n, n]``; only the lower triangle is read.

    Returns:
        L with zeros above the diagonal; int32 info ``[...]``: 0, or the 1-based index of the first pivot ``l_jj^2``
        that is not a positive finite number. L is unspecified where info is not 0.
    """
    L = torch.zeros_like(A, memory_format=torch.contiguous_format)
    info = torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)
    for j in range(A.shape[-1]):
        column = A[..., j:, j] - (L[..., j:, :j] @ L[..., j, :j].unsqueeze(-1)).squeeze(-1)
        pivot = column[..., 0]
        bad = ~((pivot > 0) & pivot.isfinite())
        info = torch.where((info == 0) & bad, j + 1, info).to(torch.int32)
        root = pivot.sqrt()
        L[..., j:, j] = column / root.unsqueeze(-1)
        L[..., j, j] = root
    return L, info


def triangular_inverse(L: Tensor) -> Tensor:
    """``L^-1`` of lower triangular ``[..., n, n]``, row by row: ``x_i = (e_i - sum_k l_ik x_k) / l_ii``."""
    inverse = torch.zeros_like(L, memory_format=torch.contiguous_format)
    for i in range(L.shape[-1]):
        row = -(L[..., i, :i].unsqueeze(-2) @ inverse[..., :i, :]).squeeze(-2)
        row[..., i] += 1
        inverse[..., i, :] = row / L[..., i, i].unsqueeze(-1)
    return inverse


def cholesky_solve(B: Tensor, L: Tensor) -> Tensor:
    """``X`` of ``L L^T X = B``, ``[..., n, k]``."""
    inverse = triangular_inverse(L)
    return inverse.mT @ (inverse @ B)


def cholesky_inverse_diagonal(L: Tensor) -> Tensor:
    """Diagonal of ``(L L^T)^-1``, ``[..., n]``: the squared norms of the columns of ``L^-1``."""
    return triangular_inverse(L).square().sum(-2)
