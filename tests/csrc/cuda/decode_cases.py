"""Calls of the decode kernels: every product of types, both norms, shapes around the tiles of 16, 8 and 64."""

from __future__ import annotations

from typing import Any

import torch
from op_cases import Case, make
from torch import Tensor

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8

# (x, maps, residual): each product of csrc/cuda/affine_norm/products.h with and without splitting the rows.
KINDS: dict[str, tuple[torch.dtype, torch.dtype, torch.dtype | None]] = {
    "bf16": (BF16, BF16, None),
    "bf16+bf16": (BF16, BF16, BF16),
    "bf16+fp32": (BF16, BF16, FP32),
    "fp16": (FP16, FP16, None),
    "fp16+fp32": (FP16, FP16, FP32),
    "bf16 x fp16": (BF16, FP16, None),
    "fp32": (FP32, FP32, None),
    "bf16 x fp32": (BF16, FP32, BF16),
    "fp32 x bf16": (FP32, BF16, None),
    "bf16 x int8": (BF16, INT8, None),
    "fp16 x int8": (FP16, INT8, FP16),
    "fp32 x int8": (FP32, INT8, FP32),
}
# x, maps and residual for which there are kernels that know the types, with all vectors in the type of x.
UNIFORM = {kind: KINDS[kind] for kind in ("bf16", "bf16+bf16", "fp16", "bf16 x int8", "fp16 x int8")}
UNIFORM |= {"fp16+fp16": (FP16, FP16, FP16), "bf16+bf16 x int8": (BF16, INT8, BF16)}
HIDDEN = (1, 16, 31, 64, 129, 200)
ROWS = (1, 2, 8, 9, 17, 33)
RANKS = (1, 7, 16, 40)


def decode_case(kind: str, low_rank: bool, index: int = 0) -> Case:
    """One call; the other arguments walk through their values with the number of the kind, so that all of them meet."""
    x, map_dtype, residual = KINDS[kind]
    index += list(KINDS).index(kind) + (3 if low_rank else 0)
    hidden, rows = HIDDEN[index % len(HIDDEN)], ROWS[(index + index // 6) % len(ROWS)]
    options: dict[str, Any] = {"alpha": 0.75, "weight_offset": float(index % 3 == 0), "bias": index % 4 != 3}
    if index % 2:
        options["alpha"] = torch.linspace(-1, 1, rows)
    if index % 3 == 1:
        options["beta"] = torch.linspace(0.5, 1, rows, dtype=BF16)
    if index % 5 < 2:
        options["num_maps"] = 3
        options["row_map"] = torch.arange(rows, dtype=torch.int32) * 2 % 4 - 1
    return make(
        ("rms", "layer")[index % 2],
        hidden,
        (rows,),
        rank=min(RANKS[index % len(RANKS)], hidden) if low_rank else None,
        dtype=x,
        map_dtype=map_dtype,
        residual_dtype=residual,
        vector_dtype=(BF16, FP32, torch.float64)[index % 3],
        seed=index,
        **options,
    )


def both_equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Bit for bit, (y, r') of two runs."""
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
