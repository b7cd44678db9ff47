"""The named tables of the benchmark: their problems and providers. Each takes a minute or two."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from incline_fast.bench.problems import Problem

__all__ = ["TABLES", "Table"]

TOKENS = (1, 2, 4, 8, 16, 32, 128)
WIDTHS = (1024, 2048, 4096)
FP32, BF16, FP16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
OURS = ("fused_in_place",)
PEERS = ("eager", "hook", "simd_ml_kernels", *OURS)


@dataclass(frozen=True)
class Table:
    """Problems that are measured in one run, and their providers unless ``--providers`` names others."""

    about: str
    problems: tuple[Problem, ...]
    providers: tuple[str, ...]
    seconds: float = 0.6


def _grid(
    dtype: torch.dtype,
    map_dtype: torch.dtype,
    widths: tuple[int, ...],
    tokens: tuple[int, ...],
    rank: int | None = None,
    norm: str = "rms",
    modes: tuple[str, ...] = ("dram",),
) -> tuple[Problem, ...]:
    """Tokens vary fastest, because problems that differ in nothing else share their weights."""
    return tuple(Problem(norm, m, d, rank, dtype, map_dtype, mode) for d, mode, m in product(widths, modes, tokens))


def _dense(dtype: torch.dtype) -> tuple[Problem, ...]:
    return _grid(dtype, dtype, WIDTHS, TOKENS) + _grid(dtype, dtype, (1024, 2048), (1, 8, 32), modes=("cache",))


def _low_rank(dtype: torch.dtype) -> tuple[Problem, ...]:
    return _grid(dtype, dtype, WIDTHS, TOKENS, rank=64) + _grid(dtype, dtype, (4096,), (1, 2, 4, 8), rank=500)


TABLES: dict[str, Table] = {
    "quick": Table(
        "a few shapes, under a minute",
        (
            Problem(hidden_size=64, mode="cache"),
            *(Problem("rms", m, 2048, r, t, t) for r, t, m in product((None, 64), (FP32, BF16), (1, 4, 32))),
        ),
        ("eager", "hook", "simd_ml_kernels", "fused", "fused_in_place", "layer"),
        1.0,
    ),
    "overhead": Table(
        "so small that a call costs what calling costs",
        _grid(FP32, FP32, (64,), (1,), modes=("cache",)) + _grid(BF16, BF16, (64,), (1,), modes=("cache",)),
        (
            "eager",
            "hook",
            "reference",
            "compile",
            "max_autotune",
            "simd_ml_kernels",
            "fused",
            "fused_in_place",
            "layer",
        ),
        2.0,
    ),
    "dense-fp32": Table("dense maps in fp32", _dense(FP32), PEERS),
    "dense-bf16": Table("dense maps in bf16", _dense(BF16), PEERS),
    "dense-fp16": Table("dense maps in fp16", _grid(FP16, FP16, (2048,), TOKENS), ("eager", "hook", *OURS)),
    "low-rank-fp32": Table("rank 64, and rank 500 at d = 4096, in fp32", _low_rank(FP32), ("eager", "hook", *OURS)),
    "low-rank-bf16": Table("rank 64, and rank 500 at d = 4096, in bf16", _low_rank(BF16), ("eager", "hook", *OURS)),
    "int8": Table(
        "int8 maps; the others read the same map in the dtype of x",
        _grid(BF16, INT8, WIDTHS, (1, 2, 4, 8))
        + _grid(FP32, INT8, (2048,), (1, 4))
        + _grid(BF16, INT8, (4096,), (1, 4), 64),
        ("eager", "hook", *OURS),
    ),
    "mixed": Table(
        "fp32 states with bf16 maps, and LayerNorm",
        _grid(FP32, BF16, (2048,), (1, 8, 32))
        + tuple(Problem("layer", m, 2048, None, t, t) for t, m in product((FP32, BF16), (1, 8, 32))),
        ("eager", "hook", "reference", *OURS),
    ),
    "prompts": Table(
        "whole prompts: every token of 512 and 2048, dense and rank 64",
        tuple(
            problem
            for rank, dtype in product((None, 64), (FP32, BF16))
            for problem in _grid(dtype, dtype, (2048,), (512, 2048), rank) + _grid(dtype, dtype, (4096,), (512,), rank)
        ),
        ("eager", *OURS),
    ),
    "compile": Table(
        "against torch.compile as it comes",
        _grid(FP32, FP32, (2048,), TOKENS) + _grid(BF16, BF16, (2048,), TOKENS),
        ("eager", "compile", *OURS),
    ),
    "max-autotune-fp32": Table(
        "against torch.compile with max-autotune and frozen weights, fp32",
        _grid(FP32, FP32, (4096,), (1, 4, 16, 128)),
        ("eager", "max_autotune", *OURS),
        1.0,
    ),
    "max-autotune-bf16": Table(
        "against torch.compile with max-autotune and frozen weights, bf16",
        _grid(BF16, BF16, (4096,), (1, 4, 16, 128)),
        ("eager", "max_autotune", *OURS),
        1.0,
    ),
}
"""Tables by name."""
