"""Gradients of the fused ops, in plain PyTorch on the saved inputs and r'.

With v = r' and n the normalised row (n = (v - mean) rstd; mean = 0 for RMSNorm), g = dy (weight + weight_offset):

    dv = dr' + rstd (g - mean(g) - n mean(g n))        mean(g) only for LayerNorm
    dz = alpha dv,   dr = beta dv + dz M,   dM = dz^T r,   dalpha_i = dv_i . (z_i + b),   dbeta_i = dv_i . r_i

Rounding of r' is taken as the identity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from incline_fast.maps import dequantized
from incline_fast.ops._arguments import Constants, Inputs
from incline_fast.packing import is_packed, pack, rank_of, unpack
from incline_fast.torch_modes import full_precision

__all__ = ["Gradients", "backward", "save"]


class Gradients(NamedTuple):
    """One gradient per field of :class:`Inputs`, None where the input is absent."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    norm_bias: Tensor | None
    down: Tensor | None
    up: Tensor | None
    down_scale: None
    up_scale: None
    bias: Tensor | None
    row_alpha: Tensor | None
    row_beta: Tensor | None


def save(ctx: Any, inputs: Inputs, constants: Constants, edited: Tensor) -> None:
    """Keep in autograd's ``ctx`` what :func:`backward` needs; ``edited`` is r', ``[..., d]``.

    Raises:
        ValueError: a scale requires a gradient.
    """
    for name, scale in (("down_scale", inputs.down_scale), ("up_scale", inputs.up_scale)):
        if scale is not None and scale.requires_grad:
            raise ValueError(f"{name} requires a gradient; int8 maps are constants, differentiate the float map")
    ctx.save_for_backward(*inputs, edited)
    ctx.constants = constants


def backward(ctx: Any, grad_y: Tensor, grad_edited: Tensor) -> Gradients:
    """Gradients of all inputs, each in its input's dtype and layout, from those of y and r', ``[..., d]`` each.

    Autocast is off inside, so that it does not shorten the sums.
    """
    with full_precision(grad_y.device):
        return _backward(ctx, grad_y, grad_edited)


def _backward(ctx: Any, grad_y: Tensor, grad_edited: Tensor) -> Gradients:
    *saved, edited = ctx.saved_tensors
    inputs, constants = Inputs(*saved), ctx.constants
    dtypes = inputs.x.dtype, inputs.x.dtype if inputs.residual is None else inputs.residual.dtype
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    hidden = inputs.x.shape[-1]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.to(compute).reshape(-1, hidden)

    grad_v, grad_weight, grad_norm_bias = _norm_backward(
        rows(grad_y), rows(edited), inputs.weight.to(compute) + constants.weight_offset, constants
    )
    grad_v = grad_v + rows(grad_edited)
    r = rows(inputs.x) if inputs.residual is None else rows(inputs.x) + rows(inputs.residual)
    affine = _AffineBackward(inputs, constants, r, grad_v)
    grad_r = affine.grad_r.reshape(inputs.x.shape)
    return Gradients(
        x=grad_r.to(inputs.x.dtype),
        residual=None if inputs.residual is None else grad_r.to(inputs.residual.dtype),
        weight=grad_weight.to(inputs.weight.dtype),
        norm_bias=None if inputs.norm_bias is None else grad_norm_bias.to(inputs.norm_bias.dtype),
        down=None if inputs.down is None else _like(affine.grad_down, inputs.down),
        up=_like(affine.grad_up, inputs.up),
        down_scale=None,
        up_scale=None,
        bias=None if inputs.bias is None else affine.bias_gradient(inputs.bias),
        row_alpha=affine.per_row(inputs.row_alpha, constants.alpha, affine.mapped),
        row_beta=affine.per_row(inputs.row_beta, constants.beta, r),
    )


def _norm_backward(
    grad_y: Tensor, value: Tensor, weight: Tensor, constants: Constants
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of r' ``[n, d]``, of the weight ``[d]`` and of the norm's bias ``[d]``; ``weight`` has its offset."""
    centred = value - value.mean(-1, keepdim=True) if constants.centre else value
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + constants.eps)
    normed = centred * rstd
    g = grad_y * weight
    inner = g - normed * (g * normed).mean(-1, keepdim=True)
    if constants.centre:
        inner = inner - g.mean(-1, keepdim=True)
    return rstd * inner, (grad_y * normed).sum(0), grad_y.sum(0)


class _AffineBackward:
    """Backward of r' = beta r + alpha (M r + b), map by map; rows without a map pass their gradient on.

    Args:
        inputs: of the forward call.
        constants: of the forward call.
        r: ``[n, d]``, in the dtype of the sums.
        grad_v: ``[n, d]``, gradient of r'.
    """

    def __init__(self, inputs: Inputs, constants: Constants, r: Tensor, grad_v: Tensor) -> None:
        hidden = r.shape[1]
        rank = hidden if inputs.down is None else rank_of(inputs.down, inputs.up)
        up = dequantized(_linear(inputs.up, hidden, rank), inputs.up_scale, r.dtype).to(r.dtype)
        down = None
        if inputs.down is not None:
            down = dequantized(_linear(inputs.down, rank, hidden), inputs.down_scale, r.dtype).to(r.dtype)
        alpha = _strength(constants.alpha, inputs.row_alpha, r)
        beta = _strength(constants.beta, inputs.row_beta, r)
        row_map = inputs.row_map
        self.grad_v = grad_v
        self.edited_rows = torch.ones_like(r[:, :1]) if row_map is None else (row_map >= 0).unsqueeze(1).to(r.dtype)
        self.grad_r = torch.where(self.edited_rows > 0, beta * grad_v, grad_v)
        self.mapped = torch.zeros_like(r)
        self.grad_up: list[Tensor] = []
        self.grad_down: list[Tensor] = []
        self.grad_bias: list[Tensor] = []
        for g in range(up.shape[0]):
            here = self.edited_rows if row_map is None else (row_map == g).unsqueeze(1).to(r.dtype)
            grad_z = here * (alpha * grad_v)
            t = r if down is None else r @ down[g].T
            grad_t = grad_z @ up[g]
            self.grad_up.append(grad_z.T @ t)
            self.grad_bias.append(grad_z.sum(0))
            if down is not None:
                self.grad_down.append(grad_t.T @ r)
                grad_t = grad_t @ down[g]
            self.grad_r = self.grad_r + grad_t
            bias = inputs.bias if inputs.bias is None or inputs.bias.dim() == 1 else inputs.bias[g]
            z = t @ up[g].T
            self.mapped = self.mapped + here * (z if bias is None else z + bias.to(r.dtype))

    def bias_gradient(self, bias: Tensor) -> Tensor:
        stacked = torch.stack(self.grad_bias)
        return (stacked.sum(0) if bias.dim() == 1 else stacked).to(bias.dtype)

    def per_row(self, factor: Tensor | None, scale: float, multiplied: Tensor) -> Tensor | None:
        """Gradient of a per-row factor that multiplies ``scale * multiplied`` in r'."""
        if factor is None:
            return None
        return (scale * (self.edited_rows * self.grad_v * multiplied).sum(-1)).to(factor.dtype)


def _strength(scale: float, factor: Tensor | None, like: Tensor) -> Tensor | float:
    return scale if factor is None else scale * factor.to(like.dtype).unsqueeze(1)


def _linear(weight: Tensor, columns: int, depth: int) -> Tensor:
    """The map in nn.Linear layout ``[G, N, K]``, whatever layout the op was given."""
    return unpack(weight, columns, depth) if is_packed(weight) else weight


def _like(gradients: list[Tensor], weight: Tensor) -> Tensor | None:
    """The gradients ``[N, K]`` of G maps in the layout and dtype of ``weight``; int8 weights have none."""
    if not weight.is_floating_point():
        return None
    gradient = torch.stack(gradients).to(weight.dtype)
    return pack(gradient) if is_packed(weight) else gradient
