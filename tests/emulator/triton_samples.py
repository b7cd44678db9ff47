"""Small Triton kernels on which the driver and the emulator are tested."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_norm(x, weight, y, size, eps, BLOCK: tl.constexpr):
    """RMSNorm of a row for each program; statistics in fp32."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < size
    values = tl.load(x + row * size + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    result = values * scale * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(y + row * size + column, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b, c, rows, columns, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c = a b by tiles, sums in fp32 (int32 for int8)."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), dtype=c.dtype.element_ty)
    for start in range(0, depth, K):
        k = start + tl.arange(0, K)
        left = tl.load(
            a + row[:, None] * depth + k[None, :], mask=(row[:, None] < rows) & (k[None, :] < depth), other=0
        )
        right = tl.load(
            b + k[:, None] * columns + column[None, :], mask=(k[:, None] < depth) & (column < columns)[None, :], other=0
        )
        total = tl.dot(left, right, total, out_dtype=c.dtype.element_ty)
    tl.store(
        c + row[:, None] * columns + column[None, :], total, mask=(row[:, None] < rows) & (column < columns)[None, :]
    )


@triton.jit
def last_program_sums(x, parts, counter, total, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, SEM: tl.constexpr):
    """Every program sums its part; the last one to finish sums the parts in order and resets the counter."""
    program = tl.program_id(0)
    tl.store(parts + program, tl.sum(tl.load(x + program * BLOCK + tl.arange(0, BLOCK)), 0))
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem=SEM) == PROGRAMS - 1:
        tl.store(total, tl.sum(tl.load(parts + tl.arange(0, PROGRAMS)), 0))
        tl.atomic_xchg(counter, 0)


@triton.jit
def sort_and_scan(x, sorted_x, scanned, BLOCK: tl.constexpr):
    """Shared memory, shuffles and predicates of many kinds."""
    index = tl.arange(0, BLOCK)
    values = tl.load(x + index)
    tl.store(sorted_x + index, tl.sort(values))
    tl.store(scanned + index, tl.cumsum(values, 0))


@triton.jit
def copy_beyond(x, y, size, BLOCK: tl.constexpr):
    """A copy that forgets its mask."""
    index = tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index), mask=index < size)
