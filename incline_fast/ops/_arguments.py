"""Validation shared by the reference backend and the fake kernels; the compiled op makes the same checks in C++."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

from incline_fast.maps import MAP_DTYPES, AffineMap, Aligned
from incline_fast.ops._extension import programmatic_launch
from incline_fast.packing import is_packed, packed_shape, rank_of

__all__ = [
    "Constants",
    "Inputs",
    "PerRow",
    "aligned_weights",
    "check",
    "check_in_place",
    "check_row_map",
    "num_rows",
    "op_tail",
    "per_row",
]

PerRow = float | Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SINGLE_MAP_DTYPES = tuple(dtype for dtype in MAP_DTYPES if dtype is not torch.float64)
"""Dtypes of maps where sums are in fp32; where sums are in fp64, maps are fp64."""

DECODE_TOKENS = 64
"""A call with up to so many tokens is a decode step: one call of the GPUs' decode kernels (kMaxRows in csrc/cuda).
Above it, torch's product is faster than weights that are read again for every tile of tokens."""


def decode_limit(hidden_size: int, rank: int) -> int:
    """Tokens of a single map up to which the CUDA decode kernels serve a call at least; rank 0 is a dense map.

    On compute capability 9.0 and later they serve more: dense maps by bulk copies for tokens of the map's 16-bit type,
    up to 9 or 16 of them by the GPU's memory (ring_rows in csrc/cuda); small maps of low rank within one cluster, up to
    8 tokens.

    Above, where all operands have one dtype, the product is left to torch (decode_rows() in csrc/bindings): by
    docs/gpu_time.md the faster way.
    """
    if rank == 0:
        return 8 if hidden_size <= 2048 else 5
    limits = ((63, 24, 1), (128, 24, 6), (176, 12, 1), (384, 12, 5), (512, 8, 4), (1024, 5, 2))
    found = (wide if hidden_size > 4096 else usual for most, usual, wide in limits if rank <= most)
    return next(found, 2)


class Inputs(NamedTuple):
    """The tensors of a call, in the order of the ops' schemas; an absent one is None, as RMSNorm's ``norm_bias``."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    norm_bias: Tensor | None
    down: Tensor | None
    up: Tensor
    down_scale: Tensor | None
    up_scale: Tensor | None
    bias: Tensor | None
    row_alpha: Tensor | None
    row_beta: Tensor | None
    row_map: Tensor | None


class Constants(NamedTuple):
    """The numbers of a call, in the order of the ops' schemas, and whether its norm is LayerNorm."""

    alpha: float
    beta: float
    eps: float
    weight_offset: float
    centre: bool


def _check_is_asked_for() -> bool:
    answer = os.environ.get("INCLINE_FAST_CHECK", "0")
    if answer not in ("0", "1"):
        raise ValueError(f'INCLINE_FAST_CHECK is "{answer}"; allowed: 0, 1')
    return answer == "1"


CHECK_ON_GPU = _check_is_asked_for()
"""``INCLINE_FAST_CHECK=1``: read row_map on a GPU too, which waits for the device. Without it a map that does not exist
makes its row NaN; nothing outside the maps is read."""


def num_rows(x: Tensor) -> int:
    """Number of tokens of ``x [..., d]``."""
    return math.prod(x.shape[:-1])


def per_row(value: PerRow) -> tuple[float, Tensor | None]:
    """Split alpha or beta into (scale, per-row factor or None): the ops take both and multiply them."""
    return (1.0, value) if isinstance(value, Tensor) else (float(value), None)


def aligned_weights(map: AffineMap) -> Aligned:
    """``map.aligned()``, safe to read by a launch that overlaps with the kernel ahead of it.

    Such a launch reads the weights before the kernel ahead has ended (:func:`set_programmatic_launch`), which must
    therefore not be the one that writes them. Where they are made now, a small kernel comes between: launched as usual,
    it begins when they are written.
    """
    if not programmatic_launch() or map.keeps_aligned():
        return map.aligned()
    weights = map.aligned()
    if weights[1].is_cuda and not torch.compiler.is_compiling():
        weights[1].new_zeros(1)
    return weights


def op_tail(
    route: str,
    map: AffineMap,
    bias: Tensor | None,
    alpha: PerRow,
    beta: PerRow,
    row_map: Tensor | None,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor | float | None, ...]:
    """The arguments in which all forms of the compiled ops end, in the order of their schemas.

    ``route`` is the backend: the CPU's kernels take packed panels, those of a GPU aligned rows. The other arguments are
    those of :func:`incline_fast.ops.affine_rms_norm`.
    """
    if route == "cpu":
        down, up = map.packed()
        down_scale, up_scale = map.down_scale, map.up_scale
    else:
        if CHECK_ON_GPU:  # the CPU's kernels look for themselves
            check_row_map(row_map, map.num_maps)
        down, up, down_scale, up_scale = aligned_weights(map)
    # For Python numbers, the common case, no function is called.
    row_alpha = row_beta = None
    if type(alpha) is not float:
        alpha, row_alpha = per_row(alpha)
    if type(beta) is not float:
        beta, row_beta = per_row(beta)
    return down, up, down_scale, up_scale, bias, row_alpha, row_beta, row_map, alpha, beta, eps, weight_offset


def check(inputs: Inputs) -> None:
    """Refuse what the op does not define; ``down`` and ``up`` are ``[G, N, K]`` or packed, see ``maps.pack``.

    Raises:
        ValueError: a dtype that is not supported, a shape that does not fit, or tensors on different devices.
    """
    x, residual, bias, row_map = inputs.x, inputs.residual, inputs.bias, inputs.row_map
    _dtype("x", x, FLOATS)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [..., d] with d >= 1")
    if residual is not None:
        _dtype("residual", residual, (x.dtype, torch.float32, torch.float64))
        _shape("residual", residual, tuple(x.shape), "the shape of x")
    hidden, rows = x.shape[-1], num_rows(x)
    for name, vector, size, meaning in (
        ("weight", inputs.weight, hidden, "the hidden size"),
        ("norm_bias", inputs.norm_bias, hidden, "the hidden size"),
        ("row_alpha", inputs.row_alpha, rows, "the number of rows of x"),
        ("row_beta", inputs.row_beta, rows, "the number of rows of x"),
    ):
        if vector is not None:
            _dtype(name, vector, FLOATS)
            _shape(name, vector, (size,), meaning)
    down, up = inputs.down, inputs.up
    _check_maps(x, residual, down, up)
    _check_scale("up", up, inputs.up_scale, hidden)
    _check_scale("down", down, inputs.down_scale, 0 if down is None else rank_of(down, up))
    if bias is not None:
        _dtype("bias", bias, FLOATS)
        if bias.dim() == 1:
            _shape("bias", bias, (hidden,), "the hidden size")
        else:
            _shape("bias", bias, (up.shape[0], hidden), "one bias per map")
    if row_map is not None:
        _dtype("row_map", row_map, (torch.int32,))
        _shape("row_map", row_map, (rows,), "the number of rows of x")
    for name, tensor in zip(Inputs._fields, inputs, strict=True):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on device {tensor.device}; expected {x.device}, the device of x")


def _check_maps(x: Tensor, residual: Tensor | None, down: Tensor | None, up: Tensor) -> None:
    double = torch.float64 in (x.dtype, x.dtype if residual is None else residual.dtype)
    allowed = (torch.float64,) if double else SINGLE_MAP_DTYPES
    hidden = x.shape[-1]
    _dtype("up", up, allowed)
    if down is None:
        _map_shape("up", up, hidden, hidden)
        return
    _dtype("down", down, allowed)
    if up.dim() != 3 and not is_packed(up):
        raise ValueError(f"up has shape {tuple(up.shape)}; expected [G, d, rank] or what pack() makes of it")
    rank = rank_of(down, up)
    _map_shape("up", up, hidden, rank)
    _map_shape("down", down, rank, hidden)
    if down.shape[0] != up.shape[0]:
        raise ValueError(f"down holds {down.shape[0]} maps; expected {up.shape[0]}, as many as up")


def _map_shape(name: str, weight: Tensor, columns: int, depth: int) -> None:
    """Refuse a weight that is not a stack of maps from ``depth`` to ``columns`` numbers, packed or not."""
    shape = tuple(weight.shape[1:])
    fits = shape in ((columns, depth), packed_shape(weight.dtype, columns, depth))
    if not fits or weight.shape[0] < 1 or depth < 1:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)}; expected [G, {columns}, {depth}] or what pack() makes of it, "
            "with G >= 1"
        )


def _check_scale(name: str, weight: Tensor | None, scale: Tensor | None, columns: int) -> None:
    """Refuse a scale of a float weight, and an int8 weight without its fp32 scale ``[G, columns]``."""
    if weight is None or weight.dtype is not torch.int8:
        if scale is not None:
            raise ValueError(f"{name}_scale is given, but {name} is not int8; only int8 weights have a scale")
        return
    if scale is None:
        raise ValueError(f"{name}_scale is absent, but {name} is int8; expected float32 [G, {columns}]")
    _dtype(f"{name}_scale", scale, (torch.float32,))
    _shape(f"{name}_scale", scale, (weight.shape[0], columns), "one factor per output column")


def _dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in allowed))
        raise ValueError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; allowed: {names}")


def _shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}, {meaning}")


def check_row_map(row_map: Tensor | None, num_maps: int) -> None:
    """Refuse indices past the last map.

    Values are not known while tracing or while a CUDA graph is captured; nothing is checked there.
    """
    if row_map is None or torch.compiler.is_compiling() or not row_map.numel():
        return
    if row_map.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    largest = int(row_map.max())
    if largest >= num_maps:
        raise ValueError(f"row_map holds {largest}; allowed: below {num_maps}, the number of maps")


def check_in_place(x: Tensor, residual: Tensor | None) -> None:
    """Refuse one tensor in both roles: the two outputs would overwrite each other."""
    if residual is x:
        raise ValueError("x and residual are the same tensor; they receive two outputs and must be different")
