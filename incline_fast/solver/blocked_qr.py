"""Householder QR whose reflections are applied to right-hand sides in the same products as to the matrix.

A matrix is given by its columns, as rows of a tensor. With the b reflections of a block of columns,

    H_1 ... H_b = I - V T V^T,      T^-1 = strict upper triangle of V^T V + diag(1 / tau)

(Puglisi 1992), all that stands right of the block, right-hand sides included, is updated by two products of depth b:

    C <- C - V T^T V^T C

LAPACK takes fewer columns at a time and goes through the right-hand sides a second time (docs/notes/least_squares.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["triangularise_"]

# Columns whose reflections are applied together to all that follow, and columns that LAPACK is given at once.
_BLOCK = 128
_PANEL = 64


def triangularise_(rows: Tensor, count: int) -> Tensor:
    """Reflect ``rows [r, n]``, the columns of ``[A B]``, in place so that A becomes triangular: ``Q^T [A B]``.

    Args:
        rows: fp64 or fp32; overwritten. Its rows from ``count`` on become those of ``(Q^T B)^T``; of the first
            ``count`` only what is returned is defined.
        count: columns of A, at most n.

    Returns:
        ``R^T [count, count]``, lower triangular with zeros above the diagonal, in memory of its own.
    """
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        V, inverse = _factor_(rows[begin:end, begin:])
        if end < len(rows):
            _reflect_(rows[end:, begin:], V, inverse)
    return rows[:count, :count].tril()


def _factor_(block: Tensor) -> tuple[Tensor, Tensor]:
    """Factor the columns ``[b, m]`` in place, panel by panel; returns V^T and the inverse of T for all of them."""
    scales = []
    for begin in range(0, len(block), _PANEL):
        end = min(begin + _PANEL, len(block))
        panel = block[begin:end, begin:]
        packed, tau = torch.geqrf(panel.T)
        panel.copy_(packed.T)
        scales.append(tau)
        if end < len(block):
            _reflect_(block[end:, begin:], *_compact(panel, tau))
    return _compact(block, torch.cat(scales))


def _compact(packed: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """``V^T [b, m]`` and ``T^-1 [b, b]`` from what geqrf leaves, transposed."""
    idle = tau == 0  # the identity, which no T has an inverse for: a reflection along zero does the same
    V = packed.triu(1)
    V.diagonal().fill_(1)
    V.masked_fill_(idle.unsqueeze(-1), 0)
    inverse = (V @ V.T).triu(1)
    inverse.diagonal().copy_(torch.where(idle, 1, 1 / tau))
    return V, inverse


def _reflect_(rows: Tensor, V: Tensor, inverse: Tensor) -> None:
    """``C^T <- C^T - C^T V T V^T`` in place."""
    rows.addmm_(torch.linalg.solve_triangular(inverse, rows @ V.T, upper=True, left=False), V, alpha=-1)
