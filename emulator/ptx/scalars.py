"""PTX's scalar types as numpy has them. bf16, which numpy lacks, is computed in fp32 and kept as 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {"f16": np.float16, "f32": np.float32, "tf32": np.float32, "f64": np.float64}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
BITS = {f"{kind}{bits}": bits for kind in "bus" for bits in UNSIGNED}
BITS |= {"pred": 1, "f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32, "f32x2": 64}


def raw(bits: int) -> Any:
    """The dtype in which a register of this width is kept."""
    return np.bool_ if bits == 1 else UNSIGNED[bits]


def decode(bits: Array, kind: str) -> Array:
    """Numbers of a PTX type from raw bits of that width."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind in FLOAT:
        return bits.view(FLOAT[kind])
    return bits.view(SIGNED[BITS[kind]]) if kind[0] == "s" else bits


def encode(values: Array, kind: str) -> Array:
    """Raw bits of a PTX type from numbers; floating-point values are rounded to nearest even."""
    if kind == "pred":
        return values.astype(np.bool_)
    if kind == "bf16":
        return values if values.dtype == np.uint16 else round_to_bf16(values)
    if kind in FLOAT:
        return values.astype(FLOAT[kind]).view(UNSIGNED[BITS[kind]])
    bits = BITS[kind]
    if values.dtype.kind == "f":
        raise TypeError(f"a {values.dtype} result for the integer type {kind}")
    return values.astype(SIGNED[bits] if kind[0] == "s" else UNSIGNED[bits]).view(UNSIGNED[bits])


def round_to_bf16(values: Array, toward_zero: bool = False) -> Array:
    """fp32 (or fp64) to the bits of bf16."""
    single = values.astype(np.float32)
    if values.dtype == np.float64 and not toward_zero:
        single = _keep_sticky(values, single)
    bits = np.ascontiguousarray(single).view(np.uint32)
    if not toward_zero:
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(single), np.uint32(0x7FFF), bits >> np.uint32(16)).astype(np.uint16)


def _keep_sticky(values: Array, single: Array) -> Array:
    """fp32 rounded to odd where fp64 was inexact, so that the second rounding sees which side of a tie it was on."""
    bits = np.ascontiguousarray(single).view(np.uint32)
    inexact = (single.astype(np.float64) != values) & np.isfinite(single)
    toward_zero = np.where(inexact & (np.abs(single.astype(np.float64)) > np.abs(values)), bits - np.uint32(1), bits)
    return np.where(inexact, toward_zero | np.uint32(1), bits).view(np.float32)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a b + c rounded once, in fp32. The product is exact in fp64; ties of the second rounding are decided by the
    error of the fp64 sum."""
    product = a.astype(np.float64) * b
    total = np.asarray(product + c)
    bits = total.view(np.int64)
    tie = (bits & 0x1FFFFFFF) == 0x10000000
    if tie.any():
        back = total - product
        error = (product - (total - back)) + (c - back)
        outward = np.where((error > 0) == (total > 0), 1, -1)
        total = np.where(tie & (error != 0) & np.isfinite(total), bits + outward, bits).view(np.float64)
    return total.astype(np.float32)
