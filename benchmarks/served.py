"""Which calls the CUDA kernels for compute capability 9.0 and later serve, as csrc/cuda decides by their shape.

Calls without a row_map, of one map, whose rows and vectors are aligned and of one 16-bit type.
"""

from __future__ import annotations

import math

import torch

from incline_fast.bench.problems import Problem

__all__ = [
    "RING_TOKENS",
    "RING_TOKENS_WITH_FAST_MEMORY",
    "cluster_pieces",
    "in_one_cluster",
    "in_ring",
    "ring_limit",
]

TILE, WHOLE_STEPS = 16, 64
"""Columns of a tile; the width is a multiple of the latter."""
RING_TOKENS, RING_TOKENS_WITH_FAST_MEMORY, FAST_MEMORY = 16, 9, 4.0
"""What the kernel with bulk copies takes, and what is asked of it where memory brings as many TB/s or more."""
CLUSTER_TOKENS, CLUSTER_BLOCKS, CLUSTER_PIECES, CLUSTER_RANK, CLUSTER_WIDTH, PIECE_DEPTH = 8, 16, 2, 128, 8192, 512
"""Of the kernel for one cluster: tokens, blocks, a block's pieces of ``down r``, rank and width at most; a piece is a
tile of rows of ``down`` by so much of its depth."""


def in_ring(problem: Problem) -> bool:
    """Whether the kernel with bulk copies can serve a call: a dense map for a few tokens."""
    return problem.rank is None and problem.num_tokens <= RING_TOKENS and _is_uniform(problem)


def ring_limit(bandwidth: float) -> int:
    """Tokens up to which it does, by the memory's TB/s (ring_rows in csrc/cuda)."""
    return RING_TOKENS if bandwidth < FAST_MEMORY else RING_TOKENS_WITH_FAST_MEMORY


def in_one_cluster(problem: Problem) -> bool:
    """Whether the kernel for one cluster serves a call: a small map of low rank for a few tokens."""
    rank, few = problem.rank or 0, problem.num_tokens <= CLUSTER_TOKENS
    small = 0 < rank <= CLUSTER_RANK and problem.hidden_size <= CLUSTER_WIDTH
    aligned = rank * problem.map_dtype.itemsize % 16 == 0
    return few and small and aligned and _is_uniform(problem) and cluster_pieces(problem) <= CLUSTER_PIECES


def cluster_pieces(problem: Problem) -> int:
    """Pieces of ``down r`` of a block of the cluster."""
    pieces = math.ceil((problem.rank or 0) / TILE) * math.ceil(problem.hidden_size / PIECE_DEPTH)
    return math.ceil(pieces / CLUSTER_BLOCKS)


def _is_uniform(problem: Problem) -> bool:
    """Whether the products take rows of this type as they come from such a map."""
    rows = torch.bfloat16 if problem.map_dtype is torch.int8 else problem.map_dtype
    return problem.dtype is rows and rows.itemsize == 2 and problem.hidden_size % WHOLE_STEPS == 0
