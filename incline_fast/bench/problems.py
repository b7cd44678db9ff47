"""What is timed: one shape of the op, and its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops import reference

__all__ = ["ALPHA", "EPS", "Data", "Problem", "Weights"]

ALPHA = 0.5
EPS = 1e-6
DRAM_BYTES = 1 << 30
"""Bytes of weights that one provider reads in turn in mode ``dram``; more than the caches hold."""


@dataclass(frozen=True)
class Problem:
    """One shape. ``rank`` None is a dense map; mode "dram" reads another copy of the map in every call."""

    norm: str = "rms"
    num_tokens: int = 1
    hidden_size: int = 2048
    rank: int | None = None
    dtype: torch.dtype = torch.float32
    map_dtype: torch.dtype = torch.float32
    mode: str = "dram"

    def __str__(self) -> str:
        rank = "dense" if self.rank is None else str(self.rank)
        shape = f"{self.norm} {self.num_tokens} {self.hidden_size} {rank}"
        return f"{shape} {dtype_name(self.dtype)} {dtype_name(self.map_dtype)} {self.mode}"

    @classmethod
    def parse(cls, text: str) -> Problem:
        """The inverse of ``str(problem)``.

        Raises:
            ValueError: not seven words ``norm tokens hidden rank|dense dtype map_dtype dram|cache``.
        """
        try:
            norm, tokens, hidden, rank, dtype, map_dtype, mode = text.split()
            if norm not in ("rms", "layer") or mode not in ("dram", "cache"):
                raise ValueError
            size = int(tokens), int(hidden), None if rank == "dense" else int(rank)
            return cls(norm, *size, getattr(torch, dtype), getattr(torch, map_dtype), mode)
        except (ValueError, AttributeError):
            form = "rms|layer TOKENS HIDDEN RANK|dense DTYPE MAP_DTYPE dram|cache"
            raise ValueError(f'shape is "{text}"; expected {form}, e.g. "{cls()}"') from None

    @property
    def map_elements(self) -> int:
        """Weights of one map."""
        return self.hidden_size * (self.hidden_size if self.rank is None else 2 * self.rank)

    @property
    def bytes(self) -> int:
        """Bytes that a call has to move: the map, x in, r' and y out, the norm's weight and the bias."""
        vectors = (3 * self.num_tokens + 2) * self.hidden_size
        return self.map_elements * self.map_dtype.itemsize + vectors * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        return 2 * self.num_tokens * self.map_elements

    @property
    def copies(self) -> int:
        """Number of copies of the map that successive calls read in turn."""
        size = self.map_elements * self.map_dtype.itemsize
        return 1 if self.mode == "cache" else math.ceil(DRAM_BYTES / size)


class Weights:
    """Equal copies of one map in the forms that providers read; a form is made when it is first asked for."""

    def __init__(
        self, hidden_size: int, rank: int | None, dtype: torch.dtype, map_dtype: torch.dtype, copies: int
    ) -> None:
        g = torch.Generator().manual_seed(0)
        d = hidden_size
        if rank is None:
            map = AffineMap.dense(torch.randn(d, d, generator=g) * d**-0.5)
        else:
            down, up = torch.randn(rank, d, generator=g) * d**-0.5, torch.randn(d, rank, generator=g) * rank**-0.5
            map = AffineMap.low_rank(down, up)
        self.map = map.quantize() if map_dtype == torch.int8 else map.to(map_dtype)
        self.dtype = dtype
        self.copies = copies

    @cached_property
    def packed(self) -> list[AffineMap]:
        """For our kernels, packed."""
        maps = [self.map.convert(Tensor.clone) for _ in range(self.copies)]
        for map in maps:
            map.packed()
        return maps

    @cached_property
    def linear(self) -> list[tuple[Tensor | None, Tensor]]:
        """(down, up) in x's dtype, as ``F.linear`` reads them: ``[out, in]``."""
        maps = [self.map.to(self.dtype).convert(Tensor.clone) for _ in range(self.copies)]
        return [(None if map.down is None else map.down[0], map.up[0]) for map in maps]

    @cached_property
    def transposed(self) -> list[tuple[Tensor | None, Tensor]]:
        """(down, up) in x's dtype, as ``h @ W`` reads them: ``[in, out]``."""
        return [(None if down is None else down.T.contiguous(), up.T.contiguous()) for down, up in self.linear]


class Data:
    """Tensors of a problem."""

    def __init__(self, problem: Problem) -> None:
        g = torch.Generator().manual_seed(1)
        d, dtype = problem.hidden_size, problem.dtype
        self.problem = problem
        self.x = torch.randn(problem.num_tokens, d, generator=g).to(dtype)
        self.weight = (torch.rand(d, generator=g) + 0.5).to(dtype)
        self.norm_bias = torch.randn(d, generator=g).to(dtype) if problem.norm == "layer" else None
        self.bias = torch.randn(d, generator=g).to(dtype)

    @cached_property
    def weights(self) -> Weights:
        """The copies of the map; made when they are first asked for."""
        problem = self.problem
        return _weights(problem.hidden_size, problem.rank, problem.dtype, problem.map_dtype, problem.copies)

    def expected(self) -> tuple[Tensor, Tensor]:
        """fp64 (y, r')."""
        map = self.weights.map.to(torch.float64)
        x, weight, bias = self.x.double(), self.weight.double(), self.bias.double()
        if self.norm_bias is None:
            return reference.affine_rms_norm(x, weight, map.down, map.up, bias=bias, alpha=ALPHA, eps=EPS)
        norm_bias = self.norm_bias.double()
        return reference.affine_layer_norm(x, weight, norm_bias, map.down, map.up, bias=bias, alpha=ALPHA, eps=EPS)

    def mapped(self) -> Tensor:
        """fp64 ``M x``, for providers that compute the matrix product alone."""
        return self.weights.map.to(torch.float64).apply(self.x.double())


# Shapes that differ only in the number of tokens share their weights; only the weights used last are kept.
_weights = lru_cache(maxsize=1)(Weights)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
