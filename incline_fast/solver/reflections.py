"""``Q^T Y`` from a Householder QR by LAPACK, many reflections at a time.

With b reflections ``H_1 ... H_b = I - V T V^T``, where

    T^-1 = strict upper triangle of V^T V + diag(1 / tau)

(Puglisi 1992), Y is updated by two products of depth b, ``Y <- Y - V T^T V^T Y``. LAPACK's own ``ormqr`` does the same
with fewer reflections, so that it passes over Y more often, and with a T that it builds column by column.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reflect_"]

# Reflections that are applied together.
_BLOCK = 128


def reflect_(packed: Tensor, tau: Tensor, Y: Tensor) -> Tensor:
    """``Q^T Y`` in place of Y.

    Args:
        packed: ``[n, d]``, n >= d, of :func:`torch.geqrf`.
        tau: ``[d]``, of the same call.
        Y: ``[n, t]``; overwritten.
    """
    columns = packed.T
    for begin in range(0, len(tau), _BLOCK):
        end = min(begin + _BLOCK, len(tau))
        V, inverse = _compact(columns[begin:end, begin:], tau[begin:end])
        rest = Y[begin:]
        rest.addmm_(V.T, torch.linalg.solve_triangular(inverse.T, V @ rest, upper=False), alpha=-1)
    return Y


def _compact(packed: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """``V^T [b, m]`` and ``T^-1 [b, b]`` of b columns, which are the rows of ``packed [b, m]``."""
    # tau = 0 is the identity, for which T has no inverse; tau = 1 with a zero vector is the identity as well.
    idle = tau == 0
    V = packed.triu(1)
    V.diagonal().fill_(1)
    V.masked_fill_(idle.unsqueeze(-1), 0)
    inverse = (V @ V.T).triu(1)
    inverse.diagonal().copy_(torch.where(idle, 1, 1 / tau))
    return V, inverse
