"""Ways to compute a problem on a GPU: our backends, torch's, and the fused norms of other libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from incline_fast import ops
from incline_fast.bench.problems import ALPHA, EPS, Data, Problem, Weights
from incline_fast.bench.providers import PROVIDERS, Run
from incline_fast.maps import AffineMap

__all__ = ["DeviceData", "available", "build"]

AddNorm = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class DeviceData(Data):
    """The tensors of a problem on a device. Copies are made there: a gigabyte of them is cloned in a moment."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__(problem)
        self.x, self.weight, self.bias = (t.to(device) for t in (self.x, self.weight, self.bias))
        self.norm_bias = None if self.norm_bias is None else self.norm_bias.to(device)
        kinds = (problem.hidden_size, problem.rank, problem.dtype, problem.map_dtype)
        self.weights = Weights(*kinds, problem.copies)
        self.weights.map = self.weights.map.to(device=device)

    @cached_property
    def maps(self) -> list[AffineMap]:
        """The copies as our kernels on a GPU read them."""
        return [self.weights.map.convert(Tensor.clone) for _ in range(self.problem.copies)]


def ours(backend: str) -> Callable[[DeviceData], Run]:
    """The in-place op of one backend, as the layers call it."""

    def provider(data: DeviceData) -> Run:
        weight, norm_bias, maps = data.weight, data.norm_bias, data.maps
        options: dict[str, Any] = {"bias": data.bias, "alpha": ALPHA, "eps": EPS, "backend": backend}
        if norm_bias is None:
            return lambda x, i: (ops.affine_rms_norm_(x, weight, maps[i], **options), x)
        return lambda x, i: (ops.affine_layer_norm_(x, weight, norm_bias, maps[i], **options), x)

    return provider


def vendor(add_norm: AddNorm) -> Callable[[DeviceData], Run]:
    """The unfused pair: cuBLAS with the bias in its epilogue, then one kernel that adds and normalises."""

    def provider(data: DeviceData) -> Run:
        weight, norm_bias, maps = data.weight, data.norm_bias, data.weights.linear
        bias = ALPHA * data.bias

        def run(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
            down, up = maps[i]
            change = torch.addmm(bias, x if down is None else F.linear(x, down), up.T, alpha=ALPHA)
            return add_norm(change, x, weight, norm_bias)

        return run

    return provider


def _torch() -> AddNorm:
    """Add and norm as the one kernel that torch.compile makes of them."""

    def add_norm(change: Tensor, x: Tensor, weight: Tensor, norm_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        edited = x + change
        size = (x.shape[-1],)
        if norm_bias is None:
            return F.rms_norm(edited, size, weight, EPS), edited
        return F.layer_norm(edited, size, weight, norm_bias, EPS), edited

    compiled: AddNorm = torch.compile(add_norm, dynamic=False, fullgraph=True)
    return compiled


def _liger() -> AddNorm:
    function = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    return lambda change, x, weight, _: function.apply(change, x, weight, EPS)


def _quack() -> AddNorm:
    rmsnorm = importlib.import_module("quack").rmsnorm
    return lambda change, x, weight, _: rmsnorm(change, weight, residual=x, eps=EPS)


def _flashinfer() -> AddNorm:
    fused_add_rmsnorm = importlib.import_module("flashinfer.norm").fused_add_rmsnorm

    def add_norm(change: Tensor, x: Tensor, weight: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        fused_add_rmsnorm(change, x, weight, EPS)  # x <- x + change, change <- norm(x)
        return change, x

    return add_norm


_ADD_NORMS: dict[str, Callable[[], AddNorm]] = {
    "cublas+compiled": _torch,
    "cublas+liger": _liger,
    "cublas+quack": _quack,
    "cublas+flashinfer": _flashinfer,
}
_TORCH = ("eager", "hook", "compile")


def available(problem: Problem, backends: tuple[str, ...]) -> dict[str, str]:
    """The providers by name, each with the reason why it cannot run this problem (empty: it can)."""
    found = dict.fromkeys((*_TORCH, "cublas+compiled", *backends), "")
    for name in list(_ADD_NORMS)[1:]:
        found[name] = _missing(name) if problem.norm == "rms" else "has no fused add and LayerNorm"
    return found


def build(name: str, data: DeviceData) -> Run:
    """The provider of that name."""
    if name in _TORCH:
        return PROVIDERS[name].make(data)
    return vendor(_ADD_NORMS[name]())(data) if name in _ADD_NORMS else ours(name)(data)


def _missing(name: str) -> str:
    try:
        _ADD_NORMS[name]()
    except (ImportError, AttributeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
