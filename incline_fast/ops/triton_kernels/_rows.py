"""What follows the product: the edit of a row, its rounding, and its norm.

    r' = round(beta r + alpha (scale mapped + bias)),   y = norm(r')        r = x (+ residual)

``epilogue`` does it for the rows of a GEMM's result, one program per row; the last phase of ``decode`` is the
same code. Arguments that belong together travel in tuples:

    inputs   x, residual, their row strides
    vectors  up_scale, bias, the bias's stride from map to map
    edit     row_alpha, row_beta, row_map, alpha, beta, num_maps
    norm     weight, norm_bias, eps, weight_offset
    outputs  y, edited, their row strides
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["WARPS", "epilogue", "finish_row"]

WARPS = 4
"""Warps of every program. Not tuned: the shape of the reductions, and so their rounding, depends on it."""


@triton.jit
def _strength(factors, row, scale):
    """``scale``, times the row's factor where there is one."""
    if factors is not None:
        scale *= tl.load(factors + row).to(tl.float32)
    return scale


@triton.jit
def _row_edit(row, edit):
    """((alpha, beta, whether the row is edited), its map)."""
    row_alpha, row_beta, row_map, alpha, beta, num_maps = edit
    map = tl.full([], 0, tl.int32)
    if row_map is not None:
        map = tl.load(row_map + row)
    edits = map >= 0
    # The values of row_map are not known on the host. One past the last map reads nothing and makes the row NaN.
    strength = tl.where(map < num_maps, _strength(row_alpha, row, alpha), float("nan"))
    map = tl.minimum(tl.maximum(map, 0), num_maps - 1).to(tl.int64)
    return (strength, _strength(row_beta, row, beta), edits), map


@triton.jit
def _edit_piece(x, residual, mapped, up_scale, bias, row_edit, edited, columns, mask):
    """One piece of ``r' = beta r + alpha (scale mapped + bias)``: stored rounded, returned as the rounded values."""
    alpha, beta, edits = row_edit
    value = tl.load(x + columns, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + columns, mask=mask, other=0.0).to(tl.float32)
    # For a row without a map that part of the buffer was never written. ".cg": others wrote it, read from L2.
    change = tl.load(mapped + columns, mask=mask & edits, other=0.0, cache_modifier=".cg")
    if up_scale is not None:
        change *= tl.load(up_scale + columns, mask=mask & edits, other=0.0)
    if bias is not None:
        change += tl.load(bias + columns, mask=mask & edits, other=0.0).to(tl.float32)
    rounded = tl.where(edits, beta * value + alpha * change, value).to(edited.dtype.element_ty)
    tl.store(edited + columns, rounded, mask=mask)
    return rounded.to(tl.float32)


@triton.jit
def _piece_statistics(value, mask, size, CENTRE: tl.constexpr):
    """Mean (0 unless CENTRE) and sum of squared deviations from it of ``size`` values, in two passes."""
    mean = 0.0
    if CENTRE:
        mean = tl.sum(value, 0) / size
    deviation = tl.where(mask, value - mean, 0.0)
    return mean, tl.sum(deviation * deviation, 0)


@triton.jit
def _norm_piece(value, mean, squares, hidden, norm, y, columns, mask):
    """One piece of ``y = (r' - mean) / sqrt(squares / hidden + eps) (weight + weight_offset) + norm_bias``."""
    weight, norm_bias, eps, weight_offset = norm
    rstd = 1.0 / tl.sqrt_rn(squares / hidden + eps)
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + weight_offset
    result = (value - mean) * rstd * scale
    if norm_bias is not None:
        result += tl.load(norm_bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + columns, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def finish_row(
    row, inputs, mapped, vectors, edit, norm, outputs, hidden,
    CENTRE: tl.constexpr, BLOCK_D: tl.constexpr, RESIDENT: tl.constexpr
):  # fmt: skip
    """r' and y of one row from its M r. RESIDENT rows stay in registers; longer ones are read again."""
    x, residual, x_stride, residual_stride = inputs
    y, edited, y_stride, edited_stride = outputs
    up_scale, bias, bias_stride = vectors
    row_edit, map = _row_edit(row, edit)
    # Not in a function that returns the pointer: Triton 3.6 cannot return None, which is what an absent vector is.
    if up_scale is not None:
        up_scale += map * hidden
    if bias is not None:
        bias += map * bias_stride
    row = row.to(tl.int64)
    x, mapped = x + row * x_stride, mapped + row * hidden
    if residual is not None:
        residual += row * residual_stride
    y, edited = y + row * y_stride, edited + row * edited_stride
    columns = tl.arange(0, BLOCK_D)
    if RESIDENT:
        mask = columns < hidden
        value = _edit_piece(x, residual, mapped, up_scale, bias, row_edit, edited, columns, mask)
        mean, squares = _piece_statistics(value, mask, hidden, CENTRE)
        _norm_piece(value, mean, squares, hidden, norm, y, columns, mask)
    else:
        mean, squares, seen = 0.0, 0.0, 0.0
        for begin in range(0, hidden, BLOCK_D):
            piece = begin + columns
            value = _edit_piece(x, residual, mapped, up_scale, bias, row_edit, edited, piece, piece < hidden)
            size = tl.minimum(hidden - begin, BLOCK_D).to(tl.float32)
            piece_mean, piece_squares = _piece_statistics(value, piece < hidden, size, CENTRE)
            # Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979)
            gap, total = piece_mean - mean, seen + size
            squares += piece_squares + gap * gap * (seen * size / total)
            mean += gap * (size / total)
            seen = total
        tl.debug_barrier()
        for begin in range(0, hidden, BLOCK_D):
            piece = begin + columns
            value = tl.load(edited + piece, mask=piece < hidden, other=0.0).to(tl.float32)
            _norm_piece(value, mean, squares, hidden, norm, y, piece, piece < hidden)


@triton.jit
def epilogue(
    # inputs; None where absent
    x,
    residual,
    mapped,
    up_scale,
    bias,
    row_alpha,
    row_beta,
    row_map,
    weight,
    norm_bias,
    # outputs
    y,
    edited,
    # sizes
    hidden,
    num_maps,
    # strides, in elements
    x_stride,
    residual_stride,
    y_stride,
    edited_stride,
    bias_stride,
    # numbers of the call
    alpha,
    beta,
    eps,
    weight_offset,
    # constants of the norm
    CENTRE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Rows of a finished product, one program each; ``mapped`` is contiguous fp32 ``[num_tokens, hidden]``."""
    inputs = (x, residual, x_stride, residual_stride)
    vectors, edit = (up_scale, bias, bias_stride), (row_alpha, row_beta, row_map, alpha, beta, num_maps)
    norm, outputs = (weight, norm_bias, eps, weight_offset), (y, edited, y_stride, edited_stride)
    finish_row(tl.program_id(0), inputs, mapped, vectors, edit, norm, outputs, hidden, CENTRE, BLOCK_D, RESIDENT)
