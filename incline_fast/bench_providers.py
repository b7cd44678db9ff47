"""What is timed: a problem's tensors, and the ways to compute it, each a function ``run(x, copy) -> (y, r')``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from incline_fast import nn, ops, reference
from incline_fast.maps import AffineMap

__all__ = ["PROVIDERS", "Data", "Problem", "Run"]

ALPHA = 0.5
EPS = 1e-6
DRAM_BYTES = 1 << 30
"""Weights that one provider walks through in mode ``dram``; more than the caches hold."""

Run = Callable[[Tensor, int], tuple[Tensor, Tensor]]


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
        """Copies of the map that are walked through."""
        size = self.map_elements * self.map_dtype.itemsize
        return 1 if self.mode == "cache" else math.ceil(DRAM_BYTES / size)


class Data:
    """Tensors of a problem: ``copies`` equal maps for the compiled op (packed) and for torch (in x's dtype)."""

    def __init__(self, problem: Problem) -> None:
        g = torch.Generator().manual_seed(0)
        d, rank, dtype = problem.hidden_size, problem.rank, problem.dtype
        self.problem = problem
        self.x = torch.randn(problem.num_tokens, d, generator=g).to(dtype)
        self.weight = (torch.rand(d, generator=g) + 0.5).to(dtype)
        self.norm_bias = torch.randn(d, generator=g).to(dtype) if problem.norm == "layer" else None
        self.bias = torch.randn(d, generator=g).to(dtype)
        if rank is None:
            map = AffineMap.dense(torch.randn(d, d, generator=g) * d**-0.5)
        else:
            down, up = torch.randn(rank, d, generator=g) * d**-0.5, torch.randn(d, rank, generator=g) * rank**-0.5
            map = AffineMap.low_rank(down, up)
        self.map = map.to(problem.map_dtype)
        self.maps = [_clone(self.map) for _ in range(problem.copies)]
        self.torch_maps = [map if map.dtype == dtype else map.to(dtype) for map in self.maps]
        for copy in self.maps:
            copy.packed()

    def expected(self) -> tuple[Tensor, Tensor]:
        """fp64 (y, r')."""
        map = self.map.to(torch.float64)
        x, weight, bias = self.x.double(), self.weight.double(), self.bias.double()
        if self.norm_bias is None:
            return reference.affine_rms_norm(x, weight, map.down, map.up, bias=bias, alpha=ALPHA, eps=EPS)
        norm_bias = self.norm_bias.double()
        return reference.affine_layer_norm(x, weight, norm_bias, map.down, map.up, bias=bias, alpha=ALPHA, eps=EPS)


def fused(data: Data) -> Run:
    """The functional op."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.maps
    if norm_bias is None:
        return lambda x, i: ops.affine_rms_norm(x, weight, maps[i], bias=bias, alpha=ALPHA, eps=EPS)
    return lambda x, i: ops.affine_layer_norm(x, weight, norm_bias, maps[i], bias=bias, alpha=ALPHA, eps=EPS)


def fused_in_place(data: Data) -> Run:
    """The in-place op, as the layers call it."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.maps
    if norm_bias is None:
        return lambda x, i: (ops.affine_rms_norm_(x, weight, maps[i], bias=bias, alpha=ALPHA, eps=EPS), x)
    return lambda x, i: (ops.affine_layer_norm_(x, weight, norm_bias, maps[i], bias=bias, alpha=ALPHA, eps=EPS), x)


def layer(data: Data) -> Run:
    """The drop-in module."""
    if data.norm_bias is None:
        rms = [nn.AffineRMSNorm(data.weight, map, bias=data.bias, alpha=ALPHA, eps=EPS) for map in data.maps]
        return lambda x, i: (rms[i](x), x)
    norm_bias = data.norm_bias
    layers = [nn.AffineLayerNorm(data.weight, norm_bias, m, bias=data.bias, alpha=ALPHA, eps=EPS) for m in data.maps]
    return lambda x, i: (layers[i](x), x)


def eager(data: Data) -> Run:
    """torch's fastest separate calls: linear with bias, add, norm."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.torch_maps

    def run(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return _unfused(x, maps[i].down, maps[i].up, bias, weight, norm_bias)

    return run


def compiled(data: Data) -> Run:
    """The same calls under torch.compile, for this shape alone."""
    torch._dynamo.reset()
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.torch_maps
    graph = torch.compile(_unfused, dynamic=False, fullgraph=True)

    def run(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        y, edited = graph(x, maps[i].down, maps[i].up, bias, weight, norm_bias)
        return y, edited

    return run


def hook(data: Data) -> Run:
    """What an intervention usually is: a forward hook that edits a block's output, then the model's own norm."""
    bias, maps = data.bias, data.torch_maps
    block = torch.nn.Identity()
    current = [0]

    def edit(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = maps[current[0]].down, maps[current[0]].up
        image = output if down is None else output @ down[0].T
        return output + ALPHA * (image @ up[0].T + bias)

    block.register_forward_hook(edit)
    norm = _ModelRMSNorm(data.weight) if data.norm_bias is None else _model_layer_norm(data.weight, data.norm_bias)

    def run(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        current[0] = i
        edited = block(x)
        return norm(edited), edited

    return run


PROVIDERS: dict[str, Callable[[Data], Run]] = {
    "eager": eager,
    "hook": hook,
    "compile": compiled,
    "fused": fused,
    "fused_in_place": fused_in_place,
    "layer": layer,
}
"""Ways to compute a problem by name; ``eager`` is what the others are compared with."""


def _unfused(
    x: Tensor, down: Tensor | None, up: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    image = F.linear(x if down is None else F.linear(x, down[0]), up[0], bias)
    edited = torch.add(x, image, alpha=ALPHA)
    size = (x.shape[-1],)
    if norm_bias is None:
        return F.rms_norm(edited, size, weight, EPS), edited
    return F.layer_norm(edited, size, weight, norm_bias, EPS), edited


class _ModelRMSNorm(torch.nn.Module):
    """RMSNorm as the decoders of transformers write it: in fp32, one operation after another."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return self.weight * wide.to(x.dtype)


def _model_layer_norm(weight: Tensor, norm_bias: Tensor) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(weight.shape[0], eps=EPS, dtype=weight.dtype).requires_grad_(False)
    norm.weight.copy_(weight)
    norm.bias.copy_(norm_bias)
    return norm


def _clone(map: AffineMap) -> AffineMap:
    return map.convert(Tensor.clone)
