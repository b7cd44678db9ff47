"""In which arithmetic a map is multiplied with fp32 activations, so that nothing is lost before the sum.

Tensor cores multiply bf16, fp16 or tf32 exactly and add in fp32. A map's own dtype is one of them; an activation that
is none is the sum of two or three numbers that are, each of the next 8 (bf16) or 11 (fp16, tf32) bits. The split adds
multiplications, for which units are idle with few tokens, and no memory traffic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SIGNIFICANT_BITS", "block_depth", "num_splits", "operand", "product"]

SIGNIFICANT_BITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}

_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def operand(value: torch.dtype, weight: torch.dtype) -> tuple[str, int]:
    """(type in which the tensor cores multiply, parts that ``value`` is split into); "fp32": no tensor cores.

    fp16 holds neither the range of bf16 nor that of fp32, so fp16 weights meet such values in tf32, which holds both.
    """
    if weight is torch.float32:
        return "fp32", 1
    if value is torch.float16 and weight in (torch.float16, torch.int8):
        return "fp16", 1
    kind, bits = ("tf32", 11) if weight is torch.float16 else ("bf16", 8)
    return kind, math.ceil(SIGNIFICANT_BITS[value] / bits)


def block_depth(*products: tuple[str, int]) -> int:
    """Length of a step along k: as much as a launch's widest operands leave registers for, so that nothing spills."""
    if any(kind not in _NARROW for kind, _ in products):
        return 32
    return 128 if all(parts == 1 for _, parts in products) else 64


def num_splits(hidden: int, rank: int) -> int:
    """Pieces into which the sums of ``down`` are cut, of at least 256, so that some 128 programs share a low rank."""
    return max(1, min(128 // max(1, math.ceil(rank / 16)), hidden // 256))


def product(value: Tensor, weight: Tensor, bits: int) -> Tensor:
    """``value @ weight^T`` in fp32, ``value`` to at least ``bits`` significant bits; int8 weights as whole numbers."""
    kind, parts = operand(value.dtype, weight.dtype)
    if kind not in _NARROW:
        return value.to(torch.float32) @ weight.to(torch.float32).T
    narrow = _NARROW[kind]
    first, *others = _split(value, narrow, min(parts, math.ceil(bits / SIGNIFICANT_BITS[narrow])))
    transposed = weight.to(narrow).T
    result = _wide_product(first, transposed)
    for piece in others:
        result += _wide_product(piece, transposed)
    return result


def _split(value: Tensor, narrow: torch.dtype, parts: int) -> list[Tensor]:
    """``parts`` tensors of dtype ``narrow`` whose sum is ``value``, or its leading bits where they hold no more."""
    pieces = [value.to(narrow)]
    while len(pieces) < parts:
        value = value.to(torch.float32) - pieces[-1].to(torch.float32)
        pieces.append(value.to(narrow))
    return pieces


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of narrow matrices with an fp32 result; only CUDA has it without converting the operands first."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.to(torch.float32) @ b.to(torch.float32)
