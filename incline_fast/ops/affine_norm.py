"""Affine residual intervention followed by RMSNorm or LayerNorm, in one call.

    r  = x (+ residual)
    r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
    y  = r' / sqrt(mean(r'^2) + eps) * (weight + weight_offset)                                RMSNorm
    y  = (r' - mean(r')) / sqrt(var(r') + eps) * (weight + weight_offset) + norm_bias          LayerNorm

The variance is the mean of squared deviations, taken in a second pass. Sums run in fp32 (fp64 when x or the residual is
fp64); r' is rounded once, to the dtype of the residual stream, and the norm reads the rounded value. The bits of a row
depend neither on the other rows nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from incline_fast.maps import AffineMap
from incline_fast.ops import _autograd, reference
from incline_fast.ops._arguments import (
    Constants,
    Inputs,
    PerRow,
    check,
    check_in_place,
    check_row_map,
    op_tail,
    per_row,
)
from incline_fast.ops._dispatch import Route, differentiates, route_of, triton_ops
from incline_fast.ops._extension import EXTENSION
from incline_fast.torch_modes import full_precision, functorch_level, is_wrapped

__all__ = [
    "LAYER_NORM",
    "RMS_NORM",
    "NormOp",
    "affine_layer_norm",
    "affine_layer_norm_",
    "affine_rms_norm",
    "affine_rms_norm_",
]


class NormOp:
    """One fused op: ``incline_fast::<name>`` and its in-place form ``incline_fast::<name>_``.

    ``vectors`` are the vectors of its norm: ``(weight,)`` of RMSNorm, ``(weight, norm_bias)`` of LayerNorm. The other
    arguments of :meth:`functional` and :meth:`in_place` are not bundled: making a NamedTuple of them would lengthen a
    small call by more than a hundredth.

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
        """``(y, r')``; nothing is written to. Arguments other than ``vectors`` as in :func:`affine_rms_norm`."""
        gradient = torch.is_grad_enabled() and differentiates(x, residual, *vectors, map, bias, alpha, beta)
        # Written out here: on a small problem every function call is noticeable.
        if functorch_level() is not None or forward_ad._current_level >= 0:
            route = _transformed_route(backend)
        elif backend == "auto" and EXTENSION is not None and x.is_cpu:
            route = "cpu"
        else:
            route = route_of(x, residual, map, backend, gradient)
        if route == "reference":
            weights = (map.down, map.up, map.down_scale, map.up_scale)
            weight, norm_bias = self._weight_and_bias(vectors)
            row_alpha, row_beta = per_row(alpha)[1], per_row(beta)[1]
            check(Inputs(x, residual, weight, norm_bias, *weights, bias, row_alpha, row_beta, row_map))
            if row_map is not None and not torch.compiler.is_compiling() and is_wrapped(row_map):
                raise ValueError("row_map is mapped over or differentiated by torch.func; pass a plain int32 tensor")
            check_row_map(row_map, map.num_maps)
            numbers = {"alpha": alpha, "beta": beta, "eps": eps, "weight_offset": weight_offset}
            scales = {"down_scale": map.down_scale, "up_scale": map.up_scale}
            tensors = {"residual": residual, "bias": bias, "row_map": row_map}
            return self.reference(x, *vectors, map.down, map.up, **scales, **tensors, **numbers)
        tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
        if torch.compiler.is_compiling() or gradient:
            op = getattr(triton_ops(), self.name) if route == "triton" else self._compiled
            with full_precision(x.device):  # see _write
                result: tuple[Tensor, Tensor] = op(x, residual, *vectors, *tail)
            return result
        # The functional op enters autograd's Python layer even where nothing is recorded, which takes longer than a
        # small problem does; the in-place op on copies gives the same bits without it.
        edited = _copy(x if residual is None else residual)
        y = torch.empty_like(edited) if residual is None else _copy(x)
        self._write(route, y, edited, residual is not None, vectors, tail)
        return y, edited

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
        """``y``, with r' written over the residual stream; arguments as in :meth:`functional`."""
        written = x if residual is None else residual  # r on entry, r' on return
        gradient = torch.is_grad_enabled() and differentiates(x, residual, *vectors, map, bias, alpha, beta)
        # Written out here: on a small problem every function call is noticeable.
        if functorch_level() is not None or forward_ad._current_level >= 0:
            route = _transformed_route(backend)
        elif backend == "auto" and EXTENSION is not None and x.is_cpu:
            route = "cpu"
        else:
            route = route_of(x, residual, map, backend, gradient)
        if route != "reference" and not gradient:
            y = torch.empty_like(x) if residual is None else x
            if route == "cpu" and type(alpha) is float and type(beta) is float:
                # The common case, without the calls and tuples of op_tail: a noticeable part of a small call.
                down, up = map.packed()
                self.compiled_in_place(
                    y, written, residual is not None, *vectors, down, up, map.down_scale, map.up_scale, bias,
                    None, None, row_map, alpha, beta, eps, weight_offset,
                )  # fmt: skip
            else:
                tail = op_tail(route, map, bias, alpha, beta, row_map, eps, weight_offset)
                self._write(route, y, written, residual is not None, vectors, tail)
            # Autograd graphs that saved these tensors must know of the write. torch.autograd.graph.increment_version
            # does the same and takes longer, because it first looks at its argument.
            torch._C._increment_version((x,) if residual is None else (x, residual))
            return y
        check_in_place(x, residual)
        copy = None if residual is None else residual.clone()
        options = (bias, alpha, beta, row_map, eps, weight_offset, backend)
        y, edited = self.functional(x.clone(), vectors, map, copy, *options)
        written.copy_(edited)
        return y if residual is None else x.copy_(y)

    def _write(
        self,
        route: Route,
        y: Tensor,
        residual: Tensor,
        add_y: bool,
        vectors: tuple[Tensor | None, ...],
        tail: tuple[Tensor | float | None, ...],
    ) -> None:
        """Run the kernels of ``route``, which write y over ``y`` and r' over ``residual``."""
        if route == "cpu":
            self.compiled_in_place(y, residual, add_y, *vectors, *tail)
            return
        kernel = getattr(triton_ops(), f"{self.name}_") if route == "triton" else self.compiled_in_place
        with full_precision(y.device):  # many tokens are multiplied by torch, whose products autocast would shorten
            kernel(y, residual, add_y, *vectors, *tail)

    def _weight_and_bias(self, vectors: tuple[Any, ...]) -> tuple[Any, Any]:
        return (vectors[0], vectors[1] if self.centre else None)

    def _inputs(self, arguments: tuple[Any, ...]) -> Inputs:
        """The tensors among the compiled op's arguments, by name."""
        x, residual, *rest = arguments[:-4]
        count = 2 if self.centre else 1
        return Inputs(x, residual, *self._weight_and_bias(tuple(rest[:count])), *rest[count:])

    def _fake(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(arguments)
        check(inputs)
        x, residual = inputs.x, inputs.residual
        return x.new_empty(x.shape), (x if residual is None else residual).new_empty(x.shape)

    def _fake_in_place(self, y: Tensor, residual: Tensor, add_y: bool, *rest: Any) -> None:
        self._fake(y, residual, *rest)

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        numbers = (*inputs[-4:], self.centre)
        _autograd.save(ctx, self._inputs(inputs), Constants(*numbers), output[1])

    def _backward(self, ctx: Any, grad_y: Tensor, grad_edited: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, weight, norm_bias, *rest = _autograd.backward(ctx, grad_y, grad_edited)
        vectors = (weight, norm_bias) if self.centre else (weight,)
        no_map_and_numbers = (None,) * 5
        return x, residual, *vectors, *rest, *no_map_and_numbers


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy; ``clone(memory_format=torch.contiguous_format)`` takes longer."""
    return x.clone() if x.is_contiguous() else x.contiguous()


def _transformed_route(backend: str) -> Route:
    """Forward-mode AD and the transforms of torch.func (vmap, grad, jvp) work with the reference only.

    Raises:
        ValueError: kernels were asked for by name.
    """
    if backend in ("auto", "reference"):
        return "reference"
    raise ValueError(
        f'backend="{backend}" under forward-mode AD or a transform of torch.func (vmap, grad, jvp), which compiled '
        'kernels do not have; use backend="auto" or backend="reference"'
    )


RMS_NORM = NormOp("affine_rms_norm", reference.affine_rms_norm, centre=False)
LAYER_NORM = NormOp("affine_layer_norm", reference.affine_layer_norm, centre=True)


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
            On a GPU its values are not read back: a map that does not exist makes its row NaN, or with the environment
            variable INCLINE_FAST_CHECK=1 is an error (not while a CUDA graph is captured or in compiled code).
        eps: added to the mean square.
        weight_offset: added to ``weight`` (1.0 for Gemma).
        backend: "auto" (kernels where they are installed), "cpu", "cuda", "triton" or "reference"; see :func:`explain`.

    Returns:
        ``(y, r')``, shaped like x: y in x's dtype, r' in the residual's (x's without a residual).

    Raises:
        ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
    """
    return RMS_NORM.functional(x, (weight,), map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend)


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
    return RMS_NORM.in_place(x, (weight,), map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend)


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
    """Functional form: nothing is written to; differentiable in every floating-point tensor.

    Args:
        x: ``[..., d]``, fp32, bf16, fp16 or fp64, any strides; with ``residual`` it is added to the residual stream.
        weight: ``[d]`` norm weight, any float dtype.
        norm_bias: ``[d]`` or None, any float dtype.
        map: the linear part; fp32, bf16, fp16 or int8 whatever x is, but fp64 exactly when x or residual is.
        residual: ``[..., d]``, in x's dtype, fp32 or fp64; None where x itself is the residual stream.
        bias: ``[d]`` or ``[G, d]`` added to the map's output, any float dtype.
        alpha, beta: numbers, or float tensors ``[num_tokens]``.
        row_map: int32 ``[num_tokens]``, each row's map in the stack; negative: only normalised. None: map 0 for all.
            On a GPU its values are not read back: a map that does not exist makes its row NaN, or with the environment
            variable INCLINE_FAST_CHECK=1 is an error (not while a CUDA graph is captured or in compiled code).
        eps: added to the variance.
        weight_offset: added to ``weight`` (1.0 for Gemma).
        backend: "auto" (kernels where they are installed), "cpu", "cuda", "triton" or "reference"; see :func:`explain`.

    Returns:
        ``(y, r')``, shaped like x: y in x's dtype, r' in the residual's (x's without a residual).

    Raises:
        ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
    """
    return LAYER_NORM.functional(
        x, (weight, norm_bias), map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend
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
    """In-place form; arguments, numbers and errors as in :func:`affine_layer_norm`.

    Without ``residual``: x <- r', and a new y is returned. With it: residual <- r', x <- y, and x is returned (the
    convention of a fused add-and-norm). Where a gradient is asked for, the functional form runs on copies, because
    autograd keeps its inputs.
    """
    vectors = (weight, norm_bias)
    return LAYER_NORM.in_place(x, vectors, map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend)
