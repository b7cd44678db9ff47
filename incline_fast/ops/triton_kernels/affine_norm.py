"""The fused op on Triton: the arguments of ``torch.ops.incline_fast.affine_*``, in the same order.

    r  = x (+ residual)
    r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
    y  = RMSNorm(r') (weight + weight_offset)                  or LayerNorm(r') (weight + weight_offset) + norm_bias

Up to 64 tokens, and with several maps any number of them, one launch does everything (``_decode``), and a row's bits
depend on nothing but the row. More tokens through one map are a matrix product by torch and one launch for the rest
(``_rows.epilogue``); how torch's product rounds may depend on the number of tokens, and ``set_batch_invariant(True)``
keeps such calls in the one launch too.

``row_map`` is read on the device alone. A value past the last map makes its row NaN; nothing outside the maps is read.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, get_type_hints

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from incline_fast.ops._arguments import DECODE_TOKENS, Constants, Inputs, check
from incline_fast.ops._extension import batch_invariant, programmatic_launch
from incline_fast.ops.triton_kernels import _counters
from incline_fast.ops.triton_kernels._decode import (
    MAX_TOKENS_DENSE,
    MAX_TOKENS_LOW_RANK,
    decode,
    num_counters,
    num_items,
)
from incline_fast.ops.triton_kernels._layout import collapses, on_device_of, stack
from incline_fast.ops.triton_kernels._product import SIGNIFICANT_BITS, block_depth, num_splits, operand, product
from incline_fast.ops.triton_kernels._rows import WARPS, epilogue

__all__ = ["affine_layer_norm", "affine_layer_norm_", "affine_rms_norm", "affine_rms_norm_"]

_MIN_TOKENS = 8
"""Narrowest tile: the eight columns of a tensor core instruction."""
_MAX_RESIDENT = 4096
"""Longest row that stays in registers, 32 a thread; longer ones are read twice."""


def _check(inputs: Inputs) -> None:
    """Refuse what the kernels do not take.

    Raises:
        ValueError: as for every backend, and for fp64, packed maps and maps that are not contiguous.
    """
    check(inputs)
    for name, tensor in (("x", inputs.x), ("residual", inputs.residual)):
        if tensor is not None and tensor.dtype is torch.float64:
            raise ValueError(f"{name} has dtype float64; the Triton kernels take float32, bfloat16, float16")
    for name, tensor in (("down", inputs.down), ("up", inputs.up)):
        if tensor is not None and tensor.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, packed for the CPU; expected [G, rows, columns]")
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; expected contiguous: pass {name}.contiguous()")


def _functional(inputs: Inputs, constants: Constants) -> tuple[Tensor, Tensor]:
    """``(y, r')`` in new memory."""
    _check(inputs)
    x, residual = inputs.x, inputs.residual
    y = x.new_empty(x.shape)
    edited = (x if residual is None else residual).new_empty(x.shape)
    _run(inputs, y, edited, constants)
    return y, edited


def _in_place(inputs: Inputs, constants: Constants, add_y: bool) -> None:
    """``x <- y`` and ``residual <- r'``; r is ``residual``, or ``x + residual`` with ``add_y``."""
    _check(inputs)
    y, residual = inputs.x, inputs.residual
    assert residual is not None
    if y is residual:
        raise ValueError("y and residual are the same tensor; they receive two outputs and must be different")
    for name, output in (("y", y), ("residual", residual)):
        for dimension, (size, stride) in enumerate(zip(output.shape, output.stride(), strict=True)):
            if size > 1 and stride == 0:
                raise ValueError(
                    f"{name} has stride 0 in dimension {dimension} of size {size}; an output must not overlap itself"
                )
    _run(inputs if add_y else inputs._replace(x=residual, residual=None), y, residual, constants)


def _run(inputs: Inputs, y: Tensor, edited: Tensor, constants: Constants) -> None:
    """Bring everything into the kernels' layout, launch, and bring outputs back that are not rows of one stride."""
    x, residual = inputs.x, inputs.residual
    if x.numel() == 0:
        return
    rows = inputs._replace(x=_as_rows(x), residual=None if residual is None else _as_rows(residual))
    y_rows, edited_rows = _as_rows(y), _as_rows(edited)
    with on_device_of(x):
        if len(rows.x) <= DECODE_TOKENS or len(inputs.up) > 1 or batch_invariant():
            _decode(rows, y_rows, edited_rows, constants)
        else:
            _prefill(rows, y_rows, edited_rows, constants)
    for computed, output in ((y_rows, y), (edited_rows, edited)):
        if not _is_rows(output):
            output.copy_(computed.view(output.shape))


def _is_rows(tensor: Tensor) -> bool:
    """Whether ``[..., d]`` is rows of unit stride at equal distances, which the kernels take as they are."""
    return (tensor.shape[-1] == 1 or tensor.stride(-1) == 1) and collapses(tensor, 1)


def _as_rows(tensor: Tensor) -> Tensor:
    """``[num_tokens, d]`` with unit stride in a row: a view where there is one, a copy otherwise."""
    return stack(tensor if _is_rows(tensor) else tensor.contiguous(), 1)


def _rounded_up(size: int, least: int, most: int) -> int:
    return max(least, min(most, int(triton.next_power_of_2(size))))


def _tail(a: Inputs, y: Tensor, edited: Tensor, constants: Constants) -> dict[str, Any]:
    """The arguments that both kernels have, by name; x, residual, y and edited are ``[num_tokens, d]`` as rows."""
    hidden = a.x.shape[-1]
    block = _rounded_up(hidden, 16, _MAX_RESIDENT)
    return {
        "x": a.x,
        "residual": a.residual,
        "up_scale": _packed_vector(a.up_scale),
        "bias": _packed_vector(a.bias),
        "row_alpha": _packed_vector(a.row_alpha),
        "row_beta": _packed_vector(a.row_beta),
        "row_map": _packed_vector(a.row_map),
        "weight": a.weight.contiguous(),
        "norm_bias": _packed_vector(a.norm_bias),
        "y": y,
        "edited": edited,
        "hidden": hidden,
        "num_maps": len(a.up),
        "x_stride": a.x.stride(0),
        "residual_stride": 0 if a.residual is None else a.residual.stride(0),
        "y_stride": y.stride(0),
        "edited_stride": edited.stride(0),
        "bias_stride": hidden if a.bias is not None and a.bias.dim() == 2 else 0,
        "alpha": constants.alpha,
        "beta": constants.beta,
        "eps": constants.eps,
        "weight_offset": constants.weight_offset,
        "CENTRE": constants.centre,
        "BLOCK_D": block,
        "RESIDENT": hidden <= block,
    }


def _packed_vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _decode(a: Inputs, y: Tensor, edited: Tensor, constants: Constants) -> None:
    """The whole op in one launch; arguments as in :func:`_tail`."""
    x, (num_tokens, hidden) = a.x, a.x.shape
    rank = 0 if a.down is None else a.down.shape[1]
    tokens = _rounded_up(num_tokens, _MIN_TOKENS, MAX_TOKENS_LOW_RANK if rank else MAX_TOKENS_DENSE)
    tiles = triton.cdiv(num_tokens, tokens)
    slots = 1 if a.row_map is None else min(tokens, len(a.up))
    splits = num_splits(hidden, rank)
    input_product = operand(x.dtype if a.residual is None else torch.float32, a.up.dtype)
    factor_product = operand(torch.float32, a.up.dtype) if rank else input_product
    programmatic = _is_programmatic(x)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (num_items(tiles, slots, splits, rank, hidden, num_tokens, meta["BLOCK_N"]),)

    wrap_triton(decode)[grid](
        **_tail(a, y, edited, constants),
        down=a.down,
        up=a.up,
        down_scale=_packed_vector(a.down_scale),
        z=x.new_empty((splits, num_tokens, rank), dtype=torch.float32),
        mapped=x.new_empty((num_tokens, hidden), dtype=torch.float32),
        counters=_counters.zeroed(x, num_counters(tiles)),
        num_tokens=num_tokens,
        rank=rank,
        TOKENS=tokens,
        SLOTS=slots,
        SPLITS=splits,
        BLOCK_K=block_depth(input_product, factor_product),
        OPERAND=input_product[0],
        PARTS=input_product[1],
        FACTOR_OPERAND=factor_product[0],
        FACTOR_PARTS=factor_product[1],
        PROGRAMMATIC=programmatic,
        **({"launch_pdl": True} if programmatic else {}),
    )


def _is_programmatic(x: Tensor) -> bool:
    """Whether the launch may overlap with the one ahead: where it was asked for, the GPU can, and nothing is traced.

    Compilers know nothing of the launch's option.
    """
    if not programmatic_launch() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 90)


def _prefill(a: Inputs, y: Tensor, edited: Tensor, constants: Constants) -> None:
    """A matrix product by torch, in as many parts as the rounding of r' can show, and one launch for the rest."""
    bits = SIGNIFICANT_BITS[edited.dtype]
    value = a.x if a.residual is None else a.x.to(torch.float32) + a.residual.to(torch.float32)
    if a.down is not None:
        value = product(value, a.down[0], bits)
        if a.down_scale is not None:
            value *= a.down_scale[0]
    mapped = product(value, a.up[0], bits)
    wrap_triton(epilogue)[(len(a.x),)](**_tail(a, y, edited, constants), mapped=mapped, num_warps=WARPS)


def _registered(name: str, first: dict[str, Any], centre: bool, run: Callable[..., Any], returns: Any) -> Any:
    """The op ``incline_fast_triton::<name>``: ``first``, then the fields of Inputs and Constants that a schema has.

    ``triton_op`` reads the schema from a signature and no other way. The in-place form writes to y and residual.
    """

    def op(*given: Any) -> Any:
        (x, residual, *options), values = given[: len(first)], [*given[len(first) :], centre]
        if not centre:
            values.insert(1, None)  # norm_bias
        return run(Inputs(x, residual, *values[:-5]), Constants(*values[-5:]), *options)

    rest = {**get_type_hints(Inputs), **get_type_hints(Constants)}
    left_out = {"x", "residual", "centre"} if centre else {"x", "residual", "centre", "norm_bias"}
    types = {**first, **{argument: kind for argument, kind in rest.items() if argument not in left_out}}
    parameters = [
        Parameter(argument, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for argument, kind in types.items()
    ]
    op.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    written = ("y", "residual") if first is _IN_PLACE else ()
    return triton_op(f"incline_fast_triton::{name}", op, mutates_args=written)


_FUNCTIONAL = {"x": Tensor, "residual": Tensor | None}
_IN_PLACE = {"y": Tensor, "residual": Tensor, "add_y": bool}
_BOTH = tuple[Tensor, Tensor]

affine_rms_norm = _registered("affine_rms_norm", _FUNCTIONAL, False, _functional, _BOTH)
affine_layer_norm = _registered("affine_layer_norm", _FUNCTIONAL, True, _functional, _BOTH)
affine_rms_norm_ = _registered("affine_rms_norm_", _IN_PLACE, False, _in_place, None)
affine_layer_norm_ = _registered("affine_layer_norm_", _IN_PLACE, True, _in_place, None)
