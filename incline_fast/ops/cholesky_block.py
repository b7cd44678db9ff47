"""The kernels of the Cholesky factorisation: stacks of small matrices in fp32 or fp64.

The CPU's compiled kernels take up to 1024 rows. On a GPU the compiled kernels take up to 128, and where their library
is absent the kernels of Triton run the same calls.

One elimination of ``[A | I]`` gives ``[L^T | L^-1]``; the inverse makes matrix products of the solves with the block.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from incline_fast.ops._extension import CUDA_EXTENSION, EXTENSION

__all__ = ["MAX_SIZE", "cholesky_block", "cholesky_block_", "triangular_inverse"]

MAX_SIZE = 1024
"""Rows of the largest matrix that the CPU's kernels take."""


def cholesky_block(A: Tensor) -> tuple[Tensor, Tensor]:
    """``(L, info)`` of ``[..., n, n]``: the factor with zeros above the diagonal, int32 info ``[...]``.

    Only the lower triangle of A is read. info is 0, or the 1-based index of the first pivot that is not a positive
    finite number; L is then unspecified.
    """
    result: tuple[Tensor, Tensor] = _op("cholesky_block", A)(A)
    return result


def cholesky_block_(A: Tensor, inverse: Tensor | None, info: Tensor, first: int) -> None:
    """Factor diagonal blocks in place: ``A <- L``, ``inverse <- L^-1``, both with zeros above the diagonal.

    Args:
        A: ``[..., n, n]``, any strides.
        inverse: like A, or None where it is not needed.
        info: int32 ``[...]``. A matrix that enters with another value than 0 has broken down in an earlier block and is
            left alone; a bad pivot's 1-based index, plus ``first``, is written. Both get an inverse of zeros.
        first: index of the block's first row in its matrix.
    """
    _op("cholesky_block_", A)(A, inverse, info, first)


def triangular_inverse(L: Tensor) -> Tensor:
    """``L^-1`` of lower triangular ``[..., n, n]``; the strict upper triangle is not read."""
    result: Tensor = _op("triangular_inverse", L)(L)
    return result


def _op(name: str, stack: Tensor) -> Any:
    """The compiled op, or Triton's where none is compiled for the stack's device."""
    if _needs_triton(stack):
        return getattr(import_module("incline_fast.ops.triton_kernels.cholesky_block"), name)
    return getattr(torch.ops.incline_fast, name).default


def _needs_triton(stack: Tensor) -> bool:
    return stack.is_cuda and CUDA_EXTENSION is None


def _check_block(name: str, stack: Tensor) -> None:
    if stack.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} has dtype {str(stack.dtype).removeprefix('torch.')}; allowed: float32, float64")
    if stack.dim() < 2 or stack.shape[-1] != stack.shape[-2] or stack.shape[-1] > MAX_SIZE:
        raise ValueError(f"{name} has shape {tuple(stack.shape)}; expected [..., n, n] with n <= {MAX_SIZE}")


def _fake_cholesky_block(A: Tensor) -> tuple[Tensor, Tensor]:
    _check_block("A", A)
    return A.new_empty(A.shape), A.new_empty(A.shape[:-2], dtype=torch.int32)


def _fake_cholesky_block_in_place(A: Tensor, inverse: Tensor | None, info: Tensor, first: int) -> None:
    _check_block("A", A)


def _fake_triangular_inverse(L: Tensor) -> Tensor:
    _check_block("L", L)
    return L.new_empty(L.shape)


if EXTENSION is not None:
    torch.library.register_fake("incline_fast::cholesky_block", _fake_cholesky_block)
    torch.library.register_fake("incline_fast::cholesky_block_", _fake_cholesky_block_in_place)
    torch.library.register_fake("incline_fast::triangular_inverse", _fake_triangular_inverse)
