"""The ways to compute a problem, by name. Each makes ``run(x, copy) -> (y, r')`` out of a problem's tensors."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from incline_fast import nn, ops
from incline_fast.bench.problems import ALPHA, EPS, Data, Problem
from incline_fast.ops._extension import EXTENSION

__all__ = ["PROVIDERS", "Provider", "Run"]

Run = Callable[[Tensor, int], tuple[Tensor, ...]]


def fits_all(problem: Problem) -> None:
    """Every problem can be computed."""


def needs_extension(problem: Problem) -> str | None:
    """Our kernels need the compiled extension, which a pure-Python installation does not have."""
    return "this is a pure-Python installation" if EXTENSION is None else None


@dataclass(frozen=True)
class Provider:
    """One way to compute a problem.

    Attributes:
        make: binds a problem's tensors; what is slow happens here, not in the timed ``run``.
        unfit: why a problem cannot be computed this way, None if it can.
        ours: one of our kernels; rows then name the instruction set.
        gemm_only: ``run`` returns ``(M x,)`` alone, without the addition and the norm.
        compiles: it takes seconds to make.
        disturbs: calls of other providers that come right after it are slower, and its own time does not show that.
    """

    make: Callable[[Data], Run]
    unfit: Callable[[Problem], str | None] = fits_all
    ours: bool = False
    gemm_only: bool = False
    compiles: bool = False
    disturbs: bool = False


def plain_reference(data: Data) -> Run:
    """The op's definition, as ``backend="reference"`` runs it."""
    return _functional(data, "reference")


def fused(data: Data) -> Run:
    """The functional op."""
    return _functional(data, "cpu")


def _functional(data: Data, backend: str) -> Run:
    weight, norm_bias, maps = data.weight, data.norm_bias, data.weights.packed
    options: dict[str, Any] = {"bias": data.bias, "alpha": ALPHA, "eps": EPS, "backend": backend}
    if norm_bias is None:
        return lambda x, i: ops.affine_rms_norm(x, weight, maps[i], **options)
    return lambda x, i: ops.affine_layer_norm(x, weight, norm_bias, maps[i], **options)


def fused_in_place(data: Data) -> Run:
    """The in-place op, as the layers call it."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.weights.packed
    if norm_bias is None:
        return lambda x, i: (ops.affine_rms_norm_(x, weight, maps[i], bias=bias, alpha=ALPHA, eps=EPS), x)
    return lambda x, i: (ops.affine_layer_norm_(x, weight, norm_bias, maps[i], bias=bias, alpha=ALPHA, eps=EPS), x)


def layer(data: Data) -> Run:
    """The drop-in module."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.weights.packed
    if norm_bias is None:
        rms = [nn.AffineRMSNorm(weight, map, bias=bias, alpha=ALPHA, eps=EPS) for map in maps]
        return lambda x, i: (rms[i](x), x)
    layers = [nn.AffineLayerNorm(weight, norm_bias, map, bias=bias, alpha=ALPHA, eps=EPS) for map in maps]
    return lambda x, i: (layers[i](x), x)


def eager(data: Data) -> Run:
    """torch's fastest separate calls: linear with bias, add, norm."""
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.weights.linear
    return lambda x, i: _unfused(x, *maps[i], bias, weight, norm_bias)


def compiled(data: Data) -> Run:
    """The same calls under torch.compile, the weights as arguments.

    ``fullgraph`` makes a shape beyond the recompile limit an error; without it torch would run it in eager, silently.
    """
    weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.weights.linear
    graph = torch.compile(_unfused, dynamic=False, fullgraph=True)

    def run(x: Tensor, i: int) -> tuple[Tensor, ...]:
        y, edited = graph(x, *maps[i], bias, weight, norm_bias)
        return y, edited

    return run


def max_autotuned(data: Data) -> Run:
    """torch.compile at its fastest: max-autotune, and weights frozen into the graph, packed and constant.

    Every copy of the weights is a graph of its own, under a code object of its own: dynamo keeps the graphs of one code
    object in a list whose guards it tries one after another in every call, and allows eight of them.
    """

    def frozen(i: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        code = _Frozen.forward.__code__.replace(co_name=f"forward_{i}")
        forward = types.FunctionType(code, _Frozen.forward.__globals__, code.co_name)
        module = type(f"Frozen{i}", (_Frozen,), {"forward": forward})(data, i)
        graph = torch.compile(module, mode="max-autotune", dynamic=False, fullgraph=True)
        graph(data.x)  # type: ignore[no-untyped-call]  # compiles, while freezing is switched on
        return graph

    quiet = contextlib.redirect_stderr(io.StringIO())  # where the autotuner prints its tables
    with torch._inductor.config.patch(freezing=True), quiet:
        graphs = [frozen(i) for i in range(data.weights.copies)]
    return lambda x, i: graphs[i](x)


def hook(data: Data) -> Run:
    """What an intervention usually is: a hook that adds ``h @ W`` to a block's output; then the model's norm."""
    bias, maps = data.bias, data.weights.transposed
    block = torch.nn.Identity()
    current = [0]

    def edit(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = maps[current[0]]
        mapped = output if down is None else output @ down
        return output + ALPHA * (mapped @ up + bias)

    block.register_forward_hook(edit)
    norm = _ModelRMSNorm(data.weight) if data.norm_bias is None else _model_layer_norm(data.weight, data.norm_bias)

    def run(x: Tensor, i: int) -> tuple[Tensor, ...]:
        current[0] = i
        edited = block(x)
        return norm(edited), edited

    return run


def simd_ml_kernels(data: Data) -> Run:
    """``sgemm`` and ``sgemm_bf16`` of simd-ml-kernels on nn.Linear's layout: the matrix product alone."""
    import simd_ml_kernels as peer

    def array(tensor: Tensor) -> Any:
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()

    gemm = peer.sgemm_bf16 if data.x.dtype == torch.bfloat16 else peer.sgemm
    x, maps = array(data.x), [array(up) for _, up in data.weights.linear]
    return lambda _, i: (torch.from_numpy(gemm(x, maps[i], trans_b=True)),)


def simd_ml_kernels_unfit(problem: Problem) -> str | None:
    """simd-ml-kernels is optional, its wheels use one thread, and it has no low-rank product."""
    if importlib.util.find_spec("simd_ml_kernels") is None:
        return "not installed (pip install simd-ml-kernels)"
    if torch.get_num_threads() > 1:
        return "its wheels are built for one thread"
    if problem.rank is not None:
        return "one matrix product, low rank needs two"
    if problem.dtype != problem.map_dtype or problem.dtype not in (torch.float32, torch.bfloat16):
        return "measured with fp32 and bf16 maps in the dtype of x"
    return None


PROVIDERS: dict[str, Provider] = {
    "eager": Provider(eager),
    "hook": Provider(hook, disturbs=True),
    "reference": Provider(plain_reference),
    "compile": Provider(compiled, compiles=True),
    "max_autotune": Provider(max_autotuned, compiles=True),
    "simd_ml_kernels": Provider(simd_ml_kernels, simd_ml_kernels_unfit, gemm_only=True, disturbs=True),
    "fused": Provider(fused, needs_extension, ours=True),
    "fused_in_place": Provider(fused_in_place, needs_extension, ours=True),
    "layer": Provider(layer, needs_extension, ours=True),
}
"""Ways to compute a problem by name; ``eager`` is what the others are compared with."""


def _unfused(
    x: Tensor, down: Tensor | None, up: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    mapped = F.linear(x if down is None else F.linear(x, down), up, bias)
    edited = torch.add(x, mapped, alpha=ALPHA)
    size = (x.shape[-1],)
    if norm_bias is None:
        return F.rms_norm(edited, size, weight, EPS), edited
    return F.layer_norm(edited, size, weight, norm_bias, EPS), edited


class _Frozen(torch.nn.Module):
    """``_unfused`` with everything but x as parameters."""

    down: Tensor | None
    up: Tensor
    bias: Tensor
    weight: Tensor
    norm_bias: Tensor | None

    def __init__(self, data: Data, i: int) -> None:
        super().__init__()
        down, up = data.weights.linear[i]
        tensors = (down, up, data.bias, data.weight, data.norm_bias)
        for name, tensor in zip(("down", "up", "bias", "weight", "norm_bias"), tensors, strict=True):
            self.register_parameter(name, None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _unfused(x, self.down, self.up, self.bias, self.weight, self.norm_bias)


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
