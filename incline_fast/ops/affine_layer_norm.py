"""Affine residual intervention followed by LayerNorm, in one call.

r  = x (+ residual)
r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
y  = (r' - mean(r')) / sqrt(var(r') + eps) * (weight + weight_offset) + norm_bias        var biased, two passes
"""

from __future__ import annotations

from torch import Tensor

from incline_fast import reference
from incline_fast.maps import AffineMap
from incline_fast.ops._arguments import PerRow, check, check_row_map, per_row
from incline_fast.ops._backend import choose

__all__ = ["affine_layer_norm", "affine_layer_norm_"]


def affine_layer_norm(
    x: Tensor,
    weight: Tensor,
    norm_bias: Tensor | None,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-5,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Functional form; differentiable in every floating-point tensor."""
    if choose(x.device, backend):
        raise NotImplementedError
    check(x, residual, weight, norm_bias, map.down, map.up, bias, per_row(alpha)[1], per_row(beta)[1], row_map)
    check_row_map(row_map, map.num_maps)
    return reference.affine_layer_norm(
        x,
        weight,
        norm_bias,
        map.down,
        map.up,
        residual=residual,
        bias=bias,
        alpha=alpha,
        beta=beta,
        row_map=row_map,
        eps=eps,
        weight_offset=weight_offset,
    )


def affine_layer_norm_(
    x: Tensor,
    weight: Tensor,
    norm_bias: Tensor | None,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-5,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """In-place form: x <- r' and a new y is returned; with residual, residual <- r', x <- y, and x is returned."""
    y, edited = affine_layer_norm(
        x,
        weight,
        norm_bias,
        map,
        residual=residual,
        bias=bias,
        alpha=alpha,
        beta=beta,
        row_map=row_map,
        eps=eps,
        weight_offset=weight_offset,
        backend=backend,
    )
    if residual is None:
        x.copy_(edited)
        return y
    residual.copy_(edited)
    return x.copy_(y)
