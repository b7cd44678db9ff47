"""Every op in plain PyTorch: the definition that all backends are checked against.

    r  = x (+ residual)
    r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
    y  = RMSNorm(r') (weight + weight_offset)                  or LayerNorm(r') weight + norm_bias

``M_g`` is dense, ``M_g = up_g``, or low rank, ``M_g = up_g down_g``. The rows of an int8 factor are multiplied by their
scales after the sum: ``M_g r = up_scale_g * (up_g r)``. Sums are accumulated in fp32 (fp64 when an input is fp64); r'
is rounded once, to the dtype of the residual stream, and the norm reads the rounded value, so that the fused form and
``add`` followed by ``norm`` see the same numbers.

``alpha = 1, beta = 1`` is the intervention of INCLINE (Wang et al., ACL 2025, arXiv 2410.12462, section 3.2);
``beta = 1 - alpha`` interpolates between the state and the map's output.

Cholesky, column by column, is the definition that the kernel and the blocked factorisation are checked against:

    A = L L^T,      l_jj = sqrt(a_jj - sum_k l_jk^2),      l_ij = (a_ij - sum_k l_ik l_jk) / l_jj      (k < j < i)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Edit",
    "affine_layer_norm",
    "affine_residual",
    "affine_rms_norm",
    "cholesky_ex",
    "cholesky_inverse_diagonal",
    "cholesky_solve",
    "triangular_inverse",
]

PerRow = float | Tensor


class Edit(NamedTuple):
    """How r becomes r': maps, biases, strengths and the map of each row, as in :func:`affine_rms_norm`."""

    down: Tensor | None
    up: Tensor
    down_scale: Tensor | None
    up_scale: Tensor | None
    bias: Tensor | None
    alpha: PerRow
    beta: PerRow
    row_map: Tensor | None


def affine_rms_norm(
    x: Tensor,
    weight: Tensor,
    down: Tensor | None,
    up: Tensor,
    *,
    down_scale: Tensor | None = None,
    up_scale: Tensor | None = None,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Affine residual projection followed by RMSNorm.

    Args:
        x: ``[..., d]`` input; with ``residual`` it is the block's output that is added to the residual stream.
        weight: ``[d]`` norm weight, any float dtype.
        down: ``[G, rank, d]`` or None for dense maps.
        up: ``[G, d, rank]``, or ``[G, d, d]`` for dense maps.
        down_scale, up_scale: fp32 ``[G, rank]`` and ``[G, d]`` where the weights are int8, None otherwise.
        residual: ``[..., d]`` residual stream or None.
        bias: ``[G, d]`` or ``[d]``, added to the map's output.
        alpha, beta: numbers, or tensors ``[num_tokens]``.
        row_map: int tensor ``[num_tokens]``, the map of each row; negative: the row is only normalised. None: map 0.
        eps: added to the mean square.
        weight_offset: added to ``weight`` (1.0 for Gemma).

    Returns:
        ``(y, r')``: y in x's dtype, r' in the residual's dtype (x's without a residual), both shaped like x.
    """
    edit = Edit(down, up, down_scale, up_scale, bias, alpha, beta, row_map)
    edited, compute = affine_residual(x, residual, edit)
    value = edited.to(compute)
    normed = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
    return (normed * (weight.to(compute) + weight_offset)).to(x.dtype), edited


def affine_layer_norm(
    x: Tensor,
    weight: Tensor,
    norm_bias: Tensor | None,
    down: Tensor | None,
    up: Tensor,
    *,
    down_scale: Tensor | None = None,
    up_scale: Tensor | None = None,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-5,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Affine residual projection followed by LayerNorm; arguments as in :func:`affine_rms_norm`.

    The variance is the mean of squared deviations from the mean (two passes), never ``E[x^2] - mean^2``.
    """
    edit = Edit(down, up, down_scale, up_scale, bias, alpha, beta, row_map)
    edited, compute = affine_residual(x, residual, edit)
    value = edited.to(compute)
    centred = value - value.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = normed * (weight.to(compute) + weight_offset)
    if norm_bias is not None:
        y = y + norm_bias.to(compute)
    return y.to(x.dtype), edited


def affine_residual(x: Tensor, residual: Tensor | None, edit: Edit) -> tuple[Tensor, torch.dtype]:
    """Return r' ``[..., d]``, rounded to the residual stream's dtype, and the dtype in which it was computed."""
    dtype, row_map = x.dtype if residual is None else residual.dtype, edit.row_map
    compute = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    h = x.to(compute) if residual is None else x.to(compute) + residual.to(compute)
    rows = h.reshape(-1, h.shape[-1])
    index = torch.zeros(rows.shape[0], dtype=torch.long, device=x.device) if row_map is None else row_map.long()
    mapped = _project(rows, edit, index.clamp(min=0))
    moved = _per_row(edit.beta, compute) * rows + _per_row(edit.alpha, compute) * mapped
    edited = torch.where((index >= 0).unsqueeze(-1), moved, rows)
    return edited.reshape(h.shape).to(dtype), compute


def _project(rows: Tensor, edit: Edit, index: Tensor) -> Tensor:
    """``M_{g(i)} rows_i + b_{g(i)}`` for ``rows [n, d]``, g being int64 ``index [n]``, one map after the other."""
    mapped = torch.zeros_like(rows)
    for g in range(edit.up.shape[0]):
        z = rows if edit.down is None else _product(rows, edit.down, edit.down_scale, g)
        z = _product(z, edit.up, edit.up_scale, g)
        if edit.bias is not None:
            z = z + (edit.bias if edit.bias.dim() == 1 else edit.bias[g]).to(rows.dtype)
        mapped = torch.where((index == g).unsqueeze(-1), z, mapped)
    return mapped


def _product(rows: Tensor, weight: Tensor, scale: Tensor | None, g: int) -> Tensor:
    """``[n, N]``: ``rows [n, K]`` times the g-th matrix of ``weight [G, N, K]``, and the g-th of ``scale [G, N]``."""
    device, matrix = rows.device.type, weight[g].to(rows.dtype).T
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):  # sums in fp32 whatever surrounds the call
            product = rows @ matrix
    else:
        product = rows @ matrix
    return product if scale is None else product * scale[g]


def _per_row(value: PerRow, compute: torch.dtype) -> Tensor | float:
    return value.to(compute).reshape(-1, 1) if isinstance(value, Tensor) else value


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
