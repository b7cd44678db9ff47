"""What is measured, in sets that are stages of their own, each with the most important shapes first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from incline_fast.bench.problems import Problem

__all__ = ["BASELINE", "CHOLESKY_SIZES", "SETS", "ShapeSet"]

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8

BASELINE = "cublas+compiled"
"""The provider that ratios are relative to; it is timed twice, and the ratio of the two shows the machine's drift."""

PAIRS = (BASELINE, "cublas+liger", "cublas+quack", "cublas+flashinfer", "cublas, residual as C", "addmv")
CUDA = ("cuda", "cuda, PDL", "cuda, no bulk copies", "cuda, decode kernels")
PARTS = ("empty kernel", "read alone", "product alone", "mv alone", "norm alone")
COMPILED = ("compile", "compile, max-autotune", "compile, max-autotune, PDL")
FOLDED = "folded (other rounding)"

CHOLESKY_SIZES = (128, 512, 2048, 4096)


@dataclass(frozen=True)
class ShapeSet:
    """Problems, and the providers that are timed on each of them as far as they fit it."""

    problems: tuple[Problem, ...]
    providers: tuple[str, ...]


def _decode(ranks: tuple[int | None, ...]) -> tuple[Problem, ...]:
    widths, tokens = (4096, 2048, 8192), (1, 16, 4, 64)
    return tuple(Problem("rms", m, d, r, BF16, BF16) for d, r, m in product(widths, ranks, tokens))


SETS: dict[str, ShapeSet] = {
    "dense": ShapeSet(_decode((None,)), (*CUDA, *PAIRS, FOLDED, *PARTS)),
    "low-rank": ShapeSet(_decode((500,)) + _decode((64,)), (*CUDA, *PAIRS, *PARTS)),
    "epilogue": ShapeSet(
        tuple(Problem("rms", m, 4096, r, BF16, BF16) for m, r in product((2048, 128), (None, 500))),
        ("cuda", BASELINE, "cublas+liger", "cublas, residual as C", "product alone", "norm alone"),
    ),
    "triton": ShapeSet(_decode((None,)) + _decode((500,)), ("triton", "triton, PDL", "cuda", BASELINE)),
    "compiled": ShapeSet(
        tuple(Problem("rms", m, 4096, r, BF16, BF16) for r, m in ((None, 1), (500, 1), (None, 16))),
        ("cuda", BASELINE, *COMPILED, "eager", "hook"),
    ),
    "others": ShapeSet(
        (
            *(Problem("rms", m, 4096, None, BF16, INT8) for m in (1, 16)),
            *(Problem("layer", 1, 4096, r, BF16, BF16) for r in (None, 500)),
            *(Problem("rms", 1, 4096, r, BF16, BF16, "cache") for r in (None, 500)),
            *(Problem("rms", 1, 4096, r, BF16, BF16, "launch") for r in (None, 500)),
            *(Problem("rms", m, 4096, None, FP16, FP16) for m in (1, 16)),
            *(Problem("rms", m, 4096, r) for r, m in product((None, 500), (1, 16))),
        ),
        ("cuda", "triton", BASELINE, "cublas, residual as C", "eager"),
    ),
}
"""By name. "cholesky" is a stage too; its sizes are ``CHOLESKY_SIZES``."""
