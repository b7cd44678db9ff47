"""Cholesky factor of a block of at most 128 rows, and the inverse of the factor, by panels of 32 columns in registers.

    factor    l_jj = sqrt(a_jj),  l_ij = a_ij / l_jj,  a_ik -= l_ij l_kj       one program per matrix
    invert    x_j /= l_jj,  x_i -= l_ij x_j  from the identity,  i > j         one program per panel of a matrix

A panel is first reduced by the finished columns to its left, which are read back from memory, and then factored column
by column. A whole block would not fit the registers of a program in fp64.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["WIDTH", "factor", "invert"]

WIDTH = 32
"""Columns of a panel."""


@triton.jit
def _divide(a, b):
    """``a / b`` rounded to nearest; plain fp32 division is two units in the last place off."""
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b


@triton.jit
def _square_root(a):
    return tl.sqrt_rn(a) if a.dtype == tl.float32 else tl.sqrt(a)


@triton.jit
def _eliminate_columns(panel, rows, columns, begin, count, failed):
    """Factor a panel whose ``count`` columns begin at row ``begin``; the first bad pivot's 1-based index is kept."""
    for j in range(begin, begin + count):
        column = tl.sum(tl.where(columns[None, :] == j, panel, 0.0), 1)
        pivot = tl.sum(tl.where(rows == j, column, 0.0), 0)
        usable = (pivot > 0) & (pivot < float("inf"))
        failed = tl.where((failed == 0) & (usable == 0), j + 1, failed)
        root = _square_root(pivot)
        column = tl.where(rows > j, _divide(column, root), tl.where(rows == j, root, 0.0))
        top = tl.sum(tl.where(rows[:, None] == columns[None, :], column[:, None], 0.0), 0)
        rest = panel - column[:, None] * top[None, :]
        panel = tl.where(columns[None, :] == j, column[:, None], tl.where(columns[None, :] > j, rest, panel))
    return panel, failed


@triton.jit
def factor(
    source,
    result,
    info,
    source_stride,
    source_row,
    source_column,
    result_stride,
    result_row,
    result_column,
    size,
    first,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``result <- L`` with zeros above the diagonal; ``result`` may be ``source``, of which the lower triangle is read.

    A matrix whose ``info`` is not 0 is left alone; a bad pivot's 1-based index, plus ``first``, is written there.
    """
    matrix = tl.program_id(0).to(tl.int64)
    source += matrix * source_stride
    result += matrix * result_stride
    rows = tl.arange(0, SIZE)
    failed = 0
    if tl.load(info + matrix) == 0:
        for begin in range(0, size, WIDTH):
            columns = begin + tl.arange(0, WIDTH)
            inside = (rows < size)[:, None] & (columns < size)[None, :]
            lower = rows[:, None] >= columns[None, :]
            places = rows[:, None] * source_row + columns[None, :] * source_column
            panel = tl.load(source + places, mask=inside & lower, other=0.0)
            for k in range(begin):
                finished = result + k * result_column
                left = tl.load(finished + rows * result_row, mask=(rows >= begin) & (rows < size), other=0.0)
                top = tl.load(finished + columns * result_row, mask=columns < size, other=0.0)
                panel -= left[:, None] * top[None, :]
            panel, failed = _eliminate_columns(panel, rows, columns, begin, tl.minimum(WIDTH, size - begin), failed)
            places = rows[:, None] * result_row + columns[None, :] * result_column
            tl.store(result + places, tl.where(lower, panel, 0.0), mask=inside)
            tl.debug_barrier()  # the next panel's threads read what these have written
        if failed != 0:
            tl.store(info + matrix, failed + first)


@triton.jit
def invert(
    source,
    result,
    info,
    source_stride,
    source_row,
    source_column,
    result_stride,
    result_row,
    result_column,
    size,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One panel of ``result <- L^-1``; zeros where ``info`` is not 0. L's strict upper triangle is not read."""
    matrix = tl.program_id(0).to(tl.int64)
    source += matrix * source_stride
    rows = tl.arange(0, SIZE)
    begin = tl.program_id(1) * WIDTH
    columns = begin + tl.arange(0, WIDTH)
    broken = 0
    if info is not None:
        broken = tl.load(info + matrix)
    panel = tl.where(broken == 0, rows[:, None] == columns[None, :], False).to(source.dtype.element_ty)
    if broken == 0:
        for j in range(begin, size):
            below = (rows > j) & (rows < size)
            column = tl.load(source + rows * source_row + j * source_column, mask=below, other=0.0)
            pivot = tl.load(source + j * source_row + j * source_column)
            row = _divide(tl.sum(tl.where(rows[:, None] == j, panel, 0.0), 0), pivot)
            panel = tl.where(rows[:, None] == j, row[None, :], panel - column[:, None] * row[None, :])
    places = matrix * result_stride + rows[:, None] * result_row + columns[None, :] * result_column
    tl.store(result + places, panel, mask=(rows < size)[:, None] & (columns < size)[None, :])
