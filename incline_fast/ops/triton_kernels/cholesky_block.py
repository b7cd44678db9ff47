"""``torch.ops.incline_fast.cholesky_block`` and its relatives on Triton, for blocks of at most 128 rows.

Every matrix of a stack has its own program for the factor, and one per 32 columns for the inverse.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from incline_fast.ops.triton_kernels._elimination import WIDTH, factor, invert
from incline_fast.ops.triton_kernels._layout import collapses, on_device_of, stack

__all__ = ["MAX_SIZE", "cholesky_block", "cholesky_block_", "triangular_inverse"]

MAX_SIZE = 128
"""Rows of the largest block; the blocked factorisation needs no larger ones."""
_WARPS = 8


@triton_op("incline_fast_triton::cholesky_block", mutates_args=())
def cholesky_block(A: Tensor) -> tuple[Tensor, Tensor]:
    """``(L, info)`` of ``[..., n, n]``: zeros above the diagonal, int32 info ``[...]`` as in LAPACK."""
    _check("A", A)
    L = A.new_empty(A.shape)
    info = A.new_zeros(A.shape[:-2], dtype=torch.int32)
    _factor(A, L, info, 0)
    return L, info


@triton_op("incline_fast_triton::cholesky_block_", mutates_args=("A", "inverse", "info"))
def cholesky_block_(A: Tensor, inverse: Tensor | None, info: Tensor, first: int) -> None:
    """``A <- L``, ``inverse <- L^-1``; arguments as in :func:`incline_fast.ops.cholesky_block.cholesky_block_`."""
    _check("A", A)
    if inverse is not None and (inverse.dtype, inverse.shape) != (A.dtype, A.shape):
        raise ValueError(
            f"inverse is {inverse.dtype} {tuple(inverse.shape)}; expected {A.dtype} {tuple(A.shape)}, as A is"
        )
    if info.dtype is not torch.int32 or info.shape != A.shape[:-2]:
        raise ValueError(f"info is {info.dtype} {tuple(info.shape)}; expected int32 {tuple(A.shape[:-2])}")
    for name, tensor in (("inverse", inverse), ("info", info)):
        if tensor is not None and tensor.device != A.device:
            raise ValueError(f"{name} is on device {tensor.device}; expected {A.device}, the device of A")
    _factor(A, A, info, first)
    if inverse is not None:
        _invert(A, inverse, info)


@triton_op("incline_fast_triton::triangular_inverse", mutates_args=())
def triangular_inverse(L: Tensor) -> Tensor:
    """``L^-1`` of lower triangular ``[..., n, n]``; the strict upper triangle is not read."""
    _check("L", L)
    inverse = L.new_empty(L.shape)
    _invert(L, inverse, None)
    return inverse


def _check(name: str, stack: Tensor) -> None:
    if stack.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} has dtype {str(stack.dtype).removeprefix('torch.')}; allowed: float32, float64")
    if stack.dim() < 2 or stack.shape[-1] != stack.shape[-2] or stack.shape[-1] > MAX_SIZE:
        raise ValueError(f"{name} has shape {tuple(stack.shape)}; expected [..., n, n] with n <= {MAX_SIZE}")


def _factor(source: Tensor, result: Tensor, info: Tensor, first: int) -> None:
    """Run the kernel on stacks; outputs whose leading dimensions no single stride describes go through a copy."""
    if source.numel() == 0:
        return
    size, sources, results, pivots = source.shape[-1], stack(source, 2), stack(result, 2), stack(info, 0)
    with on_device_of(source):
        wrap_triton(factor)[(len(sources),)](
            sources, results, pivots, *sources.stride(), *results.stride(), size, first, **_constants(size)
        )
    _bring_back(result, results, 2)
    _bring_back(info, pivots, 0)


def _invert(source: Tensor, result: Tensor, info: Tensor | None) -> None:
    if source.numel() == 0:
        return
    size, sources, results = source.shape[-1], stack(source, 2), stack(result, 2)
    pivots = None if info is None else stack(info, 0)
    with on_device_of(source):
        wrap_triton(invert)[(len(sources), triton.cdiv(size, WIDTH))](
            sources, results, pivots, *sources.stride(), *results.stride(), size, **_constants(size)
        )
    _bring_back(result, results, 2)


def _constants(size: int) -> dict[str, int]:
    return {"SIZE": max(16, triton.next_power_of_2(size)), "WIDTH": WIDTH, "num_warps": _WARPS}


def _bring_back(output: Tensor, computed: Tensor, trailing: int) -> None:
    if not collapses(output, trailing):
        output.copy_(computed.view(output.shape))
