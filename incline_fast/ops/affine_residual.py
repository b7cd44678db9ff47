"""Affine residual intervention on chosen rows, in place and without the norm: for prompts, whose edits are few.

    r   = x (+ residual)
    r'  = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 are not touched, to the bit

Without a residual, x <- r'. With one, residual <- r' and x <- 0 in the edited rows, so that the engine's own fused
add-and-norm, which comes next, finds r' as x + residual and keeps the bits of all other rows.

The row vectors may be longer than x has rows: an engine keeps them in buffers of its largest batch, at fixed addresses,
so that a compiled or captured graph reads what was written for the present step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops import reference
from incline_fast.ops._arguments import Inputs, aligned_weights, check, check_row_map, num_rows
from incline_fast.ops._dispatch import choose
from incline_fast.ops._extension import CUDA_EXTENSION, EXTENSION
from incline_fast.packing import is_packed, rank_of, unpack

__all__ = ["OP", "affine_residual_"]


def affine_residual_(
    x: Tensor,
    map: AffineMap,
    *,
    row_alpha: Tensor,
    row_beta: Tensor,
    row_map: Tensor,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Edit the rows of a residual stream that ``row_map`` names, in place.

    Args:
        x: ``[..., d]``, any strides: the residual stream, or with ``residual`` what is about to be added to it.
        map: the stack of maps.
        row_alpha, row_beta: floats ``[n]`` with n at least the number of rows of x.
        row_map: int32 ``[n]``, each row's map in the stack; negative: the row is not touched.
        residual: ``[..., d]`` or None.
        bias: ``[d]`` or ``[G, d]`` added to the map's output, any float dtype.
        backend: "auto", "cpu", "cuda" or "reference".

    Raises:
        ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
    """
    route = choose(x.device, backend)
    if route == "reference":
        weights = (map.down, map.up, map.down_scale, map.up_scale)
        _in_plain_torch(x, residual, *weights, bias, row_alpha, row_beta, row_map)
        return
    if route == "cpu":
        down, up = map.packed()
        weights = (down, up, map.down_scale, map.up_scale)
    else:
        weights = aligned_weights(map)
    OP(x, residual, *weights, bias, row_alpha, row_beta, row_map)


def _cut(x: Tensor, residual: Tensor | None, *arguments: Any) -> Inputs:
    """The op's arguments as those of the fused op: row vectors as long as x has rows, the norm's weight ones.

    Raises:
        ValueError: an argument is not allowed.
    """
    rows = num_rows(x)
    *maps, row_alpha, row_beta, row_map = arguments
    for name, vector in (("row_alpha", row_alpha), ("row_beta", row_beta), ("row_map", row_map)):
        if vector.dim() != 1 or vector.shape[0] < rows:
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)}; expected ({rows},), the number of rows of x, or more"
            )
    others = (*maps, row_alpha[:rows], row_beta[:rows], row_map[:rows])
    found = Inputs(x, residual, x.new_ones(x.shape[-1:]), None, *others)
    check(found)
    return found


def _write(given: Inputs, edited: Tensor) -> None:
    """Write the edited rows of r' where the op's caller finds them."""
    x, residual, row_map = given.x, given.residual, given.row_map
    assert row_map is not None
    chosen = (row_map >= 0).reshape(*x.shape[:-1], 1)
    written = x if residual is None else residual
    written.copy_(torch.where(chosen, edited, written))
    if residual is not None:
        x.masked_fill_(chosen, 0)


def _unpacked(given: Inputs) -> tuple[Tensor | None, Tensor]:
    """``down`` and ``up`` as ``[G, N, K]``."""
    hidden, down, up = given.x.shape[-1], given.down, given.up
    depth = hidden if down is None else rank_of(down, up)
    up = unpack(up, hidden, depth) if is_packed(up) else up
    if down is not None and is_packed(down):
        down = unpack(down, depth, hidden)
    return down, up


def _in_plain_torch(*arguments: Any) -> None:
    """The definition of the op; a pure-Python installation runs it."""
    given = _cut(*arguments)
    check_row_map(given.row_map, given.up.shape[0])
    scales_bias_and_rows: tuple[Any, ...] = given[6:]
    edit = reference.Edit(*_unpacked(given), *scales_bias_and_rows)
    edited, _ = reference.affine_residual(given.x, given.residual, edit)
    _write(given, edited)


def _on_gpu(*arguments: Any) -> None:
    """The same on a GPU, from its fused op: no size depends on values, so a CUDA graph can be captured."""
    given = _cut(*arguments)
    x, residual, weight, _, *rest = given
    _, edited = torch.ops.incline_fast.affine_rms_norm(x, residual, weight, *rest, 1.0, 1.0, 1.0, 0.0)
    _write(given, edited)


def _fake(*arguments: Any) -> None:
    """Nothing is checked while tracing: comparing a symbolic number of rows with a buffer would become a guard."""


_NAME = "incline_fast::affine_residual_"
_SCHEMA = (
    "(Tensor(a!) x, Tensor(b!)? residual, Tensor? down, Tensor up, Tensor? down_scale, Tensor? up_scale, Tensor? bias, "
    "Tensor row_alpha, Tensor row_beta, Tensor row_map) -> ()"
)

if EXTENSION is None:  # graphs name the op, so that it has to exist without the compiled library too
    torch.library.define(_NAME, _SCHEMA)
    torch.library.impl(_NAME, "default", _in_plain_torch)
elif CUDA_EXTENSION is not None:
    torch.library.impl(_NAME, "cuda", _on_gpu)
torch.library.register_fake(_NAME, _fake)

OP = torch.ops.incline_fast.affine_residual_.default
"""The op itself, whose CPU form takes packed maps. Looked up once: each attribute is a part of a small call."""
