"""Blocked Cholesky on stacks ``[B, n, n]``: matrix products by torch around the compiled kernel for diagonal blocks.

Left-looking: a block column is first reduced by everything to its left in one product of depth j, then its diagonal
block D is factored, and the rows below are multiplied with the inverse of D's factor:

    C = A[j:, J] - L[j:, :j] L[J, :j]^T,      D = L_J L_J^T,      L[below, J] = C[below] L_J^-T

Multiplying with an explicit inverse instead of substituting adds an error of at most about eps cond(L_J) per block
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 14.2); cond(L_J) is the root of cond(D).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from incline_fast.ops.cholesky_block import cholesky_block, cholesky_block_, triangular_inverse

__all__ = ["WHOLE", "factor", "factor_into", "inverse_diagonal", "solve"]

_BLOCK = 128
# Up to this n the CPU's kernel takes a whole matrix faster than products of blocks do; docs/benchmarks/cholesky.md has
# the numbers. The CUDA kernel takes one block.
WHOLE = {torch.float32: 1024, torch.float64: 860}


def _is_whole(A: Tensor) -> bool:
    return A.shape[-1] <= (_BLOCK if A.is_cuda else WHOLE[A.dtype])


def factor(A: Tensor) -> tuple[Tensor, Tensor]:
    """``(L, info)`` of ``[..., n, n]`` in new memory; only the lower triangles are read."""
    if _is_whole(A):
        return cholesky_block(A)
    L = A.new_empty(A.shape)
    return L, factor_into(A, L)


def factor_into(A: Tensor, L: Tensor) -> Tensor:
    """Put the factors of A ``[..., n, n]`` and zeros above their diagonals into L, which may be A; returns info."""
    info = torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)
    if A.numel() == 0:
        return info
    if _is_whole(A):
        cholesky_block_(L if L is A else L.copy_(A), None, info, 0)
        return info
    factors = _as_stack(L)
    if _few_launches(A):
        if L is not A:
            factors.copy_(_as_stack(A))
        for factor, pivot in zip(factors, info.view(-1), strict=True):
            _factor_matrix_(factor, pivot)
        factors.tril_()
    else:
        for matrix, factor, pivot in zip(_as_stack(A), factors, info.view(-1), strict=True):
            _factor_matrix(matrix, factor, pivot)
    if factors.data_ptr() != L.data_ptr():  # leading dimensions that no single stride describes were copied
        L.copy_(factors.view(L.shape))
    return info


def _factor_matrix(A: Tensor, L: Tensor, info: Tensor) -> None:
    """Factor ``A [n, n]`` into ``L [n, n]``, which may be A; ``info`` is its element of the stack's info."""
    n = len(A)
    width = _block_width(n)
    inverse = A.new_empty(width, width)
    # Products run fastest into contiguous memory; one buffer serves every block column.
    buffer = A.new_empty(n, width)
    for begin, end in _blocks(n):
        left, size = L[begin:, :begin], end - begin
        column = buffer.view(-1)[: (n - begin) * size].view(n - begin, size)
        torch.addmm(A[begin:, begin:end], left, left[:size].T, alpha=-1, out=column)
        block, X = column[:size], inverse[:size, :size]
        cholesky_block_(block, X if end < n else None, info, begin)
        L[begin:end, begin:end] = block
        if end < n:
            L[begin:end, end:].zero_()
            torch.mm(column[size:], X.T, out=L[end:, begin:end])


def _few_launches(A: Tensor) -> bool:
    """On a GPU what the host starts for a block column takes it as long as the device is busy with that; on a CPU
    contiguous memory is worth more."""
    return A.is_cuda


def _factor_matrix_(L: Tensor, info: Tensor) -> None:
    """``L [n, n]`` from its own lower triangle, in four launches a block column; above its diagonal blocks L keeps what
    was there."""
    n = len(L)
    width = _block_width(n)
    inverse = L.new_empty(width, width)
    buffer = L.new_empty(n, width)
    for begin, end in _blocks(n):
        left, size = L[begin:, :begin], end - begin
        if begin > 0:
            L[begin:, begin:end].addmm_(left, left[:size].T, alpha=-1)
        X = inverse[:size, :size] if end < n else None
        cholesky_block_(L[begin:end, begin:end], X, info, begin)
        if X is not None:
            below = L[end:, begin:end]
            below.copy_(torch.mm(below, X.T, out=buffer[end:, :size]))


def solve(B: Tensor, L: Tensor) -> Tensor:
    """``X`` of ``L L^T X = B`` for B ``[..., n, k]`` and L ``[..., n, n]``, whose leading dimensions broadcast."""
    batch = torch.broadcast_shapes(B.shape[:-2], L.shape[:-2])  # type: ignore[no-untyped-call]
    X = B.expand(*batch, *B.shape[-2:]).clone(memory_format=torch.contiguous_format)
    if X.numel() == 0:
        return X
    factors = _as_stack(L.expand(*batch, *L.shape[-2:]))
    inverses = _block_inverses(factors)
    for index, (matrix, solution) in enumerate(zip(factors, _as_stack(X), strict=True)):
        _substitute_(matrix, [inverse[index] for inverse in inverses], solution)
    return X


def _substitute_(L: Tensor, inverses: list[Tensor], X: Tensor) -> None:
    """``X [n, k] <- (L L^T)^-1 X``, block by block, with the inverses of the diagonal blocks of ``L [n, n]``."""
    blocks = list(zip(_blocks(len(L)), inverses, strict=True))
    for (begin, end), inverse in blocks:
        rest = torch.addmm(X[begin:end], L[begin:end, :begin], X[:begin], alpha=-1)
        torch.mm(inverse, rest, out=X[begin:end])
    for (begin, end), inverse in reversed(blocks):
        rest = torch.addmm(X[begin:end], L[end:, begin:end].T, X[end:], alpha=-1)
        torch.mm(inverse.T, rest, out=X[begin:end])


def inverse_diagonal(L: Tensor) -> Tensor:
    """Diagonal ``[..., n]`` of ``(L L^T)^-1``: squared column norms of ``L^-1``, built block row by block row."""
    n = L.shape[-1]
    result = L.new_zeros(L.shape[:-1])
    if L.numel() == 0:
        return result
    stack = _as_stack(L)
    inverses = _block_inverses(stack)
    whole = L.new_empty(n, n)
    for index, (matrix, sums) in enumerate(zip(stack, result.view(-1, n), strict=True)):
        for (begin, end), inverse in zip(_blocks(n), inverses, strict=True):
            whole[:begin, begin:end] = 0
            whole[begin:end, begin:end] = inverse[index]
            if begin > 0:
                above = torch.mm(matrix[begin:end, :begin], whole[:begin, :begin])
                torch.mm(inverse[index], above.neg_(), out=whole[begin:end, :begin])
            sums[:end] += whole[begin:end, :end].square().sum(0)
    return result


def _block_inverses(stack: Tensor) -> list[Tensor]:
    return [triangular_inverse(stack[:, begin:end, begin:end]) for begin, end in _blocks(stack.shape[-1])]


def _block_width(n: int) -> int:
    """Rows of a block, so that as few as the kernel allows share n evenly: 129 rows are 72 + 57, not 128 + 1."""
    count = -(-n // _BLOCK)
    return -(-n // (8 * count)) * 8


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    width = _block_width(n)
    return ((begin, min(begin + width, n)) for begin in range(0, n, width))


def _as_stack(matrices: Tensor) -> Tensor:
    return matrices.reshape(-1, *matrices.shape[-2:])
