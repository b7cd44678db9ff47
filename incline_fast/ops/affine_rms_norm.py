"""Affine residual intervention followed by RMSNorm, in one call.

    r  = x (+ residual)
    r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
    y  = r' / sqrt(mean(r'^2) + eps) * (weight + weight_offset)

Sums run in fp32 (fp64 when x or the residual is fp64); r' is rounded once, to the dtype of the residual stream, and the
norm reads the rounded value. The bits of a row depend neither on the other rows nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from incline_fast import reference
from incline_fast.maps import AffineMap
from incline_fast.ops import _autograd
from incline_fast.ops._arguments import PerRow, check, check_in_place, check_row_map, op_tail, per_row
from incline_fast.ops._backend import EXTENSION, Route, differentiates, mark_written, route_of, triton_ops

__all__ = ["affine_rms_norm", "affine_rms_norm_"]


def affine_rms_norm(
    x: Tensor,
    weight: Tensor,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Functional form: nothing is written to; differentiable in every floating-point tensor.

    Args:
        x: ``[..., d]``, fp32, bf16, fp16 or fp64, any strides; with ``residual`` it is added to the residual stream.
        weight: ``[d]`` norm weight, any float dtype.
        map: the linear part; fp32, bf16, fp16 or int8 whatever x is, but fp64 exactly when x or residual is.
        residual: ``[..., d]``, in x's dtype, fp32 or fp64; None where x itself is the residual stream.
        bias: ``[d]`` or ``[G, d]`` added to the map's output, any float dtype.
        alpha, beta: numbers, or float tensors ``[num_tokens]``.
        row_map: int32 ``[num_tokens]``, each row's map in the stack; negative: only normalised. None: map 0 for all.
            A GPU is not waited for to look at it: a map that does not exist makes its row NaN there, an error with the
            environment variable INCLINE_FAST_CHECK=1 (not while a CUDA graph is captured or in compiled code).
        eps: added to the mean square.
        weight_offset: added to ``weight`` (1.0 for Gemma).
        backend: "auto" (kernels where they are installed), "cpu", "cuda", "triton" or "reference"; see :func:`explain`.

    Returns:
        ``(y, r')``, shaped like x: y in x's dtype, r' in the residual's (x's without a residual).

    Raises:
        ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
    """
    gradient = differentiates(x, residual, weight, None, map, bias, alpha, beta)
    route = route_of(x, backend, gradient)
    if route != "reference":
        tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
        if torch.compiler.is_compiling() or gradient:
            result: tuple[Tensor, Tensor] = _functional(route)(x, residual, weight, *tail)
            return result
        # The functional op enters autograd's Python layer even where nothing is recorded, which takes longer than a
        # small problem does; the in-place op on copies gives the same bits without it.
        stream = (x if residual is None else residual).clone(memory_format=torch.contiguous_format)
        y = torch.empty_like(stream) if residual is None else x.clone(memory_format=torch.contiguous_format)
        _in_place(route)(y, stream, residual is not None, weight, *tail)
        return y, stream
    weights = (map.down, map.up, map.down_scale, map.up_scale)
    check(x, residual, weight, None, *weights, bias, per_row(alpha)[1], per_row(beta)[1], row_map)
    check_row_map(row_map, map.num_maps)
    return reference.affine_rms_norm(
        x,
        weight,
        map.down,
        map.up,
        down_scale=map.down_scale,
        up_scale=map.up_scale,
        residual=residual,
        bias=bias,
        alpha=alpha,
        beta=beta,
        row_map=row_map,
        eps=eps,
        weight_offset=weight_offset,
    )


def affine_rms_norm_(
    x: Tensor,
    weight: Tensor,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """In-place form; arguments, numbers and errors as in :func:`affine_rms_norm`.

    Without ``residual``: x <- r', and a new y is returned. With it: residual <- r', x <- y, and x is returned (the
    convention of a fused add-and-norm). Where a gradient is asked for, the functional form runs on copies, because
    autograd keeps its inputs.
    """
    stream = x if residual is None else residual
    gradient = differentiates(x, residual, weight, None, map, bias, alpha, beta)
    route = route_of(x, backend, gradient)
    if route != "reference" and not gradient:
        y = torch.empty_like(x) if residual is None else x
        tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
        _in_place(route)(y, stream, residual is not None, weight, *tail)
        mark_written(x, residual)
        return y
    check_in_place(x, residual)
    y, edited = affine_rms_norm(
        x.clone(),
        weight,
        map,
        residual=None if residual is None else residual.clone(),
        bias=bias,
        alpha=alpha,
        beta=beta,
        row_map=row_map,
        eps=eps,
        weight_offset=weight_offset,
        backend=backend,
    )
    stream.copy_(edited)
    return y if residual is None else x.copy_(y)


def _functional(route: Route) -> Callable[..., Any]:
    return triton_ops().affine_rms_norm if route == "triton" else torch.ops.incline_fast.affine_rms_norm.default


def _in_place(route: Route) -> Callable[..., Any]:
    return triton_ops().affine_rms_norm_ if route == "triton" else torch.ops.incline_fast.affine_rms_norm_.default


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    down: Tensor | None,
    up: Tensor,
    down_scale: Tensor | None,
    up_scale: Tensor | None,
    bias: Tensor | None,
    row_alpha: Tensor | None,
    row_beta: Tensor | None,
    row_map: Tensor | None,
    alpha: float,
    beta: float,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    check(x, residual, weight, None, down, up, down_scale, up_scale, bias, row_alpha, row_beta, row_map)
    return x.new_empty(x.shape), (x if residual is None else residual).new_empty(x.shape)


def _fake_in_place(y: Tensor, stream: Tensor, add_y: bool, *rest: Any) -> None:
    _fake(y, stream, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, alpha, beta, eps, weight_offset = inputs
    x, residual, weight, *rest = tensors
    constants = _autograd.Constants(alpha, beta, eps, weight_offset, centre=False)
    _autograd.save(ctx, _autograd.Inputs(x, residual, weight, None, *rest), constants, output[1])


def _backward(ctx: Any, grad_y: Tensor, grad_edited: Tensor) -> tuple[Tensor | None, ...]:
    x, residual, weight, _, *rest = _autograd.backward(ctx, grad_y, grad_edited)
    return x, residual, weight, *rest, None, None, None, None, None


if EXTENSION is not None:
    torch.library.register_fake("incline_fast::affine_rms_norm", _fake)
    torch.library.register_fake("incline_fast::affine_rms_norm_", _fake_in_place)
    torch.library.register_autograd("incline_fast::affine_rms_norm", _backward, setup_context=_setup_context)
