"""What both fused ops share: the way to a backend, and what torch is told about the compiled op.

Their modules give the public signatures and say which norm follows. ``vectors`` are what that norm has of its own:
``(weight,)`` of RMSNorm, ``(weight, norm_bias)`` of LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops import _autograd
from incline_fast.ops._arguments import PerRow, check, check_in_place, check_row_map, op_tail, per_row
from incline_fast.ops._backend import EXTENSION, differentiates, mark_written, route_of, triton_ops

__all__ = ["NormOp"]


class NormOp:
    """One fused op: ``incline_fast::<name>`` and its in-place form ``incline_fast::<name>_``.

    Args:
        name: of the compiled op, and of the Triton kernels' function.
        reference: its definition in plain PyTorch.
        centre: LayerNorm, which subtracts the mean and has a ``norm_bias``.
    """

    def __init__(self, name: str, reference: Callable[..., tuple[Tensor, Tensor]], *, centre: bool) -> None:
        self.name = name
        self.reference = reference
        self.centre = centre
        if EXTENSION is None:
            return
        # Looked up once: on a small problem each attribute of torch.ops takes a hundredth of the call.
        self._compiled = getattr(torch.ops.incline_fast, name).default
        self.compiled_in_place = getattr(torch.ops.incline_fast, f"{name}_").default
        torch.library.register_fake(f"incline_fast::{name}", self._fake)
        torch.library.register_fake(f"incline_fast::{name}_", self._fake_in_place)
        torch.library.register_autograd(f"incline_fast::{name}", self._backward, setup_context=self._setup_context)

    def functional(
        self,
        x: Tensor,
        vectors: tuple[Tensor | None, ...],
        map: AffineMap,
        residual: Tensor | None,
        bias: Tensor | None,
        alpha: PerRow,
        beta: PerRow,
        row_map: Tensor | None,
        eps: float,
        weight_offset: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        """``(y, r')``; nothing is written to."""
        gradient = torch.is_grad_enabled() and differentiates(x, residual, *vectors, map, bias, alpha, beta)
        route = route_of(x, backend, gradient)
        if route == "reference":
            weights = (map.down, map.up, map.down_scale, map.up_scale)
            weight, norm_bias = self._weight_and_bias(vectors)
            check(x, residual, weight, norm_bias, *weights, bias, per_row(alpha)[1], per_row(beta)[1], row_map)
            check_row_map(row_map, map.num_maps)
            numbers = {"alpha": alpha, "beta": beta, "eps": eps, "weight_offset": weight_offset}
            scales = {"down_scale": map.down_scale, "up_scale": map.up_scale}
            tensors = {"residual": residual, "bias": bias, "row_map": row_map}
            return self.reference(x, *vectors, map.down, map.up, **scales, **tensors, **numbers)
        tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
        if torch.compiler.is_compiling() or gradient:
            op = getattr(triton_ops(), self.name) if route == "triton" else self._compiled
            result: tuple[Tensor, Tensor] = op(x, residual, *vectors, *tail)
            return result
        # The functional op enters autograd's Python layer even where nothing is recorded, which takes longer than a
        # small problem does; the in-place op on copies gives the same bits without it.
        stream = (x if residual is None else residual).clone(memory_format=torch.contiguous_format)
        y = torch.empty_like(stream) if residual is None else x.clone(memory_format=torch.contiguous_format)
        kernel = self._triton_in_place() if route == "triton" else self.compiled_in_place
        kernel(y, stream, residual is not None, *vectors, *tail)
        return y, stream

    def in_place(
        self,
        x: Tensor,
        vectors: tuple[Tensor | None, ...],
        map: AffineMap,
        residual: Tensor | None,
        bias: Tensor | None,
        alpha: PerRow,
        beta: PerRow,
        row_map: Tensor | None,
        eps: float,
        weight_offset: float,
        backend: str,
    ) -> Tensor:
        """``y``, with r' written over the residual stream."""
        stream = x if residual is None else residual
        gradient = torch.is_grad_enabled() and differentiates(x, residual, *vectors, map, bias, alpha, beta)
        route = route_of(x, backend, gradient)
        if route != "reference" and not gradient:
            y = torch.empty_like(x) if residual is None else x
            tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
            kernel = self._triton_in_place() if route == "triton" else self.compiled_in_place
            kernel(y, stream, residual is not None, *vectors, *tail)
            mark_written(x, residual)
            return y
        check_in_place(x, residual)
        copy = None if residual is None else residual.clone()
        options = (bias, alpha, beta, row_map, eps, weight_offset, backend)
        y, edited = self.functional(x.clone(), vectors, map, copy, *options)
        stream.copy_(edited)
        return y if residual is None else x.copy_(y)

    def _triton_in_place(self) -> Callable[..., Any]:
        kernel: Callable[..., Any] = getattr(triton_ops(), f"{self.name}_")
        return kernel

    def _weight_and_bias(self, vectors: tuple[Any, ...]) -> tuple[Any, Any]:
        return (vectors[0], vectors[1] if self.centre else None)

    def _inputs(self, arguments: tuple[Any, ...]) -> _autograd.Inputs:
        """The tensors among the compiled op's arguments, by name."""
        x, residual, *rest = arguments[:-4]
        count = 2 if self.centre else 1
        return _autograd.Inputs(x, residual, *self._weight_and_bias(tuple(rest[:count])), *rest[count:])

    def _fake(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(arguments)
        check(*inputs)
        x, residual = inputs.x, inputs.residual
        return x.new_empty(x.shape), (x if residual is None else residual).new_empty(x.shape)

    def _fake_in_place(self, y: Tensor, stream: Tensor, add_y: bool, *rest: Any) -> None:
        self._fake(y, stream, *rest)

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        alpha, beta, eps, weight_offset = inputs[-4:]
        constants = _autograd.Constants(alpha, beta, eps, weight_offset, centre=self.centre)
        _autograd.save(ctx, self._inputs(inputs), constants, output[1])

    def _backward(self, ctx: Any, grad_y: Tensor, grad_edited: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, weight, norm_bias, *rest = _autograd.backward(ctx, grad_y, grad_edited)
        vectors = (weight, norm_bias) if self.centre else (weight,)
        no_map_and_numbers = (None,) * 5
        return x, residual, *vectors, *rest, *no_map_and_numbers
